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
use super::{Mailbox, Watcher};
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
    next_member: u64,
}

/// Watchers of the same keys.
#[derive(Default)]
struct Group {
    members: FxHashMap<u64, Member>,
    /// While a batch is published: what it has for them.
    news: Option<News>,
}

struct Member {
    mailbox: Arc<Mailbox>,
    token: u64,
    /// What was published for it since it looked last.
    news: Option<News>,
}

/// The first and the last revision of events that match.
#[derive(Clone, Copy)]
struct News {
    first: i64,
    last: i64,
}

impl News {
    fn add(news: &mut Option<News>, first: i64, last: i64) {
        let first = news.map_or(first, |news| news.first);
        *news = Some(News { first, last });
    }
}

/// A watcher's place among those that are woken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    group: usize,
    member: u64,
}

/// What there is for a watcher.
pub(super) enum Look {
    /// Nothing up to this revision.
    Synced(i64),
    /// Everything from `from` up to `upto` is in the batches. If `complete`, nothing else
    /// was for it up to `published`.
    Batches { batches: Vec<Arc<Batch>>, from: i64, upto: i64, complete: bool, published: i64 },
    /// From this revision on it has to be read from the change log.
    Missed(i64),
}

impl State {
    fn trim(&mut self) {
        while self.bytes > self.size_bytes {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= oldest.bytes;
            self.from = oldest.last_revision + 1;
        }
    }

    /// Hands the news of a group on; returns whom to wake.
    fn announce(&mut self, touched: Vec<usize>) -> Vec<(Arc<Mailbox>, u64)> {
        let mut woken = Vec::new();
        for group in touched {
            let Some(group) = self.groups.get_mut(group) else { continue };
            let Some(News { first, last }) = group.news.take() else { continue };
            for member in group.members.values_mut() {
                if member.news.is_none() {
                    woken.push((Arc::clone(&member.mailbox), member.token));
                }
                News::add(&mut member.news, first, last);
            }
        }
        woken
    }
}

fn wake(woken: Vec<(Arc<Mailbox>, u64)>) {
    for (mailbox, token) in woken {
        mailbox.put(token);
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
            next_member: 0,
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
        self.watch_for(request, Arc::default(), 0)
    }

    /// Begins a watch that is announced in its owner's mailbox.
    pub(crate) fn watch_for(
        self: &Arc<Self>,
        mut request: WatchCreateRequest,
        mailbox: Arc<Mailbox>,
        token: u64,
    ) -> Watcher {
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
        let member = state.next_member;
        state.next_member += 1;
        state.groups[group].members.insert(member, Member { mailbox: Arc::clone(&mailbox), token, news: None });
        let published = state.published;
        drop(state);
        gauge!("etcd_debugging_mvcc_watcher_total").increment(1.0);
        Watcher::new(Arc::clone(self), Place { group, member }, mailbox, request, next, published)
    }

    /// Ends a watch.
    pub(super) fn leave(&self, place: Place, key: &Bytes, range_end: &Bytes) {
        let mut state = self.lock();
        let Some(group) = state.groups.get_mut(place.group) else { return };
        group.members.remove(&place.member);
        if group.members.is_empty() {
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
                    News::add(&mut found.news, row.revision.main, row.revision.main);
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
        let members = state.groups.iter().flat_map(|group| group.members.values());
        let everybody = members.map(|member| (Arc::clone(&member.mailbox), member.token)).collect();
        drop(state);
        wake(everybody);
    }

    pub(super) fn is_aside(&self) -> bool {
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

    /// What there is for a watcher that has seen everything before `cursor`; if it was
    /// `synced`, also everything published before it was woken.
    pub(super) fn look(&self, place: Place, cursor: i64, synced: bool) -> Look {
        let mut state = self.lock();
        let member = state.groups.get_mut(place.group).and_then(|group| group.members.get_mut(&place.member));
        let news = member.and_then(|member| member.news.take());
        let published = state.published;
        let (from, upto) = match (synced, news) {
            (true, None) => return Look::Synced(published),
            (true, Some(News { first, last })) => (cursor.max(first), last),
            (false, _) => (cursor, published),
        };
        if from > published {
            return Look::Synced(published);
        }
        if from < state.from {
            return Look::Missed(from);
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
        Look::Batches { batches, from, upto, complete, published }
    }

    /// The revision up to which every event was handed out, if all the watchers have
    /// nothing to look at and none of them begins later.
    pub(crate) fn progress<'a>(&self, watchers: impl Iterator<Item = &'a Watcher>) -> Option<i64> {
        let state = self.lock();
        for watcher in watchers {
            let place = watcher.place();
            let member = state.groups.get(place.group).and_then(|group| group.members.get(&place.member));
            let quiet = member.is_some_and(|member| member.news.is_none());
            if !quiet || !watcher.is_synced(state.published) {
                return None;
            }
        }
        Some(state.published)
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
