//! What clients asked and saw, as lines of JSON: one for each invocation, each answer and
//! each observation, in the order in which they happened.
//!
//! A [`Recorder`] writes lines and keeps none, so that a run may last for days. A [`History`]
//! is read from them afterwards and holds every operation in memory.

mod event;
mod recorder;
mod text;

use std::io::BufRead;

use rustc_hash::FxHashMap;

pub use self::event::*;
pub use self::recorder::Recorder;

/// How many lines a history may have to be read: they are held in memory. A longer run is
/// checked in pieces.
const MAX_LINES: usize = 20_000_000;

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
        impl std::io::Write for Full {
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
