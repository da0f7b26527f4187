//! The way of a write: into the leader's log, from whichever member it was asked of,
//! exactly once.
//!
//! A proposal keeps its request id over every attempt, and this member learns the
//! outcome by applying the entry itself; so a leader may die at any point in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::fence::Fence;
use quorate_proto::raft as wire;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leadership::{Leader, Leaders};
use crate::auth::Actor;
use crate::command::{ApplyError, Command, CommandResult, Operation, RequestId};
use crate::error::StoreError;
use crate::peer::{Lane, Peers};
use crate::raft::{Applied, Proposal, ProposeError, Raft, Waiters};

/// Forwarded commands of one message.
const FORWARD_BATCH: usize = 256;

/// Messages of forwarded commands under way at once.
const FORWARDS_IN_FLIGHT: usize = 64;

/// Commands that wait to be forwarded; more are refused.
const FORWARD_QUEUE: usize = 16_384;

/// The pause before another attempt at a leader that did not take a proposal.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// A committed entry reaches this member's state machine within this time, unless it
/// came with a snapshot; then asking again finds out what became of it.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Proposes on behalf of this member's clients.
pub(crate) struct Proposer {
    raft: Raft,
    waiters: Arc<Waiters>,
    applied: watch::Receiver<Applied>,
    leaders: Leaders,
    client: u64,
    sequence: AtomicU64,
    forward: mpsc::Sender<Forward>,
    timeout: Duration,
    cancel: CancellationToken,
}

struct Forward {
    target: (u64, String),
    command: Bytes,
    done: oneshot::Sender<Result<(), ProposeError>>,
}

/// Takes a waiter out again when its request ends early.
struct Registration<'a> {
    waiters: &'a Waiters,
    id: RequestId,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.waiters.forget(&self.id);
    }
}

impl Proposer {
    pub(super) fn new(
        raft: Raft,
        peers: Arc<Peers>,
        waiters: Arc<Waiters>,
        applied: watch::Receiver<Applied>,
        leaders: Leaders,
        timeout: Duration,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let client = peers.identity().incarnation;
        let (forward, queue) = mpsc::channel(FORWARD_QUEUE);
        tasks.spawn(forwarder(peers, queue, timeout, tasks.clone(), cancel.clone()));
        Self { raft, waiters, applied, leaders, client, sequence: AtomicU64::new(1), forward, timeout, cancel }
    }

    /// [`Proposer::propose_as`] for this process.
    pub(crate) async fn propose(
        &self,
        operation: Operation,
        fence: Option<Fence>,
    ) -> Result<CommandResult, StoreError> {
        self.propose_as(None, operation, fence).await
    }

    /// Returns once the command is applied on this member, as `actor` may.
    ///
    /// # Errors
    /// `Refused` when it was applied and refused; `Timeout` and `LeaderFailed` when its
    /// outcome is not known.
    pub(crate) async fn propose_as(
        &self,
        actor: Option<Actor>,
        operation: Operation,
        fence: Option<Fence>,
    ) -> Result<CommandResult, StoreError> {
        let id = RequestId {
            client: self.client,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            since: self.applied.borrow().index,
        };
        let mut outcome = self.waiters.register(&id);
        let proposal = Proposal::new(&Command { request: Some(id), fence, actor, operation });
        let _registration = Registration { waiters: &self.waiters, id };
        let began = self.leaders.borrow().term;
        tokio::select! {
            result = self.attempt(proposal, &mut outcome) => result,
            () = tokio::time::sleep(self.timeout) => {
                let leader = self.leaders.borrow();
                let failed = leader.member.is_none() || leader.term != began;
                Err(if failed { StoreError::LeaderFailed } else { StoreError::Timeout })
            }
            () = self.cancel.cancelled() => Err(StoreError::Stopped),
        }
    }

    async fn attempt(
        &self,
        proposal: Proposal,
        outcome: &mut oneshot::Receiver<CommandResult>,
    ) -> Result<CommandResult, StoreError> {
        let mut leaders = self.leaders.clone();
        loop {
            let leader = Arc::clone(&leaders.borrow_and_update());
            match self.submit(&leader, &proposal).await {
                Ok(()) => {
                    if let Ok(result) = tokio::time::timeout(ASK_AGAIN, &mut *outcome).await {
                        return settle(result);
                    }
                }
                Err(ProposeError::Stopped(_)) => return Err(StoreError::Stopped),
                Err(ProposeError::NotLeader | ProposeError::Unknown) => {
                    tokio::select! {
                        result = &mut *outcome => return settle(result),
                        _ = leaders.changed() => {}
                        () = tokio::time::sleep(RETRY_WAIT) => {}
                    }
                }
            }
        }
    }

    async fn submit(&self, leader: &Leader, proposal: &Proposal) -> Result<(), ProposeError> {
        if leader.local {
            return self.raft.propose(proposal.clone()).await;
        }
        let Some(target) = leader.member.clone() else { return Err(ProposeError::NotLeader) };
        let (done, answer) = oneshot::channel();
        let forward = Forward { target, command: proposal.wire(), done };
        if self.forward.send(forward).await.is_err() {
            return Err(ProposeError::Stopped("the store is closing".to_owned()));
        }
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }
}

fn settle(result: Result<CommandResult, oneshot::error::RecvError>) -> Result<CommandResult, StoreError> {
    match result {
        // Too old to say whether it took effect: for the client, as if nobody answered.
        Ok(CommandResult::Error(ApplyError::RequestExpired)) => Err(StoreError::Timeout),
        Ok(CommandResult::Error(error)) => Err(StoreError::Refused(error)),
        Ok(result) => Ok(result),
        Err(_) => Err(StoreError::Stopped),
    }
}

/// Sends commands to the leader in batches, as they come.
async fn forwarder(
    peers: Arc<Peers>,
    mut queue: mpsc::Receiver<Forward>,
    timeout: Duration,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let mut batch = Vec::new();
        tokio::select! {
            () = cancel.cancelled() => return,
            count = queue.recv_many(&mut batch, FORWARD_BATCH) => if count == 0 { return },
        }
        let peers = Arc::clone(&peers);
        tasks.spawn(async move {
            let _slot = slot;
            let deadline = Instant::now() + timeout;
            while let Some(first) = batch.first() {
                let target = first.target.clone();
                let (same, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(|one| one.target == target);
                batch = rest;
                forward(&peers, target, same, deadline).await;
            }
        });
    }
}

async fn forward(peers: &Peers, (id, address): (u64, String), batch: Vec<Forward>, deadline: Instant) {
    let (commands, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.command, one.done)).unzip();
    let request = wire::ProposeRequest { origin: Some(peers.origin(id)), commands };
    let mut client = peers.client(id, &address, Lane::Forward);
    let answer = tokio::time::timeout_at(deadline, client.propose(request)).await;
    for done in waiting {
        let result = match &answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => Err(ProposeError::NotLeader),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        };
        // The receiver is gone when its request timed out.
        let _ = done.send(result);
    }
}
