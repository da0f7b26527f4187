//! The service `Watch`: many watches on one stream.
//!
//! Each watch is a task that feeds the stream's one queue. A client that does not read
//! fills the queue, its watches wait, and read on from the store's history later.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::watch_server::Watch as Service;
use quorate_proto::etcd::{WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::wants_leader;
use crate::error::StoreError;
use crate::node::Store;
use crate::watch::Watcher;

/// Responses that wait for a client to read.
const QUEUE: usize = 32;

/// Watches of one stream; more are refused.
const MAX_WATCHES: usize = 100_000;

/// How often a watch that asked for it hears how far it is, when nothing happens.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// Election timeouts without a leader after which a stream that wants one ends.
const LEADERLESS_TIMEOUTS: u32 = 3;

/// How long a client may take to read why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The id of answers that belong to no watch.
const NO_WATCH: i64 = -1;

type Queue = mpsc::Sender<Result<WatchResponse, Status>>;

pub(super) struct Watch(pub(super) Store);

#[tonic::async_trait]
impl Service for Watch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let store = super::admit(&self.0, &request)?;
        let (queue, responses) = mpsc::channel(QUEUE);
        let session = Session {
            store,
            wants_leader: wants_leader(request.metadata()),
            queue,
            watches: HashMap::new(),
            next_id: 0,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// One stream.
struct Session {
    store: Store,
    wants_leader: bool,
    queue: Queue,
    watches: HashMap<i64, Handle>,
    next_id: i64,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// The way to one watch's task.
struct Handle {
    /// Asks how far the watch is, after all it has queued.
    asks: mpsc::Sender<oneshot::Sender<Option<i64>>>,
    cancel: CancellationToken,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let leaderless = leaderless(self.store.clone(), self.wants_leader);
        tokio::pin!(leaderless);
        let closing = self.store.closing();
        loop {
            let message = tokio::select! {
                message = requests.next() => message,
                () = self.queue.closed() => break,
                () = &mut leaderless => {
                    self.end(StoreError::NoLeader).await;
                    break;
                }
                () = closing.cancelled() => {
                    self.end(StoreError::Stopped).await;
                    break;
                }
            };
            let Some(Ok(message)) = message else { break };
            let alive = match message.request_union {
                Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
                Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id).await,
                Some(RequestUnion::ProgressRequest(_)) => self.progress().await,
                None => true,
            };
            if !alive {
                break;
            }
        }
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn end(&self, error: StoreError) {
        // Watches stop first, so that nothing follows the end.
        self.cancel.cancel();
        let _ = tokio::time::timeout(LAST_WORD, self.queue.send(Err(error.into()))).await;
    }

    async fn send(&self, response: WatchResponse) -> bool {
        self.queue.send(Ok(response)).await.is_ok()
    }

    fn response(&self, watch_id: i64) -> WatchResponse {
        let header = self.store.header(self.store.revision());
        WatchResponse { header: Some(header), watch_id, ..WatchResponse::default() }
    }

    async fn refuse(&self, reason: &str) -> bool {
        let response = self.response(NO_WATCH);
        self.send(WatchResponse { created: true, canceled: true, cancel_reason: reason.to_owned(), ..response }).await
    }

    async fn create(&mut self, mut request: WatchCreateRequest) -> bool {
        self.watches.retain(|_, handle| !handle.asks.is_closed());
        if request.start_revision < 0 {
            return self.refuse("etcdserver: mvcc: required revision has been compacted").await;
        }
        if self.watches.len() >= MAX_WATCHES {
            return self.refuse("etcdserver: too many requests").await;
        }
        if request.watch_id == 0 {
            while self.watches.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            request.watch_id = self.next_id;
            self.next_id += 1;
        } else if self.watches.contains_key(&request.watch_id) {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream").await;
        }
        let id = request.watch_id;
        let progress_notify = request.progress_notify;
        // The watch begins after the revision that its creation names, or before: no
        // event in between is lost.
        let watcher = match self.store.watch(request) {
            Ok(watcher) => watcher,
            Err(error) => return self.refuse(&reason(&error.into())).await,
        };
        let created = WatchResponse { created: true, ..self.response(id) };
        if !self.send(created).await {
            return false;
        }
        let (asks, questions) = mpsc::channel(1);
        let cancel = self.cancel.child_token();
        let feed = Feed { store: self.store.clone(), id, watcher, queue: self.queue.clone(), progress_notify };
        self.tasks.spawn(feed.run(questions, cancel.clone()));
        self.watches.insert(id, Handle { asks, cancel });
        true
    }

    async fn cancel(&mut self, id: i64) -> bool {
        let Some(handle) = self.watches.remove(&id) else { return true };
        handle.cancel.cancel();
        // Its task has queued its last response when it is gone.
        handle.asks.closed().await;
        let response = WatchResponse { canceled: true, ..self.response(id) };
        self.send(response).await
    }

    /// One answer for the whole stream, if every watch has sent all there is; the client
    /// asks again otherwise.
    async fn progress(&mut self) -> bool {
        let mut least: Option<i64> = None;
        for handle in self.watches.values() {
            let (ask, answer) = oneshot::channel();
            if handle.asks.send(ask).await.is_err() {
                // The watch has ended by itself.
                continue;
            }
            match answer.await {
                Ok(Some(revision)) => least = Some(least.map_or(revision, |least| least.min(revision))),
                Ok(None) => return true,
                Err(_) => {}
            }
        }
        let Some(revision) = least else { return true };
        let header = Some(self.store.header(revision));
        self.send(WatchResponse { header, watch_id: NO_WATCH, ..WatchResponse::default() }).await
    }
}

/// Why a watch is refused, as Go writes a status: etcd's clients show it so.
fn reason(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// Returns once there has been no leader for too long; never if nobody minds.
async fn leaderless(store: Store, minded: bool) {
    if !minded {
        return std::future::pending().await;
    }
    let patience = store.election_timeout() * LEADERLESS_TIMEOUTS;
    let mut leaders = store.leaders();
    loop {
        if leaders.wait_for(|leader| leader.member.is_none()).await.is_err() {
            return;
        }
        let found = leaders.wait_for(|leader| leader.member.is_some());
        if !matches!(tokio::time::timeout(patience, found).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// One watch's task.
struct Feed {
    store: Store,
    id: i64,
    watcher: Watcher,
    queue: Queue,
    progress_notify: bool,
}

impl Feed {
    async fn run(mut self, mut questions: mpsc::Receiver<oneshot::Sender<Option<i64>>>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet = true;
        loop {
            let response = tokio::select! {
                () = cancel.cancelled() => return,
                question = questions.recv() => {
                    let Some(answer) = question else { return };
                    // The stream is gone if nobody waits.
                    let _ = answer.send(self.watcher.progress());
                    continue;
                }
                _ = tick.tick(), if self.progress_notify => {
                    let due = std::mem::replace(&mut quiet, true);
                    let Some(revision) = self.watcher.progress().filter(|_| due) else { continue };
                    WatchResponse { header: Some(self.store.header(revision)), ..WatchResponse::default() }
                }
                response = self.watcher.next() => {
                    let Some(response) = response else { return };
                    quiet = false;
                    response
                }
            };
            let ended = response.canceled;
            let revision = response.header.as_ref().map_or_else(|| self.store.revision(), |header| header.revision);
            let response = WatchResponse { header: Some(self.store.header(revision)), watch_id: self.id, ..response };
            let sent = tokio::select! {
                () = cancel.cancelled() => return,
                sent = self.queue.send(Ok(response)) => sent,
            };
            if sent.is_err() || ended {
                return;
            }
        }
    }
}
