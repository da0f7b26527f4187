//! Peers of a simulation: their messages are late, lost, cut off or come twice, as a seed
//! says.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use quorate_proto::raft as wire;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::network::{self, MIN_TIMEOUT, RpcError};
use super::snapshot::{Area, Directory};
use super::types::{self, Node, Runtime, Types};
use super::{MessageError, Raft, StateMachine, Timing, config};
use crate::wal::Wal;

/// A message takes so many microseconds, and longer by chance.
const DELAY_MICROS: std::ops::Range<u64> = 100..2_000;

/// Of so many entries or heartbeats, one comes again later.
const AGAIN_ONE_OF: u32 = 50;
const AGAIN_MILLIS: std::ops::Range<u64> = 1..800;

/// More than all clients together propose at a time.
const ROOM_BYTES: usize = 1 << 20;

/// A snapshot takes longer than a message.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `future`, and whatever the Raft library starts in it, with chance drawn from `seed`.
pub(crate) fn seeded<F: Future>(seed: u64, future: F) -> impl Future<Output = F::Output> {
    Runtime::scope(seed, future)
}

/// One life of a member: it ends with its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) member: u64,
    pub(crate) number: u64,
}

/// What is between the members. Clones are of the same network.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

struct State {
    random: StdRng,
    living: BTreeMap<u64, Seat>,
    /// From whom to whom nothing arrives.
    cut: BTreeSet<(u64, u64)>,
    /// Of a hundred messages, how many are lost.
    lost_percent: u32,
    /// A message by chance takes up to so much longer.
    late: Duration,
    messages: u64,
    /// Who spoke as the leader of a term.
    leaders: BTreeMap<u64, u64>,
    violation: Option<String>,
}

/// Who answers for a member.
#[derive(Clone)]
struct Seat {
    life: Life,
    raft: Raft,
    area: Arc<Area>,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            living: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost_percent: 0,
            late: Duration::ZERO,
            messages: 0,
            leaders: BTreeMap::new(),
            violation: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn join(&self, life: Life, raft: &Raft, area: &Arc<Area>) {
        let seat = Seat { life, raft: raft.clone(), area: Arc::clone(area) };
        self.lock().living.insert(life.member, seat);
    }

    /// From now on nothing comes from this life or reaches it.
    pub(crate) fn leave(&self, life: Life) {
        self.lock().living.remove(&life.member);
    }

    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.lock().cut.insert((from, to));
    }

    pub(crate) fn lose(&self, percent: u32) {
        self.lock().lost_percent = percent;
    }

    pub(crate) fn slow(&self, late: Duration) {
        self.lock().late = late;
    }

    /// Everything arrives again.
    pub(crate) fn heal(&self) {
        let mut state = self.lock();
        state.cut.clear();
        state.lost_percent = 0;
        state.late = Duration::ZERO;
    }

    pub(crate) fn messages(&self) -> u64 {
        self.lock().messages
    }

    /// How many terms had a leader that spoke.
    pub(crate) fn reigns(&self) -> usize {
        self.lock().leaders.len()
    }

    /// What was seen that must not be.
    pub(crate) fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// At most one leader speaks in a term (Raft, section 5.2).
    fn spoke(&self, term: u64, from: u64) {
        let mut state = self.lock();
        let leader = *state.leaders.entry(term).or_insert(from);
        if leader != from {
            let text = format!("two leaders in term {term}: {leader} and {from}");
            state.violation.get_or_insert(text);
        }
    }

    /// Whoever is at `to` when the message arrives; none if it is lost on the way.
    async fn arrive(&self, from: Life, to: u64) -> Option<Result<Seat, Unreachable<Types>>> {
        let delay = {
            let mut state = self.lock();
            state.messages += 1;
            let lost = state.lost_percent;
            if state.random.random_range(0..100) < lost {
                return None;
            }
            let late = u64::try_from(state.late.as_micros()).unwrap_or(u64::MAX);
            let micros = state.random.random_range(DELAY_MICROS);
            Duration::from_micros(micros + if late > 0 { state.random.random_range(0..late) } else { 0 })
        };
        tokio::time::sleep(delay).await;
        let state = self.lock();
        let speaks = state.living.get(&from.member).is_some_and(|seat| seat.life == from);
        if !speaks || state.cut.contains(&(from.member, to)) {
            return None;
        }
        let refused = || Unreachable::from_string(format!("member {to} is not there"));
        Some(state.living.get(&to).cloned().ok_or_else(refused))
    }

    /// Whether a message is to come again, and after what time.
    fn again(&self) -> Option<Duration> {
        let mut state = self.lock();
        let again = state.random.random_range(0..AGAIN_ONE_OF) == 0;
        again.then(|| Duration::from_millis(state.random.random_range(AGAIN_MILLIS)))
    }
}

impl Raft {
    /// As [`Raft::start`], among simulated peers. `restores_leaders` is the planted bug: a
    /// member that led goes on leading when it comes back.
    pub(crate) async fn start_simulated(
        life: Life,
        timing: Timing,
        network: Network,
        wal: Wal,
        machine: StateMachine,
        restores_leaders: bool,
    ) -> io::Result<Self> {
        let mut config = config(timing);
        config.enable_leader_restore = Some(restores_leaders);
        Self::start_as(life.member, config, Simulated { network, life }, wal, machine, ROOM_BYTES).await
    }
}

struct Simulated {
    network: Network,
    life: Life,
}

impl RaftNetworkFactory<Types> for Simulated {
    type Network = Way;

    async fn new_client(&mut self, target: u64, _node: &Node) -> Way {
        Way { network: self.network.clone(), from: self.life, to: target }
    }
}

/// The way to one peer.
struct Way {
    network: Network,
    from: Life,
    to: u64,
}

impl Way {
    /// Asks, and hears the answer, unless one of both is lost.
    async fn ask<T>(
        &self,
        limit: Duration,
        question: impl AsyncFnOnce(Seat) -> Result<T, MessageError>,
    ) -> Result<T, RpcError> {
        let exchange = async {
            let Some(seat) = self.network.arrive(self.from, self.to).await else { return std::future::pending().await };
            let seat = seat.map_err(RPCError::Unreachable)?;
            let answering = seat.life;
            let answer = question(seat).await;
            match self.network.arrive(answering, self.from.member).await {
                Some(Ok(seat)) if seat.life == self.from => {
                    answer.map_err(|error| RPCError::Unreachable(Unreachable::from_string(error.to_string())))
                }
                _ => std::future::pending().await,
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(RPCError::Network(NetworkError::new(&elapsed))),
        }
    }

    async fn ballot(
        &self,
        request: VoteRequest<Types>,
        pre: bool,
        limit: Duration,
    ) -> Result<VoteResponse<Types>, RpcError> {
        let message = network::ballot(None, &request);
        let question =
            async move |seat: Seat| if pre { seat.raft.pre_vote(message).await } else { seat.raft.vote(message).await };
        network::voted(self.ask(limit, question).await?)
    }
}

fn limit(option: &RPCOption) -> Duration {
    option.hard_ttl().max(MIN_TIMEOUT)
}

impl RaftNetworkV2<Types> for Way {
    type SnapshotData = Directory;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcError> {
        self.network.spoke(request.vote.leader_id.term, self.from.member);
        let wanted = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let message = types::append_to_wire(&request);
        if let Some(later) = self.network.again() {
            let (network, from, to, message) = (self.network.clone(), self.from, self.to, message.clone());
            let seed = self.network.lock().random.random();
            tokio::spawn(seeded(seed, async move {
                tokio::time::sleep(later).await;
                if let Some(Ok(seat)) = network.arrive(from, to).await {
                    // Nobody waits for this answer.
                    let _ = seat.raft.heartbeat(message).await;
                }
            }));
        }
        let answer = self.ask(limit(&option), async move |seat: Seat| seat.raft.heartbeat(message).await).await?;
        Ok(network::whole(types::append_result_from_wire(answer).map_err(network::garbled)?, wanted))
    }

    async fn vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RpcError> {
        self.ballot(request, false, limit(&option)).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcError> {
        self.ballot(request, true, limit(&option)).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Directory>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let header = wire::SnapshotHeader {
            vote: Some(types::vote_to_wire(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(types::log_id_to_wire),
            membership: Some(types::stored_to_wire(&snapshot.meta.last_membership)),
            ..wire::SnapshotHeader::default()
        };
        let install = async move |seat: Seat| {
            let directory = seat.area.reserve();
            let copied = copy(snapshot.snapshot.path(), directory.path());
            copied.map_err(|error| MessageError::Stopped(error.to_string()))?;
            seat.raft.install_snapshot(header, directory).await
        };
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = self.ask(SNAPSHOT_TIMEOUT, install) => answer?,
        };
        Ok(SnapshotResponse::new(types::required_vote(answer.vote).map_err(network::garbled)?))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcError> {
        let message = network::transfer(None, &request);
        let ask = async move |seat: Seat| seat.raft.handle_transfer_leader(message).await;
        Ok(network::transferred(&request, self.ask(limit(&option), ask).await?))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(network::backoff())
    }
}

/// Copies a directory into a new one.
///
/// # Errors
/// When the disk refuses, or a file goes meanwhile.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
