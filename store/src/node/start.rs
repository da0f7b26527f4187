//! From a configuration to a running member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use quorate_proto::raft::peer_server::PeerServer;
use quorate_transport::tls::{self, ClientAuth, Reloading, TlsError, TlsFiles, Trust};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::{Caller, Gate};
use super::house::House;
use super::identity::{self, Joined};
use super::leadership::Leader;
use super::leases::{KeepAlive, Leases};
use super::propose::Proposer;
use super::read_index::ReadIndex;
use super::renewals::Renewals;
use super::{Inner, MAX_EXPORTS, Store, join, upkeep};
use crate::config::{Config, PeerTrust, Serves};
use crate::error::StartError;
use crate::fs::Disk;
use crate::peer::{
    Dialer, Identity, MAX_MESSAGE_BYTES, Memory, Patience, PeerService, PeerTls, Peers, Presence, Roster,
};
use crate::raft::snapshot::Area;
use crate::raft::{self, Factory, Flushed, Node, Raft, StateMachine, Timing, Waiters};
use crate::wal::Wal;
use crate::{apply, memory, mvcc, rpc, serve, wal};

pub(super) async fn start(config: Config, disk: Arc<dyn Disk>) -> Result<Store, StartError> {
    config.validate()?;
    let gate = Gate::new(&config.auth_token, config.bcrypt_cost)
        .map_err(|error| StartError::Config { setting: "auth_token", reason: error.to_string() })?;
    let lock = identity::lock(&config.data_dir)?;
    let known = identity::load(&config)?;

    let peer_listener = listen(config.listen_peer)?;
    let peer_address = local_address(&peer_listener, config.listen_peer)?;
    let also: Vec<TcpListener> =
        config.also_listen_peer.iter().map(|wanted| listen(*wanted)).collect::<Result<_, _>>()?;
    let ports = client_ports(&config)?;
    let clients = ports.iter().find(|port| port.serves == Serves::Everything);
    let client_address = clients.map(|port| port.address);
    let client_urls = match config.advertise_client.as_slice() {
        [] => ports.iter().filter(|port| port.serves == Serves::Everything).map(Port::url).collect(),
        advertised => advertised.to_vec(),
    };
    let advertised = config.advertise_peer.clone().unwrap_or_else(|| peer_address.to_string());
    let dialer = Dialer { tls: peer_tls(&config)?, from: config.dial_from };
    let mut known = join::introduce(&config, known, &advertised, &client_urls, &dialer).await?;

    let mut log_config = wal::Config::new(config.data_dir.join("wal"));
    log_config.segment_size_bytes = config.log_segment_bytes;
    let budget = memory::budget(config.memory_limit_bytes);
    log_config.ring_size_bytes = budget.log_bytes;
    let (wal, recovered) = Wal::open(log_config, disk)?;
    known.keep_log(&config, recovered.log_id)?;
    let mut machine = open_machine(&config)?;
    let purged = recovered.state.purged.is_some();
    let opened = purged.then(|| Flushed { applied: machine.applied(), membership: machine.membership() });
    let consensus = |source| StartError::Consensus { path: config.data_dir.clone(), source };
    // Consensus would do the same, a few entries at a time.
    let began = Instant::now();
    let replayed = raft::replay(&wal, &mut machine).map_err(consensus)?;
    tracing::info!(entries = replayed, took = ?began.elapsed(), "applied again what was not on disk");
    let (engine, hub) = (machine.engine(), machine.hub());

    let own = Identity {
        cluster_id: known.cluster_id,
        member_id: known.member_id,
        generation: engine.generation().max(known.generation),
        incarnation: rand::random(),
        directory: known.directory,
    };
    let state_machine = |source| StartError::StateMachine { path: config.data_dir.join("db"), source };
    let roster = Roster::new(Arc::clone(&engine)).map_err(state_machine)?;
    let peers = Arc::new(Peers::new(own, dialer, Arc::clone(&roster)));

    let cancel = CancellationToken::new();
    let tasks = TaskTracker::new();
    let waiters = Arc::new(Waiters::default());
    let leases = Leases::new(Arc::clone(&engine));
    let area_path = config.data_dir.join("transfer");
    let area = Area::open(area_path.clone()).map_err(|source| StartError::Directory { path: area_path, source })?;
    let machine =
        StateMachine::new(machine, opened, Arc::clone(&area), Arc::clone(&waiters), Arc::clone(&leases), roster)
            .map_err(|error| consensus(error.into()))?;
    let applied = machine.watch_applied();

    let timing = Timing {
        heartbeat: config.heartbeat,
        election_min: config.election_timeout_min,
        election_max: config.election_timeout_max,
        kept_entries: config.replay_entries / 2,
    };
    // The largest request finds room among others.
    let room_bytes = budget.proposed_bytes.max(2 * config.max_request_bytes);
    let raft = Raft::start(own.member_id, timing, Factory::new(Arc::clone(&peers)), wal.clone(), machine, room_bytes)
        .await
        .map_err(consensus)?;
    let keep_alive = KeepAlive {
        raft: raft.clone(),
        applied: applied.clone(),
        leases: Arc::clone(&leases),
        reign: config.election_timeout_min,
    };
    relocate(&mut known, &config, raft.members().await.map_err(consensus)?, &peers)?;
    let patience = Patience {
        agrees: config.election_timeout_min,
        asks: (config.election_timeout_min + config.election_timeout_max) / 2,
    };
    let presence = Presence::new(Arc::clone(&peers), raft.clone(), wal.clone(), patience);
    let door = Arc::new(OnceLock::new());
    let service = Arc::new(PeerService {
        peers: Arc::clone(&peers),
        raft: raft.clone(),
        area: Arc::clone(&area),
        keep_alive: keep_alive.clone(),
        presence: Arc::clone(&presence),
        cancel: cancel.clone(),
        memory: Memory::new(wal.clone(), applied.clone()),
        engine: Arc::clone(&engine),
        store: Arc::clone(&door),
    });
    let router = tonic::service::Routes::new(
        PeerServer::from_arc(Arc::clone(&service))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
    .into_axum_router();
    let peers_show = match config.peer_trust {
        PeerTrust::Key => ClientAuth::Required,
        PeerTrust::Host(shown) => shown,
        PeerTrust::Nobody => ClientAuth::None,
    };
    let tls = config.peer_tls.as_ref().map(|files| server_tls(files, peers_show)).transpose()?;
    for listener in also.into_iter().chain([peer_listener]) {
        let (routed, lines) = (serve::Routed(router.clone()), Some(Arc::clone(&service)));
        tasks.spawn(serve::serve(listener, tls.clone(), routed, lines, tasks.clone(), cancel.clone()));
    }

    if known.joined == Joined::Founder && !raft.is_initialized().await.map_err(consensus)? {
        raft.initialize(first_members(&config.founders(&advertised, &known.lineage))).await.map_err(consensus)?;
    }
    tasks.spawn(Arc::clone(&presence).listen(cancel.clone()));
    tasks.spawn(presence.run(tasks.clone(), cancel.clone()));

    let applied_changes = applied.clone();
    let (leaders_sender, leaders) = watch::channel(Arc::new(Leader::of(&raft.view(), config.quorum_patience())));
    let (fences, leadership) = watch::channel(None);
    let proposer = Proposer::new(
        raft.clone(),
        Arc::clone(&peers),
        waiters,
        applied.clone(),
        leaders.clone(),
        config.request_timeout,
        &tasks,
        cancel.clone(),
    );
    let read_index = ReadIndex::new(
        raft.clone(),
        Arc::clone(&peers),
        applied,
        leaders.clone(),
        config.request_timeout,
        &tasks,
        cancel.clone(),
    );
    let renewals = Renewals::new(
        keep_alive.clone(),
        Arc::clone(&peers),
        leaders.clone(),
        config.request_timeout,
        &tasks,
        cancel.clone(),
    );
    let inner = Arc::new(Inner {
        name: known.name,
        identity: own,
        peer_address,
        client_address,
        client_urls,
        raft,
        wal,
        house: House::default(),
        engine,
        hub,
        peers,
        area,
        applied: applied_changes,
        changing: tokio::sync::Mutex::default(),
        advertised,
        ended: watch::Sender::new(None),
        proposer,
        read_index,
        leases,
        gate,
        keep_alive,
        renewals,
        leaders,
        leadership,
        exports: Arc::new(Semaphore::new(MAX_EXPORTS)),
        port: cancel.child_token(),
        port_tasks: TaskTracker::new(),
        cancel,
        tasks,
        config,
        _lock: lock,
    });
    upkeep::spawn(&inner, leaders_sender, fences);

    let store = Store { inner, caller: Caller::Internal };
    // Nobody else sets it.
    let _ = door.set(store.clone());
    for port in ports {
        let (tasks, closed) = (store.inner.port_tasks.clone(), store.inner.port.clone());
        match port.serves {
            Serves::Everything => {
                let serving = serve::serve(port.listener, port.tls, rpc::front(&store), None, tasks.clone(), closed);
                tasks.spawn(serving);
            }
            Serves::Monitoring => {
                let service = serve::Routed(rpc::monitoring(&store));
                tasks.spawn(serve::serve(port.listener, port.tls, service, None, tasks.clone(), closed));
            }
        }
    }
    Ok(store)
}

fn open_machine(config: &Config) -> Result<apply::StateMachine, StartError> {
    let path = config.data_dir.join("db");
    let budget = memory::budget(config.memory_limit_bytes);
    let engine = mvcc::Config {
        directory: path.clone(),
        block_cache_bytes: budget.cache_bytes,
        write_buffer_bytes: budget.memtable_bytes,
        history_bytes: budget.history_bytes,
        latest_bytes: budget.latest_bytes,
    };
    apply::StateMachine::open(engine).map_err(|source| StartError::StateMachine { path, source })
}

/// Where the members are that the configuration has moved.
fn relocate(
    known: &mut identity::Identity,
    config: &Config,
    effective: BTreeMap<u64, (Node, bool)>,
    peers: &Peers,
) -> Result<(), StartError> {
    let before = known.clone();
    let members = peers.members();
    let named = effective.into_iter().map(|(id, (node, _))| {
        let name = members.known.get(&id).map_or(node.name.as_str(), |member| member.name()).to_owned();
        (id, (name, node.peer_address))
    });
    identity::relocate(known, config, &named.collect());
    if *known != before {
        known.store(&config.data_dir)?;
    }
    for (id, moved) in &known.moved {
        tracing::info!(member = format!("{id:x}"), from = moved.from, to = moved.to, "a member has moved");
    }
    peers.set_moved(known.moved.clone().into_iter().collect());
    Ok(())
}

fn first_members(founders: &BTreeMap<u64, (String, String)>) -> BTreeMap<u64, Node> {
    founders
        .iter()
        .map(|(id, (name, address))| {
            (*id, Node { name: name.clone(), peer_address: address.clone(), ..Node::default() })
        })
        .collect()
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    serve::bind(address).map_err(|source| StartError::Listen { address, source })
}

fn local_address(listener: &TcpListener, wanted: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { address: wanted, source })
}

/// A client port that is bound but not served yet.
struct Port {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    serves: Serves,
}

impl Port {
    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

fn client_ports(config: &Config) -> Result<Vec<Port>, StartError> {
    let mut ports = Vec::new();
    if let Some(wanted) = config.listen_client {
        let tls = config.client_tls.as_ref().map(|files| server_tls(files, ClientAuth::Required)).transpose()?;
        ports.push(port(wanted, tls, Serves::Everything)?);
    }
    for listener in &config.listeners {
        let tls = listener.tls.as_ref().map(|(files, shown)| server_tls(files, *shown)).transpose()?;
        ports.push(port(listener.address, tls, listener.serves)?);
    }
    Ok(ports)
}

fn port(
    wanted: SocketAddr,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    serves: Serves,
) -> Result<Port, StartError> {
    let listener = listen(wanted)?;
    Ok(Port { address: local_address(&listener, wanted)?, listener, tls, serves })
}

fn server_tls(files: &TlsFiles, clients_show: ClientAuth) -> Result<Arc<Reloading<rustls::ServerConfig>>, TlsError> {
    let make = move |files: &TlsFiles| tls::server_config(files, clients_show, &["h2", "http/1.1"]);
    Reloading::new(files.clone(), make).map(Arc::new)
}

fn peer_tls(config: &Config) -> Result<Option<PeerTls>, TlsError> {
    let Some(files) = &config.peer_tls else { return Ok(None) };
    let anyone = config.peer_trust == PeerTrust::Nobody;
    let make = move |files: &TlsFiles| {
        let trust = if anyone { Trust::Anyone } else { Trust::Authority(files.ca.clone()) };
        tls::client_config_with(Some((&files.cert, &files.key)), &trust, &["h2"])
    };
    let config_of_peers = Arc::new(Reloading::new(files.clone(), make)?);
    Ok(Some(PeerTls { config: config_of_peers, by_key: config.peer_trust == PeerTrust::Key }))
}
