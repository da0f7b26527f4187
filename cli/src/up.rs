//! `quorate up`: a whole cluster on this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use quorate_chaos::fault::disk;
use quorate_runtime::client::Client;
use quorate_runtime::http::HttpClient;
use quorate_runtime::resources;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::endpoint::{self, Backends, Probe};
use crate::layout::{self, ClusterState, Layout, MasterPlace, NodePlace, Running};
use crate::master::NodeFailover;
use crate::pki::{self, Pki};
use crate::readiness::{Readiness, readiness};
use crate::supervise::{self, Life, Process};

/// How long all masters, and then all nodes, may take to become ready.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long the nodes together may take before the start goes on without them.
const NODE_PATIENCE: Duration = Duration::from_secs(15);

/// Each has a container runtime of its own. Three show what becomes of many that are lost at
/// once, with one to spare; many more tell nothing new of one machine.
pub(crate) const MOST_NODES: i64 = 5;

/// A process that ended by itself that often during the start is not waited for.
const FAILURES_TO_GIVE_UP: u32 = 2;

/// How often the start looks for progress.
const LOOK: Duration = Duration::from_millis(20);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate up                          3 masters, 1 node, state in ./quorate-data
  quorate up --masters 5 --nodes 0    only the control plane; needs no root
  quorate up --node-failover fast     pods of a lost node run elsewhere in seconds
  quorate up --data-dir /srv/q        state elsewhere; a second start continues with it
  quorate up --faults                 a cluster on which `quorate drill run disk-stall` can be done")]
pub(crate) struct Arguments {
    /// Masters: an odd number, so that a majority survives the most failures.
    #[arg(long, default_value_t = 3, value_parser = parse_masters)]
    masters: u8,
    /// Nodes that run containers on this machine. Any but 0 needs root.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=MOST_NODES))]
    nodes: u8,
    /// Where certificates, state and logs live; made if absent.
    #[arg(long, default_value = "quorate-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// The one address that always leads to a living master.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDRESS:PORT")]
    endpoint: SocketAddr,
    /// The loopback /24 in which masters and nodes listen; a second cluster needs another.
    #[arg(long, default_value = "127.0.10.0", value_name = "ADDRESS", value_parser = parse_network)]
    network: Ipv4Addr,
    /// Image archives that every node imports at its start.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// How soon pods of a lost node are replaced, unless their tolerations say so.
    #[arg(long, value_enum, default_value_t = NodeFailover::Compat)]
    node_failover: NodeFailover,
    /// The wait before a process that ended by itself is started again, in milliseconds.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    restart_delay_ms: u64,
    /// Let drills fail the disks and the clocks of masters, by a library between them and the
    /// kernel: for rehearsals.
    #[arg(long)]
    faults: bool,
}

fn parse_masters(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("choose 1, 3 or 5: an even number of masters survives no more failures than one less".to_owned()),
    }
}

fn parse_network(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| "write an IPv4 address such as 127.0.10.0".to_owned())?;
    if address.is_loopback() { Ok(address) } else { Err("choose a network inside 127.0.0.0/8".to_owned()) }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    std::fs::create_dir_all(&arguments.data_dir)
        .with_context(|| format!("cannot create the data directory {}", arguments.data_dir.display()))?;
    let data_dir = arguments.data_dir.canonicalize().context("the data directory has no absolute path")?;
    let layout = Layout::new(&data_dir, arguments.network);
    let masters: Vec<MasterPlace> = (0..arguments.masters).map(|index| layout.master(index)).collect();
    let nodes: Vec<NodePlace> = (0..arguments.nodes).map(|index| layout.node(index)).collect();

    let _lock = lock(&layout)?;
    check_same_cluster(&layout, &masters)?;
    check_ports(arguments.endpoint, &masters, &nodes)?;
    for place in &nodes {
        let (kubeconfig, tls) = (layout.node_kubeconfig(&place.name), Pki::at(&layout.pki()).kubelet(&place.name));
        let config =
            quorate_node_agent::Config::new(&place.name, kubeconfig, layout.of(&place.name), place.kubelet, tls);
        quorate_node_agent::preflight(&config)
            .context("no container can run here: mend that, or start with --nodes 0")?;
    }

    let service_address = crate::master::first_service_address();
    let pki = pki::prepare(&layout, arguments.endpoint, service_address, &masters, &nodes)?;
    if arguments.faults {
        disk::install(&layout::faults(&data_dir))?;
        masters.iter().try_for_each(|place| layout::disk(&data_dir, &place.name).prepare())?;
    }
    let cluster = Cluster::new(layout, &arguments, pki, masters, nodes)?;
    cluster.run(arguments.endpoint).await
}

struct Cluster {
    layout: Layout,
    pki: Pki,
    masters: Vec<Member<MasterPlace>>,
    nodes: Vec<Member<NodePlace>>,
    restart_delay: Duration,
    images: Option<PathBuf>,
    network: Ipv4Addr,
    faults: bool,
    node_failover: NodeFailover,
}

/// A process of the cluster, and what its supervisor tells of it.
struct Member<P> {
    place: P,
    life: watch::Sender<Life>,
}

impl<P: Clone> Member<P> {
    fn new(place: P) -> Self {
        Self { place, life: watch::Sender::default() }
    }

    fn running(&self) -> Running<P> {
        Running { pid: self.life.borrow().pid, place: self.place.clone() }
    }
}

impl Cluster {
    fn new(
        layout: Layout,
        arguments: &Arguments,
        pki: Pki,
        masters: Vec<MasterPlace>,
        nodes: Vec<NodePlace>,
    ) -> Result<Self> {
        let images = match &arguments.images {
            Some(folder) => {
                Some(folder.canonicalize().with_context(|| format!("there are no images at {}", folder.display()))?)
            }
            None => None,
        };
        Ok(Self {
            layout,
            pki,
            masters: masters.into_iter().map(Member::new).collect(),
            nodes: nodes.into_iter().map(Member::new).collect(),
            restart_delay: Duration::from_millis(arguments.restart_delay_ms),
            images,
            network: arguments.network,
            faults: arguments.faults,
            node_failover: arguments.node_failover,
        })
    }

    async fn run(&self, endpoint: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(endpoint).await.with_context(|| format!("cannot listen on {endpoint}"))?;
        let backends = Backends::new(self.masters.iter().map(|master| master.place.api));
        let tls = quorate_transport::tls::client_config(&self.pki.admin(), &["http/1.1"])?;
        let probe = Probe::new(tls);
        let (stop_masters, stop_nodes, stop_endpoint) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (masters, nodes, others) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());

        self.write_state(endpoint, true)?;
        others.spawn(endpoint::serve(listener, backends.clone(), stop_endpoint.clone()));
        for master in &self.masters {
            masters.spawn(supervise::supervise(self.master_process(master), master.life.clone(), stop_masters.clone()));
            others.spawn(endpoint::probe(master.place.api, probe.clone(), backends.clone(), stop_endpoint.clone()));
            others.spawn(avoid_when_gone(
                master.life.subscribe(),
                master.place.api,
                backends.clone(),
                stop_endpoint.clone(),
            ));
        }

        let ended = tokio::select! {
            ended = supervise::shutdown_signal(false) => ended,
            result = self.serve(endpoint, &backends, &nodes, &stop_nodes) => result,
            () = self.keep_state(endpoint) => Ok(()),
        };

        println!("Stopping; the state stays in {}", self.layout.data_dir().display());
        stop_nodes.cancel();
        nodes.close();
        nodes.wait().await;
        stop_endpoint.cancel();
        others.close();
        others.wait().await;
        stop_masters.cancel();
        masters.close();
        masters.wait().await;
        self.write_state(endpoint, false)?;
        ended
    }

    /// Waits for the masters, starts the nodes, says what can be done next. Ends only with an error.
    async fn serve(
        &self,
        endpoint: SocketAddr,
        backends: &Backends,
        nodes: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<()> {
        println!("Starting {} masters; logs in {}", self.masters.len(), self.layout.data_dir().join("logs").display());
        self.wait_for_masters(backends).await?;
        for node in &self.nodes {
            nodes.spawn(supervise::supervise(self.node_process(node), node.life.clone(), stop.clone()));
        }
        self.wait_for_nodes().await?;
        self.say_what_is_next(endpoint);
        std::future::pending().await
    }

    /// Returns once every master is ready, or a majority is and the others had their time.
    async fn wait_for_masters(&self, backends: &Backends) -> Result<()> {
        let started = Instant::now();
        let (all, majority) = (self.masters.len(), self.masters.len() / 2 + 1);
        let mut told = 0;
        loop {
            let ready = backends.ready();
            let seconds = started.elapsed().as_secs_f64();
            if ready == all {
                println!("All {all} masters ready after {seconds:.1} s");
                return Ok(());
            }
            if ready > told {
                println!("{ready} of {all} masters ready after {seconds:.1} s");
                told = ready;
            }
            let failing: Vec<&Member<MasterPlace>> =
                self.masters.iter().filter(|master| master.life.borrow().failures >= FAILURES_TO_GIVE_UP).collect();
            if ready >= majority && (ready + failing.len() == all || started.elapsed() > START_PATIENCE) {
                println!("Going on with {ready} of {all} masters; logs tell about the others");
                self.tell_failures(&failing);
                return Ok(());
            }
            if all - failing.len() < majority || started.elapsed() > START_PATIENCE {
                self.tell_failures(&failing);
                bail!(
                    "only {ready} of {all} masters became ready; why stands in {}",
                    self.layout.data_dir().join("logs").display()
                );
            }
            time::sleep(LOOK).await;
        }
    }

    /// Returns once every node takes pods, or has said why it does not, or had its time.
    async fn wait_for_nodes(&self) -> Result<()> {
        if self.nodes.is_empty() {
            return Ok(());
        }
        println!("Starting {} node(s)", self.nodes.len());
        let (started, since) = (Instant::now(), Timestamp::now());
        let client = HttpClient::from_kubeconfig(&self.layout.admin_kubeconfig()).await?;
        for node in &self.nodes {
            let name = &node.place.name;
            let deadline = started + NODE_PATIENCE;
            let last = loop {
                let readiness = match client.get(&resources::nodes(), None, name).await {
                    Ok(object) => readiness(&object, since),
                    Err(status) => Readiness::NotReady(status.message),
                };
                // Taints of the start go by themselves.
                let keeps_failing = node.life.borrow().failures >= FAILURES_TO_GIVE_UP;
                if readiness == Readiness::Ready || keeps_failing || Instant::now() > deadline {
                    break readiness;
                }
                time::sleep(LOOK).await;
            };
            match last {
                Readiness::Ready => println!("{name} ready after {:.1} s", started.elapsed().as_secs_f64()),
                Readiness::Tainted(why) => println!("{name} runs, but takes no pods: {why}"),
                Readiness::NotReady(why) => {
                    println!("{name} is not ready yet: {why}; its log is {}", self.layout.log(name).display());
                }
            }
        }
        Ok(())
    }

    /// Shows the last words of masters that keep failing.
    fn tell_failures(&self, failing: &[&Member<MasterPlace>]) {
        for master in failing {
            let name = &master.place.name;
            let log = std::fs::read_to_string(self.layout.log(name)).unwrap_or_default();
            let last = log.lines().rev().find(|line| line.starts_with("error:")).unwrap_or("its log does not say why");
            println!("{name} keeps failing: {last}");
        }
    }

    fn say_what_is_next(&self, endpoint: SocketAddr) {
        let store = self.pki.store_client();
        let clients: Vec<String> = self.masters.iter().map(|master| master.place.client.to_string()).collect();
        println!(
            "\nThe cluster answers at https://{endpoint}\n\nNext:\n  export KUBECONFIG={}\n  kubectl get nodes\n  kubectl apply -f examples/web.yaml\n  quorate status --data-dir {}\n\nThe store, for etcdctl:\n  etcdctl --endpoints={} \\\n    --cacert={} --cert={} --key={} endpoint status -w table\n\nCtrl-C ends the cluster; its state stays.",
            self.layout.admin_kubeconfig().display(),
            self.layout.data_dir().display(),
            clients.join(","),
            store.ca.display(),
            store.cert.display(),
            store.key.display(),
        );
    }

    fn master_process(&self, master: &Member<MasterPlace>) -> Process {
        let place = &master.place;
        let members: Vec<String> =
            self.masters.iter().map(|master| format!("{}={}", master.place.name, master.place.peer)).collect();
        let arguments = vec![
            "master".to_owned(),
            format!("--name={}", place.name),
            format!("--data-dir={}", self.layout.of(&place.name).display()),
            format!("--pki={}", self.layout.pki().display()),
            format!("--listen-api={}", place.api),
            format!("--listen-client={}", place.client),
            format!("--listen-peer={}", place.peer),
            format!("--initial-cluster={}", members.join(",")),
            format!("--node-failover={}", self.node_failover.name()),
            "--lifeline".to_owned(),
        ];
        let mut process = self.process(&place.name, arguments);
        if self.faults {
            let disk = layout::disk(self.layout.data_dir(), &place.name);
            process.environment = disk.environment().map(|(name, value)| (name, value.to_owned())).to_vec();
        }
        process
    }

    fn node_process(&self, node: &Member<NodePlace>) -> Process {
        let place = &node.place;
        let mut arguments = vec![
            "node".to_owned(),
            format!("--name={}", place.name),
            format!("--data-dir={}", self.layout.of(&place.name).display()),
            format!("--pki={}", self.layout.pki().display()),
            format!("--kubeconfig={}", self.layout.node_kubeconfig(&place.name).display()),
            format!("--listen={}", place.kubelet),
            "--lifeline".to_owned(),
        ];
        if let Some(images) = &self.images {
            arguments.push(format!("--images={}", images.display()));
        }
        self.process(&place.name, arguments)
    }

    fn process(&self, name: &str, arguments: Vec<String>) -> Process {
        Process {
            name: name.to_owned(),
            arguments,
            environment: Vec::new(),
            log: self.layout.log(name),
            restart_delay: self.restart_delay,
        }
    }

    /// Writes the state file whenever a process starts or ends.
    async fn keep_state(&self, endpoint: SocketAddr) {
        let mut lives: Vec<watch::Receiver<Life>> = self.masters.iter().map(|master| master.life.subscribe()).collect();
        lives.extend(self.nodes.iter().map(|node| node.life.subscribe()));
        loop {
            let changes = lives.iter_mut().map(|life| Box::pin(life.changed()));
            let _ = futures::future::select_all(changes).await;
            if let Err(error) = self.write_state(endpoint, true) {
                tracing::warn!(%error, "could not write the state file");
            }
        }
    }

    fn write_state(&self, endpoint: SocketAddr, up: bool) -> Result<()> {
        let state = ClusterState {
            pid: up.then(std::process::id),
            endpoint,
            network: self.network,
            masters: self.masters.iter().map(Member::running).collect(),
            nodes: self.nodes.iter().map(Member::running).collect(),
            faults: self.faults,
        };
        state.write(&self.layout).with_context(|| format!("cannot write {}", self.layout.state().display()))
    }
}

/// A master whose process ended is avoided at once, before any probe notices.
async fn avoid_when_gone(
    mut life: watch::Receiver<Life>,
    address: SocketAddr,
    backends: Backends,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            changed = life.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
        if life.borrow_and_update().pid.is_none() {
            backends.lose(address);
        }
    }
}

fn lock(layout: &Layout) -> Result<Flock<std::fs::File>> {
    let path = layout.lock();
    let file = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!(
            "another `quorate up` runs the cluster in {}: end it, or choose another --data-dir",
            layout.data_dir().display()
        )
    })
}

/// A cluster does not change its size by being started differently.
fn check_same_cluster(layout: &Layout, masters: &[MasterPlace]) -> Result<()> {
    let Some(before) = ClusterState::read(layout.data_dir())? else { return Ok(()) };
    if before.masters.len() != masters.len() {
        bail!(
            "{} holds a cluster of {} masters: start it with --masters {}, or choose another --data-dir",
            layout.data_dir().display(),
            before.masters.len(),
            before.masters.len()
        );
    }
    if before.masters.iter().map(|master| &master.place).ne(masters) {
        bail!(
            "the cluster in {} lives in the network {}: start it with --network {}, or choose another --data-dir",
            layout.data_dir().display(),
            before.network,
            before.network
        );
    }
    Ok(())
}

fn check_ports(endpoint: SocketAddr, masters: &[MasterPlace], nodes: &[NodePlace]) -> Result<()> {
    let mut wanted = vec![("the endpoint", endpoint, "--endpoint")];
    for master in masters {
        wanted.extend([
            ("a master's API", master.api, "--network"),
            ("a master's store clients", master.client, "--network"),
            ("a master's store peers", master.peer, "--network"),
        ]);
    }
    wanted.extend(nodes.iter().map(|node| ("a node's agent", node.kubelet, "--network")));
    for (what, address, flag) in wanted {
        if let Err(error) = StdListener::bind(address) {
            bail!(
                "{what} cannot listen on {address} ({error}): end the process that holds it (`ss -ltnp`), or choose another with {flag}"
            );
        }
    }
    Ok(())
}
