//! Linearizable reads: one question to the quorum answers everybody who asked before
//! it was put. Raft dissertation, 6.4.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::raft as wire;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leadership::{Leaders, Seat, ask_leader};
use crate::error::StoreError;
use crate::peer::{Lane, Peers};
use crate::raft::{self, Applied, Raft};

/// Readers that wait for the next round; more wait for room.
const QUEUE: usize = 16_384;

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
    async fn run(self, mut queue: mpsc::Receiver<Answer>) {
        let mut waiting = Vec::new();
        while queue.recv_many(&mut waiting, QUEUE).await > 0 {
            let result = self.round().await;
            for answer in waiting.drain(..) {
                // The receiver is gone when its request was dropped.
                let _ = answer.send(match &result {
                    Ok(index) => Ok(*index),
                    Err(StoreError::NoLeader) => Err(StoreError::NoLeader),
                    Err(StoreError::Stopped) => Err(StoreError::Stopped),
                    Err(_) => Err(StoreError::Timeout),
                });
            }
        }
    }

    /// Tries until a leader confirms its reign, through changes of leadership.
    async fn round(&self) -> Result<u64, StoreError> {
        let deadline = Instant::now() + self.timeout;
        let ask = |seat: Seat| async move {
            let answer = tokio::time::timeout(ATTEMPT_TIMEOUT, self.ask(seat)).await;
            answer.unwrap_or(Err(StoreError::Timeout))
        };
        ask_leader(&self.leaders, deadline, ask).await
    }

    async fn ask(&self, seat: Seat) -> Result<u64, StoreError> {
        let Some((id, address)) = seat else { return Ok(self.raft.read_index().await?) };
        let mut client = self.peers.client(id, &address, Lane::Forward);
        let request = wire::ReadIndexRequest { origin: Some(self.peers.origin(id)) };
        let answer = client.read_index(request).await.map_err(|_| StoreError::Timeout)?;
        Ok(answer.into_inner().index)
    }
}
