//! Flags, environment and file as tables: what was written, and what it means.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use quorate_store::{AuthToken, AutoCompaction};

use super::flags::{self, Warning};
use super::settings::{Settings, Timing};
use super::*;

#[derive(Parser, Debug)]
struct TestCli {
    #[command(subcommand)]
    command: TestCommand,
}

#[derive(clap::Subcommand, Debug)]
enum TestCommand {
    Store(TestArguments),
}

/// As `Arguments`, without the environment of the test.
#[derive(Debug)]
struct TestArguments(Values);

impl clap::FromArgMatches for TestArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(flags::from_matches(matches)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for TestArguments {
    fn augment_args(command: Command) -> Command {
        Arguments::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn parse(line: &str) -> Result<Values, clap::Error> {
    let words = ["quorate", "store"].into_iter().chain(line.split_whitespace());
    let TestCommand::Store(TestArguments(values)) =
        TestCli::try_parse_from(command_line(words.map(OsString::from)))?.command;
    Ok(values)
}

/// The settings of a command line and an environment of `NAME=value` words.
fn read(line: &str, environment: &str) -> (Result<Settings>, Vec<String>) {
    let variables = environment.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let arguments = Arguments::read(parse(line).unwrap(), variables);
    (arguments.settings, arguments.warnings.iter().map(ToString::to_string).collect())
}

fn good(line: &str, environment: &str) -> Settings {
    let (settings, _) = read(line, environment);
    settings.unwrap_or_else(|error| panic!("{line}: {error:#}"))
}

#[test]
fn without_flags_a_member_is_etcds_default_member() {
    let settings = good("", "");
    assert_eq!(settings.name, "default");
    assert_eq!(settings.data_dir, Path::new("default.etcd"));
    assert_eq!(settings.cluster_token, "etcd-cluster");
    assert_eq!(settings.advertise_client, ["http://localhost:2379"]);
    assert_eq!(settings.initial_cluster, [("default".to_owned(), "localhost:2380".to_owned())]);
    let address: SocketAddr = "127.0.0.1:2379".parse().unwrap();
    assert_eq!(settings.listen_client, [ListenUrl { address, tls: false }]);
    assert_eq!((settings.timing, settings.auto_compaction), (None, None));
}

#[test]
fn flags_are_spelled_as_for_etcd() {
    #[track_caller]
    fn check(line: &str, name: &str, text: &str) {
        assert_eq!(parse(line).unwrap()[name].text, text, "{line}");
    }
    check("--name a", "name", "a");
    check("--name=a", "name", "a");
    check("-name a", "name", "a");
    check("-name=a", "name", "a");
    check("--name a --name b", "name", "b");
    check("--client-cert-auth", "client-cert-auth", "true");
    check("-client-cert-auth --name a", "name", "a");
    check("--client-cert-auth=false", "client-cert-auth", "false");
    check("--pre-vote", "pre-vote", "true");
    check("-quota-backend-bytes -10", "quota-backend-bytes", "-10");
    check("--snapshot-count 10000", "snapshot-count", "10000");
}

#[test]
fn unknown_flags_are_refused_with_a_suggestion() {
    let error = parse("--listen-client-url http://127.0.0.1:1").unwrap_err().to_string();
    assert!(error.contains("--listen-client-urls"), "{error}");
    assert!(parse("extra").is_err());
    assert!(parse("--name").is_err());
}

#[test]
fn flags_go_before_variables() {
    let (settings, warnings) = read("--name a", "ETCD_NAME=b ETCD_DATA_DIR=/d PATH=/bin ETCD_FOO=1 ETCD_CERT_FILE=");
    let settings = settings.unwrap();
    assert_eq!((settings.name.as_str(), settings.data_dir.as_path()), ("a", Path::new("/d")));
    assert_eq!(
        warnings,
        ["ETCD_NAME=b is not used: --name=a goes before it", "unrecognized environment variable ETCD_FOO=1"]
    );
}

#[test]
fn an_environment_file_of_debian_is_understood() {
    let settings = good(
        "",
        "ETCD_NAME=m1 ETCD_DATA_DIR=/var/lib/etcd/default ETCD_LISTEN_PEER_URLS=http://10.0.0.1:2380 \
         ETCD_LISTEN_CLIENT_URLS=http://10.0.0.1:2379,http://127.0.0.1:2379 \
         ETCD_INITIAL_ADVERTISE_PEER_URLS=http://10.0.0.1:2380 ETCD_ADVERTISE_CLIENT_URLS=http://10.0.0.1:2379 \
         ETCD_INITIAL_CLUSTER=m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380 ETCD_INITIAL_CLUSTER_TOKEN=t \
         ETCD_HEARTBEAT_INTERVAL=100 ETCD_CLIENT_CERT_AUTH=true ETCD_SNAPSHOT_COUNT=10000",
    );
    assert_eq!(settings.name, "m1");
    assert_eq!(settings.listen_client.len(), 2);
    assert_eq!(settings.initial_cluster[1], ("m2".to_owned(), "10.0.0.2:2380".to_owned()));
    assert!(settings.client_tls.client_cert_auth);
    let timing = Timing { heartbeat: Duration::from_millis(100), election: Duration::from_secs(1) };
    assert_eq!(settings.timing, Some(timing));
}

#[test]
fn flags_without_meaning_are_warned_of() {
    let (settings, warnings) = read("--snapshot-count 5 --pre-vote=false --cors=*", "ETCD_ENABLE_V2=true");
    settings.unwrap();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for name in ["--snapshot-count has no effect: ", "--pre-vote has no effect: ", "ETCD_ENABLE_V2 has no effect: "] {
        assert!(warnings.iter().any(|warning| warning.starts_with(name)), "{name} {warnings:?}");
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    #[track_caller]
    fn check(line: &str, environment: &str, expected: &[&str]) {
        let error = format!("{:#}", read(line, environment).0.unwrap_err());
        for text in expected {
            assert!(error.contains(text), "{line} {environment}: {error}");
        }
    }
    let advertised = "--advertise-client-urls=http://127.0.0.1:1";
    let listening = |url: &str| format!("{advertised} --listen-client-urls {url}");
    check("--listen-client-urls http://127.0.0.1:1", "", &["--advertise-client-urls is required"]);
    check(&listening("http://example.com:1"), "", &["--listen-client-urls", "expected IP in URL for binding"]);
    check(&listening("unix://sock"), "", &["unix sockets are not supported yet"]);
    check(&listening("127.0.0.1:1"), "", &["URL scheme must be http or https"]);
    check(&listening("http://127.0.0.1"), "", &["does not have the form \"host:port\""]);
    check(&listening("http://127.0.0.1:1/path"), "", &["must not contain a path"]);
    check(advertised, "ETCD_LISTEN_PEER_URLS=http://[::1:2380", &["ETCD_LISTEN_PEER_URLS"]);
    check("--initial-cluster a", "", &["--initial-cluster", "NAME=URL"]);
    check("--client-cert-auth=maybe", "", &["--client-cert-auth", "neither true nor false"]);
    check("--cert-file a", "", &["--cert-file and --key-file go together"]);
    check("--peer-key-file a", "", &["--peer-cert-file and --peer-key-file go together"]);
    check(
        "--heartbeat-interval 100 --election-timeout 300",
        "",
        &["at least as 5 times as --heartbeat-interval[100ms]"],
    );
    check("--election-timeout 60000", "", &["should be set less than 50000ms"]);
    check("--heartbeat-interval x", "", &["--heartbeat-interval", "\"x\" is not a number that fits"]);
    check("--auto-compaction-mode foo", "", &["unknown auto-compaction-mode"]);
    check("--auto-compaction-retention 1y", "", &["--auto-compaction-retention", "not a time"]);
    check("--auto-compaction-mode revision --auto-compaction-retention 1h", "", &["number of revisions"]);
    check("--discovery http://x", "", &["--discovery=http://x is not supported yet"]);
    check("--wal-dir /x", "", &["--wal-dir=/x is not supported yet"]);
    check("--log-level loud", "", &["--log-level", "loud"]);
    check("--config-file /nowhere.yml", "", &["/nowhere.yml"]);
}

#[test]
fn tokens_are_made_as_asked() {
    let ttl = |seconds| AuthToken::Simple { ttl: Duration::from_secs(seconds) };
    assert_eq!(good("", "").auth_token, AuthToken::default());
    assert_eq!(good("--auth-token-ttl 60", "").auth_token, ttl(60));
    assert!(matches!(good("--auth-token jwt,sign-method=HS256,priv-key=/k", "").auth_token, AuthToken::Jwt(_)));
    let (settings, _) = read("--auth-token magic", "");
    assert!(format!("{:#}", settings.unwrap_err()).contains("--auth-token"));
}

#[test]
fn history_is_kept_as_asked() {
    #[track_caller]
    fn check(line: &str, expected: Option<AutoCompaction>) {
        assert_eq!(good(line, "").auto_compaction, expected, "{line}");
    }
    let periodic = |seconds| Some(AutoCompaction::Periodic(Duration::from_secs(seconds)));
    check("--auto-compaction-retention 0", None);
    check("--auto-compaction-retention 8", periodic(8 * 3600));
    check("--auto-compaction-retention 5m", periodic(300));
    check("--auto-compaction-retention 1h30m", periodic(5400));
    check("--auto-compaction-mode periodic --auto-compaction-retention 90s", periodic(90));
    check("--auto-compaction-mode revision", None);
    check("--auto-compaction-mode revision --auto-compaction-retention 1000", Some(AutoCompaction::Revisions(1000)));
}

#[test]
fn progress_is_told_as_often_as_asked() {
    let check = |line: &str, millis: Option<u64>| {
        assert_eq!(good(line, "").watch_progress, millis.map(Duration::from_millis), "{line}");
    };
    check("", None);
    check("--watch-progress-notify-interval 5s", Some(5000));
    check("--experimental-watch-progress-notify-interval 1m30s", Some(90_000));
    check("--experimental-watch-progress-notify-interval 1s --watch-progress-notify-interval 2s", Some(2000));
    check("--watch-progress-notify-interval 1ms", Some(100));
    check("--watch-progress-notify-interval 0", None);
    let (settings, _) = read("--watch-progress-notify-interval soon", "");
    assert!(format!("{:#}", settings.unwrap_err()).contains("--watch-progress-notify-interval"));
}

#[test]
fn limits_are_bytes_and_counts() {
    let limits =
        good("--quota-backend-bytes -1 --max-request-bytes 10 --max-txn-ops 5 --memory-limit 512MiB", "").limits;
    assert_eq!((limits.quota_bytes, limits.request_bytes, limits.txn_ops), (Some(0), Some(10), Some(5)));
    assert_eq!(limits.memory_bytes, Some(512 << 20));
    for (text, expected) in [("1024", 1 << 10), ("1G", 1 << 30), ("1 gib", 1 << 30), ("3kB", 3 << 10)] {
        let values = Values::from([("memory-limit".to_owned(), value(text))]);
        assert_eq!(Settings::parse(&values).unwrap().limits.memory_bytes, Some(expected), "{text}");
    }
    for text in ["", "MiB", "1x", "-1", "99999999999T"] {
        assert!(Settings::parse(&Values::from([("memory-limit".to_owned(), value(text))])).is_err(), "{text}");
    }
}

fn value(text: &str) -> flags::Value {
    flags::Value { text: text.to_owned(), origin: flags::Origin::Flag }
}

#[test]
fn the_file_is_etcds() {
    let yaml = "\
name: m1
data-dir: /var/lib/etcd
listen-client-urls: https://127.0.0.1:2379,http://127.0.0.2:2379
advertise-client-urls: https://127.0.0.1:2379
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
initial-cluster:
client-transport-security:
  cert-file: /s.crt
  key-file: /s.key
  client-cert-auth: true
peer-transport-security:
  trusted-ca-file: /ca.crt
log-outputs: [stderr]
nonsense: 1
";
    let (values, warnings) = flags::from_yaml(yaml).unwrap();
    assert_eq!(warnings, [Warning("unrecognized key nonsense in the configuration file".to_owned())]);
    let (values, warnings) = flags::without_meaningless(values).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let settings = Settings::parse(&values).unwrap();
    assert_eq!(settings.name, "m1");
    assert_eq!(settings.listen_client.iter().map(|url| url.tls).collect::<Vec<_>>(), [true, false]);
    assert_eq!(settings.client_tls.cert.as_deref(), Some(Path::new("/s.crt")));
    assert!(settings.client_tls.client_cert_auth && !settings.peer_tls.client_cert_auth);
    assert_eq!(settings.peer_tls.ca.as_deref(), Some(Path::new("/ca.crt")));
    assert_eq!(settings.initial_cluster[0].0, "m1", "an empty key is unset");
    for bad in ["- list", "client-transport-security: 1", "name: {a: b}"] {
        assert!(flags::from_yaml(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_flag_is_of_one_kind() {
    use clap::Args;
    // Panics when a name stands twice.
    Arguments::augment_args(Command::new("store")).debug_assert();
}

#[test]
fn a_directory_of_etcd_is_refused() {
    let folder = std::env::temp_dir().join(format!("quorate-etcd-dir-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("member/snap")).unwrap();
    let error = refuse_etcd(&folder).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(error.contains(&*folder.to_string_lossy()) && error.contains("quorate snapshot import"), "{error}");
}
