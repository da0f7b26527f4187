//! The assembly: what starts in which order, and ends in which.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use quorate_runtime::client::{Client, ListOptions};
use quorate_runtime::events::EventRecorder;
use quorate_runtime::http::{ConnectError, HttpClient};
use quorate_runtime::informer::Informer;
use quorate_runtime::resources;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup;
use crate::config::{Config, ConfigError, Runtime};
use crate::containerd::{ContainerdError, Layout, Managed, Settings};
use crate::cri::{Cri, describe};
use crate::network::{self, Network, NetworkError};
use crate::node::status::Identity;
use crate::node::{Node, machine, status};
use crate::pod::config as pod_config;
use crate::pod::env::Allocatable;
use crate::pod::manager::Manager;
use crate::pod::worker::Shared;
use crate::preflight::{self, PreflightError};
use crate::server::{self, ServeError, Server};
use crate::volume::{Namespace, Volumes};

/// Tasks that do not end by themselves in this time end with the process.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error("cannot prepare {}", .path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("another agent uses {}; stop it, or choose another data directory", .path.display())]
    Locked { path: PathBuf },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error("the container runtime does not answer: {problem}")]
    Runtime { problem: String },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Runs a node until `cancel` is cancelled.
///
/// With a managed runtime everything ends with the agent: containers, mounts, bridge,
/// rules, cgroups. The pods stay in the API; the next start makes their containers anew.
///
/// # Errors
/// When the node cannot be started; nothing is left behind then.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), AgentError> {
    config.validate()?;
    preflight::check(&config)?;
    let client = HttpClient::from_kubeconfig(&config.kubeconfig).await?;
    run_with_client(config, Arc::new(client), cancel).await
}

/// As [`run`], over a connection to the API that the caller has made.
///
/// # Errors
/// As [`run`].
pub async fn run_with_client(
    config: Config,
    client: Arc<dyn Client>,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    config.validate()?;
    preflight::check(&config)?;
    let _lock = lock(&config)?;
    match config.runtime.clone() {
        Runtime::Managed => run_managed(config, client, cancel).await,
        Runtime::Socket(socket) => {
            let cri = Cri::new(&socket);
            let status = cri.status(true).await.map_err(|status| AgentError::Runtime { problem: describe(&status) })?;
            let systemd = status.info.get("config").is_some_and(|text| text.contains("\"systemdCgroup\":true"));
            let cgroups =
                if systemd { cgroup::Driver::Systemd } else { cgroup::Driver::Cgroupfs(cgroup_prefix(&config)) };
            Agent { config, client, cri, cgroups, network: None, namespace: Namespace::Own }.run(cancel).await
        }
    }
}

fn cgroup_prefix(config: &Config) -> String {
    format!("/quorate/{}", config.node_name)
}

fn lock(config: &Config) -> Result<Flock<std::fs::File>, AgentError> {
    let path = config.data_dir.join("lock");
    let failed = |source| AgentError::DataDir { path: path.clone(), source };
    std::fs::create_dir_all(&config.data_dir).map_err(failed)?;
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| AgentError::Locked { path: path.clone() })
}

async fn run_managed(config: Config, client: Arc<dyn Client>, cancel: CancellationToken) -> Result<(), AgentError> {
    let layout = Layout::new(&config.data_dir);
    let network = Network::new(&config.node_name, &config.data_dir, layout.cni_config_dir(), layout.cni_data_dir());
    let settings =
        Settings { layout: &layout, pause_image: &config.pause_image, cni_plugin_dir: &config.cni_plugin_dir };
    let prefix = cgroup_prefix(&config);
    let managed = Managed::start(&settings).await?;
    // What an agent that was killed has left: its containers ended with it.
    network.down().await;
    cgroup::remove(&prefix).await;
    let result = run_in(&managed, config, client, network.clone(), cancel).await;
    managed.stop().await;
    network.down().await;
    cgroup::remove(&prefix).await;
    result
}

async fn run_in(
    managed: &Managed,
    config: Config,
    client: Arc<dyn Client>,
    network: Network,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    if let Some(folder) = &config.image_dir {
        let count = managed.import_images(folder).await?;
        tracing::info!(count, folder = %folder.display(), "imported images");
    }
    let cri = Cri::new(&Layout::new(&config.data_dir).socket());
    let cgroups = cgroup::Driver::Cgroupfs(cgroup_prefix(&config));
    let namespace = managed.namespace_pid().map_or(Namespace::Own, Namespace::Of);
    Agent { config, client, cri, cgroups, network: Some(network), namespace }.run(cancel).await
}

/// Everything that is decided before the first contact with the API.
struct Agent {
    config: Config,
    client: Arc<dyn Client>,
    cri: Cri,
    cgroups: cgroup::Driver,
    /// `None` when somebody else configures the network.
    network: Option<Network>,
    namespace: Namespace,
}

impl Agent {
    async fn run(self, cancel: CancellationToken) -> Result<(), AgentError> {
        let tasks = TaskTracker::new();
        // Tasks end also when this future fails.
        let stop = cancel.child_token();
        let result = self.work(&tasks, stop.clone()).await;
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        result
    }

    async fn work(self, tasks: &TaskTracker, cancel: CancellationToken) -> Result<(), AgentError> {
        let Self { config, client, cri, cgroups, network, namespace } = self;
        let options =
            ListOptions { field_selector: format!("spec.nodeName={}", config.node_name), ..ListOptions::default() };
        let pods = Informer::new(Arc::clone(&client), resources::pods(), None, options);
        let server = Server { cri: cri.clone(), pods: pods.lister(), node_name: config.node_name.clone() };
        let bound: SocketAddr = server::serve(server, config.listen, &config.tls, tasks, cancel.clone()).await?;
        tracing::info!(address = %bound, "the kubelet API listens");
        let node = Arc::new(Node {
            client: Arc::clone(&client),
            cri: cri.clone(),
            identity: Identity {
                name: config.node_name.clone(),
                address: config.address().to_string(),
                port: bound.port(),
                labels: config.labels.clone(),
                max_pods: config.max_pods,
                pod_cidr: config.pod_cidr.map(|range| range.trunc().to_string()),
            },
            data_dir: config.data_dir.clone(),
            lease_interval: config.lease_interval,
            lease_duration: config.lease_duration,
            status_interval: config.status_interval,
            lapsed: Notify::new(),
        });
        let registered = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            registered = node.register() => registered,
        };
        let uid = registered.meta().uid.clone();
        tasks.spawn({
            let (node, cancel) = (Arc::clone(&node), cancel.clone());
            async move { node.beat(uid, cancel).await }
        });
        tasks.spawn({
            let (node, cancel) = (Arc::clone(&node), cancel.clone());
            async move { node.report(cancel).await }
        });
        if let Some(network) = &network {
            let range = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                range = node.pod_cidr(registered) => range,
            };
            network.up(range, config.cluster_cidr).await?;
            tracing::info!(bridge = network.bridge(), range = %range, "the pod network is up");
        }
        let recorder = EventRecorder::start(Arc::clone(&client), "kubelet", &config.node_name, tasks, cancel.clone());
        let machine = machine::look(&config.data_dir);
        let (cpu_millis, memory_bytes, storage_bytes) = status::allocatable(&machine);
        let version = cri.version().await.map_err(|status| AgentError::Runtime { problem: describe(&status) })?;
        let shared = Arc::new(Shared {
            cri,
            client: Arc::clone(&client),
            recorder,
            volumes: Volumes::new(client, namespace),
            node: pod_config::Node {
                cgroups: Some(cgroups),
                cluster_domain: config.cluster_domain.clone(),
                cluster_dns: config.cluster_dns.iter().map(ToString::to_string).collect(),
                resolver: network::parse_resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
                memory_bytes: machine.memory_bytes,
            },
            node_address: config.address().to_string(),
            runtime: version.runtime_name,
            allocatable: Allocatable { cpu_millis, memory_bytes, storage_bytes },
            pods_dir: config.data_dir.join("pods"),
            logs_dir: config.data_dir.join("logs"),
        });
        let manager = Manager::new(shared, &pods, config.relist_interval, cancel.clone());
        tasks.spawn({
            let (pods, cancel) = (pods.clone(), cancel.clone());
            async move { pods.run(cancel).await }
        });
        manager.run(pods).await;
        Ok(())
    }
}
