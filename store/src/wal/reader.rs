//! Replay: from the bytes of the segments to what the log holds.
//!
//! Replay ends where the next record is not whole. If no whole record with a higher
//! sequence number lies behind that place it was a write that a crash cut short, never
//! confirmed to anybody, and is cut off. If one does, the bad record had been durable
//! (a record is begun only after the one before is durable), so bytes have changed
//! since: this is damage and the log refuses.
//!
//! Damage to the very last record looks like a torn write and cannot be told from one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::WalError;
use super::record::{self, HEADER_LEN, Header, Operation, SEGMENT_HEADER_LEN, SegmentHeader};
use super::segment::{Directory, failed};
use super::state::{Location, Log};
use crate::fs::File;

/// A segment in use.
pub(super) struct Segment {
    pub(super) file: Arc<dyn File>,
    /// The highest index of an entry in it, removed ones included.
    pub(super) max_index: Option<u64>,
}

/// What replay found.
pub(super) struct Replayed {
    pub(super) log: Log,
    pub(super) log_id: u64,
    /// Those with records, and the first of a new log.
    pub(super) segments: BTreeMap<u64, Segment>,
    /// A segment made for later use, still without a record.
    pub(super) spare: Option<(u64, Arc<dyn File>)>,
    /// Where the next record goes.
    pub(super) end: Location,
    /// The sequence number of the next record.
    pub(super) sequence: u64,
    /// The checksum of the last record.
    pub(super) previous: u32,
    pub(super) truncated_tail: bool,
}

/// How much is read at once.
const WINDOW_LEN: usize = 1 << 20;

/// Reads a file front to back in large pieces.
struct Window<'a> {
    file: &'a dyn File,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn File) -> Window<'a> {
        Window { file, start: 0, bytes: Vec::new() }
    }

    /// The `len` bytes at `offset`, fewer at the end of the file.
    fn get(&mut self, offset: u64, len: usize) -> std::io::Result<&[u8]> {
        let inside = |window: &Window<'_>| {
            let skip = offset.checked_sub(window.start)? as usize;
            (skip + len <= window.bytes.len()).then_some(skip)
        };
        let skip = match inside(self) {
            Some(skip) => skip,
            None => {
                self.bytes.resize(len.max(WINDOW_LEN), 0);
                let count = self.file.read_at(&mut self.bytes, offset)?;
                self.bytes.truncate(count);
                self.start = offset;
                0
            }
        };
        let end = (skip + len).min(self.bytes.len());
        Ok(&self.bytes[skip..end])
    }
}

/// What stands at one place of a segment.
enum Found {
    Record(Header, Bytes),
    /// No whole record; `begun` when one that belongs here had been started.
    Nothing {
        begun: bool,
    },
}

/// What a record must say to be the next one; nothing is known at the start of the log.
#[derive(Clone, Copy)]
struct Expected {
    log_id: u64,
    next: Option<(u64, u32)>,
}

impl Expected {
    fn fits(&self, header: &Header) -> bool {
        self.next.is_none_or(|next| next == (header.sequence, header.previous))
    }
}

fn record_at(
    window: &mut Window<'_>,
    size: u64,
    number: u64,
    offset: u64,
    expected: Expected,
) -> std::io::Result<Found> {
    let Some(header) = record::parse_header(window.get(offset, HEADER_LEN)?) else {
        return Ok(Found::Nothing { begun: false });
    };
    let begun = header.segment == number && expected.fits(&header);
    let len = HEADER_LEN + header.body_len;
    if !begun || offset + len as u64 > size {
        return Ok(Found::Nothing { begun });
    }
    let bytes = window.get(offset, len)?;
    if !record::is_valid(expected.log_id, &header, bytes) {
        return Ok(Found::Nothing { begun });
    }
    Ok(Found::Record(header, Bytes::copy_from_slice(&bytes[HEADER_LEN..len])))
}

/// What is compared at once when nothing is expected; a multiple of 8.
const ZEROS: &[u8] = &[0; 4096];

/// Whether `bytes` begin with zeros only: as many as are compared at once, and a header.
fn is_zero(bytes: &[u8]) -> bool {
    let (block, next) = bytes.split_at(bytes.len().min(ZEROS.len()));
    let next = &next[..next.len().min(HEADER_LEN)];
    *block == ZEROS[..block.len()] && *next == ZEROS[..next.len()]
}

/// Whether a whole record with a sequence number above `above` lies at or after `offset`.
fn has_later_record(file: &dyn File, log_id: u64, number: u64, offset: u64, above: u64) -> std::io::Result<bool> {
    let size = file.size()?;
    let wanted = number.to_le_bytes();
    let mut window = vec![0; WINDOW_LEN];
    let mut body = Window::new(file);
    let mut start = offset;
    while start + HEADER_LEN as u64 <= size {
        let count = file.read_at(&mut window, start)?;
        // Most of what is looked through are zeros, which begin no record.
        for block in (0..count).step_by(ZEROS.len()).filter(|from| !is_zero(&window[*from..count])) {
            // Only where the segment's number stands in its place is there anything to parse.
            let places = (block..count.min(block + ZEROS.len())).step_by(8);
            let headers = places.filter_map(|place| Some((place, window[..count].get(place..place + HEADER_LEN)?)));
            for (place, bytes) in headers.filter(|(_, bytes)| bytes[16..24] == wanted) {
                let at = start + place as u64;
                if let Some(header) = record::parse_header(bytes)
                    && header.sequence > above
                    && at + (HEADER_LEN + header.body_len) as u64 <= size
                    && record::is_valid(log_id, &header, body.get(at, HEADER_LEN + header.body_len)?)
                {
                    return Ok(true);
                }
            }
        }
        // The next window begins with the headers that this one cut.
        start += (count.saturating_sub(HEADER_LEN) as u64 & !7) + 8;
    }
    Ok(false)
}

fn read_header(directory: &Directory, number: u64, file: &dyn File) -> Result<SegmentHeader, WalError> {
    let path = directory.segment_path(number);
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    let count = file.read_at(&mut bytes, 0).map_err(failed("read", &path))?;
    let damaged = |reason| WalError::Damaged { path: path.clone(), offset: 0, reason };
    let header = SegmentHeader::decode(&bytes[..count]).map_err(damaged)?;
    if header.number != number {
        return Err(damaged(format!("it says it is segment {:x}", header.number)));
    }
    Ok(header)
}

/// Replays the log in `directory`; `None` when there is none.
pub(super) fn replay(directory: &Directory, ring_size_bytes: usize) -> Result<Option<Replayed>, WalError> {
    let numbers = directory.segments()?;
    let Some(&first) = numbers.first() else { return Ok(None) };
    let mut files: Vec<(u64, Arc<dyn File>)> = Vec::new();
    let mut log_id = None;
    for (position, &number) in numbers.iter().enumerate() {
        let path = directory.segment_path(number);
        let damaged = |reason: &str| WalError::Damaged { path: path.clone(), offset: 0, reason: reason.to_owned() };
        if number != first + position as u64 {
            return Err(damaged("the segment before it is missing"));
        }
        let file = directory.disk.open(&path).map_err(failed("open", &path))?;
        let header = read_header(directory, number, &*file)?;
        if *log_id.get_or_insert(header.log_id) != header.log_id {
            return Err(damaged("it belongs to another log"));
        }
        files.push((number, file));
    }
    let log_id = log_id.unwrap_or_default();
    let mut replayed = Replayed {
        log: Log::new(ring_size_bytes),
        log_id,
        segments: BTreeMap::new(),
        spare: None,
        end: Location { segment: first, offset: SEGMENT_HEADER_LEN as u64 },
        sequence: 1,
        previous: 0,
        truncated_tail: false,
    };
    replayed.run(directory, &files)?;
    Ok(Some(replayed))
}

impl Replayed {
    fn run(&mut self, directory: &Directory, files: &[(u64, Arc<dyn File>)]) -> Result<(), WalError> {
        let mut expected = Expected { log_id: self.log_id, next: None };
        let mut begun = false;
        for (number, file) in files {
            let path = directory.segment_path(*number);
            if self.replay_segment(&path, *number, file, &mut expected, &mut begun)? == 0 {
                break;
            }
        }
        // What follows the end must hold no record that was written after it.
        let above = expected.next.map_or(0, |(sequence, _)| sequence);
        for (number, file) in files.iter().filter(|(number, _)| *number >= self.end.segment) {
            let offset = if *number == self.end.segment { self.end.offset } else { SEGMENT_HEADER_LEN as u64 };
            let path = directory.segment_path(self.end.segment);
            if has_later_record(&**file, self.log_id, *number, offset, above).map_err(failed("read", &path))? {
                let reason = "a record's checksum does not match".to_owned();
                return Err(WalError::Damaged { path, offset: self.end.offset, reason });
            }
        }
        let path = directory.segment_path(files[0].0);
        self.log.check_replayed().map_err(|reason| WalError::Damaged {
            path,
            offset: SEGMENT_HEADER_LEN as u64,
            reason,
        })?;
        (self.sequence, self.previous) = expected.next.unwrap_or((1, 0));
        self.truncated_tail = begun;
        let after = |number: u64| files.iter().find(|(other, _)| *other == number).cloned();
        self.spare = after(self.end.segment + 1);
        // What was read may still be only in the system's cache: a kill is not a power loss.
        if let Some((number, file)) = after(self.end.segment) {
            let path = directory.segment_path(number);
            file.sync_data().map_err(failed("sync", &path))?;
        }
        directory.sync()
    }

    /// Replays one segment; returns how many records it had.
    fn replay_segment(
        &mut self,
        path: &std::path::Path,
        number: u64,
        file: &Arc<dyn File>,
        expected: &mut Expected,
        begun: &mut bool,
    ) -> Result<u64, WalError> {
        let size = file.size().map_err(failed("measure", path))?;
        let mut window = Window::new(&**file);
        let mut offset = SEGMENT_HEADER_LEN as u64;
        let mut max_index = None;
        let mut records = 0;
        loop {
            let found = record_at(&mut window, size, number, offset, *expected);
            let (header, body) = match found.map_err(failed("read", path))? {
                Found::Record(header, body) => (header, body),
                Found::Nothing { begun: here } => {
                    *begun |= here && expected.next.is_some();
                    break;
                }
            };
            let damaged = |reason: String| WalError::Damaged { path: path.to_owned(), offset, reason };
            let location = Location { segment: number, offset };
            for operation in record::parse_body(body).map_err(|reason| damaged(reason.to_owned()))? {
                if let Operation::Entries(entries) = &operation {
                    max_index = max_index.max(entries.last().map(|entry| entry.id.index));
                }
                self.log.replay(operation, location).map_err(damaged)?;
            }
            expected.next = Some((header.sequence + 1, header.crc));
            *begun = false;
            offset += header.record_len() as u64;
            records += 1;
        }
        if records > 0 || number == self.end.segment {
            self.end = Location { segment: number, offset };
            self.segments.insert(number, Segment { file: file.clone(), max_index });
        }
        Ok(records)
    }
}

/// Reads the record at `location` again; `None` when it is not there any more.
pub(super) fn read_back(file: &dyn File, log_id: u64, location: Location) -> std::io::Result<Option<Vec<Operation>>> {
    let size = file.size()?;
    let mut header = [0; HEADER_LEN];
    let count = file.read_at(&mut header, location.offset)?;
    let Some(header) = record::parse_header(&header[..count]) else { return Ok(None) };
    let len = HEADER_LEN + header.body_len;
    if header.segment != location.segment || location.offset + len as u64 > size {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    let count = file.read_at(&mut bytes, location.offset)?;
    if count < len || !record::is_valid(log_id, &header, &bytes) {
        return Ok(None);
    }
    Ok(record::parse_body(Bytes::from(bytes).slice(HEADER_LEN..)).ok())
}
