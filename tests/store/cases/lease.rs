//! Leases: grants, renewals, ends, and the keys that go with them.

use quorate_proto::etcd::{
    LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseLeasesResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, WatchRequest,
};

use super::{
    delete, deletion, everything, grant, key, op_put, operations, prefix, put, range, revoke, txn, value, watch,
};
use crate::call::{Call, Who, learning, unary, unary_with};
use crate::script::{Group, Script, Step};
use crate::stream::Act;

pub(super) fn groups() -> Vec<Group> {
    vec![Group::new("lease", scripts()), Group::new("lease expiry", expiry())]
}

/// The time left is measured in seconds, and one may pass between two clusters.
fn time_to_live(id: i64, keys: bool) -> Call {
    let request = LeaseTimeToLiveRequest { id, keys };
    unary::<_, LeaseTimeToLiveResponse>("/etcdserverpb.Lease/LeaseTimeToLive", request)
}

/// Of a lease that exists: all but the seconds that are left.
fn live(id: i64, keys: bool) -> Call {
    time_to_live(id, keys).blur(&["ttl"])
}

/// All leases. Their order is not the store's to promise.
fn leases() -> Call {
    unary::<_, LeaseLeasesResponse>("/etcdserverpb.Lease/LeaseLeases", LeaseLeasesRequest {})
}

fn keep_alive(name: &str, ids: &[i64]) -> Script {
    let acts = ids.iter().map(|id| Act::Send(LeaseKeepAliveRequest { id: *id })).collect();
    Script::new(name, [Step::KeepAlive(Who::Leader, acts)])
}

fn scripts() -> Vec<Script> {
    let mut scripts = vec![Script::one(leases())];
    for ttl in [-5, 0, 1, 2, 3, 60, 9_000_000_000, 9_000_000_001, i64::MAX, i64::MIN] {
        scripts.push(Script::calls(format!("a lease of {ttl} s"), [grant(77, ttl), live(77, true), revoke(77)]));
    }
    for id in [1, -1, i64::MAX, i64::MIN] {
        let calls = [grant(id, 600), grant(id, 600), live(id, false), revoke(id), revoke(id)];
        scripts.push(Script::calls(format!("the lease {id}"), calls));
    }
    scripts.push(Script::calls(
        "the id of a lease that has ended",
        [
            grant(14, 600),
            put(PutRequest { lease: 14, ..value("again", "1") }),
            revoke(14),
            grant(14, 60),
            live(14, true),
            put(PutRequest { lease: 14, ..value("again", "2") }),
            // The same lease again, and a lease that is kept.
            put(PutRequest { lease: 14, ..value("again", "3") }),
            put(PutRequest { ignore_lease: true, prev_kv: true, ..value("again", "4") }),
            live(14, true),
            revoke(14),
            range(key("again")),
        ],
    ));
    let picked = learning::<_, quorate_proto::etcd::LeaseGrantResponse>(
        "/etcdserverpb.Lease/LeaseGrant",
        "of an id that the store picks".to_owned(),
        |_| quorate_proto::etcd::LeaseGrantRequest { ttl: 600, id: 0 },
        |answer, memory| {
            memory.numbers.insert("picked", answer.id as u64);
        },
    );
    let picked_keys =
        unary_with::<_, quorate_proto::etcd::PutResponse>("/etcdserverpb.KV/Put", "with the picked lease", |memory| {
            PutRequest { lease: memory.id("picked"), ..value("with/picked", "x") }
        });
    let picked_left = unary_with::<_, LeaseTimeToLiveResponse>(
        "/etcdserverpb.Lease/LeaseTimeToLive",
        "of the picked lease",
        |memory| LeaseTimeToLiveRequest { id: memory.id("picked"), keys: true },
    );
    let picked_end = unary_with::<_, quorate_proto::etcd::LeaseRevokeResponse>(
        "/etcdserverpb.Lease/LeaseRevoke",
        "of the picked lease",
        |memory| quorate_proto::etcd::LeaseRevokeRequest { id: memory.id("picked") },
    );
    scripts.push(Script::calls(
        "an id that the store picks",
        [
            picked.blur(&["id"]),
            picked_keys,
            range(prefix("with/")).blur(&["lease"]),
            picked_left.blur(&["id", "ttl"]),
            picked_end,
            range(prefix("with/")),
        ],
    ));
    scripts.push(Script::calls(
        "keys come and go",
        [
            grant(10, 600),
            grant(11, 600),
            put(PutRequest { lease: 10, ..value("x/2", "1") }),
            put(PutRequest { lease: 10, ..value("x/1", "1") }),
            put(PutRequest { lease: 10, ..value("x/3", "1") }),
            put(PutRequest { lease: 11, ..value("x/3", "moved") }),
            put(value("x/1", "released")),
            delete(deletion("x/2", "")),
            live(11, true),
            live(10, false),
            put(PutRequest { ignore_lease: true, ..value("x/3", "kept") }),
            live(11, true),
            revoke(10),
            range(prefix("x/")),
            revoke(11),
            range(prefix("x/")),
        ],
    ));
    scripts.push(Script::calls(
        "in a transaction",
        [
            grant(12, 600),
            txn(operations(vec![
                op_put(PutRequest { lease: 12, ..value("t/1", "1") }),
                op_put(PutRequest { lease: 12, ..value("t/2", "1") }),
            ])),
            range(prefix("t/")),
            revoke(12),
            range(everything()),
        ],
    ));
    for id in [0, 404, -1] {
        scripts.push(Script::calls(
            format!("the unknown lease {id}"),
            [time_to_live(id, false), time_to_live(id, true), revoke(id)],
        ));
    }
    scripts.push(Script::calls("one lease of all", [grant(13, 600), leases(), revoke(13), leases()]));
    scripts.push(keep_alive("keeping unknown leases alive", &[404, 0, -1, 405]));
    scripts.push(Script::new(
        "keeping alive",
        [
            Step::Call(grant(20, 600)),
            Step::Call(grant(21, 50)),
            Step::KeepAlive(
                Who::Leader,
                vec![
                    Act::Send(LeaseKeepAliveRequest { id: 20 }),
                    Act::Send(LeaseKeepAliveRequest { id: 21 }),
                    Act::Send(LeaseKeepAliveRequest { id: 404 }),
                    Act::Do(put(value("moves", "the revision"))),
                    Act::Send(LeaseKeepAliveRequest { id: 20 }),
                    Act::Do(revoke(20)),
                    Act::Send(LeaseKeepAliveRequest { id: 20 }),
                    Act::SendAll(vec![LeaseKeepAliveRequest { id: 21 }; 5]),
                    Act::HalfClose,
                ],
            ),
            Step::Call(revoke(21)),
        ],
    ));
    scripts.push(Script::new(
        "what a watch sees of a lease's end",
        [
            Step::Call(grant(30, 600)),
            Step::Watch(
                Who::Leader,
                vec![
                    Act::Send(watch::create(quorate_proto::etcd::WatchCreateRequest {
                        prev_kv: true,
                        ..watch::of_prefix("w/")
                    })),
                    Act::Do(put(PutRequest { lease: 30, ..value("w/b", "1") })),
                    Act::Do(put(PutRequest { lease: 30, ..value("w/a", "1") })),
                    Act::Do(revoke(30)),
                    Act::Send(WatchRequest { request_union: None }),
                ],
            ),
        ],
    ));
    scripts
}

/// Looks at the keys until they are gone, for as long as a lease of two seconds may take.
fn gone(name: &'static str) -> Call {
    Call::new(format!("until {name} is gone"), move |target| {
        Box::pin(async move {
            let begin = tokio::time::Instant::now();
            loop {
                let answer = range(key(name)).send(&target).await;
                if !answer.contains("KeyValue") || begin.elapsed().as_secs() > 12 {
                    return answer;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
    })
}

fn expiry() -> Vec<Script> {
    vec![
        Script::calls(
            "a lease ends with its keys, in one revision",
            [
                grant(50, 2),
                put(PutRequest { lease: 50, ..value("e/1", "x") }),
                put(PutRequest { lease: 50, ..value("e/2", "x") }),
                gone("e/1"),
                range(everything()),
                time_to_live(50, true),
                revoke(50),
                put(PutRequest { lease: 50, ..value("e/1", "x") }),
                leases(),
            ],
        ),
        Script::new(
            "a lease that ended cannot be kept alive",
            [
                Step::Call(grant(51, 2)),
                Step::Call(put(PutRequest { lease: 51, ..value("f", "x") })),
                Step::Call(gone("f")),
                Step::KeepAlive(Who::Leader, vec![Act::Send(LeaseKeepAliveRequest { id: 51 })]),
            ],
        ),
        Script::new(
            "a watch sees the end",
            [
                Step::Call(grant(52, 2)),
                Step::Watch(
                    Who::Leader,
                    vec![
                        Act::Send(watch::create(quorate_proto::etcd::WatchCreateRequest {
                            prev_kv: true,
                            ..watch::of_prefix("g/")
                        })),
                        Act::Do(put(PutRequest { lease: 52, ..value("g/2", "x") })),
                        Act::Do(put(PutRequest { lease: 52, ..value("g/1", "x") })),
                        Act::Do(gone("g/2")),
                    ],
                ),
            ],
        ),
    ]
}
