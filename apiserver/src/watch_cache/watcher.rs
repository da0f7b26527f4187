//! One watch: a cursor in a cache's window and a selection to see it through.

use std::sync::Arc;

use quorate_proto::object::Object;
use quorate_proto::status::Status;
use tokio::sync::watch;

use super::cache::Cache;
use super::selection::Selection;
use super::window::{Change, FellOut};

/// Changes looked at in one go: bounds how long the cache's lock is held.
const BATCH: usize = 256;

/// What a watcher sees of a change.
#[derive(Clone, Debug)]
pub enum Seen {
    Added(Arc<Object>),
    Modified(Arc<Object>),
    /// The last state that was visible, at the revision of the change.
    Deleted(Arc<Object>),
}

/// A running watch.
#[derive(Debug)]
pub struct Watcher {
    cache: Arc<Cache>,
    selection: Selection,
    cursor: u64,
    /// What the client has seen before: with another server it may be ahead of this one.
    after: u64,
    changed: watch::Receiver<u64>,
    /// Up to where the feed has filled all caches.
    position: watch::Receiver<u64>,
    delivered: u64,
}

impl Watcher {
    pub(super) fn new(
        cache: Arc<Cache>,
        selection: Selection,
        cursor: u64,
        position: watch::Receiver<u64>,
        from: u64,
    ) -> Self {
        let changed = cache.changes();
        Self { cache, selection, cursor, after: from, changed, position, delivered: from }
    }

    /// Waits until there is something to see.
    ///
    /// Cancel-safe: what is not returned comes with the next call.
    ///
    /// # Errors
    /// `Expired` when this watcher was too slow, or the cache had to start over.
    pub async fn next(&mut self) -> Result<Vec<Seen>, Status> {
        loop {
            self.changed.borrow_and_update();
            let seen = self.try_next()?;
            if !seen.is_empty() {
                return Ok(seen);
            }
            if self.changed.changed().await.is_err() {
                return Err(Status::service_unavailable("the watch cache has ended", 1));
            }
        }
    }

    /// Everything that can be seen now; empty when that is nothing.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn try_next(&mut self) -> Result<Vec<Seen>, Status> {
        let position = *self.position.borrow();
        let from = self.delivered;
        let mut seen = Vec::new();
        loop {
            let changes = self.cache.read(self.cursor, BATCH).map_err(|out| too_old(from, out))?;
            let Some(last) = changes.last() else {
                // Read before the window was: everything up to there has been looked at.
                self.delivered = self.delivered.max(position);
                return Ok(seen);
            };
            self.cursor += changes.len() as u64;
            self.delivered = self.delivered.max(last.revision);
            let unseen = changes.iter().filter(|change| change.revision > self.after);
            seen.extend(unseen.filter_map(|change| see(&self.selection, change)));
            if seen.len() >= BATCH {
                return Ok(seen);
            }
        }
    }

    /// Everything up to this revision was returned by earlier calls.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }
}

/// The 410 of a watch that cannot go on from `revision`.
pub(super) fn too_old(revision: u64, out: FellOut) -> Status {
    Status::expired(format!("too old resource version: {revision} ({})", out.floor))
}

fn see(selection: &Selection, change: &Change) -> Option<Seen> {
    let is_visible = |object: &Option<Arc<Object>>| object.as_ref().is_some_and(|object| selection.matches(object));
    match (is_visible(&change.previous), is_visible(&change.object)) {
        (false, false) => None,
        (false, true) => change.object.clone().map(Seen::Added),
        (true, true) => change.object.clone().map(Seen::Modified),
        (true, false) => change.last_state().cloned().map(Seen::Deleted),
    }
}
