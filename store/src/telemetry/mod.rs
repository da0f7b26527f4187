//! What is said of the metrics: their meaning, and the buckets of the histograms, under
//! the names that etcd's dashboards and alert rules use.
//!
//! The numbers themselves are recorded where they arise. Whoever installs the recorder of
//! a process gives it [`buckets`] and calls [`describe`] once.

mod process;

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};

pub(crate) use self::process::measure_process;
pub use self::process::process_cpu_seconds;
use crate::command::CommandResult;
use crate::mvcc::Change;

/// A histogram: its name, its first bucket, how many buckets, each twice the one before;
/// and what it measures.
struct Histogram {
    name: &'static str,
    first: f64,
    count: i32,
    help: &'static str,
}

/// The buckets are etcd's.
const HISTOGRAMS: &[Histogram] = &[
    Histogram {
        name: "etcd_disk_wal_fsync_duration_seconds",
        first: 0.001,
        count: 14,
        help: "How long a sync of the log took.",
    },
    Histogram {
        name: "etcd_disk_backend_commit_duration_seconds",
        first: 0.001,
        count: 14,
        help: "How long it took to write a batch of applied entries to the state machine.",
    },
    Histogram {
        name: "etcd_network_peer_round_trip_time_seconds",
        first: 0.0001,
        count: 16,
        help: "How long a peer took to answer a heartbeat.",
    },
    Histogram {
        name: "etcd_debugging_lease_ttl_total",
        first: 1.0,
        count: 24,
        help: "The seconds for which leases were granted.",
    },
];

/// Counters without labels: they are there from the start, at zero.
const COUNTERS: &[(&str, &str)] = &[
    ("etcd_server_leader_changes_seen_total", "How often another leader was seen."),
    ("etcd_server_proposals_failed_total", "Writes whose outcome is unknown."),
    ("etcd_server_read_indexes_failed_total", "Linearizable reads that no quorum confirmed."),
    ("etcd_server_health_success", "Health checks that succeeded."),
    ("etcd_server_health_failures", "Health checks that failed."),
    ("etcd_network_client_grpc_received_bytes_total", "Bytes received from gRPC clients."),
    ("etcd_network_client_grpc_sent_bytes_total", "Bytes sent to gRPC clients."),
    ("etcd_mvcc_put_total", "Puts that this member applied."),
    ("etcd_mvcc_delete_total", "Deletions that this member applied."),
    ("etcd_mvcc_range_total", "Ranges that this member read."),
    ("etcd_mvcc_txn_total", "Transactions that this member applied or read."),
    ("etcd_debugging_lease_granted_total", "Leases granted."),
    ("etcd_debugging_lease_revoked_total", "Leases revoked."),
    ("etcd_debugging_lease_renewed_total", "Leases renewed on this leader."),
    ("etcd_debugging_server_lease_expired_total", "Leases that this leader ended because they ran out."),
    ("quorate_store_auto_compactions_total", "Compactions that were made on schedule."),
    ("quorate_store_writes_slowed_total", "Writes that waited because space runs out."),
    ("quorate_store_corrupt_members_total", "Members found to differ from the majority."),
];

/// Counters that are there once what their labels name is.
const LABELLED_COUNTERS: &[(&str, &str)] = &[
    ("etcd_server_healthchecks_total", "Checks of /livez and /readyz, by outcome."),
    ("etcd_network_peer_received_bytes_total", "Bytes received from a peer."),
    ("etcd_network_peer_sent_bytes_total", "Bytes sent to a peer."),
    ("grpc_server_started_total", "RPCs begun on the server."),
    ("grpc_server_handled_total", "RPCs completed on the server, by outcome."),
];

const GAUGES: &[(&str, &str)] = &[
    ("etcd_server_has_leader", "1 while this member knows a leader."),
    ("etcd_server_is_leader", "1 while this member leads."),
    ("etcd_server_is_learner", "1 while this member is a learner."),
    ("etcd_server_id", "The member's id as a label."),
    ("etcd_server_version", "The version of the contract as a label."),
    ("etcd_cluster_version", "The version of the cluster as a label."),
    ("etcd_server_proposals_committed_total", "The last entry that a quorum holds."),
    ("etcd_server_proposals_applied_total", "The last entry that was applied."),
    ("etcd_server_proposals_pending", "Writes that wait for their outcome."),
    ("etcd_server_healthcheck", "1 if the check of /livez or /readyz last succeeded."),
    ("etcd_mvcc_db_total_size_in_bytes", "What the state machine takes on disk."),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "What of it holds data that is in use."),
    ("etcd_debugging_mvcc_db_total_size_in_bytes", "The former name of etcd_mvcc_db_total_size_in_bytes."),
    ("etcd_server_quota_backend_bytes", "The quota of the data, if there is one."),
    ("quorate_store_wal_fsync_seconds", "How long syncs of the log took in the last minute."),
    ("etcd_debugging_mvcc_current_revision", "The store's revision."),
    ("etcd_debugging_mvcc_compact_revision", "The revision before which history is gone."),
    ("etcd_debugging_mvcc_watch_stream_total", "Streams of watches that are open."),
    ("etcd_debugging_mvcc_watcher_total", "Watches."),
    ("process_cpu_seconds_total", "CPU time spent, user and system."),
    ("process_resident_memory_bytes", "Memory that is resident."),
    ("process_virtual_memory_bytes", "Memory that is mapped."),
    ("process_open_fds", "Open file descriptors."),
    ("process_max_fds", "The most file descriptors that may be open."),
    ("process_start_time_seconds", "When the process started, since the epoch."),
];

/// The histograms of the store and the upper ends of their buckets.
pub fn buckets() -> impl Iterator<Item = (&'static str, Vec<f64>)> {
    HISTOGRAMS.iter().map(|histogram| {
        let ends = (0..histogram.count).map(|power| histogram.first * 2_f64.powi(power));
        (histogram.name, ends.collect())
    })
}

/// Tells the recorder of this process what the store's metrics mean.
pub fn describe() {
    for (name, help) in COUNTERS.iter().chain(LABELLED_COUNTERS) {
        describe_counter!(*name, Unit::Count, *help);
    }
    for (name, _) in COUNTERS {
        counter!(*name).increment(0);
    }
    for (name, help) in GAUGES {
        describe_gauge!(*name, *help);
    }
    for histogram in HISTOGRAMS {
        describe_histogram!(histogram.name, histogram.help);
    }
}

/// Counts what a batch of entries did.
pub(crate) fn applied(results: &[CommandResult], changes: &[Change]) {
    let deletions = changes.iter().filter(|change| change.row.tombstone).count() as u64;
    for (name, count) in [
        ("etcd_mvcc_put_total", changes.len() as u64 - deletions),
        ("etcd_mvcc_delete_total", deletions),
        ("etcd_mvcc_txn_total", number_of(results, |result| matches!(result, CommandResult::Txn(_)))),
        (
            "etcd_debugging_lease_granted_total",
            number_of(results, |result| matches!(result, CommandResult::LeaseGrant { .. })),
        ),
        (
            "etcd_debugging_lease_revoked_total",
            number_of(results, |result| matches!(result, CommandResult::LeaseRevoke { .. })),
        ),
    ] {
        if count > 0 {
            counter!(name).increment(count);
        }
    }
    for result in results {
        if let CommandResult::LeaseGrant { ttl, .. } = result {
            #[expect(clippy::cast_precision_loss, reason = "histograms are of floats")]
            histogram!("etcd_debugging_lease_ttl_total").record(*ttl as f64);
        }
    }
}

fn number_of(results: &[CommandResult], wanted: impl Fn(&CommandResult) -> bool) -> u64 {
    results.iter().filter(|result| wanted(result)).count() as u64
}

/// What is noted of each message to one peer: looked up once.
pub(crate) struct PeerMetrics {
    /// Bytes sent.
    pub(crate) sent: Counter,
    /// Seconds until an answer came.
    pub(crate) round_trip: metrics::Histogram,
}

impl PeerMetrics {
    pub(crate) fn new(peer: u64) -> Self {
        let to = format!("{peer:x}");
        Self {
            sent: counter!("etcd_network_peer_sent_bytes_total", "To" => to.clone()),
            round_trip: histogram!("etcd_network_peer_round_trip_time_seconds", "To" => to),
        }
    }
}

/// The bytes received from a peer.
pub(crate) fn received(peer: u64) -> Counter {
    counter!("etcd_network_peer_received_bytes_total", "From" => format!("{peer:x}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The text of every source file below a folder.
    fn sources(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let read = |path: std::path::PathBuf| match path.is_dir() {
            true => sources(&path),
            false => std::fs::read_to_string(path).unwrap(),
        };
        entries.map(read).collect()
    }

    #[test]
    fn what_is_described_is_recorded() {
        let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        let tables = [COUNTERS, LABELLED_COUNTERS, GAUGES].concat();
        let histograms = HISTOGRAMS.iter().map(|histogram| histogram.name);
        for name in tables.iter().map(|(name, _)| *name).chain(histograms) {
            let count = sources.matches(&format!("\"{name}\"")).count();
            // Once where it is described.
            assert!(count > 1, "{name} is described and never recorded");
        }
    }

    #[test]
    fn buckets_are_etcds() {
        let ends = |name: &str| buckets().find(|(known, _)| *known == name).unwrap().1;
        let sync = ends("etcd_disk_wal_fsync_duration_seconds");
        assert_eq!((sync.first(), sync.last(), sync.len()), (Some(&0.001), Some(&8.192), 14));
        let trip = ends("etcd_network_peer_round_trip_time_seconds");
        assert_eq!((trip.first(), trip.last()), (Some(&0.0001), Some(&3.2768)));
        assert_eq!(ends("etcd_debugging_lease_ttl_total").last(), Some(&8_388_608.0));
    }
}
