//! Ranges of many keys as bytes, encoded straight from the rows and a piece at a time.
//!
//! A message begins with its length, so a large answer is walked over twice: once for the
//! length, and once more while its client reads. Only a piece of it is in memory at a time.
//! Both walks see the database as it was at the first: an iterator keeps its view, whatever
//! is written or compacted meanwhile.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use quorate_proto::etcd::{RangeRequest, RangeResponse, ResponseHeader};

use super::EngineError;
use super::db::Instance;
use super::range;
use super::rows::{self, BadRow, Revision};
use super::view::Stored;

/// An answer of so many bytes is made at once.
const WHOLE_BYTES: usize = 256 << 10;

/// A piece takes no further key once it has so many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// `kvs` of `RangeResponse`: number 2, with a length.
const KVS_TAG: u8 = 2 << 3 | 2;

/// The fields of `KeyValue`, as they are tagged.
const KEY_TAG: u8 = 1 << 3 | 2;
const CREATE_TAG: u8 = 2 << 3;
const MOD_TAG: u8 = 3 << 3;
const VERSION_TAG: u8 = 4 << 3;
const VALUE_TAG: u8 = 5 << 3 | 2;
const LEASE_TAG: u8 = 6 << 3;

self_cell::self_cell!(
    struct Walk {
        owner: Arc<Instance>,
        #[covariant]
        dependent: Stored,
    }
);

/// A range that was walked over.
pub(crate) struct Listing {
    /// The store's revision then.
    pub(crate) revision: i64,
    more: bool,
    count: i64,
    /// The bytes of all keys and values, and the first of them.
    length: usize,
    first: BytesMut,
    rest: Option<Rest>,
}

/// What comes after the first bytes of a message.
pub(crate) struct Rest {
    walk: Walk,
    keys: usize,
    keys_only: bool,
    /// What comes after the keys.
    tail: Bytes,
}

impl Listing {
    /// Walks over the keys of `request`, which has to be [`range::is_plain`], at revision
    /// `at` of a store that is at `revision`.
    pub(super) fn new(
        instance: Arc<Instance>,
        request: &RangeRequest,
        at: i64,
        revision: i64,
    ) -> Result<Listing, EngineError> {
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let limited = limit < usize::MAX;
        let known = if limited { instance.counts.get(request, at) } else { None };
        let keys_only = request.keys_only;
        let mut walk = Walk::new(instance, |instance| match limited {
            true => Stored::new(instance, range::key_range(request), at, true),
            false => Stored::all(instance, range::key_range(request), at),
        });
        let mut first = BytesMut::new();
        let (mut keys, mut length, mut last) = (0, 0, Vec::new());
        // Where the rest begins, and how many keys come before it.
        let mut split: Option<(Vec<u8>, usize)> = None;
        let mut more = false;
        while !more {
            let seen = walk.with_dependent_mut(|_, stored| {
                stored.visit(|prefix, revision, row| {
                    let Some(pair) = Pair::of(prefix, revision, row, keys_only)? else { return Ok(()) };
                    if keys == limit {
                        more = true;
                        return Ok(());
                    }
                    let size = pair.size();
                    if split.is_none() && first.len() + size > WHOLE_BYTES && keys > 0 {
                        split = Some((prefix.to_vec(), keys));
                    }
                    if split.is_none() {
                        pair.put(&mut first);
                    }
                    if limited {
                        last.clear();
                        last.extend_from_slice(&pair.key);
                    }
                    length += size;
                    keys += 1;
                    Ok(())
                })
            })?;
            if seen.is_none() {
                break;
            }
        }
        let mut count = i64::try_from(keys).unwrap_or(i64::MAX);
        if more {
            // The one that was one too many, and those behind it.
            count = match known {
                Some(count) => count,
                None => count + 1 + walk.with_dependent_mut(|_, stored| stored.count())?,
            };
            walk.borrow_owner().counts.put_page(request, at, count, known.is_none(), keys, &last);
        }
        let rest = split.map(|(prefix, before)| {
            walk.with_dependent_mut(|_, stored| stored.go_to(&prefix));
            Rest { walk, keys: keys - before, keys_only, tail: Bytes::new() }
        });
        Ok(Listing { revision, more, count, length, first, rest })
    }

    /// The first bytes of a `RangeResponse` with that header, the length of all of it, and
    /// the rest.
    pub(crate) fn into_message(self, header: ResponseHeader) -> (Bytes, usize, Option<Rest>) {
        let head = RangeResponse { header: Some(header), ..RangeResponse::default() }.encode_to_vec();
        let tail = RangeResponse { more: self.more, count: self.count, ..RangeResponse::default() }.encode_to_vec();
        let length = head.len() + self.length + tail.len();
        let mut first = BytesMut::with_capacity(head.len() + self.first.len() + tail.len());
        first.put_slice(&head);
        first.put_slice(&self.first);
        let rest = match self.rest {
            Some(rest) => Some(Rest { tail: tail.into(), ..rest }),
            None => {
                first.put_slice(&tail);
                None
            }
        };
        (first.freeze(), length, rest)
    }
}

impl Rest {
    /// The next piece; `None` when the message is complete.
    ///
    /// # Errors
    /// When the database cannot be read: the message ends unfinished.
    pub(crate) fn piece(&mut self) -> Result<Option<Bytes>, EngineError> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES && self.keys > 0 {
            let (keys, keys_only) = (&mut self.keys, self.keys_only);
            let seen = self.walk.with_dependent_mut(|_, stored| {
                stored.visit(|prefix, revision, row| {
                    if let Some(pair) = Pair::of(prefix, revision, row, keys_only)? {
                        pair.put(&mut piece);
                        *keys -= 1;
                    }
                    Ok(())
                })
            })?;
            if seen.is_none() {
                return Err(self.walk.borrow_owner().damaged(BadRow("keys are gone that were there before")));
            }
        }
        if self.keys == 0 {
            piece.put_slice(&std::mem::take(&mut self.tail));
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}

/// A key and its value, in the place of a `KeyValue`.
struct Pair<'a> {
    key: Cow<'a, [u8]>,
    numbers: [(u8, i64); 3],
    value: &'a [u8],
    lease: i64,
}

impl<'a> Pair<'a> {
    /// `None` when the key is dead.
    fn of(prefix: &'a [u8], revision: Revision, row: &'a [u8], keys_only: bool) -> Result<Option<Pair<'a>>, BadRow> {
        let (head, value) = rows::split_row(row)?;
        if head.tombstone {
            return Ok(None);
        }
        let numbers = [(CREATE_TAG, head.create), (MOD_TAG, revision.main), (VERSION_TAG, head.version)];
        let value = if keys_only { &[] } else { value };
        Ok(Some(Pair { key: rows::key_of(prefix)?, numbers, value, lease: head.lease }))
    }

    /// Its bytes as a field of the response.
    fn size(&self) -> usize {
        let body = self.body();
        1 + encoded_len_varint(body as u64) + body
    }

    fn body(&self) -> usize {
        let bytes = |bytes: &[u8]| {
            if bytes.is_empty() { 0 } else { 1 + prost::length_delimiter_len(bytes.len()) + bytes.len() }
        };
        let number = |number: i64| if number == 0 { 0 } else { 1 + encoded_len_varint(number as u64) };
        let numbers: usize = self.numbers.iter().map(|(_, value)| number(*value)).sum();
        bytes(&self.key) + numbers + bytes(self.value) + number(self.lease)
    }

    fn put(&self, buffer: &mut BytesMut) {
        let body = self.body();
        buffer.reserve(1 + encoded_len_varint(body as u64) + body);
        buffer.put_u8(KVS_TAG);
        encode_varint(body as u64, buffer);
        put_bytes(buffer, KEY_TAG, &self.key);
        self.numbers.iter().for_each(|(tag, number)| put_number(buffer, *tag, *number));
        put_bytes(buffer, VALUE_TAG, self.value);
        put_number(buffer, LEASE_TAG, self.lease);
    }
}

fn put_bytes(buffer: &mut BytesMut, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        buffer.put_u8(tag);
        encode_varint(bytes.len() as u64, buffer);
        buffer.put_slice(bytes);
    }
}

fn put_number(buffer: &mut BytesMut, tag: u8, number: i64) {
    if number != 0 {
        buffer.put_u8(tag);
        encode_varint(number as u64, buffer);
    }
}
