//! What a load cost the servers: their own metrics before and after it, and what the kernel
//! says of the disk under those that the benchmark started.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

use super::target::{Server, Target};
use crate::endpoints::Endpoints;

/// Which of the programs that serve the etcd contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Program {
    Quorate,
    Etcd,
    /// Its metrics cannot be read.
    #[serde(rename = "not known")]
    Unknown,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quorate => "quorate",
            Self::Etcd => "etcd",
            Self::Unknown => "a server that shows no metrics",
        }
    }
}

/// Which program serves at `url`, by the names of its metrics.
pub(crate) async fn program(endpoints: &Endpoints, url: &str) -> Program {
    match endpoints.get_http1(url, "/metrics").await {
        Ok(text) => program_of(&text),
        Err(_) => Program::Unknown,
    }
}

fn program_of(metrics: &str) -> Program {
    let has = |prefix: &str| metrics.lines().any(|line| line.starts_with(prefix));
    match (has("quorate_"), has("etcd_")) {
        (true, _) => Program::Quorate,
        (false, true) => Program::Etcd,
        (false, false) => Program::Unknown,
    }
}

/// One server at one moment; what it does not tell is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Reading {
    cpu_seconds: Option<f64>,
    memory_bytes: Option<f64>,
    syncs: Option<f64>,
}

/// Every server of a cluster at one moment, and the disk under them.
#[derive(Clone, Debug)]
pub(crate) struct Readings {
    servers: Vec<Reading>,
    disk_bytes: Option<f64>,
}

impl Readings {
    pub(crate) async fn take(target: &Target) -> Self {
        let readings = target.servers.iter().map(async |server| {
            target.endpoints.get_http1(&server.url, "/metrics").await.map(|text| reading(&text)).unwrap_or_default()
        });
        let servers = futures::future::join_all(readings).await;
        Self { servers, disk_bytes: target.data_dir.as_deref().and_then(disk_written_bytes) }
    }

    /// What all servers together spent between `self` and `later` on so many operations, and
    /// what they hold then.
    pub(crate) fn until(&self, later: &Self, operations: u64, servers: &[Server]) -> Cost {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let per_operation = |spent: f64| (operations > 0).then(|| spent / operations as f64);
        let spent = |of: fn(&Reading) -> Option<f64>| {
            let differences =
                self.servers.iter().zip(&later.servers).map(|(before, after)| Some(of(after)? - of(before)?));
            // A server that was started anew counts from zero.
            let differences = differences.map(|difference| difference.filter(|spent| *spent >= 0.0));
            differences.sum::<Option<f64>>().filter(|_| !servers.is_empty()).and_then(per_operation)
        };
        let leader = servers.iter().position(|server| server.leader);
        Cost {
            cpu_micros: spent(|reading| reading.cpu_seconds).map(|seconds| seconds * 1e6),
            disk_bytes: self.disk_bytes.zip(later.disk_bytes).and_then(|(before, after)| per_operation(after - before)),
            syncs: spent(|reading| reading.syncs),
            memory_bytes: later
                .servers
                .iter()
                .map(|reading| reading.memory_bytes)
                .max_by(|a, b| a.unwrap_or_default().total_cmp(&b.unwrap_or_default()))
                .flatten(),
            leader_memory_bytes: leader.and_then(|leader| later.servers.get(leader)?.memory_bytes),
        }
    }
}

/// Of all servers together and for one operation, except where it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) cpu_micros: Option<f64>,
    /// What the disk wrote meanwhile, also for others: the kernel's count by process takes the
    /// whole of a page in memory, up to 1 MiB, for written when a byte of it is.
    pub(crate) disk_bytes: Option<f64>,
    pub(crate) syncs: Option<f64>,
    /// The most that a server holds after the load.
    pub(crate) memory_bytes: Option<f64>,
    pub(crate) leader_memory_bytes: Option<f64>,
}

/// What the disk under `path` has written since the machine started; nothing where that is no
/// disk, or several.
fn disk_written_bytes(path: &Path) -> Option<f64> {
    /// Of the kernel's statistics, whatever the disk's own are.
    const SECTOR_BYTES: f64 = 512.0;
    let device = std::fs::metadata(path).ok()?.dev();
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device))).ok()?;
    // Kernel documentation, block/stat: sectors written are the seventh field.
    stat.split_whitespace().nth(6)?.parse::<f64>().ok().map(|sectors| sectors * SECTOR_BYTES)
}

fn reading(metrics: &str) -> Reading {
    let value = |name: &str| number(metrics, &format!("{name} "));
    Reading {
        cpu_seconds: value("process_cpu_seconds_total"),
        memory_bytes: value("process_resident_memory_bytes"),
        syncs: value("etcd_disk_wal_fsync_duration_seconds_count"),
    }
}

/// The number in the line that begins so.
pub(crate) fn number(text: &str, prefix: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(prefix))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP process_cpu_seconds_total Total.\nprocess_cpu_seconds_total 0.5\n\
        process_resident_memory_bytes 2.5104384e+07\netcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 4\n\
        etcd_disk_wal_fsync_duration_seconds_count 5\n";

    fn server(leader: bool) -> Server {
        let (name, version, url) = (String::new(), String::new(), String::new());
        Server { name, program: Program::Etcd, version, leader, url }
    }

    #[test]
    fn metrics_are_read_by_their_names() {
        let expected = Reading { cpu_seconds: Some(0.5), memory_bytes: Some(25_104_384.0), syncs: Some(5.0) };
        assert_eq!(reading(METRICS), expected);
        assert_eq!(reading(""), Reading::default());
        assert_eq!(program_of(METRICS), Program::Etcd);
        assert_eq!(program_of("quorate_store_x 1\netcd_y 2"), Program::Quorate);
        assert_eq!(program_of("go_threads 1"), Program::Unknown);
    }

    #[test]
    fn costs_are_of_all_servers_and_unknown_if_one_does_not_tell() {
        let at = |cpu: f64, memory: f64| Reading {
            cpu_seconds: Some(cpu),
            memory_bytes: Some(memory),
            syncs: Some(cpu * 100.0),
        };
        let readings = |servers| Readings { servers, disk_bytes: None };
        let servers = [server(false), server(true)];
        let (before, after) = (readings(vec![at(1.0, 1.0), at(2.0, 1.0)]), readings(vec![at(1.5, 9.0), at(2.5, 7.0)]));
        let cost = before.until(&after, 1_000, &servers);
        assert_eq!((cost.cpu_micros, cost.syncs, cost.disk_bytes), (Some(1_000.0), Some(0.1), None));
        assert_eq!((cost.memory_bytes, cost.leader_memory_bytes), (Some(9.0), Some(7.0)));

        let silent = readings(vec![at(1.5, 9.0), Reading::default()]);
        assert_eq!(before.until(&silent, 1_000, &servers).cpu_micros, None);
        assert_eq!(before.until(&after, 0, &servers).cpu_micros, None);
        let started_anew = readings(vec![at(1.5, 9.0), at(0.1, 7.0)]);
        assert_eq!(before.until(&started_anew, 1_000, &servers).cpu_micros, None);
        assert_eq!(readings(Vec::new()).until(&readings(Vec::new()), 1, &[]).cpu_micros, None);
    }
}
