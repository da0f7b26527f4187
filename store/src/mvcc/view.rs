//! Reading keys at a revision: what is in the database, and before it what a batch in
//! progress has changed.

use std::collections::btree_map;
use std::ops::Bound;

use bytes::Bytes;
use rocksdb::DBRawIterator;

use super::EngineError;
use super::db::Instance;
use super::pending::Versions;
use super::rows::{self, BadRow, Revision, Row};

/// The keys of a request, as etcd says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyRange<'a> {
    /// One key.
    One(&'a Bytes),
    /// From a key up to another.
    Span(&'a Bytes, &'a Bytes),
    /// From a key to the end.
    From(&'a Bytes),
}

impl<'a> KeyRange<'a> {
    /// An empty end is one key; an end of a single 0 byte is everything from the key on.
    pub(crate) fn new(key: &'a Bytes, range_end: &'a Bytes) -> KeyRange<'a> {
        match &range_end[..] {
            [] => KeyRange::One(key),
            [0] => KeyRange::From(key),
            _ => KeyRange::Span(key, range_end),
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => key == *one,
            KeyRange::From(from) => key >= &from[..],
            KeyRange::Span(from, to) => key >= &from[..] && key < &to[..],
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Span(from, to) if from >= to)
    }

    fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        match self {
            KeyRange::One(key) => (Bound::Included(key), Bound::Included(key)),
            KeyRange::From(from) => (Bound::Included(from), Bound::Unbounded),
            KeyRange::Span(from, to) => (Bound::Included(from), Bound::Excluded(to)),
        }
    }

    /// Between which rows of the database the versions lie.
    pub(super) fn row_bounds(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        match self {
            KeyRange::One(key) => {
                rows::put_key_prefix(&mut from, key);
                to.clone_from(&from);
                rows::prefix_to_next_key(&mut to);
            }
            KeyRange::From(key) => {
                rows::put_key_prefix(&mut from, key);
                to.push(rows::KEYS + 1);
            }
            KeyRange::Span(key, end) => {
                rows::put_key_prefix(&mut from, key);
                rows::put_key_prefix(&mut to, end);
            }
        }
        (from, to)
    }
}

/// After this many versions that are not wanted, seeking beats stepping.
const STEPS_BEFORE_SEEK: usize = 4;

/// Looks up single keys; keeps its iterator and buffer between them.
pub(crate) struct Lookup<'a> {
    instance: &'a Instance,
    iterator: Option<DBRawIterator<'a>>,
    buffer: Vec<u8>,
}

impl<'a> Lookup<'a> {
    /// Sees the database as it is at the first lookup.
    pub(crate) fn new(instance: &'a Instance) -> Lookup<'a> {
        Lookup { instance, iterator: None, buffer: Vec::new() }
    }

    /// The version of `key` that was current at revision `at`; tombstones too.
    pub(crate) fn get(&mut self, key: &[u8], at: i64, with_value: bool) -> Result<Option<Row>, EngineError> {
        let instance = self.instance;
        let iterator = self.iterator.get_or_insert_with(|| instance.key_iterator());
        rows::put_key_prefix(&mut self.buffer, key);
        let prefix_len = self.buffer.len();
        rows::put_version(&mut self.buffer, Revision { main: at, sub: u32::MAX });
        iterator.seek(&self.buffer);
        let Some((row_key, row)) = iterator.item() else {
            iterator.status().map_err(instance.failed("be read"))?;
            return Ok(None);
        };
        if row_key.get(..prefix_len) != Some(&self.buffer[..prefix_len]) {
            return Ok(None);
        }
        let (_, revision) = rows::split_version(row_key).map_err(|bad| instance.damaged(bad))?;
        rows::parse_row(row, revision, with_value).map(Some).map_err(|bad| instance.damaged(bad))
    }
}

/// A range with more in files than this is read past the cache.
const MOST_CACHED_BYTES: u64 = 16 << 20;

/// Walks the keys of a range in the database, at one revision.
pub(super) struct Stored<'a> {
    instance: &'a Instance,
    iterator: DBRawIterator<'a>,
    at: i64,
    with_values: bool,
    prefix: Vec<u8>,
    /// How many steps to try: few where the key before had many versions.
    steps: usize,
}

impl<'a> Stored<'a> {
    pub(super) fn new(instance: &'a Instance, range: KeyRange<'_>, at: i64, with_values: bool) -> Stored<'a> {
        let (from, to) = range.row_bounds();
        Self::over(instance, instance.range_iterator(&from, &to), &from, at, with_values)
    }

    /// As `new`, for all of a range: a large one is read past the cache, which it would fill.
    pub(super) fn all(instance: &'a Instance, range: KeyRange<'_>, at: i64) -> Stored<'a> {
        let (from, to) = range.row_bounds();
        let iterator = match instance.file_bytes(&from, &to) > MOST_CACHED_BYTES {
            true => instance.bulk_iterator(&from, &to),
            false => instance.range_iterator(&from, &to),
        };
        Self::over(instance, iterator, &from, at, true)
    }

    fn over(
        instance: &'a Instance,
        mut iterator: DBRawIterator<'a>,
        from: &[u8],
        at: i64,
        with_values: bool,
    ) -> Stored<'a> {
        iterator.seek(from);
        Stored { instance, iterator, at, with_values, prefix: Vec::new(), steps: STEPS_BEFORE_SEEK }
    }

    /// Shows the next key that had a version, dead or alive, as `k | escaped key`, with the
    /// version that was current and its row, and moves beyond it; `None` when there is none.
    pub(super) fn visit<T>(
        &mut self,
        look: impl FnOnce(&[u8], Revision, &[u8]) -> Result<T, BadRow>,
    ) -> Result<Option<T>, EngineError> {
        loop {
            let damaged = |bad| self.instance.damaged(bad);
            let Some((row_key, row)) = self.iterator.item() else {
                self.iterator.status().map_err(self.instance.failed("be read"))?;
                return Ok(None);
            };
            let (prefix, revision) = rows::split_version(row_key).map_err(damaged)?;
            self.prefix.clear();
            self.prefix.extend_from_slice(prefix);
            if revision.main <= self.at {
                let seen = look(prefix, revision, row).map_err(damaged)?;
                self.skip_key();
                return Ok(Some(seen));
            }
            self.skip_newer();
        }
    }

    /// Goes to the key of that prefix, as it was when the walk began.
    pub(super) fn go_to(&mut self, prefix: &[u8]) {
        self.iterator.seek(prefix);
    }

    fn next(&mut self) -> Result<Option<(Bytes, Row)>, EngineError> {
        let with_values = self.with_values;
        self.visit(|prefix, revision, row| Ok((rows::unescape(prefix)?, rows::parse_row(row, revision, with_values)?)))
    }

    /// How many keys from here on are alive, without making anything of them.
    pub(super) fn count(&mut self) -> Result<i64, EngineError> {
        let mut count = 0;
        while let Some(tombstone) = self.visit(|_, _, row| Ok(rows::split_row(row)?.0.tombstone))? {
            count += i64::from(!tombstone);
        }
        Ok(count)
    }

    /// Moves to the first version of the present key that is old enough, or beyond.
    fn skip_newer(&mut self) {
        for _ in 0..STEPS_BEFORE_SEEK {
            self.iterator.next();
            let Some(row_key) = self.iterator.key() else { return };
            match rows::split_version(row_key) {
                Ok((prefix, revision)) if prefix == self.prefix && revision.main > self.at => {}
                _ => return,
            }
        }
        rows::put_version(&mut self.prefix, Revision { main: self.at, sub: u32::MAX });
        self.iterator.seek(&self.prefix);
    }

    /// Moves beyond the present key.
    fn skip_key(&mut self) {
        for _ in 0..self.steps {
            self.iterator.next();
            match self.iterator.key() {
                Some(row_key) if row_key.starts_with(&self.prefix) => {}
                _ => {
                    self.steps = STEPS_BEFORE_SEEK;
                    return;
                }
            }
        }
        self.steps = 1;
        rows::prefix_to_next_key(&mut self.prefix);
        self.iterator.seek(&self.prefix);
    }
}

/// Walks the keys of a range that are alive at a revision, in order.
pub(crate) struct Scan<'a> {
    stored: Stored<'a>,
    pending: Option<btree_map::Range<'a, Bytes, Versions>>,
    at: i64,
    next_stored: Option<(Bytes, Row)>,
    next_pending: Option<(&'a Bytes, &'a Row)>,
}

impl<'a> Scan<'a> {
    /// `pending` holds versions that are newer than every one in the database.
    pub(crate) fn new(
        instance: &'a Instance,
        pending: Option<&'a btree_map::BTreeMap<Bytes, Versions>>,
        range: KeyRange<'_>,
        at: i64,
        with_values: bool,
    ) -> Result<Scan<'a>, EngineError> {
        // A span that is the wrong way around has no keys, and would panic below.
        let pending = pending.filter(|_| !range.is_empty());
        let pending = pending.map(|map| map.range::<[u8], _>(range.bounds()));
        let stored = Stored::new(instance, range, at, with_values);
        let mut scan = Scan { stored, pending, at, next_stored: None, next_pending: None };
        scan.next_stored = scan.stored.next()?;
        scan.step_pending();
        Ok(scan)
    }

    fn step_pending(&mut self) {
        let at = self.at;
        self.next_pending =
            self.pending.as_mut().and_then(|range| range.find_map(|(key, versions)| Some((key, versions.at(at)?))));
    }

    /// The next key that is alive.
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Row)>, EngineError> {
        loop {
            let found = match (&self.next_stored, self.next_pending) {
                (None, None) => return Ok(None),
                (Some((stored, _)), Some((pending, row))) if pending <= stored => {
                    let found = (pending.clone(), row.clone());
                    if pending == stored {
                        self.next_stored = self.stored.next()?;
                    }
                    self.step_pending();
                    found
                }
                (None, Some((pending, row))) => {
                    let found = (pending.clone(), row.clone());
                    self.step_pending();
                    found
                }
                (Some(_), _) => {
                    let next = self.stored.next()?;
                    let Some(found) = std::mem::replace(&mut self.next_stored, next) else { continue };
                    found
                }
            };
            if !found.1.tombstone {
                return Ok(Some(found));
            }
        }
    }
}

/// The keys of a request that are alive at a revision, in order.
pub(crate) enum Keys<'a> {
    /// Of a request for one key: found by its prefix, past the Bloom filters.
    One(Option<(Bytes, Row)>),
    Many(Scan<'a>),
}

impl Keys<'_> {
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Row)>, EngineError> {
        match self {
            Keys::One(found) => Ok(found.take()),
            Keys::Many(scan) => scan.next(),
        }
    }

    /// How many there are from here on; there are none after it.
    pub(crate) fn count(&mut self) -> Result<i64, EngineError> {
        let mut count = 0;
        match self {
            Keys::Many(scan) if scan.pending.is_none() => {
                let read_ahead = scan.next_stored.take().filter(|(_, row)| !row.tombstone);
                count = i64::from(read_ahead.is_some()) + scan.stored.count()?;
            }
            _ => {
                while self.next()?.is_some() {
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}
