//! Consensus. Everything that knows the Raft library is in this folder; the rest
//! of the store sees [`Raft`].
//!
//! Always: reads ask a quorum (ReadIndex), never a lease; a restarted leader
//! stands for election again, because its unflushed tail may be gone.

mod founded;
#[cfg(test)]
pub(crate) mod fuzzing;
mod log_store;
mod network;
mod reign;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod snapshot;
mod state_machine;
mod types;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::alias::{LogIdOf, WatchReceiverOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError};
use openraft::network::{NetSnapshot, RaftNetworkFactory};
use openraft::raft::{Precondition, TransferLeaderError, TransferLeaderRequest, VoteRequest};
use openraft::{ChangeMembers, EntryPayload, Instant, Membership, RaftMetrics, ReadPolicy, SnapshotPolicy};
use quorate_proto::raft as wire;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

pub(crate) use self::founded::{founded, replay};
pub(crate) use self::network::Factory;
pub(crate) use self::reign::{Reign, Role};
pub(crate) use self::state_machine::{Applied, Flushed, StateMachine, Waiters};
use self::types::{DecodeError, Told, Types};
pub(crate) use self::types::{Node, Proposal};
use crate::error::StoreError;
use crate::wal::Wal;

/// Entries of one message and of one write: the largest batch the library makes.
const MAX_BATCH_ENTRIES: u64 = 4096;

/// The log is purged in steps of at least this many entries.
const PURGE_STEP: u64 = 1024;

/// How consensus keeps time, and how much of the past.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) heartbeat: Duration,
    pub(crate) election_min: Duration,
    pub(crate) election_max: Duration,
    /// Entries kept behind a snapshot, so that a member that was away for a moment
    /// catches up by entries and not by files.
    pub(crate) kept_entries: u64,
}

/// What consensus says of itself at one moment.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) reign: Reign,
    pub(crate) last_index: u64,
    pub(crate) committed: u64,
    pub(crate) applied: u64,
    pub(crate) snapshot: u64,
    /// Entries up to here are gone from the log.
    pub(crate) purged: u64,
    /// On a leader: how long ago a quorum last answered.
    pub(crate) quorum_age: Option<Duration>,
    /// All members, and whether they vote.
    pub(crate) members: BTreeMap<u64, (Node, bool)>,
    /// On a leader: how long ago each peer last answered.
    pub(crate) heard: BTreeMap<u64, Duration>,
    /// On a leader: what each peer is known to hold.
    pub(crate) matched: BTreeMap<u64, u64>,
}

impl View {
    pub(crate) fn node(&self, id: u64) -> Option<&Node> {
        self.members.get(&id).map(|(node, _)| node)
    }
}

/// Why a proposal was not applied through this member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProposeError {
    /// It is in no log.
    #[error("this member does not lead")]
    NotLeader,
    /// It may still be committed.
    #[error("leadership changed before the entry was committed")]
    Unknown,
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

impl From<ProposeError> for StoreError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader => Self::NotLeader,
            ProposeError::Unknown => Self::Timeout,
            ProposeError::Stopped(_) => Self::Stopped,
        }
    }
}

/// Why the members were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("this member does not lead")]
    NotLeader,
    /// The members are others than the caller believes, or a change is under way.
    #[error("another change came first")]
    Busy,
    #[error("consensus refuses the change: {0}")]
    Refused(String),
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// Why no read index was obtained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadIndexError {
    #[error("this member does not lead")]
    NotLeader,
    #[error("no quorum answered")]
    NoQuorum,
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

impl From<ReadIndexError> for StoreError {
    fn from(error: ReadIndexError) -> Self {
        match error {
            ReadIndexError::NotLeader => Self::NotLeader,
            ReadIndexError::NoQuorum => Self::Timeout,
            ReadIndexError::Stopped(_) => Self::Stopped,
        }
    }
}

/// Why a peer's message was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a peer's message is not valid")]
    Invalid(#[from] DecodeError),
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// The state machine's files, and the entry that they are of.
pub(crate) struct Checkpoint {
    pub(crate) index: u64,
    pub(crate) directory: snapshot::Directory,
}

/// Memory set aside for proposals, given back by the last who holds it.
pub(crate) type Room = Arc<OwnedSemaphorePermit>;

/// Consensus on this member.
#[derive(Clone)]
pub(crate) struct Raft {
    core: openraft::Raft<Types, StateMachine>,
    may_lead: Arc<AtomicBool>,
    /// Bytes of proposals under way on this member: until the disk has them they are in memory,
    /// also when nobody waits for them any more.
    room: Arc<Semaphore>,
    room_bytes: u32,
}

impl Raft {
    /// Starts from what log and state machine hold, with room for proposals of so many bytes.
    /// The member takes part in elections from here on.
    ///
    /// # Errors
    /// When the log or the state machine cannot be read, or the timing is impossible.
    pub(crate) async fn start(
        id: u64,
        timing: Timing,
        network: Factory,
        wal: Wal,
        machine: StateMachine,
        room_bytes: usize,
    ) -> io::Result<Self> {
        Self::start_as(id, config(timing), network, wal, machine, room_bytes).await
    }

    async fn start_as(
        id: u64,
        config: openraft::Config,
        network: impl RaftNetworkFactory<Types, Network: NetSnapshot<Types, SnapshotData = snapshot::Directory>>,
        wal: Wal,
        machine: StateMachine,
        room_bytes: usize,
    ) -> io::Result<Self> {
        let config = config.validate().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let log = log_store::LogStore::new(wal);
        let core = openraft::Raft::new(id, Arc::new(config), network, log, machine).await.map_err(io::Error::other)?;
        let room_bytes = u32::try_from(room_bytes).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(room_bytes as usize));
        Ok(Self { core, may_lead: Arc::new(AtomicBool::new(true)), room, room_bytes })
    }

    /// Writes the first membership. Every member of a new cluster writes the same, so a
    /// member that heard of it from a faster one has nothing left to write.
    ///
    /// # Errors
    /// When consensus has stopped.
    pub(crate) async fn initialize(&self, members: BTreeMap<u64, Node>) -> io::Result<()> {
        use openraft::errors::{InitializeError, RaftError};
        match self.core.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// # Errors
    /// When consensus has stopped.
    pub(crate) async fn is_initialized(&self) -> io::Result<bool> {
        self.core.is_initialized().await.map_err(io::Error::other)
    }

    /// The members as the log has them, also before any view says so.
    ///
    /// # Errors
    /// When consensus has stopped.
    pub(crate) async fn members(&self) -> io::Result<BTreeMap<u64, (Node, bool)>> {
        let read = |state: &openraft::RaftState<Types>| members_of(state.membership_state.effective().membership());
        self.core.with_raft_state(read).await.map_err(io::Error::other)
    }

    pub(crate) fn view(&self) -> View {
        view(&self.core.metrics().borrow_watched())
    }

    /// As [`Reign::may_act`]: at the cost of no view.
    pub(crate) fn may_act(&self, patience: Duration) -> bool {
        let metrics = self.core.metrics();
        let metrics = metrics.borrow_watched();
        Reign::of(&metrics).may_act(quorum_age(&metrics), patience)
    }

    /// Tells when another leads, or the members are others; not of every entry.
    pub(crate) fn changes(&self) -> Changes {
        Changes { metrics: self.core.metrics(), reign: None }
    }

    /// The last entry that a quorum is known to hold.
    pub(crate) fn committed(&self) -> u64 {
        self.core.metrics().borrow_watched().cluster_committed.map_or(0, |id| id.index)
    }

    /// Waits for room for proposals of so many bytes; none when the store is closing. Cancel-safe.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room> {
        Arc::clone(&self.room).acquire_many_owned(self.permits(bytes)).await.ok().map(Arc::new)
    }

    /// What so many bytes take of the room: a larger message waits for all of it.
    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.room_bytes)
    }

    /// Proposes on the leader; returns the entry's index once it is applied here. `room` is
    /// held until the entry is applied or given up, whether or not the caller still waits.
    pub(crate) async fn propose(&self, proposal: Proposal, room: Room) -> Result<u64, ProposeError> {
        let (told, outcome) = oneshot::channel();
        if let Err(fatal) = self.core.client_write_ff(proposal, Some(Told { told, _room: room })).await {
            return Err(ProposeError::Stopped(fatal.to_string()));
        }
        match outcome.await {
            Ok(Ok(done)) => Ok(done.log_id.index),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(ProposeError::NotLeader),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// Proposes on the leader, in this order; returns the index of the last once it is applied
    /// here, and with it all the others that were accepted: who asked for one knows by applying
    /// it, and asks again if it did not come.
    pub(crate) async fn propose_all(&self, mut proposals: Vec<Proposal>, room: Room) -> Result<u64, ProposeError> {
        let Some(last) = proposals.pop() else { return Ok(0) };
        for proposal in proposals {
            let accepted = self.core.client_write_ff(proposal, None).await;
            accepted.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))?;
        }
        self.propose(last, room).await
    }

    /// On the leader: makes `members` (and whether they vote) the members, if they are still
    /// those of entry `at`. One voter at most may come or go. Returns the entry that says
    /// so, once it is applied here.
    pub(crate) async fn change_members(
        &self,
        members: BTreeMap<u64, (Node, bool)>,
        at: Applied,
    ) -> Result<u64, ChangeError> {
        let unchanged =
            Precondition::LastMembershipLogId { last_membership_log_id: Some(types::log_id(at.term, at.index)) };
        let known = self.view().members;
        let moved: BTreeMap<u64, Node> = members
            .iter()
            .filter(|(id, (node, _))| known.get(id).is_some_and(|(before, _)| before != node))
            .map(|(id, (node, _))| (*id, node.clone()))
            .collect();
        let outcome = if moved.is_empty() {
            let voters = members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id).collect();
            let nodes: BTreeMap<u64, Node> = members.into_iter().map(|(id, (node, _))| (id, node)).collect();
            let next = Membership::new(vec![voters], nodes).map_err(|error| ChangeError::Refused(error.to_string()))?;
            self.core.append_membership(next, EntryPayload::Blank, [unchanged]).await
        } else {
            self.core.change_membership_if(ChangeMembers::SetNodes(moved), true, [unchanged]).await
        };
        match outcome {
            Ok(done) => Ok(done.log_id.index),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(ChangeError::NotLeader),
            Err(RaftError::APIError(
                ClientWriteError::PreconditionFailed(_) | ClientWriteError::LogEntryDiscarded(_),
            )) => Err(ChangeError::Busy),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => match error {
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                    Err(ChangeError::Busy)
                }
                error => Err(ChangeError::Refused(error.to_string())),
            },
            Err(RaftError::Fatal(fatal)) => Err(ChangeError::Stopped(fatal.to_string())),
        }
    }

    /// On the leader: an index such that every write acknowledged before the call is at
    /// or below it. One fresh round of a quorum; calls at the same time share it.
    pub(crate) async fn read_index(&self) -> Result<u64, ReadIndexError> {
        match self.core.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(ReadIndexError::NotLeader),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadIndexError::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(ReadIndexError::Stopped(fatal.to_string())),
        }
    }

    /// Whether this member may stand for election.
    pub(crate) fn allow_elections(&self, allowed: bool) {
        self.may_lead.store(allowed, Ordering::Relaxed);
        self.core.runtime_config().elect(allowed);
    }

    pub(crate) fn may_lead(&self) -> bool {
        self.may_lead.load(Ordering::Relaxed)
    }

    /// Stands for election at once, whatever the timers say, if it may.
    pub(crate) async fn elect(&self) {
        if !self.may_lead() {
            return;
        }
        // Stopped: there is nothing to elect.
        let _ = self.core.trigger().elect(false).await;
    }

    /// Asks `target` to take over. Whether it did shows in the view.
    pub(crate) async fn transfer_leader(&self, target: u64) {
        // Stopped: there is no leadership to hand over.
        let _ = self.core.trigger().transfer_leader(target).await;
    }

    /// Makes a snapshot point, up to which (less a reserve) the log may go.
    pub(crate) async fn make_snapshot(&self) {
        // Stopped: the log stays as it is.
        let _ = self.core.trigger().snapshot().await;
    }

    /// Lets the log go up to `index`, which a snapshot covers.
    pub(crate) async fn purge_log(&self, index: u64) {
        // Stopped: the log stays as it is.
        let _ = self.core.trigger().purge_log(index).await;
    }

    /// The files of the state machine as it is now.
    ///
    /// # Errors
    /// When consensus has stopped, or the database or the disk refuses.
    pub(crate) async fn checkpoint(&self) -> io::Result<Checkpoint> {
        let made = self.core.with_state_machine(|machine| Box::pin(machine.checkpoint())).await;
        let snapshot = made.map_err(io::Error::other)??;
        let index = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        Ok(Checkpoint { index, directory: snapshot.snapshot })
    }

    /// Replaces the state machine by another member's checkpoint of an entry that this
    /// member has applied, and applies again what came after it.
    ///
    /// # Errors
    /// When the log does not reach back so far, or the database or the disk refuses.
    pub(crate) async fn reseed(&self, checkpoint: Checkpoint, wal: Wal) -> io::Result<()> {
        let done = self
            .core
            .with_state_machine(move |machine| Box::pin(std::future::ready(machine.reseed(&checkpoint, &wal))));
        done.await.map_err(io::Error::other)?
    }

    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.core.shutdown().await {
            tracing::warn!(%error, "consensus did not end by itself");
        }
    }

    // ---------------------------------------------------- messages from peers

    /// Answers entries in their order; ends at the first message that is not valid.
    pub(crate) fn append(
        &self,
        requests: impl Stream<Item = wire::AppendRequest> + Send + 'static,
    ) -> impl Stream<Item = Result<wire::AppendResponse, MessageError>> + Send + 'static {
        let requests = requests.map(types::append_from_wire).scan((), |(), request| {
            let request = request.inspect_err(|error| tracing::warn!(%error, "refused a peer's entries"));
            std::future::ready(request.ok())
        });
        self.core.stream_append(requests).map(|result| match result {
            Ok(result) => Ok(types::append_result_to_wire(result)),
            Err(fatal) => Err(MessageError::Stopped(fatal.to_string())),
        })
    }

    pub(crate) async fn heartbeat(&self, request: wire::AppendRequest) -> Result<wire::AppendResponse, MessageError> {
        let request = types::append_from_wire(request)?;
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let answer = self.core.append_entries(request).await.map_err(stopped)?;
        Ok(types::append_result_to_wire(match (answer, previous) {
            // Without a previous entry there is nothing to conflict with.
            (openraft::raft::AppendEntriesResponse::Conflict, None) => Ok(None),
            (answer, previous) => answer.into_stream_result(previous, last),
        }))
    }

    pub(crate) async fn vote(&self, request: wire::VoteRequest) -> Result<wire::VoteResponse, MessageError> {
        let answer = self.core.vote(vote_request(request)?).await.map_err(stopped)?;
        Ok(vote_response(&answer))
    }

    pub(crate) async fn pre_vote(&self, request: wire::VoteRequest) -> Result<wire::VoteResponse, MessageError> {
        let answer = self.core.pre_vote(vote_request(request)?).await.map_err(stopped)?;
        Ok(vote_response(&answer))
    }

    pub(crate) async fn install_snapshot(
        &self,
        header: wire::SnapshotHeader,
        directory: snapshot::Directory,
    ) -> Result<wire::SnapshotResponse, MessageError> {
        let vote = types::required_vote(header.vote)?;
        let meta = types::snapshot_meta_from_wire(header.last_log_id, header.membership)?;
        let snapshot = openraft::Snapshot { meta, snapshot: directory };
        let answer = self
            .core
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|fatal| MessageError::Stopped(fatal.to_string()))?;
        Ok(wire::SnapshotResponse { vote: Some(types::vote_to_wire(&answer.vote)) })
    }

    pub(crate) async fn handle_transfer_leader(
        &self,
        request: wire::TransferLeaderRequest,
    ) -> Result<wire::TransferLeaderResponse, MessageError> {
        let from = types::required_vote(request.from)?;
        let request = TransferLeaderRequest::new(from, request.to, request.last_log_id.map(types::log_id_from_wire));
        let answer = self
            .core
            .handle_transfer_leader(request)
            .await
            .map_err(|fatal| MessageError::Stopped(fatal.to_string()))?;
        Ok(match answer {
            Ok(()) => wire::TransferLeaderResponse::default(),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                wire::TransferLeaderResponse { actual_vote: Some(types::vote_to_wire(&actual)), ..Default::default() }
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => wire::TransferLeaderResponse {
                log_not_flushed: true,
                actual_log_id: actual.as_ref().map(types::log_id_to_wire),
                ..Default::default()
            },
        })
    }
}

/// Says that the view has changed.
pub(crate) struct Changes {
    metrics: WatchReceiverOf<Types, RaftMetrics<Types>>,
    /// What was told last.
    reign: Option<Reign>,
}

impl Changes {
    /// The next view; `None` once consensus has ended. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<View> {
        loop {
            self.metrics.changed().await.ok()?;
            let metrics = self.metrics.borrow_watched();
            let reign = Some(Reign::of(&metrics));
            if self.reign != reign {
                self.reign = reign;
                return Some(view(&metrics));
            }
        }
    }
}

/// The id of the last entry a member holds, as votes compare it: term, then index.
pub(crate) fn log_order(id: Option<&wire::LogId>) -> (u64, u64) {
    id.map_or((0, 0), |id| (id.term, id.index))
}

/// Waits until this member has applied `index`. Cancel-safe.
///
/// # Errors
/// When the state machine is gone.
pub(crate) async fn applied_at_least(
    applied: &mut watch::Receiver<Applied>,
    index: u64,
) -> Result<(), watch::error::RecvError> {
    applied.wait_for(|applied| applied.index >= index).await.map(|_| ())
}

/// The members of a membership as the state machine keeps it, and whether they vote.
pub(crate) fn decode_members(stored: Option<Bytes>) -> Result<BTreeMap<u64, (Node, bool)>, DecodeError> {
    Ok(members_of(types::decode_stored(stored)?.membership()))
}

fn members_of(membership: &Membership<u64, Node>) -> BTreeMap<u64, (Node, bool)> {
    let voters: Vec<u64> = membership.voter_ids().collect();
    membership.nodes().map(|(id, node)| (*id, (node.clone(), voters.contains(id)))).collect()
}

/// The term of the vote that the log holds: 0 without one, none if it does not decode.
pub(crate) fn vote_term(wal: &Wal) -> Option<u64> {
    match wal.vote() {
        Some(bytes) => types::decode_vote(bytes).ok().map(|vote| vote.leader_id.term),
        None => Some(0),
    }
}

fn config(timing: Timing) -> openraft::Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        // A restarted leader may have lost entries it acknowledged by itself; restored
        // without a vote it would write others under the same ids.
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        // At least lease and election timeout, so that a leader without a quorum falls
        // silent long enough for the others to elect.
        quorum_loss_probe_interval: Some(millis(timing.election_max).saturating_mul(2)),
        max_payload_entries: MAX_BATCH_ENTRIES,
        max_append_entries: Some(MAX_BATCH_ENTRIES),
        // The log goes only up to what the state machine has flushed: see `node`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: timing.kept_entries,
        purge_batch_size: PURGE_STEP.min(timing.kept_entries.max(1)),
        broadcast_submitted_on_append: Some(true),
        allow_log_reversion: Some(false),
        ..openraft::Config::default()
    }
}

fn view(metrics: &RaftMetrics<Types>) -> View {
    let index = |id: &Option<LogIdOf<Types>>| id.map_or(0, |id| id.index);
    View {
        reign: Reign::of(metrics),
        last_index: metrics.last_log_index.unwrap_or(0),
        committed: index(&metrics.cluster_committed),
        applied: index(&metrics.last_applied),
        snapshot: index(&metrics.snapshot),
        purged: index(&metrics.purged),
        quorum_age: quorum_age(metrics),
        heard: metrics
            .heartbeat
            .iter()
            .flatten()
            .filter_map(|(id, instant)| Some((*id, instant.as_ref()?.elapsed())))
            .collect(),
        members: members_of(metrics.membership_config.membership()),
        matched: metrics
            .replication
            .iter()
            .flatten()
            .map(|(id, matched)| (*id, matched.map_or(0, |id| id.index)))
            .collect(),
    }
}

fn quorum_age(metrics: &RaftMetrics<Types>) -> Option<Duration> {
    metrics.last_quorum_acked.as_ref().map(|instant| instant.elapsed())
}

fn vote_request(request: wire::VoteRequest) -> Result<VoteRequest<Types>, DecodeError> {
    Ok(VoteRequest {
        vote: types::required_vote(request.vote)?,
        last_log_id: request.last_log_id.map(types::log_id_from_wire),
        leadership_transfer: request.leadership_transfer,
    })
}

fn vote_response(answer: &openraft::raft::VoteResponse<Types>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(types::vote_to_wire(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(types::log_id_to_wire),
    }
}

fn stopped(error: RaftError<Types>) -> MessageError {
    MessageError::Stopped(error.to_string())
}
