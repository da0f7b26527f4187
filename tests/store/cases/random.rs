//! Random scripts: the same seed, the same requests. `QUORATE_DIFF_SEED` replays one.

use bytes::Bytes;
use quorate_proto::etcd::compare::TargetUnion;
use quorate_proto::etcd::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::{
    RESULTS, TARGETS, bytes, compact, compare, delete, everything, grant, maintenance, op_delete, op_put, op_range,
    op_txn, put, range, revoke, txn, value, watch,
};
use crate::call::{Call, Who};
use crate::script::{Group, Script, Step};
use crate::stream::Act;

/// Scripts and their requests; a fixed number, so that each run is the same.
const SCRIPTS: u64 = 30;
const CALLS: usize = 60;

/// The deepest transaction in a transaction.
const DEPTH: usize = 2;

pub(super) fn groups() -> Vec<Group> {
    let seeds: Vec<u64> = match std::env::var("QUORATE_DIFF_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..SCRIPTS).collect(),
    };
    vec![Group::new("random", seeds.into_iter().map(script).collect())]
}

fn script(seed: u64) -> Script {
    let mut random = StdRng::seed_from_u64(seed);
    let mut steps: Vec<Step> = (0..CALLS).map(|_| Step::Call(call(&mut random, seed as i64))).collect();
    steps.push(range(everything()).into());
    steps.push(maintenance::hash_kv(0).into());
    // The history once more, as a watch tells it.
    let begin = WatchCreateRequest {
        start_revision: 1,
        prev_kv: random.random(),
        key: bytes("\0"),
        range_end: bytes("\0"),
        ..WatchCreateRequest::default()
    };
    steps.push(Step::Watch(Who::Leader, vec![Act::Send(watch::create(begin))]));
    let name = format!("QUORATE_DIFF=random QUORATE_DIFF_SEED={seed}");
    Script::new(name, steps)
}

const KEYS: [&str; 8] = ["a", "a/1", "a/2", "b", "b/1", "c", "d", ""];
const VALUES: [&str; 4] = ["", "1", "2", "three"];

fn pick<'a>(random: &mut StdRng, list: &[&'a str]) -> &'a str {
    list.choose(random).copied().unwrap_or_default()
}

/// Mostly a usable key; the empty one is refused.
fn any_key(random: &mut StdRng) -> Bytes {
    let keys = if random.random_ratio(1, 40) { &KEYS[..] } else { &KEYS[..KEYS.len() - 1] };
    bytes(pick(random, keys))
}

fn any_end(random: &mut StdRng) -> Bytes {
    bytes(pick(random, &["", "", "", "\0", "b", "b0", "d", "z"]))
}

fn any_lease(random: &mut StdRng, seed: i64) -> i64 {
    match random.random_range(0..6) {
        0 => 1 + seed * 10,
        1 => 2 + seed * 10,
        2 if random.random_ratio(1, 5) => 3,
        _ => 0,
    }
}

fn any_put(random: &mut StdRng, seed: i64) -> PutRequest {
    let mut request = value("", pick(random, &VALUES));
    request.key = any_key(random);
    request.prev_kv = random.random();
    match random.random_range(0..10) {
        0 => (request.ignore_value, request.value) = (true, Bytes::new()),
        1 => request.ignore_lease = true,
        2 => (request.ignore_value, request.ignore_lease, request.value) = (true, true, Bytes::new()),
        _ => request.lease = any_lease(random, seed),
    }
    request
}

fn any_delete(random: &mut StdRng) -> DeleteRangeRequest {
    DeleteRangeRequest { key: any_key(random), range_end: any_end(random), prev_kv: random.random() }
}

fn any_revision(random: &mut StdRng) -> i64 {
    match random.random_range(0..4) {
        0 => random.random_range(-1..200),
        _ => 0,
    }
}

fn any_range(random: &mut StdRng) -> RangeRequest {
    let mut request = RangeRequest {
        key: any_key(random),
        range_end: any_end(random),
        limit: if random.random() { 0 } else { random.random_range(0..4) },
        revision: any_revision(random),
        sort_order: random.random_range(0..3),
        sort_target: if random.random() { 0 } else { random.random_range(0..5) },
        keys_only: random.random_ratio(1, 4),
        count_only: random.random_ratio(1, 6),
        ..RangeRequest::default()
    };
    // Keys that sort alike have no order of their own in etcd, whose sort is not stable.
    if request.sort_target != 0 && request.sort_target != 3 {
        request.sort_target = 3;
    }
    if random.random_ratio(1, 5) {
        request.min_mod_revision = any_revision(random);
        request.max_create_revision = any_revision(random);
    }
    request
}

fn any_compare(random: &mut StdRng) -> Compare {
    let number = if random.random() { random.random_range(0..3) } else { random.random_range(0..150) };
    let target = TARGETS.choose(random).copied().unwrap_or(TARGETS[0]);
    let union = match target as usize {
        0 => TargetUnion::Version(number),
        1 => TargetUnion::CreateRevision(number),
        2 => TargetUnion::ModRevision(number),
        3 => TargetUnion::Value(bytes(pick(random, &VALUES))),
        _ => TargetUnion::Lease(number),
    };
    let result = RESULTS.choose(random).copied().unwrap_or(RESULTS[0]);
    let range_end = if random.random_ratio(1, 4) { any_end(random) } else { Bytes::new() };
    Compare { key: any_key(random), range_end, ..compare("", result, union) }
}

fn any_operations(random: &mut StdRng, seed: i64, depth: usize) -> Vec<RequestOp> {
    let count = random.random_range(0..4);
    let mut list: Vec<RequestOp> = Vec::new();
    for _ in 0..count {
        list.push(match random.random_range(0..8) {
            0..=2 => op_put(any_put(random, seed)),
            // etcd overlooks some keys that are written twice; those are cases of their own.
            3 if depth == 0 => op_delete(DeleteRangeRequest { range_end: Bytes::new(), ..any_delete(random) }),
            4 if depth < DEPTH => op_txn(any_txn(random, seed, depth + 1)),
            _ => op_range(any_range(random)),
        });
    }
    list
}

fn any_txn(random: &mut StdRng, seed: i64, depth: usize) -> TxnRequest {
    TxnRequest {
        compare: (0..random.random_range(0..3)).map(|_| any_compare(random)).collect(),
        success: any_operations(random, seed, depth),
        failure: any_operations(random, seed, depth),
    }
}

fn call(random: &mut StdRng, seed: i64) -> Call {
    match random.random_range(0..20) {
        0..=6 => put(any_put(random, seed)),
        7..=8 => delete(any_delete(random)),
        9..=11 => range(any_range(random)),
        12..=16 => txn(any_txn(random, seed, 0)),
        17 => grant(1 + seed * 10 + random.random_range(0..2), 600),
        18 if random.random() => revoke(1 + seed * 10 + random.random_range(0..2)),
        18 => compact(any_revision(random), false),
        _ => range(everything()),
    }
}
