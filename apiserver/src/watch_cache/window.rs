//! The recent past of one resource: a bounded run of events, read by cursors.
//!
//! Always: events are in the order of revisions, and the window holds every event whose
//! revision is greater than `floor`. A watcher is a sequence number; nothing is queued
//! for it, so that a slow one costs nothing and is told when it fell out.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use quorate_proto::object::Object;

/// How many events are kept. Upstream's largest cache is of this order; at 1,000 changes
/// a second of one resource it lets a watcher pause for 16 s.
const MAX_EVENTS: usize = 16_384;

/// How many bytes of objects the events may hold, so that a few large objects which
/// change often do not fill the memory.
const MAX_BYTES: usize = 64 << 20;

/// One change of one object.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    /// `None`: deleted.
    pub(super) object: Option<Arc<Object>>,
    /// `None`: created, or no longer known.
    pub(super) previous: Option<Arc<Object>>,
    /// The previous state at the revision of this change, made when first asked for.
    last_state: OnceLock<Option<Arc<Object>>>,
}

impl Change {
    pub(super) fn new(revision: u64, object: Option<Arc<Object>>, previous: Option<Arc<Object>>) -> Self {
        Self { revision, object, previous, last_state: OnceLock::new() }
    }

    /// What a watcher is shown when the object leaves its sight: the last state it could
    /// see, carrying the revision of the change.
    pub(super) fn last_state(&self) -> Option<&Arc<Object>> {
        self.last_state
            .get_or_init(|| {
                let previous = self.previous.as_ref()?;
                Object::from_value(previous.value(), self.revision).ok().map(Arc::new)
            })
            .as_ref()
    }

    fn size(&self) -> usize {
        self.object.as_ref().map_or(0, |object| object.json().len())
            + self.previous.as_ref().map_or(0, |object| object.json().len())
    }
}

/// The events themselves.
#[derive(Debug, Default)]
pub(super) struct Window {
    changes: VecDeque<Arc<Change>>,
    /// The sequence number of the first change that is kept.
    first: u64,
    /// Changes at or below this revision are not all here.
    floor: u64,
    bytes: usize,
}

/// The watcher's place is no longer in the window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FellOut {
    pub(super) floor: u64,
}

impl Window {
    /// An empty window that knows everything after `floor`. Cursors of older windows fall out.
    pub(super) fn restart(&mut self, floor: u64) {
        self.first = self.next() + 1;
        self.changes.clear();
        self.bytes = 0;
        self.floor = floor;
    }

    pub(super) fn push(&mut self, change: Arc<Change>) {
        self.bytes += change.size();
        self.changes.push_back(change);
        while self.changes.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.changes.len() > 1) {
            let Some(dropped) = self.changes.pop_front() else { break };
            self.first += 1;
            self.bytes -= dropped.size();
            self.floor = dropped.revision;
        }
    }

    /// The sequence number of the next change to come.
    pub(super) fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// The sequence number of the first change after `revision`.
    ///
    /// # Errors
    /// When changes after `revision` have left the window.
    pub(super) fn seek(&self, revision: u64) -> Result<u64, FellOut> {
        if revision < self.floor {
            return Err(FellOut { floor: self.floor });
        }
        let offset = self.changes.partition_point(|change| change.revision <= revision);
        Ok(self.first + offset as u64)
    }

    /// Up to `limit` changes from sequence number `cursor` on.
    ///
    /// # Errors
    /// When the change at `cursor` has left the window.
    pub(super) fn read(&self, cursor: u64, limit: usize) -> Result<Vec<Arc<Change>>, FellOut> {
        let Some(offset) = cursor.checked_sub(self.first) else {
            return Err(FellOut { floor: self.floor });
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.changes.len());
        Ok(self.changes.range(offset..).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64) -> Arc<Change> {
        Arc::new(Change::new(revision, None, None))
    }

    fn revisions(changes: &[Arc<Change>]) -> Vec<u64> {
        changes.iter().map(|change| change.revision).collect()
    }

    #[test]
    fn a_cursor_reads_what_came_after_its_revision() {
        let mut window = Window::default();
        window.restart(10);
        for revision in [11, 13, 13, 20] {
            window.push(change(revision));
        }
        let from = |revision| window.read(window.seek(revision).unwrap(), 100).unwrap();
        assert_eq!(revisions(&from(10)), [11, 13, 13, 20]);
        assert_eq!(revisions(&from(12)), [13, 13, 20]);
        assert_eq!(revisions(&from(13)), [20]);
        assert_eq!(revisions(&from(99)), Vec::<u64>::new());
        assert_eq!(window.seek(9), Err(FellOut { floor: 10 }));
    }

    #[test]
    fn who_is_too_slow_falls_out() {
        let mut window = Window::default();
        window.restart(0);
        window.push(change(1));
        let cursor = window.seek(0).unwrap();
        for revision in 2..=(MAX_EVENTS as u64 + 1) {
            window.push(change(revision));
        }
        assert_eq!(window.read(cursor, 1).unwrap_err(), FellOut { floor: 1 });
        assert_eq!(revisions(&window.read(window.seek(1).unwrap(), 2).unwrap()), [2, 3]);
    }

    #[test]
    fn a_restart_leaves_old_cursors_behind() {
        let mut window = Window::default();
        window.restart(5);
        let cursor = window.next();
        window.restart(8);
        assert_eq!(window.read(cursor, 1).unwrap_err(), FellOut { floor: 8 });
    }
}
