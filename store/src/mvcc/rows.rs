//! The keys and values of the rows in RocksDB; nothing else knows them.
//!
//! ```text
//! k | escaped key | !revision u64 | !sub u32  ->  a version of the key, newest first
//! r | revision u64 | sub u32                  ->  the change log: deleted? and the key
//! l | lease u64                               ->  a lease
//! a | lease u64 | key                         ->  the key belongs to the lease
//! q | log index u64                           ->  requests that took effect in the batch of
//!                                                 entries up to this one, their results
//! h | a | member u64 | alarm i32              ->  an alarm: raised by the member itself?
//! h | d                                       ->  the version to downgrade to
//! m | name                                    ->  state of the whole
//! u | kind | name                             ->  a user, a role, or whether they count
//! ```
//!
//! Numbers in keys are big-endian, so that rows sort by them. A key is escaped so that
//! no escaped key is a prefix of another and the order stays: 0 becomes 0 255, and 0 1
//! ends it.

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes};
use quorate_proto::mvccpb::KeyValue;

use crate::wal::EntryId;

pub(super) const KEYS: u8 = b'k';
pub(super) const CHANGES: u8 = b'r';
const LEASES: u8 = b'l';
const ATTACHMENTS: u8 = b'a';
const REQUESTS: u8 = b'q';
const AUTH: u8 = b'u';
pub(super) const STATE: &[u8] = b"mstate";
pub(super) const MEMBERSHIP: &[u8] = b"mmembership";
const ALARMS: &[u8] = b"ha";
pub(super) const DOWNGRADE: &[u8] = b"hd";
const ATTRIBUTES: &[u8] = b"mattributes";
/// The ids of the members of the membership: what is missing in the next was removed.
pub(super) const MEMBER_IDS: &[u8] = b"mmids";
const REMOVED: &[u8] = b"mmremoved";

/// The bytes of a revision and sub at the end of a version's row key.
pub(super) const VERSION_SUFFIX_LEN: usize = 12;

/// Where a change stands in history: the revision, and its number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision {
    pub(crate) main: i64,
    pub(crate) sub: u32,
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) revision: Revision,
    pub(crate) tombstone: bool,
    pub(crate) create: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) value: Bytes,
}

impl Row {
    pub(crate) fn to_key_value(&self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.create,
            mod_revision: self.revision.main,
            version: self.version,
            value: self.value.clone(),
            lease: self.lease,
        }
    }
}

/// Bytes on disk that are not a row; says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadRow(pub(super) &'static str);

/// The bytes that end an escaped key.
pub(super) const KEY_END_LEN: usize = 2;

/// `k | escaped key`: what all versions of a key begin with.
pub(super) fn put_key_prefix(buffer: &mut Vec<u8>, key: &[u8]) {
    buffer.clear();
    buffer.push(KEYS);
    for (number, part) in key.split(|byte| *byte == 0).enumerate() {
        if number > 0 {
            buffer.extend_from_slice(&[0, 255]);
        }
        buffer.extend_from_slice(part);
    }
    buffer.extend_from_slice(&[0, 1]);
}

/// The first place behind every version of the key whose prefix is in `prefix`.
pub(super) fn prefix_to_next_key(prefix: &mut [u8]) {
    if let Some(last) = prefix.last_mut() {
        *last = 2;
    }
}

/// Completes a prefix to the row of a version. With `sub` at its maximum it is the place
/// of the newest version that is no newer than `main`.
pub(super) fn put_version(buffer: &mut Vec<u8>, revision: Revision) {
    buffer.put_u64(!(revision.main as u64));
    buffer.put_u32(!revision.sub);
}

/// Splits a version's row key into prefix and revision.
pub(super) fn split_version(row_key: &[u8]) -> Result<(&[u8], Revision), BadRow> {
    let bad = BadRow("the key of a version is cut short");
    let split = row_key.len().checked_sub(VERSION_SUFFIX_LEN).ok_or(bad)?;
    let (prefix, mut suffix) = row_key.split_at(split);
    let main = !suffix.get_u64() as i64;
    Ok((prefix, Revision { main, sub: !suffix.get_u32() }))
}

/// The key whose versions begin with `prefix`.
pub(super) fn unescape(prefix: &[u8]) -> Result<Bytes, BadRow> {
    Ok(match key_of(prefix)? {
        Cow::Borrowed(key) => Bytes::copy_from_slice(key),
        Cow::Owned(key) => key.into(),
    })
}

/// As [`unescape`], without a copy of a key that is its own escape.
pub(super) fn key_of(prefix: &[u8]) -> Result<Cow<'_, [u8]>, BadRow> {
    let bad = BadRow("a key is not escaped as it should be");
    let inner = prefix.get(1..prefix.len().saturating_sub(2)).ok_or(bad)?;
    if !inner.contains(&0) {
        return Ok(Cow::Borrowed(inner));
    }
    let mut key = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == 0 && bytes.next() != Some(&255) {
            return Err(bad);
        }
    }
    Ok(Cow::Owned(key))
}

const TOMBSTONE: u8 = 1;
const ROW_HEADER_LEN: usize = 25;

pub(super) fn put_row(buffer: &mut Vec<u8>, row: &Row) {
    buffer.clear();
    buffer.push(if row.tombstone { TOMBSTONE } else { 0 });
    buffer.put_i64(row.create);
    buffer.put_i64(row.version);
    buffer.put_i64(row.lease);
    buffer.extend_from_slice(&row.value);
}

/// What a version's row says beside its value.
#[derive(Clone, Copy)]
pub(super) struct RowHead {
    pub(super) tombstone: bool,
    pub(super) create: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

/// Splits a version's row into what it says and its value.
pub(super) fn split_row(bytes: &[u8]) -> Result<(RowHead, &[u8]), BadRow> {
    let (mut head, value) = bytes.split_at_checked(ROW_HEADER_LEN).ok_or(BadRow("a version is cut short"))?;
    let tombstone = head.get_u8() == TOMBSTONE;
    let (create, version, lease) = (head.get_i64(), head.get_i64(), head.get_i64());
    Ok((RowHead { tombstone, create, version, lease }, value))
}

/// Reads a version; its value only when asked for.
pub(super) fn parse_row(bytes: &[u8], revision: Revision, with_value: bool) -> Result<Row, BadRow> {
    let (RowHead { tombstone, create, version, lease }, value) = split_row(bytes)?;
    let value = if with_value { Bytes::copy_from_slice(value) } else { Bytes::new() };
    Ok(Row { revision, tombstone, create, version, lease, value })
}

pub(super) fn change_key(revision: Revision) -> [u8; 13] {
    let mut key = [CHANGES; 13];
    key[1..9].copy_from_slice(&(revision.main as u64).to_be_bytes());
    key[9..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

pub(super) fn parse_change_key(mut bytes: &[u8]) -> Result<Revision, BadRow> {
    if bytes.len() != 13 {
        return Err(BadRow("the key of a change has another length"));
    }
    bytes.advance(1);
    Ok(Revision { main: bytes.get_u64() as i64, sub: bytes.get_u32() })
}

pub(super) fn put_change(buffer: &mut Vec<u8>, key: &[u8], tombstone: bool) {
    buffer.clear();
    buffer.push(if tombstone { TOMBSTONE } else { 0 });
    buffer.extend_from_slice(key);
}

/// Whether a change deleted, and which key.
pub(super) fn parse_change(bytes: &[u8]) -> Result<(bool, &[u8]), BadRow> {
    let (flags, key) = bytes.split_first().ok_or(BadRow("a change is empty"))?;
    Ok((*flags == TOMBSTONE, key))
}

pub(super) fn lease_key(id: i64) -> [u8; 9] {
    numbered(LEASES, id as u64)
}

pub(super) fn request_key(index: u64) -> [u8; 9] {
    numbered(REQUESTS, index)
}

fn numbered(kind: u8, number: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// All rows of a kind lie between these.
pub(super) fn bounds(kind: u8) -> ([u8; 1], [u8; 1]) {
    ([kind], [kind + 1])
}

pub(super) fn lease_bounds() -> ([u8; 1], [u8; 1]) {
    bounds(LEASES)
}

pub(super) fn request_bounds() -> ([u8; 1], [u8; 1]) {
    bounds(REQUESTS)
}

/// A request that took effect, and what it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// Of its entry in the log.
    pub(crate) index: u64,
    pub(crate) client: u64,
    pub(crate) sequence: u64,
    pub(crate) result: &'a [u8],
}

/// Adds a request to the row of its batch.
pub(super) fn put_request(row: &mut Vec<u8>, request: Request<'_>) {
    let Request { index, client, sequence, result } = request;
    for number in [index, client, sequence] {
        row.put_u64(number);
    }
    row.put_u32(result.len() as u32);
    row.extend_from_slice(result);
}

/// Takes the first request off what is left of a row; none at its end.
pub(super) fn take_request<'a>(rest: &mut &'a [u8]) -> Result<Option<Request<'a>>, BadRow> {
    const REQUEST_HEADER_LEN: usize = 28;
    if rest.is_empty() {
        return Ok(None);
    }
    let bad = BadRow("a request is cut short");
    let (mut header, body) = rest.split_at_checked(REQUEST_HEADER_LEN).ok_or(bad)?;
    let (index, client, sequence) = (header.get_u64(), header.get_u64(), header.get_u64());
    let (result, behind) = body.split_at_checked(header.get_u32() as usize).ok_or(bad)?;
    *rest = behind;
    Ok(Some(Request { index, client, sequence, result }))
}

pub(super) fn parse_number(row_key: &[u8]) -> Result<u64, BadRow> {
    let number = row_key.get(1..9).and_then(|bytes| bytes.try_into().ok());
    number.map(u64::from_be_bytes).ok_or(BadRow("the key of a row is cut short"))
}

pub(super) fn lease_row(ttl: i64, remaining: i64) -> [u8; 16] {
    let mut row = [0; 16];
    row[..8].copy_from_slice(&ttl.to_be_bytes());
    row[8..].copy_from_slice(&remaining.to_be_bytes());
    row
}

pub(super) fn parse_lease_row(mut bytes: &[u8]) -> Result<(i64, i64), BadRow> {
    if bytes.len() != 16 {
        return Err(BadRow("a lease has another length"));
    }
    Ok((bytes.get_i64(), bytes.get_i64()))
}

pub(super) fn attachment_key(lease: i64, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(9 + key.len());
    row.extend_from_slice(&numbered(ATTACHMENTS, lease as u64));
    row.extend_from_slice(key);
    row
}

pub(super) fn alarm_key(member: u64, alarm: i32) -> Vec<u8> {
    [ALARMS, &member.to_be_bytes(), &alarm.to_be_bytes()].concat()
}

/// All alarms lie between these.
pub(super) fn alarm_bounds() -> (Vec<u8>, Vec<u8>) {
    (ALARMS.to_vec(), [ALARMS, &[255; 13]].concat())
}

/// The member and the alarm of a row.
pub(super) fn parse_alarm_key(row_key: &[u8]) -> Result<(u64, i32), BadRow> {
    let mut rest = row_key.strip_prefix(ALARMS).unwrap_or_default();
    if rest.len() != 12 {
        return Err(BadRow("the key of an alarm has another length"));
    }
    Ok((rest.get_u64(), rest.get_i32()))
}

/// What stands behind the kind of a row of users and roles.
pub(super) const AUTH_WHOLE: u8 = b'a';
pub(super) const AUTH_ROLE: u8 = b'r';
pub(super) const AUTH_USER: u8 = b'u';

pub(super) fn auth_key(kind: u8, name: &str) -> Vec<u8> {
    [&[AUTH, kind], name.as_bytes()].concat()
}

pub(super) fn auth_bounds() -> ([u8; 1], [u8; 1]) {
    bounds(AUTH)
}

/// The kind and the name of a row of users and roles.
pub(super) fn parse_auth_key(row_key: &[u8]) -> Result<(u8, String), BadRow> {
    let bad = BadRow("the key of a row of users and roles is not one");
    let (kind, name) = row_key.get(1..).and_then(<[u8]>::split_first).ok_or(bad)?;
    Ok((*kind, String::from_utf8(name.to_vec()).map_err(|_| bad)?))
}

pub(super) fn auth_whole(enabled: bool, revision: u64, secret: &[u8]) -> Vec<u8> {
    let mut row = vec![u8::from(enabled)];
    row.put_u64(revision);
    row.extend_from_slice(secret);
    row
}

pub(super) fn parse_auth_whole(mut bytes: &[u8]) -> Result<(bool, u64, Bytes), BadRow> {
    if bytes.len() < 9 {
        return Err(BadRow("the row that says whether users count is cut short"));
    }
    Ok((bytes.get_u8() == 1, bytes.get_u64(), Bytes::copy_from_slice(bytes)))
}

pub(super) fn attributes_key(member: u64) -> Vec<u8> {
    [ATTRIBUTES, &member.to_be_bytes()].concat()
}

/// All of a member's attributes lie between these.
pub(super) fn attributes_bounds() -> (Vec<u8>, Vec<u8>) {
    (attributes_key(0), [ATTRIBUTES, &[255; 9]].concat())
}

/// Says that a member was removed: its id never comes back.
pub(super) fn removed_key(member: u64) -> Vec<u8> {
    [REMOVED, &member.to_be_bytes()].concat()
}

pub(super) fn removed_bounds() -> (Vec<u8>, Vec<u8>) {
    (removed_key(0), [REMOVED, &[255; 9]].concat())
}

/// The member of a row of attributes or of a removal.
pub(super) fn parse_member(row_key: &[u8]) -> Result<u64, BadRow> {
    let number = row_key.strip_prefix(ATTRIBUTES).or_else(|| row_key.strip_prefix(REMOVED));
    let number = number.and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
    number.ok_or(BadRow("a member's row has a bad key"))
}

pub(super) fn member_ids_row(ids: &[u64]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}

pub(super) fn parse_member_ids(row: &[u8]) -> Result<Vec<u64>, BadRow> {
    let (ids, rest) = row.as_chunks::<8>();
    match rest {
        [] => Ok(ids.iter().map(|id| u64::from_be_bytes(*id)).collect()),
        _ => Err(BadRow("the ids of the members are cut short")),
    }
}

/// The state of the whole, one row, written with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) applied: Option<EntryId>,
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) generation: u64,
    /// The sum of the hashes of every row ever written.
    pub(super) hash: u64,
    /// Requests that took effect up to this log index may be forgotten.
    pub(super) forgotten: u64,
}

/// Raised when the program of the version before could misread a row.
const FORMAT_VERSION: u8 = 2;

impl State {
    /// etcd's: an empty store is at revision 1, and nothing was compacted.
    pub(super) const EMPTY: State =
        State { applied: None, revision: 1, compact_revision: -1, generation: 1, hash: 0, forgotten: 0 };

    pub(super) fn encode(&self) -> [u8; 66] {
        let mut row = [0; 66];
        let mut rest = &mut row[..];
        let id = self.applied.unwrap_or_default();
        rest.put_u8(FORMAT_VERSION);
        rest.put_u8(self.applied.is_some() as u8);
        for number in [id.term, id.node, id.index, self.revision as u64, self.compact_revision as u64] {
            rest.put_u64(number);
        }
        for number in [self.generation, self.hash, self.forgotten] {
            rest.put_u64(number);
        }
        row
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<State, BadRow> {
        if bytes.first() != Some(&FORMAT_VERSION) {
            return Err(BadRow("the state is of another format version"));
        }
        if bytes.len() != 66 {
            return Err(BadRow("the state has another length"));
        }
        bytes.advance(1);
        let present = bytes.get_u8() != 0;
        let id = EntryId { term: bytes.get_u64(), node: bytes.get_u64(), index: bytes.get_u64() };
        Ok(State {
            applied: present.then_some(id),
            revision: bytes.get_u64() as i64,
            compact_revision: bytes.get_u64() as i64,
            generation: bytes.get_u64(),
            hash: bytes.get_u64(),
            forgotten: bytes.get_u64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(key: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        put_key_prefix(&mut buffer, key);
        buffer
    }

    #[test]
    fn escaping_keeps_the_order_and_reads_back() {
        let mut keys: Vec<&[u8]> =
            vec![b"\0", b"\0\0", b"\0\x01", b"\0\xff", b"a", b"a\0", b"a\0b", b"a\x01", b"ab", b"b", b"\xff"];
        keys.sort();
        for pair in keys.windows(2) {
            assert!(prefix(pair[0]) < prefix(pair[1]), "{pair:?}");
            let mut after = prefix(pair[0]);
            prefix_to_next_key(&mut after);
            assert!(after < prefix(pair[1]) && after > prefix(pair[0]), "{pair:?}");
            assert!(!prefix(pair[1]).starts_with(&prefix(pair[0])));
        }
        for key in keys {
            assert_eq!(unescape(&prefix(key)), Ok(Bytes::copy_from_slice(key)));
        }
        assert!(unescape(b"k").is_err() && unescape(b"ka\0b\0\x01").is_err());
    }

    #[test]
    fn newer_versions_sort_first() {
        let row = |main, sub| {
            let mut buffer = prefix(b"key");
            put_version(&mut buffer, Revision { main, sub });
            buffer
        };
        assert!(row(9, 0) < row(8, 5) && row(8, 5) < row(8, 4));
        let wanted = Revision { main: 8, sub: 5 };
        assert_eq!(split_version(&row(8, 5)), Ok((&prefix(b"key")[..], wanted)));
        assert!(split_version(b"k").is_err());
    }

    #[test]
    fn state_reads_back_as_written() {
        let id = EntryId { term: 1, node: 2, index: 3 };
        let state = State { applied: Some(id), compact_revision: 4, ..State::EMPTY };
        for state in [State::EMPTY, state] {
            assert_eq!(State::decode(&state.encode()), Ok(state));
            assert!(State::decode(&state.encode()[..65]).is_err());
        }
        assert!(State::decode(&[9; 66]).is_err());
    }
}
