//! The service `Watch`: many watches on one stream.
//!
//! One task serves a stream. A client that does not read fills a small queue; then its
//! watches stand still, and read on from the store's history later. What a stream holds
//! is bounded, whatever its client does.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, iter};
use futures::{Stream, StreamExt};
use metrics::gauge;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::{WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::watch_codec::{Reply, size_of_event};
use super::{MESSAGE_OVERHEAD_BYTES, leaderless, wants_leader};
use crate::error::StoreError;
use crate::node::Store;
use crate::watch::{Mailbox, ReadResult, Response as Found, Step, Watcher};

/// Bundles of responses that wait for a client to read.
const QUEUE: usize = 2;

/// A bundle takes no further response once it has so many, or so many bytes.
const BUNDLE_RESPONSES: usize = 256;
const BUNDLE_BYTES: usize = 64 << 10;

/// While so many responses wait, no request is taken.
const MAX_WAITING: usize = 1024;

/// Watches of one stream that read the store's history at the same time.
const MAX_READS: usize = 2;

/// Watches of one stream; more are refused.
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
    token: u64,
}

type Reading = Pin<Box<dyn Future<Output = (u64, ReadResult)> + Send>>;

/// One stream.
struct Session {
    store: Store,
    queue: mpsc::Sender<Result<Vec<Reply>, Status>>,
    watches: HashMap<i64, Entry>,
    /// The id of the watch with a token. Ids come again, tokens do not.
    tokens: HashMap<u64, i64>,
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
            tokens: HashMap::new(),
            next_id: 0,
            next_token: 0,
            mailbox: Arc::default(),
            ready: VecDeque::new(),
            reads: FuturesUnordered::new(),
            parked: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
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
        // A client that sends no more may still read what its watches see.
        while open || !self.watches.is_empty() || !self.waiting.is_empty() {
            self.fill();
            tokio::select! {
                permit = queue.reserve(), if !self.waiting.is_empty() => {
                    let Ok(permit) = permit else { break };
                    permit.send(Ok(self.bundle()));
                }
                message = requests.next(), if open && self.waiting.len() < MAX_WAITING => match message {
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

    fn push(&mut self, reply: Reply) {
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
            Some(RequestUnion::ProgressRequest(_)) => self.progress_wanted = true,
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
            while self.watches.contains_key(&self.next_id) {
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
        let entry = Entry { watcher, fragment, progress_notify, quiet: true, queued: true, token };
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
        } else if self.watches.len() >= MAX_WATCHES {
            Err(TOO_MANY)
        } else if empty {
            Err(EMPTY_RANGE)
        } else if request.watch_id != 0 && self.watches.contains_key(&request.watch_id) {
            Err(DUPLICATE_ID)
        } else {
            Ok(())
        }
    }

    fn remove(&mut self, id: i64) -> bool {
        let Some(entry) = self.watches.remove(&id) else { return false };
        self.tokens.remove(&entry.token);
        true
    }

    fn cancel(&mut self, id: i64) {
        if self.remove(id) {
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

    /// Looks at watches in turn, until the next bundle is full.
    fn fill(&mut self) {
        let mut looks = 0;
        while self.waiting_bytes < BUNDLE_BYTES && self.waiting.len() < BUNDLE_RESPONSES && looks < BUNDLE_RESPONSES {
            let Some(token) = self.ready.pop_front() else { break };
            looks += 1;
            let Some(id) = self.tokens.get(&token).copied() else { continue };
            let Some(entry) = self.watches.get_mut(&id) else { continue };
            match entry.watcher.step() {
                Step::Ready(found) => {
                    self.ready.push_back(token);
                    self.found(id, found);
                }
                Step::Behind(read) if self.reads.len() < MAX_READS => {
                    self.reads.push(Box::pin(async move { (token, read.run().await) }));
                }
                Step::Behind(_) => self.parked.push_back(token),
                Step::Idle => entry.queued = false,
                Step::Ended => {
                    self.remove(id);
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
        self.ready.extend(self.parked.pop_front());
        let Some(id) = self.tokens.get(&token).copied() else { return };
        let Some(entry) = self.watches.get_mut(&id) else { return };
        self.ready.push_back(token);
        if let Some(found) = entry.watcher.accept(result) {
            self.found(id, found);
        }
    }

    fn found(&mut self, id: i64, found: Found) {
        let Some(entry) = self.watches.get_mut(&id) else { return };
        entry.quiet = false;
        let fragment = entry.fragment;
        let head = WatchResponse {
            canceled: found.canceled,
            compact_revision: found.compact_revision,
            cancel_reason: found.cancel_reason,
            ..self.head(id, found.revision)
        };
        let sizes: Vec<usize> = match fragment {
            true => found.events.iter().map(size_of_event).collect(),
            false => Vec::new(),
        };
        // A larger response goes in pieces, to clients that said they put them together.
        let pieces = fragments(&sizes, self.store.max_request_bytes() + MESSAGE_OVERHEAD_BYTES);
        if pieces.len() < 2 {
            self.push(Reply { head, events: found.events });
        } else {
            let last = pieces.len() - 1;
            for (number, piece) in pieces.into_iter().enumerate() {
                let head = WatchResponse { fragment: number < last, ..head.clone() };
                self.push(Reply { head, events: found.events[piece].to_vec() });
            }
        }
        if found.canceled {
            self.remove(id);
        }
    }

    /// Says how far watches are that have heard nothing for long.
    fn tick(&mut self) {
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

/// Which events go into each piece of a response: as many as stay below `limit`, and one
/// at least. The response's other fields are small beside the limit.
fn fragments(sizes: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, size) in sizes.iter().enumerate() {
        if index > first && bytes + size >= limit {
            pieces.push(first..index);
            (first, bytes) = (index, 0);
        }
        bytes += size;
    }
    if first < sizes.len() {
        pieces.push(first..sizes.len());
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_stay_below_the_limit_and_lose_nothing() {
        let check = |sizes: &[usize], expected: &[Range<usize>]| assert_eq!(fragments(sizes, 10), expected);
        let whole = 0..3;
        check(&[], &[]);
        check(&[3, 3, 3], &[whole]);
        check(&[5, 5], &[0..1, 1..2]);
        check(&[20, 1, 20, 1, 1], &[0..1, 1..2, 2..3, 3..5]);
    }
}
