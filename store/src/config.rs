//! The settings of one member.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_transport::tls::{ClientAuth, TlsFiles};

use crate::auth::{AuthToken, password};
use crate::error::StartError;
use crate::memory;

/// A request has to fit into one message between members, with others of its batch.
const MAX_MAX_REQUEST_BYTES: usize = 32 << 20;

/// etcd's bound: a shorter one costs more than it tells.
const MIN_WATCH_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Everything a member is told from outside. Make one with [`Config::new`] and set
/// what differs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The member's name, unique in its cluster.
    pub name: String,
    /// Holds all of the member's state; made if it does not exist.
    pub data_dir: PathBuf,
    /// Where peers connect; port 0 takes any.
    pub listen_peer: SocketAddr,
    /// Further addresses where peers connect.
    pub also_listen_peer: Vec<SocketAddr>,
    /// The address of this member that its connections to peers come from, wherever that
    /// reaches them; none leaves it to the machine.
    pub dial_from: Option<IpAddr>,
    /// Where clients connect (etcd v3, health, metrics); none serves this process only.
    pub listen_client: Option<SocketAddr>,
    /// `host:port` where peers reach this member, several separated by commas; none is
    /// where it listens.
    pub advertise_peer: Option<String>,
    /// Further places where clients connect, each with its own TLS.
    pub listeners: Vec<Listener>,
    /// The URLs at which clients reach this member; none are those where it listens.
    pub advertise_client: Vec<String>,
    /// Name and peer `host:port` (several separated by commas) of every founding member, this
    /// one included. Empty founds a cluster of one. An existing data directory knows its
    /// members; addresses that have changed here since the last start are believed, so that
    /// all members may move at once.
    pub initial_cluster: Vec<(String, String)>,
    /// Whether `initial_cluster` is founded, or exists and has this member added to it. An
    /// existing data directory knows.
    pub initial_cluster_state: ClusterState,
    /// How long a new member of an existing cluster waits to be added to it.
    pub join_timeout: Duration,
    /// Refuse to change the members where that would endanger the quorum.
    pub strict_reconfig_check: bool,
    /// Learners that may be there at once.
    pub max_learners: usize,
    /// A member that was added and whose process never came is removed after that.
    pub learner_expiry: Duration,
    /// Tells clusters apart whose members bear the same names.
    pub cluster_token: String,
    /// The identity among peers; none talks in plain text.
    pub peer_tls: Option<TlsFiles>,
    /// How members make sure of each other, if they talk over TLS.
    pub peer_trust: PeerTrust,
    /// The identity of `listen_client` towards clients, who must show a certificate; none talks in plain text.
    pub client_tls: Option<TlsFiles>,
    pub heartbeat: Duration,
    pub election_timeout_min: Duration,
    pub election_timeout_max: Duration,
    /// How long a request may take before its client is told that nobody knows.
    pub request_timeout: Duration,
    /// The store's resident memory stays below this, whatever its data: caches, memtables,
    /// recent events, recent log and writes under way are sized by it. What other requests under
    /// way hold comes on top.
    pub memory_limit_bytes: u64,
    /// Past this size of the data, writes are slowed and then refused, until there is room
    /// again; 0 is no quota.
    pub quota_bytes: u64,
    /// The largest request that a client may make.
    pub max_request_bytes: usize,
    /// The most operations in one branch of a transaction, and compares before it.
    pub max_txn_ops: usize,
    /// How often a watch that asked for it hears how far it is, when nothing happens.
    pub watch_progress_interval: Duration,
    /// The size of one file of the log.
    pub log_segment_bytes: u64,
    /// A restart replays about this many entries at most; the log goes beyond that only
    /// for members that lag a little.
    pub replay_entries: u64,
    /// History that is forgotten without being asked; none is kept until somebody compacts.
    pub auto_compaction: Option<AutoCompaction>,
    /// Whether the common name in a client's certificate says who it is, once users count.
    pub client_cert_auth: bool,
    /// How clients' tokens are made.
    pub auth_token: AuthToken,
    /// How much work it is to hash a password, from 4 to 31: each step doubles it.
    pub bcrypt_cost: u32,
    /// How often members compare the hashes of what they hold; zero is never.
    pub compare_interval: Duration,
    /// How often members read all they hold, slowly, and compare it; zero is never.
    pub scrub_interval: Duration,
    /// Writes this process's metrics as `/metrics` answers them.
    pub metrics: Option<MetricsText>,
}

/// One place where clients connect.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Port 0 takes any.
    pub address: SocketAddr,
    /// The identity, and what clients must show; none talks in plain text.
    pub tls: Option<(TlsFiles, ClientAuth)>,
    pub serves: Serves,
}

/// What a port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// etcd v3, health and metrics.
    Everything,
    /// Health, version and metrics: a port for monitoring.
    Monitoring,
}

/// How members that talk over TLS make sure of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerTrust {
    /// Both show certificates of one authority; the one that answers bears the store's
    /// own name, wherever it lives.
    Key,
    /// As etcd does: the one that answers shows a certificate of the authority for the
    /// host that was dialled; what the other must show is a setting.
    Host(ClientAuth),
    /// Not at all: encrypted, but towards whoever answers.
    Nobody,
}

/// How much history is kept for readers and watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// What was current within that time.
    Periodic(Duration),
    /// That many revisions.
    Revisions(i64),
}

/// Whether a cluster is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterState {
    #[default]
    New,
    Existing,
}

/// Renders the metrics of the process as Prometheus reads them.
#[derive(Clone)]
pub struct MetricsText(pub Arc<dyn Fn() -> String + Send + Sync>);

impl fmt::Debug for MetricsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsText")
    }
}

impl Config {
    /// A member of a cluster of one on `127.0.0.1`, any ports, with the timing of one
    /// data centre.
    pub fn new(name: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            data_dir: data_dir.into(),
            listen_peer: SocketAddr::from(([127, 0, 0, 1], 0)),
            also_listen_peer: Vec::new(),
            dial_from: None,
            listen_client: None,
            advertise_peer: None,
            listeners: Vec::new(),
            advertise_client: Vec::new(),
            initial_cluster: Vec::new(),
            initial_cluster_state: ClusterState::New,
            join_timeout: Duration::from_secs(300),
            strict_reconfig_check: true,
            max_learners: 1,
            learner_expiry: Duration::from_secs(3600),
            cluster_token: "quorate".to_owned(),
            peer_tls: None,
            peer_trust: PeerTrust::Key,
            client_tls: None,
            heartbeat: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(500),
            request_timeout: Duration::from_secs(5),
            memory_limit_bytes: 256 << 20,
            quota_bytes: 0,
            max_request_bytes: (1 << 20) + (512 << 10),
            max_txn_ops: 128,
            watch_progress_interval: Duration::from_secs(600),
            log_segment_bytes: 64 << 20,
            replay_entries: 50_000,
            auto_compaction: None,
            client_cert_auth: true,
            auth_token: AuthToken::default(),
            bcrypt_cost: password::DEFAULT_COST,
            compare_interval: Duration::from_secs(10),
            scrub_interval: Duration::from_secs(24 * 60 * 60),
            metrics: None,
        }
    }

    /// A leader that no quorum has answered for so long may have been replaced, and one whose
    /// disk has not answered for so long should be.
    pub(crate) fn quorum_patience(&self) -> Duration {
        self.election_timeout_min * 2
    }

    /// # Errors
    /// Names the first setting that cannot work.
    pub(crate) fn validate(&self) -> Result<(), StartError> {
        let bad = |setting, reason: &str| Err(StartError::Config { setting, reason: reason.to_owned() });
        if self.name.is_empty() {
            return bad("name", "it is empty");
        }
        if self.heartbeat < Duration::from_millis(1) {
            return bad("heartbeat", "it is shorter than a millisecond");
        }
        if self.election_timeout_min <= self.heartbeat * 2 {
            return bad("election_timeout_min", "it must be more than two heartbeats");
        }
        if self.election_timeout_max <= self.election_timeout_min {
            return bad("election_timeout_max", "it must be more than election_timeout_min");
        }
        if self.memory_limit_bytes < memory::MIN_LIMIT_BYTES {
            let reason = format!("the store needs at least {} MiB", memory::MIN_LIMIT_BYTES >> 20);
            return Err(StartError::Config { setting: "memory_limit_bytes", reason });
        }
        if self.max_request_bytes == 0 || self.max_request_bytes > MAX_MAX_REQUEST_BYTES {
            let reason = format!("it must be between 1 byte and {} MiB", MAX_MAX_REQUEST_BYTES >> 20);
            return Err(StartError::Config { setting: "max_request_bytes", reason });
        }
        if self.max_txn_ops == 0 {
            return bad("max_txn_ops", "it is zero");
        }
        if let Some(AutoCompaction::Periodic(Duration::ZERO) | AutoCompaction::Revisions(..=0)) = self.auto_compaction {
            return bad("auto_compaction", "it keeps nothing");
        }
        if !(password::MIN_COST..=password::MAX_COST).contains(&self.bcrypt_cost) {
            return bad("bcrypt_cost", "it must be from 4 to 31");
        }
        if self.watch_progress_interval < MIN_WATCH_PROGRESS_INTERVAL {
            return bad("watch_progress_interval", "it is shorter than 100 milliseconds");
        }
        let alone = self.initial_cluster.iter().all(|(name, _)| *name == self.name);
        if self.initial_cluster_state == ClusterState::Existing && alone {
            return bad("initial_cluster", "it names no member of the existing cluster");
        }
        if self.initial_cluster.is_empty() {
            return Ok(());
        }
        if !self.initial_cluster.iter().any(|(name, _)| *name == self.name) {
            let reason = format!("it lacks this member, {:?}", self.name);
            return Err(StartError::Config { setting: "initial_cluster", reason });
        }
        let ids: BTreeSet<u64> =
            self.initial_cluster.iter().map(|(name, _)| member_id(&self.cluster_token, name)).collect();
        if ids.len() != self.initial_cluster.len() {
            return bad("initial_cluster", "two members have one name");
        }
        Ok(())
    }

    /// The founding members and their addresses, with `own` for this member. `lineage` is
    /// that of the cluster; see [`lineal`].
    pub(crate) fn founders(&self, own: &str, lineage: &str) -> BTreeMap<u64, (String, String)> {
        let token = lineal(&self.cluster_token, lineage);
        let mut founders: BTreeMap<u64, (String, String)> = self
            .initial_cluster
            .iter()
            .map(|(name, address)| (member_id(&token, name), (name.clone(), address.clone())))
            .collect();
        founders.entry(member_id(&token, &self.name)).or_insert_with(|| (self.name.clone(), own.to_owned()));
        founders
    }
}

/// What the ids of a cluster are made from. A cluster that was restored is another one than
/// the cluster it was saved from, though its members may bear the same names: `lineage` says
/// what it was restored from, and is empty otherwise.
pub(crate) fn lineal(token: &str, lineage: &str) -> String {
    match lineage {
        "" => token.to_owned(),
        lineage => format!("{token}\0{lineage}"),
    }
}

/// A member's id: the same on every member, without asking anybody.
pub(crate) fn member_id(token: &str, name: &str) -> u64 {
    digest([token, "member", name])
}

/// The id of a new cluster of `names`.
pub(crate) fn cluster_id<'a>(token: &'a str, names: impl IntoIterator<Item = &'a str>) -> u64 {
    let names = BTreeSet::from_iter(names);
    digest([token, "cluster"].into_iter().chain(names))
}

/// FNV-1a over the parts and their lengths, then mixed; never 0, which means "none".
fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in (part.len() as u64).to_be_bytes().into_iter().chain(part.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    // The finalizer of SplitMix64: FNV leaves the high bits of short inputs alike.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_names_and_token_only() {
        assert_eq!(member_id("t", "a"), member_id("t", "a"));
        assert_ne!(member_id("t", "a"), member_id("t", "b"));
        assert_ne!(member_id("t", "a"), member_id("u", "a"));
        assert_eq!(cluster_id("t", ["a", "b"]), cluster_id("t", ["b", "a"]));
        assert_ne!(cluster_id("t", ["ab"]), cluster_id("t", ["a", "b"]));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let check = |change: fn(&mut Config), name: &str| {
            let mut config = Config::new("a", "/nowhere");
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        };
        assert!(Config::new("a", "/nowhere").validate().is_ok());
        check(|config| config.name.clear(), "name");
        check(|config| config.heartbeat = Duration::ZERO, "heartbeat");
        check(|config| config.bcrypt_cost = 3, "bcrypt_cost");
        check(|config| config.election_timeout_min = config.heartbeat, "election_timeout_min");
        check(|config| config.election_timeout_max = config.election_timeout_min, "election_timeout_max");
        check(|config| config.memory_limit_bytes = 1 << 20, "memory_limit_bytes");
        check(|config| config.max_request_bytes = 1 << 30, "max_request_bytes");
        check(|config| config.max_txn_ops = 0, "max_txn_ops");
        check(|config| config.auto_compaction = Some(AutoCompaction::Revisions(0)), "auto_compaction");
        check(|config| config.watch_progress_interval = Duration::ZERO, "watch_progress_interval");
        check(|config| config.initial_cluster = vec![("b".into(), "127.0.0.1:1".into())], "\"a\"");
        check(|config| config.initial_cluster_state = ClusterState::Existing, "initial_cluster");
        let twice =
            |config: &mut Config| config.initial_cluster = vec![("a".into(), "x:1".into()), ("a".into(), "y:1".into())];
        check(twice, "initial_cluster");
    }

    #[test]
    fn a_restored_cluster_has_other_ids() {
        let config = Config::new("a", "/nowhere");
        let ids = |lineage| config.founders("x:1", lineage).into_keys().collect::<Vec<_>>();
        assert_eq!(ids("1"), ids("1"));
        assert!(ids("") != ids("1") && ids("1") != ids("2"));
    }

    #[test]
    fn a_cluster_of_one_founds_itself() {
        let founders = Config::new("a", "/nowhere").founders("127.0.0.1:9", "");
        assert_eq!(founders.into_values().collect::<Vec<_>>(), [("a".to_owned(), "127.0.0.1:9".to_owned())]);
    }
}
