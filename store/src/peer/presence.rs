//! Notices that a peer's process has ended before the election timer does.
//!
//! Each member keeps a stream open to every peer. When it breaks and the peer's
//! port then refuses connections (or another process answers there), the process
//! is gone: a fact, not a suspicion. If it led, the survivors agree on that and
//! elect at once. A machine that vanished refuses nothing; that is left to the timer.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_proto::raft as wire;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Lane, Peers};
use crate::raft::{Raft, Role, View, log_order};
use crate::wal::Wal;

/// A port that refuses does so at once; longer means that nobody is there to refuse.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// The wait before the stream is opened again.
const REOPEN_WAIT: Duration = Duration::from_millis(100);

/// The same while a broken stream is unexplained.
const LOST_WAIT: Duration = Duration::from_millis(10);

/// Between the survivors, by the order of their ids, so that one of them stands alone.
const TURN: Duration = Duration::from_millis(15);

/// How long the survivors are asked for their view.
const AGREE_TIMEOUT: Duration = Duration::from_millis(100);

/// How often the survivors are asked, and the wait in between. The first question to a
/// member that came back lately meets a connection to its former process and is lost.
const ATTEMPTS: u32 = 6;
const ATTEMPT_WAIT: Duration = Duration::from_millis(50);

/// A reign that has ended although its lease has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reign {
    leader: u64,
    term: u64,
}

/// Watches the peers' processes.
pub(crate) struct Presence {
    peers: Arc<Peers>,
    raft: Raft,
    wal: Wal,
    ended: Mutex<Option<Reign>>,
}

impl Presence {
    pub(crate) fn new(peers: Arc<Peers>, raft: Raft, wal: Wal) -> Arc<Self> {
        Arc::new(Self { peers, raft, wal, ended: Mutex::default() })
    }

    /// Watches every peer of the membership, as it changes, until `cancel`.
    pub(crate) async fn run(self: Arc<Self>, tasks: TaskTracker, cancel: CancellationToken) {
        let mut watched: HashMap<(u64, String), CancellationToken> = HashMap::new();
        let mut changes = self.peers.roster_changes();
        loop {
            changes.borrow_and_update();
            let own = self.peers.identity().member_id;
            let members = self.peers.members();
            let others = members.known.iter().filter(|(id, _)| **id != own);
            let wanted: Vec<(u64, String)> = others.map(|(id, known)| (*id, known.node.peer_address.clone())).collect();
            watched.retain(|peer, token| {
                let keep = wanted.contains(peer);
                if !keep {
                    token.cancel();
                }
                keep
            });
            for peer in wanted {
                watched.entry(peer).or_insert_with_key(|(id, address)| {
                    let token = cancel.child_token();
                    let watch = Arc::clone(&self).watch(*id, address.clone());
                    let stop = token.clone();
                    tasks.spawn(async move { stop.run_until_cancelled(watch).await });
                    token
                });
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether the current leader's process is known to have ended, so that this
    /// member's vote is free.
    pub(crate) fn leader_is_gone(&self) -> bool {
        let view = self.raft.view();
        let ended = *self.lock();
        ended.is_some_and(|reign| reign_of(&view) == Some(reign))
    }

    /// Answers a peer that found the leader's process gone: agrees if this member finds
    /// the same and holds no more entries than the peer.
    pub(crate) async fn agree(&self, request: &wire::LeaderGoneRequest) -> bool {
        let view = self.raft.view();
        let reign = Reign { leader: request.leader, term: request.term };
        let own = self.wal.state().last.map_or((0, 0), |id| (id.term, id.index));
        if reign_of(&view) != Some(reign) || own > log_order(request.last_log_id.as_ref()) {
            return false;
        }
        if *self.lock() == Some(reign) {
            return true;
        }
        let Some(node) = view.node(reign.leader) else { return false };
        let gone = refuses(&self.peers.address(reign.leader, &node.peer_address)).await;
        if gone {
            *self.lock() = Some(reign);
        }
        gone
    }

    async fn watch(self: Arc<Self>, peer: u64, address: String) {
        let mut known = None;
        // The stream broke, and whether the process ended is not known yet: a dying
        // process may close its connections before its port.
        let mut lost = false;
        loop {
            if let Some((incarnation, mut stream)) = self.open(peer, &address).await {
                if known.is_some_and(|known| known != incarnation) {
                    self.ended(peer).await;
                }
                known = Some(incarnation);
                while let Some(Ok(_)) = stream.next().await {}
                lost = true;
            }
            if lost && refuses(&self.peers.address(peer, &address)).await {
                lost = false;
                self.ended(peer).await;
            }
            tokio::time::sleep(if lost { LOST_WAIT } else { REOPEN_WAIT }).await;
        }
    }

    async fn open(&self, peer: u64, address: &str) -> Option<(u64, tonic::Streaming<wire::PresenceResponse>)> {
        let mut client = self.peers.client(peer, address, Lane::Presence);
        let request = wire::PresenceRequest { origin: Some(self.peers.origin(peer)) };
        let mut stream = match client.presence(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                self.peers.hear(&status);
                return None;
            }
        };
        let first = stream.next().await?.ok()?;
        Some((first.incarnation, stream))
    }

    /// `peer`'s process has ended. If it led, stand for election once the others agree.
    async fn ended(&self, peer: u64) {
        let view = self.raft.view();
        let Some(reign) = reign_of(&view).filter(|reign| reign.leader == peer) else { return };
        tracing::info!(leader = format!("{peer:x}"), term = reign.term, "the leader's process has ended");
        *self.lock() = Some(reign);
        let own = self.peers.identity().member_id;
        let Some(turn) = turn(&view, own, peer) else { return };
        tokio::time::sleep(TURN * turn).await;
        for _ in 0..ATTEMPTS {
            let view = self.raft.view();
            if reign_of(&view) != Some(reign) {
                return;
            }
            if self.quorum_agrees(&view, reign).await {
                self.raft.elect().await;
            }
            tokio::time::sleep(ATTEMPT_WAIT).await;
        }
    }

    async fn quorum_agrees(&self, view: &View, reign: Reign) -> bool {
        let own = self.peers.identity().member_id;
        let last = self.wal.state().last.map(|id| wire::LogId { term: id.term, index: id.index });
        let voters: Vec<u64> = view.members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id).collect();
        let mut answers: FuturesUnordered<_> = voters
            .iter()
            .filter(|id| **id != own && **id != reign.leader)
            .filter_map(|id| Some((*id, view.node(*id)?.peer_address.clone())))
            .map(|(id, address)| async move {
                let mut client = self.peers.client(id, &address, Lane::Control);
                let request = wire::LeaderGoneRequest {
                    origin: Some(self.peers.origin(id)),
                    leader: reign.leader,
                    term: reign.term,
                    last_log_id: last,
                };
                let answer = tokio::time::timeout(AGREE_TIMEOUT, client.leader_gone(request)).await.ok()?.ok()?;
                Some(answer.into_inner().agreed)
            })
            .collect();
        let needed = voters.len() / 2 + 1;
        let mut agreed = 1;
        while agreed < needed {
            match answers.next().await {
                Some(Some(true)) => agreed += 1,
                Some(_) => {}
                None => return false,
            }
        }
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Reign>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reign this member follows; none on a leader itself.
fn reign_of(view: &View) -> Option<Reign> {
    let leader = view.leader?;
    (view.role == Role::Follower).then_some(Reign { leader, term: view.term })
}

/// The place of `own` among the voters that survive `gone`; none for a learner.
fn turn(view: &View, own: u64, gone: u64) -> Option<u32> {
    let place = view.members.iter().filter(|(id, (_, votes))| *votes && **id != gone).position(|(id, _)| *id == own)?;
    u32::try_from(place).ok()
}

/// Whether nobody listens at any of `addresses`, said by the machine itself.
async fn refuses(addresses: &str) -> bool {
    for address in super::split(addresses) {
        match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_refuses_and_an_open_one_does_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(!refuses(&address).await);
        drop(listener);
        assert!(refuses(&address).await);
    }
}
