//! From what was written to what it means.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use quorate_store::{AuthToken, AutoCompaction, ClusterState};

use super::flags::{Origin, Value, Values, spelling};

const DEFAULT_NAME: &str = "default";
const DEFAULT_CLIENT_URL: &str = "http://localhost:2379";
const DEFAULT_PEER_URL: &str = "http://localhost:2380";
const DEFAULT_TOKEN: &str = "etcd-cluster";

/// etcd's timing, which holds for the number that is not given when the other one is.
const DEFAULT_HEARTBEAT_MS: u64 = 100;
const DEFAULT_ELECTION_MS: u64 = 1000;

const HOUR: Duration = Duration::from_secs(3600);

/// etcd's own bounds of the election timeout.
const MIN_ELECTION_HEARTBEATS: u64 = 5;
const MAX_ELECTION_MS: u64 = 50_000;

/// etcd's least; a shorter one is taken for it.
const MIN_WATCH_PROGRESS: Duration = Duration::from_millis(100);

/// What one member was asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) data_dir: PathBuf,
    pub(super) listen_client: Vec<ListenUrl>,
    pub(super) listen_peer: Vec<ListenUrl>,
    pub(super) listen_metrics: Vec<ListenUrl>,
    pub(super) advertise_client: Vec<String>,
    /// `host:port` of this member's peer URLs, separated by commas.
    pub(super) advertise_peer: String,
    /// Name and `host:port`, several separated by commas.
    pub(super) initial_cluster: Vec<(String, String)>,
    pub(super) cluster_state: ClusterState,
    pub(super) strict_reconfig_check: bool,
    pub(super) max_learners: Option<usize>,
    pub(super) cluster_token: String,
    pub(super) client_tls: TlsSettings,
    pub(super) peer_tls: TlsSettings,
    /// None takes the store's own.
    pub(super) timing: Option<Timing>,
    pub(super) watch_progress: Option<Duration>,
    pub(super) auth_token: AuthToken,
    pub(super) bcrypt_cost: Option<u32>,
    pub(super) limits: Limits,
    pub(super) auto_compaction: Option<AutoCompaction>,
    pub(super) log: Log,
}

/// What was said of limits; the store has its own for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) quota_bytes: Option<u64>,
    pub(super) request_bytes: Option<usize>,
    pub(super) txn_ops: Option<usize>,
    pub(super) memory_bytes: Option<u64>,
}

/// How much is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: &'static str,
    pub(crate) json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info", json: false }
    }
}

/// etcd's two numbers. An election begins after one to two timeouts of silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    pub(super) heartbeat: Duration,
    pub(super) election: Duration,
}

/// A URL to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListenUrl {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
}

/// The files of one side, as far as they were named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsSettings {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) client_cert_auth: bool,
}

impl Settings {
    /// # Errors
    /// Names the flag, the variable or the key that cannot be used, and why.
    pub(super) fn parse(values: &Values) -> Result<Self> {
        let reader = Reader(values);
        let name = reader.text("name").unwrap_or(DEFAULT_NAME).to_owned();
        ensure!(!name.is_empty(), "{} is empty", reader.spelling("name"));
        let data_dir = reader.path("data-dir").unwrap_or_else(|| format!("{name}.etcd").into());
        let listen_client = reader.listen("listen-client-urls", DEFAULT_CLIENT_URL)?;
        let listen_peer = reader.listen("listen-peer-urls", DEFAULT_PEER_URL)?;
        let explicit_listen = reader.text("listen-client-urls").is_some();
        ensure!(
            !explicit_listen || reader.text("advertise-client-urls").is_some(),
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
        );
        let advertise_client = reader.urls("advertise-client-urls", DEFAULT_CLIENT_URL)?;
        let peer_urls = reader.urls("initial-advertise-peer-urls", DEFAULT_PEER_URL)?;
        let advertise_peer = peer_urls.iter().map(|url| url.authority.as_str()).collect::<Vec<_>>().join(",");
        let initial_cluster = match reader.text("initial-cluster") {
            Some(text) => parse_cluster(text).with_context(|| reader.unusable("initial-cluster"))?,
            None => vec![(name.clone(), advertise_peer.clone())],
        };
        Ok(Self {
            data_dir,
            listen_client,
            listen_peer,
            listen_metrics: match reader.text("listen-metrics-urls") {
                None | Some("") => Vec::new(),
                Some(_) => reader.listen("listen-metrics-urls", "")?,
            },
            advertise_client: advertise_client.into_iter().map(|url| url.text).collect(),
            advertise_peer,
            initial_cluster,
            cluster_state: match reader.text("initial-cluster-state") {
                None | Some("new") => ClusterState::New,
                Some("existing") => ClusterState::Existing,
                Some(_) => bail!("{}: it is new or existing", reader.unusable("initial-cluster-state")),
            },
            strict_reconfig_check: match reader.text("strict-reconfig-check") {
                None => true,
                Some(_) => reader.switch("strict-reconfig-check")?,
            },
            max_learners: match reader.number("max-learners")? {
                None => reader.number("experimental-max-learners")?,
                given => given,
            },
            cluster_token: reader.text("initial-cluster-token").unwrap_or(DEFAULT_TOKEN).to_owned(),
            client_tls: reader.tls("")?,
            peer_tls: reader.tls("peer-")?,
            timing: reader.timing()?,
            watch_progress: match reader.watch_progress("watch-progress-notify-interval")? {
                None => reader.watch_progress("experimental-watch-progress-notify-interval")?,
                given => given,
            },
            auth_token: reader.auth_token()?,
            bcrypt_cost: reader.number("bcrypt-cost")?,
            limits: reader.limits()?,
            auto_compaction: reader.auto_compaction()?,
            log: reader.log()?,
            name,
        })
    }
}

struct Reader<'a>(&'a Values);

impl<'a> Reader<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|value| value.text.as_str())
    }

    fn spelling(&self, name: &str) -> String {
        spelling(name, self.0.get(name).map_or(&Origin::Flag, |value| &value.origin))
    }

    fn unusable(&self, name: &str) -> String {
        format!("{} is not usable", self.spelling(name))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn switch(&self, name: &str) -> Result<bool> {
        match self.0.get(name) {
            None => Ok(false),
            Some(Value { text, .. }) => parse_bool(text).with_context(|| self.unusable(name)),
        }
    }

    fn urls(&self, name: &str, default: &str) -> Result<Vec<Url>> {
        let text = self.text(name).unwrap_or(default);
        text.split(',').map(|url| parse_url(url.trim())).collect::<Result<_>>().with_context(|| self.unusable(name))
    }

    fn listen(&self, name: &str, default: &str) -> Result<Vec<ListenUrl>> {
        let urls = self.urls(name, default)?;
        urls.iter().map(listen_url).collect::<Result<_>>().with_context(|| self.unusable(name))
    }

    fn tls(&self, prefix: &str) -> Result<TlsSettings> {
        let name = |suffix: &str| format!("{prefix}{suffix}");
        let (cert, key) = (self.path(&name("cert-file")), self.path(&name("key-file")));
        ensure!(
            cert.is_some() == key.is_some(),
            "--{prefix}cert-file and --{prefix}key-file go together: only one of them is given"
        );
        Ok(TlsSettings {
            cert,
            key,
            ca: self.path(&name("trusted-ca-file")),
            client_cert_auth: self.switch(&name("client-cert-auth"))?,
        })
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse().map_err(|_| anyhow!("{text:?} is not a number that fits"));
        number.map(Some).with_context(|| self.unusable(name))
    }

    /// As in etcd: nothing is the default.
    fn watch_progress(&self, name: &str) -> Result<Option<Duration>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let interval = parse_duration(text).with_context(|| self.unusable(name))?;
        Ok((!interval.is_zero()).then(|| interval.max(MIN_WATCH_PROGRESS)))
    }

    fn auth_token(&self) -> Result<AuthToken> {
        let token = self.text("auth-token").map(str::parse::<AuthToken>).transpose();
        let token = token.with_context(|| self.unusable("auth-token"))?.unwrap_or_default();
        let ttl: Option<u64> = self.number("auth-token-ttl")?;
        Ok(ttl.map_or(token.clone(), |seconds| token.with_simple_ttl(Duration::from_secs(seconds))))
    }

    fn limits(&self) -> Result<Limits> {
        // etcd takes a negative quota for none.
        let quota: Option<i64> = self.number("quota-backend-bytes")?;
        let memory = self.text("memory-limit").map(parse_size).transpose();
        Ok(Limits {
            quota_bytes: quota.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            request_bytes: self.number("max-request-bytes")?,
            txn_ops: self.number("max-txn-ops")?,
            memory_bytes: memory.with_context(|| self.unusable("memory-limit"))?,
        })
    }

    fn timing(&self) -> Result<Option<Timing>> {
        let (heartbeat, election) =
            (self.number::<u64>("heartbeat-interval")?, self.number::<u64>("election-timeout")?);
        if heartbeat.is_none() && election.is_none() {
            return Ok(None);
        }
        let heartbeat = heartbeat.unwrap_or(DEFAULT_HEARTBEAT_MS);
        let election = election.unwrap_or(DEFAULT_ELECTION_MS);
        ensure!(heartbeat > 0, "--heartbeat-interval must be >0 (set to {heartbeat}ms)");
        ensure!(election > 0, "--election-timeout must be >0 (set to {election}ms)");
        ensure!(
            heartbeat.saturating_mul(MIN_ELECTION_HEARTBEATS) <= election,
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        );
        ensure!(
            election <= MAX_ELECTION_MS,
            "--election-timeout[{election}ms] is too long, and should be set less than {MAX_ELECTION_MS}ms"
        );
        Ok(Some(Timing { heartbeat: Duration::from_millis(heartbeat), election: Duration::from_millis(election) }))
    }

    /// As in etcd: a plain number of the periodic mode is hours, and 0 is off.
    fn auto_compaction(&self) -> Result<Option<AutoCompaction>> {
        const AMOUNT: &str = "auto-compaction-retention";
        let mode = self.text("auto-compaction-mode").unwrap_or("periodic");
        let amount = self.text(AMOUNT).unwrap_or("0");
        let kept = match mode {
            "" | "periodic" => {
                let hours = amount.parse::<u32>().map(|hours| HOUR * hours);
                let retention =
                    hours.map_or_else(|_| parse_duration(amount), Ok).with_context(|| self.unusable(AMOUNT))?;
                Some(AutoCompaction::Periodic(retention)).filter(|_| !retention.is_zero())
            }
            "revision" => {
                let count: i64 = amount
                    .parse()
                    .with_context(|| format!("{amount:?} is not a number of revisions"))
                    .with_context(|| self.unusable(AMOUNT))?;
                ensure!(count >= 0, "{}: {count} is less than nothing", self.unusable(AMOUNT));
                Some(AutoCompaction::Revisions(count)).filter(|_| count > 0)
            }
            other => bail!("unknown auto-compaction-mode {other:?}: it is periodic or revision"),
        };
        Ok(kept)
    }

    fn log(&self) -> Result<Log> {
        let level = match self.text("log-level").unwrap_or("info") {
            "debug" => "debug",
            "info" => "info",
            "warn" => "warn",
            "error" | "dpanic" | "panic" | "fatal" => "error",
            other => {
                bail!("{}: {other:?} is none of debug, info, warn, error, panic, fatal", self.unusable("log-level"))
            }
        };
        let json = match self.text("log-format").unwrap_or("console") {
            "console" => false,
            "json" => true,
            other => bail!("{}: {other:?} is neither console nor json", self.unusable("log-format")),
        };
        Ok(Log { level, json })
    }
}

/// The values that Go's flags take.
fn parse_bool(text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => bail!("{text:?} is neither true nor false"),
    }
}

/// Go's notation of a time: `1h30m`, `250ms`, `1.5s`.
fn parse_duration(text: &str) -> Result<Duration> {
    const UNITS: &[(&str, f64)] =
        &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let wrong = || format!("{text:?} is not a time such as 30m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    ensure!(!text.is_empty(), wrong());
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).with_context(wrong)?;
        seconds += number.parse::<f64>().with_context(wrong)? * scale;
        rest = tail;
    }
    Duration::try_from_secs_f64(seconds).with_context(wrong)
}

/// A number of bytes: `536870912`, `512MiB`, `1GiB`, `1G`.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    const UNITS: &[(&str, u32)] = &[("", 0), ("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let wrong = || format!("{text:?} is not a number of bytes such as 512MiB");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim().to_lowercase();
    let unit = unit.trim_end_matches('b').trim_end_matches('i');
    let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit).with_context(wrong)?;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).with_context(wrong)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    text: String,
    tls: bool,
    authority: String,
}

fn parse_url(text: &str) -> Result<Url> {
    let (tls, authority) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(("unix" | "unixs", _)) => bail!("{text:?}: unix sockets are not supported yet; use http:// or https://"),
        _ => bail!("{text:?}: URL scheme must be http or https"),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    ensure!(!authority.contains(['/', '?', '#']), "{text:?}: URL must not contain a path");
    let port = authority.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    ensure!(matches!(port, Some(Ok(_))), "{text:?}: URL address does not have the form \"host:port\"");
    Ok(Url { text: text.to_owned(), tls, authority: authority.to_owned() })
}

/// As in etcd, one listens on addresses and not on names; `localhost` is the exception.
fn listen_url(url: &Url) -> Result<ListenUrl> {
    let (host, port) = url.authority.rsplit_once(':').context("a URL ends in its port")?;
    let port: u16 = port.parse().with_context(|| format!("{:?} does not end in a port", url.text))?;
    let address = match host {
        "localhost" => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        "" => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        _ => url.authority.parse().with_context(|| format!("expected IP in URL for binding ({})", url.text))?,
    };
    Ok(ListenUrl { address, tls: url.tls })
}

/// `name=url,name=url`; of several URLs of one member, the first is dialled.
fn parse_cluster(text: &str) -> Result<Vec<(String, String)>> {
    let mut members: Vec<(String, String)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').with_context(|| format!("{part:?} is not of the form NAME=URL"))?;
        ensure!(!name.is_empty(), "{part:?} lacks the name before the URL");
        let url = parse_url(url)?;
        match members.iter_mut().find(|(known, _)| known == name) {
            // One member at several URLs.
            Some((_, addresses)) => *addresses = format!("{addresses},{}", url.authority),
            None => members.push((name.to_owned(), url.authority)),
        }
    }
    ensure!(!members.is_empty(), "it names no member");
    Ok(members)
}
