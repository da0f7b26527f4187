//! Renewals of leases, by whoever leads: what this member's clients ask for while one
//! message is on its way goes with the next, and one question to the quorum answers it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leadership::{Leaders, Seat, ask_leader, unanswered};
use super::leases::KeepAlive;
use crate::error::StoreError;
use crate::peer::{Lane, Peers};

/// Renewals that wait for the next message; more wait for room. All of them fit into one.
const QUEUE: usize = 16_384;

/// Renewals under way that take longer, each a call of its own: those of one member leave room
/// on the leader's side of the line for its writes and reads.
const APART: usize = 256;

/// Renews leases on behalf of this member's clients.
pub(crate) struct Renewals {
    way: Way,
    queue: mpsc::Sender<Waiting>,
    apart: Semaphore,
}

struct Waiting {
    id: i64,
    /// Told what [`KeepAlive::renew_all`] says of the lease.
    answer: oneshot::Sender<Result<Answer, StoreError>>,
}

/// What was said of a lease, and whether by this member.
struct Answer {
    ttl: Option<i64>,
    here: bool,
}

impl Waiting {
    fn tell(self, result: Result<Answer, StoreError>) {
        // The receiver is gone when its request was dropped.
        let _ = self.answer.send(result);
    }
}

impl Renewals {
    pub(super) fn new(
        keep_alive: KeepAlive,
        peers: Arc<Peers>,
        leaders: Leaders,
        timeout: Duration,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let way = Way { keep_alive, peers, leaders, timeout };
        let rounds = rounds(way.clone(), waiting);
        tasks.spawn(async move { cancel.run_until_cancelled(rounds).await });
        Self { way, queue, apart: Semaphore::new(APART) }
    }

    /// Seconds the renewed lease now has, 0 for an unknown one.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout` when no leader answers in time.
    pub(crate) async fn renew(&self, id: i64) -> Result<i64, StoreError> {
        let deadline = Instant::now() + self.way.timeout;
        let (answer, answered) = oneshot::channel();
        let renewed = async {
            self.queue.send(Waiting { id, answer }).await.map_err(|_| StoreError::Stopped)?;
            let Answer { ttl, here } = answered.await.map_err(|_| StoreError::Stopped)??;
            // Held up before it could hand the answer on, this member may have been replaced.
            if let Some(ttl) = ttl.filter(|_| !here || self.way.keep_alive.may_act()) {
                return Ok(ttl);
            }
            let _turn = self.apart.acquire().await.map_err(|_| StoreError::Stopped)?;
            self.way.renew(id, deadline).await
        };
        tokio::time::timeout_at(deadline, renewed).await.unwrap_or_else(|_| Err(unanswered(&self.way.leaders)))
    }
}

/// Renews what waits, until the store closes.
async fn rounds(way: Way, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE).await > 0 {
        // Some have given up while nobody led.
        waiting.retain(|one| !one.answer.is_closed());
        let ids: Vec<i64> = waiting.iter().map(|one| one.id).collect();
        let deadline = Instant::now() + way.timeout;
        let answer = match ids.is_empty() {
            true => Ok((Vec::new(), true)),
            false => way.renew_all(&ids, deadline).await,
        };
        match answer {
            Ok((ttls, here)) => {
                waiting.drain(..).zip(ttls).for_each(|(one, ttl)| one.tell(Ok(Answer { ttl, here })));
            }
            Err(StoreError::Stopped) => return,
            Err(_) => waiting.drain(..).for_each(|one| one.tell(Err(unanswered(&way.leaders)))),
        }
    }
}

/// The way to whoever leads.
#[derive(Clone)]
struct Way {
    keep_alive: KeepAlive,
    peers: Arc<Peers>,
    leaders: Leaders,
    timeout: Duration,
}

impl Way {
    /// What is said of each, and whether by this member.
    async fn renew_all(&self, ids: &[i64], deadline: Instant) -> Result<(Vec<Option<i64>>, bool), StoreError> {
        let ask = |seat: Seat| async move {
            let Some((member, address)) = seat else { return Ok((self.keep_alive.renew_all(ids).await?, true)) };
            let line = self.peers.line(member, &address, Lane::Forward);
            let renewed = line.renew_all(ids.to_vec()).await.map_err(|_| StoreError::Timeout)?;
            Ok((renewed, false))
        };
        ask_leader(&self.leaders, deadline, ask).await
    }

    /// As [`Way::renew_all`] for a lease whose answer takes longer: waits for it.
    async fn renew(&self, id: i64, deadline: Instant) -> Result<i64, StoreError> {
        let ask = |seat: Seat| async move {
            let Some((member, address)) = seat else { return self.keep_alive.renew(id).await };
            let line = self.peers.line(member, &address, Lane::Forward);
            line.renew(id).await.map_err(|_| StoreError::Timeout)
        };
        ask_leader(&self.leaders, deadline, ask).await
    }
}
