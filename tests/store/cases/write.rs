//! Puts and deletions: every option, and what they leave.

use quorate_proto::etcd::{DeleteRangeRequest, PutRequest};

use super::{bytes, compact, delete, deletion, everything, grant, key, prefix, put, range, revoke, value};
use crate::call::Call;
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("put", puts()).with_setup(vec![grant(1001, 600), grant(1002, 600)]),
        Group::new("delete", deletes()),
    ]
}

fn puts() -> Vec<Script> {
    let mut scripts = Vec::new();
    // Every combination of options, of a key that is there (with and without a lease) and one that is not.
    for existing in ["missing", "plain", "leased"] {
        for given in [b"".as_slice(), b"new"] {
            for lease in [0, 1002, 99] {
                for (ignore_value, ignore_lease, prev_kv) in combinations() {
                    let mut calls = vec![delete(deletion("k", ""))];
                    match existing {
                        "plain" => calls.push(put(value("k", "old"))),
                        "leased" => calls.push(put(PutRequest { lease: 1001, ..value("k", "old") })),
                        _ => {}
                    }
                    let request =
                        PutRequest { key: bytes("k"), value: given.into(), lease, prev_kv, ignore_value, ignore_lease };
                    let name = format!("{existing}: {request:?}");
                    calls.extend([put(request), range(key("k"))]);
                    scripts.push(Script::calls(name, calls));
                }
            }
        }
    }
    let refused = [
        PutRequest::default(),
        PutRequest { ignore_value: true, ..PutRequest::default() },
        PutRequest { ignore_value: true, ..value("k", "x") },
        PutRequest { ignore_lease: true, lease: 5, ..value("k", "x") },
        PutRequest { ignore_lease: true, ignore_value: true, lease: 5, ..value("k", "x") },
        PutRequest { lease: -1, ..value("k", "x") },
        PutRequest { lease: i64::MIN, ..value("k", "x") },
        PutRequest { lease: 99, ignore_value: true, ..value("none", "") },
    ];
    scripts.extend(refused.into_iter().map(|request| Script::one(put(request))));
    scripts.push(Script::calls(
        "versions count from one again after a deletion",
        [
            put(value("v", "1")),
            put(value("v", "1")),
            range(key("v")),
            delete(deletion("v", "")),
            put(value("v", "1")),
            range(key("v")),
        ],
    ));
    scripts.push(Script::calls(
        "a lease's end deletes all of its keys in one revision",
        [
            grant(1003, 600),
            put(PutRequest { lease: 1003, ..value("l/3", "x") }),
            put(PutRequest { lease: 1003, ..value("l/1", "x") }),
            put(PutRequest { lease: 1003, ..value("l/2", "x") }),
            put(value("l/2", "no lease any more")),
            revoke(1003),
            range(prefix("l/")),
            put(PutRequest { lease: 1003, ..value("l/1", "x") }),
        ],
    ));
    scripts
}

fn combinations() -> Vec<(bool, bool, bool)> {
    let both = [false, true];
    let mut all = Vec::new();
    for first in both {
        for second in both {
            for third in both {
                all.push((first, second, third));
            }
        }
    }
    all
}

fn filled() -> Vec<Call> {
    ["a", "b", "b/1", "b/2", "c", "d"].map(|key| put(value(key, key))).to_vec()
}

fn deletes() -> Vec<Script> {
    let mut scripts = Vec::new();
    let places = [
        ("a", ""),
        ("nothing", ""),
        ("b", "c"),
        ("b/", "b0"),
        ("c", "\0"),
        ("\0", "\0"),
        ("c", "a"),
        ("a", "a"),
        ("\0", "b"),
    ];
    for (from, end) in places {
        for prev_kv in [false, true] {
            let request = DeleteRangeRequest { prev_kv, ..deletion(from, end) };
            let mut calls = filled();
            calls.extend([delete(request.clone()), range(everything()), delete(request.clone())]);
            scripts.push(Script::calls(format!("{request:?}"), calls));
        }
    }
    scripts.push(Script::one(delete(DeleteRangeRequest::default())));
    scripts.push(Script::one(delete(DeleteRangeRequest { range_end: bytes("z"), ..DeleteRangeRequest::default() })));
    scripts.push(Script::calls(
        "a deletion of nothing makes no revision",
        [delete(deletion("x", "y")), range(everything()), delete(deletion("x", ""))],
    ));
    scripts.push(Script::calls(
        "a deleted key can be read at its time",
        [put(value("k", "1")), delete(deletion("k", "")), range(key("k")), compact(2, true), range(everything())],
    ));
    scripts
}
