//! The bytes of a record; nothing else knows them.
//!
//! One record is one batch: what the writer drained from its queue, written by one
//! write and made durable by one sync before the next record is begun. So a valid
//! record proves that every record before it was durable.
//!
//! ```text
//! crc u32 | body length u32 | crc of the record before u32 | zero u32
//! segment number u64 | sequence u64 | body, padded to 8 bytes with zeros
//! ```
//!
//! All little-endian. The checksum (CRC32C) covers everything after itself and is
//! seeded with the log's id and the segment number (its epoch), so that the bytes an
//! earlier life left in a recycled segment never pass.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{EntryId, LogEntry};

pub(super) const HEADER_LEN: usize = 32;
/// A length beyond this is damage, not a record: requests are far smaller.
pub(super) const MAX_BODY_LEN: usize = 1 << 30;

/// One change of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Entries with consecutive indexes.
    Entries(Vec<LogEntry>),
    Vote(Bytes),
    Committed(Option<EntryId>),
    /// Removes every entry after this one.
    TruncateAfter(Option<EntryId>),
    /// Removes every entry up to and including this one.
    Purge(EntryId),
    /// What a reader that starts at this segment must know; first in every segment.
    State {
        purged: Option<EntryId>,
        vote: Option<Bytes>,
        committed: Option<EntryId>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) crc: u32,
    pub(super) body_len: usize,
    pub(super) previous: u32,
    pub(super) segment: u64,
    pub(super) sequence: u64,
}

impl Header {
    /// The bytes the whole record takes in the segment.
    pub(super) fn record_len(&self) -> usize {
        padded(HEADER_LEN + self.body_len)
    }
}

pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Reads a header; `None` when the bytes cannot be one.
pub(super) fn parse_header(mut bytes: &[u8]) -> Option<Header> {
    if bytes.len() < HEADER_LEN {
        return None;
    }
    let crc = bytes.get_u32_le();
    let body_len = bytes.get_u32_le() as usize;
    let previous = bytes.get_u32_le();
    let zero = bytes.get_u32_le();
    let segment = bytes.get_u64_le();
    let sequence = bytes.get_u64_le();
    if zero != 0 || body_len == 0 || body_len > MAX_BODY_LEN || sequence == 0 {
        return None;
    }
    Some(Header { crc, body_len, previous, segment, sequence })
}

/// Whether `record` (header and body, padding aside) is whole.
pub(super) fn is_valid(log_id: u64, header: &Header, record: &[u8]) -> bool {
    record.len() >= HEADER_LEN + header.body_len
        && checksum(log_id, header.segment, &record[4..HEADER_LEN + header.body_len]) == header.crc
}

fn checksum(log_id: u64, segment: u64, bytes: &[u8]) -> u32 {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&log_id.to_le_bytes());
    seed[8..].copy_from_slice(&segment.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&seed), bytes)
}

/// Starts a record in `buffer`; operations follow by [`put_operation`].
pub(super) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER_LEN, 0);
}

/// Completes the record begun in `buffer`; returns its checksum.
pub(super) fn finish(buffer: &mut Vec<u8>, log_id: u64, previous: u32, segment: u64, sequence: u64) -> u32 {
    let body_len = buffer.len() - HEADER_LEN;
    assert!(body_len > 0 && body_len <= MAX_BODY_LEN && sequence > 0);
    buffer[4..8].copy_from_slice(&(body_len as u32).to_le_bytes());
    buffer[8..12].copy_from_slice(&previous.to_le_bytes());
    buffer[16..24].copy_from_slice(&segment.to_le_bytes());
    buffer[24..32].copy_from_slice(&sequence.to_le_bytes());
    let crc = checksum(log_id, segment, &buffer[4..]);
    buffer[..4].copy_from_slice(&crc.to_le_bytes());
    buffer.resize(padded(buffer.len()), 0);
    crc
}

const ENTRIES: u8 = 1;
const VOTE: u8 = 2;
const COMMITTED: u8 = 3;
const TRUNCATE_AFTER: u8 = 4;
const PURGE: u8 = 5;
const STATE: u8 = 6;

/// An upper bound of the bytes [`put_operation`] adds.
pub(super) fn operation_len(operation: &Operation) -> usize {
    match operation {
        Operation::Entries(entries) => entries.iter().map(|e| 20 + e.payload.len()).sum::<usize>() + 13,
        Operation::Vote(vote) => 5 + vote.len(),
        Operation::State { vote, .. } => 64 + vote.as_ref().map_or(0, Bytes::len),
        _ => 32,
    }
}

pub(super) fn put_operation(buffer: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Entries(entries) => {
            buffer.put_u8(ENTRIES);
            buffer.put_u64_le(entries.first().map_or(0, |entry| entry.id.index));
            buffer.put_u32_le(entries.len() as u32);
            for LogEntry { id, payload } in entries {
                buffer.put_u64_le(id.term);
                buffer.put_u64_le(id.node);
                put_bytes(buffer, payload);
            }
        }
        Operation::Vote(vote) => {
            buffer.put_u8(VOTE);
            put_bytes(buffer, vote);
        }
        Operation::Committed(id) => {
            buffer.put_u8(COMMITTED);
            put_id(buffer, *id);
        }
        Operation::TruncateAfter(id) => {
            buffer.put_u8(TRUNCATE_AFTER);
            put_id(buffer, *id);
        }
        Operation::Purge(id) => {
            buffer.put_u8(PURGE);
            put_id(buffer, Some(*id));
        }
        Operation::State { purged, vote, committed } => {
            buffer.put_u8(STATE);
            put_id(buffer, *purged);
            buffer.put_u8(vote.is_some() as u8);
            put_bytes(buffer, vote.as_deref().unwrap_or_default());
            put_id(buffer, *committed);
        }
    }
}

fn put_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.put_u32_le(bytes.len() as u32);
    buffer.put_slice(bytes);
}

fn put_id(buffer: &mut Vec<u8>, id: Option<EntryId>) {
    buffer.put_u8(id.is_some() as u8);
    if let Some(EntryId { term, node, index }) = id {
        buffer.put_u64_le(term);
        buffer.put_u64_le(node);
        buffer.put_u64_le(index);
    }
}

/// Reads the operations of a body whose checksum passed.
///
/// # Errors
/// What is wrong, when the bytes are not what this version writes.
pub(super) fn parse_body(mut body: Bytes) -> Result<Vec<Operation>, &'static str> {
    let mut operations = Vec::new();
    while body.has_remaining() {
        let kind = body.get_u8();
        operations.push(match kind {
            ENTRIES => {
                let first = take_u64(&mut body)?;
                let count = take_u32(&mut body)?;
                let mut entries = Vec::with_capacity((count as usize).min(body.len() / 20));
                for number in 0..u64::from(count) {
                    let term = take_u64(&mut body)?;
                    let node = take_u64(&mut body)?;
                    let index = first.checked_add(number).ok_or("an index overflows")?;
                    let payload = take_bytes(&mut body)?;
                    entries.push(LogEntry { id: EntryId { term, node, index }, payload });
                }
                Operation::Entries(entries)
            }
            VOTE => Operation::Vote(take_bytes(&mut body)?),
            COMMITTED => Operation::Committed(take_id(&mut body)?),
            TRUNCATE_AFTER => Operation::TruncateAfter(take_id(&mut body)?),
            PURGE => Operation::Purge(take_id(&mut body)?.ok_or("a purge names no entry")?),
            STATE => {
                let purged = take_id(&mut body)?;
                let present = take_u8(&mut body)? != 0;
                let vote = take_bytes(&mut body)?;
                let committed = take_id(&mut body)?;
                Operation::State { purged, vote: present.then_some(vote), committed }
            }
            _ => return Err("an operation is of an unknown kind"),
        });
    }
    Ok(operations)
}

const SHORT: &str = "an operation is cut short";

fn take_u8(body: &mut Bytes) -> Result<u8, &'static str> {
    body.try_get_u8().map_err(|_| SHORT)
}

fn take_u32(body: &mut Bytes) -> Result<u32, &'static str> {
    body.try_get_u32_le().map_err(|_| SHORT)
}

fn take_u64(body: &mut Bytes) -> Result<u64, &'static str> {
    body.try_get_u64_le().map_err(|_| SHORT)
}

fn take_bytes(body: &mut Bytes) -> Result<Bytes, &'static str> {
    let len = take_u32(body)? as usize;
    if len > body.len() { Err(SHORT) } else { Ok(body.split_to(len)) }
}

fn take_id(body: &mut Bytes) -> Result<Option<EntryId>, &'static str> {
    if take_u8(body)? == 0 {
        return Ok(None);
    }
    let (term, node, index) = (take_u64(body)?, take_u64(body)?, take_u64(body)?);
    Ok(Some(EntryId { term, node, index }))
}

/// The first bytes of a segment, durable before the file gets its final name.
pub(super) const SEGMENT_HEADER_LEN: usize = 32;
const MAGIC: &[u8; 8] = b"QUORWAL\n";
/// Raised when a reader of the version before could misread what is written.
const FORMAT_VERSION: u32 = 1;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log_id: u64,
    pub(super) number: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(SEGMENT_HEADER_LEN);
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(FORMAT_VERSION);
        bytes.put_u64_le(self.log_id);
        bytes.put_u64_le(self.number);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        bytes
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<SegmentHeader, String> {
        let Some(mut rest) = bytes.get(..SEGMENT_HEADER_LEN) else {
            return Err("the header is cut short".to_owned());
        };
        let crc = crc32c::crc32c(&rest[..28]);
        if !rest.starts_with(MAGIC) {
            return Err("this is not a log segment".to_owned());
        }
        rest.advance(MAGIC.len());
        let version = rest.get_u32_le();
        let header = SegmentHeader { log_id: rest.get_u64_le(), number: rest.get_u64_le() };
        if rest.get_u32_le() != crc {
            return Err("the header's checksum does not match".to_owned());
        }
        if version != FORMAT_VERSION {
            return Err(format!("format version {version}; this program reads {FORMAT_VERSION}"));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Operation> {
        let id = |index| EntryId { term: 3, node: 9, index };
        vec![
            Operation::Entries(vec![
                LogEntry { id: id(7), payload: Bytes::from_static(b"seven") },
                LogEntry { id: id(8), payload: Bytes::new() },
            ]),
            Operation::Vote(Bytes::from_static(b"vote")),
            Operation::Committed(Some(id(7))),
            Operation::Committed(None),
            Operation::TruncateAfter(None),
            Operation::Purge(id(6)),
            Operation::State { purged: Some(id(6)), vote: None, committed: None },
            Operation::State { purged: None, vote: Some(Bytes::from_static(b"v")), committed: Some(id(1)) },
        ]
    }

    fn sealed() -> Vec<u8> {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        for operation in &samples() {
            let before = buffer.len();
            put_operation(&mut buffer, operation);
            assert!(buffer.len() - before <= operation_len(operation));
        }
        finish(&mut buffer, 77, 5, 2, 11);
        buffer
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let record = sealed();
        let header = parse_header(&record).expect("a header");
        assert_eq!((header.previous, header.segment, header.sequence), (5, 2, 11));
        assert!(is_valid(77, &header, &record));
        assert!(!is_valid(78, &header, &record), "another log's record passes");
        let body = Bytes::from(record).slice(HEADER_LEN..HEADER_LEN + header.body_len);
        assert_eq!(parse_body(body).expect("a body"), samples());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = sealed();
        let length = parse_header(&record).map(|header| HEADER_LEN + header.body_len).expect("a header");
        for bit in 0..length * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let passes = parse_header(&damaged).is_some_and(|header| is_valid(77, &header, &damaged));
            assert!(!passes, "bit {bit} flips unnoticed");
        }
    }

    #[test]
    fn a_cut_body_is_an_error_not_a_panic() {
        let record = sealed();
        let header = parse_header(&record).expect("a header");
        let body = Bytes::from(record).slice(HEADER_LEN..HEADER_LEN + header.body_len);
        let whole = parse_body(body.clone()).expect("a body");
        for len in 0..body.len() {
            if let Ok(operations) = parse_body(body.slice(..len)) {
                assert!(whole.starts_with(&operations));
            }
        }
    }

    #[test]
    fn a_segment_header_of_another_version_says_so() {
        let header = SegmentHeader { log_id: 1, number: 2 };
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        let mut newer = header.encode();
        newer[8] = 9;
        let crc = crc32c::crc32c(&newer[..28]);
        newer[28..].copy_from_slice(&crc.to_le_bytes());
        let error = SegmentHeader::decode(&newer).expect_err("another version");
        assert!(error.contains("version 9"), "{error}");
    }
}
