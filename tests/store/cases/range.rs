//! Reads: every option, alone and together.

use bytes::Bytes;
use quorate_proto::etcd::range_request::{SortOrder, SortTarget};
use quorate_proto::etcd::{RangeRequest, RangeResponse, RangeStreamResponse};

use super::{
    bytes, compact, delete, deletion, everything, grant, interval, key, op_put, operations, prefix, put, range, txn,
    value,
};
use crate::call::{Call, streamed};
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    let scripts = [intervals(), orders(), filters(), revisions(), errors(), range_streams()].concat();
    vec![
        Group::new("range", scripts).distinct().with_setup(setup()),
        Group::new("range in an unknown order", unknown_orders()),
        Group::new("range of an empty store", empty()),
        Group::new("range after compaction", compacted()).with_setup([setup(), vec![compact(6, true)]].concat()),
    ]
}

/// Keys whose orders by key, version, creation, change and value all differ. Ends at revision 10.
fn setup() -> Vec<Call> {
    vec![
        put(value("a", "5")),
        put(value("b", "3")),
        put(value("c", "4")),
        txn(operations(vec![op_put(value("b/x", "1")), op_put(value("b/y", "2"))])),
        put(value("a", "2")),
        put(value("d", "")),
        delete(deletion("c", "")),
        put(value("b", "9")),
        put(value("b", "7")),
    ]
}

const ORDERS: [SortOrder; 3] = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
const SORTS: [SortTarget; 5] =
    [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];

fn intervals() -> Vec<Script> {
    let mut scripts = Vec::new();
    let places = [
        key("a"),
        key("c"),
        key("nothing"),
        key("\0"),
        everything(),
        interval("b", "\0"),
        interval("z", "\0"),
        prefix("b"),
        prefix("b/"),
        prefix("q"),
        interval("a", "c"),
        interval("c", "a"),
        interval("a", "a"),
        interval("\0", "b"),
        interval("b", "b\0"),
    ];
    for place in places {
        for limit in [0, 1, 2, 100] {
            scripts.push(Script::one(range(RangeRequest { limit, ..place.clone() })));
        }
        scripts.push(Script::one(range(RangeRequest { serializable: true, ..place.clone() })));
        scripts.push(Script::one(range(RangeRequest { keys_only: true, ..place.clone() })));
        scripts.push(Script::one(range(RangeRequest { count_only: true, ..place.clone() })));
        scripts.push(Script::one(range(RangeRequest { count_only: true, limit: 1, ..place })));
    }
    scripts.push(Script::one(range(RangeRequest { limit: -1, ..everything() })));
    scripts.push(Script::one(range(RangeRequest { limit: i64::MAX, ..everything() })));
    scripts.push(Script::one(range(RangeRequest { limit: i64::MIN, ..everything() })));
    scripts.push(Script::one(range(RangeRequest { keys_only: true, count_only: true, ..everything() })));
    scripts
}

fn orders() -> Vec<Script> {
    let mut scripts = Vec::new();
    for order in ORDERS {
        for target in SORTS {
            for limit in [0, 1, 3] {
                for keys_only in [false, true] {
                    let request = RangeRequest {
                        sort_order: order.into(),
                        sort_target: target.into(),
                        limit,
                        keys_only,
                        ..everything()
                    };
                    scripts.push(Script::one(range(request)));
                }
            }
        }
    }
    let counted = RangeRequest {
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Value.into(),
        count_only: true,
        ..everything()
    };
    scripts.push(Script::one(range(counted)));
    scripts
}

fn filters() -> Vec<Script> {
    let bounds: [(i64, i64, i64, i64); 12] = [
        (5, 0, 0, 0),
        (0, 6, 0, 0),
        (0, 0, 4, 0),
        (0, 0, 0, 3),
        (5, 7, 0, 0),
        (0, 0, 3, 5),
        (6, 0, 0, 4),
        (7, 5, 0, 0),
        (-1, 0, 0, 0),
        (0, -1, 0, 0),
        (0, 0, -5, -5),
        (100, 0, 100, 0),
    ];
    let mut scripts = Vec::new();
    for (min_mod_revision, max_mod_revision, min_create_revision, max_create_revision) in bounds {
        for limit in [0, 2] {
            let request = RangeRequest {
                min_mod_revision,
                max_mod_revision,
                min_create_revision,
                max_create_revision,
                limit,
                ..everything()
            };
            scripts.push(Script::one(range(request.clone())));
            let sorted = RangeRequest {
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Mod.into(),
                ..request.clone()
            };
            scripts.push(Script::one(range(sorted)));
            scripts.push(Script::one(range(RangeRequest { count_only: true, ..request })));
        }
    }
    scripts
}

fn revisions() -> Vec<Script> {
    let mut scripts = Vec::new();
    for revision in [-5, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] {
        for place in [everything(), key("c"), key("b")] {
            scripts.push(Script::one(range(RangeRequest { revision, ..place.clone() })));
            scripts.push(Script::one(range(RangeRequest { revision, count_only: true, limit: 1, ..place })));
        }
    }
    for revision in [11, 12, 1000, i64::MAX] {
        scripts.push(Script::one(range(RangeRequest { revision, ..everything() })));
        scripts.push(Script::one(range(RangeRequest { revision, serializable: true, ..key("a") })));
    }
    scripts
}

fn errors() -> Vec<Script> {
    let mut scripts = vec![
        Script::one(range(RangeRequest::default())),
        Script::one(range(RangeRequest { range_end: bytes("z"), ..RangeRequest::default() })),
        Script::one(range(RangeRequest { sort_order: 3, ..RangeRequest::default() })),
    ];
    scripts.push(Script::one(range(key("a")).wants_leader()));
    scripts.push(Script::one(range(RangeRequest { key: Bytes::from_static(&[0xff, 0xfe, 0]), ..key("") })));
    scripts
}

/// 3.4 ends its process over some of these.
fn unknown_orders() -> Vec<Script> {
    let requests = [
        RangeRequest { sort_order: 3, ..key("a") },
        RangeRequest { sort_target: 5, ..key("a") },
        RangeRequest { sort_order: -1, ..key("a") },
        RangeRequest { sort_target: 5, revision: 1000, ..key("a") },
    ];
    let expected = "InvalidArgument: etcdserver: invalid sort option";
    let call =
        |request| range(request).newer("3.5 refuses an order that it does not know", move |_| expected.to_owned());
    requests.into_iter().map(|request| Script::one(call(request))).collect()
}

/// Everything that a message says, for an etcd that has no streamed ranges.
fn range_stream(request: RangeRequest, why: &'static str, expected: &'static str) -> Call {
    let call = streamed::<_, RangeStreamResponse>("/etcdserverpb.KV/RangeStream", request, 100, |messages| {
        // How the keys are spread over messages is the server's affair.
        let mut whole = RangeResponse::default();
        for part in messages.iter().filter_map(|message| message.range_response.clone()) {
            whole.kvs.extend(part.kvs);
            whole.more |= part.more;
            whole.count += part.count;
            whole.header = part.header.or(whole.header);
        }
        let keys: Vec<String> = whole.kvs.iter().map(|kv| format!("{:?}={:?}", kv.key, kv.value)).collect();
        let revision = whole.header.map(|header| header.revision);
        format!("{} count {} more {} at {revision:?}", keys.join(" "), whole.count, whole.more)
    });
    call.newer(why, move |_| expected.to_owned())
}

fn range_streams() -> Vec<Script> {
    let why = "etcd 3.7 streams ranges; 3.4 does not know the method";
    let unsupported = "3.7 streams in the order of keys only";
    vec![
        Script::one(range_stream(
            everything(),
            why,
            r#"b"a"=b"2" b"b"=b"7" b"b/x"=b"1" b"b/y"=b"2" b"d"=b"" count 5 more false at Some(10)"#,
        )),
        Script::one(range_stream(
            RangeRequest { limit: 2, ..everything() },
            why,
            r#"b"a"=b"2" b"b"=b"7" count 5 more true at Some(10)"#,
        )),
        Script::one(range_stream(
            RangeRequest { revision: 4, keys_only: true, ..everything() },
            why,
            r#"b"a"=b"" b"b"=b"" b"c"=b"" count 3 more false at Some(10)"#,
        )),
        Script::one(range_stream(
            RangeRequest { count_only: true, ..everything() },
            why,
            " count 5 more false at Some(10)",
        )),
        Script::one(range_stream(key("nothing"), why, " count 0 more false at Some(10)")),
        Script::one(range_stream(key("a"), why, r#"b"a"=b"2" count 1 more false at Some(10)"#)),
        Script::one(range_stream(RangeRequest::default(), why, "InvalidArgument: etcdserver: key is not provided")),
        Script::one(range_stream(
            RangeRequest { revision: 99, ..everything() },
            why,
            "OutOfRange: etcdserver: mvcc: required revision is a future revision",
        )),
        Script::one(range_stream_refused(
            RangeRequest { sort_order: SortOrder::Descend.into(), ..everything() },
            unsupported,
        )),
        Script::one(range_stream_refused(RangeRequest { min_mod_revision: 3, ..everything() }, unsupported)),
    ]
}

fn range_stream_refused(request: RangeRequest, why: &'static str) -> Call {
    let call = streamed::<_, RangeStreamResponse>("/etcdserverpb.KV/RangeStream", request, 1, |_| String::new());
    // The newer text is its own; only the code is what clients look at.
    let call = call.first_word();
    call.newer(why, |_| "Unimplemented".to_owned())
}

fn empty() -> Vec<Script> {
    let mut scripts = Vec::new();
    for request in [everything(), key("a"), RangeRequest { count_only: true, ..everything() }] {
        for revision in [0, 1, 2] {
            scripts.push(Script::one(range(RangeRequest { revision, ..request.clone() })));
        }
    }
    scripts.push(Script::one(compact(0, false)));
    scripts.push(Script::one(compact(-1, false)));
    scripts.push(Script::one(compact(2, false)));
    scripts.push(Script::one(delete(deletion("a", ""))));
    scripts.push(Script::one(grant(5, 100)));
    scripts.push(Script::calls("the first compaction is of revision 1", [compact(1, true), compact(1, true)]));
    scripts.push(Script::one(range(RangeRequest { revision: 1, limit: 7, ..everything() })));
    scripts
}

fn compacted() -> Vec<Script> {
    let mut scripts = Vec::new();
    for revision in [-1, 0, 1, 4, 5, 6, 7, 8, 10, 11] {
        for place in [everything(), key("c"), key("a"), key("nothing")] {
            scripts.push(Script::one(range(RangeRequest { revision, ..place })));
        }
    }
    for revision in [-1, 0, 1, 5, 6, 11] {
        scripts.push(Script::one(compact(revision, revision % 2 == 0)));
    }
    let why = "etcd 3.7 streams ranges; 3.4 does not know the method";
    for (revision, expected) in [
        (5, "OutOfRange: etcdserver: mvcc: required revision has been compacted"),
        (6, r#"b"a"=b"2" b"b"=b"3" b"b/x"=b"1" b"b/y"=b"2" b"c"=b"4" count 5 more false at Some(10)"#),
    ] {
        scripts.push(Script::one(range_stream(RangeRequest { revision, ..everything() }, why, expected)));
    }
    scripts.push(Script::calls(
        "compaction to the newest revision keeps the newest",
        [
            compact(10, false),
            range(RangeRequest { revision: 9, ..everything() }),
            range(RangeRequest { revision: 10, ..everything() }),
            range(everything()),
            compact(10, true),
        ],
    ));
    scripts.push(Script::calls(
        "a deletion at the compacted revision",
        [
            put(value("gone", "1")),
            delete(deletion("gone", "")),
            compact(12, true),
            range(RangeRequest { revision: 12, ..key("gone") }),
            put(value("gone", "2")),
            range(key("gone")),
        ],
    ));
    scripts
}
