//! The write side: a queue, and the one thread that empties it.
//!
//! The thread takes everything that waits, writes it as one record, syncs once, and
//! calls back. What arrives meanwhile is the next batch: under load batches grow and
//! the cost of a sync is shared.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::reader::{self, Replayed, Segment};
use super::record::{self, Operation, SEGMENT_HEADER_LEN};
use super::segment::{Directory, Preparer, failed};
use super::state::{Location, Log};
use super::sync_times::SyncTimes;
use super::{Config, Done, EntryId, LogEntry, Recovered, WalError};
use crate::fs::{Disk, File};
use crate::thread;

/// Where a batch is cut, so that a backlog does not make everybody wait for all of it.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Entries of one operation, unless a single one is larger.
const MAX_PIECE_BYTES: usize = 1 << 20;
/// What the page cache reads and writes at once.
const PAGE_BYTES: u64 = 4096;
/// The encoding buffer shrinks to this after a large batch.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

struct Item {
    operation: Option<Operation>,
    done: Option<Done>,
}

impl Item {
    /// A mark of what is committed waits for company: it spares a start some replay, and
    /// nobody waits for it. A record of its own would cost every lone write a second sync.
    fn is_patient(&self) -> bool {
        matches!(self.operation, Some(Operation::Committed(_)))
    }
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    closed: bool,
    poisoned: Option<String>,
}

/// What goes to the disk at once, and who is told.
pub(super) type Batch = (Vec<Operation>, Vec<Done>);

impl Queue {
    /// Whether something waits that does not wait for company.
    fn is_due(&self) -> bool {
        !self.items.iter().all(Item::is_patient)
    }

    /// As much as makes one batch.
    fn take(&mut self) -> Option<Batch> {
        let (mut operations, mut dones) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while let Some(item) = self.items.front() {
            bytes += item.operation.as_ref().map_or(0, record::operation_len);
            if bytes > MAX_BATCH_BYTES && !(operations.is_empty() && dones.is_empty()) {
                break;
            }
            let Some(Item { operation, done }) = self.items.pop_front() else { break };
            operations.extend(operation);
            dones.extend(done);
        }
        (!operations.is_empty() || !dones.is_empty()).then_some((operations, dones))
    }
}

/// The log in memory and what waits for the disk. One lock: their orders must agree.
struct Inner {
    log: Log,
    queue: Queue,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    arrived: Condvar,
    segments: Mutex<BTreeMap<u64, Segment>>,
    directory: Directory,
    log_id: u64,
    poisoned: watch::Sender<Option<String>>,
    born: Instant,
    /// Microseconds from `born` at which the write in progress began; 0 for none.
    write_began: AtomicU64,
    syncs: Mutex<SyncTimes>,
}

/// Gives the log a view that callers may hold for a moment.
pub(super) struct LogGuard<'a>(MutexGuard<'a, Inner>);

impl std::ops::Deref for LogGuard<'_> {
    type Target = Log;
    fn deref(&self) -> &Log {
        &self.0.log
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens or begins the log and starts its threads.
pub(super) fn start(
    config: Config,
    disk: Arc<dyn Disk>,
) -> Result<(Arc<Shared>, Recovered, Vec<JoinHandle<()>>), WalError> {
    let path = config.directory.clone();
    let (writer, recovered, preparing) = open(config, disk)?;
    let shared = Arc::clone(&writer.shared);
    let writing = thread::spawn("wal-writer", move || writer.run()).map_err(failed("start a thread for", &path))?;
    Ok((shared, recovered, vec![writing, preparing]))
}

/// Opens or begins the log, for whoever runs the writer.
pub(super) fn open(config: Config, disk: Arc<dyn Disk>) -> Result<(Writer, Recovered, JoinHandle<()>), WalError> {
    let directory = Directory {
        disk,
        path: config.directory,
        segment_size: config.segment_size_bytes.max(4096).next_multiple_of(8),
    };
    directory.disk.create_dir_all(&directory.path).map_err(failed("create", &directory.path))?;
    let replayed = match reader::replay(&directory, config.ring_size_bytes)? {
        Some(replayed) => replayed,
        None => begin(&directory, config.ring_size_bytes)?,
    };
    if replayed.truncated_tail {
        tracing::warn!(
            file = %directory.segment_path(replayed.end.segment).display(),
            offset = replayed.end.offset,
            "cut off a record that a crash left unfinished"
        );
    }
    let recovered = Recovered {
        state: replayed.log.state(),
        vote: replayed.log.vote.clone(),
        committed: replayed.log.committed,
        truncated_tail: replayed.truncated_tail,
        log_id: replayed.log_id,
    };
    let started = Preparer::start(directory.clone(), replayed.log_id);
    let (preparer, preparing) = started.map_err(failed("start a thread for", &directory.path))?;
    let Replayed { log, log_id, segments, spare, end, sequence, previous, .. } = replayed;
    let Some(active) = segments.get(&end.segment).map(|segment| segment.file.clone()) else {
        return Err(WalError::Closed);
    };
    if spare.is_none() {
        preparer.request(end.segment + 1);
    }
    let hard = Hard { purged: log.purged(), vote: log.vote.clone(), committed: log.committed };
    let shared = Arc::new(Shared {
        inner: Mutex::new(Inner { log, queue: Queue::default() }),
        arrived: Condvar::new(),
        segments: Mutex::new(segments),
        directory: directory.clone(),
        log_id,
        poisoned: watch::Sender::new(None),
        born: Instant::now(),
        write_began: AtomicU64::new(0),
        syncs: Mutex::default(),
    });
    let writer = Writer { shared, preparer, active, end, sequence, previous, hard, spare, buffer: Vec::new() };
    Ok((writer, recovered, preparing))
}

fn begin(directory: &Directory, ring_size_bytes: usize) -> Result<Replayed, WalError> {
    let log_id = rand::random();
    let file = directory.make(log_id, 1, None)?;
    Ok(Replayed {
        log: Log::new(ring_size_bytes),
        log_id,
        segments: BTreeMap::from([(1, Segment { file, max_index: None })]),
        spare: None,
        end: Location { segment: 1, offset: SEGMENT_HEADER_LEN as u64 },
        sequence: 1,
        previous: 0,
        truncated_tail: false,
    })
}

impl Shared {
    pub(super) fn log(&self) -> LogGuard<'_> {
        LogGuard(locked(&self.inner))
    }

    /// Runs `change` on the log and queues what it returns, as one step.
    fn submit(
        &self,
        done: Option<Done>,
        change: impl FnOnce(&mut Log) -> Result<Vec<Operation>, WalError>,
    ) -> Result<(), WalError> {
        let mut inner = self.open()?;
        let operations = change(&mut inner.log)?;
        inner
            .queue
            .items
            .extend(operations.into_iter().map(|operation| Item { operation: Some(operation), done: None }));
        if done.is_some() {
            inner.queue.items.push_back(Item { operation: None, done });
        }
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    /// The log and its queue, if it still takes changes.
    fn open(&self) -> Result<MutexGuard<'_, Inner>, WalError> {
        let inner = locked(&self.inner);
        if let Some(reason) = &inner.queue.poisoned {
            return Err(WalError::Poisoned(reason.clone()));
        }
        if inner.queue.closed {
            return Err(WalError::Closed);
        }
        Ok(inner)
    }

    pub(super) fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), WalError> {
        self.submit(Some(done), |log| {
            log.check_append(&entries)?;
            entries.iter().for_each(|entry| log.push(entry, None));
            Ok(in_pieces(entries))
        })
    }

    pub(super) fn save_vote(&self, vote: Bytes, done: Done) -> Result<(), WalError> {
        self.submit(Some(done), |log| {
            log.vote = Some(vote.clone());
            Ok(vec![Operation::Vote(vote)])
        })
    }

    pub(super) fn save_committed(&self, id: Option<EntryId>) -> Result<(), WalError> {
        let mut inner = self.open()?;
        inner.log.committed = id;
        // The newest mark is the only one that counts.
        inner.queue.items.pop_back_if(|item| item.is_patient());
        inner.queue.items.push_back(Item { operation: Some(Operation::Committed(id)), done: None });
        Ok(())
    }

    pub(super) fn truncate_after(&self, last: Option<EntryId>) -> Result<(), WalError> {
        self.submit(None, |log| {
            log.truncate_after(last);
            Ok(vec![Operation::TruncateAfter(last)])
        })
    }

    pub(super) fn purge(&self, upto: EntryId) -> Result<(), WalError> {
        self.submit(None, |log| {
            log.purge(upto);
            Ok(vec![Operation::Purge(upto)])
        })
    }

    pub(super) fn close(&self) {
        locked(&self.inner).queue.closed = true;
        self.arrived.notify_one();
    }

    pub(super) fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<LogEntry>, WalError> {
        let mut found: Vec<(EntryId, Option<Location>, Option<Bytes>)> = Vec::new();
        {
            let log = self.log();
            let mut bytes = 0;
            for slot in log.slots(range.start, range.end)? {
                // An entry read back is charged when it is read.
                bytes += slot.payload.as_ref().map_or(0, Bytes::len);
                if bytes > max_bytes && !found.is_empty() {
                    break;
                }
                found.push((slot.id, slot.location, slot.payload.clone()));
            }
        }
        let mut entries = Vec::with_capacity(found.len());
        let mut bytes = 0;
        let mut recent: Option<(Location, Vec<Operation>)> = None;
        for (id, location, payload) in found {
            let payload = match (payload, location) {
                (Some(payload), _) => payload,
                (None, Some(location)) => self.read_back(id, location, &mut recent)?,
                (None, None) => unreachable!("an entry is neither in memory nor on disk"),
            };
            bytes += payload.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(LogEntry { id, payload });
        }
        Ok(entries)
    }

    /// Reads one entry from its record; `recent` keeps the record for the next one.
    fn read_back(
        &self,
        id: EntryId,
        location: Location,
        recent: &mut Option<(Location, Vec<Operation>)>,
    ) -> Result<Bytes, WalError> {
        if recent.as_ref().is_none_or(|(at, _)| *at != location) {
            let file = locked(&self.segments).get(&location.segment).map(|segment| segment.file.clone());
            let path = self.directory.segment_path(location.segment);
            let operations = match file {
                Some(file) => reader::read_back(&*file, self.log_id, location).map_err(failed("read", &path))?,
                None => None,
            };
            *recent = operations.map(|operations| (location, operations));
        }
        let operations = recent.as_ref().map_or(&[][..], |(_, operations)| operations);
        // The last one: a batch may hold an entry, its truncation and its successor.
        let entry = operations.iter().rev().find_map(|operation| match operation {
            Operation::Entries(entries) => entries.iter().find(|entry| entry.id == id),
            _ => None,
        });
        if let Some(entry) = entry {
            return Ok(entry.payload.clone());
        }
        match self.log().purged() {
            Some(purged) if purged.index >= id.index => Err(WalError::Purged { wanted: id.index, last: purged.index }),
            _ => Err(WalError::Damaged {
                path: self.directory.segment_path(location.segment),
                offset: location.offset,
                reason: format!("entry {} cannot be read back", id.index),
            }),
        }
    }

    pub(super) fn sync_quantile(&self, share: f64) -> Option<Duration> {
        locked(&self.syncs).quantile(self.born.elapsed(), share)
    }

    pub(super) fn stalled_for(&self) -> Duration {
        match self.write_began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => self.born.elapsed().saturating_sub(Duration::from_micros(began)),
        }
    }

    pub(super) fn poisoned(&self) -> watch::Receiver<Option<String>> {
        self.poisoned.subscribe()
    }
}

/// Many large entries in several operations, so that they go into several records: a record
/// is read back as a whole, even for one entry of it.
fn in_pieces(entries: Vec<LogEntry>) -> Vec<Operation> {
    let mut pieces: Vec<Vec<LogEntry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.payload.len();
        match pieces.last_mut() {
            Some(piece) if bytes <= MAX_PIECE_BYTES => piece.push(entry),
            _ => {
                bytes = entry.payload.len();
                pieces.push(vec![entry]);
            }
        }
    }
    pieces.into_iter().map(Operation::Entries).collect()
}

/// What the stream says so far, for the start of the next segment. Not what the log in
/// memory says: that is ahead of the stream.
struct Hard {
    purged: Option<EntryId>,
    vote: Option<Bytes>,
    committed: Option<EntryId>,
}

impl Hard {
    fn note(&mut self, operation: &Operation) {
        match operation {
            Operation::Vote(vote) => self.vote = Some(vote.clone()),
            Operation::Committed(id) => self.committed = *id,
            Operation::Purge(id) => self.purged = self.purged.max_by_index(*id),
            _ => {}
        }
    }

    fn state(&self) -> Operation {
        Operation::State { purged: self.purged, vote: self.vote.clone(), committed: self.committed }
    }
}

trait MaxByIndex {
    fn max_by_index(self, other: EntryId) -> Option<EntryId>;
}

impl MaxByIndex for Option<EntryId> {
    fn max_by_index(self, other: EntryId) -> Option<EntryId> {
        Some(self.filter(|id| id.index >= other.index).unwrap_or(other))
    }
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    preparer: Preparer,
    active: Arc<dyn File>,
    end: Location,
    sequence: u64,
    previous: u32,
    hard: Hard,
    spare: Option<(u64, Arc<dyn File>)>,
    buffer: Vec<u8>,
}

impl Writer {
    fn run(mut self) {
        while let Some((operations, dones)) = self.next_batch() {
            if !self.finish(&operations, dones) {
                return;
            }
        }
    }

    /// Makes `operations` durable and tells who waits; whether the log goes on.
    pub(super) fn finish(&mut self, operations: &[Operation], dones: Vec<Done>) -> bool {
        match self.write(operations) {
            Ok(()) => {
                dones.into_iter().for_each(|done| done(Ok(())));
                true
            }
            Err(error) => {
                self.poison(&error, dones.into_iter());
                false
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_due(&self) -> bool {
        locked(&self.shared.inner).queue.is_due()
    }

    #[cfg(test)]
    pub(super) fn take(&self) -> Option<Batch> {
        locked(&self.shared.inner).queue.take()
    }

    /// What other threads do for the log is done when this returns.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        self.preparer.settle();
    }

    /// Waits for work and takes as much as makes one batch; `None` once closed and empty.
    fn next_batch(&self) -> Option<Batch> {
        let mut inner = locked(&self.shared.inner);
        while !inner.queue.is_due() && !inner.queue.closed {
            inner = self.shared.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.queue.take()
    }

    fn write(&mut self, operations: &[Operation]) -> Result<(), WalError> {
        if operations.is_empty() {
            return Ok(());
        }
        let began = (self.shared.born.elapsed().as_micros() as u64).max(1);
        self.shared.write_began.store(began, Ordering::Relaxed);
        let written = self.write_record(operations);
        self.shared.write_began.store(0, Ordering::Relaxed);
        let location = written?;
        let mut max_index = None;
        let mut purges = false;
        {
            let mut inner = locked(&self.shared.inner);
            for operation in operations {
                match operation {
                    Operation::Entries(entries) => {
                        entries.iter().for_each(|entry| inner.log.locate(entry.id, location));
                        max_index = max_index.max(entries.last().map(|entry| entry.id.index));
                    }
                    Operation::Purge(_) => purges = true,
                    _ => {}
                }
            }
            inner.log.evict();
        }
        if let Some(segment) = locked(&self.shared.segments).get_mut(&location.segment) {
            segment.max_index = segment.max_index.max(max_index);
        }
        if purges {
            self.retire();
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn write_unsynced(&mut self, operations: &[Operation]) {
        // The power is gone before anybody could hear of an error.
        let _ = self.put_record(operations);
    }

    /// Writes one durable record; returns where it lies.
    fn write_record(&mut self, operations: &[Operation]) -> Result<Location, WalError> {
        let (location, crc, end) = self.put_record(operations)?;
        let path = self.shared.directory.segment_path(location.segment);
        let syncing = Instant::now();
        self.active.sync_data().map_err(failed("sync", &path))?;
        let took = syncing.elapsed();
        locked(&self.shared.syncs).record(self.shared.born.elapsed(), took);
        metrics::histogram!("etcd_disk_wal_fsync_duration_seconds").record(took.as_secs_f64());
        self.sequence += 1;
        self.previous = crc;
        self.end.offset = end;
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer.clear();
            self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        }
        Ok(location)
    }

    /// Writes one record; returns where it lies, its checksum, and where it ends.
    fn put_record(&mut self, operations: &[Operation]) -> Result<(Location, u32, u64), WalError> {
        let len = record::HEADER_LEN
            + record::operation_len(&self.hard.state())
            + operations.iter().map(record::operation_len).sum::<usize>();
        let fits = self.end.offset + record::padded(len) as u64 <= self.shared.directory.segment_size;
        // A record larger than a segment gets a segment of its own that grows.
        if !fits && self.end.offset > SEGMENT_HEADER_LEN as u64 {
            self.rotate()?;
        }
        record::begin(&mut self.buffer);
        if self.end.offset == SEGMENT_HEADER_LEN as u64 {
            record::put_operation(&mut self.buffer, &self.hard.state());
        }
        for operation in operations {
            record::put_operation(&mut self.buffer, operation);
            self.hard.note(operation);
        }
        let Location { segment, offset } = self.end;
        let crc = record::finish(&mut self.buffer, self.shared.log_id, self.previous, segment, self.sequence);
        let path = self.shared.directory.segment_path(segment);
        let len = self.buffer.len() as u64;
        let (end, size) = (offset + len, self.shared.directory.segment_size);
        // With zeros up to the end of the page: one that is written whole need not be read.
        let zeros = end.next_multiple_of(PAGE_BYTES).min(size.max(end)) - end;
        self.buffer.resize(self.buffer.len() + zeros as usize, 0);
        self.active.write_all_at(&self.buffer, offset).map_err(failed("write", &path))?;
        Ok((Location { segment, offset }, crc, end))
    }

    fn rotate(&mut self) -> Result<(), WalError> {
        let (number, file) = match self.spare.take() {
            Some(spare) => spare,
            None => self.preparer.take()?,
        };
        assert_eq!(number, self.end.segment + 1, "segments follow each other");
        let segment = Segment { file: file.clone(), max_index: None };
        locked(&self.shared.segments).insert(number, segment);
        self.active = file;
        self.end = Location { segment: number, offset: SEGMENT_HEADER_LEN as u64 };
        self.preparer.request(number + 1);
        Ok(())
    }

    /// Gives back the oldest segments that hold nothing after the durable purge mark.
    fn retire(&mut self) {
        let Some(purged) = self.hard.purged else { return };
        let mut segments = locked(&self.shared.segments);
        while let Some(oldest) = segments.first_entry() {
            let number = *oldest.key();
            let needed = oldest.get().max_index.is_some_and(|index| index > purged.index);
            if needed || number == self.end.segment {
                break;
            }
            oldest.remove();
            self.preparer.retire(number);
        }
    }

    /// Tells everybody that the log has stopped; what the disk holds is unknown now.
    fn poison(&self, error: &WalError, dones: impl Iterator<Item = Done>) {
        let reason = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        tracing::error!(reason, "the log has stopped");
        let waiting = {
            let mut inner = locked(&self.shared.inner);
            inner.queue.poisoned = Some(reason.clone());
            std::mem::take(&mut inner.queue.items)
        };
        self.shared.poisoned.send_replace(Some(reason.clone()));
        for done in dones.chain(waiting.into_iter().filter_map(|item| item.done)) {
            done(Err(io::Error::other(reason.clone())));
        }
    }
}
