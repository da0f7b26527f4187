//! The controllers: what makes objects come true.
//!
//! Caches are warm on every master; loops run on the leader only, and every write carries
//! the fence of its reign. What a controller remembers is a cache: it may be forgotten.

mod deployment;
mod endpoint_slice;
mod endpoints;
mod garbage_collector;
mod lease_report;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod objects;
mod pod_gc;
mod pods;
mod replica_set;
mod root_ca;
pub mod scheduler;
mod service_account;
mod time;

use std::sync::Arc;

use quorate_proto::gvk::GroupVersionResource;
use quorate_runtime::activation::Leadership;
use quorate_runtime::client::Client;
use quorate_runtime::manager::Manager;
use tokio_util::sync::CancellationToken;

/// What the controllers of a master must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The master's name: the holder of the Lease objects that report who leads.
    pub identity: String,
    /// The certificates, in PEM, by which pods recognise the API server.
    pub root_ca_pem: String,
    /// Every resource that can be listed, watched and deleted, each group's preferred
    /// version first: what a namespace contains, and what is garbage-collected.
    pub resources: Vec<ApiResource>,
}

/// One resource that the API serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub resource: GroupVersionResource,
    pub kind: String,
    pub is_namespaced: bool,
}

/// Puts one controller together: its informers, its queue, its reconciler.
type Register = fn(&mut Manager, &Config);

/// Every controller there is.
const CONTROLLERS: &[Register] = &[
    deployment::register,
    endpoint_slice::register,
    endpoints::register,
    garbage_collector::register,
    namespace::register,
    node_ipam::register,
    node_lifecycle::register,
    pod_gc::register,
    replica_set::register,
    root_ca::register,
    service_account::register,
];

/// Runs every controller until `cancel` is cancelled; returns when all tasks have ended.
pub async fn run(client: Arc<dyn Client>, leadership: Leadership, config: Config, cancel: CancellationToken) {
    let mut manager = Manager::new(Arc::clone(&client), "quorate-controllers", cancel.clone());
    for register in CONTROLLERS {
        register(&mut manager, &config);
    }
    let scheduler = scheduler::Scheduler::new(
        Arc::clone(&client),
        manager.informers(),
        manager.events(),
        scheduler::Config::default(),
    );
    let scheduling = scheduler.run(leadership.clone(), cancel.clone());
    let report = lease_report::run(client, leadership.clone(), config.identity.clone(), cancel);
    tokio::join!(manager.run(leadership), scheduling, report);
}

/// The resources without those that show the objects of another: later versions of the
/// same resource, and Events, which two groups serve.
fn unique_resources(config: &Config) -> impl Iterator<Item = &ApiResource> {
    let mut seen = std::collections::HashSet::new();
    config.resources.iter().filter(move |one| {
        one.resource.group != "events.k8s.io"
            && seen.insert((one.resource.group.as_str(), one.resource.resource.as_str()))
    })
}
