//! Maintenance: status, hashes, alarms, snapshots, moving the leader, downgrading.

use quorate_proto::etcd::downgrade_request::DowngradeAction;
use quorate_proto::etcd::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DeleteRangeResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, MoveLeaderRequest, MoveLeaderResponse, RangeRequest, RangeResponse, ResponseHeader,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};

use super::{compact, delete, deletion, everything, key, put, range, value};
use crate::call::{Call, normalise, render, streamed, unary, unary_with};
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("maintenance", [information(), alarms(), rest()].concat()).with_setup(vec![put(value("a", "1"))]),
        Group::new("health", health()),
    ]
}

pub(super) fn status() -> Call {
    let measured = ["db_size", "db_size_in_use", "leader", "raft_index", "raft_applied_index", "version"];
    let call = unary::<_, StatusResponse>("/etcdserverpb.Maintenance/Status", StatusRequest {}).blur(&measured);
    call.newer("3.6 tells the version of its storage, 3.7 what it is downgraded to", |answer| {
        answer.replace("storage_version: \"\"", "storage_version: \"3.7.0\"").replace(
            "downgrade_info: None",
            "downgrade_info: Some(\n        DowngradeInfo {\n            enabled: false,\n            \
                 target_version: \"\",\n        },\n    )",
        )
    })
}

pub(super) fn hash_kv(revision: i64) -> Call {
    let request = HashKvRequest { revision };
    // Hashes only have to agree between members.
    let call = unary::<_, HashKvResponse>("/etcdserverpb.Maintenance/HashKV", request).without_lines("hash: ");
    call.newer("3.6 tells the revision of the hash", move |answer| {
        let current = answer.lines().find_map(|line| line.trim().strip_prefix("revision: "));
        let current = current.unwrap_or_default().trim_end_matches(',').to_owned();
        let asked = if revision > 0 { revision.to_string() } else { current };
        answer.replace("hash_revision: 0", &format!("hash_revision: {asked}"))
    })
}

fn information() -> Vec<Script> {
    let mut scripts = vec![
        Script::one(status()),
        Script::one(unary::<_, HashResponse>("/etcdserverpb.Maintenance/Hash", HashRequest {}).blur(&["hash"])),
        Script::one(unary::<_, DefragmentResponse>("/etcdserverpb.Maintenance/Defragment", DefragmentRequest {})),
    ];
    for revision in [-1, 0, 1, 2, 3, 1000] {
        scripts.push(Script::one(hash_kv(revision)));
    }
    scripts.push(Script::calls(
        "hashes after a compaction",
        [
            put(value("a", "2")),
            delete(deletion("a", "")),
            put(value("b", "1")),
            compact(4, true),
            hash_kv(3),
            hash_kv(4).newer("3.6 can hash the compacted revision as well", |_| {
                let header = Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: 5, raft_term: 1 });
                let newer = HashKvResponse { header, hash: 1, compact_revision: 4, hash_revision: 4 };
                let lines = normalise(&render(&Ok(newer)), &[]);
                lines.lines().filter(|line| !line.trim().starts_with("hash: ")).collect::<Vec<_>>().join("\n")
            }),
            hash_kv(5),
            hash_kv(0),
        ],
    ));
    scripts
}

fn alarm(action: i32, alarm: i32) -> Call {
    let request = AlarmRequest { action, member_id: 0, alarm };
    unary::<_, AlarmResponse>("/etcdserverpb.Maintenance/Alarm", request).without_header()
}

/// An alarm of the member itself.
fn own_alarm(action: i32, alarm: i32) -> Call {
    unary_with::<_, AlarmResponse>("/etcdserverpb.Maintenance/Alarm", &format!("own {action} {alarm}"), move |memory| {
        AlarmRequest { action, member_id: memory.number("m0"), alarm }
    })
    .without_header()
}

const GET: i32 = 0;
const ACTIVATE: i32 = 1;
const DEACTIVATE: i32 = 2;
const NOSPACE: i32 = 1;
const CORRUPT: i32 = 2;

fn alarms() -> Vec<Script> {
    let mut scripts = Vec::new();
    // An action that is not known ends the process of 3.4; what newer ones say depends on their version.
    for action in [GET, DEACTIVATE] {
        for kind in [0, NOSPACE, CORRUPT, 3] {
            scripts.push(Script::one(alarm(action, kind)));
        }
    }
    scripts.push(Script::calls(
        "corruption is shown and stops nearly everything",
        [
            own_alarm(ACTIVATE, CORRUPT),
            own_alarm(GET, CORRUPT),
            own_alarm(GET, 0),
            own_alarm(GET, NOSPACE),
            put(value("a", "1")),
            range(key("a")),
            delete(deletion("a", "")),
            super::txn(super::operations(vec![super::op_put(value("a", "1"))])),
            super::grant(1, 100),
            compact(2, false),
            own_alarm(DEACTIVATE, CORRUPT),
            own_alarm(GET, 0),
            put(value("a", "1")),
        ],
    ));
    scripts.push(Script::calls(
        "without space only what makes room is done",
        [
            super::grant(3, 600),
            put(value("full", "1")),
            own_alarm(ACTIVATE, NOSPACE),
            own_alarm(GET, 0),
            put(value("full", "2")),
            super::txn(super::operations(vec![super::op_put(value("full", "2"))])),
            super::txn(super::conditional(vec![super::never()], vec![super::op_put(value("full", "2"))], vec![])),
            super::txn(super::operations(vec![super::op_range(key("full"))])),
            super::txn(super::operations(vec![super::op_delete(deletion("full", ""))])),
            super::grant(4, 600),
            range(everything()),
            delete(deletion("full", "")),
            super::revoke(3),
            compact(2, true),
            own_alarm(DEACTIVATE, NOSPACE),
            own_alarm(DEACTIVATE, NOSPACE),
            put(value("full", "3")),
        ],
    ));
    scripts
}

fn rest() -> Vec<Script> {
    let downgrade = |action: DowngradeAction, version: &str, expected: &'static str| {
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        unary::<_, DowngradeResponse>("/etcdserverpb.Maintenance/Downgrade", request)
            .newer("3.5 has the method, 3.6 what it does", move |_| expected.to_owned())
    };
    let move_leader = |name: &'static str| {
        unary_with::<_, MoveLeaderResponse>("/etcdserverpb.Maintenance/MoveLeader", name, move |memory| {
            MoveLeaderRequest { target_id: memory.number(name) }
        })
    };
    let snapshot =
        streamed::<_, SnapshotResponse>("/etcdserverpb.Maintenance/Snapshot", SnapshotRequest {}, 10_000, |parts| {
            let bytes: usize = parts.iter().map(|part| part.blob.len()).sum();
            let last = parts.last().map(|part| part.blob.len());
            let first = parts.first().map_or(0, |part| part.remaining_bytes as usize + part.blob.len());
            format!("{} bytes past a multiple of 512, the last {last:?}, {} announced", bytes % 512, bytes - first)
        });
    vec![
        Script::one(move_leader("m0")),
        Script::one(move_leader("unknown")),
        Script::one(snapshot),
        Script::one(downgrade(
            DowngradeAction::Validate,
            "x",
            "InvalidArgument: etcdserver: wrong downgrade target version format",
        )),
        Script::one(downgrade(
            DowngradeAction::Validate,
            "3.1.0",
            "InvalidArgument: etcdserver: invalid downgrade target version",
        )),
        Script::one(downgrade(
            DowngradeAction::Cancel,
            "",
            "FailedPrecondition: etcdserver: no inflight downgrade job",
        )),
        Script::one(range(everything())),
    ]
}

fn health() -> Vec<Script> {
    use quorate_proto::health::{HealthCheckRequest, HealthCheckResponse};
    let check = |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        unary::<_, HealthCheckResponse>("/grpc.health.v1.Health/Check", request)
    };
    vec![
        Script::one(check("")),
        Script::one(check("nothing")),
        Script::one(
            unary::<HealthCheckRequest, HealthCheckResponse>("/no.such.Service/Method", HealthCheckRequest::default())
                .first_word(),
        ),
        Script::one(
            unary::<HealthCheckRequest, HealthCheckResponse>("/etcdserverpb.KV/Nothing", HealthCheckRequest::default())
                .first_word(),
        ),
        // The first field is a number, where a key is expected.
        Script::one(
            unary::<HashKvRequest, RangeResponse>("/etcdserverpb.KV/Range", HashKvRequest { revision: 5 }).first_word(),
        ),
        // A field that a newer client knows.
        Script::one(unary::<LeaseTimeToLiveRequest, LeaseRevokeResponse>(
            "/etcdserverpb.Lease/LeaseRevoke",
            LeaseTimeToLiveRequest { id: 404, keys: true },
        )),
        Script::one(unary::<RangeRequest, DeleteRangeResponse>(
            "/etcdserverpb.KV/DeleteRange",
            RangeRequest { keys_only: true, max_mod_revision: 7, ..key("none") },
        )),
    ]
}
