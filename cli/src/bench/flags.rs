//! The flags of the workloads, as etcd's `benchmark` has them.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_proto::etcd::RangeRequest;
use serde::Serialize;
use serde_json::{Map, Value};

use super::keys::{Keys, value};
use super::pace::Plan;
use super::target::check_clients;
use super::watch::{self, STAMP_BYTES};
use super::work::Work;
use crate::endpoints::Endpoints;
use crate::output::Format;

/// Bounds of what is asked for.
const MOST_SECONDS: u64 = 7 * 86_400;
const MOST_RATE: f64 = 10_000_000.0;
const MOST_PAIRS: usize = 100;
const MOST_WATCHERS: usize = 1_000_000;
const MOST_TXN_PUTS: u64 = 100_000;

/// How many operations there are when nothing is said, as with etcd's benchmark.
const DEFAULT_TOTAL: u64 = 10_000;

/// An hour at a rate that any store keeps.
const SOAK_SECONDS: u64 = 3_600;
const SOAK_RATE: f64 = 100.0;

/// What every workload has: where to, how much, and what to do with the figures.
#[derive(clap::Args, Debug, Serialize)]
pub(crate) struct Load {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) endpoints: Endpoints,
    /// Compare with the cluster there, in turns: A B A B.
    #[arg(long, value_delimiter = ',', value_name = "URL,...")]
    #[serde(skip)]
    pub(crate) versus_endpoints: Vec<String>,
    /// How many turns each of the two clusters has.
    #[arg(long, default_value_t = 5, value_name = "N", requires = "versus_endpoints")]
    pub(crate) pairs: usize,
    /// Connections.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) conns: usize,
    /// Clients, which share the connections; each has one operation under way.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) clients: usize,
    /// How many operations [default: 10000, or as many as fit in --seconds].
    #[arg(long, value_name = "N")]
    pub(crate) total: Option<u64>,
    /// For how many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub(crate) seconds: Option<u64>,
    /// Operations a second, begun on time whether or not the servers keep up; latency is
    /// measured from when an operation was due [default: as fast as answers come].
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Look for the highest rate at which 99 % of all operations take no longer, such as 10ms;
    /// --seconds is for each rate that is tried, and --clients bound what is under way.
    #[arg(long, value_name = "P99", conflicts_with_all = ["rate", "total", "versus_endpoints", "etcd_compat"])]
    pub(crate) find_rate: Option<Promise>,
    /// Send everything to the leader.
    #[arg(long)]
    pub(crate) target_leader: bool,
    /// Print the results as etcd's benchmark prints them.
    #[arg(long, conflicts_with_all = ["output", "versus_endpoints"])]
    #[serde(skip)]
    pub(crate) etcd_compat: bool,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    #[serde(skip)]
    pub(crate) output: Format,
    /// Also write the report there, as JSON.
    #[arg(long, value_name = "FILE.json")]
    #[serde(skip)]
    pub(crate) out: Option<PathBuf>,
    /// Also write the report there, as a page with plots that needs no other file.
    #[arg(long, value_name = "FILE.html")]
    #[serde(skip)]
    pub(crate) html: Option<PathBuf>,
}

/// A time that is given as 10ms, 0.5s or 800us.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Promise(pub(crate) Duration);

impl FromStr for Promise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale = match unit {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            _ => return Err(format!("{text:?} is not a time such as 10ms, 0.5s or 800us")),
        };
        match number.parse::<f64>() {
            Ok(number) if number > 0.0 && number * scale <= 60.0 => Ok(Self(Duration::from_secs_f64(number * scale))),
            _ => Err(format!("{text:?} is not a time up to 60s")),
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= MOST_RATE => Ok(rate),
        _ => Err(format!("{text:?} is not a number of operations a second, up to {MOST_RATE}")),
    }
}

impl Load {
    /// # Errors
    /// With the flag whose value makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        check_clients(self.clients)?;
        ensure!((1..=MOST_PAIRS).contains(&self.pairs), "--pairs {} is not between 1 and {MOST_PAIRS}", self.pairs);
        ensure!(self.total != Some(0), "--total 0 is no load");
        Ok(())
    }

    pub(crate) fn plan(&self) -> Plan {
        let total = self.total.or(self.seconds.is_none().then_some(DEFAULT_TOTAL));
        Plan { total, duration: self.seconds.map(Duration::from_secs), rate: self.rate }
    }
}

#[derive(clap::Args, Debug, Serialize)]
pub(crate) struct KeyFlags {
    /// Bytes of a key. Keys are b0…0, b0…1 and so on, and stay in the store.
    #[arg(long, default_value_t = 8, value_name = "BYTES")]
    key_size: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 8, value_name = "BYTES")]
    val_size: usize,
    /// Take the keys in their order [default: at random].
    #[arg(long)]
    sequential_keys: bool,
    /// How many keys there are.
    #[arg(long, default_value_t = 1, value_name = "N")]
    key_space_size: u64,
}

impl KeyFlags {
    fn keys(&self) -> Result<Keys> {
        Keys::new(self.key_size, self.key_space_size, self.sequential_keys)
    }
}

#[derive(clap::Args, Debug, Serialize)]
pub(crate) struct ReadFlags {
    /// l: linearizable, what a quorum confirms; s: serializable, what the asked member has.
    #[arg(long, default_value = "l", value_name = "l|s", value_parser = ["l", "s"])]
    consistency: String,
    /// Return so many keys at most [default: no limit].
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    limit: i64,
    /// Return no values.
    #[arg(long)]
    keys_only: bool,
    /// Return only how many keys there are.
    #[arg(long)]
    count_only: bool,
}

impl ReadFlags {
    fn request(&self) -> RangeRequest {
        RangeRequest {
            serializable: self.consistency == "s",
            limit: self.limit,
            keys_only: self.keys_only,
            count_only: self.count_only,
            ..RangeRequest::default()
        }
    }

    /// What etcd's benchmark says first.
    fn heading(&self) -> &'static str {
        if self.consistency == "s" { "bench with serializable range\n" } else { "bench with linearizable range\n" }
    }
}

/// A workload and how much of it.
#[derive(clap::Args, Debug, Serialize)]
pub(crate) struct Loaded<W: clap::Args> {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) workload: W,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) load: Load,
}

impl<W: Workload> Loaded<W> {
    pub(crate) fn settings(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(settings)) => settings,
            _ => Map::new(),
        }
    }
}

/// A workload's own flags: what they mean.
pub(crate) trait Workload: clap::Args + Serialize {
    const NAME: &'static str;

    /// # Errors
    /// With the flag whose value makes no sense.
    fn work(&self) -> Result<Work>;

    /// How many operations there are, how fast, for how long.
    fn plan(&self, load: &Load) -> Plan {
        load.plan()
    }

    /// What etcd's benchmark says before its figures.
    fn heading(&self) -> &'static str {
        ""
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench put --endpoints 127.0.0.1:2379 --conns 100 --clients 1000 --val-size 256 --total 100000
  quorate bench put --clients 100 --conns 10 --rate 5000 --seconds 30 --out put.json
  quorate bench put --seconds 10 --endpoints 192.0.2.1:2379 --versus-endpoints 192.0.2.2:2379")]
pub(crate) struct Put {
    #[command(flatten)]
    #[serde(flatten)]
    keys: KeyFlags,
}

impl Workload for Put {
    const NAME: &'static str = "put";

    fn work(&self) -> Result<Work> {
        Ok(Work::Put { keys: self.keys.keys()?, value: value(self.keys.val_size)? })
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench range --conns 100 --clients 1000 --total 100000 --consistency s
  quorate bench range /registry/pods/ /registry/pods0 --limit 500 --keys-only")]
pub(crate) struct Range {
    /// Read this key, or from it on if an end is given [default: the keys of the key space,
    /// one at a time; those that are missing are written first].
    #[arg(value_name = "KEY")]
    first: Option<String>,
    #[arg(value_name = "END")]
    range_end: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    keys: KeyFlags,
    #[command(flatten)]
    #[serde(flatten)]
    read: ReadFlags,
}

impl Workload for Range {
    const NAME: &'static str = "range";

    fn work(&self) -> Result<Work> {
        let request = self.read.request();
        Ok(match &self.first {
            Some(first) => Work::RangeOf(RangeRequest {
                key: first.clone().into(),
                range_end: self.range_end.clone().unwrap_or_default().into(),
                ..request
            }),
            None => Work::Range { keys: self.keys.keys()?, value_size: self.keys.val_size, request },
        })
    }

    fn heading(&self) -> &'static str {
        self.read.heading()
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench txn --conns 10 --clients 100 --txn-ops 4 --key-space-size 1000")]
pub(crate) struct Txn {
    /// How many keys a transaction writes.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_TXN_PUTS))]
    txn_ops: u64,
    #[command(flatten)]
    #[serde(flatten)]
    keys: KeyFlags,
}

impl Workload for Txn {
    const NAME: &'static str = "txn";

    fn work(&self) -> Result<Work> {
        let (puts, keys) = (self.txn_ops, self.keys.key_space_size);
        ensure!(puts <= keys, "a transaction writes no key twice: --txn-ops {puts} takes --key-space-size {puts}");
        Ok(Work::Txn { keys: self.keys.keys()?, value: value(self.keys.val_size)?, puts })
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench mixed --conns 100 --clients 1000 --rw-ratio 4 --key-space-size 1000 --limit 10")]
pub(crate) struct Mixed {
    /// How many transactions read for each that writes.
    #[arg(long, default_value_t = 1.0, value_name = "R", value_parser = ratio)]
    rw_ratio: f64,
    #[command(flatten)]
    #[serde(flatten)]
    keys: KeyFlags,
    #[command(flatten)]
    #[serde(flatten)]
    read: ReadFlags,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio >= 0.0 && ratio.is_finite() => Ok(ratio),
        _ => Err(format!("{text:?} is not a number of reads for each write")),
    }
}

fn mixed(keys: &KeyFlags, read: &ReadFlags, rw_ratio: f64) -> Result<Work> {
    let value = value(keys.val_size)?;
    let keys = keys.keys()?;
    let read = RangeRequest { key: keys.key(0), range_end: keys.end(), ..read.request() };
    Ok(Work::Mixed { keys, value, read, read_part: rw_ratio / (1.0 + rw_ratio) })
}

impl Workload for Mixed {
    const NAME: &'static str = "mixed";

    fn work(&self) -> Result<Work> {
        mixed(&self.keys, &self.read, self.rw_ratio)
    }

    fn heading(&self) -> &'static str {
        self.read.heading()
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench list --clients 10 --conns 10 --key-space-size 100000 --val-size 1024 --total 100
An operation is a whole list; what it holds is counted and not kept.")]
pub(crate) struct List {
    #[command(flatten)]
    #[serde(flatten)]
    keys: KeyFlags,
    #[command(flatten)]
    #[serde(flatten)]
    read: ReadFlags,
}

impl Workload for List {
    const NAME: &'static str = "list";

    fn work(&self) -> Result<Work> {
        let keys = self.keys.keys()?;
        let request = RangeRequest { key: keys.key(0), range_end: keys.end(), ..self.read.request() };
        Ok(Work::List { keys, value_size: self.keys.val_size, request })
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench lease --leases 10000 --conns 100 --clients 1000 --seconds 10
An operation is one keepalive; each client has a stream and leases of its own.")]
pub(crate) struct Lease {
    /// How many leases there are; each client has one at least.
    #[arg(long, default_value_t = 1, value_name = "N")]
    leases: usize,
}

impl Workload for Lease {
    const NAME: &'static str = "lease";

    fn work(&self) -> Result<Work> {
        ensure!(self.leases <= MOST_WATCHERS, "--leases {} is more than {MOST_WATCHERS}", self.leases);
        Ok(Work::Lease { leases: self.leases })
    }
}

#[derive(clap::Args, Debug, Serialize)]
struct WatchFlags {
    /// Streams, over which the connections are shared.
    #[arg(long, default_value_t = 10, value_name = "N")]
    streams: usize,
    /// Watchers in each stream.
    #[arg(long, default_value_t = 10, value_name = "N")]
    watchers_per_stream: usize,
    /// Bytes of a key.
    #[arg(long, default_value_t = 32, value_name = "BYTES")]
    key_size: usize,
    /// Bytes of a value; 8 hold the time at which it was written.
    #[arg(long, default_value_t = 32, value_name = "BYTES")]
    val_size: usize,
}

impl WatchFlags {
    fn work(&self, keys: u64) -> Result<Work> {
        let &Self { streams, watchers_per_stream, key_size, val_size } = self;
        let watchers = streams.checked_mul(watchers_per_stream).filter(|all| (1..=MOST_WATCHERS).contains(all));
        ensure!(
            watchers.is_some(),
            "--streams {streams} with --watchers-per-stream {watchers_per_stream} are not between 1 and \
             {MOST_WATCHERS} watchers"
        );
        ensure!(val_size >= STAMP_BYTES, "--val-size {val_size} has no room for the time, which takes {STAMP_BYTES}");
        value(val_size)?;
        let keys = Keys::new(key_size, keys, true)?;
        Ok(Work::Watch(watch::Work { keys, value_size: val_size, streams, watchers_per_stream }))
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench watch --streams 100 --watchers-per-stream 100 --conns 100 --key-space-size 1000 --seconds 10
An operation is one event delivered; its latency is from when its write was due.")]
pub(crate) struct Watch {
    #[command(flatten)]
    #[serde(flatten)]
    watch: WatchFlags,
    /// Keys that are watched; watcher N watches key N, modulo this.
    #[arg(long, default_value_t = 1, value_name = "N")]
    key_space_size: u64,
}

impl Workload for Watch {
    const NAME: &'static str = "watch";

    fn work(&self) -> Result<Work> {
        self.watch.work(self.key_space_size)
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench watch-latency --streams 10 --watchers-per-stream 10 --put-rate 100 --total 1000
Every watcher watches the one key; latency is from when its write was due.")]
pub(crate) struct WatchLatency {
    #[command(flatten)]
    #[serde(flatten)]
    watch: WatchFlags,
    /// Writes a second.
    #[arg(long, default_value_t = 100.0, value_name = "N", value_parser = rate, conflicts_with = "rate")]
    put_rate: f64,
}

impl Workload for WatchLatency {
    const NAME: &'static str = "watch-latency";

    fn work(&self) -> Result<Work> {
        self.watch.work(1)
    }

    fn plan(&self, load: &Load) -> Plan {
        let plan = load.plan();
        Plan { rate: plan.rate.or(Some(self.put_rate)), ..plan }
    }
}

#[derive(clap::Args, Debug, Serialize)]
#[command(after_help = "Examples:
  quorate bench soak --clients 50 --conns 10 --rate 500 --seconds 3600 --html soak.html
Exit codes: 0 the end is as fast as the beginning; 2 it is slower, or operations failed.")]
pub(crate) struct Soak {
    /// How many transactions read for each that writes.
    #[arg(long, default_value_t = 4.0, value_name = "R", value_parser = ratio)]
    rw_ratio: f64,
    #[command(flatten)]
    #[serde(flatten)]
    keys: KeyFlags,
    #[command(flatten)]
    #[serde(flatten)]
    read: ReadFlags,
}

impl Workload for Soak {
    const NAME: &'static str = "soak";

    fn work(&self) -> Result<Work> {
        mixed(&self.keys, &self.read, self.rw_ratio)
    }

    fn plan(&self, load: &Load) -> Plan {
        let seconds = load.seconds.or(load.total.is_none().then_some(SOAK_SECONDS));
        Plan { total: load.total, duration: seconds.map(Duration::from_secs), rate: load.rate.or(Some(SOAK_RATE)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_times_with_a_unit() {
        let parsed = |text: &str| text.parse::<Promise>().ok().map(|promise| promise.0);
        for (text, micros) in [("10ms", 10_000), ("0.5s", 500_000), ("800us", 800), ("1.5ms", 1_500)] {
            assert_eq!(parsed(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for bad in ["", "10", "ms", "0ms", "-1ms", "61s", "1e3ms", "1m", "..ms"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
