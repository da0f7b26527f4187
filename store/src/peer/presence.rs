//! Notices that a leader is gone before the election timer does.
//!
//! Each member keeps a stream open to every peer. When it breaks and the peer's
//! port then refuses connections (or another process answers there), the process
//! is gone: a fact, not a suspicion. If it led, the survivors agree on that and on one
//! of them, which stands for election at once. All of them may find it in the same
//! moment, and two that stand split the votes, term after term while disks are slow.
//!
//! A machine that vanished, or a process that hangs, refuses nothing. It is silent, and a
//! silence that a quorum has noticed is treated like an end. The timer of consensus waits
//! for the lease of the leader and then for its own time; it is there for what goes amiss here.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_proto::raft as wire;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Dialer, Lane, Peers};
use crate::raft::{Raft, Role, View, log_order};
use crate::wal::Wal;

/// A port that refuses does so at once; longer means that nobody is there to refuse.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// The wait before the stream is opened again.
const REOPEN_WAIT: Duration = Duration::from_millis(100);

/// The same while a broken stream is unexplained.
const LOST_WAIT: Duration = Duration::from_millis(10);

/// How long the survivors are asked for their view.
const AGREE_TIMEOUT: Duration = Duration::from_millis(100);

/// How often the survivors are asked until they agree, and the wait in between. The first
/// question to a member that came back lately meets a connection to its former process and is lost.
const ATTEMPTS: u32 = 6;
const ATTEMPT_WAIT: Duration = Duration::from_millis(50);

/// How often a member looks whether it has heard from its leader.
const LOOK: Duration = Duration::from_millis(20);

/// A reign as those who follow its leader tell it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Followed {
    leader: u64,
    term: u64,
}

/// A reign that has ended although its lease has not.
#[derive(Clone, Copy, Debug)]
struct Ended {
    reign: Followed,
    /// The leader's process is known to have ended. Otherwise it was silent, and may speak again.
    for_good: bool,
    /// Who is to stand for election, as far as this member agreed with anyone.
    candidate: Option<u64>,
}

/// The term and the index of a member's last entry, in the order of elections.
type LastEntry = (u64, u64);

impl Ended {
    /// Agrees with `asking` unless another is to stand. Of two that stand and ask each
    /// other the one whose log is longer goes first, then the one with the lower id.
    fn agree(&mut self, own: (u64, LastEntry), asking: (u64, LastEntry)) -> bool {
        let ((id, last), (other, others)) = (own, asking);
        let first = others > last || others == last && other < id;
        let agreed = match self.candidate {
            Some(candidate) if candidate == id => first,
            Some(candidate) => candidate == other,
            None => true,
        };
        if agreed {
            self.candidate = Some(other);
        }
        agreed
    }
}

/// For how long no leader was heard. Only looks that came in time count: a member that was
/// held up itself has heard nothing either.
struct Silence {
    /// The highest term that a message of a leader carried.
    newest: AtomicU64,
    heard: AtomicBool,
    lasts_ms: AtomicU64,
}

impl Silence {
    fn new() -> Self {
        Self { newest: AtomicU64::new(0), heard: AtomicBool::new(false), lasts_ms: AtomicU64::new(0) }
    }

    /// A message of the leader of `term` has come; one that was deposed does not count.
    fn hear(&self, term: u64) {
        if self.newest.fetch_max(term, Ordering::Relaxed) <= term {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// A look, so long after the one before. Returns how long the silence lasts.
    fn look(&self, since_last: Duration) -> Duration {
        let lasts = match self.heard.swap(false, Ordering::Relaxed) {
            true => Duration::ZERO,
            false => self.lasts() + since_last.min(LOOK * 2),
        };
        self.lasts_ms.store(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        lasts
    }

    fn lasts(&self) -> Duration {
        Duration::from_millis(self.lasts_ms.load(Ordering::Relaxed))
    }
}

/// How long a leader may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Whoever has heard nothing for so long agrees that it is gone. A leader that a quorum
    /// has answered more lately than this is therefore still the only one.
    pub(crate) agrees: Duration,
    /// Whoever has heard nothing for so long asks the others.
    pub(crate) asks: Duration,
}

/// Watches the peers' processes.
pub(crate) struct Presence {
    peers: Arc<Peers>,
    raft: Raft,
    wal: Wal,
    ended: Mutex<Option<Ended>>,
    silence: Silence,
    patience: Patience,
}

impl Presence {
    pub(crate) fn new(peers: Arc<Peers>, raft: Raft, wal: Wal, patience: Patience) -> Arc<Self> {
        Arc::new(Self { peers, raft, wal, ended: Mutex::default(), silence: Silence::new(), patience })
    }

    /// A message of the leader of `term` has come.
    pub(super) fn hear(&self, term: u64) {
        self.silence.hear(term);
    }

    /// Notices a leader that is silent, until `cancel`.
    pub(crate) async fn listen(self: Arc<Self>, cancel: CancellationToken) {
        let silent = Notify::new();
        let looks = async {
            let mut tick = tokio::time::interval(LOOK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut last = Instant::now();
            loop {
                tick.tick().await;
                let now = Instant::now();
                let lasts = self.silence.look(now - last);
                last = now;
                if lasts.is_zero() {
                    self.forget_silence();
                } else if lasts >= self.patience.asks {
                    silent.notify_one();
                }
            }
        };
        let elections = async {
            loop {
                silent.notified().await;
                // A leader hears no leader either.
                if let Some(reign) = reign_of(&self.raft.view()) {
                    self.end(reign, false).await;
                }
                tokio::time::sleep(self.patience.agrees).await;
            }
        };
        cancel.run_until_cancelled(async { tokio::join!(looks, elections) }).await;
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

    /// Whether the current leader is known to be gone, so that this member's vote is free.
    pub(crate) fn leader_is_gone(&self) -> bool {
        let view = self.raft.view();
        reign_of(&view).is_some_and(|reign| self.has_ended(reign) || self.is_silent())
    }

    /// Answers `peer`, which found the leader gone and wants to stand for election: agrees
    /// if this member finds the same, holds no more entries than the peer, and has agreed
    /// with nobody else.
    pub(crate) async fn agree(&self, peer: u64, request: &wire::LeaderGoneRequest) -> bool {
        let view = self.raft.view();
        let reign = Followed { leader: request.leader, term: request.term };
        let (own, others) = (self.last_entry(), log_order(request.last_log_id.as_ref()));
        if reign_of(&view) != Some(reign) || own > others {
            return false;
        }
        let mut for_good = false;
        if !self.has_ended(reign) && !self.is_silent() {
            let Some(node) = view.node(reign.leader) else { return false };
            for_good = refuses(self.peers.dialer(), &self.peers.address(reign.leader, &node.peer_address)).await;
            if !for_good {
                return false;
            }
        }
        self.with_ended(reign, for_good, |ended| ended.agree((self.peers.identity().member_id, own), (peer, others)))
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
            if lost && refuses(self.peers.dialer(), &self.peers.address(peer, &address)).await {
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

    /// `peer`'s process has ended. If it led, so has its reign.
    async fn ended(&self, peer: u64) {
        let followed = reign_of(&self.raft.view());
        if let Some(reign) = followed.filter(|reign| reign.leader == peer) {
            self.end(reign, true).await;
        }
    }

    /// `reign` has ended: stands for election once the others agree.
    async fn end(&self, reign: Followed, for_good: bool) {
        let own = self.peers.identity().member_id;
        let votes = self.raft.view().members.get(&own).is_some_and(|(_, votes)| *votes);
        let stands = || {
            let may = votes && self.raft.may_lead() && (for_good || self.is_silent());
            self.with_ended(reign, for_good, |ended| may && *ended.candidate.get_or_insert(own) == own)
        };
        for _ in 0..ATTEMPTS {
            let view = self.raft.view();
            if !stands() || reign_of(&view) != Some(reign) {
                return;
            }
            // Asked in the meantime, this member may have stepped back.
            if self.quorum_agrees(&view, reign).await && stands() {
                // Once: while the vote is on its way to the disk nothing shows of it, and
                // standing again would make every answer to it void.
                self.raft.elect().await;
                return;
            }
            tokio::time::sleep(ATTEMPT_WAIT).await;
        }
    }

    async fn quorum_agrees(&self, view: &View, reign: Followed) -> bool {
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

    fn last_entry(&self) -> LastEntry {
        self.wal.state().last.map_or((0, 0), |id| (id.term, id.index))
    }

    fn is_silent(&self) -> bool {
        self.silence.lasts() >= self.patience.agrees
    }

    fn has_ended(&self, reign: Followed) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.is_some_and(|ended| ended.reign == reign && ended.for_good)
    }

    /// What `decide` makes of the end of `reign`, which is known from now on.
    fn with_ended<T>(&self, reign: Followed, for_good: bool, decide: impl FnOnce(&mut Ended) -> T) -> T {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ended.take().filter(|known| known.reign == reign);
        if known.is_none() {
            let (leader, term) = (format!("{:x}", reign.leader), reign.term);
            let why = if for_good { "its process has ended" } else { "it is silent" };
            tracing::info!(leader, term, why, "the leader is gone");
        }
        let ended = ended.insert(known.unwrap_or(Ended { reign, for_good, candidate: None }));
        ended.for_good |= for_good;
        decide(ended)
    }

    /// The leader speaks again: what was agreed on while it was silent is void.
    fn forget_silence(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = ended.take().filter(|ended| ended.for_good);
    }
}

/// The reign this member follows; none on a leader itself.
fn reign_of(view: &View) -> Option<Followed> {
    let leader = view.reign.leader?;
    (view.reign.role == Role::Follower).then_some(Followed { leader, term: view.reign.term })
}

/// Whether nobody listens at any of `addresses`, said by the machine itself.
pub(super) async fn refuses(dialer: &Dialer, addresses: &str) -> bool {
    for address in super::split(addresses) {
        match tokio::time::timeout(PROBE_TIMEOUT, dialer.connect(address)).await {
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
        let address = quorate_transport::loopback::free_address();
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        assert!(!refuses(&Dialer::default(), &address.to_string()).await);
        drop(listener);
        assert!(refuses(&Dialer::default(), &address.to_string()).await);
    }

    fn undecided() -> Ended {
        Ended { reign: Followed { leader: 1, term: 1 }, for_good: true, candidate: None }
    }

    #[test]
    fn silence_is_what_was_not_heard_from_the_newest_leader_while_one_listened() {
        let silence = Silence::new();
        assert_eq!(silence.look(LOOK), LOOK);
        assert_eq!(silence.look(LOOK), LOOK * 2);
        assert_eq!(silence.look(Duration::from_secs(9)), LOOK * 4, "this member was held up");
        silence.hear(3);
        assert_eq!(silence.look(LOOK), Duration::ZERO);
        silence.hear(2);
        assert_eq!(silence.look(LOOK), LOOK, "a leader that was deposed");
        silence.hear(3);
        assert_eq!(silence.look(LOOK), Duration::ZERO);
        assert_eq!(silence.lasts(), Duration::ZERO);
    }

    #[test]
    fn survivors_agree_on_one_that_stands() {
        let mut ended = undecided();
        assert!(ended.agree((2, (1, 7)), (3, (1, 7))));
        assert!(ended.agree((2, (1, 7)), (3, (1, 7))), "asked again");
        assert!(!ended.agree((2, (1, 7)), (4, (1, 9))), "another asks");
    }

    #[test]
    fn of_two_that_ask_each_other_exactly_one_steps_back() {
        for (two, three) in [((1, 7), (1, 7)), ((1, 7), (1, 8)), ((1, 8), (1, 7)), ((1, 9), (2, 1))] {
            let (mut at_two, mut at_three) = (undecided(), undecided());
            at_two.candidate = Some(2);
            at_three.candidate = Some(3);
            let agreed = [at_two.agree((2, two), (3, three)), at_three.agree((3, three), (2, two))];
            assert_eq!(agreed, if three > two { [true, false] } else { [false, true] }, "{two:?} {three:?}");
            assert_eq!(at_two.candidate, at_three.candidate);
        }
    }
}
