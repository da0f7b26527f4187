//! The Raft library's way to the peers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FusedFuture;
use futures::{FutureExt, Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::alias::{LogIdOf, SnapshotOf, VoteOf};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use quorate_proto::raft as wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::snapshot::{self, Directory};
use super::types::{self, Node, Types};
use crate::peer::{Lane, Line, PeerClient, Peers};
use crate::telemetry::PeerMetrics;

/// The shortest time an RPC gets: the library asks for one heartbeat interval,
/// which a busy machine with two cores does not always keep.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(100);

/// Messages of a snapshot read ahead of the network.
const SNAPSHOT_QUEUE: usize = 4;

/// A snapshot that takes longer is begun anew, with what has arrived: 100 GB at 30 MB/s.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The receiver reads what it has of an attempt before: 100 GB at 300 MB/s.
const OFFER_TIMEOUT: Duration = Duration::from_secs(400);

/// Waits between attempts at a peer that does not answer. A restarted member is
/// wanted back at once, and an attempt on a closed port costs next to nothing.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_LIMIT: Duration = Duration::from_millis(200);

pub(super) type RpcError = RPCError<Types>;

/// Opens connections to peers as the library asks for them.
pub(crate) struct Factory {
    peers: Arc<Peers>,
}

impl Factory {
    pub(crate) fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    fn connection(&self, target: u64, node: &Node, purpose: Purpose) -> Connection {
        let metrics = Arc::new(PeerMetrics::new(target));
        Connection { peers: Arc::clone(&self.peers), target, address: node.peer_address.clone(), purpose, metrics }
    }
}

impl RaftNetworkFactory<Types> for Factory {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &Node) -> Connection {
        self.connection(target, node, Purpose::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> Connection {
        self.connection(target, node, Purpose::Heartbeats)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Node) -> Connection {
        self.connection(target, node, Purpose::Entries)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Entries,
    Heartbeats,
}

/// The way to one peer.
pub(crate) struct Connection {
    peers: Arc<Peers>,
    target: u64,
    address: String,
    purpose: Purpose,
    metrics: Arc<PeerMetrics>,
}

impl Connection {
    fn client(&self, lane: Lane) -> PeerClient {
        self.peers.client(self.target, &self.address, lane)
    }

    fn line(&self, lane: Lane) -> Line {
        self.peers.line(self.target, &self.address, lane)
    }

    fn origin(&self) -> wire::Origin {
        self.peers.origin(self.target)
    }

    async fn heartbeat(
        &self,
        request: AppendEntriesRequest<Types>,
        limit: Duration,
    ) -> Result<StreamAppendResult<Types>, RpcError> {
        let term = request.vote.leader_id.term;
        let (message, line) = (types::append_to_wire(&request), self.line(Lane::Control));
        let asked = Instant::now();
        let (sent, answer) = within(&self.peers, limit, line.heartbeat(&message)).await?;
        self.metrics.sent.increment(sent as u64);
        self.metrics.round_trip.record(asked.elapsed().as_secs_f64());
        checked(&self.peers, self.target, term, answer)
    }

    async fn ballot(
        &self,
        request: VoteRequest<Types>,
        pre: bool,
        limit: Duration,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let mut client = self.client(Lane::Control);
        let message = ballot(Some(self.origin()), &request);
        let answer = if pre {
            within(&self.peers, limit, client.pre_vote(message)).await?
        } else {
            within(&self.peers, limit, client.vote(message)).await?
        }
        .into_inner();
        voted(answer)
    }
}

pub(super) fn ballot(origin: Option<wire::Origin>, request: &VoteRequest<Types>) -> wire::VoteRequest {
    wire::VoteRequest {
        origin,
        vote: Some(types::vote_to_wire(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(types::log_id_to_wire),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn voted(answer: wire::VoteResponse) -> Result<VoteResponse<Types>, RpcError> {
    Ok(VoteResponse {
        vote: types::required_vote(answer.vote).map_err(garbled)?,
        vote_granted: answer.granted,
        last_log_id: answer.last_log_id.map(types::log_id_from_wire),
    })
}

/// The library takes for granted that a log only grows within a reign, and stops if it
/// does not. A member whose data is gone, under its old id, is left alone instead.
fn checked(
    peers: &Peers,
    target: u64,
    term: u64,
    answer: wire::AppendResponse,
) -> Result<StreamAppendResult<Types>, RpcError> {
    let result = types::append_result_from_wire(answer).map_err(garbled)?;
    match &result {
        Ok(Some(last)) => peers.acknowledged(target, term, last.index),
        Err(StreamAppendError::Conflict(at)) if peers.has_lost(target, term, at.index) => {
            let text = format!("member {target:x} has lost entries up to {} that it acknowledged", at.index);
            tracing::error!(peer = format!("{target:x}"), index = at.index, "a member has lost its log");
            return Err(RPCError::Unreachable(Unreachable::from_string(text)));
        }
        _ => {}
    }
    Ok(result)
}

/// What is said of entries one by one, said of all of them, which end at `wanted`.
pub(super) fn whole(result: StreamAppendResult<Types>, wanted: Option<LogIdOf<Types>>) -> AppendEntriesResponse<Types> {
    match result {
        Ok(last) if last == wanted => AppendEntriesResponse::Success,
        Ok(last) => AppendEntriesResponse::PartialSuccess(last),
        Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
        Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
    }
}

async fn within<T>(
    peers: &Peers,
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, RpcError> {
    match tokio::time::timeout(limit.max(MIN_TIMEOUT), call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => {
            peers.hear(&status);
            Err(unreachable_peer(&status))
        }
        Err(elapsed) => Err(RPCError::Network(NetworkError::new(&elapsed))),
    }
}

fn unreachable_peer(status: &Status) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(format!("{:?}: {}", status.code(), status.message())))
}

pub(super) fn garbled(error: types::DecodeError) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = Directory;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcError> {
        let wanted = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        Ok(whole(self.heartbeat(request, option.hard_ttl()).await?, wanted))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // Taken before anything is dialled: the library waits in here after a failure.
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            if self.purpose == Purpose::Heartbeats {
                // The library sends one heartbeat per stream: a plain call does.
                let answer = self.heartbeat(first, option.hard_ttl()).await?;
                return Ok(stream::once(async { Ok(answer) }).boxed());
            }
            let line = self.line(Lane::Entries);
            let (appends, answers) = line.appends().map_err(|status| unreachable_peer(&status))?;
            let (peers, target, term) = (Arc::clone(&self.peers), self.target, first.vote.leader_id.term);
            let requests = stream::once(async { first }).chain(input);
            let metrics = Arc::clone(&self.metrics);
            let sending = Box::pin(async move {
                let mut requests = std::pin::pin!(requests);
                while let Some(request) = requests.next().await {
                    match appends.send(&types::append_to_wire(&request)).await {
                        Ok(sent) => metrics.sent.increment(sent as u64),
                        // The answers end with the same error.
                        Err(_) => return,
                    }
                }
            });
            let inbound = stream::unfold((sending.fuse(), answers), |(mut sending, mut answers)| async move {
                loop {
                    tokio::select! {
                        biased;
                        () = &mut sending, if !sending.is_terminated() => {}
                        answer = answers.next() => return Some((answer?, (sending, answers))),
                    }
                }
            });
            let inbound = inbound.map(move |answer| match answer {
                Ok(answer) => checked(&peers, target, term, answer),
                Err(status) => {
                    peers.hear(&status);
                    Err(unreachable_peer(&status))
                }
            });
            Ok(inbound.boxed())
        })
    }

    async fn vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RpcError> {
        self.ballot(request, false, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        self.ballot(request, true, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Directory>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client(Lane::Snapshots);
        let path = snapshot.snapshot.path().to_owned();
        let described = tokio::task::spawn_blocking(move || snapshot::describe(&path)).await;
        let files = match described.map_err(std::io::Error::other).flatten() {
            Ok(files) => files,
            Err(error) => return Err(StreamingError::Network(NetworkError::new(&error))),
        };
        let mut header = wire::SnapshotHeader {
            origin: Some(self.origin()),
            vote: Some(types::vote_to_wire(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(types::log_id_to_wire),
            membership: Some(types::stored_to_wire(&snapshot.meta.last_membership)),
            files,
            following: Vec::new(),
        };
        // What the peer has of an attempt before is not sent again.
        let wanted = within(&self.peers, OFFER_TIMEOUT, client.offer_snapshot(header.clone())).await?;
        header.following = wanted.into_inner().files;
        let (sender, receiver) = mpsc::channel(SNAPSHOT_QUEUE);
        let reader = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            let directory = snapshot.snapshot;
            let files = snapshot::following(&header)
                .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
            let send = |part| sender.blocking_send(wire::SnapshotChunk { part: Some(part) }).is_ok();
            if send(wire::snapshot_chunk::Part::Header(header)) {
                snapshot::read_files(directory.path(), &files, |data| send(wire::snapshot_chunk::Part::Data(data)))?;
            }
            Ok(())
        });
        let call = tokio::time::timeout(SNAPSHOT_TIMEOUT, client.install_snapshot(ReceiverStream::new(receiver)));
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = call => answer,
        };
        let answer = match answer {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                if let Ok(Err(error)) = reader.await {
                    tracing::warn!(%error, peer = self.target, "could not read a snapshot to send");
                }
                return Err(unreachable_peer(&status).into());
            }
            Err(elapsed) => return Err(StreamingError::Network(NetworkError::new(&elapsed))),
        };
        Ok(SnapshotResponse::new(types::required_vote(answer.vote).map_err(garbled)?))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        let mut client = self.client(Lane::Control);
        let message = transfer(Some(self.origin()), &request);
        let answer = within(&self.peers, option.hard_ttl(), client.transfer_leader(message)).await?.into_inner();
        Ok(transferred(&request, answer))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(backoff())
    }
}

pub(super) fn transfer(
    origin: Option<wire::Origin>,
    request: &TransferLeaderRequest<Types>,
) -> wire::TransferLeaderRequest {
    wire::TransferLeaderRequest {
        origin,
        from: Some(types::vote_to_wire(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(types::log_id_to_wire),
    }
}

pub(super) fn transferred(
    request: &TransferLeaderRequest<Types>,
    answer: wire::TransferLeaderResponse,
) -> TransferLeaderResponse<Types> {
    match (answer.actual_vote, answer.log_not_flushed) {
        (Some(actual), _) => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: types::vote_from_wire(actual),
        }),
        (None, true) => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: answer.actual_log_id.map(types::log_id_from_wire),
        }),
        (None, false) => Ok(()),
    }
}

pub(super) fn backoff() -> Backoff {
    Backoff::new(std::iter::successors(Some(RETRY_FIRST), |wait| Some((*wait * 2).min(RETRY_LIMIT))))
}
