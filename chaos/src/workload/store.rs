//! Clients of a store over etcd v3, each of which records what it asks and sees: keys,
//! watches that resume, leases, compaction, and polls of who leads.

use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::lease_client::LeaseClient;
use quorate_proto::etcd::maintenance_client::MaintenanceClient;
use quorate_proto::etcd::watch_client::WatchClient;
use quorate_proto::etcd::{self as proto, compare, request_op, response_op, watch_request};
use quorate_proto::mvccpb;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::history::{
    Answer, Client, Event, EventKind, KeyValue, Keys, Member, Read, Recorder, Reply, Request, Response, Revision, Role,
    Term, WatchEvent, WatchId, WatchRequest,
};

/// After that an answer is not waited for any more, and nobody knows what became of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two polls of a member's role.
const POLL: Duration = Duration::from_millis(100);

/// Between two writes of a probe.
const PROBE: Duration = Duration::from_millis(50);

/// A watch that hears nothing for so long goes on elsewhere; quiet ones hear every 500 ms.
const SILENCE: Duration = Duration::from_secs(3);

/// How many revisions behind the slowest watch compaction stays.
const KEEP: i64 = 200;

/// How many keys the clients share: few, so that they meet.
const KEYS: usize = 12;

/// What all clients of a run share.
pub struct Run {
    pub recorder: Recorder<BufWriter<File>>,
    channels: Vec<Channel>,
    /// What each member said last of its role.
    roles: Mutex<Vec<(Term, Role)>>,
    /// The last revision that each watch of all keys has heard of.
    heard: Vec<AtomicI64>,
    ends: AtomicBool,
}

/// Why there is no answer.
enum Failure {
    /// It was refused and will never take effect.
    Refused(String),
    Unknown(String),
}

impl Run {
    /// `watchers` of all keys will be started.
    pub fn new(
        recorder: Recorder<BufWriter<File>>,
        members: impl Iterator<Item = SocketAddr>,
        watchers: usize,
    ) -> Result<Self> {
        let channel = |address| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(Duration::from_millis(500))
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_secs(1))
                .keep_alive_while_idle(true);
            anyhow::Ok(endpoint.connect_lazy())
        };
        let channels: Vec<Channel> = members.map(channel).collect::<Result<_>>()?;
        let roles = Mutex::new(vec![(Term(0), Role::Follower); channels.len()]);
        let heard = (0..watchers).map(|_| AtomicI64::new(0)).collect();
        Ok(Self { recorder, channels, roles, heard, ends: AtomicBool::new(false) })
    }

    /// Clients finish what they are at, and no more; watches go on.
    pub fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Who leads, as far as members said.
    pub fn leader(&self) -> Option<usize> {
        let roles = self.roles();
        let leaders = roles.iter().enumerate().filter(|(_, (_, role))| *role == Role::Leader);
        leaders.max_by_key(|(_, (term, _))| *term).map(|(member, _)| member)
    }

    fn roles(&self) -> MutexGuard<'_, Vec<(Term, Role)>> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and records that and what became of it.
    pub async fn ask(&self, client: Client, member: usize, request: Request) -> Option<Reply> {
        let operation = self.recorder.invoke(client, number(member), request.clone());
        let answer = time::timeout(PATIENCE, answer(self.channels[member].clone(), &request)).await;
        let (event, reply) = match answer {
            Ok(Ok(reply)) => (Event::Ok { operation, reply: reply.clone() }, Some(reply)),
            Ok(Err(Failure::Refused(error))) => (Event::Fail { operation, error }, None),
            Ok(Err(Failure::Unknown(error))) => (Event::Unknown { operation, error }, None),
            Err(_) => (Event::Unknown { operation, error: "no answer in time".to_owned() }, None),
        };
        self.recorder.record(event);
        reply
    }

    /// Reads and writes keys that others read and write too, until the run ends.
    pub async fn keys(&self, client: Client, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut member = random.random_range(0..self.channels.len());
        let mut known = [Revision(0); KEYS];
        for count in 0_u64.. {
            if self.ends() {
                return;
            }
            let place = random.random_range(0..KEYS);
            let key = format!("k{place}");
            let value = format!("{client}.{count}");
            let request = match random.random_range(0..100) {
                0..30 => Request::Get { key, read: Read::Linearizable },
                30..40 => Request::Get { key, read: Read::Serializable },
                40..44 if known[place] > Revision(0) => Request::Get { key, read: Read::At(known[place]) },
                44..65 => Request::Put { key, value, lease: 0 },
                65..73 => Request::Delete { key },
                73..82 => Request::PutAll {
                    puts: (0..3)
                        .map(|number| (format!("k{}", (place + number) % KEYS), format!("{value}-{number}")))
                        .collect(),
                },
                _ => Request::CompareAndSwap {
                    key,
                    expected: known[place],
                    value: random.random_bool(0.8).then_some(value),
                },
            };
            let at_old = matches!(request, Request::Get { read: Read::At(_), .. });
            let pause = match self.ask(client, member, request).await {
                Some(reply) => {
                    let revision = reply.revision.unwrap_or_default();
                    match &reply.answer {
                        _ if at_old => {}
                        Answer::Found(found) | Answer::Refused(found) => {
                            known[place] = found.as_ref().map_or(Revision(0), |kv| kv.mod_revision);
                        }
                        Answer::Done => known[place] = revision,
                        Answer::Deleted(_) | Answer::Ttl(_) => known[place] = Revision(0),
                    }
                    random.random_range(2..20)
                }
                None => {
                    // It may be the member's fault; and what is known may be compacted.
                    member = random.random_range(0..self.channels.len());
                    known[place] = Revision(0);
                    random.random_range(20..60)
                }
            };
            time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Writes a key of its own through one member, whatever becomes of it, until the run
    /// ends: with one of these at each member some write is under way wherever one can be.
    pub async fn probe(&self, client: Client, member: usize) {
        let key = format!("probe/{member}");
        for count in 0_u64.. {
            if self.ends() {
                return;
            }
            self.ask(client, member, Request::Put { key: key.clone(), value: count.to_string(), lease: 0 }).await;
            time::sleep(PROBE).await;
        }
    }

    /// Grants leases with keys, keeps them for a while, and lets them go one way or another.
    pub async fn leases(&self, client: Client, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let members = self.channels.len();
        for count in 1_i64.. {
            if self.ends() {
                return;
            }
            let lease = i64::from(client.0) * 1_000_000 + count;
            let mut member = random.random_range(0..members);
            let mut pause = 50;
            if self.ask(client, member, Request::Grant { lease, ttl_seconds: 2 }).await.is_some() {
                for name in ["a", "b"] {
                    let (key, value) = (format!("lease/{client}/{name}"), format!("{client}.{count}-{name}"));
                    if self.ask(client, member, Request::Put { key, value, lease }).await.is_none() {
                        member = random.random_range(0..members);
                    }
                }
                for _ in 0..random.random_range(0..4) {
                    time::sleep(Duration::from_millis(600)).await;
                    if self.ask(client, member, Request::KeepAlive { lease }).await.is_none() {
                        member = random.random_range(0..members);
                    }
                }
                if random.random_bool(0.3) {
                    self.ask(client, member, Request::Revoke { lease }).await;
                } else {
                    pause = random.random_range(50..4_000);
                }
                let key = format!("lease/{client}/a");
                self.ask(client, member, Request::Get { key, read: Read::Linearizable }).await;
            }
            time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Compacts what every watch has heard of, now and then.
    pub async fn compaction(&self, client: Client) {
        let mut member = 0;
        let mut last = Revision(0);
        while !self.ends() {
            time::sleep(Duration::from_secs(2)).await;
            let slowest = self.heard.iter().map(|heard| heard.load(Ordering::Relaxed)).min().unwrap_or_default();
            let revision = Revision(slowest - KEEP);
            if revision > last && self.ask(client, member, Request::Compact { revision }).await.is_some() {
                last = revision;
            }
            member = (member + 1) % self.channels.len();
        }
    }

    /// Asks one member again and again what it is, for as long as it is polled.
    pub async fn role(&self, member: usize) {
        let mut client = MaintenanceClient::new(self.channels[member].clone());
        loop {
            time::sleep(POLL).await;
            let request = client.status(proto::StatusRequest {});
            let Ok(Ok(status)) = time::timeout(POLL * 5, request).await else {
                self.roles()[member].1 = Role::Candidate;
                continue;
            };
            let status = status.into_inner();
            let leads = status.header.is_some_and(|header| header.member_id == status.leader);
            let role = if leads { Role::Leader } else { Role::Follower };
            let term = Term(status.raft_term);
            self.roles()[member] = (term, role);
            self.recorder.record(Event::Role { member: number(member), term, role });
        }
    }

    /// The hash of a member's keys at a revision, once it has come there; recorded.
    ///
    /// # Errors
    /// When it does not come there in time.
    pub async fn hash(&self, member: usize, revision: Revision, deadline: Instant) -> Result<()> {
        let mut client = MaintenanceClient::new(self.channels[member].clone());
        loop {
            let request = client.hash_kv(proto::HashKvRequest { revision: revision.0 });
            let last = match time::timeout(PATIENCE, request).await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    self.recorder.record(Event::Hash {
                        member: number(member),
                        revision,
                        compact_revision: Revision(answer.compact_revision),
                        hash: answer.hash,
                    });
                    return Ok(());
                }
                Ok(Err(status)) => status.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            anyhow::ensure!(Instant::now() < deadline, "m{member} gives no hash at revision {revision}: {last}");
            time::sleep(POLL).await;
        }
    }

    /// Watches, resuming on another member whenever a watch ends, until it has heard of
    /// `goal`, once there is one. `place` is that of a watch of all keys.
    pub async fn watch(
        &self,
        watcher: Client,
        place: Option<usize>,
        mut request: WatchRequest,
        mut goal: watch::Receiver<i64>,
    ) {
        let mut random = StdRng::seed_from_u64(watcher.0.into());
        let mut member = watcher.0 as usize % self.channels.len();
        loop {
            let id = self.recorder.watch(watcher, number(member), request.clone());
            let mut heard = Revision(request.start_revision.0 - 1);
            let stay = Duration::from_millis(random.random_range(1_000..8_000));
            // However it ended, it goes on after what was heard.
            let _ = self.watch_once(id, member, place, &request, &mut heard, &mut goal, stay).await;
            if heard.0 >= request.start_revision.0 {
                request.start_revision = Revision(heard.0 + 1);
            }
            if *goal.borrow() > 0 && heard.0 >= *goal.borrow() {
                return;
            }
            member = (member + 1) % self.channels.len();
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn watch_once(
        &self,
        id: WatchId,
        member: usize,
        place: Option<usize>,
        request: &WatchRequest,
        heard: &mut Revision,
        goal: &mut watch::Receiver<i64>,
        stay: Duration,
    ) -> Result<()> {
        let (requests, stream) = mpsc::channel(4);
        requests.send(create(request)).await?;
        let mut client = WatchClient::new(self.channels[member].clone());
        let mut responses = time::timeout(PATIENCE, client.watch(ReceiverStream::new(stream))).await??.into_inner();
        let began = Instant::now();
        let mut ask = time::interval(Duration::from_millis(400));
        let mut silent_since = Instant::now();
        loop {
            let message = tokio::select! {
                message = responses.message() => message?.context("the stream ended")?,
                _ = ask.tick() => {
                    let ends = *goal.borrow() > 0;
                    if silent_since.elapsed() > SILENCE || !ends && began.elapsed() > stay {
                        return Ok(());
                    }
                    if ends || id.0.is_multiple_of(2) {
                        let progress = watch_request::RequestUnion::ProgressRequest(proto::WatchProgressRequest {});
                        requests.try_send(proto::WatchRequest { request_union: Some(progress) })?;
                    }
                    continue;
                }
            };
            silent_since = Instant::now();
            let response = told(message);
            let upto = match response.events.last() {
                Some(last) if response.fragment => Revision(last.kv.mod_revision.0 - 1),
                Some(last) => last.kv.mod_revision,
                None if response.is_progress() => response.revision,
                // A watch of the present begins where it was created.
                None if response.created && request.start_revision == Revision(0) => response.revision,
                // What is compacted is not told any more.
                None => Revision(response.compact_revision.0 - 1),
            };
            *heard = upto.max(*heard);
            let canceled = response.canceled;
            self.recorder.record(Event::Told { watch: id, response });
            if let Some(place) = place {
                self.heard[place].store(heard.0, Ordering::Relaxed);
            }
            if canceled || *goal.borrow() > 0 && heard.0 >= *goal.borrow() {
                return Ok(());
            }
        }
    }
}

fn number(member: usize) -> Member {
    Member(u16::try_from(member).unwrap_or(u16::MAX))
}

fn create(request: &WatchRequest) -> proto::WatchRequest {
    let (key, range_end) = match &request.keys {
        Keys::All => (vec![0], vec![0]),
        Keys::One(key) => (key.clone().into_bytes(), Vec::new()),
        Keys::Prefix(prefix) => {
            let mut end = prefix.clone().into_bytes();
            // Prefixes of workloads end in a letter or a slash.
            if let Some(last) = end.last_mut() {
                *last += 1;
            }
            (prefix.clone().into_bytes(), end)
        }
    };
    let mut filters = Vec::new();
    if request.no_put {
        filters.push(proto::watch_create_request::FilterType::Noput.into());
    }
    if request.no_delete {
        filters.push(proto::watch_create_request::FilterType::Nodelete.into());
    }
    let create = proto::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision: request.start_revision.0,
        progress_notify: true,
        filters,
        prev_kv: request.prev_kv,
        fragment: true,
        ..proto::WatchCreateRequest::default()
    };
    proto::WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) }
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(bytes.as_ref()).into_owned()
}

fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: text(kv.key),
        value: text(kv.value),
        create_revision: Revision(kv.create_revision),
        mod_revision: Revision(kv.mod_revision),
        version: kv.version,
        lease: kv.lease,
    }
}

fn told(message: proto::WatchResponse) -> Response {
    let events = message.events.into_iter().map(|event| WatchEvent {
        kind: if event.r#type() == mvccpb::event::EventType::Delete { EventKind::Delete } else { EventKind::Put },
        kv: event.kv.map(key_value).unwrap_or_default(),
        prev: event.prev_kv.map(key_value),
    });
    Response {
        events: events.collect(),
        revision: Revision(message.header.map_or(0, |header| header.revision)),
        created: message.created,
        canceled: message.canceled,
        compact_revision: Revision(message.compact_revision),
        fragment: message.fragment,
    }
}

async fn answer(channel: Channel, request: &Request) -> Result<Reply, Failure> {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    match request {
        Request::Get { key, read } => {
            let (serializable, revision) = match read {
                Read::Linearizable => (false, 0),
                Read::Serializable => (true, 0),
                Read::At(revision) => (true, revision.0),
            };
            let key = key.clone().into_bytes().into();
            let request = proto::RangeRequest { key, serializable, revision, ..proto::RangeRequest::default() };
            let answer = kv.range(request).await?.into_inner();
            reply(answer.header, Answer::Found(answer.kvs.into_iter().next().map(key_value)))
        }
        Request::Put { key, value, lease } => {
            let answer = kv.put(put(key, value, *lease)).await?.into_inner();
            reply(answer.header, Answer::Done)
        }
        Request::Delete { key } => {
            let answer = kv.delete_range(delete(key)).await?.into_inner();
            reply(answer.header, Answer::Deleted(answer.deleted > 0))
        }
        Request::CompareAndSwap { key, expected, value } => {
            let compare = proto::Compare {
                result: compare::CompareResult::Equal.into(),
                target: compare::CompareTarget::Mod.into(),
                key: key.clone().into_bytes().into(),
                target_union: Some(compare::TargetUnion::ModRevision(expected.0)),
                ..proto::Compare::default()
            };
            let then = match value {
                Some(value) => request_op::Request::RequestPut(put(key, value, 0)),
                None => request_op::Request::RequestDeleteRange(delete(key)),
            };
            let key = key.clone().into_bytes().into();
            let range = proto::RangeRequest { key, ..proto::RangeRequest::default() };
            let otherwise = request_op::Request::RequestRange(range);
            let operation = |request| vec![proto::RequestOp { request: Some(request) }];
            let (success, failure) = (operation(then), operation(otherwise));
            let txn = proto::TxnRequest { compare: vec![compare], success, failure };
            let answer = kv.txn(txn).await?.into_inner();
            if answer.succeeded {
                return reply(answer.header, Answer::Done);
            }
            let found = answer.responses.into_iter().find_map(|response| match response.response {
                Some(response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
                _ => None,
            });
            reply(answer.header, Answer::Refused(found.map(key_value)))
        }
        Request::PutAll { puts } => {
            let operation = |(key, value): &(String, String)| proto::RequestOp {
                request: Some(request_op::Request::RequestPut(put(key, value, 0))),
            };
            let success = puts.iter().map(operation).collect();
            let answer = kv.txn(proto::TxnRequest { success, ..proto::TxnRequest::default() }).await?.into_inner();
            reply(answer.header, Answer::Done)
        }
        Request::Compact { revision } => {
            let request = proto::CompactionRequest { revision: revision.0, physical: false };
            reply(kv.compact(request).await?.into_inner().header, Answer::Done)
        }
        Request::Grant { lease, ttl_seconds } => {
            let request = proto::LeaseGrantRequest { ttl: *ttl_seconds, id: *lease };
            let answer = LeaseClient::new(channel).lease_grant(request).await?.into_inner();
            lease_reply(Answer::Ttl(answer.ttl))
        }
        Request::KeepAlive { lease } => {
            let request = tokio_stream::iter([proto::LeaseKeepAliveRequest { id: *lease }]);
            let mut answers = LeaseClient::new(channel).lease_keep_alive(request).await?.into_inner();
            match answers.message().await? {
                Some(answer) => lease_reply(Answer::Ttl(answer.ttl)),
                None => Err(Failure::Unknown("the stream ended".to_owned())),
            }
        }
        Request::Revoke { lease } => {
            LeaseClient::new(channel).lease_revoke(proto::LeaseRevokeRequest { id: *lease }).await?;
            lease_reply(Answer::Done)
        }
    }
}

fn put(key: &str, value: &str, lease: i64) -> proto::PutRequest {
    let (key, value) = (key.to_owned().into_bytes().into(), value.to_owned().into_bytes().into());
    proto::PutRequest { key, value, lease, ..proto::PutRequest::default() }
}

fn delete(key: &str) -> proto::DeleteRangeRequest {
    proto::DeleteRangeRequest { key: key.to_owned().into_bytes().into(), ..proto::DeleteRangeRequest::default() }
}

fn reply(header: Option<proto::ResponseHeader>, answer: Answer) -> Result<Reply, Failure> {
    let (revision, term) = header.map(|header| (Revision(header.revision), Term(header.raft_term))).unzip();
    Ok(Reply { revision, term, answer })
}

/// The revision of a lease's answer is another member's.
fn lease_reply(answer: Answer) -> Result<Reply, Failure> {
    Ok(Reply { revision: None, term: None, answer })
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let refused = match status.code() {
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Unimplemented => true,
            // Nobody listens, so nobody has heard of it.
            _ => {
                let mut source = std::error::Error::source(&status);
                let mut refused = false;
                while let Some(error) = source {
                    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                    refused |= kind == Some(std::io::ErrorKind::ConnectionRefused);
                    source = error.source();
                }
                refused
            }
        };
        let text = format!("{:?}: {}", status.code(), status.message());
        if refused { Self::Refused(text) } else { Self::Unknown(text) }
    }
}
