//! Three members: what a follower answers, and how leadership moves.

use quorate_proto::etcd::{
    LeaseKeepAliveRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, MoveLeaderRequest, MoveLeaderResponse,
    PutRequest, RangeRequest, WatchCreateRequest,
};

use super::{
    always, compact, conditional, delete, deletion, everything, grant, key, maintenance, op_put, op_range, prefix, put,
    range, revoke, txn, value, watch,
};
use crate::call::{Call, Who, unary, unary_with};
use crate::script::{Group, Script, Step};
use crate::stream::Act;

pub(super) fn groups() -> Vec<Group> {
    vec![Group::new("three members", [followers(), leadership()].concat()).of_three()]
}

fn both(call: Call) -> [Call; 2] {
    [call.clone().at(Who::Follower), call.at(Who::Leader)]
}

/// The same through a follower, and then what the leader has of it.
fn followers() -> Vec<Script> {
    let left = LeaseTimeToLiveRequest { id: 5, keys: true };
    let writes = [
        put(value("a", "1")),
        put(PutRequest { prev_kv: true, ..value("a", "2") }),
        put(PutRequest::default()),
        put(PutRequest { lease: 99, ..value("a", "2") }),
        put(PutRequest { ignore_value: true, ..value("none", "") }),
        txn(conditional(vec![always()], vec![op_put(value("b", "1")), op_range(everything())], vec![])),
        txn(conditional(vec![always()], vec![op_put(value("b", "1")), op_put(value("b", "1"))], vec![])),
        txn(conditional(vec![always()], vec![op_range(everything())], vec![])),
        delete(deletion("a", "")),
        delete(deletion("", "")),
        put(value("c", "1")),
        compact(3, false),
        compact(3, true),
        compact(99, false),
        range(RangeRequest { revision: 2, ..everything() }),
        range(RangeRequest { revision: 99, ..everything() }),
        grant(5, 600),
        grant(5, 600),
        put(PutRequest { lease: 5, ..value("leased", "x") }),
        unary::<_, LeaseTimeToLiveResponse>("/etcdserverpb.Lease/LeaseTimeToLive", left).blur(&["ttl"]),
        revoke(5),
        revoke(5),
        maintenance::hash_kv(0),
        maintenance::hash_kv(2),
    ];
    let mut scripts: Vec<Script> = writes
        .into_iter()
        .enumerate()
        .map(|(number, call)| {
            let name = format!("{number}, {}", call.text());
            let calls = [call.at(Who::Follower)].into_iter().chain(both(range(everything())));
            Script::calls(format!("at a follower: {name}"), calls)
        })
        .collect();
    scripts.push(Script::calls("a follower wants a leader", both(range(key("a")).wants_leader())));
    scripts.push(Script::one(maintenance::status().at(Who::Follower)));
    scripts.push(Script::new(
        "a lease kept alive through a follower",
        [
            Step::Call(grant(6, 600)),
            Step::KeepAlive(Who::Follower, [6, 404, 6].map(|id| Act::Send(LeaseKeepAliveRequest { id })).to_vec()),
            Step::Call(revoke(6).at(Who::Follower)),
            Step::KeepAlive(Who::Follower, vec![Act::Send(LeaseKeepAliveRequest { id: 6 })]),
        ],
    ));
    scripts.push(Script::new(
        "a watch at a follower",
        [Step::Watch(
            Who::Follower,
            vec![
                Act::Send(watch::create(WatchCreateRequest { prev_kv: true, ..watch::of_prefix("w/") })),
                Act::Do(put(value("w/1", "1"))),
                Act::Do(put(value("w/1", "2")).at(Who::Follower)),
                Act::Do(delete(deletion("w/", "w0"))),
                Act::Send(watch::create(WatchCreateRequest { start_revision: 1, ..watch::of_prefix("w/") })),
                Act::Send(watch::create(WatchCreateRequest { start_revision: 3, ..watch::of_prefix("w/") })),
            ],
        )],
    ));
    scripts.push(Script::calls("serializable reads", both(range(RangeRequest { serializable: true, ..prefix("w/") }))));
    scripts
}

fn move_leader(name: &'static str) -> Call {
    unary_with::<_, MoveLeaderResponse>("/etcdserverpb.Maintenance/MoveLeader", name, move |memory| MoveLeaderRequest {
        target_id: memory.number(name),
    })
}

/// The last ones: afterwards another member leads.
fn leadership() -> Vec<Script> {
    vec![
        Script::one(move_leader("follower").at(Who::Follower)),
        Script::one(move_leader("leader").at(Who::Follower)),
        Script::one(move_leader("unknown")),
        Script::one(unary::<_, MoveLeaderResponse>(
            "/etcdserverpb.Maintenance/MoveLeader",
            MoveLeaderRequest { target_id: 0 },
        )),
        Script::one(move_leader("leader")),
        Script::calls("leadership moves", [move_leader("follower"), put(value("after", "1")), range(everything())]),
    ]
}
