//! The service `Watch`: many watches on one stream.
//!
//! One task serves a stream. A client that does not read fills a small queue; then its
//! watches stand still, and read on from the store's history later. What a stream holds
//! is bounded, whatever its client does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, iter};
use futures::{Stream, StreamExt};
use metrics::gauge;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::{WatchCreateRequest, WatchRequest, WatchResponse};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::watch_codec::Reply;
use super::watch_pieces::Pieces;
use super::{MESSAGE_OVERHEAD_BYTES, leaderless, wants_leader};
use crate::error::StoreError;
use crate::node::Store;
use crate::watch::{Mailbox, ReadResult, Response as Found, Step, Watcher};

/// Bundles of responses that wait for a client to read.
const QUEUE: usize = 2;

/// A bundle takes no further response once it has so many, or so many bytes.
const BUNDLE_RESPONSES: usize = 256;
const BUNDLE_BYTES: usize = 64 << 10;

/// While so many responses wait, no request is taken and no progress told.
const MAX_WAITING: usize = 1024;

/// Watches of one stream that read the store's history at the same time.
const MAX_READS: usize = 2;

/// Watches of one stream whose responses are held until more of their history was read.
const MAX_HELD: usize = 2;

/// Watches of one stream, with those that ended by themselves; more are refused.
const MAX_WATCHES: usize = 100_000;

/// How long a client may take to read why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The id of answers that belong to no watch.
const NO_WATCH: i64 = -1;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const TOO_MANY: &str = "etcdserver: too many requests";

/// What a client reads.
pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<Reply, Status>> + Send>>;

#[derive(Clone)]
pub(super) struct Watch(pub(super) Store);

impl Watch {
    pub(super) fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Replies>, Status> {
        let store = super::admit(&self.0, &request)?;
        let (queue, bundles) = mpsc::channel(QUEUE);
        let session = Session::new(store, queue);
        tokio::spawn(session.run(wants_leader(request.metadata()), request.into_inner()));
        let replies = ReceiverStream::new(bundles).flat_map(|bundle| match bundle {
            Ok(replies) => iter(replies).map(Ok).left_stream(),
            Err(status) => iter([Err(status)]).right_stream(),
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// One watch of a stream.
struct Entry {
    watcher: Watcher,
    fragment: bool,
    progress_notify: bool,
    /// Nothing was sent since the last tick.
    quiet: bool,
    /// It is in `Session::ready`, or its history is being read.
    queued: bool,
    /// What was found of a response that is not complete.
    pieces: Option<Pieces>,
    token: u64,
}

type Reading = Pin<Box<dyn Future<Output = (u64, ReadResult)> + Send>>;

/// One stream.
struct Session {
    store: Store,
    queue: mpsc::Sender<Result<Vec<Reply>, Status>>,
    watches: HashMap<i64, Entry>,
    /// The id of the watch with a token. Ids come again, tokens do not.
    tokens: FxHashMap<u64, i64>,
    /// Ids of watches that ended by themselves: taken until they are cancelled, as in etcd.
    ended: HashSet<i64>,
    next_id: i64,
    next_token: u64,
    mailbox: Arc<Mailbox>,
    /// Tokens of watches to look at, each once.
    ready: VecDeque<u64>,
    reads: FuturesUnordered<Reading>,
    /// Tokens of watches that wait for a read to end before their own.
    parked: VecDeque<u64>,
    /// What the client gets next.
    waiting: VecDeque<Reply>,
    waiting_bytes: usize,
    /// Watches whose responses are not complete.
    held: usize,
    /// The token of the watch of whose response a piece has gone out, and another follows.
    /// Until the last has, nothing else does: etcd's client loses what comes in between.
    open: Option<u64>,
    /// What goes out after that.
    later: Vec<Reply>,
    /// The client wants to know how far the whole stream is.
    progress_wanted: bool,
}

impl Session {
    fn new(store: Store, queue: mpsc::Sender<Result<Vec<Reply>, Status>>) -> Session {
        gauge!("etcd_debugging_mvcc_watch_stream_total").increment(1.0);
        Session {
            store,
            queue,
            watches: HashMap::new(),
            tokens: FxHashMap::default(),
            ended: HashSet::new(),
            next_id: 0,
            next_token: 0,
            mailbox: Arc::default(),
            ready: VecDeque::new(),
            reads: FuturesUnordered::new(),
            parked: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            held: 0,
            open: None,
            later: Vec::new(),
            progress_wanted: false,
        }
    }

    async fn run(mut self, wants_leader: bool, mut requests: Streaming<WatchRequest>) {
        let leaderless = leaderless(self.store.clone(), wants_leader);
        tokio::pin!(leaderless);
        let closing = self.store.closing();
        let queue = self.queue.clone();
        let mailbox = Arc::clone(&self.mailbox);
        let mut tick = progress_ticks(self.store.watch_progress_interval());
        let mut open = true;
        // A client that sends no more may still read, and says itself when it goes away.
        loop {
            self.fill();
            tokio::select! {
                permit = queue.reserve(), if !self.waiting.is_empty() => {
                    let Ok(permit) = permit else { break };
                    permit.send(Ok(self.bundle()));
                }
                message = requests.next(), if open && !self.is_full() => match message {
                    Some(Ok(message)) => self.serve(message),
                    Some(Err(status)) => {
                        let _ = tokio::time::timeout(LAST_WORD, queue.send(Err(status))).await;
                        break;
                    }
                    None => open = false,
                },
                () = mailbox.wait() => self.announced(),
                Some((token, result)) = self.reads.next() => self.read(token, result),
                _ = tick.tick() => self.tick(),
                () = queue.closed() => break,
                () = &mut leaderless => {
                    self.end(StoreError::NoLeader).await;
                    break;
                }
                () = closing.cancelled() => {
                    self.end(StoreError::Stopped).await;
                    break;
                }
            }
        }
    }

    async fn end(&mut self, error: StoreError) {
        let _ = tokio::time::timeout(LAST_WORD, self.queue.send(Err(error.into()))).await;
    }

    /// The next responses to send.
    fn bundle(&mut self) -> Vec<Reply> {
        let (mut bundle, mut bytes) = (Vec::new(), 0);
        while bundle.len() < BUNDLE_RESPONSES && bytes < BUNDLE_BYTES {
            let Some(reply) = self.waiting.pop_front() else { break };
            bytes += reply.size();
            bundle.push(reply);
        }
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        bundle
    }

    fn is_full(&self) -> bool {
        self.waiting.len() + self.later.len() >= MAX_WAITING
    }

    fn push(&mut self, reply: Reply) {
        if self.open.is_some() {
            self.later.push(reply);
        } else {
            self.send(reply);
        }
    }

    fn send(&mut self, reply: Reply) {
        self.waiting_bytes += reply.size();
        self.waiting.push_back(reply);
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
        let watcher = match self.store.watch_for(request, Arc::clone(&self.mailbox), token) {
            Ok(watcher) => watcher,
            Err(error) => return self.refuse(&reason(&error.into())),
        };
        let created = self.head(id, watcher.created());
        self.answer(WatchResponse { created: true, ..created });
        let entry = Entry { watcher, fragment, progress_notify, quiet: true, queued: true, pieces: None, token };
        self.watches.insert(id, entry);
        self.tokens.insert(token, id);
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
        self.watches.contains_key(&id) || self.ended.contains(&id)
    }

    fn remove(&mut self, id: i64) -> bool {
        let Some(Entry { pieces, token, .. }) = self.watches.remove(&id) else { return false };
        self.tokens.remove(&token);
        self.progress_wanted &= !self.watches.is_empty();
        if let Some(pieces) = pieces {
            self.held -= 1;
            self.complete(token, pieces);
        }
        true
    }

    /// Nothing more belongs to a response.
    fn complete(&mut self, token: u64, pieces: Pieces) {
        if self.open == Some(token) {
            self.send(pieces.last());
            self.open = None;
            std::mem::take(&mut self.later).into_iter().for_each(|reply| self.send(reply));
        } else {
            self.push(pieces.last());
        }
    }

    fn cancel(&mut self, id: i64) {
        if self.remove(id) || self.ended.remove(&id) {
            let head = self.head(id, self.store.revision());
            self.answer(WatchResponse { canceled: true, ..head });
        }
    }

    /// Watches have something to look at.
    fn announced(&mut self) {
        for token in self.mailbox.take() {
            self.look_again(token);
        }
    }

    fn look_again(&mut self, token: u64) {
        let Some(entry) = self.tokens.get(&token).and_then(|id| self.watches.get_mut(id)) else { return };
        if !entry.queued {
            entry.queued = true;
            self.ready.push_back(token);
        }
    }

    /// The watch whose turn it is: while a response is open, its watch alone.
    fn next_to_look_at(&mut self) -> Option<u64> {
        let Some(open) = self.open else {
            // Those that wait for a read to end come first: they have waited longest.
            let parked = if self.reads.len() < MAX_READS { self.parked.pop_front() } else { None };
            return parked.or_else(|| self.ready.pop_front());
        };
        let place = self.ready.iter().rposition(|token| *token == open)?;
        self.ready.remove(place)
    }

    /// Looks at watches in turn, until the next bundle is full.
    fn fill(&mut self) {
        let mut looks = 0;
        while self.waiting_bytes < BUNDLE_BYTES && self.waiting.len() < BUNDLE_RESPONSES && looks < BUNDLE_RESPONSES {
            let Some(token) = self.next_to_look_at() else { break };
            looks += 1;
            let Some(id) = self.tokens.get(&token).copied() else { continue };
            let Some(entry) = self.watches.get_mut(&id) else { continue };
            match entry.watcher.step() {
                Step::Ready(found) => {
                    // One that has seen everything is announced again when there is more.
                    entry.queued = found.more || !entry.watcher.is_idle();
                    if entry.queued {
                        self.ready.push_back(token);
                    }
                    self.found(id, found);
                }
                // Everybody waits for the one whose response is open.
                Step::Behind(read) if self.reads.len() < MAX_READS || self.open.is_some() => {
                    self.reads.push(Box::pin(async move { (token, read.run().await) }));
                }
                Step::Behind(_) => self.parked.push_back(token),
                Step::Idle => entry.queued = false,
                Step::Ended => {
                    self.remove(id);
                    self.ended.insert(id);
                }
            }
        }
        if looks == BUNDLE_RESPONSES {
            // Others have their turn first.
            self.mailbox.again();
        }
        if self.progress_wanted && self.ready.is_empty() && self.reads.is_empty() && !self.watches.is_empty() {
            let watchers = self.watches.values().map(|entry| &entry.watcher);
            if let Some(revision) = self.store.watch_progress(watchers) {
                self.progress_wanted = false;
                let head = self.head(NO_WATCH, revision);
                self.answer(head);
            }
        }
    }

    /// A piece of history was read.
    fn read(&mut self, token: u64, result: ReadResult) {
        let Some(id) = self.tokens.get(&token).copied() else { return };
        let Some(entry) = self.watches.get_mut(&id) else { return };
        self.ready.push_back(token);
        if let Some(found) = entry.watcher.accept(result) {
            self.found(id, found);
        }
    }

    fn found(&mut self, id: i64, found: Found) {
        let Some(entry) = self.watches.get_mut(&id) else { return };
        if found.canceled {
            let head = WatchResponse {
                canceled: true,
                compact_revision: found.compact_revision,
                cancel_reason: found.cancel_reason,
                ..self.head(id, found.revision)
            };
            self.remove(id);
            self.ended.insert(id);
            return self.answer(head);
        }
        entry.quiet &= found.events.is_empty();
        let (token, limit) = (entry.token, self.store.max_request_bytes() + MESSAGE_OVERHEAD_BYTES);
        let limit = entry.fragment.then_some(limit);
        let pieces = entry.pieces.take();
        self.held -= usize::from(pieces.is_some());
        let mut pieces = match pieces {
            Some(pieces) => pieces,
            None => Pieces::new(self.head(id, found.revision), limit),
        };
        let full = pieces.add(found.events);
        if !full.is_empty() && self.open.is_none_or(|open| open == token) {
            self.open = Some(token);
            full.into_iter().for_each(|piece| self.send(piece));
        } else if !full.is_empty() {
            // In between the pieces of another watch there is no place for these.
            full.into_iter().for_each(|piece| self.push(piece));
            return self.complete(token, pieces);
        }
        if found.more && !pieces.is_large() && (self.open == Some(token) || self.held < MAX_HELD) {
            self.held += 1;
            if let Some(entry) = self.watches.get_mut(&id) {
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
        let mut due = Vec::new();
        for (id, entry) in &mut self.watches {
            let quiet = std::mem::replace(&mut entry.quiet, true);
            if entry.progress_notify
                && quiet
                && let Some(revision) = entry.watcher.progress()
            {
                due.push((*id, revision));
            }
        }
        for (id, revision) in due {
            let head = self.head(id, revision);
            self.answer(head);
        }
    }
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
