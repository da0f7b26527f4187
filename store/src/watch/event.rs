//! An event as it goes over the wire, encoded once for everybody.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use prost::Message;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};

use crate::mvcc::Change;

/// What the allocator and the count of those who share the bytes take beside them.
const ALLOCATION_BYTES: usize = 64;

/// An event of the ring. It is encoded if somebody watched its key when it came: most keys
/// that are written are watched by nobody.
pub(super) enum Recent {
    Watched(EncodedEvent),
    Unwatched(Change),
}

impl Recent {
    pub(super) fn revision(&self) -> i64 {
        match self {
            Recent::Watched(event) => event.revision,
            Recent::Unwatched(change) => change.row.revision.main,
        }
    }

    pub(super) fn key(&self) -> &Bytes {
        match self {
            Recent::Watched(event) => event.key(),
            Recent::Unwatched(change) => &change.key,
        }
    }

    pub(super) fn encoded(&self) -> Cow<'_, EncodedEvent> {
        match self {
            Recent::Watched(event) => Cow::Borrowed(event),
            Recent::Unwatched(change) => Cow::Owned(EncodedEvent::new(change.clone())),
        }
    }

    /// What it costs to keep.
    pub(super) fn size(&self) -> usize {
        let allocated = match self {
            Recent::Watched(event) => ALLOCATION_BYTES + event.bytes.len(),
            Recent::Unwatched(Change { key, row, previous }) => {
                let previous = previous.as_ref().map_or(0, |row| row.value.len());
                3 * ALLOCATION_BYTES + key.len() + row.value.len() + previous
            }
        };
        size_of::<Recent>() + allocated
    }
}

/// One event. Its fields are encoded in their order, so that who does not want the
/// version before, which comes last, takes fewer bytes of the same.
#[derive(Clone, Debug)]
pub(crate) struct EncodedEvent {
    pub(super) revision: i64,
    pub(super) deletes: bool,
    key: Bytes,
    bytes: Bytes,
    /// The bytes without the version before.
    bare: usize,
}

impl EncodedEvent {
    pub(super) fn new(Change { key, row, previous }: Change) -> EncodedEvent {
        let revision = row.revision.main;
        let deletes = row.tombstone;
        let kind = if deletes { EventType::Delete } else { EventType::Put };
        let prev_kv = previous.map(|row| row.to_key_value(key.clone()));
        // Of a deletion, etcd tells the key and the revision.
        let kv = match deletes {
            true => KeyValue { key, mod_revision: revision, ..Default::default() },
            false => row.to_key_value(key),
        };
        let mut event = Event { r#type: kind.into(), kv: Some(kv), prev_kv: None };
        let bare = event.encoded_len();
        event.prev_kv = prev_kv;
        let mut bytes = BytesMut::with_capacity(event.encoded_len());
        event.encode_raw(&mut bytes);
        let bytes = bytes.freeze();
        // The key as a piece of the bytes: nothing holds on to what the entry came in.
        let key = match Event::decode(bytes.clone()) {
            Ok(Event { kv: Some(kv), .. }) => kv.key,
            _ => event.kv.map(|kv| kv.key).unwrap_or_default(),
        };
        EncodedEvent { revision, deletes, key, bytes, bare }
    }

    #[cfg(test)]
    pub(crate) fn of_event(event: &Event) -> EncodedEvent {
        let bytes = Bytes::from(event.encode_to_vec());
        let key = event.kv.as_ref().map(|kv| kv.key.clone()).unwrap_or_default();
        EncodedEvent { revision: 0, deletes: false, key, bare: bytes.len(), bytes }
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.key
    }

    /// The event without the version before, unless it is wanted.
    #[must_use]
    pub(super) fn with_previous(&self, wanted: bool) -> EncodedEvent {
        let mut event = self.clone();
        if !wanted {
            event.bytes.truncate(event.bare);
        }
        event
    }

    /// An encoded `mvccpb.Event`.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Keys and values share the bytes.
    pub(super) fn decode(&self) -> Event {
        // Encoded above: it decodes.
        Event::decode(self.bytes.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Revision;
    use crate::mvcc::Row;

    fn row(revision: i64, tombstone: bool, value: &'static str) -> Row {
        let revision = Revision { main: revision, sub: 0 };
        Row { revision, tombstone, create: 3, version: 2, lease: 9, value: value.into() }
    }

    #[test]
    fn one_encoding_serves_with_and_without_the_version_before() {
        for tombstone in [false, true] {
            let change =
                Change { key: "key".into(), row: row(8, tombstone, "new"), previous: Some(row(4, false, "old")) };
            let encoded = EncodedEvent::new(change);
            assert_eq!((&encoded.key()[..], encoded.revision, encoded.deletes), (&b"key"[..], 8, tombstone));
            let whole = encoded.with_previous(true).decode();
            let old = whole.prev_kv.clone().expect("it was there");
            assert_eq!((&old.key[..], &old.value[..], old.mod_revision, old.lease), (&b"key"[..], &b"old"[..], 4, 9));
            let bare = encoded.with_previous(false);
            assert!(bare.bytes().len() < encoded.bytes().len());
            assert_eq!(bare.decode(), Event { prev_kv: None, ..whole.clone() });
            let kv = whole.kv.expect("a key");
            let wanted = if tombstone {
                KeyValue { key: "key".into(), mod_revision: 8, ..Default::default() }
            } else {
                row(8, false, "new").to_key_value("key".into())
            };
            assert_eq!((kv, whole.r#type == i32::from(EventType::Delete)), (wanted, tombstone));
        }
    }
}
