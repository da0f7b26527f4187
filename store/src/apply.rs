//! From entries to changes: the one writer of the state machine.
//!
//! Deterministic: members that apply the same entries hold the same, whatever their
//! batches. An entry whose request took effect before answers with the first result. What
//! a client asked for is permitted by the users and roles as they are at its entry.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::auth::Permit;
use crate::command::{ApplyError, Command, CommandResult, RequestId};
use crate::mvcc::{self, Config, Engine, EngineError, Latest, Pending, ReadError, Request};
use crate::telemetry;
use crate::wal::EntryId;
use crate::watch::Hub;

/// What an entry says.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Nothing.
    Blank,
    /// A change asked for by a client.
    Command(Command),
    /// Who is a member from here on.
    Membership {
        /// Not interpreted here.
        stored: Bytes,
        /// Everybody in it.
        ids: Vec<u64>,
    },
}

/// An entry to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// What it says.
    pub payload: Payload,
}

/// The results of how many requests are kept for proposals that come twice. A proposal
/// that comes after it could have been forgotten is refused, never applied again.
const MAX_REQUESTS: usize = 32 * 1024;
/// A larger result is not kept, only that there was one: the table then has a bound in bytes,
/// and what one request answers never makes it forget others.
const MAX_RESULT_BYTES: usize = 256;
/// Forgetting is done for so many at a time.
const FORGET_AT_ONCE: usize = 4 * 1024;

/// The state machine; its one owner applies, everybody may read through `engine`.
pub struct StateMachine {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    collector: mvcc::Collector,
    requests: Requests,
    latest: Latest,
    membership: Option<Bytes>,
}

impl StateMachine {
    /// Opens the state machine in `config.directory`, or makes an empty one. What was applied
    /// but not flushed before a crash is not there: the log has to be replayed from `applied`.
    ///
    /// # Errors
    /// When a file or the database refuses.
    pub fn open(config: Config) -> Result<StateMachine, EngineError> {
        let (history_bytes, latest) = (config.history_bytes, Latest::new(config.latest_bytes));
        let directory = config.directory.clone();
        let engine = Arc::new(Engine::open(config)?);
        let hub = Arc::new(Hub::new(engine.clone(), history_bytes));
        let collector = mvcc::Collector::start(engine.clone()).map_err(|source| EngineError::File {
            action: "start a thread for",
            path: directory,
            source,
        })?;
        let requests = Requests::load(&engine)?;
        let membership = engine.membership()?;
        // A crash may have come between a compaction and its collection.
        collector.notify();
        Ok(StateMachine { engine, hub, collector, requests, latest, membership })
    }

    /// Reads, from any task.
    pub fn engine(&self) -> Arc<Engine> {
        self.engine.clone()
    }

    /// Watches, from any task.
    pub fn hub(&self) -> Arc<Hub> {
        self.hub.clone()
    }

    /// The entry applied last.
    pub fn applied(&self) -> Option<EntryId> {
        self.engine.live().applied()
    }

    /// What the last membership entry carried.
    pub fn membership(&self) -> Option<Bytes> {
        self.membership.clone()
    }

    /// Applies entries that follow the one applied last, all in one write; returns a result
    /// for each. They are visible to readers when this returns, and durable once flushed.
    ///
    /// # Errors
    /// The state machine is broken and the process has to end: what was applied of the
    /// entries is not known.
    pub fn apply(&mut self, entries: Vec<Entry>) -> Result<Vec<CommandResult>, EngineError> {
        let instance = self.engine.live();
        let mut applied = instance.applied();
        let Some(last) = entries.last().map(|entry| entry.id) else { return Ok(Vec::new()) };
        let mut pending = Pending::new(&instance, &mut self.latest);
        let compacted = instance.compact_revision();
        let mut results = Vec::with_capacity(entries.len());
        let mut hashes = Vec::with_capacity(entries.len());
        for Entry { id, payload } in entries {
            if let Some(applied) = applied.filter(|applied| applied.index + 1 != id.index) {
                return Err(EngineError::OutOfOrder { applied: applied.index, got: id.index });
            }
            applied = Some(id);
            let result = match payload {
                Payload::Blank => CommandResult::Done { revision: pending.revision() },
                Payload::Membership { stored, ids } => {
                    pending.set_membership(&stored, &ids)?;
                    self.membership = Some(stored);
                    CommandResult::Done { revision: pending.revision() }
                }
                Payload::Command(command) => self.requests.run(&mut pending, id, last.index, &command)?,
            };
            results.push(result);
            hashes.push((id.index, pending.hash()));
        }
        let changes = pending.commit(last)?;
        telemetry::applied(&results, &changes);
        self.engine.trail().extend(hashes);
        let revision = instance.revision();
        self.hub.publish(changes, revision);
        if instance.compact_revision() != compacted {
            self.collector.notify();
        }
        Ok(results)
    }

    /// Replaces everything by the checkpoint whose files are in `directory`, which is moved
    /// away. Watchers go on from the new history, or are told that theirs was compacted.
    ///
    /// # Errors
    /// When a file or the database refuses: then the old state is still in place.
    pub fn install(&mut self, directory: &Path) -> Result<(), EngineError> {
        self.engine.install(directory)?;
        self.requests = Requests::load(&self.engine)?;
        self.latest.clear();
        self.membership = self.engine.membership()?;
        self.hub.restart(self.engine.revision());
        self.collector.notify();
        Ok(())
    }
}

/// Which recent requests took effect. Their results are rows of the database only: few are
/// ever asked for.
#[derive(Default)]
struct Requests {
    /// The row of each: that of its batch.
    known: HashMap<(u64, u64), u64>,
    /// By log index.
    order: VecDeque<(u64, (u64, u64))>,
}

impl Requests {
    fn load(engine: &Engine) -> Result<Requests, EngineError> {
        let mut requests = Requests::default();
        engine.live().requests(|row, request| {
            requests.insert(request.index, row, (request.client, request.sequence));
        })?;
        Ok(requests)
    }

    fn insert(&mut self, index: u64, row: u64, key: (u64, u64)) {
        self.order.push_back((index, key));
        self.known.insert(key, row);
    }

    /// Executes a command of a batch whose requests go into that row, once.
    fn run(
        &mut self,
        pending: &mut Pending<'_>,
        id: EntryId,
        row: u64,
        command: &Command,
    ) -> Result<CommandResult, EngineError> {
        let Some(RequestId { client, sequence, since }) = command.request else {
            return execute(pending, id, command);
        };
        let key = (client, sequence);
        if let Some(row) = self.known.get(&key) {
            let decoded = CommandResult::decode(pending.request(*row, client, sequence)?);
            return Ok(decoded.unwrap_or_else(|error| CommandResult::Error(ApplyError::Undecodable(error.to_string()))));
        }
        if since < pending.forgotten() {
            return Ok(CommandResult::Error(ApplyError::RequestExpired));
        }
        let result = execute(pending, id, command)?;
        // Results without an effect too: answered "no" once, it must not take effect later.
        pending.put_request(Request { index: id.index, client, sequence, result: &kept(&result) });
        self.insert(id.index, row, key);
        self.forget(pending);
        Ok(result)
    }

    fn forget(&mut self, pending: &mut Pending<'_>) {
        if self.order.len() < MAX_REQUESTS + FORGET_AT_ONCE {
            return;
        }
        let mut upto = 0;
        for (index, key) in self.order.drain(..FORGET_AT_ONCE) {
            self.known.remove(&key);
            upto = index;
        }
        pending.forget_requests(upto);
    }
}

/// What the table keeps of a result.
fn kept(result: &CommandResult) -> Bytes {
    let encoded = result.encode();
    match encoded.len() <= MAX_RESULT_BYTES {
        true => encoded,
        false => CommandResult::Error(ApplyError::RequestExpired).encode(),
    }
}

fn execute(pending: &mut Pending<'_>, id: EntryId, command: &Command) -> Result<CommandResult, EngineError> {
    // The entry's own term: a deposed leader's entry is in its term, whoever commits it.
    let current =
        |fence: quorate_proto::fence::Fence| fence.generation == pending.generation() && fence.term == id.term;
    if command.fence.is_some_and(|fence| !current(fence)) {
        return Ok(CommandResult::Error(ApplyError::FenceNotCurrent));
    }
    let permitted = command
        .actor
        .as_ref()
        .map_or(Ok(()), |actor| Permit::new(&pending.auth(), actor).operation(&command.operation, pending));
    match permitted.and_then(|()| mvcc::execute(pending, &command.operation)) {
        Ok(result) => Ok(result),
        Err(ReadError::Apply(error)) => Ok(CommandResult::Error(error)),
        Err(ReadError::Engine(error)) => Err(error),
    }
}
