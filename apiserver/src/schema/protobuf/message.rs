//! Encoded objects, and what answers make of them: bodies, lists and the events of watches.
//!
//! An object is encoded once; everything here copies its bytes.

use bytes::Bytes;
use quorate_proto::object::Object;
use quorate_proto::status::ListMeta;
use serde_json::Value;

use super::wire::{Reader, Writer, field_size};
use super::{MAGIC, encode};
use crate::schema::types::type_for_kind;

/// What an envelope has beside the object's kind and bytes: no encoding, no content type.
const ENVELOPE_END: [u8; 4] = [3 << 3 | 2, 0, 4 << 3 | 2, 0];

/// The metadata's field, in every kind.
const METADATA: u32 = 1;

/// An object of a known kind, encoded, without its envelope.
///
/// Always: `bytes` begin with the metadata, if the kind has any.
#[derive(Clone, Debug)]
pub struct Message {
    api_version: String,
    kind: String,
    bytes: Bytes,
}

impl Message {
    /// Encodes an object, unless somebody has done so before; `None` when its kind has no
    /// protobuf form.
    pub fn of(object: &Object) -> Option<Self> {
        let bytes = message_of(object)?.clone();
        Some(Self { api_version: object.gvk().api_version(), kind: object.gvk().kind.clone(), bytes })
    }

    /// Encodes what is no stored object; `None` when its kind has no protobuf form, as
    /// lists and tables.
    pub fn of_value(object: &Value) -> Option<Self> {
        let api_version = object["apiVersion"].as_str()?;
        let kind = object["kind"].as_str()?;
        let (group, version) = quorate_proto::gvk::split_api_version(api_version);
        let own = type_for_kind(group, version, kind)?;
        let bytes = Bytes::from(encode::message(own, object.as_object()?).into_bytes());
        Some(Self { api_version: api_version.to_owned(), kind: kind.to_owned(), bytes })
    }

    /// The object's metadata alone: a PartialObjectMetadata of `api_version`, in the same bytes.
    pub fn partial(&self, api_version: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: "PartialObjectMetadata".to_owned(),
            bytes: partial_message(&self.bytes),
        }
    }

    /// The object in its envelope, as answers carry it.
    pub fn body(&self) -> Vec<u8> {
        let mut writer = Writer::behind(Vec::with_capacity(self.size()));
        self.write(&mut writer);
        writer.into_bytes()
    }

    /// Appends an event of a watch: its length in four bytes, then a WatchEvent without an
    /// envelope, whose object has one.
    ///
    /// # Panics
    /// When the event has 4 GiB: objects have a few MiB at most.
    pub fn write_event(&self, out: &mut Vec<u8>, event_type: &str) {
        let size = self.size();
        let object = field_size(size);
        let event = field_size(event_type.len()) + field_size(object);
        out.reserve(4 + event);
        out.extend_from_slice(&u32::try_from(event).expect("an event is smaller than 4 GiB").to_be_bytes());
        let mut writer = Writer::behind(std::mem::take(out));
        writer.bytes(1, event_type.as_bytes());
        writer.head(2, object);
        writer.head(1, size);
        self.write(&mut writer);
        *out = writer.into_bytes();
    }

    fn size(&self) -> usize {
        envelope_size(&self.api_version, &self.kind, self.bytes.len())
    }

    fn write(&self, writer: &mut Writer) {
        write_envelope(writer, &self.api_version, &self.kind, self.bytes.len());
        writer.raw(&self.bytes);
        writer.raw(&ENVELOPE_END);
    }
}

/// The encoded form of an object, without its envelope: made at the first call, then shared.
/// `None` when its kind has no protobuf form.
pub fn message_of(object: &Object) -> Option<&Bytes> {
    let encoded = object.encoding(|value| {
        let gvk = object.gvk();
        let own = type_for_kind(&gvk.group, &gvk.version, &gvk.kind);
        let encoded = own.zip(value.as_object()).map(|(own, fields)| encode::message(own, fields).into_bytes());
        Bytes::from(encoded.unwrap_or_default())
    });
    // With metadata, no object is empty.
    (!encoded.is_empty()).then_some(encoded)
}

/// Of an encoded object the part that is an encoded PartialObjectMetadata.
pub fn partial_message(message: &Bytes) -> Bytes {
    let mut reader = Reader::new(message);
    match reader.field() {
        Ok(Some((METADATA, _))) => message.slice(..message.len() - reader.rest()),
        _ => Bytes::new(),
    }
}

/// Writes a list of encoded objects as a body. Every list has its metadata in field 1 and
/// its items in field 2.
pub fn encode_list(api_version: &str, kind: &str, meta: &ListMeta, items: &[Bytes]) -> Vec<u8> {
    let meta = list_meta(meta);
    let length = field_size(meta.size()) + items.iter().map(|item| field_size(item.len())).sum::<usize>();
    let mut writer = Writer::behind(Vec::with_capacity(envelope_size(api_version, kind, length)));
    write_envelope(&mut writer, api_version, kind, length);
    writer.message(1, meta);
    for item in items {
        writer.bytes(2, item);
    }
    writer.raw(&ENVELOPE_END);
    writer.into_bytes()
}

fn list_meta(meta: &ListMeta) -> Writer {
    let mut writer = Writer::default();
    // The link to itself, which nobody has any more.
    writer.bytes(1, b"");
    writer.bytes(2, meta.resource_version.as_bytes());
    writer.bytes(3, meta.continue_token.as_bytes());
    if let Some(count) = meta.remaining_item_count {
        writer.integer(4, count);
    }
    writer
}

/// Writes an envelope up to where the message of `length` bytes begins.
fn write_envelope(writer: &mut Writer, api_version: &str, kind: &str, length: usize) {
    writer.raw(MAGIC);
    let mut meta = Writer::default();
    meta.bytes(1, api_version.as_bytes());
    meta.bytes(2, kind.as_bytes());
    writer.message(1, meta);
    writer.head(2, length);
}

/// The size of an envelope with a message of `length` bytes.
fn envelope_size(api_version: &str, kind: &str, length: usize) -> usize {
    let meta = field_size(api_version.len()) + field_size(kind.len());
    MAGIC.len() + field_size(meta) + field_size(length) + ENVELOPE_END.len()
}
