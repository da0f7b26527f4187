//! The order of a merged list: items that a patch names keep the patch's sequence,
//! items that only the server has stay where they were.

use std::cmp::Ordering;

use serde_json::Value;

/// Whether two items are one: by `key`, or as a whole when it is empty.
pub(super) fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
}

/// Orders `merged` by the sequence `wanted`; what `wanted` lacks goes by `server`.
pub(super) fn enforce(merged: Vec<Value>, wanted: &[Value], server: &[Value], key: &str) -> Vec<Value> {
    let position = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut patched, mut server_only): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(wanted, item).is_some());
    let sort = |items: &mut Vec<Value>, by: &[Value]| {
        items.sort_by(|a, b| match (position(by, a), position(by, b)) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => Ordering::Equal,
        });
    };
    sort(&mut patched, wanted);
    sort(&mut server_only, server);

    let mut ordered = Vec::with_capacity(patched.len() + server_only.len());
    let mut server_only = server_only.into_iter().peekable();
    for item in patched {
        while let Some(other) = server_only.peek() {
            // Only where the server knew both does it say which came first.
            match (position(server, other), position(server, &item)) {
                (Some(other), Some(item)) if other < item => ordered.extend(server_only.next()),
                _ => break,
            }
        }
        ordered.push(item);
    }
    ordered.extend(server_only);
    ordered
}
