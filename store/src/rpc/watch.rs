//! The service `Watch`: many watches on one stream.
//!
//! A stream is the body of its response: it makes the next piece when its client has read
//! the last, and looks at nothing before. A client that does not read lets its watches
//! stand still, and read on from the store's history later. What a stream holds is bounded,
//! whatever its client does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use metrics::gauge;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::{WatchCreateRequest, WatchRequest, WatchResponse};
use rustc_hash::FxHashMap;
use tokio::task::coop;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::{Status, Streaming};

use super::watch_codec::{Outbox, Reply, Shared};
use super::watch_pieces::Pieces;
use super::{MESSAGE_OVERHEAD_BYTES, leaderless};
use crate::error::StoreError;
use crate::node::Store;
use crate::watch::{Mailbox, ReadResult, Response as Found, Selection, Selections, Step, Watcher};

/// A bundle takes no further response once it has so many bytes.
const BUNDLE_BYTES: usize = 64 << 10;

/// So many watches are looked at before others have their turn.
const MAX_LOOKS: usize = 256;

/// While so many responses wait for the last piece of another, no request is taken and no
/// progress told.
const MAX_WAITING: usize = 1024;

/// Watches of one stream that read the store's history at the same time.
const MAX_READS: usize = 2;

/// Watches of one stream whose responses are held until more of their history was read.
const MAX_HELD: usize = 2;

/// Watches of one stream, with those that ended by themselves; more are refused.
const MAX_WATCHES: usize = 100_000;

/// The id of answers that belong to no watch.
const NO_WATCH: i64 = -1;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const TOO_MANY: &str = "etcdserver: too many requests";

/// One watch of a stream.
struct Entry {
    id: i64,
    watcher: Watcher,
    fragment: bool,
    progress_notify: bool,
    /// Nothing was sent since the last tick.
    quiet: bool,
    /// It is in `Session::ready`, or its history is being read.
    queued: bool,
    /// What was found of a response that is not complete.
    pieces: Option<Pieces>,
    /// Where it is among those of the same keys.
    place: usize,
}

type Reading = Pin<Box<dyn Future<Output = (u64, ReadResult)> + Send>>;

/// One stream.
pub(super) struct Session {
    store: Store,
    requests: Streaming<WatchRequest>,
    /// The client may send more requests. One that does not may still read, and says itself
    /// when it goes away.
    open: bool,
    /// Requests were not asked for although they may be there.
    unasked: bool,
    /// Why the stream ends whatever its client does.
    ending: Pin<Box<dyn Future<Output = StoreError> + Send>>,
    tick: Interval,
    /// By tokens, which do not come again.
    watches: FxHashMap<u64, Entry>,
    /// Ids come again.
    tokens: HashMap<i64, u64>,
    /// Watches of the same keys, by the number of their group.
    groups: FxHashMap<usize, Vec<u64>>,
    /// Ids of watches that ended by themselves: taken until they are cancelled, as in etcd.
    ended: HashSet<i64>,
    next_id: i64,
    next_token: u64,
    mailbox: Arc<Mailbox>,
    /// The mailbox: wakes for everything but news.
    waker: Waker,
    /// Tokens of watches to look at, each once.
    ready: VecDeque<u64>,
    reads: FuturesUnordered<Reading>,
    /// Some of them are new.
    reads_begun: bool,
    /// Tokens of watches that wait for a read to end before their own.
    parked: VecDeque<u64>,
    selections: Selections,
    /// The response sent last that several watches may get.
    shared: Option<Shared>,
    /// What the client gets next.
    outbox: Outbox,
    /// Watches whose responses are not complete.
    held: usize,
    /// The token of the watch of whose response a piece has gone out, and another follows.
    /// Until the last has, nothing else does: etcd's client loses what comes in between.
    unfinished: Option<u64>,
    /// What goes out after that.
    later: Vec<Reply>,
    /// The client wants to know how far the whole stream is.
    progress_wanted: bool,
    end: End,
}

enum End {
    NotYet,
    /// The client is told so.
    Because(Status),
    Told,
}

impl Session {
    pub(super) fn new(store: Store, wants_leader: bool, requests: Streaming<WatchRequest>) -> Session {
        gauge!("etcd_debugging_mvcc_watch_stream_total").increment(1.0);
        let (leaderless, closing) = (leaderless(store.clone(), wants_leader), store.closing());
        let ending = async move {
            tokio::select! {
                () = leaderless => StoreError::NoLeader,
                () = closing.cancelled() => StoreError::Stopped,
            }
        };
        let tick = progress_ticks(store.watch_progress_interval());
        let mailbox = Arc::<Mailbox>::default();
        Session {
            store,
            requests,
            open: true,
            unasked: true,
            ending: Box::pin(ending),
            tick,
            watches: FxHashMap::default(),
            tokens: HashMap::new(),
            groups: FxHashMap::default(),
            ended: HashSet::new(),
            next_id: 0,
            next_token: 0,
            waker: Arc::clone(&mailbox).into(),
            mailbox,
            ready: VecDeque::new(),
            reads: FuturesUnordered::new(),
            reads_begun: false,
            parked: VecDeque::new(),
            selections: Selections::default(),
            shared: None,
            outbox: Outbox::default(),
            held: 0,
            unfinished: None,
            later: Vec::new(),
            progress_wanted: false,
            end: End::NotYet,
        }
    }

    /// Attends to everything but news, if anything calls.
    fn listen(&mut self) {
        let called = self.mailbox.was_called();
        if !called && !self.unasked && !self.reads_begun {
            return;
        }
        self.reads_begun = false;
        let waker = self.waker.clone();
        let mut context = Context::from_waker(&waker);
        if let Poll::Ready(error) = self.ending.as_mut().poll(&mut context) {
            return self.end = End::Because(error.into());
        }
        while let Poll::Ready(Some((token, result))) = self.reads.poll_next_unpin(&mut context) {
            self.read(token, result);
        }
        while self.tick.poll_tick(&mut context).is_ready() {
            self.tick();
        }
        self.unasked = self.open;
        while self.unasked && !self.is_full() {
            match self.requests.poll_next_unpin(&mut context) {
                Poll::Ready(Some(Ok(message))) => self.serve(message),
                Poll::Ready(Some(Err(status))) => return self.end = End::Because(status),
                Poll::Ready(None) => (self.open, self.unasked) = (false, false),
                Poll::Pending => self.unasked = false,
            }
        }
    }

    fn is_full(&self) -> bool {
        self.outbox.bytes() >= BUNDLE_BYTES || self.later.len() >= MAX_WAITING
    }

    fn push(&mut self, reply: Reply) {
        if self.unfinished.is_some() {
            self.later.push(reply);
        } else {
            self.send(&reply);
        }
    }

    fn send(&mut self, reply: &Reply) {
        if let Err(status) = self.outbox.put(reply) {
            self.end = End::Because(status);
        }
    }

    fn head(&self, watch_id: i64, revision: i64) -> WatchResponse {
        WatchResponse { header: Some(self.store.header(revision)), watch_id, ..WatchResponse::default() }
    }

    fn answer(&mut self, head: WatchResponse) {
        self.push(Reply { head, events: Vec::new() });
    }

    fn serve(&mut self, message: WatchRequest) {
        match message.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            // There is no progress of nothing.
            Some(RequestUnion::ProgressRequest(_)) => self.progress_wanted = !self.watches.is_empty(),
            None => {}
        }
    }

    fn refuse(&mut self, reason: &str) {
        let head = self.head(NO_WATCH, self.store.revision());
        self.answer(WatchResponse { created: true, canceled: true, cancel_reason: reason.to_owned(), ..head });
    }

    fn create(&mut self, mut request: WatchCreateRequest) {
        if let Err(reason) = self.check(&request) {
            return self.refuse(reason);
        }
        if request.watch_id == 0 {
            while self.is_taken(self.next_id) {
                self.next_id += 1;
            }
            request.watch_id = self.next_id;
            self.next_id += 1;
        }
        let (id, token) = (request.watch_id, self.next_token);
        self.next_token += 1;
        let (fragment, progress_notify) = (request.fragment, request.progress_notify);
        let watcher = match self.store.watch_for(request, Arc::clone(&self.mailbox)) {
            Ok(watcher) => watcher,
            Err(error) => return self.refuse(&reason(&error.into())),
        };
        let created = self.head(id, watcher.created());
        self.answer(WatchResponse { created: true, ..created });
        let group = self.groups.entry(watcher.group()).or_default();
        let place = group.len();
        group.push(token);
        let entry = Entry { id, watcher, fragment, progress_notify, quiet: true, queued: true, pieces: None, place };
        self.watches.insert(token, entry);
        self.tokens.insert(id, token);
        self.ready.push_back(token);
    }

    fn check(&self, request: &WatchCreateRequest) -> Result<(), &'static str> {
        let WatchCreateRequest { key, range_end, .. } = request;
        let empty = match &range_end[..] {
            [] | [0] => false,
            end => &key[..] >= end,
        };
        if request.start_revision < 0 {
            Err(COMPACTED)
        } else if self.watches.len() + self.ended.len() >= MAX_WATCHES {
            Err(TOO_MANY)
        } else if empty {
            Err(EMPTY_RANGE)
        } else if request.watch_id != 0 && self.is_taken(request.watch_id) {
            Err(DUPLICATE_ID)
        } else {
            Ok(())
        }
    }

    fn is_taken(&self, id: i64) -> bool {
        self.tokens.contains_key(&id) || self.ended.contains(&id)
    }

    /// Ends a watch; returns its id.
    fn remove(&mut self, token: u64) -> Option<i64> {
        let Entry { id, watcher, pieces, place, .. } = self.watches.remove(&token)?;
        self.tokens.remove(&id);
        if let Some(group) = self.groups.get_mut(&watcher.group()) {
            group.swap_remove(place);
            if let Some(moved) = group.get(place).and_then(|moved| self.watches.get_mut(moved)) {
                moved.place = place;
            } else if group.is_empty() {
                self.groups.remove(&watcher.group());
            }
        }
        self.progress_wanted &= !self.watches.is_empty();
        if let Some(pieces) = pieces {
            self.held -= 1;
            self.complete(token, pieces);
        }
        Some(id)
    }

    /// Nothing more belongs to a response.
    fn complete(&mut self, token: u64, pieces: Pieces) {
        if self.unfinished == Some(token) {
            self.send(&pieces.last());
            self.unfinished = None;
            std::mem::take(&mut self.later).iter().for_each(|reply| self.send(reply));
        } else {
            self.push(pieces.last());
        }
    }

    fn cancel(&mut self, id: i64) {
        let removed = self.tokens.get(&id).copied().and_then(|token| self.remove(token));
        if removed.is_some() || self.ended.remove(&id) {
            let head = self.head(id, self.store.revision());
            self.answer(WatchResponse { canceled: true, ..head });
        }
    }

    /// Tells watches what there is news of; returns up to which revision they have heard
    /// everything.
    fn collect(&mut self) -> i64 {
        let (news, published) = self.store.hub().collect(&self.mailbox);
        for (group, news) in news {
            for token in self.groups.get(&group).into_iter().flatten() {
                let Some(entry) = self.watches.get_mut(token) else { continue };
                entry.watcher.tell(news);
                if !entry.queued && !entry.watcher.is_idle() {
                    entry.queued = true;
                    self.ready.push_back(*token);
                }
            }
        }
        published
    }

    fn look_at_all(&mut self) {
        for (token, entry) in &mut self.watches {
            if !std::mem::replace(&mut entry.queued, true) {
                self.ready.push_back(*token);
            }
        }
    }

    /// The watch whose turn it is: while a response is unfinished, its watch alone.
    fn next_to_look_at(&mut self) -> Option<u64> {
        let Some(unfinished) = self.unfinished else {
            // Those that wait for a read to end come first: they have waited longest.
            let parked = if self.reads.len() < MAX_READS { self.parked.pop_front() } else { None };
            return parked.or_else(|| self.ready.pop_front());
        };
        let place = self.ready.iter().rposition(|token| *token == unfinished)?;
        self.ready.remove(place)
    }

    /// Looks at watches in turn, until the next bundle is full; returns whether others are
    /// to have their turn before it goes on.
    fn fill(&mut self) -> bool {
        // The groups may be others than the last time.
        self.selections.clear();
        if self.mailbox.is_filled() {
            self.collect();
        }
        if self.store.hub().is_aside() {
            self.look_at_all();
        }
        let mut looks = 0;
        loop {
            while self.outbox.bytes() < BUNDLE_BYTES && looks < MAX_LOOKS {
                let Some(token) = self.next_to_look_at() else { break };
                looks += 1;
                self.look(token);
            }
            if !self.progress_wanted || !self.ready.is_empty() || !self.reads.is_empty() {
                return looks == MAX_LOOKS;
            }
            let published = self.collect();
            if self.ready.is_empty() {
                self.tell_progress(published);
                return false;
            }
        }
    }

    fn look(&mut self, token: u64) {
        let Some(entry) = self.watches.get_mut(&token) else { return };
        match entry.watcher.step(&mut self.selections) {
            Step::Ready(found) => {
                // One that has seen everything hears when there is more.
                entry.queued = found.more || !entry.watcher.is_idle();
                if entry.queued {
                    self.ready.push_back(token);
                }
                self.found(token, found);
            }
            Step::Live(selection) => {
                entry.quiet = false;
                entry.queued = !entry.watcher.is_idle();
                if entry.queued {
                    self.ready.push_back(token);
                }
                let id = entry.id;
                self.live(token, id, &selection);
            }
            // Everybody waits for the one whose response is unfinished.
            Step::Behind(read) if self.reads.len() < MAX_READS || self.unfinished.is_some() => {
                self.reads.push(Box::pin(async move { (token, read.run().await) }));
                self.reads_begun = true;
            }
            Step::Behind(_) => self.parked.push_back(token),
            Step::Idle => entry.queued = false,
            Step::Ended => {
                let id = self.remove(token);
                self.ended.extend(id);
            }
        }
    }

    /// Sends what has just come.
    fn live(&mut self, token: u64, id: i64, selection: &Arc<Selection>) {
        if !self.shared.as_ref().is_some_and(|shared| shared.is_of(selection)) {
            self.shared = Shared::new(selection, self.store.header(selection.revision()));
        }
        match &self.shared {
            Some(shared) if self.unfinished.is_none() => {
                if let Err(status) = self.outbox.put_shared(id, shared) {
                    self.end = End::Because(status);
                }
            }
            _ => {
                let (revision, events) = (selection.revision(), selection.events().to_vec());
                self.found(token, Found { revision, events, ..Found::default() });
            }
        }
    }

    fn tell_progress(&mut self, published: i64) {
        let mut watchers = self.watches.values().map(|entry| &entry.watcher);
        if watchers.all(|watcher| watcher.progress_at(published).is_some()) {
            self.progress_wanted = false;
            let head = self.head(NO_WATCH, published);
            self.answer(head);
        }
    }

    /// A piece of history was read.
    fn read(&mut self, token: u64, result: ReadResult) {
        let Some(entry) = self.watches.get_mut(&token) else { return };
        self.ready.push_back(token);
        if let Some(found) = entry.watcher.accept(result) {
            self.found(token, found);
        }
    }

    fn found(&mut self, token: u64, found: Found) {
        let Some(entry) = self.watches.get_mut(&token) else { return };
        let id = entry.id;
        if found.canceled {
            let head = WatchResponse {
                canceled: true,
                compact_revision: found.compact_revision,
                cancel_reason: found.cancel_reason,
                ..self.head(id, found.revision)
            };
            self.remove(token);
            self.ended.insert(id);
            return self.answer(head);
        }
        entry.quiet &= found.events.is_empty();
        let limit = self.store.max_request_bytes() + MESSAGE_OVERHEAD_BYTES;
        let limit = entry.fragment.then_some(limit);
        let pieces = entry.pieces.take();
        self.held -= usize::from(pieces.is_some());
        let mut pieces = match pieces {
            Some(pieces) => pieces,
            None => Pieces::new(self.head(id, found.revision), limit),
        };
        let full = pieces.add(found.events);
        if !full.is_empty() && self.unfinished.is_none_or(|unfinished| unfinished == token) {
            self.unfinished = Some(token);
            full.iter().for_each(|piece| self.send(piece));
        } else if !full.is_empty() {
            // In between the pieces of another watch there is no place for these.
            full.into_iter().for_each(|piece| self.push(piece));
            return self.complete(token, pieces);
        }
        if found.more && !pieces.is_large() && (self.unfinished == Some(token) || self.held < MAX_HELD) {
            self.held += 1;
            if let Some(entry) = self.watches.get_mut(&token) {
                entry.pieces = Some(pieces);
            }
        } else if !pieces.is_empty() {
            self.complete(token, pieces);
        }
    }

    /// Says how far watches are that have heard nothing for long. A client that does not
    /// read is not told again and again.
    fn tick(&mut self) {
        if self.is_full() {
            return;
        }
        let published = self.collect();
        let mut due = Vec::new();
        for entry in self.watches.values_mut() {
            let quiet = std::mem::replace(&mut entry.quiet, true);
            if entry.progress_notify
                && quiet
                && let Some(revision) = entry.watcher.progress_at(published)
            {
                due.push((entry.id, revision));
            }
        }
        for (id, revision) in due {
            let head = self.head(id, revision);
            self.answer(head);
        }
    }
}

impl Body for Session {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let turn = ready!(coop::poll_proceed(context));
        let session = self.get_mut();
        session.mailbox.register(context.waker());
        loop {
            if let Some(piece) = session.outbox.take() {
                turn.made_progress();
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match std::mem::replace(&mut session.end, End::Told) {
                End::NotYet => session.end = End::NotYet,
                End::Because(status) => return Poll::Ready(Some(Ok(Frame::trailers(trailers(&status))))),
                End::Told => return Poll::Ready(None),
            }
            session.listen();
            let others_first = session.fill();
            if !session.outbox.is_empty() || session.reads_begun || !matches!(session.end, End::NotYet) {
                continue;
            }
            if others_first {
                context.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.end, End::Told)
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its text cannot be a header: the code can.
        let _ = Status::new(status.code(), "").add_header(&mut trailers);
    }
    trailers
}

impl Drop for Session {
    fn drop(&mut self) {
        gauge!("etcd_debugging_mvcc_watch_stream_total").decrement(1.0);
    }
}

/// Why a watch is refused, as Go writes a status: etcd's clients show it so.
fn reason(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// Ticks of progress notices; up to a tenth further apart than asked for, so that not all
/// streams have them at one time (as etcd's).
fn progress_ticks(interval: Duration) -> Interval {
    let period = interval.mul_f64(1.0 + rand::random::<f64>() / 10.0);
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
