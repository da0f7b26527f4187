//! Linearizable reads: one question to the quorum answers everybody who asked before
//! it was put. Raft dissertation, 6.4.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::raft as wire;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leadership::{Leader, Leaders};
use crate::error::StoreError;
use crate::peer::{Lane, Peers};
use crate::raft::{self, Applied, Raft, ReadIndexError};

/// Readers that wait for the next round; more wait for room.
const QUEUE: usize = 16_384;

/// The pause before another attempt after one that failed.
const RETRY_WAIT: Duration = Duration::from_millis(10);

/// An attempt that takes longer is given up for another.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(700);

type Answer = oneshot::Sender<Result<u64, StoreError>>;

/// Finds out how far this member must have applied.
pub(crate) struct ReadIndex {
    questions: mpsc::Sender<Answer>,
    applied: watch::Receiver<Applied>,
    timeout: Duration,
}

impl ReadIndex {
    pub(super) fn new(
        raft: Raft,
        peers: Arc<Peers>,
        applied: watch::Receiver<Applied>,
        leaders: Leaders,
        timeout: Duration,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let (questions, queue) = mpsc::channel(QUEUE);
        let rounds = Rounds { raft, peers, leaders, timeout };
        tasks.spawn(async move { cancel.run_until_cancelled(rounds.run(queue)).await });
        Self { questions, applied, timeout }
    }

    /// Returns once this member has applied every write acknowledged before the call.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout` when no quorum answers in time.
    pub(crate) async fn wait(&self) -> Result<(), StoreError> {
        let (answer, index) = oneshot::channel();
        self.questions.send(answer).await.map_err(|_| StoreError::Stopped)?;
        let index = index.await.map_err(|_| StoreError::Stopped)?;
        if index.is_err() {
            metrics::counter!("etcd_server_read_indexes_failed_total").increment(1);
        }
        let index = index?;
        let mut applied = self.applied.clone();
        match tokio::time::timeout(self.timeout, raft::applied_at_least(&mut applied, index)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout),
        }
    }
}

struct Rounds {
    raft: Raft,
    peers: Arc<Peers>,
    leaders: Leaders,
    timeout: Duration,
}

impl Rounds {
    async fn run(mut self, mut queue: mpsc::Receiver<Answer>) {
        let mut waiting = Vec::new();
        while queue.recv_many(&mut waiting, QUEUE).await > 0 {
            let result = self.round().await;
            for answer in waiting.drain(..) {
                // The receiver is gone when its request was dropped.
                let _ = answer.send(match &result {
                    Ok(index) => Ok(*index),
                    Err(Failure::NoLeader) => Err(StoreError::NoLeader),
                    Err(Failure::NoQuorum) => Err(StoreError::Timeout),
                    Err(Failure::Stopped) => Err(StoreError::Stopped),
                });
            }
        }
    }

    /// Tries until a leader confirms its reign, through changes of leadership.
    async fn round(&mut self) -> Result<u64, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let leader = Arc::clone(&self.leaders.borrow_and_update());
            let attempt = tokio::time::timeout(ATTEMPT_TIMEOUT, self.ask(&leader));
            let mut leaders = self.leaders.clone();
            let failure = tokio::select! {
                result = attempt => match result {
                    Ok(Ok(index)) => return Ok(index),
                    Ok(Err(Failure::Stopped)) => return Err(Failure::Stopped),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::NoQuorum,
                },
                // Whoever was asked does not lead any more.
                changed = leaders.wait_for(|now| **now != *leader) => match changed {
                    Ok(_) => continue,
                    Err(_) => return Err(Failure::Stopped),
                },
            };
            if Instant::now() >= deadline {
                return Err(failure);
            }
            tokio::select! {
                _ = self.leaders.changed() => {}
                () = tokio::time::sleep(RETRY_WAIT) => {}
            }
        }
    }

    async fn ask(&self, leader: &Leader) -> Result<u64, Failure> {
        if leader.local {
            return self.raft.read_index().await.map_err(|error| match error {
                ReadIndexError::NotLeader => Failure::NoLeader,
                ReadIndexError::NoQuorum => Failure::NoQuorum,
                ReadIndexError::Stopped(_) => Failure::Stopped,
            });
        }
        let Some((id, address)) = &leader.member else { return Err(Failure::NoLeader) };
        let mut client = self.peers.client(*id, address, Lane::Forward);
        let request = wire::ReadIndexRequest { origin: Some(self.peers.origin(*id)) };
        match client.read_index(request).await {
            Ok(answer) => Ok(answer.into_inner().index),
            Err(status) if status.code() == tonic::Code::FailedPrecondition => Err(Failure::NoLeader),
            Err(_) => Err(Failure::NoQuorum),
        }
    }
}

enum Failure {
    NoLeader,
    NoQuorum,
    Stopped,
}
