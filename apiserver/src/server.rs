//! An API server in the order of its start: storage, caches, filters, listener, the
//! objects of every cluster. Its end is the same backwards, and loses no request.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use quorate_proto::fence::Fence;
use quorate_proto::gvk::GroupVersionResource;
use quorate_runtime::client::Client;
use quorate_runtime::informer::{Informer, Informers};
use quorate_runtime::resources;
use quorate_runtime::vital::vital;
use quorate_transport::tls::{self, ClientAuth, Reloading, TlsError, TlsFiles};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::chain::Chain as Admissions;
use crate::authn::review::{SelfSubjectReview, TokenRequest, TokenReview};
use crate::authn::service_account::ServiceAccounts;
use crate::authn::token::{KeyError, TokenKeys};
use crate::authz::review::{AccessReview, RulesReview, Subject};
use crate::authz::{Authorizer, NodeView, Rbac, node, rbac};
use crate::bootstrap::{self, KubernetesService, Progress};
use crate::http::chain::Chain;
use crate::http::connection;
use crate::http::health::Check;
use crate::http::paths::Paths;
use crate::proxy::Proxy;
use crate::registry::{self, Registry};
use crate::storage::Storage;

/// HTTP/2 for those who can: one connection carries all watches of a client.
const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// A store that takes longer than this to confirm a read is not healthy.
const STORE_LIMIT: Duration = Duration::from_secs(2);

/// With a disk that keeps a write waiting for longer than this, writes through this master
/// wait, too, whoever leads: others should be asked.
const DISK_LIMIT: Duration = Duration::from_millis(600);

/// What an API server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The master's name, unique in its cluster.
    pub name: String,
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where clients and pods reach this API server; `None` is where it listens.
    pub advertise: Option<SocketAddr>,
    /// What the server shows, and the authority of client certificates.
    pub tls: TlsFiles,
    /// What the server shows to node agents.
    pub kubelet_client: TlsFiles,
    /// Signs service-account tokens: the private key in PEM.
    pub service_account_key: PathBuf,
    /// Verifies them: the public key in PEM.
    pub service_account_public_key: PathBuf,
    /// The `iss` of tokens.
    pub issuer: String,
    pub registry: registry::Config,
    /// For how long pods tolerate a node that is lost or not ready, unless they say so
    /// themselves. Equal on all masters of a cluster.
    pub toleration_seconds: u32,
    /// Renders `/metrics`; the process owns the recorder.
    pub metrics: Option<PrometheusHandle>,
    /// From the moment `/readyz` fails to the moment connections are refused: time for
    /// load balancers to look elsewhere.
    pub shutdown_delay: Duration,
    /// How long requests may take to finish after that.
    pub drain_limit: Duration,
}

impl Config {
    /// The settings of kubeadm, with the certificates under `pki` laid out as kubeadm does.
    pub fn new(name: &str, listen: SocketAddr, pki: &std::path::Path) -> Self {
        let files = |stem: &str| TlsFiles {
            cert: pki.join(format!("{stem}.crt")),
            key: pki.join(format!("{stem}.key")),
            ca: pki.join("ca.crt"),
        };
        Self {
            name: name.to_owned(),
            listen,
            advertise: None,
            tls: files("apiserver"),
            kubelet_client: files("apiserver-kubelet-client"),
            service_account_key: pki.join("sa.key"),
            service_account_public_key: pki.join("sa.pub"),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            registry: registry::Config::default(),
            toleration_seconds: 300,
            metrics: None,
            shutdown_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(10),
        }
    }
}

/// Why a server did not start. Display says what to mend.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the API server's certificates cannot be used")]
    Tls(#[from] TlsError),
    #[error("the key pair of service accounts cannot be used")]
    ServiceAccountKey(#[from] KeyError),
    #[error("the API server cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// A running API server. Dropping it leaves its tasks running: call [`Server::shutdown`].
pub struct Server {
    address: SocketAddr,
    client: Arc<dyn Client>,
    ready: watch::Receiver<bool>,
    leaving: Arc<AtomicBool>,
    /// Ends, in this order: the Service's lease, the listener, streams, caches.
    lease: CancellationToken,
    listener: CancellationToken,
    streams: CancellationToken,
    caches: CancellationToken,
    lease_tasks: TaskTracker,
    connections: TaskTracker,
    tasks: TaskTracker,
    shutdown_delay: Duration,
    drain_limit: Duration,
}

impl Server {
    /// Starts serving. The listener answers at once; [`Server::ready`] says when all of
    /// it works. `leadership` is the store's, for the chores of one server per cluster.
    ///
    /// # Errors
    /// When certificates or keys cannot be used, or the address is taken.
    pub async fn start(
        config: Config,
        storage: Arc<dyn Storage>,
        leadership: watch::Receiver<Option<Fence>>,
    ) -> Result<Self, StartError> {
        let keys = TokenKeys::load(&config.service_account_key, &config.service_account_public_key, &config.issuer)?;
        let server_tls =
            Reloading::new(config.tls.clone(), |files| tls::server_config(files, ClientAuth::Optional, &ALPN))?;
        let kubelet_tls =
            Reloading::new(config.kubelet_client.clone(), |files| tls::client_config(files, &["http/1.1"]))?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let advertise = config.advertise.unwrap_or(address);

        let (lease, stop, caches) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (lease_tasks, connections, tasks) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());

        let registry = Registry::new(Arc::clone(&storage), config.registry.clone());
        let streams = registry.ending().clone();
        let client = registry.client();
        let informers = Informers::new(Arc::clone(&client), tasks.clone(), caches.clone());
        let (authorizer, followed) = authorizer(&informers);
        let accounts = Arc::new(ServiceAccounts::new(keys, Arc::clone(&client)));
        registry.set_admission(Arc::new(Admissions::standard(
            &client,
            &informers,
            &authorizer,
            config.toleration_seconds,
        )));
        add_reviews(&registry, &accounts, &authorizer);
        {
            let (registry, caches) = (registry.clone(), caches.clone());
            tasks.spawn(vital("watch cache", async move { registry.run(leadership, caches).await }));
        }

        let leaving = Arc::new(AtomicBool::new(false));
        let progress = watch::Sender::new(Progress::default());
        let (ready_sender, ready) = watch::channel(false);
        tasks.spawn(report_ready(
            registry.clone(),
            followed.clone(),
            progress.subscribe(),
            ready_sender,
            caches.clone(),
        ));
        let paths = Paths {
            server_address: advertise.to_string(),
            accounts: Arc::clone(&accounts),
            checks: checks(&storage, &registry, followed, &progress, &leaving),
            metrics: config.metrics.clone(),
        };
        let proxy = Proxy::new(Arc::clone(&client), kubelet_tls);
        let chain = Chain::new(registry, accounts, authorizer, paths, proxy, ready.clone(), streams.clone());
        tasks.spawn(connection::serve(
            listener,
            Arc::new(server_tls),
            Arc::new(chain),
            stop.clone(),
            connections.clone(),
        ));
        tasks.spawn(bootstrap::run(Arc::clone(&client), progress, caches.clone()));
        let service = KubernetesService {
            client: Arc::clone(&client),
            name: config.name.clone(),
            address: advertise,
            cluster_ip: first_address(&config.registry),
        };
        lease_tasks.spawn(service.run(lease.clone()));
        tracing::info!(%address, name = config.name, "the API server listens");
        Ok(Self {
            address,
            client,
            ready,
            leaving,
            lease,
            listener: stop,
            streams,
            caches,
            lease_tasks,
            connections,
            tasks,
            shutdown_delay: config.shutdown_delay,
            drain_limit: config.drain_limit,
        })
    }

    /// Where it listens: the real port when the configured one was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API without a socket, as a component of this very server.
    pub fn client(&self) -> Arc<dyn Client> {
        Arc::clone(&self.client)
    }

    /// Waits until caches are filled and the objects of every cluster exist. Cancel-safe.
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        // An error means that the server has ended: nobody will wait for it again.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Whether [`Server::ready`] would return at once.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() && !self.leaving.load(Ordering::Relaxed)
    }

    /// Ends in order: `/readyz` fails, the Service forgets this master, no connection is
    /// accepted, watches end, requests finish (within the configured limit), caches stop.
    pub async fn shutdown(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.lease.cancel();
        self.lease_tasks.close();
        let left = async {
            self.lease_tasks.wait().await;
            tokio::time::sleep(self.shutdown_delay).await;
        };
        // Without a quorum the lease cannot be given back; it then runs out by itself.
        let _ = tokio::time::timeout(self.shutdown_delay + STORE_LIMIT, left).await;
        self.listener.cancel();
        self.streams.cancel();
        self.connections.close();
        if tokio::time::timeout(self.drain_limit, self.connections.wait()).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "some connections did not end in time");
        }
        self.caches.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn authorizer(informers: &Informers) -> (Arc<Authorizer>, Vec<Informer>) {
    let group = |resource: &str| GroupVersionResource::new("rbac.authorization.k8s.io", "v1", resource);
    let follow = |resource: &GroupVersionResource| informers.informer(resource);
    let (roles, cluster_roles) = (follow(&group("roles")), follow(&group("clusterroles")));
    let (bindings, cluster_bindings) = (follow(&group("rolebindings")), follow(&group("clusterrolebindings")));
    let pods = follow(&resources::pods());
    let rbac = Rbac::new();
    rbac.roles.follow(&roles, rbac::role);
    rbac.cluster_roles.follow(&cluster_roles, rbac::role);
    rbac.bindings.follow(&bindings, rbac::binding);
    rbac.cluster_bindings.follow(&cluster_bindings, rbac::binding);
    let view = NodeView::new();
    view.follow(&pods, node::needs);
    let authorizer = Arc::new(Authorizer { rbac: Arc::new(rbac), node: view });
    (authorizer, vec![roles, cluster_roles, bindings, cluster_bindings, pods])
}

fn add_reviews(registry: &Registry, accounts: &Arc<ServiceAccounts>, authorizer: &Arc<Authorizer>) {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    const AUTHORIZATION: &str = "authorization.k8s.io";
    let access = |subject| Arc::new(AccessReview { authorizer: Arc::clone(authorizer), subject });
    registry.add_virtual("", "serviceaccounts", "token", Arc::new(TokenRequest(Arc::clone(accounts))));
    registry.add_virtual(AUTHENTICATION, "tokenreviews", "", Arc::new(TokenReview(Arc::clone(accounts))));
    registry.add_virtual(AUTHENTICATION, "selfsubjectreviews", "", Arc::new(SelfSubjectReview));
    registry.add_virtual(AUTHORIZATION, "selfsubjectaccessreviews", "", access(Subject::Asker));
    registry.add_virtual(AUTHORIZATION, "subjectaccessreviews", "", access(Subject::Named));
    registry.add_virtual(AUTHORIZATION, "localsubjectaccessreviews", "", access(Subject::NamedHere));
    registry.add_virtual(AUTHORIZATION, "selfsubjectrulesreviews", "", Arc::new(RulesReview(Arc::clone(authorizer))));
}

async fn report_ready(
    registry: Registry,
    followed: Vec<Informer>,
    mut progress: watch::Receiver<Progress>,
    ready: watch::Sender<bool>,
    cancel: CancellationToken,
) {
    let all = async {
        registry.cache().ready().await;
        for informer in &followed {
            informer.synced().await;
        }
        progress.wait_for(|progress| progress.is_complete()).await.is_ok()
    };
    let complete = tokio::select! {
        complete = all => complete,
        () = cancel.cancelled() => false,
    };
    ready.send_replace(complete);
    // Whoever waits for readiness learns that it will not come.
    cancel.cancelled().await;
}

fn checks(
    storage: &Arc<dyn Storage>,
    registry: &Registry,
    followed: Vec<Informer>,
    progress: &watch::Sender<Progress>,
    leaving: &Arc<AtomicBool>,
) -> Vec<Check> {
    let now = |name: &'static str, liveness: bool, holds: Box<dyn Fn() -> Result<(), String> + Send + Sync>| {
        Check::new(name, liveness, move || Box::pin(std::future::ready(holds())))
    };
    let store = |name: &'static str, liveness: bool| {
        let storage = Arc::clone(storage);
        Check::new(name, liveness, move || {
            let storage = Arc::clone(&storage);
            Box::pin(async move {
                let stalled = storage.stalled_for();
                if !liveness && stalled > DISK_LIMIT {
                    return Err(format!("the disk has kept a write waiting for {:.1} s", stalled.as_secs_f64()));
                }
                match tokio::time::timeout(STORE_LIMIT, storage.read_index()).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("the store did not answer in time".to_owned()),
                }
            })
        })
    };
    let bootstrapped = |name: &'static str, part: fn(&Progress) -> bool| {
        let progress = progress.subscribe();
        now(
            name,
            false,
            Box::new(move || if part(&progress.borrow()) { Ok(()) } else { Err("not finished".to_owned()) }),
        )
    };
    let registry = registry.clone();
    let leaving = Arc::clone(leaving);
    vec![
        now("ping", true, Box::new(|| Ok(()))),
        now("log", true, Box::new(|| Ok(()))),
        store("etcd", true),
        store("etcd-readiness", false),
        now(
            "informer-sync",
            false,
            Box::new(move || {
                let waiting = followed.iter().filter(|informer| !informer.is_synced()).count();
                match (registry.cache().is_ready(), waiting) {
                    (true, 0) => Ok(()),
                    (true, waiting) => Err(format!("{waiting} informers not started yet")),
                    (false, _) => Err("the watch cache is not filled yet".to_owned()),
                }
            }),
        ),
        bootstrapped("poststarthook/start-system-namespaces-controller", |progress| progress.namespaces),
        bootstrapped("poststarthook/scheduling/bootstrap-system-priority-classes", |progress| {
            progress.priority_classes
        }),
        bootstrapped("poststarthook/rbac/bootstrap-roles", |progress| progress.roles),
        now(
            "shutdown",
            false,
            Box::new(
                move || {
                    if leaving.load(Ordering::Relaxed) { Err("process is shutting down".to_owned()) } else { Ok(()) }
                },
            ),
        ),
    ]
}

fn first_address(config: &registry::Config) -> Ipv4Addr {
    config.service_cidr.hosts().next().unwrap_or(Ipv4Addr::UNSPECIFIED)
}
