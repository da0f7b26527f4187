//! The rows of the table: what is measured, and what is to be reached beside etcd.

use anyhow::Result;
use quorate_proto::etcd::RangeRequest;

use super::keys::{Keys, value};
use super::report::Figure;
use super::watch;
use super::work::Work;

/// What etcd's own documentation measures with.
const KEY_BYTES: usize = 8;
const VALUE_BYTES: usize = 256;
const MANY_CLIENTS: usize = 1_000;
const MANY_CONNECTIONS: usize = 100;

/// The keys of the rows that write: as many as a busy cluster has in use.
const KEYS: u64 = 10_000;

/// What a transaction that reads returns.
const MIXED_KEYS: u64 = 1_000;
const MIXED_LIMIT: i64 = 10;

const LEASES: usize = 10_000;

/// 10,000 watchers: of one key, as etcd's own benchmark has them, or of a hundred keys, so
/// that one watcher of each stream hears of a write.
const WATCH_STREAMS: usize = 100;
const WATCHERS_PER_STREAM: usize = 100;
const WATCHED_KEYS: u64 = 100;
const WRITES_TO_ALL_PER_SECOND: f64 = 2.0;
const WRITES_TO_SOME_PER_SECOND: f64 = 50.0;

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) connections: usize,
    pub(crate) clients: usize,
    /// Operations a second; none: as fast as answers come.
    pub(crate) rate: Option<f64>,
    pub(crate) work: Work,
    /// Figures, and what their ratio to etcd's must reach: at least for a rate, at most for
    /// anything else.
    pub(crate) targets: &'static [(Figure, f64)],
}

impl Row {
    fn busy(name: &'static str, work: Work, targets: &'static [(Figure, f64)]) -> Self {
        Self { name, connections: MANY_CONNECTIONS, clients: MANY_CLIENTS, rate: None, work, targets }
    }
}

/// Puts of many clients.
///
/// # Errors
/// As [`rows`].
pub(crate) fn puts(targets: &'static [(Figure, f64)]) -> Result<Row> {
    let work = Work::Put { keys: Keys::new(KEY_BYTES, KEYS, false)?, value: value(VALUE_BYTES)? };
    Ok(Row::busy("put, 1,000 clients", work, targets))
}

/// The rows for clusters of that size.
///
/// # Errors
/// Never, as long as the constants above fit together.
pub(crate) fn rows(members: usize) -> Result<Vec<Row>> {
    let range = |serializable| {
        let request = RangeRequest { serializable, ..RangeRequest::default() };
        Ok::<_, anyhow::Error>(Work::Range { keys: Keys::new(KEY_BYTES, 1, false)?, value_size: VALUE_BYTES, request })
    };
    let mixed = {
        let keys = Keys::new(KEY_BYTES, MIXED_KEYS, false)?;
        let read =
            RangeRequest { key: keys.key(0), range_end: keys.end(), limit: MIXED_LIMIT, ..RangeRequest::default() };
        Work::Mixed { keys, value: value(VALUE_BYTES)?, read, read_part: 0.5 }
    };
    // Each watcher watches one of the keys, in turn.
    let watch = |name, keys: u64, writes: f64| {
        let work = watch::Work {
            keys: Keys::new(KEY_BYTES, keys, true)?,
            value_size: VALUE_BYTES,
            streams: WATCH_STREAMS,
            watchers_per_stream: WATCHERS_PER_STREAM,
        };
        let targets = &[(Figure::P99, 0.3), (Figure::ServerCpu, 0.3)];
        Ok::<_, anyhow::Error>(Row { clients: 10, rate: Some(writes), ..Row::busy(name, Work::Watch(work), targets) })
    };
    let put_targets: &[(Figure, f64)] = match members {
        1 => &[(Figure::Rate, 1.4)],
        _ => &[(Figure::Rate, 1.8), (Figure::ServerCpu, 0.5), (Figure::P99, 0.5)],
    };
    Ok(vec![
        puts(put_targets)?,
        Row { name: "put, 1 client", clients: 1, connections: 1, ..puts(&[(Figure::P50, 0.6), (Figure::P99, 0.6)])? },
        Row::busy("range, linearizable", range(false)?, &[(Figure::Rate, 2.5), (Figure::ServerCpu, 0.3)]),
        Row::busy("range, serializable", range(true)?, &[(Figure::Rate, 2.2), (Figure::ServerCpu, 0.3)]),
        Row::busy("mixed transactions", mixed, &[(Figure::Rate, 4.0)]),
        watch("watch, 10,000 of one key", 1, WRITES_TO_ALL_PER_SECOND)?,
        watch("watch, 10,000 of 100 keys", WATCHED_KEYS, WRITES_TO_SOME_PER_SECOND)?,
        Row::busy("lease keepalives", Work::Lease { leases: LEASES }, &[(Figure::Rate, 3.0)]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_can_be_run_and_has_a_target() {
        for members in [1, 3] {
            let rows = rows(members).unwrap();
            assert!(
                rows.iter().all(|row| !row.targets.is_empty() && row.connections <= row.clients.max(MANY_CONNECTIONS))
            );
            let names: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
            assert_eq!(names.len(), rows.len());
        }
    }
}
