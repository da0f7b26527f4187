//! `quorate master`: store replica, API server, controllers and scheduler in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_apiserver::storage::local::LocalStorage;
use quorate_controllers::{ApiResource, Config};
use quorate_proto::gvk::GroupVersionResource;
use quorate_runtime::activation::Leadership;
use quorate_runtime::client::Client;
use quorate_store::{MetricsText, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::pki::Pki;
use crate::store::parse_size;
use crate::supervise;

/// The pause after a panic of the controllers.
const AGAIN_AFTER_PANIC: Duration = Duration::from_secs(1);

/// The address of the Service `kubernetes`: the first of the Services' network.
pub(crate) fn first_service_address() -> Ipv4Addr {
    let network = quorate_apiserver::registry::Config::default().service_cidr.network();
    Ipv4Addr::from_bits(network.to_bits() + 1)
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example, one of three masters:
  quorate master --name m1 --data-dir /var/lib/quorate --pki /etc/quorate/pki \\
    --listen-api 192.0.2.1:6443 --listen-client 192.0.2.1:2379 --listen-peer 192.0.2.1:2380 \\
    --initial-cluster m1=192.0.2.1:2380,m2=192.0.2.2:2380,m3=192.0.2.3:2380")]
pub(crate) struct Arguments {
    /// The master's name, unique in its cluster.
    #[arg(long)]
    name: String,
    /// Holds the store: log and state.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The folder of certificates, laid out as kubeadm does.
    #[arg(long, value_name = "DIR")]
    pki: PathBuf,
    /// Where the API server listens.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_api: SocketAddr,
    /// Where etcd clients reach the store.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_client: SocketAddr,
    /// Where other masters reach the store.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_peer: SocketAddr,
    /// Every founding master and its peer address; an existing data directory knows its members.
    #[arg(long, value_delimiter = ',', value_parser = parse_member, value_name = "NAME=ADDRESS:PORT")]
    initial_cluster: Vec<(String, String)>,
    /// What the store may hold in memory, such as 512MiB [default: 256MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    memory_limit: Option<u64>,
    /// How soon pods of a lost node are replaced; the same for all masters.
    #[arg(long, value_enum, default_value_t = NodeFailover::Compat)]
    node_failover: NodeFailover,
    /// End when standard input closes: set by the supervisor.
    #[arg(long, hide = true)]
    lifeline: bool,
}

/// For how long pods tolerate a node that is lost or not ready, unless their own
/// tolerations say so.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeFailover {
    /// After 300 s, as Kubernetes does.
    Compat,
    /// After 2 s: for pods that lose nothing when two of them run for a while.
    Fast,
}

impl NodeFailover {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Compat => "compat",
            Self::Fast => "fast",
        }
    }

    fn toleration_seconds(self) -> u32 {
        match self {
            Self::Compat => 300,
            Self::Fast => 2,
        }
    }
}

fn parse_member(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && address.contains(':') => Ok((name.to_owned(), address.to_owned())),
        _ => Err(format!("{text:?} is not of the form NAME=ADDRESS:PORT")),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let metrics = crate::metrics::install()?;
    let pki = Pki::at(&arguments.pki);
    let root_ca_pem =
        std::fs::read_to_string(pki.ca()).with_context(|| format!("cannot read {}", pki.ca().display()))?;

    let mut store = quorate_store::Config::new(&arguments.name, arguments.data_dir.join("store"));
    store.listen_peer = arguments.listen_peer;
    // Firewalls, and the drills of networks, tell masters apart by it. A member of
    // `quorate store` does as etcd, which leaves it to the machine.
    store.dial_from = Some(arguments.listen_peer.ip()).filter(|address| !address.is_unspecified());
    store.listen_client = Some(arguments.listen_client);
    store.initial_cluster = arguments.initial_cluster;
    store.peer_tls = Some(pki.store_peer());
    store.client_tls = Some(pki.store_server());
    store.memory_limit_bytes = arguments.memory_limit.unwrap_or(store.memory_limit_bytes);
    let text = metrics.clone();
    store.metrics = Some(MetricsText(Arc::new(move || text.render())));
    let store = Store::start(store).await?;

    let mut api = quorate_apiserver::Config::new(&arguments.name, arguments.listen_api, &arguments.pki);
    api.metrics = Some(metrics);
    api.toleration_seconds = arguments.node_failover.toleration_seconds();
    let storage = Arc::new(LocalStorage::new(store.clone()));
    let server = quorate_apiserver::Server::start(api, storage, store.leadership()).await?;

    let stop = CancellationToken::new();
    let config = Config { identity: arguments.name, root_ca_pem, resources: resources() };
    let controllers = tokio::spawn(control(server.client(), store.leadership(), config, stop.clone()));

    let mut ended = store.ended();
    tokio::select! {
        reason = ended.wait_for(Option::is_some) => if let Ok(reason) = reason {
            bail!("{}", reason.unwrap_or("the store has ended"));
        },
        signal = supervise::shutdown_signal(arguments.lifeline) => signal?,
    }
    tracing::info!("shutting down: leadership first, then requests, then the store");
    match store.transfer_leadership().await {
        // Alone, it has nobody to hand leadership to.
        Ok(()) | Err(StoreError::BadTransferee) => {}
        Err(error) => tracing::info!(%error, "leadership stays here: nobody took it"),
    }
    stop.cancel();
    let _ = controllers.await;
    server.shutdown().await;
    store.shutdown().await;
    Ok(())
}

/// Runs controllers and scheduler, and starts them anew after a panic: the store and the
/// API of this master go on serving.
async fn control(client: Arc<dyn Client>, leadership: Leadership, config: Config, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let this_run = stop.child_token();
        // Whatever of it is left after a panic ends before the next begins to act.
        let _guard = this_run.clone().drop_guard();
        let run = quorate_controllers::run(Arc::clone(&client), leadership.clone(), config.clone(), this_run);
        match tokio::spawn(run).await {
            Ok(()) => return,
            Err(error) => tracing::error!(%error, "controllers and scheduler panicked and start again"),
        }
        let _ = tokio::time::timeout(AGAIN_AFTER_PANIC, stop.cancelled()).await;
    }
}

/// Every resource that the API server keeps objects of.
fn resources() -> Vec<ApiResource> {
    use quorate_apiserver::schema::{self, Verb};
    let kept = |def: &&schema::ResourceDef| {
        [Verb::List, Verb::Watch, Verb::Delete].iter().all(|verb| def.verbs.contains(verb))
    };
    schema::resources()
        .iter()
        .filter(kept)
        .map(|def| ApiResource {
            resource: GroupVersionResource::new(def.group, def.version, def.resource),
            kind: def.kind.to_owned(),
            is_namespaced: def.namespaced,
        })
        .collect()
}
