//! JSON to messages and back, by their descriptors, as grpc-gateway does for etcd:
//! proto3's mapping with the names of the `.proto` files, defaults left out.

use std::fmt::Write;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::{DecodePaddingMode, general_purpose};
use bytes::Bytes;
use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};
use serde_json::Value as Json;

/// Padding may be missing, as newer etcd takes it.
const LENIENT: GeneralPurposeConfig = general_purpose::PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_IN: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE_IN: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The message that `json` describes. Both names of a field are taken, the camel-case one
/// first; unknown fields are passed over, as etcd does; `null` is the default.
///
/// # Errors
/// Says which field is wrong, and why.
pub(super) fn decode(descriptor: &MessageDescriptor, json: &Json) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let object = match json {
        Json::Null => return Ok(message),
        Json::Object(object) => object,
        other => return Err(format!("{} is not an object", kind_of(other))),
    };
    for field in descriptor.fields() {
        let Some(json) = object.get(field.json_name()).or_else(|| object.get(field.name())) else { continue };
        if json.is_null() {
            continue;
        }
        if let Some(choice) = field.containing_oneof()
            && choice.fields().any(|other| message.has_field(&other))
        {
            return Err(format!("field {}: another field of {} is given too", field.name(), choice.name()));
        }
        let value = decode_field(&field, json).map_err(|reason| format!("field {}: {reason}", field.name()))?;
        message.set_field(&field, value);
    }
    Ok(message)
}

fn decode_field(field: &FieldDescriptor, json: &Json) -> Result<Value, String> {
    if !field.is_list() {
        return decode_value(&field.kind(), json);
    }
    let Json::Array(items) = json else { return Err(format!("{} is not a list", kind_of(json))) };
    let items = items.iter().map(|item| decode_value(&field.kind(), item));
    items.collect::<Result<_, _>>().map(Value::List)
}

fn decode_value(kind: &Kind, json: &Json) -> Result<Value, String> {
    match (kind, json) {
        (Kind::Message(descriptor), json) => decode(descriptor, json).map(Value::Message),
        (Kind::Bool, Json::Bool(value)) => Ok(Value::Bool(*value)),
        (Kind::String, Json::String(text)) => Ok(Value::String(text.clone())),
        (Kind::Bytes, Json::String(text)) => decode_bytes(text).map(Value::Bytes),
        (Kind::Enum(descriptor), json) => decode_enum(descriptor, json).map(Value::EnumNumber),
        (Kind::Int64, json) => integer(json, "int64").map(Value::I64),
        (Kind::Uint64, json) => integer(json, "uint64").map(Value::U64),
        (Kind::Int32, json) => integer(json, "int32").map(Value::I32),
        (Kind::Uint32, json) => integer(json, "uint32").map(Value::U32),
        (kind, json) => Err(format!("{} is not a {kind:?}", kind_of(json)).to_lowercase()),
    }
}

/// Integers come as numbers or, as 64 bits do not fit every client's numbers, as text.
fn integer<T: std::str::FromStr>(json: &Json, name: &str) -> Result<T, String> {
    let text = match json {
        Json::Number(number) => number.to_string(),
        Json::String(text) => text.clone(),
        other => return Err(format!("{} is not an {name}", kind_of(other))),
    };
    text.parse().map_err(|_| format!("{text:?} is not an {name}"))
}

fn decode_enum(descriptor: &EnumDescriptor, json: &Json) -> Result<i32, String> {
    let Json::String(name) = json else { return integer(json, "int32") };
    let found = descriptor.get_value_by_name(name).map(|value| value.number());
    found.ok_or_else(|| format!("unknown value {name:?} for enum {}", enum_name(descriptor)))
}

/// As etcd writes it: `etcdserverpb.RangeRequest_SortOrder`.
fn enum_name(descriptor: &EnumDescriptor) -> String {
    let package = descriptor.package_name();
    let name = descriptor.full_name().trim_start_matches(package).trim_start_matches('.');
    format!("{package}.{}", name.replace('.', "_"))
}

fn decode_bytes(text: &str) -> Result<Bytes, String> {
    let engine = if text.contains(['-', '_']) { URL_SAFE_IN } else { STANDARD_IN };
    engine.decode(text).map(Bytes::from).map_err(|error| format!("illegal base64 data: {error}"))
}

fn kind_of(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

/// The message as JSON, byte for byte as etcd prints it: fields in the order of their
/// numbers, 64-bit integers as text, defaults left out.
pub(super) fn encode(message: &DynamicMessage) -> String {
    let mut out = String::new();
    encode_message(&mut out, message);
    out
}

fn encode_message(out: &mut String, message: &DynamicMessage) {
    out.push('{');
    let mut first = true;
    for field in message.descriptor().fields().filter(|field| message.has_field(field)) {
        if !first {
            out.push(',');
        }
        first = false;
        quote(out, field.name());
        out.push(':');
        encode_value(out, &field.kind(), &message.get_field(&field));
    }
    out.push('}');
}

fn encode_value(out: &mut String, kind: &Kind, value: &Value) {
    // Writing to a `String` cannot fail.
    let _ = match value {
        Value::Bool(value) => write!(out, "{value}"),
        Value::I32(value) => write!(out, "{value}"),
        Value::U32(value) => write!(out, "{value}"),
        Value::I64(value) => write!(out, "\"{value}\""),
        Value::U64(value) => write!(out, "\"{value}\""),
        Value::F32(value) => write!(out, "{value}"),
        Value::F64(value) => write!(out, "{value}"),
        Value::String(text) => {
            quote(out, text);
            Ok(())
        }
        Value::Bytes(bytes) => {
            out.push('"');
            STANDARD.encode_string(bytes, out);
            out.push('"');
            Ok(())
        }
        Value::EnumNumber(number) => {
            match kind.as_enum().and_then(|descriptor| descriptor.get_value(*number)) {
                Some(value) => quote(out, value.name()),
                None => out.push_str(&number.to_string()),
            }
            Ok(())
        }
        Value::Message(message) => {
            encode_message(out, message);
            Ok(())
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                out.push(if index == 0 { '[' } else { ',' });
                encode_value(out, kind, item);
            }
            out.push(']');
            Ok(())
        }
        // The protocol has none.
        Value::Map(_) => write!(out, "{{}}"),
    };
}

/// A JSON text as Go writes it: what could end a script in a page is escaped too.
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a `String` cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::gateway::descriptors;

    fn message(name: &str, json: &str) -> Result<DynamicMessage, String> {
        let descriptor = descriptors().get_message_by_name(name).unwrap();
        decode(&descriptor, &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn requests_are_read_and_printed_as_etcd_does() {
        let check = |name: &str, json: &str, printed: &str| {
            assert_eq!(encode(&message(&format!("etcdserverpb.{name}"), json).unwrap()), printed, "{json}");
        };
        check("RangeRequest", r#"{"key":"Zm9v","limit":5}"#, r#"{"key":"Zm9v","limit":"5"}"#);
        check("RangeRequest", r#"{"limit":"-5","key":""}"#, r#"{"limit":"-5"}"#);
        check("RangeRequest", r#"{"key":"_-8","unknown":{"a":[1]}}"#, r#"{"key":"/+8="}"#);
        check("RangeRequest", r#"{"key":null,"rangeEnd":"AA=="}"#, r#"{"range_end":"AA=="}"#);
        check(
            "RangeRequest",
            r#"{"sortOrder":"ASCEND","sort_target":2}"#,
            r#"{"sort_order":"ASCEND","sort_target":"CREATE"}"#,
        );
        check("RangeRequest", r#"{"sort_order":77}"#, r#"{"sort_order":77}"#);
        check("RangeRequest", "null", "{}");
        check("MemberRemoveRequest", r#"{"ID":18446744073709551615}"#, r#"{"ID":"18446744073709551615"}"#);
        let name = r#"{"name":"\u003ca\u0026b\u003e\u2028\u0001\n\"é"}"#;
        check("AuthUserAddRequest", r#"{"name":"<a&b>\u2028\u0001\n\"é"}"#, name);
        check(
            "TxnRequest",
            r#"{"compare":[{"version":"0"}],"success":[{"request_put":{"key":"YQ=="}},{"requestRange":{}}]}"#,
            r#"{"compare":[{"version":"0"}],"success":[{"request_put":{"key":"YQ=="}},{"request_range":{}}]}"#,
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let check =
            |json: &str, reason: &str| assert_eq!(message("etcdserverpb.RangeRequest", json).unwrap_err(), reason);
        check("[]", "a list is not an object");
        check(r#"{"limit":1.5}"#, "field limit: \"1.5\" is not an int64");
        check(r#"{"limit":"9223372036854775808"}"#, "field limit: \"9223372036854775808\" is not an int64");
        check(r#"{"serializable":"true"}"#, "field serializable: a text is not a bool");
        check(r#"{"key":7}"#, "field key: a number is not a bytes");
        check(
            r#"{"sort_order":"BOGUS"}"#,
            "field sort_order: unknown value \"BOGUS\" for enum etcdserverpb.RangeRequest_SortOrder",
        );
        let error = message("etcdserverpb.RangeRequest", r#"{"key":"!!"}"#).unwrap_err();
        assert!(error.starts_with("field key: illegal base64 data"), "{error}");
        let error = message("etcdserverpb.Compare", r#"{"version":1,"lease":"2"}"#).unwrap_err();
        assert_eq!(error, "field lease: another field of target_union is given too");
        let error = message("etcdserverpb.TxnRequest", r#"{"compare":{}}"#).unwrap_err();
        assert_eq!(error, "field compare: an object is not a list");
    }
}
