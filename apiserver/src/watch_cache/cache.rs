//! The objects of one resource, and their recent past.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use quorate_proto::object::Object;
use tokio::sync::watch;

use super::selection::Selection;
use super::window::{Change, FellOut, Window};

/// One resource's cache.
///
/// Always: `objects` is the state after every change in `window`.
#[derive(Debug)]
pub struct Cache {
    state: RwLock<State>,
    /// The window's next sequence number: says "look again".
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// By key below the resource's prefix: `namespace/name`, or `name`.
    objects: BTreeMap<String, Arc<Object>>,
    window: Window,
    /// The newest revision at which an object of this resource changed.
    last_change: u64,
}

/// A change as the feed delivers it: the object's new state, or `None` for a deletion.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) key: String,
    pub(super) revision: u64,
    pub(super) object: Option<Arc<Object>>,
}

/// A part of the objects, all true at one revision.
#[derive(Debug)]
pub struct Part {
    pub items: Vec<Arc<Object>>,
    /// The newest change that the items include.
    pub last_change: u64,
    /// How many objects are left behind the last item; counted when nothing is selected by.
    pub remaining: Option<u64>,
    /// The key of the last item, when objects are left behind it.
    pub stopped_at: Option<String>,
    /// The sequence number of the first change that the items do not include.
    pub cursor: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { state: RwLock::default(), changed: watch::Sender::new(0) }
    }
}

impl Cache {
    /// Starts over with `objects` as they are at `revision` and `past`, all changes from
    /// after `floor` up to there; watchers of before fall out.
    pub(super) fn reset(&self, objects: BTreeMap<String, Arc<Object>>, revision: u64, floor: u64, past: Vec<Change>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.objects = objects;
        state.window.restart(floor);
        past.into_iter().for_each(|change| state.window.push(Arc::new(change)));
        state.last_change = revision;
        self.changed.send_replace(state.window.next());
    }

    /// Applies changes in order; readers see all of them or none.
    pub(super) fn apply(&self, changes: Vec<Incoming>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for Incoming { key, revision, object } in changes {
            let previous = match &object {
                Some(object) => state.objects.insert(key, Arc::clone(object)),
                None => state.objects.remove(&key),
            };
            state.last_change = revision;
            // A deletion of what was never readable is nobody's news.
            if object.is_some() || previous.is_some() {
                state.window.push(Arc::new(Change::new(revision, object, previous)));
            }
        }
        self.changed.send_replace(state.window.next());
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object at `key`, as new as the cache is.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state().objects.get(key).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest revision at which an object of this resource changed, as far as is known.
    pub fn last_change(&self) -> u64 {
        self.state().last_change
    }

    /// Lists what `selection` selects, from key `start` on; `limit` 0 is no limit.
    pub fn list(&self, selection: &Selection, start: &str, limit: usize) -> Part {
        let state = self.state();
        let below = if selection.namespace.is_empty() { String::new() } else { format!("{}/", selection.namespace) };
        let first = if start > below.as_str() { start } else { below.as_str() };
        let mut candidates = state
            .objects
            .range::<str, _>((Bound::Included(first), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&below))
            .peekable();
        let mut items = Vec::new();
        let mut stopped_at = None;
        let mut last_key: Option<&String> = None;
        while let Some((_, object)) = candidates.peek() {
            if selection.matches(object) {
                if limit > 0 && items.len() == limit {
                    stopped_at = last_key.cloned();
                    break;
                }
                items.push(Arc::clone(object));
            }
            last_key = candidates.next().map(|(key, _)| key);
        }
        let remaining = (stopped_at.is_some() && selection.is_unselective()).then(|| candidates.count() as u64);
        Part { items, last_change: state.last_change, remaining, stopped_at, cursor: state.window.next() }
    }

    /// The sequence number of the first change after `revision`.
    pub(super) fn seek(&self, revision: u64) -> Result<u64, FellOut> {
        self.state().window.seek(revision)
    }

    pub(super) fn read(&self, cursor: u64, limit: usize) -> Result<Vec<Arc<Change>>, FellOut> {
        self.state().window.read(cursor, limit)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
