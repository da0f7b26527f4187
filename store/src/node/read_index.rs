//! Linearizable reads: one question to the quorum answers everybody who asked before
//! it was put. Raft dissertation, 6.4.

use std::sync::Arc;
use std::time::Duration;

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

type Answer = oneshot::Sender<Result<(), StoreError>>;

/// Lets readers wait until this member has applied what they must see.
pub(crate) struct ReadIndex {
    questions: mpsc::Sender<Answer>,
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
        let rounds = Rounds { raft, peers, leaders, applied, timeout, tasks: tasks.clone(), cancel: cancel.clone() };
        tasks.spawn(async move { cancel.run_until_cancelled(rounds.run(queue)).await });
        Self { questions }
    }

    /// Returns once this member has applied every write acknowledged before the call.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout` when no quorum answers in time.
    pub(crate) async fn wait(&self) -> Result<(), StoreError> {
        let (answer, reached) = oneshot::channel();
        self.questions.send(answer).await.map_err(|_| StoreError::Stopped)?;
        reached.await.map_err(|_| StoreError::Stopped)?
    }
}

struct Rounds {
    raft: Raft,
    peers: Arc<Peers>,
    leaders: Leaders,
    applied: watch::Receiver<Applied>,
    timeout: Duration,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Rounds {
    async fn run(self, mut queue: mpsc::Receiver<Answer>) {
        let mut waiting = Vec::new();
        while queue.recv_many(&mut waiting, QUEUE).await > 0 {
            let readers = std::mem::take(&mut waiting);
            match self.round().await {
                Ok(index) if self.applied.borrow().index >= index => tell(readers, &Ok(())),
                Ok(index) => self.wait(index, readers),
                Err(error) => {
                    metrics::counter!("etcd_server_read_indexes_failed_total").increment(readers.len() as u64);
                    tell(readers, &Err(error));
                }
            }
        }
    }

    /// Waits once for all readers of a round: each of them would be woken whenever anything
    /// is applied. The next round does not wait for it.
    fn wait(&self, index: u64, readers: Vec<Answer>) {
        let (mut applied, timeout, cancel) = (self.applied.clone(), self.timeout, self.cancel.clone());
        self.tasks.spawn(async move {
            let reached = tokio::time::timeout(timeout, raft::applied_at_least(&mut applied, index));
            let reached = match cancel.run_until_cancelled(reached).await {
                Some(Ok(Ok(()))) => Ok(()),
                Some(Err(_)) => Err(StoreError::Timeout),
                Some(Ok(Err(_))) | None => Err(StoreError::Stopped),
            };
            tell(readers, &reached);
        });
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
        let line = self.peers.line(id, &address, Lane::Forward);
        line.read_index().await.map_err(|_| StoreError::Timeout)
    }
}

fn tell(readers: Vec<Answer>, result: &Result<(), StoreError>) {
    for reader in readers {
        // The receiver is gone when its request was dropped.
        let _ = reader.send(match result {
            Ok(()) => Ok(()),
            Err(StoreError::NoLeader) => Err(StoreError::NoLeader),
            Err(StoreError::Stopped) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout),
        });
    }
}
