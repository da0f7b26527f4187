//! How an object's JSON is laid out in the store and on the wire.
//!
//! Stored form: compact JSON that begins `{"kind":…,"apiVersion":…,"metadata":{`,
//! then metadata's fields, then every other field in the order of their names;
//! `metadata.resourceVersion` is never stored. Because the place of the
//! resourceVersion is fixed, reading costs one copy and no parse.

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};

/// Lays `object` out in the stored form.
///
/// # Panics
/// When `object` is not a JSON object: callers have validated it.
pub fn encode_stored(object: &Value) -> Bytes {
    let fields = object.as_object().expect("an API object is a JSON object");
    let mut out = Vec::with_capacity(512);
    out.push(b'{');
    for name in ["kind", "apiVersion"] {
        write_key(&mut out, name);
        write_value(&mut out, fields.get(name).unwrap_or(&Value::Null));
        out.push(b',');
    }
    write_key(&mut out, "metadata");
    out.push(b'{');
    if let Some(Value::Object(metadata)) = fields.get("metadata") {
        write_fields(&mut out, metadata, |name| name != "resourceVersion", true);
    }
    out.push(b'}');
    write_fields(&mut out, fields, |name| !matches!(name, "kind" | "apiVersion" | "metadata"), false);
    out.push(b'}');
    Bytes::from(out)
}

/// Where the stored form of an object is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// Where `"metadata"` begins: list items of built-in kinds start here.
    pub metadata_key: usize,
    /// The first byte after `"metadata":{`.
    pub metadata_fields: usize,
}

/// Finds the cuts of a stored object, or `None` when the bytes are not in the stored form.
pub fn cuts(stored: &[u8]) -> Option<Cuts> {
    const METADATA: &[u8] = b"\"metadata\":{";
    let rest = stored.strip_prefix(b"{\"kind\":")?;
    let rest = skip_string(rest)?.strip_prefix(b",\"apiVersion\":")?;
    let rest = skip_string(rest)?.strip_prefix(b",")?;
    let metadata_key = stored.len() - rest.len();
    rest.starts_with(METADATA).then_some(Cuts { metadata_key, metadata_fields: metadata_key + METADATA.len() })
}

/// Copies a stored object with its resourceVersion put in.
pub fn splice_resource_version(stored: &[u8], cuts: Cuts, revision: u64) -> Bytes {
    let (head, tail) = stored.split_at(cuts.metadata_fields);
    let mut out = BytesMut::with_capacity(stored.len() + 44);
    out.extend_from_slice(head);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.extend_from_slice(if tail.first() == Some(&b'}') { b"\"" } else { b"\"," });
    out.extend_from_slice(tail);
    out.freeze()
}

fn skip_string(bytes: &[u8]) -> Option<&[u8]> {
    let inner = bytes.strip_prefix(b"\"")?;
    let mut escaped = false;
    for (index, byte) in inner.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(&inner[index + 1..]),
            _ => {}
        }
    }
    None
}

fn write_fields(out: &mut Vec<u8>, fields: &Map<String, Value>, wanted: impl Fn(&str) -> bool, mut first: bool) {
    let mut names: Vec<&String> = fields.keys().filter(|name| wanted(name)).collect();
    names.sort_unstable();
    for name in names {
        if !first {
            out.push(b',');
        }
        first = false;
        write_key(out, name);
        write_value(out, &fields[name]);
    }
}

fn write_key(out: &mut Vec<u8>, name: &str) {
    serde_json::to_writer(&mut *out, name).expect("writing to memory does not fail");
    out.push(b':');
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(&mut *out, value).expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(object: Value, revision: u64, expected: &str) {
        let stored = encode_stored(&object);
        let cuts = cuts(&stored).expect("the stored form has its cuts");
        let spliced = splice_resource_version(&stored, cuts, revision);
        assert_eq!(std::str::from_utf8(&spliced).unwrap(), expected);
        assert!(spliced[cuts.metadata_key..].starts_with(b"\"metadata\":{"));
    }

    #[test]
    fn the_resource_version_lands_in_metadata() {
        check(
            json!({"apiVersion": "v1", "data": {"a": "b"}, "kind": "ConfigMap",
                   "metadata": {"name": "x", "resourceVersion": "3"}}),
            17,
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"17","name":"x"},"data":{"a":"b"}}"#,
        );
        check(
            json!({"apiVersion": "v1", "kind": "A\"B", "metadata": {}}),
            1,
            r#"{"kind":"A\"B","apiVersion":"v1","metadata":{"resourceVersion":"1"}}"#,
        );
    }

    #[test]
    fn other_bytes_have_no_cuts() {
        for bytes in ["", "{}", "{\"kind\":\"A", "{\"kind\":\"A\",\"apiVersion\":\"v1\",\"spec\":{}}"] {
            assert_eq!(cuts(bytes.as_bytes()), None, "{bytes}");
        }
    }
}
