//! What the log holds, in memory: pure bookkeeping.
//!
//! One slot per entry says where its record lies; the newest entries keep their
//! payload, bounded in bytes. An entry that is not on disk yet always keeps it.

use std::collections::VecDeque;

use bytes::Bytes;

use super::record::Operation;
use super::{EntryId, LogEntry, LogState, WalError};

/// Where a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: EntryId,
    /// `None` until it is durable.
    pub(super) location: Option<Location>,
    /// `None` once it has left the ring.
    pub(super) payload: Option<Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    slots: VecDeque<Slot>,
    purged: Option<EntryId>,
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<EntryId>,
    /// How many of the first slots have no payload.
    evicted: usize,
    ring_bytes: usize,
    ring_size_bytes: usize,
}

/// What an entry costs the ring beside its payload.
const SLOT_BYTES: usize = size_of::<Slot>();

impl Log {
    pub(super) fn new(ring_size_bytes: usize) -> Log {
        Log { ring_size_bytes, ..Log::default() }
    }

    pub(super) fn state(&self) -> LogState {
        LogState { purged: self.purged, last: self.last() }
    }

    pub(super) fn purged(&self) -> Option<EntryId> {
        self.purged
    }

    fn last(&self) -> Option<EntryId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.id.index)
    }

    fn position(&self, index: u64) -> Option<usize> {
        let position = index.checked_sub(self.first_index()?)? as usize;
        (position < self.slots.len()).then_some(position)
    }

    /// # Errors
    /// `Hole` when the entries do not continue the log or each other. A log that never had
    /// an entry takes any first index: Raft begins at 0 or after a snapshot.
    pub(super) fn check_append(&self, entries: &[LogEntry]) -> Result<(), WalError> {
        let next = match (self.last(), entries.first()) {
            (Some(last), _) => last.index + 1,
            (None, Some(first)) => first.id.index,
            (None, None) => return Ok(()),
        };
        for (expected, entry) in (next..).zip(entries) {
            if entry.id.index != expected {
                return Err(WalError::Hole { expected, got: entry.id.index });
            }
        }
        Ok(())
    }

    /// Adds an entry that was checked to continue the log.
    pub(super) fn push(&mut self, entry: &LogEntry, location: Option<Location>) {
        self.ring_bytes += entry.payload.len() + SLOT_BYTES;
        self.slots.push_back(Slot { id: entry.id, location, payload: Some(entry.payload.clone()) });
    }

    pub(super) fn truncate_after(&mut self, last: Option<EntryId>) {
        let keep = match (last, self.first_index()) {
            (Some(last), Some(first)) => (last.index + 1).saturating_sub(first) as usize,
            _ => 0,
        };
        while self.slots.len() > keep {
            let slot = self.slots.pop_back();
            self.forget(slot);
        }
        self.evicted = self.evicted.min(self.slots.len());
    }

    pub(super) fn purge(&mut self, upto: EntryId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        while self.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            let slot = self.slots.pop_front();
            self.forget(slot);
            self.evicted = self.evicted.saturating_sub(1);
        }
        self.purged = Some(upto);
    }

    fn forget(&mut self, slot: Option<Slot>) {
        if let Some(payload) = slot.and_then(|slot| slot.payload) {
            self.ring_bytes -= payload.len() + SLOT_BYTES;
        }
    }

    /// Notes that `id` is durable at `location`, unless it was removed meanwhile.
    pub(super) fn locate(&mut self, id: EntryId, location: Location) {
        if let Some(position) = self.position(id.index)
            && self.slots[position].id == id
        {
            self.slots[position].location = Some(location);
        }
    }

    /// Lets the oldest durable payloads go until the ring fits its size.
    pub(super) fn evict(&mut self) {
        while self.ring_bytes > self.ring_size_bytes {
            let Some(slot) = self.slots.get_mut(self.evicted) else { break };
            if slot.location.is_none() {
                break;
            }
            if let Some(payload) = slot.payload.take() {
                self.ring_bytes -= payload.len() + SLOT_BYTES;
            }
            self.evicted += 1;
        }
    }

    /// The slots from `start` up to `end`, which may be beyond the log.
    ///
    /// # Errors
    /// `Purged` when `start` is before the first entry.
    pub(super) fn slots(&self, start: u64, end: u64) -> Result<impl Iterator<Item = &Slot>, WalError> {
        if let Some(purged) = self.purged.filter(|purged| start <= purged.index && start < end) {
            return Err(WalError::Purged { wanted: start, last: purged.index });
        }
        let first = self.first_index().unwrap_or(start);
        let skip = start.saturating_sub(first) as usize;
        let count = end.saturating_sub(start.max(first)) as usize;
        Ok(self.slots.iter().skip(skip).take(count))
    }

    /// Replays an operation read from disk.
    ///
    /// While the log is empty entries may begin anywhere: the segments before the first
    /// that is left held entries which a later purge covers; [`Log::check_replayed`] sees
    /// to it that one did.
    ///
    /// # Errors
    /// What is wrong, when it cannot follow what came before.
    pub(super) fn replay(&mut self, operation: Operation, location: Location) -> Result<(), String> {
        match operation {
            Operation::Entries(entries) => {
                let begins = entries.first().map_or(0, |entry| entry.id.index);
                let last = self.slots.back().map_or(begins.wrapping_sub(1), |slot| slot.id.index);
                if begins != last.wrapping_add(1) {
                    return Err(format!("entry {begins} follows entry {last}"));
                }
                let purged = self.purged.map(|purged| purged.index);
                for entry in entries.iter().filter(|entry| Some(entry.id.index) > purged) {
                    self.push(entry, Some(location));
                    self.evict();
                }
            }
            Operation::Vote(vote) => self.vote = Some(vote),
            Operation::Committed(id) => self.committed = id,
            Operation::TruncateAfter(last) => self.truncate_after(last),
            Operation::Purge(upto) => self.purge(upto),
            Operation::State { purged, vote, committed } => {
                if let Some(purged) = purged {
                    self.purge(purged);
                }
                self.vote = vote;
                self.committed = committed;
            }
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong, when entries are missing between the purge mark and the first entry.
    pub(super) fn check_replayed(&self) -> Result<(), String> {
        match (self.purged, self.first_index()) {
            (Some(purged), Some(first)) if first != purged.index + 1 => {
                Err(format!("entries are missing between {} and {first}", purged.index))
            }
            _ => Ok(()),
        }
    }
}
