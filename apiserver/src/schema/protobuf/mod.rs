//! Kubernetes' protobuf, into JSON and back, along the table of types.
//!
//! Go writes every field that is no pointer, even when it is zero. JSON leaves such
//! zeros out, so decoding drops them, except where zero says something: see [`zero`].

mod decode;
mod encode;
mod message;
mod wire;
mod zero;

use quorate_proto::status::Status;
use serde_json::Value;

use super::types::type_for_kind;
use wire::{Malformed, Reader};

pub use message::{Message, encode_list, message_of, partial_message};
pub(crate) use wire::Writer;

/// The media type of bodies that [`decode_protobuf`] reads and [`Message`] writes.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Reads a protobuf body: an object of any built-in kind in its envelope.
///
/// # Errors
/// 400 when the bytes are malformed or of a kind that has no protobuf form.
pub fn decode_protobuf(bytes: &[u8]) -> Result<Value, Status> {
    let refuse =
        |error: Malformed| Status::bad_request(format!("the body of the request is not valid protobuf: {error}"));
    let Some(envelope) = bytes.strip_prefix(MAGIC) else {
        return Err(Status::bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ));
    };
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader::new(envelope);
    while let Some((tag, value)) = reader.field().map_err(refuse)? {
        match tag {
            1 => {
                let mut meta = Reader::new(value.bytes().map_err(refuse)?);
                while let Some((tag, value)) = meta.field().map_err(refuse)? {
                    match tag {
                        1 => api_version = value.text().map_err(refuse)?.to_owned(),
                        2 => kind = value.text().map_err(refuse)?.to_owned(),
                        _ => {}
                    }
                }
            }
            2 => raw = value.bytes().map_err(refuse)?,
            3 if !value.bytes().map_err(refuse)?.is_empty() => {
                return Err(Status::bad_request("encoded protobuf objects are not supported"));
            }
            _ => {}
        }
    }
    let (group, version) = quorate_proto::gvk::split_api_version(&api_version);
    let Some(own) = type_for_kind(group, version, &kind) else {
        return Err(Status::bad_request(format!(
            "no kind {kind:?} is registered for version {api_version:?} in the protobuf scheme"
        )));
    };
    let mut object = decode::message(own, raw).map_err(refuse)?;
    object.insert("kind".to_owned(), Value::String(kind));
    object.insert("apiVersion".to_owned(), Value::String(api_version));
    Ok(Value::Object(object))
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
