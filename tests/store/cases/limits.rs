//! The limits of a request: what is let in to the last byte, and what is not by one.

use bytes::Bytes;
use quorate_proto::etcd::{PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::{always, conditional, key, op_put, op_range, op_txn, operations, put, range, txn, value};
use crate::script::{Group, Script};

/// etcd's `--max-request-bytes`.
const MAX_REQUEST_BYTES: usize = 3 << 19;

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("operations of a transaction", operations_of_a_transaction()),
        Group::new("bytes of a request", bytes_of_a_request()),
        Group {
            flags: &["--max-txn-ops=4", "--max-request-bytes=1000"],
            ..Group::new("limits that are set", set_limits())
        },
    ]
}

fn puts(count: usize) -> Vec<RequestOp> {
    (0..count).map(|number| op_put(value(&format!("k{number:03}"), "x"))).collect()
}

fn shown(name: String, request: TxnRequest) -> Script {
    let counted = RangeRequest { count_only: true, ..super::everything() };
    Script::calls(name, [txn(request), range(counted)])
}

fn operations_of_a_transaction() -> Vec<Script> {
    let mut scripts = Vec::new();
    for count in [127, 128, 129, 500] {
        scripts.push(shown(format!("{count} compares"), conditional(vec![always(); count], vec![], vec![])));
        scripts.push(shown(format!("{count} on success"), operations(puts(count))));
        scripts.push(shown(format!("{count} on failure"), conditional(vec![always()], vec![], puts(count))));
        scripts.push(shown(format!("{count} reads"), operations(vec![op_range(key("k")); count])));
        scripts.push(shown(format!("{count} nested"), operations(vec![op_txn(operations(puts(count)))])));
        let halves = conditional(vec![always(); count], puts(count), puts(count));
        scripts.push(shown(format!("{count} of each"), halves));
    }
    for (outer, inner) in [(1, 127), (1, 128), (2, 126), (2, 127), (100, 28), (100, 29)] {
        let mut list = vec![op_txn(operations(vec![op_range(key("k")); inner]))];
        list.extend(vec![op_range(key("k")); outer - 1]);
        scripts.push(shown(format!("{outer} around {inner}"), operations(list)));
    }
    let mut deep = operations(vec![op_put(value("deep", "x"))]);
    for _ in 0..20 {
        deep = operations(vec![op_txn(deep)]);
    }
    scripts.push(shown("twenty deep".to_owned(), deep));
    scripts
}

/// A put whose value has `size` bytes.
fn large(size: usize) -> PutRequest {
    PutRequest { value: Bytes::from(vec![b'x'; size]), ..value("large", "") }
}

fn bytes_of_a_request() -> Vec<Script> {
    use prost::Message;
    // The size of what surrounds the value: a put of just the limit.
    let overhead = large(MAX_REQUEST_BYTES).encoded_len() - MAX_REQUEST_BYTES;
    let mut scripts = Vec::new();
    for size in [MAX_REQUEST_BYTES - overhead - 64, MAX_REQUEST_BYTES + 1, 2 << 20, (2 << 20) + 600, 3 << 20] {
        let count = RangeRequest { count_only: true, ..key("large") };
        scripts.push(Script::calls(format!("a put of {size} bytes"), [put(large(size)), range(count)]));
    }
    for size in [MAX_REQUEST_BYTES - 200, MAX_REQUEST_BYTES + 1] {
        let half = Bytes::from(vec![b'x'; size / 2]);
        let list = ["h1", "h2"].map(|name| op_put(PutRequest { value: half.clone(), ..value(name, "") }));
        let count = RangeRequest { count_only: true, ..key("h1") };
        scripts.push(Script::calls(
            format!("a transaction of {size} bytes"),
            [txn(operations(list.to_vec())), range(count)],
        ));
    }
    let long = RangeRequest { key: Bytes::from(vec![b'k'; 1 << 20]), ..RangeRequest::default() };
    scripts.push(Script::calls("a read of a key of a MiB", [range(long)]));
    scripts.push(Script::calls("what is large can be read", [range(key("large")), range(key("h1"))]));
    scripts
}

fn set_limits() -> Vec<Script> {
    let mut scripts = Vec::new();
    for count in [4, 5] {
        scripts.push(shown(format!("{count} operations"), operations(puts(count))));
    }
    for size in [500, 1001, 5000] {
        scripts.push(Script::calls(format!("{size} bytes"), [put(large(size))]));
    }
    scripts
}
