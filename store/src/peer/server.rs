//! What a member answers to its peers.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};
use quorate_proto::raft::peer_server::Peer;
use quorate_proto::raft::{self as wire, state_hash_response};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Peers, Presence, line_server};
use crate::command::{Attributes, Command};
use crate::error::StoreError;
use crate::mvcc::Engine;
use crate::node::leases::KeepAlive;
use crate::node::{Store, compare};
use crate::raft::snapshot::{Area, Directory, Receiver};
use crate::raft::{self, Applied, Checkpoint, MessageError, Proposal, ProposeError, Raft, ReadIndexError};
use crate::wal::Wal;

/// Chunks of a snapshot that wait for the disk.
const SNAPSHOT_QUEUE: usize = 4;

/// How long this member may take to apply what a question is about.
const APPLY_WAIT: Duration = Duration::from_secs(1);

/// How long this member may take to apply what the state that it was sent is of.
const RESEED_WAIT: Duration = Duration::from_secs(60);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a member answers: rare questions through gRPC, the others over lines.
pub(crate) struct PeerService {
    pub(crate) peers: Arc<Peers>,
    pub(crate) raft: Raft,
    pub(crate) area: Arc<Area>,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) presence: Arc<Presence>,
    /// Ends the streams that live as long as the process.
    pub(crate) cancel: CancellationToken,
    pub(crate) memory: Memory,
    pub(crate) engine: Arc<Engine>,
    /// The member that this is the door of, once it has started.
    pub(crate) store: Arc<OnceLock<Store>>,
}

impl PeerService {
    pub(super) fn admit(&self, origin: Option<&wire::Origin>) -> Result<u64, Status> {
        self.peers.admit(origin)
    }

    fn store(&self) -> Result<&Store, Status> {
        self.store.get().ok_or_else(|| Status::unavailable("quorate: this member is starting"))
    }
}

/// Whether this member still holds what it once acknowledged. One that does not must
/// neither vote nor acknowledge again: a quorum that counts it could forget.
pub(crate) struct Memory {
    wal: Wal,
    applied: watch::Receiver<Applied>,
    lost: AtomicBool,
}

impl Memory {
    pub(crate) fn new(wal: Wal, applied: watch::Receiver<Applied>) -> Self {
        Self { wal, applied, lost: AtomicBool::new(false) }
    }

    /// A heartbeat begins after what its leader knows this member to hold.
    fn check_heartbeat(&self, request: &wire::AppendRequest) -> Result<(), Status> {
        let (Some(vote), Some(held)) = (&request.vote, &request.previous) else { return self.check() };
        // In this order: what a newer leader cuts off was cut off under a newer vote.
        let end = self.wal.state().last.map_or(0, |id| id.index).max(self.applied.borrow().index);
        let own_term = raft::vote_term(&self.wal).unwrap_or(u64::MAX);
        if vote.term >= own_term && held.index > end && !self.lost.swap(true, Ordering::Relaxed) {
            tracing::error!(
                acknowledged = held.index,
                held = end,
                "this member has lost its log and takes no part any more; restore its data \
                 directory, or replace it by a member of another name"
            );
        }
        self.check()
    }

    fn check(&self) -> Result<(), Status> {
        match self.lost.load(Ordering::Relaxed) {
            true => Err(Status::failed_precondition("quorate: this member has lost its log")),
            false => Ok(()),
        }
    }
}

fn refused(error: MessageError) -> Status {
    match error {
        MessageError::Invalid(error) => Status::invalid_argument(format!("quorate: {error}")),
        MessageError::Stopped(reason) => Status::unavailable(format!("quorate: {reason}")),
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type PresenceStream = Answers<wire::PresenceResponse>;

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let mut request = request.into_inner();
        self.admit(request.origin.as_ref())?;
        self.memory.check()?;
        // The lease protects a leader that is there. This one is known not to be.
        request.leadership_transfer |= self.presence.leader_is_gone();
        self.raft.vote(request).await.map(Response::new).map_err(refused)
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.origin.as_ref())?;
        self.memory.check()?;
        self.raft.pre_vote(request).await.map(Response::new).map_err(refused)
    }

    async fn offer_snapshot(
        &self,
        request: Request<wire::SnapshotHeader>,
    ) -> Result<Response<wire::SnapshotWanted>, Status> {
        let header = request.into_inner();
        self.admit(header.origin.as_ref())?;
        let Some(turn) = self.area.turn() else {
            return Err(Status::unavailable("quorate: this member is receiving another snapshot"));
        };
        let area = Arc::clone(&self.area);
        let missing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            area.missing(&header.files)
        });
        let files = missing
            .await
            .map_err(|error| Status::internal(format!("quorate: {error}")))?
            .map_err(|error| Status::data_loss(format!("quorate: {error}")))?;
        Ok(Response::new(wire::SnapshotWanted { files }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        use wire::snapshot_chunk::Part;
        let mut chunks = request.into_inner();
        let Some(Part::Header(header)) = chunks.message().await?.and_then(|chunk| chunk.part) else {
            return Err(Status::invalid_argument("quorate: a snapshot does not begin with its header"));
        };
        let from = self.admit(header.origin.as_ref())?;
        let (files, missing) = (header.files.len(), header.following.len());
        tracing::info!(from = format!("{from:x}"), files, missing, "receiving a snapshot");
        let data = chunks.map(|chunk| match chunk?.part {
            Some(Part::Data(data)) => Ok(data),
            _ => Err(Status::invalid_argument("quorate: a snapshot has two headers")),
        });
        let directory = self.receive(header.clone(), data).await?;
        self.raft.install_snapshot(header, directory).await.map(Response::new).map_err(refused)
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.origin.as_ref())?;
        self.raft.handle_transfer_leader(request).await.map(Response::new).map_err(refused)
    }

    async fn presence(
        &self,
        request: Request<wire::PresenceRequest>,
    ) -> Result<Response<Self::PresenceStream>, Status> {
        self.admit(request.into_inner().origin.as_ref())?;
        let first = wire::PresenceResponse { incarnation: self.peers.identity().incarnation };
        let rest = stream::pending().take_until(self.cancel.clone().cancelled_owned());
        Ok(Response::new(Box::pin(stream::once(async move { Ok(first) }).chain(rest))))
    }

    async fn state_hash(
        &self,
        request: Request<wire::StateHashRequest>,
    ) -> Result<Response<wire::StateHashResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.origin.as_ref())?;
        let mut applied = self.memory.applied.clone();
        let reached = raft::applied_at_least(&mut applied, request.index);
        if !matches!(tokio::time::timeout(APPLY_WAIT, reached).await, Ok(Ok(()))) {
            return Ok(Response::new(wire::StateHashResponse { answer: None }));
        }
        let hash = match request.revision {
            0 => self.engine.hash_after(request.index).map(Ok),
            revision => compare::contents(&self.engine, revision, request.compact_revision).await,
        };
        let answer = hash.map(|hash| match hash {
            Ok(hash) => state_hash_response::Answer::Hash(hash),
            Err(reason) => state_hash_response::Answer::Damaged(reason),
        });
        Ok(Response::new(wire::StateHashResponse { answer }))
    }

    async fn reseed(
        &self,
        request: Request<Streaming<wire::ReseedChunk>>,
    ) -> Result<Response<wire::ReseedResponse>, Status> {
        use wire::reseed_chunk::Part;
        let mut chunks = request.into_inner();
        let Some(Part::Header(header)) = chunks.message().await?.and_then(|chunk| chunk.part) else {
            return Err(Status::invalid_argument("quorate: a state lacks its header"));
        };
        let from = self.admit(header.origin.as_ref())?;
        tracing::warn!(from = format!("{from:x}"), "this member differs from the majority: replacing its state");
        let data = chunks.map(|chunk| match chunk?.part {
            Some(Part::Data(data)) => Ok(data),
            _ => Err(Status::invalid_argument("quorate: a state has two headers")),
        });
        let following = (0..u32::try_from(header.files.len()).unwrap_or(u32::MAX)).collect();
        let files = wire::SnapshotHeader { files: header.files, following, ..Default::default() };
        let directory = self.receive(files, data).await?;
        let mut applied = self.memory.applied.clone();
        let reached = raft::applied_at_least(&mut applied, header.index);
        if !matches!(tokio::time::timeout(RESEED_WAIT, reached).await, Ok(Ok(()))) {
            return Err(Status::unavailable("quorate: this member is behind the state that it was sent"));
        }
        let checkpoint = Checkpoint { index: header.index, directory };
        let reseeded = self.raft.reseed(checkpoint, self.memory.wal.clone()).await;
        reseeded.map_err(|error| Status::internal(format!("quorate: {error}")))?;
        Ok(Response::new(wire::ReseedResponse {}))
    }

    async fn leader_gone(
        &self,
        request: Request<wire::LeaderGoneRequest>,
    ) -> Result<Response<wire::LeaderGoneResponse>, Status> {
        let request = request.into_inner();
        let peer = self.admit(request.origin.as_ref())?;
        Ok(Response::new(wire::LeaderGoneResponse { agreed: self.presence.agree(peer, &request).await }))
    }

    async fn describe(&self, _: Request<wire::DescribeRequest>) -> Result<Response<wire::DescribeResponse>, Status> {
        let identity = self.peers.identity();
        Ok(Response::new(wire::DescribeResponse {
            cluster_id: identity.cluster_id,
            generation: identity.generation,
            members: self.peers.members().describe(),
        }))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.cluster_id != self.peers.identity().cluster_id {
            return Err(Status::failed_precondition("etcdserver: cluster ID mismatch"));
        }
        let attributes =
            Attributes { directory: request.directory, name: request.name, client_urls: request.client_urls };
        let refusal = match self.store()?.tie(request.member, &attributes).await {
            Ok(()) => String::new(),
            Err(StoreError::Refused(refused)) => refused.to_string(),
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(wire::JoinResponse { refusal }))
    }

    async fn change_members(
        &self,
        request: Request<wire::ChangeMembersRequest>,
    ) -> Result<Response<wire::ChangeMembersResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.origin.as_ref())?;
        self.store()?.answer_change(request).await.map(Response::new)
    }
}

/// What comes over lines. Its sender is admitted already, unless it says otherwise.
impl PeerService {
    /// A request of a stream of entries, if `origin` may send it.
    pub(super) fn append_request(&self, origin: &wire::Origin, body: Bytes) -> Result<wire::AppendRequest, Status> {
        self.memory.check()?;
        self.admit(Some(origin))?;
        let request: wire::AppendRequest = line_server::decoded(body)?;
        self.presence.hear(request.vote.map_or(0, |vote| vote.term));
        Ok(request)
    }

    /// Answers entries in their order.
    pub(super) fn appends(
        &self,
        requests: impl Stream<Item = wire::AppendRequest> + Send + 'static,
    ) -> impl Stream<Item = Result<wire::AppendResponse, Status>> + Send + 'static {
        self.raft.append(requests).map(|answer| answer.map_err(refused))
    }

    pub(super) async fn heartbeat(&self, request: wire::AppendRequest) -> Result<wire::AppendResponse, Status> {
        self.memory.check_heartbeat(&request)?;
        self.presence.hear(request.vote.map_or(0, |vote| vote.term));
        self.raft.heartbeat(request).await.map_err(refused)
    }

    /// Answers once all commands are applied here.
    pub(super) async fn propose(&self, request: wire::ProposeRequest) -> Result<wire::ProposeResponse, Status> {
        let bytes = request.commands.iter().map(Bytes::len).sum();
        let mut proposals = Vec::with_capacity(request.commands.len());
        for bytes in request.commands {
            // Checked here: an entry that no member can read would stop them all.
            let proposal = Proposal::from_wire(bytes)
                .filter(|proposal| Command::decode(proposal.command()).is_ok())
                .ok_or_else(|| Status::invalid_argument("quorate: a forwarded command does not decode"))?;
            proposals.push(proposal);
        }
        // The sender gives up before long; until then it is better served by waiting.
        let room = self.raft.room(bytes).await.ok_or_else(|| Status::unavailable("quorate: the store is closing"))?;
        let index = self.raft.propose_all(proposals, room).await.map_err(|error| match error {
            ProposeError::NotLeader => not_leader(),
            other => Status::unavailable(format!("quorate: {other}")),
        })?;
        Ok(wire::ProposeResponse { index })
    }

    pub(super) async fn read_index(&self) -> Result<wire::ReadIndexResponse, Status> {
        match self.raft.read_index().await {
            Ok(index) => Ok(wire::ReadIndexResponse { index }),
            Err(ReadIndexError::NotLeader) => Err(not_leader()),
            Err(other) => Err(Status::unavailable(format!("quorate: {other}"))),
        }
    }

    pub(super) async fn renew(&self, request: wire::RenewRequest) -> Result<wire::RenewResponse, Status> {
        let renewed = match request.patient {
            true => {
                let waiting = request.leases.iter().map(|id| self.keep_alive.renew(*id));
                try_join_all(waiting).await.map(|ttls| ttls.into_iter().map(Some).collect())
            }
            false => self.keep_alive.renew_all(&request.leases).await,
        };
        let ttls = renewed.map_err(cannot_say)?.into_iter().map(|ttl| ttl.unwrap_or(-1)).collect();
        Ok(wire::RenewResponse { ttls })
    }

    pub(super) async fn time_left(&self, request: wire::TimeLeftRequest) -> Result<wire::TimeLeftResponse, Status> {
        let (left, index) = self.keep_alive.time_left(request.lease).await.map_err(cannot_say)?;
        Ok(wire::TimeLeftResponse { left: left.unwrap_or(-1), index })
    }

    /// Writes the files of a checkpoint as they arrive.
    async fn receive(
        &self,
        header: wire::SnapshotHeader,
        data: impl Stream<Item = Result<Bytes, Status>> + Send,
    ) -> Result<Directory, Status> {
        let Some(_turn) = self.area.turn() else {
            return Err(Status::unavailable("quorate: this member is receiving another snapshot"));
        };
        let (sender, mut queue) = mpsc::channel::<Bytes>(SNAPSHOT_QUEUE);
        let area = Arc::clone(&self.area);
        let writer = tokio::task::spawn_blocking(move || {
            let mut receiver = Receiver::new(&area, &header)?;
            while let Some(data) = queue.blocking_recv() {
                receiver.write(&data)?;
            }
            receiver.finish()
        });
        let mut data = std::pin::pin!(data);
        while let Some(data) = data.next().await.transpose()? {
            if sender.send(data).await.is_err() {
                // The writer has given up; it says why.
                break;
            }
        }
        drop(sender);
        let written = writer.await.map_err(|error| Status::internal(format!("quorate: {error}")))?;
        written.map_err(|error| Status::data_loss(format!("quorate: {error}")))
    }
}

/// The peer asks again, whoever leads then.
fn cannot_say(error: StoreError) -> Status {
    match error {
        StoreError::NotLeader => not_leader(),
        other => Status::unavailable(format!("quorate: {other}")),
    }
}

fn not_leader() -> Status {
    Status::failed_precondition("etcdserver: not leader")
}
