//! When a write is slowed, when it is refused, and when there is room again.

use std::time::Duration;

use quorate_proto::etcd::TxnRequest;
use quorate_proto::etcd::request_op::Request;

use crate::command::Operation;

/// What etcd reckons a key to cost beside its bytes.
const KEY_OVERHEAD_BYTES: u64 = 256;
/// What etcd reckons a lease to cost.
const LEASE_BYTES: u64 = 64;

/// The longest that a write of [`SMALL_BYTES`] waits: with a hundred writers still a thousand
/// writes a second, which compaction keeps up with. Larger ones wait in proportion.
const MAX_DELAY: Duration = Duration::from_millis(100);
const SMALL_BYTES: u64 = 4 << 10;

/// The longest that any write waits: clients give up after 7 seconds.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Writes are slowed from this part of the quota on, and refused past all of it.
const SLOW_FROM_PERCENT: u64 = 90;
/// An alarm clears itself below this part of the quota: not at the quota itself, or every
/// write would raise and clear it.
const ROOM_PERCENT: u64 = 95;

/// Files of level 0: the database makes its writers wait from 20 on, all of them at once,
/// and stops them at 36.
const SLOW_FROM_FILES: u64 = 12;
const SLOWEST_AT_FILES: u64 = 36;

/// Bytes that wait for compaction.
const SLOW_FROM_BACKLOG_BYTES: u64 = 1 << 30;
const SLOWEST_AT_BACKLOG_BYTES: u64 = 8 << 30;

/// What the database says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) used_bytes: u64,
    /// 0 is none.
    pub(crate) quota_bytes: u64,
    pub(crate) level0_files: u64,
    pub(crate) backlog_bytes: u64,
}

/// What an operation may add, as etcd reckons; 0 when it cannot grow the data.
pub(crate) fn cost(operation: &Operation) -> u64 {
    match operation {
        Operation::Put(request) => put_cost(request.key.len(), request.value.len()),
        Operation::Txn(request) => txn_cost(request),
        Operation::LeaseGrant { .. } => LEASE_BYTES,
        _ => 0,
    }
}

fn put_cost(key: usize, value: usize) -> u64 {
    KEY_OVERHEAD_BYTES + key as u64 + value as u64
}

fn txn_cost(request: &TxnRequest) -> u64 {
    let branch = |operations: &[quorate_proto::etcd::RequestOp]| {
        let costs = operations.iter().map(|operation| match &operation.request {
            Some(Request::RequestPut(request)) => put_cost(request.key.len(), request.value.len()),
            Some(Request::RequestTxn(request)) => txn_cost(request),
            _ => 0,
        });
        costs.sum::<u64>()
    };
    branch(&request.success).max(branch(&request.failure))
}

/// Whether something of this cost may still be written.
pub(crate) fn fits(used_bytes: u64, cost: u64, quota_bytes: u64) -> bool {
    quota_bytes == 0 || cost == 0 || used_bytes.saturating_add(cost) < quota_bytes
}

/// Whether an alarm for lack of space may be cleared.
pub(crate) fn has_room(used_bytes: u64, quota_bytes: u64) -> bool {
    quota_bytes == 0 || used_bytes < quota_bytes / 100 * ROOM_PERCENT
}

/// How long a write of `cost` bytes waits where small ones wait for `delay`.
pub(crate) fn delay_of(cost: u64, delay: Duration) -> Duration {
    let times = u32::try_from(cost.div_ceil(SMALL_BYTES)).unwrap_or(u32::MAX);
    delay.saturating_mul(times.max(1)).min(LONGEST_DELAY)
}

/// How long a small write waits before it is proposed.
pub(crate) fn delay(load: &Load) -> Duration {
    let slow_from = load.quota_bytes / 100 * SLOW_FROM_PERCENT;
    let space = match load.quota_bytes {
        0 => 0,
        quota => pressure(load.used_bytes, slow_from, quota),
    };
    let files = pressure(load.level0_files, SLOW_FROM_FILES, SLOWEST_AT_FILES);
    let backlog = pressure(load.backlog_bytes, SLOW_FROM_BACKLOG_BYTES, SLOWEST_AT_BACKLOG_BYTES);
    // Squared: hardly felt at first.
    let worst = u32::try_from(space.max(files).max(backlog)).unwrap_or(FULL as u32);
    MAX_DELAY * worst * worst / (FULL * FULL) as u32
}

/// Full pressure.
const FULL: u64 = 100;

/// How far `value` is on its way, up to `FULL`.
fn pressure(value: u64, from: u64, to: u64) -> u64 {
    let way = to.saturating_sub(from).max(1);
    let gone = value.saturating_sub(from).min(way);
    u64::try_from(u128::from(gone) * u128::from(FULL) / u128::from(way)).unwrap_or(FULL)
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcd::{DeleteRangeRequest, PutRequest, RequestOp};

    use super::*;

    fn put(value: usize) -> PutRequest {
        PutRequest { key: "k".into(), value: vec![0; value].into(), ..Default::default() }
    }

    #[test]
    fn only_what_grows_the_data_costs() {
        let op = |request| RequestOp { request: Some(request) };
        let nested = TxnRequest { failure: vec![op(Request::RequestPut(put(9)))], ..Default::default() };
        let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
        let txn = TxnRequest {
            success: vec![op(Request::RequestPut(put(1))), op(Request::RequestTxn(nested))],
            failure: vec![op(Request::RequestPut(put(2))), op(Request::RequestDeleteRange(delete.clone()))],
            ..Default::default()
        };
        let only_deletes =
            TxnRequest { success: vec![op(Request::RequestDeleteRange(delete.clone()))], ..Default::default() };
        let check = |operation, expected| assert_eq!(cost(&operation), expected);
        check(Operation::Put(put(10)), 256 + 1 + 10);
        check(Operation::Txn(txn), 2 * 257 + 1 + 9);
        check(Operation::Txn(only_deletes), 0);
        check(Operation::DeleteRange(delete), 0);
        check(Operation::LeaseGrant { id: 1, ttl: 1 }, 64);
        check(Operation::LeaseRevoke { id: 1 }, 0);
        check(Operation::Compact(Default::default()), 0);
    }

    #[test]
    fn the_quota_is_an_end_and_room_comes_before_it() {
        assert!(fits(u64::MAX, u64::MAX, 0) && has_room(u64::MAX, 0), "no quota");
        assert!(fits(899, 100, 1000) && !fits(900, 100, 1000) && !fits(u64::MAX, 1, 1000));
        assert!(fits(5000, 0, 1000), "what costs nothing goes on");
        assert!(has_room(940, 1000) && !has_room(950, 1000));
    }

    #[test]
    fn writes_are_slowed_before_they_are_refused() {
        let check = |load: Load, expected: u64| assert_eq!(delay(&load), Duration::from_millis(expected), "{load:?}");
        let full = Load { quota_bytes: 1000, ..Load::default() };
        check(Load::default(), 0);
        check(Load { used_bytes: 1 << 60, ..Load::default() }, 0);
        check(Load { used_bytes: 900, ..full }, 0);
        check(Load { used_bytes: 950, ..full }, 25);
        check(Load { used_bytes: 1000, ..full }, 100);
        check(Load { used_bytes: u64::MAX, ..full }, 100);
        check(Load { level0_files: 12, ..Load::default() }, 0);
        check(Load { level0_files: 24, ..Load::default() }, 25);
        check(Load { backlog_bytes: 1 << 30, ..Load::default() }, 0);
        check(Load { backlog_bytes: u64::MAX, ..full }, 100);
        let check = |cost: u64, delay: u64, expected: u64| {
            let found = delay_of(cost, Duration::from_millis(delay));
            assert_eq!(found, Duration::from_millis(expected), "{cost} {delay}");
        };
        check(300, 25, 25);
        check(10_256, 25, 75);
        check(1 << 20, 0, 0);
        check(1 << 20, 100, 2_000);
        check(u64::MAX, 100, 2_000);
        let mut before = Duration::ZERO;
        for used_bytes in 0..1100 {
            let now = delay(&Load { used_bytes, ..full });
            assert!(now >= before);
            before = now;
        }
    }
}
