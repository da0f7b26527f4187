//! The ring of recent events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_proto::etcd::WatchCreateRequest;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use tokio::sync::watch;

use super::Watcher;
use crate::mvcc::{Change, Engine};

/// The events of one applied batch, shared by all watchers.
pub(super) struct Batch {
    pub(super) last_revision: i64,
    /// In order; with the version before, which watchers that did not ask leave out.
    pub(super) events: Vec<Event>,
    bytes: usize,
}

struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    size_bytes: usize,
    /// The ring has every event from this revision on.
    from: i64,
    /// Every event up to here was published.
    published: i64,
}

/// Fans events out.
pub struct Hub {
    engine: Arc<Engine>,
    ring: Mutex<Ring>,
    /// The revision published last: "look again".
    published: watch::Sender<i64>,
}

/// What an event costs beside its keys and values.
const EVENT_BYTES: usize = size_of::<Event>();

pub(super) fn event(change: Change) -> Event {
    let Change { key, row, previous } = change;
    let prev_kv = previous.map(|row| row.to_key_value(key.clone()));
    if row.tombstone {
        let kv = KeyValue { key, mod_revision: row.revision.main, ..Default::default() };
        return Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv };
    }
    Event { r#type: EventType::Put.into(), kv: Some(row.to_key_value(key)), prev_kv }
}

/// What an event adds to a response.
pub(super) fn size_of_event(event: &Event) -> usize {
    let payload = |kv: Option<&KeyValue>| kv.map_or(0, |kv| kv.key.len() + kv.value.len());
    EVENT_BYTES + payload(event.kv.as_ref()) + payload(event.prev_kv.as_ref())
}

pub(super) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// What the ring has for a cursor.
pub(super) enum Recent {
    /// These batches hold everything from the cursor up to the revision.
    Batches(Vec<Arc<Batch>>, i64),
    /// Nothing is newer than the cursor.
    Synced,
    /// The cursor is older than the ring.
    Missed,
}

/// So many batches are handed to a watcher at once.
const MAX_BATCHES: usize = 64;

impl Hub {
    pub(crate) fn new(engine: Arc<Engine>, size_bytes: usize) -> Hub {
        let revision = engine.revision();
        let ring = Ring { batches: VecDeque::new(), bytes: 0, size_bytes, from: revision + 1, published: revision };
        Hub { engine, ring: Mutex::new(ring), published: watch::Sender::new(revision) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a watch. A start revision that is compacted shows in the first response.
    pub fn watch(self: &Arc<Self>, request: WatchCreateRequest) -> Watcher {
        let receiver = self.published.subscribe();
        let start = match request.start_revision {
            start if start > 0 => start,
            // What a read may have shown already, published or not.
            _ => self.engine.revision().max(*receiver.borrow()) + 1,
        };
        Watcher::new(self.clone(), receiver, request, start)
    }

    /// Publishes the changes of an applied batch; `revision` is the one that readers see now.
    pub(crate) fn publish(&self, changes: Vec<Change>, revision: i64) {
        let mut ring = self.ring();
        if revision == ring.published {
            return;
        }
        let events: Vec<Event> = changes.into_iter().map(event).collect();
        let bytes = events.iter().map(size_of_event).sum();
        ring.published = revision;
        ring.bytes += bytes;
        ring.batches.push_back(Arc::new(Batch { last_revision: revision, events, bytes }));
        while ring.bytes > ring.size_bytes {
            let Some(oldest) = ring.batches.pop_front() else { break };
            ring.bytes -= oldest.bytes;
            ring.from = oldest.last_revision + 1;
        }
        drop(ring);
        self.published.send_replace(revision);
    }

    /// Forgets everything: the state machine was replaced and is at `revision`.
    pub(crate) fn restart(&self, revision: i64) {
        let mut ring = self.ring();
        ring.batches.clear();
        ring.bytes = 0;
        ring.from = revision + 1;
        ring.published = revision;
        drop(ring);
        self.published.send_replace(revision);
    }

    pub(super) fn recent(&self, cursor: i64) -> Recent {
        let ring = self.ring();
        if cursor > ring.published {
            return Recent::Synced;
        }
        if cursor < ring.from {
            return Recent::Missed;
        }
        let first = ring.batches.partition_point(|batch| batch.last_revision < cursor);
        let batches: Vec<_> = ring.batches.iter().skip(first).take(MAX_BATCHES).cloned().collect();
        let upto = batches.last().map_or(ring.published, |batch| batch.last_revision);
        Recent::Batches(batches, upto)
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}
