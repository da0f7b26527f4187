//! The ring of recent events, and who has to be woken for them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use metrics::gauge;
use quorate_proto::etcd::WatchCreateRequest;
use rustc_hash::FxHashMap;
use tokio::sync::{Semaphore, watch};

use super::event::{EncodedEvent, Recent};
use super::index::Index;
use super::mailbox::Mark;
use super::{Mailbox, News, Watcher};
use crate::mvcc::{Change, Engine};

/// Watchers that read from the change log at the same time; the others wait their turn,
/// so that a thousand of them leave the disk and the threads to everybody else.
const MAX_READERS: usize = 4;

/// So many batches are handed to a watcher at once.
const MAX_BATCHES: usize = 64;

/// The events of one applied batch, shared by all watchers.
pub(super) struct Batch {
    pub(super) last_revision: i64,
    /// In order.
    pub(super) events: Vec<Recent>,
    bytes: usize,
}

/// Fans events out.
pub struct Hub {
    engine: Arc<Engine>,
    state: Mutex<State>,
    /// The revision published last: "look again". For the few who wait for a revision
    /// rather than for an event.
    published: watch::Sender<i64>,
    readers: Arc<Semaphore>,
    /// What is here is not what the majority holds: nobody is told of it.
    aside: AtomicBool,
}

struct State {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    size_bytes: usize,
    /// The ring has every event from this revision on.
    from: i64,
    /// Every event up to here was published.
    published: i64,
    /// Which group wants a key.
    index: Index<usize>,
    groups: Vec<Group>,
    /// Places in `groups` that nobody uses.
    free: Vec<usize>,
}

/// Watchers of the same keys.
#[derive(Default)]
struct Group {
    /// By the address of the mailbox.
    seats: FxHashMap<usize, Seat>,
    /// While a batch is published: what it has for them.
    news: Option<News>,
}

/// The watchers of a group that share a mailbox: they hear of an event together.
struct Seat {
    mailbox: Arc<Mailbox>,
    members: usize,
    mark: Option<Mark>,
}

/// A watcher's place among those that are woken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) group: usize,
    seat: usize,
}

/// What there is for a watcher.
pub(super) enum Look {
    /// Nothing up to this revision.
    Synced(i64),
    /// Everything from `from` up to `upto` is in the batches; `complete` if that is all
    /// that was asked for.
    Batches { batches: Vec<Arc<Batch>>, upto: i64, complete: bool, published: i64 },
    /// It has to be read from the change log.
    Missed,
}

impl State {
    fn trim(&mut self) {
        while self.bytes > self.size_bytes {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= oldest.bytes;
            self.from = oldest.last_revision + 1;
        }
    }

    /// Hands the news of groups on; returns whom to wake. What a watcher learns of the ring
    /// under the same lock is never newer than what lies in its mailbox.
    fn announce(&mut self, touched: Vec<usize>) -> Vec<Arc<Mailbox>> {
        let mut woken = Vec::new();
        for number in touched {
            let Some(group) = self.groups.get_mut(number) else { continue };
            let Some(news) = group.news.take() else { continue };
            for Seat { mailbox, mark, .. } in group.seats.values_mut() {
                if mailbox.put(mark, number, news) {
                    woken.push(Arc::clone(mailbox));
                }
            }
        }
        woken
    }
}

fn wake(woken: Vec<Arc<Mailbox>>) {
    for mailbox in woken {
        mailbox.wake_owner();
    }
}

impl Hub {
    pub(crate) fn new(engine: Arc<Engine>, size_bytes: usize) -> Hub {
        let revision = engine.revision();
        let state = State {
            batches: VecDeque::new(),
            bytes: 0,
            size_bytes,
            from: revision + 1,
            published: revision,
            index: Index::new(),
            groups: Vec::new(),
            free: Vec::new(),
        };
        let readers = Arc::new(Semaphore::new(MAX_READERS));
        Hub {
            engine,
            state: Mutex::new(state),
            published: watch::Sender::new(revision),
            readers,
            aside: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a watch. A start revision that is compacted shows in the first response.
    pub fn watch(self: &Arc<Self>, request: WatchCreateRequest) -> Watcher {
        self.watch_for(request, Arc::default())
    }

    /// Begins a watch that is announced in its owner's mailbox.
    pub(crate) fn watch_for(self: &Arc<Self>, mut request: WatchCreateRequest, mailbox: Arc<Mailbox>) -> Watcher {
        if request.key.is_empty() {
            // As etcd: an empty key is the smallest one.
            request.key = Bytes::from_static(&[0]);
        }
        // What a read may have shown already, published or not.
        let seen = self.engine.revision();
        let mut state = self.lock();
        let next = seen.max(state.published) + 1;
        let group = match state.index.get(&request.key, &request.range_end) {
            Some(group) => *group,
            None => {
                let group = state.free.pop().unwrap_or(state.groups.len());
                if group == state.groups.len() {
                    state.groups.push(Group::default());
                }
                state.index.insert(&request.key, &request.range_end, group);
                group
            }
        };
        let seat = Arc::as_ptr(&mailbox).addr();
        let vacant = || Seat { mailbox: Arc::clone(&mailbox), members: 0, mark: None };
        state.groups[group].seats.entry(seat).or_insert_with(vacant).members += 1;
        let published = state.published;
        drop(state);
        gauge!("etcd_debugging_mvcc_watcher_total").increment(1.0);
        Watcher::new(Arc::clone(self), Place { group, seat }, mailbox, request, next, published)
    }

    /// Ends a watch.
    pub(super) fn leave(&self, place: Place, key: &Bytes, range_end: &Bytes) {
        let mut state = self.lock();
        let Some(group) = state.groups.get_mut(place.group) else { return };
        let Some(seat) = group.seats.get_mut(&place.seat) else { return };
        seat.members -= 1;
        if seat.members == 0 {
            group.seats.remove(&place.seat);
        }
        if group.seats.is_empty() {
            *group = Group::default();
            state.index.remove(key, range_end);
            state.free.push(place.group);
        }
        drop(state);
        gauge!("etcd_debugging_mvcc_watcher_total").decrement(1.0);
    }

    /// Publishes the changes of an applied batch; `revision` is the one that readers see now.
    pub(crate) fn publish(&self, changes: Vec<Change>, revision: i64) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if revision == state.published {
            return;
        }
        let mut touched = Vec::new();
        let mut watched = Vec::with_capacity(changes.len());
        for Change { key, row, .. } in &changes {
            let mut matched = false;
            state.index.matches(key, |group| {
                if let Some(found) = state.groups.get_mut(*group) {
                    matched = true;
                    if found.news.is_none() {
                        touched.push(*group);
                    }
                    let revision = row.revision.main;
                    News::add(&mut found.news, News { first: revision, last: revision });
                }
            });
            watched.push(matched);
        }
        // Encoded while nobody waits. Who comes meanwhile begins after these.
        drop(guard);
        let events = changes.into_iter().zip(watched).map(|(change, watched)| match watched {
            true => Recent::Watched(EncodedEvent::new(change)),
            false => Recent::Unwatched(change),
        });
        let events: Vec<Recent> = events.collect();
        let bytes = events.iter().map(Recent::size).sum();
        let mut guard = self.lock();
        let state = &mut *guard;
        let woken = state.announce(touched);
        state.published = revision;
        state.bytes += bytes;
        state.batches.push_back(Arc::new(Batch { last_revision: revision, events, bytes }));
        state.trim();
        drop(guard);
        wake(woken);
        self.published.send_replace(revision);
    }

    /// Ends every watch, and each that comes, until this is taken back.
    pub(crate) fn set_aside(&self, aside: bool) {
        if self.aside.swap(aside, Ordering::AcqRel) || !aside {
            return;
        }
        let state = self.lock();
        let seats = state.groups.iter().flat_map(|group| group.seats.values());
        let everybody = seats.map(|seat| Arc::clone(&seat.mailbox)).collect::<Vec<_>>();
        drop(state);
        for mailbox in everybody {
            mailbox.call();
        }
    }

    /// Whether every watch is to end.
    pub(crate) fn is_aside(&self) -> bool {
        self.aside.load(Ordering::Acquire)
    }

    /// Forgets everything: the state machine was replaced and is at `revision`.
    pub(crate) fn restart(&self, revision: i64) {
        let mut state = self.lock();
        let unseen = state.published + 1;
        state.batches.clear();
        state.bytes = 0;
        state.from = revision + 1;
        state.published = revision;
        let mut woken = Vec::new();
        if unseen <= revision {
            // What came in between is in the change log, for whoever wants it.
            for group in &mut state.groups {
                group.news = Some(News { first: unseen, last: revision });
            }
            let all = (0..state.groups.len()).collect();
            woken = state.announce(all);
        }
        drop(state);
        wake(woken);
        self.published.send_replace(revision);
    }

    /// Empties a mailbox, and tells up to which revision it has all news.
    pub(crate) fn collect(&self, mailbox: &Mailbox) -> (Vec<(usize, News)>, i64) {
        let state = self.lock();
        (mailbox.take(), state.published)
    }

    /// What there is from a revision on, up to another, or to the last that was published.
    pub(super) fn look(&self, from: i64, upto: Option<i64>) -> Look {
        let state = self.lock();
        let published = state.published;
        let upto = upto.unwrap_or(published);
        if from > published {
            return Look::Synced(published);
        }
        if from < state.from {
            return Look::Missed;
        }
        let first = state.batches.partition_point(|batch| batch.last_revision < from);
        let rest = || state.batches.iter().skip(first);
        let wanted = rest().position(|batch| batch.last_revision >= upto).map_or(usize::MAX, |last| last + 1);
        let batches: Vec<_> = rest().take(wanted.min(MAX_BATCHES)).cloned().collect();
        let complete = wanted <= MAX_BATCHES || batches.len() < MAX_BATCHES;
        let upto = match batches.last() {
            Some(last) if !complete => last.last_revision,
            _ => upto,
        };
        Look::Batches { batches, upto, complete, published }
    }

    /// The revision up to which every event was handed out to a watcher that has a mailbox
    /// for itself, if it has nothing to look at and does not begin later.
    pub(super) fn progress(&self, mailbox: &Mailbox, watcher: &Watcher) -> Option<i64> {
        let state = self.lock();
        if mailbox.is_filled() { None } else { watcher.progress_at(state.published) }
    }

    /// Returns once a revision at or after this one was published.
    pub(super) async fn reached(&self, revision: i64) {
        let mut published = self.published.subscribe();
        // The sender lives as long as this.
        let _ = published.wait_for(|published| *published >= revision).await;
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(super) fn readers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.readers)
    }

    /// Places for groups of watchers, used or free.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.lock().groups.len()
    }
}
