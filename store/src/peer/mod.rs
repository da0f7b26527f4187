//! Member to member: who the peers are, how they are reached, and what is
//! answered to them.
//!
//! Always: a message of another cluster, of another generation, or meant for
//! another member is refused before anything looks at it.

mod dial;
mod frame;
mod line;
mod line_server;
mod presence;
mod roster;
mod server;
mod verdict;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::raft as wire;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

pub(crate) use self::dial::{Dialer, PeerClient, PeerTls, split};
pub(crate) use self::frame::MAGIC;
pub(crate) use self::line::Line;
pub(crate) use self::line_server::serve as serve_line;
pub(crate) use self::presence::{Patience, Presence};
pub(crate) use self::roster::{Known, Members, Roster};
pub(crate) use self::server::{Memory, PeerService};
pub(crate) use self::verdict::Verdict;

/// The largest message between members: a batch of entries, plus one entry.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How often a connection is tested, and how long the answer may take: a peer whose
/// machine vanished is noticed although TCP says nothing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Who this process is to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    pub(crate) generation: u64,
    /// Chosen when the process started.
    pub(crate) incarnation: u64,
    /// Chosen when the data directory was made.
    pub(crate) directory: u64,
}

impl Identity {
    /// Checks that a message is meant for this member of this cluster.
    ///
    /// # Errors
    /// `FailedPrecondition`, naming what differs.
    pub(crate) fn check(&self, origin: Option<&wire::Origin>) -> Result<u64, Status> {
        let Some(origin) = origin else {
            return Err(Status::invalid_argument("quorate: a peer's message lacks its origin"));
        };
        if origin.cluster_id != self.cluster_id {
            return Err(Status::failed_precondition("etcdserver: cluster ID mismatch"));
        }
        if origin.generation != self.generation {
            let text = format!(
                "quorate: generation {} is not this cluster's generation {}",
                origin.generation, self.generation
            );
            return Err(Status::failed_precondition(text));
        }
        if origin.to_member != self.member_id {
            let text = format!("quorate: this is member {:x}, not {:x}", self.member_id, origin.to_member);
            return Err(Status::failed_precondition(text));
        }
        Ok(origin.from_member)
    }
}

/// Connections are apart by what must not delay what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Log entries.
    Entries,
    /// Heartbeats, votes, transfers of leadership.
    Control,
    Snapshots,
    /// Requests of clients that only the leader answers.
    Forward,
    Presence,
}

/// The channels to the peers, opened at their first use.
pub(crate) struct Peers {
    identity: Identity,
    dialer: Dialer,
    roster: Arc<Roster>,
    moved: Mutex<HashMap<u64, Moved>>,
    verdict: watch::Sender<Option<Verdict>>,
    channels: Mutex<HashMap<(u64, Lane), (String, Channel)>>,
    lines: Mutex<HashMap<(u64, Lane), (String, Line)>>,
    /// What each peer has acknowledged to this member as the leader of a term.
    acknowledged: Mutex<HashMap<u64, Acknowledged>>,
}

/// An operator says that a member is elsewhere than the membership knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Believed only as long as the membership says this.
    pub(crate) from: String,
    pub(crate) to: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Acknowledged {
    term: u64,
    index: u64,
}

impl Peers {
    pub(crate) fn new(identity: Identity, dialer: Dialer, roster: Arc<Roster>) -> Self {
        Self {
            identity,
            dialer,
            roster,
            moved: Mutex::default(),
            verdict: watch::Sender::new(None),
            channels: Mutex::default(),
            lines: Mutex::default(),
            acknowledged: Mutex::default(),
        }
    }

    /// Believes that members are elsewhere than the membership says.
    pub(crate) fn set_moved(&self, moved: HashMap<u64, Moved>) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = moved;
    }

    /// Where `target` is, which the caller knows to be at `known`.
    pub(crate) fn address(&self, target: u64, known: &str) -> String {
        let members = self.roster.members();
        let said = members.known.get(&target).map_or(known, |member| &member.node.peer_address);
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.get(&target).filter(|moved| moved.from == said).map_or(said, |moved| &moved.to).to_owned()
    }

    pub(crate) fn members(&self) -> Arc<Members> {
        self.roster.members()
    }

    pub(crate) fn roster_changes(&self) -> watch::Receiver<()> {
        self.roster.changes()
    }

    /// Checks that a message is for this member, from one of the same cluster.
    ///
    /// # Errors
    /// `FailedPrecondition`, naming what differs.
    pub(crate) fn admit(&self, origin: Option<&wire::Origin>) -> Result<u64, Status> {
        let from = self.identity.check(origin)?;
        let Some(origin) = origin else { return Ok(from) };
        if origin.to_directory != 0 && origin.to_directory != self.identity.directory {
            self.condemn(Verdict::OtherDirectory);
            return Err(Status::failed_precondition("quorate: this member has lost its data directory"));
        }
        match verdict::on(&self.roster.members(), from, origin.from_directory) {
            Some(verdict) => Err(verdict.status(from)),
            None => Ok(from),
        }
    }

    /// Takes note when a peer's refusal says that this member must not go on.
    pub(crate) fn hear(&self, status: &Status) {
        if let Some(verdict) = Verdict::of(status) {
            self.condemn(verdict);
        }
    }

    /// This member must not go on.
    pub(crate) fn condemn(&self, verdict: Verdict) {
        self.verdict.send_if_modified(|known| {
            let new = known.is_none();
            if new {
                *known = Some(verdict);
            }
            new
        });
    }

    /// Why this member must not go on, once it must not.
    pub(crate) fn verdict(&self) -> watch::Receiver<Option<Verdict>> {
        self.verdict.subscribe()
    }

    fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Notes that `peer` holds everything up to `index`, said to the leader of `term`.
    pub(crate) fn acknowledged(&self, peer: u64, term: u64, index: u64) {
        let mut all = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(peer).or_insert(Acknowledged { term, index });
        match known.term == term {
            true => known.index = known.index.max(index),
            false => *known = Acknowledged { term, index },
        }
    }

    /// Whether `peer`, which does not hold entry `index`, acknowledged it to the leader of
    /// `term`: then it has lost its log.
    pub(crate) fn has_lost(&self, peer: u64, term: u64, index: u64) -> bool {
        let all = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&peer).is_some_and(|known| known.term == term && known.index >= index)
    }

    /// What every message to `target` begins with.
    pub(crate) fn origin(&self, target: u64) -> wire::Origin {
        wire::Origin {
            cluster_id: self.identity.cluster_id,
            generation: self.identity.generation,
            from_member: self.identity.member_id,
            to_member: target,
            from_directory: self.identity.directory,
            to_directory: self.roster.members().directory(target),
        }
    }

    /// A client of `target`, which the caller knows to be at `known`. Connects at its first
    /// call, and again after a loss.
    pub(crate) fn client(&self, target: u64, known: &str, lane: Lane) -> PeerClient {
        let address = self.address(target, known);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = channels.get(&(target, lane)).filter(|(at, _)| *at == address);
        let channel = match known {
            Some((_, channel)) => channel.clone(),
            None => {
                let channel = self.dialer.channel(&address);
                channels.insert((target, lane), (address, channel.clone()));
                channel
            }
        };
        dial::client(channel)
    }

    /// A line to `target`, which the caller knows to be at `known`: another one if the last
    /// has broken.
    pub(crate) fn line(&self, target: u64, known: &str, lane: Lane) -> Line {
        let address = self.address(target, known);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, line)) = lines.get(&(target, lane)).filter(|(at, line)| *at == address && line.is_open()) {
            return line.clone();
        }
        let line = Line::open(self.dialer.dial(&address), self.origin(target));
        lines.insert((target, lane), (address, line.clone()));
        line
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::net::TcpListener;
    use tonic::Code;

    use super::*;
    use crate::mvcc::{self, Engine};

    fn sample() -> (Peers, tempfile::TempDir) {
        sample_with(Dialer::default())
    }

    fn sample_with(dialer: Dialer) -> (Peers, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::open(mvcc::Config::new(directory.path().join("db"))).unwrap();
        let identity = Identity { cluster_id: 7, member_id: 2, generation: 3, incarnation: 0, directory: 5 };
        (Peers::new(identity, dialer, Roster::new(Arc::new(engine)).unwrap()), directory)
    }

    #[tokio::test]
    async fn whatever_is_dialled_is_dialled_from_the_address_that_is_set() {
        let from: IpAddr = "127.0.0.7".parse().unwrap();
        let (peers, _directory) = sample_with(Dialer { from: Some(from), ..Dialer::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let known = listener.local_addr().unwrap().to_string();
        let accepted = async || listener.accept().await.unwrap().1.ip();
        let _line = peers.line(1, &known, Lane::Entries);
        assert_eq!(accepted().await, from, "a line");
        let mut client = peers.client(1, &known, Lane::Control);
        let asking = tokio::spawn(async move { client.describe(wire::DescribeRequest {}).await });
        assert_eq!(accepted().await, from, "a channel");
        asking.abort();
        assert!(!presence::refuses(peers.dialer(), &known).await);
        assert_eq!(accepted().await, from, "a look whether anybody listens");
    }

    #[test]
    fn a_move_is_believed_until_the_membership_says_otherwise() {
        let (peers, _directory) = sample();
        assert_eq!(peers.address(1, "a:1"), "a:1");
        peers.set_moved(HashMap::from([(1, Moved { from: "a:1".into(), to: "b:1".into() })]));
        assert_eq!(peers.address(1, "a:1"), "b:1");
        assert_eq!(peers.address(1, "c:1"), "c:1", "moved again, by the membership");
    }

    #[test]
    fn a_message_for_another_data_directory_condemns_this_one() {
        let (peers, _directory) = sample();
        let origin = wire::Origin { cluster_id: 7, generation: 3, from_member: 1, to_member: 2, ..Default::default() };
        assert_eq!(peers.admit(Some(&wire::Origin { to_directory: 5, ..origin })).unwrap(), 1);
        assert_eq!(*peers.verdict().borrow(), None);
        let status = peers.admit(Some(&wire::Origin { to_directory: 6, ..origin })).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(*peers.verdict().borrow(), Some(Verdict::OtherDirectory));
    }

    #[test]
    fn a_peer_that_takes_back_what_it_acknowledged_has_lost_its_log() {
        let (peers, _directory) = sample();
        assert!(!peers.has_lost(1, 4, 0), "nothing was acknowledged");
        peers.acknowledged(1, 4, 10);
        peers.acknowledged(1, 4, 8);
        assert!(peers.has_lost(1, 4, 10));
        assert!(!peers.has_lost(1, 4, 11), "a probe beyond its end");
        assert!(!peers.has_lost(1, 5, 3), "another reign may truncate");
        peers.acknowledged(1, 5, 2);
        assert!(peers.has_lost(1, 5, 2) && !peers.has_lost(1, 4, 2));
    }

    #[test]
    fn messages_of_others_are_refused() {
        let identity = Identity { cluster_id: 7, member_id: 2, generation: 3, incarnation: 0, directory: 5 };
        let good = wire::Origin { cluster_id: 7, generation: 3, from_member: 1, to_member: 2, ..Default::default() };
        assert_eq!(identity.check(Some(&good)).unwrap(), 1);
        let check = |origin: Option<wire::Origin>, text: &str| {
            let status = identity.check(origin.as_ref()).unwrap_err();
            assert!(status.message().contains(text), "{status}");
            status.code()
        };
        let refused = Code::FailedPrecondition;
        assert_eq!(check(Some(wire::Origin { cluster_id: 8, ..good }), "cluster ID mismatch"), refused);
        assert_eq!(check(Some(wire::Origin { generation: 2, ..good }), "generation 2"), refused);
        assert_eq!(check(Some(wire::Origin { to_member: 9, ..good }), "not 9"), refused);
        assert_eq!(check(None, "origin"), Code::InvalidArgument);
    }
}
