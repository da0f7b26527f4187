//! The Raft library's types, chosen for this store, and their form on the wire
//! and in the log.
//!
//! A leader id is a term alone: at most one leader per term, which is what makes
//! a fence of (generation, term) name one reign.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Cursor};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::impls::{self, leader_id_std};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, LogId, Membership, RaftTypeConfig, StoredMembership};
use prost::Message;
use quorate_proto::raft as wire;
use tokio::sync::oneshot;

use super::Room;
use crate::apply::{self, Payload};
use crate::command::Command;
use crate::wal::{EntryId, LogEntry};

#[cfg(not(test))]
type Runtime = impls::TokioRuntime;

/// Draws what it draws from the seed of the task: see [`super::simulated::seeded`].
#[cfg(test)]
pub(super) type Runtime = openraft_rt::deterministic_rng::DeterministicRng<impls::TokioRuntime>;

/// The configuration of the Raft library.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Types {}

impl RaftTypeConfig for Types {
    type D = Proposal;
    type R = ();
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>;
    type Vote = impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = Told<T>
    where
        T: Send + 'static;
    type Batch<T>
        = impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = Runtime;
    type ErrorSource = impls::BoxedErrorSource;
}

/// Tells who proposed what became of it. Consensus holds it until then, and with it the
/// room that was set aside: whoever waits may give up, the proposal is in memory none the
/// less.
pub(crate) struct Told<T> {
    pub(super) told: oneshot::Sender<T>,
    pub(super) _room: Room,
}

impl<T: Send + 'static> Responder<Types, T> for Told<T> {
    fn on_complete(self, result: T) {
        // Nobody waits any more.
        let _ = self.told.send(result);
    }
}

/// One member as the membership entry describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// `host:port` where its peers reach it; several are separated by commas.
    pub(crate) peer_address: String,
    /// `host:port` where clients reach it; empty if they cannot.
    pub(crate) client_address: String,
    /// Added to vote: a learner only until it has caught up.
    pub(crate) wants_vote: bool,
}

const TAG_BLANK: u8 = 0;
const TAG_COMMAND: u8 = 1;
const TAG_MEMBERSHIP: u8 = 2;

/// An encoded command with its tag in front: the very bytes of a log entry's
/// payload, so that a proposal is encoded once for log, peers and apply.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(Bytes);

impl Proposal {
    pub(crate) fn new(command: &Command) -> Self {
        let encoded = command.encode();
        let mut bytes = BytesMut::with_capacity(encoded.len() + 1);
        bytes.put_u8(TAG_COMMAND);
        bytes.extend_from_slice(&encoded);
        Self(bytes.freeze())
    }

    /// `bytes` as another member sent them; `None` if they are no proposal.
    pub(crate) fn from_wire(bytes: Bytes) -> Option<Self> {
        (bytes.first() == Some(&TAG_COMMAND)).then_some(Self(bytes))
    }

    pub(crate) fn wire(&self) -> Bytes {
        self.0.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The encoded command.
    pub(crate) fn command(&self) -> Bytes {
        self.0.slice(1..)
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Bytes of the log or of a peer that mean nothing here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("an entry has the unknown tag {0:?}")]
    UnknownTag(Option<u8>),
    #[error("a message does not decode")]
    Message(#[from] prost::DecodeError),
    #[error("a message lacks {0}")]
    Missing(&'static str),
    #[error("its entries do not follow one another")]
    Hole,
    #[error("a membership is not valid: {0}")]
    Membership(String),
}

impl From<DecodeError> for std::io::Error {
    fn from(error: DecodeError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

// ------------------------------------------------------------------- log ids

pub(crate) fn log_id(term: u64, index: u64) -> LogIdOf<Types> {
    LogId { leader_id: term.into(), index }
}

pub(crate) fn log_id_to_wire(id: &LogIdOf<Types>) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn log_id_from_wire(id: wire::LogId) -> LogIdOf<Types> {
    log_id(id.term, id.index)
}

/// The log's own id; it keeps no leader beside the term.
pub(crate) fn entry_id(id: &LogIdOf<Types>) -> EntryId {
    EntryId { term: id.leader_id.term, node: 0, index: id.index }
}

pub(crate) fn log_id_from_entry(id: EntryId) -> LogIdOf<Types> {
    log_id(id.term, id.index)
}

// --------------------------------------------------------------------- votes

pub(crate) fn vote_to_wire(vote: &VoteOf<Types>) -> wire::Ballot {
    wire::Ballot { term: vote.leader_id.term, candidate: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_wire(vote: wire::Ballot) -> VoteOf<Types> {
    VoteOf::<Types> {
        leader_id: leader_id_std::LeaderId { term: vote.term, voted_for: vote.candidate },
        committed: vote.committed,
    }
}

pub(crate) fn required_vote(vote: Option<wire::Ballot>) -> Result<VoteOf<Types>, DecodeError> {
    vote.map(vote_from_wire).ok_or(DecodeError::Missing("its vote"))
}

pub(crate) fn encode_vote(vote: &VoteOf<Types>) -> Bytes {
    vote_to_wire(vote).encode_to_vec().into()
}

pub(crate) fn decode_vote(bytes: Bytes) -> Result<VoteOf<Types>, DecodeError> {
    Ok(vote_from_wire(wire::Ballot::decode(bytes)?))
}

// ---------------------------------------------------------------- membership

pub(crate) fn membership_to_wire(membership: &Membership<u64, Node>) -> wire::Membership {
    wire::Membership {
        sets: membership
            .get_joint_config()
            .iter()
            .map(|voters| wire::VoterSet { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| wire::Node {
                id: *id,
                name: node.name.clone(),
                peer_address: node.peer_address.clone(),
                client_address: node.client_address.clone(),
                wants_vote: node.wants_vote,
            })
            .collect(),
    }
}

pub(crate) fn membership_from_wire(membership: wire::Membership) -> Result<Membership<u64, Node>, DecodeError> {
    let sets = membership.sets.into_iter().map(|set| BTreeSet::from_iter(set.voters)).collect();
    let nodes: BTreeMap<u64, Node> = membership
        .nodes
        .into_iter()
        .map(|wire::Node { id, name, peer_address, client_address, wants_vote }| {
            (id, Node { name, peer_address, client_address, wants_vote })
        })
        .collect();
    Membership::new(sets, nodes).map_err(|error| DecodeError::Membership(error.to_string()))
}

pub(crate) fn stored_to_wire(stored: &StoredMembershipOf<Types>) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

pub(crate) fn stored_from_wire(stored: wire::StoredMembership) -> Result<StoredMembershipOf<Types>, DecodeError> {
    let Some(membership) = stored.membership else { return Ok(StoredMembershipOf::<Types>::default()) };
    Ok(StoredMembership::new(stored.log_id.map(log_id_from_wire), membership_from_wire(membership)?))
}

pub(crate) fn decode_stored(bytes: Option<Bytes>) -> Result<StoredMembershipOf<Types>, DecodeError> {
    match bytes {
        Some(bytes) => stored_from_wire(wire::StoredMembership::decode(bytes)?),
        None => Ok(StoredMembershipOf::<Types>::default()),
    }
}

/// What a membership entry leaves in the state machine: it knows its own place in the log.
pub(crate) fn encode_stored(id: LogIdOf<Types>, membership: &Membership<u64, Node>) -> Bytes {
    let stored =
        wire::StoredMembership { log_id: Some(log_id_to_wire(&id)), membership: Some(membership_to_wire(membership)) };
    stored.encode_to_vec().into()
}

// ------------------------------------------------------------------- entries

fn encode_payload(payload: &EntryPayload<Proposal, u64, Node>) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[TAG_BLANK]),
        EntryPayload::Normal(proposal) => proposal.wire(),
        EntryPayload::Membership(membership) => {
            let mut bytes = BytesMut::new();
            bytes.put_u8(TAG_MEMBERSHIP);
            bytes.extend_from_slice(&membership_to_wire(membership).encode_to_vec());
            bytes.freeze()
        }
    }
}

fn decode_payload(bytes: Bytes) -> Result<EntryPayload<Proposal, u64, Node>, DecodeError> {
    match bytes.first() {
        Some(&TAG_BLANK) => Ok(EntryPayload::Blank),
        Some(&TAG_COMMAND) => Ok(EntryPayload::Normal(Proposal(bytes))),
        Some(&TAG_MEMBERSHIP) => {
            let membership = wire::Membership::decode(Cursor::new(bytes.slice(1..)))?;
            Ok(EntryPayload::Membership(membership_from_wire(membership)?))
        }
        other => Err(DecodeError::UnknownTag(other.copied())),
    }
}

pub(crate) fn entry_to_log(entry: &EntryOf<Types>) -> LogEntry {
    LogEntry { id: entry_id(&entry.log_id), payload: encode_payload(&entry.payload) }
}

pub(crate) fn entry_from_log(entry: LogEntry) -> Result<EntryOf<Types>, DecodeError> {
    Ok(EntryOf::<Types> { log_id: log_id_from_entry(entry.id), payload: decode_payload(entry.payload)? })
}

pub(crate) fn entry_to_wire(entry: &EntryOf<Types>) -> wire::Entry {
    wire::Entry { log_id: Some(log_id_to_wire(&entry.log_id)), payload: encode_payload(&entry.payload) }
}

pub(crate) fn entry_from_wire(entry: wire::Entry) -> Result<EntryOf<Types>, DecodeError> {
    let id = entry.log_id.ok_or(DecodeError::Missing("an entry's id"))?;
    Ok(EntryOf::<Types> { log_id: log_id_from_wire(id), payload: decode_payload(entry.payload)? })
}

/// What the state machine is to do with an entry.
pub(super) fn entry_to_apply(entry: EntryOf<Types>) -> io::Result<apply::Entry> {
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Membership(membership) => {
            let ids = membership.nodes().map(|(id, _)| *id).collect();
            Payload::Membership { stored: encode_stored(entry.log_id, &membership), ids }
        }
        EntryPayload::Normal(proposal) => {
            Payload::Command(Command::decode(proposal.command()).map_err(io::Error::other)?)
        }
    };
    Ok(apply::Entry { id: entry_id(&entry.log_id), payload })
}

// ------------------------------------------------------------------ messages

pub(crate) fn append_to_wire(request: &openraft::raft::AppendEntriesRequest<Types>) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        commit: request.leader_commit.as_ref().map(log_id_to_wire),
    }
}

pub(crate) fn append_from_wire(
    request: wire::AppendRequest,
) -> Result<openraft::raft::AppendEntriesRequest<Types>, DecodeError> {
    let mut next = request.previous.as_ref().map_or(Some(0), |previous| previous.index.checked_add(1));
    let entries = request.entries.into_iter().map(|entry| {
        let entry = entry_from_wire(entry)?;
        // A hole would end the log, and with it the process.
        if next != Some(entry.log_id.index) {
            return Err(DecodeError::Hole);
        }
        next = entry.log_id.index.checked_add(1);
        Ok(entry)
    });
    Ok(openraft::raft::AppendEntriesRequest {
        vote: required_vote(request.vote)?,
        prev_log_id: request.previous.map(log_id_from_wire),
        entries: entries.collect::<Result<_, _>>()?,
        leader_commit: request.commit.map(log_id_from_wire),
    })
}

pub(crate) fn append_result_to_wire(result: openraft::raft::StreamAppendResult<Types>) -> wire::AppendResponse {
    use openraft::raft::StreamAppendError;
    use wire::append_response::Result as Answer;
    let answer = match result {
        Ok(last) => Answer::Matched(wire::Matched { last: last.as_ref().map(log_id_to_wire) }),
        Err(StreamAppendError::Conflict(id)) => Answer::Conflict(log_id_to_wire(&id)),
        Err(StreamAppendError::HigherVote(vote)) => Answer::HigherVote(vote_to_wire(&vote)),
    };
    wire::AppendResponse { result: Some(answer) }
}

pub(crate) fn append_result_from_wire(
    response: wire::AppendResponse,
) -> Result<openraft::raft::StreamAppendResult<Types>, DecodeError> {
    use openraft::raft::StreamAppendError;
    use wire::append_response::Result as Answer;
    Ok(match response.result.ok_or(DecodeError::Missing("its result"))? {
        Answer::Matched(matched) => Ok(matched.last.map(log_id_from_wire)),
        Answer::Conflict(id) => Err(StreamAppendError::Conflict(log_id_from_wire(id))),
        Answer::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from_wire(vote))),
    })
}

pub(crate) fn snapshot_meta_from_wire(
    last: Option<wire::LogId>,
    membership: Option<wire::StoredMembership>,
) -> Result<SnapshotMetaOf<Types>, DecodeError> {
    Ok(SnapshotMetaOf::<Types> {
        last_log_id: last.map(log_id_from_wire),
        last_membership: membership.map(stored_from_wire).transpose()?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_entry(payload: EntryPayload<Proposal, u64, Node>) {
        let entry = EntryOf::<Types> { log_id: log_id(3, 7), payload };
        assert_eq!(entry_from_log(entry_to_log(&entry)).unwrap(), entry);
        assert_eq!(entry_from_wire(entry_to_wire(&entry)).unwrap(), entry);
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let node = Node { name: "a".into(), peer_address: "127.0.0.1:1".into(), ..Default::default() };
        check_entry(EntryPayload::Blank);
        check_entry(EntryPayload::Normal(Proposal(Bytes::from_static(&[TAG_COMMAND, 9, 9]))));
        let membership = Membership::new(vec![BTreeSet::from([1, 2])], BTreeMap::from([(1, node.clone()), (2, node)]));
        check_entry(EntryPayload::Membership(membership.unwrap()));
    }

    #[test]
    fn votes_come_back_as_they_were() {
        for vote in [VoteOf::<Types>::new(4, 9), VoteOf::<Types>::new_committed(u64::MAX, 1)] {
            assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
        }
    }

    #[test]
    fn bad_bytes_are_errors() {
        for bytes in [&[][..], &[7, 1], &[TAG_MEMBERSHIP, 0xff, 0xff]] {
            let entry = LogEntry { id: EntryId { term: 1, node: 0, index: 1 }, payload: Bytes::copy_from_slice(bytes) };
            assert!(entry_from_log(entry).is_err(), "{bytes:?}");
        }
        assert!(Proposal::from_wire(Bytes::from_static(&[TAG_BLANK])).is_none());
        assert!(append_from_wire(wire::AppendRequest::default()).is_err());
    }
}
