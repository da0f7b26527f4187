//! What clients asked and saw, as lines of JSON: one for each invocation, each answer and
//! each observation, in the order in which they happened.
//!
//! A [`Recorder`] writes lines and keeps none, so that a run may last for days. A [`History`]
//! is read from them afterwards and holds every operation in memory.

use std::io::{BufRead, Write};
use std::sync::Mutex;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How many lines a history may have to be read: they are held in memory. A longer run is
/// checked in pieces.
const MAX_LINES: usize = 20_000_000;

/// The number of a change of the store; a store without any has 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub i64);

/// A term of Raft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

/// A member of the cluster: the vantage point from which an answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Member(pub u16);

/// A client; it has one operation under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Client(pub u32);

/// One request of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u64);

/// One watch of a run, from its creation to its end on one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WatchId(pub u64);

/// A key as an answer showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: i64,
    /// 0 without one.
    #[serde(default)]
    pub lease: i64,
}

/// What a client asks. Every value that is written in a run is unique to its request, which
/// is how a value that is seen tells who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Get {
        key: String,
        read: Read,
    },
    Put {
        key: String,
        value: String,
        #[serde(default)]
        lease: i64,
    },
    Delete {
        key: String,
    },
    /// Puts `value`, or deletes when there is none, if `key` was last modified at `expected`
    /// (0: does not exist); otherwise reads `key`.
    CompareAndSwap {
        key: String,
        expected: Revision,
        value: Option<String>,
    },
    /// Several keys and values in one transaction, thus at one revision.
    PutAll {
        puts: Vec<(String, String)>,
    },
    Compact {
        revision: Revision,
    },
    Grant {
        lease: i64,
        ttl_seconds: i64,
    },
    KeepAlive {
        lease: i64,
    },
    Revoke {
        lease: i64,
    },
}

/// How a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    Linearizable,
    /// What the asked member has now.
    Serializable,
    /// What the asked member knows of an earlier revision.
    At(Revision),
}

/// What a successful answer says beside its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The answer to [`Request::Get`].
    Found(Option<KeyValue>),
    /// The answer to [`Request::Delete`]: whether there was something to delete.
    Deleted(bool),
    /// A [`Request::CompareAndSwap`] that did not match, and what it read instead.
    Refused(Option<KeyValue>),
    /// The answer to [`Request::Grant`] and [`Request::KeepAlive`]; 0 for a lease that is gone.
    Ttl(i64),
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The header's revision, where the protocol has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    pub answer: Answer,
}

/// What a watch asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    pub keys: Keys,
    /// 0: from now on.
    pub start_revision: Revision,
    #[serde(default)]
    pub prev_kv: bool,
    #[serde(default)]
    pub no_put: bool,
    #[serde(default)]
    pub no_delete: bool,
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    All,
    Prefix(String),
    One(String),
}

/// One message of a watch. Without events, and neither created nor canceled, it is a
/// progress notification. One that speaks for a whole stream is recorded for each watch of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The header's revision.
    pub revision: Revision,
    #[serde(default)]
    pub created: bool,
    #[serde(default)]
    pub canceled: bool,
    /// Of a cancelled watch that asked for what is compacted; otherwise 0.
    #[serde(default)]
    pub compact_revision: Revision,
    /// The next message goes on with the same revision.
    #[serde(default)]
    pub fragment: bool,
    #[serde(default)]
    pub events: Vec<WatchEvent>,
}

/// One change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    pub kind: EventKind,
    /// Of a deletion: the key and the revision alone.
    pub kv: KeyValue,
    #[serde(default)]
    pub prev: Option<KeyValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Put,
    Delete,
}

/// What a member says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Invoke {
        operation: OperationId,
        client: Client,
        member: Member,
        request: Request,
    },
    Ok {
        operation: OperationId,
        reply: Reply,
    },
    /// It was refused and has no effect, now or later.
    Fail {
        operation: OperationId,
        error: String,
    },
    /// Nobody knows whether it takes effect; as without any answer.
    Unknown {
        operation: OperationId,
        error: String,
    },
    /// A watch was asked for. One `watcher` may open several, each to go on after the last.
    Watch {
        watch: WatchId,
        watcher: Client,
        member: Member,
        request: WatchRequest,
    },
    Told {
        watch: WatchId,
        response: Response,
    },
    Role {
        member: Member,
        term: Term,
        role: Role,
    },
    /// The hash of a member's keys at a revision; comparable where as much was compacted.
    Hash {
        member: Member,
        revision: Revision,
        compact_revision: Revision,
        hash: u32,
    },
    /// Something was done to the cluster; told when it was undone, or at the end.
    Fault {
        fault: String,
        from_nanos: u64,
        until_nanos: u64,
    },
    /// `holder` acted as the only owner of `resource`; told when it ended, or at the end.
    Held {
        resource: String,
        holder: String,
        from_nanos: u64,
        until_nanos: u64,
    },
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Since the run began, on one monotonic clock. Lines are in this order.
    pub at_nanos: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// Writes the lines of a run; many tasks share it. Its memory does not grow.
pub struct Recorder<W> {
    began: Instant,
    sink: Mutex<Sink<W>>,
}

struct Sink<W> {
    writer: W,
    next_id: u64,
    /// The first error, after which nothing is written.
    broken: Option<std::io::Error>,
}

/// Why a history cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("cannot write a line of the history; make room on its disk and run again")]
    Write(#[source] std::io::Error),
    #[error("cannot read line {line} of the history")]
    Read { line: usize, source: std::io::Error },
    #[error("line {line} of the history does not parse; was it written by another version?")]
    Parse { line: usize, source: serde_json::Error },
    #[error("line {line} is of {at_nanos} ns, earlier than the one before it")]
    Backwards { line: usize, at_nanos: u64 },
    #[error("line {line} speaks of an operation or a watch that no line before it opened, or that has ended")]
    Unopened { line: usize },
    #[error("line {line} opens an operation or a watch under a number that is taken")]
    Reopened { line: usize },
    #[error("the history has more than {MAX_LINES} lines; check it in pieces")]
    TooLong,
}

impl<W: Write> Recorder<W> {
    /// Times count from now. `writer` should be buffered: each line is one write.
    pub fn new(writer: W) -> Self {
        Self { began: Instant::now(), sink: Mutex::new(Sink { writer, next_id: 0, broken: None }) }
    }

    /// To be called before the request is sent.
    pub fn invoke(&self, client: Client, member: Member, request: Request) -> OperationId {
        let mut sink = self.lock();
        let operation = OperationId(sink.take_id());
        self.write(&mut sink, Event::Invoke { operation, client, member, request });
        operation
    }

    /// To be called before the watch is sent.
    pub fn watch(&self, watcher: Client, member: Member, request: WatchRequest) -> WatchId {
        let mut sink = self.lock();
        let watch = WatchId(sink.take_id());
        self.write(&mut sink, Event::Watch { watch, watcher, member, request });
        watch
    }

    /// The time that a line would bear now.
    pub fn now_nanos(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    /// Everything else, once it is known.
    pub fn record(&self, event: Event) {
        self.write(&mut self.lock(), event);
    }

    /// Flushes, and returns the writer.
    ///
    /// # Errors
    /// The first error of any write: what came after it is missing.
    pub fn finish(self) -> Result<W, HistoryError> {
        let mut sink = self.sink.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = sink.broken {
            return Err(HistoryError::Write(error));
        }
        sink.writer.flush().map_err(HistoryError::Write)?;
        Ok(sink.writer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink<W>> {
        self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The time is taken under the lock, so that lines are in order.
    fn write(&self, sink: &mut Sink<W>, event: Event) {
        if sink.broken.is_none() {
            let line = Line { at_nanos: self.now_nanos(), event };
            sink.broken = write_line(&mut sink.writer, &line).err();
        }
    }
}

impl<W> Sink<W> {
    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn write_line(writer: &mut impl Write, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    writer.write_all(&text)
}

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub id: OperationId,
    pub client: Client,
    pub member: Member,
    pub request: Request,
    pub invoked_nanos: u64,
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok {
        at_nanos: u64,
        reply: Reply,
    },
    /// It never took effect.
    Fail {
        at_nanos: u64,
        error: String,
    },
    /// It takes effect at any time after its invocation, or never.
    Unknown {
        error: Option<String>,
    },
}

/// One watch and all it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    pub id: WatchId,
    pub watcher: Client,
    pub member: Member,
    pub request: WatchRequest,
    pub opened_nanos: u64,
    pub responses: Vec<(u64, Response)>,
}

/// What a member said of its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleReport {
    pub at_nanos: u64,
    pub member: Member,
    pub term: Term,
    pub role: Role,
}

/// What a member said of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashReport {
    pub at_nanos: u64,
    pub member: Member,
    pub revision: Revision,
    pub compact_revision: Revision,
    pub hash: u32,
}

/// A span in which something was done to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultReport {
    pub fault: String,
    pub from_nanos: u64,
    pub until_nanos: u64,
}

/// A span in which somebody acted as the only owner of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub resource: String,
    pub holder: String,
    pub from_nanos: u64,
    pub until_nanos: u64,
}

/// A whole run, for checkers. Everything is in the order in which it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub operations: Vec<Operation>,
    pub watches: Vec<Watch>,
    pub roles: Vec<RoleReport>,
    pub hashes: Vec<HashReport>,
    pub holds: Vec<Hold>,
    pub faults: Vec<FaultReport>,
}

impl History {
    /// Reads what a [`Recorder`] wrote.
    ///
    /// # Errors
    /// Names the first line that cannot be used.
    pub fn read(reader: impl BufRead) -> Result<Self, HistoryError> {
        let mut assembly = Assembly::default();
        for (index, text) in reader.lines().enumerate() {
            let line = index + 1;
            if line > MAX_LINES {
                return Err(HistoryError::TooLong);
            }
            let text = text.map_err(|source| HistoryError::Read { line, source })?;
            let parsed = serde_json::from_str(&text).map_err(|source| HistoryError::Parse { line, source })?;
            assembly.add(line, parsed)?;
        }
        Ok(assembly.history)
    }
}

/// A history under way.
#[derive(Default)]
struct Assembly {
    history: History,
    last_nanos: u64,
    /// Operations without an answer yet, and all watches: where they stand.
    operations: FxHashMap<OperationId, usize>,
    watches: FxHashMap<WatchId, usize>,
}

impl Assembly {
    fn add(&mut self, line: usize, Line { at_nanos, event }: Line) -> Result<(), HistoryError> {
        if at_nanos < self.last_nanos {
            return Err(HistoryError::Backwards { line, at_nanos });
        }
        self.last_nanos = at_nanos;
        let history = &mut self.history;
        match event {
            Event::Invoke { operation: id, client, member, request } => {
                if self.operations.insert(id, history.operations.len()).is_some() {
                    return Err(HistoryError::Reopened { line });
                }
                let outcome = Outcome::Unknown { error: None };
                history.operations.push(Operation { id, client, member, request, invoked_nanos: at_nanos, outcome });
            }
            Event::Ok { operation, reply } => self.end(line, operation, Outcome::Ok { at_nanos, reply })?,
            Event::Fail { operation, error } => self.end(line, operation, Outcome::Fail { at_nanos, error })?,
            Event::Unknown { operation, error } => {
                self.end(line, operation, Outcome::Unknown { error: Some(error) })?;
            }
            Event::Watch { watch: id, watcher, member, request } => {
                if self.watches.insert(id, history.watches.len()).is_some() {
                    return Err(HistoryError::Reopened { line });
                }
                history.watches.push(Watch {
                    id,
                    watcher,
                    member,
                    request,
                    opened_nanos: at_nanos,
                    responses: Vec::new(),
                });
            }
            Event::Told { watch, response } => {
                let position = *self.watches.get(&watch).ok_or(HistoryError::Unopened { line })?;
                history.watches[position].responses.push((at_nanos, response));
            }
            Event::Role { member, term, role } => history.roles.push(RoleReport { at_nanos, member, term, role }),
            Event::Hash { member, revision, compact_revision, hash } => {
                history.hashes.push(HashReport { at_nanos, member, revision, compact_revision, hash });
            }
            Event::Fault { fault, from_nanos, until_nanos } => {
                history.faults.push(FaultReport { fault, from_nanos, until_nanos });
            }
            Event::Held { resource, holder, from_nanos, until_nanos } => {
                history.holds.push(Hold { resource, holder, from_nanos, until_nanos });
            }
        }
        Ok(())
    }

    fn end(&mut self, line: usize, operation: OperationId, outcome: Outcome) -> Result<(), HistoryError> {
        let position = self.operations.remove(&operation).ok_or(HistoryError::Unopened { line })?;
        self.history.operations[position].outcome = outcome;
        Ok(())
    }
}

impl Operation {
    /// The answer, when there is one.
    pub fn reply(&self) -> Option<&Reply> {
        match &self.outcome {
            Outcome::Ok { reply, .. } => Some(reply),
            Outcome::Fail { .. } | Outcome::Unknown { .. } => None,
        }
    }

    /// When its client knew that it succeeded.
    pub fn acknowledged_nanos(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Ok { at_nanos, .. } => Some(at_nanos),
            Outcome::Fail { .. } | Outcome::Unknown { .. } => None,
        }
    }

    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Fail { .. })
    }

    /// What it writes when it takes effect: each key, with its value or none for a deletion.
    pub fn writes(&self) -> Vec<(&str, Option<&str>)> {
        match &self.request {
            Request::Put { key, value, .. } => vec![(key, Some(value))],
            Request::Delete { key } => vec![(key, None)],
            Request::CompareAndSwap { key, value, .. } => vec![(key, value.as_deref())],
            Request::PutAll { puts } => puts.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))).collect(),
            Request::Get { .. }
            | Request::Compact { .. }
            | Request::Grant { .. }
            | Request::KeepAlive { .. }
            | Request::Revoke { .. } => Vec::new(),
        }
    }

    /// The revision that it made, when it was acknowledged and wrote something.
    pub fn written_at(&self) -> Option<Revision> {
        let reply = self.reply()?;
        let wrote = match reply.answer {
            // The comparison held, and there was nothing to delete.
            Answer::Done if self.deletes_nothing() => false,
            Answer::Done => !self.writes().is_empty(),
            Answer::Deleted(something) => something,
            Answer::Found(_) | Answer::Refused(_) | Answer::Ttl(_) => false,
        };
        reply.revision.filter(|_| wrote)
    }

    /// A transaction that deletes a key which it wants not to exist.
    pub(crate) fn deletes_nothing(&self) -> bool {
        matches!(self.request, Request::CompareAndSwap { expected: Revision(0), value: None, .. })
    }

    /// The key value that it was shown.
    pub fn seen(&self) -> Option<&KeyValue> {
        match &self.reply()?.answer {
            Answer::Found(found) | Answer::Refused(found) => found.as_ref(),
            Answer::Done | Answer::Deleted(_) | Answer::Ttl(_) => None,
        }
    }
}

impl Keys {
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
            Self::One(one) => key == one,
        }
    }
}

impl WatchRequest {
    /// Whether an event of that key and kind belongs to the watch.
    pub fn matches(&self, key: &str, kind: EventKind) -> bool {
        let unwanted = match kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        !unwanted && self.keys.contains(key)
    }
}

impl Response {
    /// Whether all it says is how far the watch has come.
    pub fn is_progress(&self) -> bool {
        self.events.is_empty() && !self.created && !self.canceled
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "m{}", self.0)
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl std::fmt::Display for KeyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, value, create_revision, mod_revision, version, lease } = self;
        write!(f, "{key}={value} (create {create_revision}, mod {mod_revision}, version {version}")?;
        match lease {
            0 => f.write_str(")"),
            lease => write!(f, ", lease {lease})"),
        }
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Get { key, read: Read::Linearizable } => write!(f, "get {key}"),
            Self::Get { key, read: Read::Serializable } => write!(f, "get {key} serializable"),
            Self::Get { key, read: Read::At(revision) } => write!(f, "get {key} serializable at {revision}"),
            Self::Put { key, value, lease: 0 } => write!(f, "put {key}={value}"),
            Self::Put { key, value, lease } => write!(f, "put {key}={value} lease {lease}"),
            Self::Delete { key } => write!(f, "delete {key}"),
            Self::CompareAndSwap { key, expected, value: Some(value) } => {
                write!(f, "put {key}={value} if mod {expected}")
            }
            Self::CompareAndSwap { key, expected, value: None } => write!(f, "delete {key} if mod {expected}"),
            Self::PutAll { puts } => {
                f.write_str("put")?;
                puts.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
            }
            Self::Compact { revision } => write!(f, "compact {revision}"),
            Self::Grant { lease, ttl_seconds } => write!(f, "grant lease {lease} for {ttl_seconds} s"),
            Self::KeepAlive { lease } => write!(f, "keep lease {lease} alive"),
            Self::Revoke { lease } => write!(f, "revoke lease {lease}"),
        }
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.answer {
            Answer::Done => f.write_str("done")?,
            Answer::Found(Some(kv)) => kv.fmt(f)?,
            Answer::Found(None) => f.write_str("nothing")?,
            Answer::Deleted(true) => f.write_str("deleted")?,
            Answer::Deleted(false) => f.write_str("nothing to delete")?,
            Answer::Refused(Some(kv)) => write!(f, "refused, for there is {kv}")?,
            Answer::Refused(None) => f.write_str("refused, for there is nothing")?,
            Answer::Ttl(0) => f.write_str("no such lease")?,
            Answer::Ttl(seconds) => write!(f, "{seconds} s")?,
        }
        if let Some(revision) = self.revision {
            write!(f, " at revision {revision}")?;
        }
        if let Some(term) = self.term {
            write!(f, " in term {term}")?;
        }
        Ok(())
    }
}

/// A line that a person can read: when, who, whom, what, and what became of it.
impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let began = self.invoked_nanos as f64 / 1e9;
        let ended = |nanos: u64| nanos as f64 / 1e9;
        let Self { client, member, request, .. } = self;
        match &self.outcome {
            Outcome::Ok { at_nanos, reply } => {
                write!(f, "[{began:.6} s to {:.6} s] {client} asks {member}: {request} -> {reply}", ended(*at_nanos))
            }
            Outcome::Fail { at_nanos, error } => {
                write!(f, "[{began:.6} s to {:.6} s] {client} asks {member}: {request} -> failed: ", ended(*at_nanos))?;
                f.write_str(error)
            }
            Outcome::Unknown { error } => {
                write!(f, "[{began:.6} s to ?] {client} asks {member}: {request} -> unknown")?;
                error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
            }
        }
    }
}

impl std::fmt::Display for WatchEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            EventKind::Put => write!(f, "put {}", self.kv)?,
            EventKind::Delete => write!(f, "delete {} (mod {})", self.kv.key, self.kv.mod_revision)?,
        }
        self.prev.as_ref().map_or(Ok(()), |prev| write!(f, " over {prev}"))
    }
}

/// Enough to find it in the history again.
impl std::fmt::Display for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, watcher, member, request, .. } = self;
        let keys = match &request.keys {
            Keys::All => "all keys".to_owned(),
            Keys::Prefix(prefix) => format!("{prefix}*"),
            Keys::One(key) => key.clone(),
        };
        write!(f, "watch {} of {watcher} on {member} ({keys} from {})", id.0, request.start_revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Request {
        Request::Put { key: key.to_owned(), value: value.to_owned(), lease: 0 }
    }

    fn done(revision: i64) -> Reply {
        Reply { revision: Some(Revision(revision)), term: Some(Term(1)), answer: Answer::Done }
    }

    fn read(text: &str) -> Result<History, HistoryError> {
        History::read(text.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_recorded_is_read_again() {
        let recorder = Recorder::new(Vec::new());
        let first = recorder.invoke(Client(1), Member(0), put("a", "1"));
        tokio::time::advance(std::time::Duration::from_millis(2)).await;
        let second = recorder.invoke(Client(2), Member(1), put("b", "2"));
        recorder.record(Event::Ok { operation: first, reply: done(2) });
        let third = recorder.invoke(Client(1), Member(0), put("a", "3"));
        recorder.record(Event::Unknown { operation: second, error: "no answer".to_owned() });
        recorder.record(Event::Fail { operation: third, error: "no leader".to_owned() });
        recorder.invoke(Client(3), Member(0), put("c", "4"));
        let request = WatchRequest {
            keys: Keys::All,
            start_revision: Revision(1),
            prev_kv: true,
            no_put: false,
            no_delete: false,
        };
        let watch = recorder.watch(Client(9), Member(2), request);
        recorder.record(Event::Told { watch, response: Response { created: true, ..Response::default() } });
        recorder.record(Event::Role { member: Member(1), term: Term(4), role: Role::Leader });

        let written = recorder.finish().expect("memory takes it");
        let history = History::read(written.as_slice()).expect("what was written is read");
        let outcomes: Vec<String> = history.operations.iter().map(ToString::to_string).collect();
        assert_eq!(
            outcomes,
            [
                "[0.000000 s to 0.002000 s] c1 asks m0: put a=1 -> done at revision 2 in term 1",
                "[0.002000 s to ?] c2 asks m1: put b=2 -> unknown: no answer",
                "[0.002000 s to 0.002000 s] c1 asks m0: put a=3 -> failed: no leader",
                "[0.002000 s to ?] c3 asks m0: put c=4 -> unknown",
            ]
        );
        assert!(history.watches[0].responses[0].1.created);
        assert_eq!(history.roles[0].term, Term(4));
    }

    #[test]
    fn lines_that_make_no_history_are_named() {
        let invoke =
            r#"{"at_nanos":5,"invoke":{"operation":1,"client":1,"member":0,"request":{"delete":{"key":"a"}}}}"#;
        let ok = r#"{"at_nanos":6,"ok":{"operation":1,"reply":{"answer":{"deleted":true}}}}"#;
        let early = r#"{"at_nanos":4,"role":{"member":0,"term":1,"role":"leader"}}"#;
        assert!(read(&format!("{invoke}\n{ok}\n")).is_ok());
        for (text, expected) in [
            (ok.to_owned(), "line 1 speaks of"),
            (format!("{invoke}\n{ok}\n{ok}"), "line 3 speaks of"),
            (format!("{invoke}\n{invoke}"), "line 2 opens"),
            (format!("{invoke}\n{early}"), "line 2 is of 4 ns"),
            (format!("{invoke}\nx"), "line 2 of the history does not parse"),
        ] {
            let error = read(&text).expect_err(&text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_disk_that_is_full_is_told_at_the_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let recorder = Recorder::new(Full);
        recorder.invoke(Client(1), Member(0), put("a", "1"));
        assert!(matches!(recorder.finish(), Err(HistoryError::Write(_))));
    }
}
