//! Watches: whole conversations, every response of both in its order.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcd::watch_create_request::FilterType;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::{
    DeleteRangeRequest, PutRequest, ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};

use super::{
    always, bytes, compact, conditional, delete, deletion, op_delete, op_put, operations, prefix_end, put, txn, value,
};
use crate::call::{Call, Newer, Who, normalise, render};
use crate::script::{Group, Script, Step};
use crate::stream::Act;

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("watch", [starts(), ids(), endings()].concat()).with_setup(history()),
        Group::new("watch, live", [live(), progress()].concat()),
        Group::new("watch of compacted history", after_compaction())
            .with_setup([history(), vec![compact(6, true)]].concat()),
        Group::new("watch, large", large()),
        Group::new("watch, long history", long()).with_setup(long_history()),
        Group {
            flags: &["--experimental-watch-progress-notify-interval=1500ms"],
            ..Group::new("watch, told of progress", told_of_progress())
        },
    ]
}

/// Ends at revision 11.
fn history() -> Vec<Call> {
    vec![
        put(value("a", "1")),
        put(value("b", "1")),
        txn(operations(vec![op_put(value("a", "2")), op_put(value("c", "1")), op_put(value("z", "1"))])),
        delete(deletion("b", "")),
        put(value("b", "2")),
        put(value("a", "3")),
        delete(deletion("a", "c")),
        put(value("a", "4")),
        txn(conditional(vec![always()], vec![op_delete(deletion("c", "")), op_put(value("d", "1"))], vec![])),
        put(value("a", "5")),
    ]
}

pub(super) fn create(request: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

fn cancel(watch_id: i64) -> Act<WatchRequest> {
    let request = WatchCancelRequest { watch_id };
    Act::Send(WatchRequest { request_union: Some(RequestUnion::CancelRequest(request)) })
}

fn ask_progress() -> Act<WatchRequest> {
    Act::Send(WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) })
}

fn begin(request: WatchCreateRequest) -> Act<WatchRequest> {
    Act::Send(create(request))
}

pub(super) fn of_key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), ..WatchCreateRequest::default() }
}

pub(super) fn of_prefix(prefix: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(prefix), range_end: prefix_end(prefix), ..WatchCreateRequest::default() }
}

fn of_interval(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..WatchCreateRequest::default() }
}

fn script(name: impl Into<String>, acts: Vec<Act<WatchRequest>>) -> Script {
    Script::new(name, [Step::Watch(Who::Leader, acts)])
}

const FILTERS: [&[FilterType]; 4] =
    [&[], &[FilterType::Noput], &[FilterType::Nodelete], &[FilterType::Noput, FilterType::Nodelete]];

fn filters(list: &[FilterType]) -> Vec<i32> {
    list.iter().map(|filter| i32::from(*filter)).collect()
}

/// Every start, with every filter, with and without previous values, then something live.
fn starts() -> Vec<Script> {
    let mut scripts = Vec::new();
    for start_revision in [0, 1, 2, 4, 5, 8, 10, 11, 12, 13] {
        for list in FILTERS {
            for prev_kv in [false, true] {
                let request =
                    WatchCreateRequest { start_revision, filters: filters(list), prev_kv, ..of_interval("\0", "\0") };
                scripts.push(script(format!("{request:?}"), vec![begin(request)]));
            }
        }
    }
    for (key, end) in [("a", ""), ("a", "c"), ("b", "\0"), ("", ""), ("", "\0"), ("", "b"), ("c", "a"), ("nothing", "")]
    {
        for fragment in [false, true] {
            let request = WatchCreateRequest { start_revision: 2, fragment, prev_kv: true, ..of_interval(key, end) };
            scripts.push(script(format!("{request:?}"), vec![begin(request)]));
        }
    }
    for start_revision in [i64::MAX, 1_000_000] {
        let request = WatchCreateRequest { start_revision, ..of_key("a") };
        scripts.push(script(format!("{request:?}"), vec![begin(request.clone()), begin(of_key("a"))]));
    }
    for start_revision in [-1, i64::MIN] {
        let request = WatchCreateRequest { start_revision, ..of_key("a") };
        let header = Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: 11, raft_term: 1 });
        let newer = WatchResponse {
            header,
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: "etcdserver: mvcc: required revision has been compacted".to_owned(),
            ..WatchResponse::default()
        };
        let newer = Newer {
            why: "3.5 refuses to begin before the first revision",
            answer: Arc::new(move |_| normalise(&render(&Ok(newer.clone())), &[])),
        };
        let name = format!("{request:?}");
        scripts.push(Script::new(name, [Step::NewerWatch(vec![begin(request)], newer)]));
    }
    for unknown in [2, -1, 99] {
        let request = WatchCreateRequest { filters: vec![unknown], start_revision: 2, ..of_key("a") };
        scripts.push(script(format!("{request:?}"), vec![begin(request)]));
    }
    scripts
}

fn ids() -> Vec<Script> {
    let named = |watch_id: i64| WatchCreateRequest { watch_id, ..of_key("a") };
    vec![
        script("ids are counted", vec![begin(of_key("a")), begin(of_key("b")), begin(of_key("a"))]),
        script("an id is chosen", vec![begin(named(7)), begin(of_key("a")), begin(named(8))]),
        script("a chosen id is skipped when counting", vec![begin(named(1)), begin(of_key("a")), begin(of_key("a"))]),
        script("an id twice", vec![begin(named(7)), begin(named(7)), begin(named(7))]),
        script("an id that was counted", vec![begin(of_key("a")), begin(of_key("a")), begin(named(1))]),
        script("an id again after it was cancelled", vec![begin(named(7)), cancel(7), begin(named(7))]),
        script("counted ids are not given again", vec![begin(of_key("a")), cancel(0), begin(of_key("a"))]),
        script("a negative id", vec![begin(named(-1)), begin(named(-2)), cancel(-2)]),
        script("the largest id", vec![begin(named(i64::MAX)), begin(of_key("a"))]),
        script("the same key under two ids", vec![begin(named(3)), begin(named(4)), cancel(3), cancel(4)]),
        script(
            "many at once",
            vec![Act::SendAll((0..20).map(|number| create(of_key(&format!("k{number}")))).collect())],
        ),
    ]
}

fn endings() -> Vec<Script> {
    vec![
        script("cancel", vec![begin(of_key("a")), cancel(0)]),
        script("cancel twice", vec![begin(of_key("a")), cancel(0), cancel(0)]),
        script("cancel what never was", vec![cancel(5), begin(of_key("a"))]),
        script("half close", vec![begin(of_key("a")), Act::HalfClose]),
        script("half close at once", vec![Act::HalfClose]),
        script("nothing asked", vec![Act::Send(WatchRequest { request_union: None }), begin(of_key("a"))]),
    ]
}

fn live() -> Vec<Script> {
    let mut scripts = Vec::new();
    for list in FILTERS {
        for prev_kv in [false, true] {
            let request = WatchCreateRequest { filters: filters(list), prev_kv, ..of_prefix("l/") };
            let acts = vec![
                begin(request.clone()),
                Act::Do(put(value("l/1", "1"))),
                Act::Do(put(value("l/1", "2"))),
                Act::Do(put(value("m", "elsewhere"))),
                Act::Do(delete(DeleteRangeRequest { prev_kv: true, ..deletion("l/1", "") })),
                Act::Do(delete(deletion("l/1", ""))),
                Act::Do(txn(operations(vec![
                    op_put(value("l/2", "1")),
                    op_put(value("m", "2")),
                    op_put(value("l/1", "3")),
                ]))),
                Act::Do(txn(operations(vec![op_delete(deletion("l/", "l0")), op_put(value("n", "1"))]))),
                cancel(0),
                Act::Do(put(value("l/1", "unseen"))),
            ];
            scripts.push(script(format!("live {request:?}"), acts));
        }
    }
    scripts.push(script(
        "two watches, one stream",
        vec![
            begin(of_key("p")),
            begin(WatchCreateRequest { prev_kv: true, ..of_key("q") }),
            Act::Do(put(value("p", "1"))),
            Act::Do(put(value("q", "1"))),
            cancel(0),
            Act::Do(put(value("p", "2"))),
            Act::Do(put(value("q", "2"))),
        ],
    ));
    scripts.push(script(
        "a put that ignores its value",
        vec![
            Act::Do(put(value("i", "kept"))),
            begin(of_key("i")),
            Act::Do(put(PutRequest { ignore_value: true, ..value("i", "") })),
        ],
    ));
    scripts.push(script(
        "a failed transaction says nothing",
        vec![
            begin(of_interval("\0", "\0")),
            Act::Do(txn(operations(vec![
                op_put(value("f", "1")),
                op_put(PutRequest { lease: 99, ..value("g", "1") }),
            ]))),
            Act::Do(delete(deletion("none", ""))),
            Act::Do(put(value("f", "2"))),
        ],
    ));
    scripts
}

/// 3.4 tells of progress although nothing is watched.
fn without_watches(name: &str, acts: Vec<Act<WatchRequest>>) -> Script {
    let newer = Newer {
        why: "3.4.31 and 3.5.13 tell the progress of watches, of which there are none; and none before they begin",
        answer: Arc::new(|answer| {
            let messages: Vec<&str> = answer.split("\n}").collect();
            let kept: Vec<&str> =
                messages.into_iter().filter(|message| !message.contains("    watch_id: -1,")).collect();
            kept.join("\n}").trim_start().to_owned()
        }),
    };
    Script::new(name, [Step::NewerWatch(acts, newer)])
}

fn progress() -> Vec<Script> {
    let future = WatchCreateRequest { start_revision: 100_000, ..of_key("a") };
    vec![
        without_watches("progress of what begins later", vec![begin(future), ask_progress()]),
        without_watches("progress of nothing", vec![ask_progress(), begin(of_key("a"))]),
        script("progress of one", vec![begin(of_key("a")), ask_progress()]),
        script(
            "progress of several",
            vec![
                begin(of_key("a")),
                begin(of_key("b")),
                Act::Do(put(value("other", "1"))),
                ask_progress(),
                Act::Do(put(value("a", "1"))),
                ask_progress(),
            ],
        ),
        without_watches(
            "progress after the last was cancelled",
            vec![begin(of_key("a")), cancel(0), ask_progress(), begin(of_key("b"))],
        ),
        script(
            "asked to be told of progress",
            vec![begin(WatchCreateRequest { progress_notify: true, ..of_key("a") }), Act::Do(put(value("a", "1")))],
        ),
    ]
}

fn after_compaction() -> Vec<Script> {
    let mut scripts = Vec::new();
    for start_revision in [0, 1, 2, 5, 6, 7, 8, 11, 12] {
        for prev_kv in [false, true] {
            let request = WatchCreateRequest { start_revision, prev_kv, ..of_interval("\0", "\0") };
            scripts.push(script(format!("{request:?}"), vec![begin(request)]));
        }
    }
    scripts.push(script(
        "a watch that is compacted does not end the others",
        vec![
            begin(of_key("a")),
            begin(WatchCreateRequest { start_revision: 3, ..of_key("a") }),
            Act::Hear(3),
            Act::Do(put(value("a", "still"))),
            begin(WatchCreateRequest { start_revision: 1, watch_id: 9, ..of_key("a") }),
            Act::Hear(6),
            begin(WatchCreateRequest { watch_id: 9, ..of_key("a") }),
        ],
    ));
    scripts.push(script(
        "the id of a compacted watch is free once it is cancelled",
        vec![
            begin(WatchCreateRequest { start_revision: 1, watch_id: 9, ..of_key("a") }),
            Act::Hear(2),
            cancel(9),
            cancel(9),
            begin(WatchCreateRequest { watch_id: 9, ..of_key("a") }),
        ],
    ));
    scripts.push(script(
        "compaction passes by a watch that is at the end, or begins later",
        vec![
            begin(of_key("f/1")),
            begin(WatchCreateRequest { start_revision: 15, ..of_key("f/2") }),
            Act::Do(put(value("f/1", "13"))),
            Act::Do(put(value("f/1", "14"))),
            Act::Do(compact(14, true)),
            Act::Do(put(value("f/2", "15"))),
            begin(WatchCreateRequest { start_revision: 14, ..of_prefix("f/") }),
            begin(WatchCreateRequest { start_revision: 13, ..of_prefix("f/") }),
        ],
    ));
    scripts
}

/// Revisions 2 to 2401; every third one is of `odd/`.
fn long_history() -> Vec<Call> {
    let key = |number: usize| {
        if number.is_multiple_of(3) { format!("odd/{}", number % 7) } else { format!("k/{}", number % 5) }
    };
    (0..2400).map(|number| put(value(&key(number), &number.to_string()))).collect()
}

/// History comes in responses of a thousand revisions.
fn long() -> Vec<Script> {
    let requests = [
        WatchCreateRequest { start_revision: 1, ..of_interval("\0", "\0") },
        WatchCreateRequest { start_revision: 1, fragment: true, prev_kv: true, ..of_interval("\0", "\0") },
        WatchCreateRequest { start_revision: 400, ..of_prefix("odd/") },
        WatchCreateRequest { start_revision: 2, ..of_prefix("k/") },
        WatchCreateRequest { start_revision: 2, filters: filters(&[FilterType::Noput]), ..of_prefix("k/") },
        WatchCreateRequest { start_revision: 2, ..of_key("odd/3") },
        WatchCreateRequest { start_revision: 1402, ..of_interval("\0", "\0") },
        WatchCreateRequest { start_revision: 1403, ..of_interval("\0", "\0") },
    ];
    requests.into_iter().map(|request| script(format!("{request:?}"), vec![begin(request)])).collect()
}

/// The clusters are told to tell it every 1.5 to 1.65 s.
fn told_of_progress() -> Vec<Script> {
    let told = |key: &str| WatchCreateRequest { progress_notify: true, ..of_key(key) };
    vec![
        script("a quiet watch", vec![begin(told("a")), Act::Do(put(value("b", "1"))), Act::Hear(2)]),
        script(
            "a watch that has seen something is told of the next interval only",
            vec![begin(told("a")), Act::Do(put(value("a", "1"))), Act::Do(put(value("b", "1"))), Act::Hear(3)],
        ),
        script("nobody is told who did not ask", vec![begin(of_key("a")), begin(told("a")), Act::Hear(3)]),
        Script::new(
            "nobody is told who begins later",
            [Step::NewerWatch(
                vec![begin(WatchCreateRequest { start_revision: 1000, ..told("a") }), Act::Hear(2)],
                Newer {
                    why: "3.6 tells no progress below the revision at which a watch begins",
                    answer: Arc::new(|answer| answer.split_inclusive("\n}").take(1).collect()),
                },
            )],
        ),
    ]
}

/// Responses that are larger than a request may be: whole, and in pieces if that was asked.
fn large() -> Vec<Script> {
    let big = |name: &str| PutRequest { value: Bytes::from(vec![b'v'; 700 << 10]), ..value(name, "") };
    let mut scripts = Vec::new();
    for fragment in [false, true] {
        let request = WatchCreateRequest { fragment, ..of_prefix("big/") };
        scripts.push(script(
            format!("live and large, fragment {fragment}"),
            vec![
                begin(request),
                Act::Do(put(big("big/1"))),
                Act::Do(put(big("big/2"))),
                Act::Do(put(big("big/3"))),
                Act::Do(delete(deletion("big/", "big0"))),
            ],
        ));
        let request = WatchCreateRequest { fragment: true, start_revision: 1, prev_kv: fragment, ..of_prefix("big/") };
        scripts.push(script(format!("from history in pieces, prev_kv {fragment}"), vec![begin(request)]));
        let request = WatchCreateRequest { fragment, prev_kv: true, ..of_prefix("big/") };
        scripts.push(script(
            format!("a deletion with large previous values, fragment {fragment}"),
            vec![
                Act::Do(put(big("big/1"))),
                Act::Do(put(big("big/2"))),
                Act::Do(put(big("big/3"))),
                begin(request),
                Act::Do(delete(deletion("big/", "big0"))),
            ],
        ));
    }
    scripts
}
