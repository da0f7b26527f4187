//! How many keys a range has, without walking over all of them each time.
//!
//! A count is kept with the revision that it was made at, and the keys that came to life or
//! died at the last revisions are kept in order: from both follows the count at any revision
//! in between. Pages of a long list are counted once: what is left after a page is known.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_proto::etcd::RangeRequest;

use super::pending::Change;
use super::range;

/// Lives and deaths that are kept, and their bytes: what is walked over to bring a count up
/// to date.
const MAX_TURNS: usize = 8 * 1024;
const MAX_TURN_BYTES: usize = 1 << 20;

/// Ranges of one generation. When the young one is full it becomes the old one, whose ranges
/// go unless they are asked for before the next turn.
const MAX_RANGES: usize = 512;

/// Longer ranges are counted each time.
const MAX_RANGE_BYTES: usize = 4 << 10;

/// First key and end of a range.
type Span = (Bytes, Bytes);

/// A key came to life, or died.
struct Turn {
    revision: i64,
    key: Bytes,
    alive: bool,
}

/// So many keys were alive at that revision.
#[derive(Clone, Copy)]
struct Count {
    at: i64,
    keys: i64,
}

/// The counts of one database.
#[derive(Default)]
pub(super) struct Counts(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    turns: VecDeque<Turn>,
    bytes: usize,
    /// Every turn after this revision is in `turns`, and counts before it do not count.
    after: i64,
    young: HashMap<Span, Count>,
    old: HashMap<Span, Count>,
}

impl Counts {
    /// Of a database that is at `revision`.
    pub(super) fn new(revision: i64) -> Counts {
        Counts(Mutex::new(Inner { after: revision, ..Inner::default() }))
    }

    /// Notes changes that nobody can read yet, and what is compacted: below, versions may be
    /// gone that a count under way has missed.
    pub(super) fn note(&self, changes: &[Change], compact_revision: i64) {
        let turning = changes.iter().filter(|change| change.row.tombstone || change.previous.is_none());
        let mut inner = self.lock();
        inner.after = inner.after.max(compact_revision);
        for Change { key, row, .. } in turning {
            inner.bytes += key.len();
            inner.turns.push_back(Turn { revision: row.revision.main, key: key.clone(), alive: !row.tombstone });
        }
        while inner.turns.len() > MAX_TURNS || inner.bytes > MAX_TURN_BYTES {
            let Some(oldest) = inner.turns.pop_front() else { break };
            inner.bytes -= oldest.key.len();
            inner.after = inner.after.max(oldest.revision);
        }
    }

    /// How many keys of a request are alive at revision `at`, which readers see, if that
    /// follows from what is known.
    pub(super) fn get(&self, request: &RangeRequest, at: i64) -> Option<i64> {
        let span = (request.key.clone(), request.range_end.clone());
        let mut inner = self.lock();
        let known = inner.young.get(&span).or_else(|| inner.old.get(&span)).copied()?;
        let (from, to) = (known.at.min(at), known.at.max(at));
        if from < inner.after {
            return None;
        }
        let range = range::key_range(request);
        let first = inner.turns.partition_point(|turn| turn.revision <= from);
        let turns = inner.turns.range(first..).take_while(|turn| turn.revision <= to);
        let turns = turns.filter(|turn| range.contains(&turn.key));
        let gained: i64 = turns.map(|turn| if turn.alive { 1 } else { -1 }).sum();
        if at < known.at {
            return Some(known.keys - gained);
        }
        let keys = known.keys + gained;
        inner.keep(span, Count { at, keys });
        Some(keys)
    }

    /// Keeps a count for later.
    pub(super) fn put(&self, key: &Bytes, range_end: &Bytes, at: i64, keys: i64) {
        if key.len() + range_end.len() <= MAX_RANGE_BYTES {
            // Copied: these are parts of a request.
            let span = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end));
            self.lock().keep(span, Count { at, keys });
        }
    }

    /// Keeps the count of a request, if it `is_new`, and that of what its next page will ask
    /// for: what is left after a page of so many keys, the last of which is `last`.
    pub(super) fn put_page(&self, request: &RangeRequest, at: i64, count: i64, is_new: bool, page: usize, last: &[u8]) {
        if is_new {
            self.put(&request.key, &request.range_end, at, count);
        }
        let left = count - i64::try_from(page).unwrap_or(count);
        self.put(&range::successor(last), &request.range_end, at, left);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, span: Span, count: Count) {
        if let Some(known) = self.young.get_mut(&span) {
            *known = count;
            return;
        }
        // Not the request's own bytes: `put` has copied them.
        let span = self.old.remove_entry(&span).map_or(span, |(span, _)| span);
        self.young.insert(span, count);
        if self.young.len() >= MAX_RANGES {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::rows::{Revision, Row};

    fn change(revision: i64, key: &'static str, alive: bool, before: bool) -> Change {
        let row = |tombstone| Row {
            revision: Revision { main: revision, sub: 0 },
            tombstone,
            create: 1,
            version: 1,
            lease: 0,
            value: Bytes::new(),
        };
        Change { key: Bytes::from_static(key.as_bytes()), row: row(!alive), previous: before.then(|| row(false)) }
    }

    fn span(key: &'static str, range_end: &'static str) -> RangeRequest {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        RangeRequest { key: bytes(key), range_end: bytes(range_end), ..RangeRequest::default() }
    }

    #[test]
    fn a_count_follows_lives_and_deaths() {
        let counts = Counts::new(10);
        let all = span("a", "z");
        assert_eq!(counts.get(&all, 10), None);
        counts.put(&all.key, &all.range_end, 10, 3);
        assert_eq!(counts.get(&all, 10), Some(3));
        counts.note(&[change(11, "b", true, false), change(11, "c", true, true), change(11, "zz", true, false)], -1);
        counts.note(&[change(12, "b", false, true)], -1);
        assert_eq!(counts.get(&all, 11), Some(4));
        assert_eq!(counts.get(&all, 12), Some(3));
        assert_eq!(counts.get(&all, 11), Some(4), "an older revision is asked for");
        assert_eq!(counts.get(&all, 10), Some(3));
        assert_eq!(counts.get(&all, 9), None, "before everything that is known");
        assert_eq!(counts.get(&span("a", "y"), 12), None);
        counts.put(&all.key, &all.range_end, 10, 2);
        counts.note(&[], 11);
        assert_eq!(counts.get(&all, 12), None, "it was counted while versions were removed");
    }

    #[test]
    fn what_is_left_after_a_page_is_known() {
        let counts = Counts::new(0);
        let all = span("a", "z");
        counts.put_page(&all, 5, 10, true, 3, b"c");
        assert_eq!((counts.get(&all, 5), counts.get(&span("c\0", "z"), 5)), (Some(10), Some(7)));
        counts.put_page(&span("c\0", "z"), 5, 7, false, 4, b"g");
        assert_eq!(counts.get(&span("g\0", "z"), 5), Some(3));
    }

    #[test]
    fn what_is_forgotten_is_counted_again() {
        let counts = Counts::new(0);
        let all = span("a", "\0");
        counts.put(&all.key, &all.range_end, 0, 5);
        let changes: Vec<Change> = (1..=MAX_TURNS as i64 + 1).map(|turn| change(turn, "k", true, false)).collect();
        counts.note(&changes, -1);
        assert_eq!(counts.get(&all, 7), None);
        counts.put(&all.key, &all.range_end, 7, 12);
        assert_eq!(counts.get(&all, 9), Some(14));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let counts = Counts::new(0);
        for number in 0..10 * MAX_RANGES {
            counts.put(&Bytes::from(number.to_string()), &Bytes::new(), 0, 0);
        }
        counts.put(&vec![0; MAX_RANGE_BYTES + 1].into(), &Bytes::new(), 0, 0);
        let inner = counts.lock();
        assert!(inner.young.len() + inner.old.len() <= 2 * MAX_RANGES);
    }
}
