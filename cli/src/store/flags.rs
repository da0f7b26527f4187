//! etcd's flags as a table, and where their values come from.
//!
//! Always: a value is kept with the place it came from, so that every complaint names
//! what the operator wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What a flag's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// `--flag` alone means `--flag=true`.
    Switch,
}

/// One flag of etcd that means something here.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    kind: Kind,
    value: &'static str,
    heading: &'static str,
    help: &'static str,
}

const fn text(name: &'static str, value: &'static str, heading: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Text, value, heading, help }
}

const fn switch(name: &'static str, heading: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Switch, value: "BOOL", heading, help }
}

const MEMBER: &str = "Member";
const CLUSTER: &str = "Cluster";
const CLIENT_TLS: &str = "TLS towards clients";
const PEER_TLS: &str = "TLS between members";
const USERS: &str = "Users";
const TIMING: &str = "Timing";
const LIMITS: &str = "Limits";
const HISTORY: &str = "History";
const OPERATION: &str = "Operation";

/// The flag that makes all others void.
pub(super) const CONFIG_FILE: &str = "config-file";

/// The flags, in the order in which help lists them.
pub(super) const FLAGS: &[Flag] = &[
    text(CONFIG_FILE, "FILE", MEMBER, "Take all settings from this YAML file; flags and variables are then ignored"),
    text("name", "NAME", MEMBER, "The member's name, unique in its cluster [default: default]"),
    text("data-dir", "DIR", MEMBER, "Holds all of the member's state [default: NAME.etcd]"),
    text("listen-client-urls", "URLS", MEMBER, "Where clients connect [default: http://localhost:2379]"),
    text("listen-peer-urls", "URLS", MEMBER, "Where members connect [default: http://localhost:2380]"),
    text("listen-metrics-urls", "URLS", MEMBER, "Where /metrics, /health and /version are answered as well"),
    text("advertise-client-urls", "URLS", MEMBER, "What clients are told to dial [default: http://localhost:2379]"),
    text("initial-advertise-peer-urls", "URLS", CLUSTER, "What members dial [default: http://localhost:2380]"),
    text("initial-cluster", "NAME=URL,…", CLUSTER, "Every founding member and its peer URL [default: this one]"),
    text("initial-cluster-state", "STATE", CLUSTER, "new, or existing to join a cluster [default: new]"),
    text("initial-cluster-token", "TOKEN", CLUSTER, "Tells clusters of the same names apart [default: etcd-cluster]"),
    switch("strict-reconfig-check", CLUSTER, "Refuse changes of members that endanger the quorum [default: true]"),
    text("max-learners", "NUMBER", CLUSTER, "Learners that may be there at once [default: 1]"),
    text("experimental-max-learners", "NUMBER", CLUSTER, "The former name of --max-learners"),
    text("cert-file", "FILE", CLIENT_TLS, "The certificate shown to clients [default: one is made for https://]"),
    text("key-file", "FILE", CLIENT_TLS, "Its key"),
    text("trusted-ca-file", "FILE", CLIENT_TLS, "The authority of clients' certificates; they must then show one"),
    switch("client-cert-auth", CLIENT_TLS, "Clients must show a certificate"),
    switch("auto-tls", CLIENT_TLS, "Make the certificate, as happens anyway when none is named"),
    text("peer-cert-file", "FILE", PEER_TLS, "The certificate shown to members [default: one is made for https://]"),
    text("peer-key-file", "FILE", PEER_TLS, "Its key"),
    text("peer-trusted-ca-file", "FILE", PEER_TLS, "The authority of members' certificates; they must then show one"),
    switch("peer-client-cert-auth", PEER_TLS, "Members that connect must show a certificate"),
    switch("peer-auto-tls", PEER_TLS, "Make the certificate, as happens anyway when none is named"),
    text("auth-token", "TOKEN", USERS, "simple, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE [default: simple]"),
    text("auth-token-ttl", "SECONDS", USERS, "How long an unused simple token holds [default: 300]"),
    text("bcrypt-cost", "COST", USERS, "How hard passwords are to guess, from 4 to 31 [default: 10]"),
    text("heartbeat-interval", "MS", TIMING, "How often the leader is heard of, in milliseconds [default: 50]"),
    text("election-timeout", "MS", TIMING, "Silence after which members elect, up to twice that [default: 300]"),
    text(
        "watch-progress-notify-interval",
        "TIME",
        TIMING,
        "How often a quiet watch that asked for it hears how far it is [default: 10m]",
    ),
    text(
        "experimental-watch-progress-notify-interval",
        "TIME",
        TIMING,
        "The former name of --watch-progress-notify-interval",
    ),
    text("quota-backend-bytes", "BYTES", LIMITS, "Slow and then refuse writes beyond that size [default: 0, no quota]"),
    text("max-request-bytes", "BYTES", LIMITS, "The largest request of a client [default: 1572864]"),
    text("max-txn-ops", "COUNT", LIMITS, "The most operations of a transaction [default: 128]"),
    text("memory-limit", "BYTES", LIMITS, "What the store may hold in memory, such as 512MiB [default: 256MiB]"),
    text("auto-compaction-mode", "MODE", HISTORY, "periodic or revision [default: periodic]"),
    text(
        "auto-compaction-retention",
        "AMOUNT",
        HISTORY,
        "Keep that much history: 8 (hours), 30m, or 1000 revisions [default: all]",
    ),
    text("log-level", "LEVEL", OPERATION, "debug, info, warn, error, panic or fatal [default: info]"),
    text("log-format", "FORMAT", OPERATION, "console or json [default: console]"),
];

/// Flags of etcd that say nothing here, and why.
const IGNORED: &[(&str, &str)] = &[
    ("snapshot-count", "the log is cut by what the state machine has on disk"),
    ("experimental-snapshot-catchup-entries", "the log is cut by what the state machine has on disk"),
    ("snapshot-catchup-entries", "the log is cut by what the state machine has on disk"),
    ("max-snapshots", "files go as soon as nothing needs them"),
    ("max-wals", "files go as soon as nothing needs them"),
    ("backend-batch-interval", "there is no bbolt file; every write is one batch of the state machine"),
    ("backend-batch-limit", "there is no bbolt file; every write is one batch of the state machine"),
    ("backend-bbolt-freelist-type", "there is no bbolt file"),
    ("experimental-backend-bbolt-freelist-type", "there is no bbolt file"),
    ("bootstrap-defrag-threshold-megabytes", "there is nothing to defragment"),
    ("experimental-bootstrap-defrag-threshold-megabytes", "there is nothing to defragment"),
    ("enable-v2", "the API v2 is not served"),
    ("experimental-enable-v2v3", "the API v2 is not served"),
    ("v2-deprecation", "the API v2 is not served"),
    ("proxy", "the API v2 is not served, and it alone had this proxy"),
    ("proxy-failure-wait", "the API v2 is not served, and it alone had this proxy"),
    ("proxy-refresh-interval", "the API v2 is not served, and it alone had this proxy"),
    ("proxy-dial-timeout", "the API v2 is not served, and it alone had this proxy"),
    ("proxy-write-timeout", "the API v2 is not served, and it alone had this proxy"),
    ("proxy-read-timeout", "the API v2 is not served, and it alone had this proxy"),
    ("discovery-fallback", "the API v2 is not served, and it alone had this proxy"),
    ("pre-vote", "members always ask before they stand for election"),
    ("initial-election-tick-advance", "the first election is prompt anyway"),
    ("enable-grpc-gateway", "the JSON gateway is always served"),
    ("grpc-keepalive-min-time", "clients may test their connections as often as they like"),
    ("grpc-keepalive-interval", "idle connections are tested every 10 s"),
    ("grpc-keepalive-timeout", "a connection that does not answer within 20 s is closed"),
    ("max-concurrent-streams", "one connection may hold 65536 streams"),
    ("socket-reuse-port", "ports are taken by one process"),
    ("socket-reuse-address", "addresses are free again as soon as a process ends"),
    ("raft-read-timeout", "connections between members are tested every second"),
    ("raft-write-timeout", "connections between members are tested every second"),
    ("self-signed-cert-validity", "certificates made here hold for a year and are renewed at a start"),
    ("metrics", "all metrics are always exported"),
    ("enable-pprof", "there is no Go profiler; use perf"),
    ("logger", "there is one logger; see --log-format"),
    ("log-output", "the log goes to standard error"),
    ("log-outputs", "the log goes to standard error"),
    ("log-package-levels", "use --log-level, or QUORATE_LOG=module=level"),
    ("debug", "use --log-level=debug"),
    ("enable-log-rotation", "the log goes to standard error; journald rotates it"),
    ("log-rotation-config-json", "the log goes to standard error; journald rotates it"),
    ("unsafe-no-fsync", "every acknowledged write is on disk; nothing switches that off"),
    ("initial-corrupt-check", "checksums are verified on every read, and members compare hashes"),
    ("experimental-initial-corrupt-check", "checksums are verified on every read, and members compare hashes"),
    ("corrupt-check-time", "members compare hashes all the time"),
    ("experimental-corrupt-check-time", "members compare hashes all the time"),
    ("compact-hash-check-enabled", "members compare hashes all the time"),
    ("compact-hash-check-time", "members compare hashes all the time"),
    ("experimental-compact-hash-check-enabled", "members compare hashes all the time"),
    ("experimental-compact-hash-check-time", "members compare hashes all the time"),
    ("experimental-enable-lease-checkpoint", "the remaining time of leases is always kept"),
    ("experimental-enable-lease-checkpoint-persist", "the remaining time of leases is always kept"),
    ("compaction-batch-limit", "compaction takes no lock, so there is nothing to split"),
    ("experimental-compaction-batch-limit", "compaction takes no lock, so there is nothing to split"),
    ("compaction-sleep-interval", "compaction takes no lock, so there is nothing to split"),
    ("experimental-compaction-sleep-interval", "compaction takes no lock, so there is nothing to split"),
    ("warning-apply-duration", "see the metrics instead"),
    ("experimental-warning-apply-duration", "see the metrics instead"),
    ("warning-unary-request-duration", "see the metrics instead"),
    ("experimental-warning-unary-request-duration", "see the metrics instead"),
    ("downgrade-check-time", "the data format does not follow etcd's versions"),
    ("experimental-downgrade-check-time", "the data format does not follow etcd's versions"),
    ("memory-mlock", "nothing is mapped into memory that could be locked"),
    ("experimental-memory-mlock", "nothing is mapped into memory that could be locked"),
    ("experimental-txn-mode-write-with-shared-buffer", "reads never copy what is being written"),
    ("experimental-stop-grpc-service-on-defrag", "defragmentation never stops anything"),
    ("stop-grpc-service-on-defrag", "defragmentation never stops anything"),
    ("distributed-tracing", "traces are not exported"),
    ("enable-distributed-tracing", "traces are not exported"),
    ("experimental-enable-distributed-tracing", "traces are not exported"),
    ("peer-skip-client-san-verification", "a member's address is not compared with its certificate when it connects"),
    (
        "experimental-peer-skip-client-san-verification",
        "a member's address is not compared with its certificate when it connects",
    ),
    ("feature-gates", "there are no gates"),
];

/// Flags of etcd that must not be ignored, with the values that ask for nothing, and
/// what to do.
const REFUSED: &[(&str, &[&str], &str)] = &[
    ("wal-dir", &[""], "put the whole --data-dir on the faster disk"),
    ("discovery", &[""], "name the members in --initial-cluster"),
    ("discovery-proxy", &[""], "name the members in --initial-cluster"),
    ("discovery-srv", &[""], "name the members in --initial-cluster"),
    ("discovery-srv-name", &[""], "name the members in --initial-cluster"),
    ("discovery-token", &[""], "name the members in --initial-cluster"),
    ("discovery-endpoints", &[""], "name the members in --initial-cluster"),
    ("force-new-cluster", &["false"], "restore a snapshot into a new cluster"),
    ("client-crl-file", &[""], "use an authority whose certificates end soon"),
    ("peer-crl-file", &[""], "use an authority whose certificates end soon"),
    ("client-cert-allowed-hostname", &[""], "use an authority that signs allowed clients only"),
    ("client-cert-file", &[""], "the certificate of --cert-file serves both sides"),
    ("client-key-file", &[""], "the key of --key-file serves both sides"),
    ("peer-client-cert-file", &[""], "the certificate of --peer-cert-file serves both sides"),
    ("peer-client-key-file", &[""], "the key of --peer-key-file serves both sides"),
    ("peer-cert-allowed-cn", &[""], "use an authority that signs members only"),
    ("peer-cert-allowed-hostname", &[""], "use an authority that signs members only"),
    ("cipher-suites", &[""], "TLS 1.2 and 1.3 are spoken with the suites of rustls, all of which are strong"),
    ("tls-min-version", &["", "TLS1.2"], "TLS 1.2 and 1.3 are spoken"),
    ("tls-max-version", &["", "TLS1.3"], "TLS 1.2 and 1.3 are spoken"),
    ("cors", &["", "*"], "put a proxy before the gateway"),
    ("host-whitelist", &["", "*"], "listen on addresses that only allowed clients reach"),
    ("listen-client-http-urls", &[""], "HTTP is answered at --listen-client-urls"),
    ("experimental-distributed-tracing-address", &[""], "traces are not exported"),
];

/// The environment variable of a flag, as etcd derives it.
pub(super) fn variable(name: &str) -> String {
    format!("ETCD_{}", name.to_uppercase().replace('-', "_"))
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Environment,
    File,
}

/// A value and how to name it when complaining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// What was written, by the flag's name.
pub(super) type Values = BTreeMap<String, Value>;

/// Something the operator should know although it does not stand in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Warning(pub(super) String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of `flag` as its origin writes it.
pub(super) fn spelling(name: &str, origin: &Origin) -> String {
    match origin {
        Origin::Flag => format!("--{name}"),
        Origin::Environment => variable(name),
        Origin::File => format!("{name} in the configuration file"),
    }
}

/// Every name that is understood.
fn names() -> impl Iterator<Item = &'static str> {
    let meant = FLAGS.iter().map(|flag| flag.name);
    let ignored = IGNORED.iter().map(|(name, _)| *name);
    meant.chain(ignored).chain(REFUSED.iter().map(|(name, ..)| *name))
}

/// The flags as clap knows them.
pub(super) fn arguments(command: Command) -> Command {
    let command = FLAGS.iter().fold(command, |command, flag| {
        let arg = Arg::new(flag.name).long(flag.name).value_name(flag.value).help(flag.help).help_heading(flag.heading);
        command.arg(match flag.kind {
            Kind::Text => arg.action(ArgAction::Set).allow_negative_numbers(true).overrides_with(flag.name),
            Kind::Switch => with_optional_value(arg).overrides_with(flag.name),
        })
    });
    // Whether one of these takes a value matters only where it follows a space.
    let others = names().skip(FLAGS.len());
    others.fold(command, |command, name| {
        let arg = Arg::new(name).long(name).hide(true).overrides_with(name);
        command.arg(if SWITCHES.contains(&name) { with_optional_value(arg) } else { arg.action(ArgAction::Set) })
    })
}

/// The flags without meaning here that etcd takes without a value.
const SWITCHES: &[&str] = &[
    "enable-v2",
    "pre-vote",
    "initial-election-tick-advance",
    "enable-grpc-gateway",
    "socket-reuse-port",
    "socket-reuse-address",
    "enable-pprof",
    "debug",
    "enable-log-rotation",
    "unsafe-no-fsync",
    "initial-corrupt-check",
    "experimental-initial-corrupt-check",
    "compact-hash-check-enabled",
    "experimental-compact-hash-check-enabled",
    "experimental-enable-lease-checkpoint",
    "experimental-enable-lease-checkpoint-persist",
    "memory-mlock",
    "experimental-memory-mlock",
    "experimental-txn-mode-write-with-shared-buffer",
    "experimental-stop-grpc-service-on-defrag",
    "stop-grpc-service-on-defrag",
    "enable-distributed-tracing",
    "experimental-enable-distributed-tracing",
    "force-new-cluster",
    "experimental-peer-skip-client-san-verification",
    "peer-skip-client-san-verification",
];

/// As Go's booleans: `--flag` alone is true, and a value follows an equals sign only.
fn with_optional_value(arg: Arg) -> Arg {
    arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).default_missing_value("true")
}

/// What the command line says.
pub(super) fn from_matches(matches: &ArgMatches) -> Values {
    let given = |name: &'static str| Some((name.to_owned(), matches.get_one::<String>(name)?.clone()));
    names().filter_map(given).map(|(name, text)| (name, Value { text, origin: Origin::Flag })).collect()
}

/// Adds what the environment says and the command line does not. An empty variable
/// counts as unset.
pub(super) fn with_environment(
    mut values: Values,
    environment: impl IntoIterator<Item = (String, String)>,
) -> (Values, Vec<Warning>) {
    let mut warnings = Vec::new();
    let known: BTreeMap<String, &str> = names().map(|name| (variable(name), name)).collect();
    for (variable, text) in environment {
        if !variable.starts_with("ETCD_") || text.is_empty() {
            continue;
        }
        let Some(name) = known.get(&variable) else {
            warnings.push(Warning(format!("unrecognized environment variable {variable}={text}")));
            continue;
        };
        match values.get(*name) {
            Some(flag) if flag.text != text => {
                let flag = &flag.text;
                warnings.push(Warning(format!("{variable}={text} is not used: --{name}={flag} goes before it")));
            }
            Some(_) => {}
            None => {
                values.insert((*name).to_owned(), Value { text, origin: Origin::Environment });
            }
        }
    }
    (values, warnings)
}

/// Reads etcd's YAML: the keys are the flags' names, those of TLS in two sections.
///
/// # Errors
/// Names the key whose value is not plain.
pub(super) fn from_yaml(yaml: &str) -> Result<(Values, Vec<Warning>)> {
    let file: BTreeMap<String, serde_json::Value> =
        serde_saphyr::from_str(yaml).map_err(|error| anyhow!("it is not YAML of keys and values: {error}"))?;
    let mut pairs = Vec::new();
    for (key, value) in file {
        let prefix = match key.as_str() {
            "client-transport-security" => "",
            "peer-transport-security" => "peer-",
            _ => {
                pairs.push((key, value));
                continue;
            }
        };
        match value {
            serde_json::Value::Object(section) => {
                pairs.extend(section.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
            }
            serde_json::Value::Null => {}
            other => bail!("{key} is {other}, and not a section of keys"),
        }
    }
    let known: BTreeSet<&str> = names().collect();
    let mut warnings = Vec::new();
    let mut values = Values::new();
    for (key, value) in pairs {
        if !known.contains(key.as_str()) {
            warnings.push(Warning(format!("unrecognized key {key} in the configuration file")));
            continue;
        }
        if let Some(text) = plain(&value).with_context(|| format!("{key} is neither text, number nor list"))? {
            values.insert(key, Value { text, origin: Origin::File });
        }
    }
    Ok((values, warnings))
}

/// A value as a flag would spell it; lists are separated by commas, and `null` is unset.
fn plain(value: &serde_json::Value) -> Result<Option<String>> {
    Ok(Some(match value {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::Bool(value) => value.to_string(),
        serde_json::Value::Number(value) => value.to_string(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => {
            let items: Vec<Option<String>> = items.iter().map(plain).collect::<Result<_>>()?;
            items.into_iter().flatten().collect::<Vec<_>>().join(",")
        }
        serde_json::Value::Object(_) => bail!("it is a section"),
    }))
}

/// Takes out what says nothing here, with a warning for each.
///
/// # Errors
/// Names what etcd knows, cannot be ignored, and is not offered.
pub(super) fn without_meaningless(values: Values) -> Result<(Values, Vec<Warning>)> {
    let ignored: BTreeMap<&str, &str> = IGNORED.iter().copied().collect();
    let mut warnings = Vec::new();
    let mut meant = Values::new();
    for (name, value) in values {
        if let Some(reason) = ignored.get(name.as_str()) {
            warnings.push(Warning(format!("{} has no effect: {reason}", spelling(&name, &value.origin))));
        } else if let Some((_, neutral, instead)) = REFUSED.iter().find(|(refused, ..)| *refused == name) {
            ensure!(
                neutral.contains(&value.text.as_str()),
                "{}={} is not supported yet; {instead}",
                spelling(&name, &value.origin),
                value.text
            );
        } else {
            meant.insert(name, value);
        }
    }
    Ok((meant, warnings))
}

/// etcd takes its long flags with one dash as well: `-name x` means `--name x`.
pub(super) fn double_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = arguments.into_iter().collect();
    if all.get(1).is_none_or(|command| command != "store") {
        return all;
    }
    for argument in all.iter_mut().skip(2) {
        let Some(text) = argument.to_str() else { continue };
        let Some(long) = text.strip_prefix('-') else { continue };
        let name = long.split('=').next().unwrap_or_default();
        // One letter is a short flag, and a digit begins a negative number.
        if name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic()) {
            *argument = format!("-{text}").into();
        }
    }
    all
}
