//! Transactions: comparisons, branches, nesting, and what is refused.

use bytes::Bytes;
use quorate_proto::etcd::compare::{CompareTarget, TargetUnion};
use quorate_proto::etcd::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::{
    RESULTS, TARGETS, always, bytes, compact, compare, conditional, deletion, everything, grant, key, never, op_delete,
    op_put, op_range, op_txn, operations, prefix, prefix_end, put, range, txn, value,
};
use crate::call::Call;
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("txn compare", compares()).distinct().with_setup(setup()),
        Group::new("txn in an unknown order", unknown_orders()),
        Group::new("txn", [branches(), duplicates(), refusals()].concat()).with_setup(setup()),
    ]
}

/// `a` has changed twice, `b` has a lease; ends at revision 6.
fn setup() -> Vec<Call> {
    vec![
        grant(7, 600),
        put(value("a", "one")),
        put(value("a", "two")),
        put(PutRequest { lease: 7, ..value("b", "two") }),
        put(value("p/1", "x")),
        put(value("p/2", "y")),
    ]
}

/// 3.4 ends its process over some of these.
fn unknown_orders() -> Vec<Script> {
    let orders = [
        RangeRequest { sort_order: 3, ..key("a") },
        RangeRequest { sort_target: 7, ..key("a") },
        RangeRequest { sort_order: -1, sort_target: 2, ..key("a") },
    ];
    let expected = "InvalidArgument: etcdserver: invalid sort option";
    let mut scripts = Vec::new();
    for order in orders {
        for list in [vec![op_range(order.clone())], vec![op_put(value("first", "1")), op_range(order.clone())]] {
            let call = txn(operations(list));
            scripts.push(Script::one(
                call.newer("3.5 refuses an order that it does not know", move |_| expected.to_owned()),
            ));
        }
    }
    scripts
}

/// A comparison with something below, at and above what is there.
fn wanted(target: CompareTarget) -> Vec<TargetUnion> {
    match target {
        CompareTarget::Version => [-1, 0, 1, 2, 3].map(TargetUnion::Version).to_vec(),
        CompareTarget::Create => [0, 1, 2, 4, 5].map(TargetUnion::CreateRevision).to_vec(),
        CompareTarget::Mod => [0, 2, 3, 4, 9].map(TargetUnion::ModRevision).to_vec(),
        CompareTarget::Value => ["", "one", "two", "zzz"].map(|text| TargetUnion::Value(bytes(text))).to_vec(),
        CompareTarget::Lease => [-1, 0, 6, 7, 8].map(TargetUnion::Lease).to_vec(),
    }
}

fn asks(compare: Compare) -> TxnRequest {
    let read = vec![op_range(RangeRequest { count_only: true, ..key("a") })];
    conditional(vec![compare], read.clone(), read)
}

fn compares() -> Vec<Script> {
    let mut scripts = Vec::new();
    for target in TARGETS {
        for result in RESULTS {
            for name in ["a", "b", "nothing"] {
                for union in wanted(target) {
                    scripts.push(Script::one(txn(asks(compare(name, result, union)))));
                }
            }
            // Every key of the interval must satisfy it.
            for (from, end) in [("p/", prefix_end("p/")), ("a", bytes("\0")), ("q", bytes("r"))] {
                let union = wanted(target).remove(1);
                let ranged = Compare { range_end: end, ..compare(from, result, union) };
                scripts.push(Script::one(txn(asks(ranged))));
            }
            // Without a value to compare with.
            let bare = Compare {
                result: result.into(),
                target: target.into(),
                key: bytes("a"),
                range_end: Bytes::new(),
                target_union: None,
            };
            scripts.push(Script::one(txn(asks(bare.clone()))));
            scripts.push(Script::one(txn(asks(Compare { key: bytes("nothing"), ..bare }))));
        }
        // The comparison is with another field than the value that is given.
        let crossed = Compare { target: target.into(), ..compare("a", RESULTS[0], TargetUnion::Version(2)) };
        scripts.push(Script::one(txn(asks(crossed))));
    }
    for (result, target) in [(4, 0), (-1, 0), (0, 5), (0, -1), (9, 9)] {
        let unknown = Compare { result, target, ..always() };
        scripts.push(Script::one(txn(asks(unknown))));
    }
    for compares in [vec![always(), never()], vec![always(), always()], vec![never(), always()]] {
        scripts.push(Script::one(txn(conditional(compares, vec![op_range(key("a"))], vec![op_range(key("b"))]))));
    }
    scripts.push(Script::one(txn(asks(Compare { key: Bytes::new(), ..always() }))));
    scripts
}

fn branches() -> Vec<Script> {
    let then = |name: &str, request: TxnRequest| Script::calls(name, [txn(request), range(everything())]);
    let nested = |inner: TxnRequest| operations(vec![op_put(value("n/1", "1")), op_txn(inner), op_range(prefix("n/"))]);
    vec![
        then("nothing at all", TxnRequest::default()),
        then("a branch that is empty", conditional(vec![never()], vec![op_put(value("x", "1"))], vec![])),
        then("the other branch", conditional(vec![never()], vec![], vec![op_put(value("x", "1"))])),
        then(
            "reads see what was written before them",
            operations(vec![
                op_range(key("r")),
                op_put(value("r", "1")),
                op_range(key("r")),
                op_range(RangeRequest { count_only: true, ..everything() }),
            ]),
        ),
        then(
            "every kind with its previous values",
            operations(vec![
                op_put(PutRequest { prev_kv: true, ..value("a", "three") }),
                op_delete(DeleteRangeRequest { prev_kv: true, ..deletion("p/", "p0") }),
                op_range(everything()),
                op_put(PutRequest { prev_kv: true, ..value("fresh", "1") }),
            ]),
        ),
        then(
            "a deletion after a put elsewhere",
            operations(vec![op_put(value("s/1", "1")), op_delete(deletion("t", "")), op_delete(deletion("a", ""))]),
        ),
        then("a deletion of nothing", operations(vec![op_delete(deletion("t", ""))])),
        then(
            "an old read within a write",
            operations(vec![op_put(value("o", "1")), op_range(RangeRequest { revision: 3, ..everything() })]),
        ),
        then("ignored value", operations(vec![op_put(PutRequest { ignore_value: true, ..value("b", "") })])),
        then("ignored lease", operations(vec![op_put(PutRequest { ignore_lease: true, ..value("b", "new") })])),
        then("nested, taken", nested(conditional(vec![always()], vec![op_put(value("n/2", "2"))], vec![]))),
        then("nested, not taken", nested(conditional(vec![never()], vec![op_put(value("n/2", "2"))], vec![]))),
        then("nested twice", nested(operations(vec![op_txn(operations(vec![op_put(value("n/3", "3"))]))]))),
        then(
            "a nested comparison sees the time before the transaction",
            nested(conditional(
                vec![compare("n/9", RESULTS[0], TargetUnion::Version(0))],
                vec![op_put(value("n/9", "9")), op_txn(conditional(vec![never()], vec![], vec![op_range(key("n/9"))]))],
                vec![],
            )),
        ),
        then("nested and only reading", operations(vec![op_txn(operations(vec![op_range(key("a"))]))])),
        then("nested and empty", operations(vec![op_txn(TxnRequest::default())])),
        then(
            "both branches may write the same",
            conditional(vec![always()], vec![op_put(value("w", "1"))], vec![op_put(value("w", "2"))]),
        ),
        then("the same deleted twice", operations(vec![op_delete(deletion("a", "c")), op_delete(deletion("a", "c"))])),
        then("read only", operations(vec![op_range(everything()), op_range(key("a"))])),
        then(
            "read only, sorted",
            operations(vec![op_range(RangeRequest { sort_order: 2, sort_target: 4, ..everything() })]),
        ),
        then(
            "read only, serializable",
            operations(vec![op_range(RangeRequest { serializable: true, ..everything() })]),
        ),
        then("read only, old", operations(vec![op_range(RangeRequest { revision: 3, ..everything() })])),
        then(
            "many operations have one revision",
            operations((0..50).map(|number| op_put(value(&format!("m/{number:02}"), "x"))).collect()),
        ),
        then(
            "what is wrong in a nested branch that is not taken",
            nested(conditional(
                vec![never()],
                vec![
                    op_put(PutRequest { lease: 99, ..value("n/4", "x") }),
                    op_put(PutRequest { ignore_value: true, ..value("n/5", "") }),
                    op_range(RangeRequest { revision: 9999, ..key("a") }),
                ],
                vec![op_put(value("n/6", "6"))],
            )),
        ),
        then(
            "what is wrong in a nested branch that is taken",
            nested(conditional(vec![always()], vec![op_put(PutRequest { lease: 99, ..value("n/4", "x") })], vec![])),
        ),
        then(
            "reads that are cut, counted, filtered and sorted",
            operations(vec![
                op_put(value("o/1", "2")),
                op_put(value("o/2", "1")),
                op_range(RangeRequest { limit: 1, ..everything() }),
                op_range(RangeRequest { limit: 1, keys_only: true, ..prefix("o/") }),
                op_range(RangeRequest { limit: 1, count_only: true, ..prefix("o/") }),
                op_range(RangeRequest { min_mod_revision: 5, ..everything() }),
                op_range(RangeRequest { max_create_revision: 4, sort_order: 2, sort_target: 3, ..everything() }),
            ]),
        ),
        then(
            "reads see deletions before them",
            operations(vec![
                op_put(value("q/1", "1")),
                op_delete(DeleteRangeRequest { prev_kv: true, ..deletion("p/", "p0") }),
                op_range(RangeRequest { count_only: true, ..prefix("p/") }),
                op_delete(DeleteRangeRequest { prev_kv: true, ..deletion("p/", "p0") }),
            ]),
        ),
    ]
}

fn duplicates() -> Vec<Script> {
    let one = || op_put(value("d", "1"));
    let inner = |operations_in: Vec<RequestOp>| op_txn(operations(operations_in));
    let either = |first: Vec<RequestOp>, second: Vec<RequestOp>| op_txn(conditional(vec![always()], first, second));
    let lists: Vec<(&str, Vec<RequestOp>)> = vec![
        ("two puts", vec![one(), one()]),
        ("put, delete", vec![one(), op_delete(deletion("d", ""))]),
        ("delete, put", vec![op_delete(deletion("d", "")), one()]),
        ("delete of a range, put", vec![op_delete(deletion("c", "e")), one()]),
        ("put, delete of a range", vec![one(), op_delete(deletion("c", "e"))]),
        ("delete of a range that ends before the put", vec![op_delete(deletion("c", "d")), one()]),
        ("delete of a range that begins after the put", vec![one(), op_delete(deletion("d\0", "e"))]),
        ("put, nested put", vec![one(), inner(vec![one()])]),
        ("nested put, put", vec![inner(vec![one()]), one()]),
        ("two nested puts", vec![inner(vec![one()]), inner(vec![one()])]),
        ("branches of one nested", vec![either(vec![one()], vec![one()])]),
        ("put in one branch, delete in the other", vec![either(vec![one()], vec![op_delete(deletion("d", ""))])]),
        ("branches, then a put", vec![either(vec![one()], vec![]), one()]),
        ("nested delete, put", vec![inner(vec![op_delete(deletion("c", "e"))]), one()]),
    ];
    let mut scripts: Vec<Script> = lists
        .into_iter()
        .map(|(name, list)| Script::calls(format!("duplicates: {name}"), [txn(operations(list)), range(everything())]))
        .collect();
    scripts.push(Script::one(txn(conditional(vec![always()], vec![], vec![one(), one()]))));
    scripts
}

fn refusals() -> Vec<Script> {
    let list = |operations_in: Vec<RequestOp>| operations(operations_in);
    let requests = vec![
        list(vec![op_put(PutRequest::default())]),
        list(vec![op_range(RangeRequest::default())]),
        list(vec![op_delete(DeleteRangeRequest::default())]),
        list(vec![op_txn(list(vec![op_put(PutRequest::default())]))]),
        conditional(vec![always()], vec![], vec![op_put(PutRequest::default())]),
        list(vec![RequestOp { request: None }]),
        list(vec![op_put(PutRequest { ignore_value: true, ..value("a", "x") })]),
        list(vec![op_put(PutRequest { ignore_lease: true, lease: 1, ..value("a", "x") })]),
        list(vec![op_put(value("first", "1")), op_put(PutRequest { ignore_value: true, ..value("none", "") })]),
        list(vec![op_put(value("first", "1")), op_put(PutRequest { ignore_lease: true, ..value("none", "") })]),
        list(vec![op_put(value("first", "1")), op_put(PutRequest { lease: 99, ..value("second", "") })]),
        list(vec![op_put(PutRequest { lease: 99, ignore_value: true, ..value("none", "") })]),
        list(vec![op_range(RangeRequest { revision: 99, ..key("a") })]),
        list(vec![op_put(value("first", "1")), op_range(RangeRequest { revision: 9999, ..key("a") })]),
        list(vec![op_range(RangeRequest { revision: -1, ..key("a") })]),
        list(vec![op_put(value("minus", "1")), op_range(RangeRequest { revision: -1, ..key("a") })]),
        conditional(vec![never()], vec![op_put(PutRequest { lease: 99, ..value("x", "") })], vec![op_range(key("a"))]),
    ];
    let mut scripts: Vec<Script> = requests
        .into_iter()
        .map(|request| Script::calls(format!("{request:?}"), [txn(request), range(everything())]))
        .collect();
    scripts.push(Script::calls(
        "a compacted read stops a transaction before it writes",
        [
            put(value("c", "1")),
            compact(6, true),
            txn(list(vec![op_put(value("c", "2")), op_range(RangeRequest { revision: 5, ..key("a") })])),
            txn(list(vec![op_put(value("c", "3")), op_range(RangeRequest { revision: 6, ..key("a") })])),
            txn(list(vec![op_range(RangeRequest { revision: 5, ..key("a") })])),
            range(everything()),
        ],
    ));
    scripts
}
