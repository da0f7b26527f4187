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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leadership::{Leaders, Seat, ask_leader};
use crate::auth::Actor;
use crate::command::{ApplyError, Command, CommandResult, Operation, RequestId};
use crate::error::StoreError;
use crate::peer::{Lane, Peers};
use crate::raft::{self, Applied, Proposal, Raft, Room, Waiters};

/// Forwarded commands of one message.
const FORWARD_BATCH: usize = 256;

/// No command joins a message of so many bytes: even with the largest as its last one, it
/// is far from what a member takes, and short enough to be sent again.
const FORWARD_BATCH_BYTES: usize = 4 << 20;

/// Messages of forwarded commands under way at once.
const FORWARDS_IN_FLIGHT: usize = 64;

/// Commands that wait to be forwarded; more wait for room.
const FORWARD_QUEUE: usize = 16_384;

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

/// A command for whoever leads.
struct Forward {
    command: Bytes,
    /// Told an index that this member has applied, so that it knows the outcome. Dropped when
    /// the leader did not answer, or another one leads.
    done: oneshot::Sender<u64>,
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
        let forwards = Forwards { peers, leaders: leaders.clone(), applied: applied.clone(), timeout };
        tasks.spawn(forwarder(forwards, queue, tasks.clone(), cancel.clone()));
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
    /// `Refused` when it was applied and refused, `TooManyRequests` when it was not proposed;
    /// `Timeout` and `LeaderFailed` when its outcome is not known.
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
        let proposal = Proposal::new(&Command { request: Some(id), fence, actor, operation });
        let deadline = Instant::now() + self.timeout;
        let room = match tokio::time::timeout_at(deadline, self.raft.room(proposal.len())).await {
            Ok(room) => room.ok_or(StoreError::Stopped)?,
            Err(_) => return Err(StoreError::TooManyRequests),
        };
        let mut outcome = self.waiters.register(&id);
        let _registration = Registration { waiters: &self.waiters, id };
        let began = self.leaders.borrow().term;
        let attempt = tokio::time::timeout_at(deadline, self.attempt(&proposal, &room, deadline, &mut outcome));
        let result = self.cancel.run_until_cancelled(attempt).await;
        match result.unwrap_or(Ok(Err(StoreError::Stopped))) {
            Ok(Err(StoreError::NoLeader | StoreError::Timeout)) | Err(_) => {
                let leader = self.leaders.borrow();
                let failed = leader.member.is_none() || leader.term != began;
                Err(if failed { StoreError::LeaderFailed } else { StoreError::Timeout })
            }
            Ok(settled) => settled,
        }
    }

    async fn attempt(
        &self,
        proposal: &Proposal,
        room: &Room,
        deadline: Instant,
        outcome: &mut oneshot::Receiver<CommandResult>,
    ) -> Result<CommandResult, StoreError> {
        loop {
            let proposed = async {
                let index = ask_leader(&self.leaders, deadline, |seat| self.submit(seat, proposal, room)).await?;
                raft::applied_at_least(&mut self.applied.clone(), index).await.map_err(|_| StoreError::Stopped)
            };
            tokio::select! {
                biased;
                result = &mut *outcome => return settle(result),
                proposed = proposed => proposed?,
            }
            // Outcomes are told before the index. Without one, the entry came with a snapshot:
            // proposed again, it is answered from the table.
            if let Ok(result) = outcome.try_recv() {
                return settle(Ok(result));
            }
        }
    }

    /// Returns an index once a quorum holds the entry: who has applied it knows the outcome.
    async fn submit(&self, seat: Seat, proposal: &Proposal, room: &Room) -> Result<u64, StoreError> {
        if seat.is_none() {
            return Ok(self.raft.propose(proposal.clone(), Arc::clone(room)).await?);
        }
        let (done, answer) = oneshot::channel();
        self.forward.send(Forward { command: proposal.wire(), done }).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Timeout)
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

/// What forwarding needs.
#[derive(Clone)]
struct Forwards {
    peers: Arc<Peers>,
    leaders: Leaders,
    applied: watch::Receiver<Applied>,
    timeout: Duration,
}

/// Sends commands to the leader in batches, as they come.
async fn forwarder(
    forwards: Forwards,
    mut queue: mpsc::Receiver<Forward>,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Some(Some(first)) = cancel.run_until_cancelled(queue.recv()).await else { return };
        let batch = batch(first, &mut queue);
        let (forwards, cancel) = (forwards.clone(), cancel.clone());
        tasks.spawn(async move { cancel.run_until_cancelled(forwards.forward(slot, batch)).await });
    }
}

/// `first` and what waits behind it, as much as goes in one message, without those that
/// nobody waits for any more.
fn batch(first: Forward, queue: &mut mpsc::Receiver<Forward>) -> Vec<Forward> {
    let mut bytes = 0;
    let mut batch = Vec::new();
    let mut next = Some(first);
    while let Some(forward) = next {
        if !forward.done.is_closed() {
            bytes += forward.command.len();
            batch.push(forward);
        }
        let full = batch.len() >= FORWARD_BATCH || bytes >= FORWARD_BATCH_BYTES;
        next = if full { None } else { queue.try_recv().ok() };
    }
    batch
}

impl Forwards {
    async fn forward(mut self, slot: OwnedSemaphorePermit, batch: Vec<Forward>) {
        let leader = Arc::clone(&self.leaders.borrow_and_update());
        let Some((id, address)) = leader.member.as_ref().filter(|_| !leader.local && !batch.is_empty()) else { return };
        let (commands, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.command, one.done)).unzip();
        let line = self.peers.line(*id, address, Lane::Forward);
        let answer = tokio::select! {
            answer = tokio::time::timeout(self.timeout, line.propose(commands)) => answer,
            // Who waits asks the next one.
            Ok(_) = self.leaders.wait_for(|now| *now != leader) => return,
        };
        drop(slot);
        let Ok(Ok(index)) = answer else { return };
        // Once for all of them: each would be woken whenever anything is applied.
        let reached = tokio::time::timeout(self.timeout, raft::applied_at_least(&mut self.applied, index)).await;
        if let Ok(Ok(())) = reached {
            for done in waiting {
                // The receiver is gone when its request is answered or timed out.
                let _ = done.send(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(bytes: usize) -> (Forward, oneshot::Receiver<u64>) {
        let (done, answer) = oneshot::channel();
        (Forward { command: vec![0; bytes].into(), done }, answer)
    }

    #[tokio::test]
    async fn a_message_is_bounded_in_commands_and_bytes() {
        let check = |sizes: &[usize], expected: &[usize]| {
            let (sender, mut queue) = mpsc::channel(FORWARD_QUEUE);
            let mut waiting = Vec::new();
            for bytes in sizes {
                let (forward, answer) = forward(*bytes);
                sender.try_send(forward).unwrap();
                waiting.push(answer);
            }
            let mut lengths = Vec::new();
            while let Ok(first) = queue.try_recv() {
                lengths.push(batch(first, &mut queue).len());
            }
            assert_eq!(lengths, expected, "{sizes:?}");
        };
        const MIB: usize = 1 << 20;
        check(&[10], &[1]);
        check(&[10; FORWARD_BATCH + 1], &[FORWARD_BATCH, 1]);
        check(&[MIB; 9], &[4, 4, 1]);
        check(&[10, 32 * MIB, 10], &[2, 1]);
        check(&[32 * MIB, 32 * MIB], &[1, 1]);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_sent() {
        let (sender, mut queue) = mpsc::channel(FORWARD_QUEUE);
        let ((dead, gone), (alive, _waits)) = (forward(FORWARD_BATCH_BYTES), forward(1));
        drop(gone);
        sender.try_send(alive).unwrap();
        let batch = batch(dead, &mut queue);
        assert_eq!(batch.iter().map(|one| one.command.len()).collect::<Vec<_>>(), [1]);
    }
}
