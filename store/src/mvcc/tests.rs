//! The engine against the model, from seeds, with crashes and compactions in between.

use std::path::Path;

use bytes::Bytes;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::response_op::Response;
use quorate_proto::etcd::*;
use quorate_proto::fence::Fence;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::model::Model;
use super::*;
use crate::apply::{Entry, Payload, StateMachine};
use crate::command::{Command, CommandResult, Operation, RequestId};

fn config(directory: &Path) -> Config {
    Config {
        block_cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
        history_bytes: 1 << 16,
        ..Config::new(directory.to_owned())
    }
}

fn entry(index: u64, operation: Operation) -> Entry {
    entry_of(index, Command::new(operation))
}

fn entry_of(index: u64, command: Command) -> Entry {
    Entry { id: EntryId { term: 1, node: 1, index }, payload: Payload::Command(command) }
}

fn put(key: &str, value: &str) -> Operation {
    Operation::Put(PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    })
}

fn delete(key: &str) -> Operation {
    Operation::DeleteRange(DeleteRangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() })
}

fn compact(revision: i64) -> Operation {
    Operation::Compact(CompactionRequest { revision, physical: false })
}

fn everything(revision: i64) -> RangeRequest {
    RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() }
}

/// Makes random requests over few keys, so that they meet.
pub(super) struct Generator(pub(super) StdRng);

impl Generator {
    fn key(&mut self) -> Bytes {
        const KEYS: [&[u8]; 10] = [b"a", b"a\0", b"a\0b", b"aa", b"b", b"b/1", b"b/2", b"b/3", b"c\xff", b"\xff\xff"];
        Bytes::from_static(KEYS[self.0.random_range(0..KEYS.len())])
    }

    fn span(&mut self) -> (Bytes, Bytes) {
        match self.0.random_range(0..6) {
            0 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            1 => (self.key(), Bytes::from_static(b"\0")),
            2 => (Bytes::from_static(b"b/"), Bytes::from_static(b"b0")),
            3 => (self.key(), self.key()),
            _ => (self.key(), Bytes::new()),
        }
    }

    fn value(&mut self) -> Bytes {
        let length = self.0.random_range(0..40);
        let letter = self.0.random_range(b'a'..=b'e');
        vec![letter; length].into()
    }

    fn lease(&mut self) -> i64 {
        if self.0.random_bool(0.6) { 0 } else { self.0.random_range(1..5) }
    }

    fn put(&mut self) -> PutRequest {
        let mut request = PutRequest {
            key: self.key(),
            value: self.value(),
            lease: self.lease(),
            prev_kv: self.0.random_bool(0.3),
            ..Default::default()
        };
        if self.0.random_bool(0.1) {
            request.ignore_value = true;
            request.value = Bytes::new();
        }
        if self.0.random_bool(0.1) {
            request.ignore_lease = true;
            request.lease = 0;
        }
        request
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = if self.0.random_bool(0.7) { (self.key(), Bytes::new()) } else { self.span() };
        DeleteRangeRequest { key, range_end, prev_kv: self.0.random_bool(0.3) }
    }

    pub(super) fn range(&mut self, model: &Model) -> RangeRequest {
        let (key, range_end) = self.span();
        let mut request = RangeRequest { key, range_end, ..Default::default() };
        if self.0.random_bool(0.5) {
            let oldest = if self.0.random_bool(0.5) { model.compacted } else { model.revision - 2 };
            request.revision = self.0.random_range(oldest - 1..=model.revision + 1);
        }
        if self.0.random_bool(0.4) {
            request.limit = self.0.random_range(1..4);
        }
        if self.0.random_bool(0.3) {
            request.sort_order = self.0.random_range(0..3);
            request.sort_target = self.0.random_range(0..5);
        }
        if self.0.random_bool(0.2) {
            request.min_mod_revision = self.0.random_range(0..=model.revision);
            request.max_create_revision = self.0.random_range(0..=model.revision);
        }
        request.keys_only = self.0.random_bool(0.1);
        request.count_only = self.0.random_bool(0.1);
        request
    }

    fn compare(&mut self, model: &Model) -> Compare {
        use compare::TargetUnion;
        let (key, range_end) = self.span();
        let revision = self.0.random_range(0..=model.revision);
        let target = self.0.random_range(0..5);
        let union = match target {
            0 => TargetUnion::Version(self.0.random_range(0..4)),
            1 => TargetUnion::CreateRevision(revision),
            2 => TargetUnion::ModRevision(revision),
            3 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(self.lease()),
        };
        Compare { result: self.0.random_range(0..4), target, key, range_end, target_union: Some(union) }
    }

    fn txn(&mut self, model: &Model, depth: u32) -> TxnRequest {
        let branch = |generator: &mut Generator| -> Vec<RequestOp> {
            let count = generator.0.random_range(0..4);
            (0..count)
                .map(|_| {
                    let request = match generator.0.random_range(0..8) {
                        0..3 => Request::RequestPut(generator.put()),
                        3 => Request::RequestDeleteRange(generator.delete()),
                        4 if depth < 2 => Request::RequestTxn(generator.txn(model, depth + 1)),
                        _ => Request::RequestRange(generator.range(model)),
                    };
                    RequestOp { request: Some(request) }
                })
                .collect()
        };
        let (success, failure) = (branch(self), branch(self));
        let compares = self.0.random_range(0..3);
        TxnRequest { compare: (0..compares).map(|_| self.compare(model)).collect(), success, failure }
    }

    pub(super) fn operation(&mut self, model: &Model) -> Operation {
        match self.0.random_range(0..40) {
            0..14 => Operation::Put(self.put()),
            14..18 => Operation::DeleteRange(self.delete()),
            18..32 => Operation::Txn(self.txn(model, 0)),
            32 => compact(self.0.random_range(model.compacted.max(0)..=model.revision + 1)),
            33 => compact((model.revision - 20).max(1)),
            34..37 => Operation::LeaseGrant { id: self.0.random_range(1..5), ttl: 60 },
            37..39 => Operation::LeaseRevoke { id: self.0.random_range(1..5) },
            _ => Operation::Noop,
        }
    }
}

/// The model does not follow the headers inside: they are checked on their own.
pub(super) fn without_headers(mut result: CommandResult) -> CommandResult {
    fn strip(response: &mut TxnResponse) {
        response.header = None;
        for operation in &mut response.responses {
            match operation.response.as_mut() {
                Some(Response::ResponseRange(response)) => response.header = None,
                Some(Response::ResponsePut(response)) => response.header = None,
                Some(Response::ResponseDeleteRange(response)) => response.header = None,
                Some(Response::ResponseTxn(response)) => strip(response),
                None => {}
            }
        }
    }
    match &mut result {
        CommandResult::Put(response) => response.header = None,
        CommandResult::DeleteRange(response) => response.header = None,
        CommandResult::Txn(response) => strip(response),
        _ => {}
    }
    result
}

fn header_revision(result: &CommandResult) -> Option<i64> {
    let header = match result {
        CommandResult::Put(response) => &response.header,
        CommandResult::DeleteRange(response) => &response.header,
        CommandResult::Txn(response) => &response.header,
        _ => return None,
    };
    header.as_ref().map(|header| header.revision)
}

fn check_reads(engine: &Engine, model: &Model, generator: &mut Generator, context: &str) {
    for _ in 0..4 {
        let request = generator.range(model);
        let expected = model.range(&request, model.revision, model.revision);
        match (engine.range(&request), expected) {
            (Ok(mut response), Ok(mut expected)) => {
                if is_plain(&request) {
                    assert_eq!(listed(engine.list(&request).expect("a range")).0, response, "{context}: {request:?}");
                }
                assert_eq!(response.header.take().map(|header| header.revision), Some(model.revision));
                expected.header = None;
                assert_eq!(response, expected, "{context}: {request:?}");
            }
            (Err(ReadError::Apply(error)), Err(expected)) => assert_eq!(error, expected, "{context}"),
            (got, expected) => panic!("{context}: {request:?}: {got:?} instead of {expected:?}"),
        }
    }
    for id in 1..5 {
        assert_eq!(engine.lease_keys(id).expect("keys"), model.lease_keys(id), "{context}: lease {id}");
    }
}

/// Everything between the compacted and the current revision, on disk as in the model.
fn check_history(engine: &Engine, model: &Model, context: &str) {
    for revision in model.compacted.max(1)..=model.revision {
        let request = everything(revision);
        let mut expected = model.range(&request, model.revision, model.revision).expect("a range");
        let mut got = engine.range(&request).expect("a range");
        (expected.header, got.header) = (None, None);
        assert_eq!(got, expected, "{context}: at revision {revision}");
    }
    let (zero, end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"b/3"));
    let key = Bytes::from_static(b"b/1");
    for range in [KeyRange::From(&zero), KeyRange::Span(&key, &end), KeyRange::One(&key)] {
        for limit in [usize::MAX, 2] {
            check_changes(engine, model, range, limit, context);
        }
    }
}

/// The changes of a range since the compacted revision, in pieces.
fn check_changes(engine: &Engine, model: &Model, range: KeyRange<'_>, limit: usize, context: &str) {
    let from = model.compacted.max(1);
    let mut changes = Vec::new();
    let mut next = from;
    while next <= model.revision {
        let History { changes: piece, upto } = engine.changes(next, range, limit, usize::MAX).expect("a history");
        assert!(upto >= next && piece.iter().all(|change| (next..=upto).contains(&change.row.revision.main)));
        let mut revisions: Vec<i64> = piece.iter().map(|change| change.row.revision.main).collect();
        assert!(revisions.is_sorted(), "{context}: {revisions:?}");
        revisions.dedup();
        assert!(revisions.len() <= limit, "{context}: {revisions:?}");
        changes.extend(piece);
        next = upto + 1;
    }
    changes.sort_by_key(|change| (change.row.revision.main, change.key.clone()));
    let mut expected = model.changes(from);
    expected.retain(|(_, key, _, _)| range.contains(key));
    assert_eq!(changes.len(), expected.len(), "{context}: changes of {range:?} since {from}");
    for (change, (revision, key, kv, previous)) in changes.into_iter().zip(expected) {
        assert_eq!((change.row.revision.main, &change.key), (revision, &key), "{context}");
        let row = Some(&change.row).filter(|row| !row.tombstone);
        assert_eq!(row.map(|row| row.to_key_value(key.clone())), kv, "{context}: {key:?} at {revision}");
        if revision > model.compacted {
            let before = change.previous.map(|row| row.to_key_value(key.clone()));
            assert_eq!(before, previous, "{context}: before {key:?} at {revision}");
        }
    }
}

fn run_against_model(seed: u64, steps: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let (single_path, batched_path) = (directory.path().join("single"), directory.path().join("batched"));
    let mut generator = Generator(StdRng::seed_from_u64(seed));
    let mut model = Model::new();
    let mut single = StateMachine::open(config(&single_path)).expect("it opens");
    let mut batched = StateMachine::open(config(&batched_path)).expect("it opens");
    let mut log: Vec<Entry> = Vec::new();
    let mut waiting: Vec<CommandResult> = Vec::new();
    for index in 1..=steps {
        let context = format!("seed {seed}, step {index}");
        let operation = generator.operation(&model);
        let next = entry(index, operation.clone());
        log.push(next.clone());
        let before = model.revision;
        let expected = without_headers(model.apply(&operation));
        let results = single.apply(vec![next]).expect("it applies");
        let result = results.into_iter().next().expect("a result");
        if let Some(revision) = header_revision(&result) {
            assert_eq!(revision, model.revision, "{context}: header of {operation:?}");
        }
        assert!(model.revision - before <= 1, "{context}");
        assert_eq!(without_headers(result.clone()), expected, "{context}: {operation:?}");
        waiting.push(result);
        assert_eq!(single.engine().revision(), model.revision, "{context}");
        check_reads(&single.engine(), &model, &mut generator, &context);
        if generator.0.random_bool(0.1) {
            let batch = log[log.len() - waiting.len()..].to_vec();
            assert_eq!(batched.apply(batch).expect("it applies"), waiting, "{context}: batched");
            waiting.clear();
            assert_eq!(batched.engine().applied_hash(), single.engine().applied_hash(), "{context}");
            check_reads(&batched.engine(), &model, &mut generator, &context);
        }
        match generator.0.random_range(0..60) {
            0 => single.engine().flush().expect("a flush"),
            1 => {
                let instance = batched.engine().live();
                instance.flush().expect("a flush");
                instance.db.compact_range(None::<&[u8]>, None::<&[u8]>);
            }
            2 => {
                // A crash: what was not flushed is gone, the log brings it back.
                batched.engine().live().db.cancel_all_background_work(true);
                drop(batched);
                batched = StateMachine::open(config(&batched_path)).expect("it opens again");
                let applied = batched.applied().map_or(0, |id| id.index) as usize;
                let upto = log.len() - waiting.len();
                batched.apply(log[applied..upto].to_vec()).expect("it applies");
                assert_eq!(batched.engine().applied_index() as usize, upto.max(applied), "{context}");
            }
            _ => {}
        }
    }
    let context = format!("seed {seed}, at the end");
    batched.apply(log[log.len() - waiting.len()..].to_vec()).expect("it applies");
    for engine in [single.engine(), batched.engine()] {
        check_history(&engine, &model, &context);
        collect::collect(&engine.live(), || true).expect("a collection");
        engine.live().db.compact_range(None::<&[u8]>, None::<&[u8]>);
        check_history(&engine, &model, &context);
    }
    for revision in model.compacted.max(1)..=model.revision {
        let hash = |engine: &Engine| engine.hash_kv(revision).expect("a hash");
        assert_eq!(hash(&single.engine()), hash(&batched.engine()), "{context}: hash at {revision}");
    }
}

/// A failure names its seed: `run_against_model(SEED, STEPS)` replays it.
#[test]
fn the_engine_does_what_the_model_does() {
    for seed in 1..=6 {
        run_against_model(seed, 600);
    }
}

fn opened() -> (tempfile::TempDir, StateMachine) {
    let directory = tempfile::tempdir().expect("a directory");
    let machine = StateMachine::open(config(&directory.path().join("state"))).expect("it opens");
    (directory, machine)
}

fn apply_all(machine: &mut StateMachine, operations: Vec<Operation>) -> Vec<CommandResult> {
    let first = machine.applied().map_or(1, |id| id.index + 1);
    let entries = operations.into_iter().enumerate().map(|(n, o)| entry(first + n as u64, o)).collect();
    machine.apply(entries).expect("it applies")
}

fn count_rows(engine: &Engine, kind: u8) -> usize {
    let mut count = 0;
    let (from, to) = rows::bounds(kind);
    let counted = engine.live().scan(&from, &to, |_, _| {
        count += 1;
        Ok(true)
    });
    counted.expect("a scan");
    count
}

#[test]
fn compaction_removes_what_nobody_can_read() {
    let (_directory, mut machine) = opened();
    for round in 0..50 {
        apply_all(&mut machine, vec![put("kept", &round.to_string()), put("gone", "x"), delete("gone")]);
    }
    let revision = machine.engine().revision();
    apply_all(&mut machine, vec![compact(revision)]);
    let engine = machine.engine();
    collect::collect(&engine.live(), || true).expect("a collection");
    engine.live().db.compact_range(None::<&[u8]>, None::<&[u8]>);
    // The live version, and the deletion exactly at the compacted revision with the
    // change that a watch from there still sees.
    assert_eq!(count_rows(&engine, rows::KEYS), 2);
    assert_eq!(count_rows(&engine, rows::CHANGES), 1);
    apply_all(&mut machine, vec![put("kept", "last"), compact(revision + 1)]);
    collect::collect(&engine.live(), || true).expect("a collection");
    engine.live().db.compact_range(None::<&[u8]>, None::<&[u8]>);
    assert_eq!(count_rows(&engine, rows::KEYS), 1);
    let old = engine.range(&everything(revision)).expect_err("compacted");
    assert!(matches!(old, ReadError::Apply(ApplyError::Compacted)));
}

#[test]
fn a_fence_of_another_reign_stops_a_write() {
    let (_directory, mut machine) = opened();
    let fenced = |index, generation, term| {
        let fence = Some(Fence { generation, term });
        entry_of(index, Command { request: None, fence, actor: None, operation: put("k", "v") })
    };
    let results = machine.apply(vec![fenced(1, 1, 2), fenced(2, 2, 1), fenced(3, 1, 1)]).expect("it applies");
    assert_eq!(results[0], CommandResult::Error(ApplyError::FenceNotCurrent));
    assert_eq!(results[1], CommandResult::Error(ApplyError::FenceNotCurrent));
    assert!(matches!(results[2], CommandResult::Put(_)));
    assert_eq!(machine.engine().revision(), 2);
}

#[test]
fn a_request_proposed_twice_takes_effect_once_even_after_a_restart() {
    let (directory, mut machine) = opened();
    let request = |sequence| Some(RequestId { client: 7, sequence, since: 0 });
    let proposal = |index, sequence| {
        entry_of(index, Command { request: request(sequence), fence: None, actor: None, operation: put("k", "v") })
    };
    let first = machine.apply(vec![proposal(1, 1), proposal(2, 1)]).expect("it applies");
    assert_eq!(first[0], first[1]);
    assert_eq!(machine.engine().revision(), 2);
    machine.engine().flush().expect("a flush");
    drop(machine);
    let mut machine = StateMachine::open(config(&directory.path().join("state"))).expect("it opens");
    assert_eq!(machine.apply(vec![proposal(3, 1)]).expect("it applies"), first[..1]);
    assert_eq!(machine.engine().revision(), 2);
    let second = machine.apply(vec![proposal(4, 2)]).expect("it applies");
    assert_ne!(second, first[..1]);
}

#[test]
fn a_forgotten_request_is_refused_not_repeated() {
    let (_directory, mut machine) = opened();
    let proposal = |index, sequence, since| {
        let request = Some(RequestId { client: 7, sequence, since });
        entry_of(index, Command { request, fence: None, actor: None, operation: Operation::Noop })
    };
    machine.apply((1..=40_000).map(|n| proposal(n, n, 0)).collect()).expect("it applies");
    let expired = vec![CommandResult::Error(ApplyError::RequestExpired)];
    assert_eq!(machine.apply(vec![proposal(40_001, 1, 0)]).expect("it applies"), expired);
    let fresh = machine.apply(vec![proposal(40_002, 50_000, 39_999)]).expect("it applies");
    assert_eq!(fresh, [CommandResult::Done { revision: 1 }]);
}

#[test]
fn a_large_result_is_not_kept_and_makes_no_other_forgotten() {
    let (directory, mut machine) = opened();
    let value = "v".repeat(1 << 20);
    apply_all(&mut machine, (0..9).map(|number| put(&format!("a{number}"), &value)).collect());
    let proposal = |index, sequence, operation| {
        let request = Some(RequestId { client: 7, sequence, since: 0 });
        entry_of(index, Command { request, fence: None, actor: None, operation })
    };
    let delete = || {
        let (key, range_end) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        Operation::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: true })
    };
    let entries = vec![proposal(10, 1, put("k", "1")), proposal(11, 2, delete()), proposal(12, 3, put("k", "2"))];
    let results = machine.apply(entries).expect("it applies");
    let CommandResult::DeleteRange(deleted) = &results[1] else { panic!("{:?}", results[1]) };
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (9, 9), "whoever asks first is answered");
    assert!(matches!(results[2], CommandResult::Put(_)), "what was under way goes on");

    let expired = CommandResult::Error(ApplyError::RequestExpired);
    let check = |machine: &mut StateMachine, index: u64| {
        let (before, new) = (machine.engine().revision(), 100 + index);
        let entries = vec![
            proposal(index, 1, put("k", "1")),
            proposal(index + 1, 2, delete()),
            proposal(index + 2, new, put("a", "new")),
            proposal(index + 3, 2, delete()),
        ];
        let again = machine.apply(entries).expect("it applies");
        assert_eq!((&again[0], &again[1], &again[3]), (&results[0], &expired, &expired));
        assert_eq!(machine.engine().revision(), before + 1, "nothing but the new one takes effect");
        let rows = machine.engine().live().requests(|_, request| assert!(request.result.len() <= 256));
        rows.expect("the rows of requests");
    };
    check(&mut machine, 13);
    let received = directory.path().join("received");
    machine.engine().checkpoint(&received).expect("a checkpoint");
    let (_other, mut follower) = opened();
    follower.install(&received).expect("it installs");
    check(&mut follower, 17);
    drop(machine);
    let mut machine = StateMachine::open(config(&directory.path().join("state"))).expect("it opens");
    check(&mut machine, 17);
    assert_eq!(machine.engine().applied_hash(), follower.engine().applied_hash());
}

#[test]
fn an_installed_checkpoint_replaces_everything() {
    let (from_directory, mut from) = opened();
    let (_directory, mut to) = opened();
    let membership = Payload::Membership { stored: Bytes::from_static(b"members"), ids: vec![1] };
    from.apply(vec![Entry { id: EntryId { term: 1, node: 1, index: 1 }, payload: membership }]).expect("it applies");
    apply_all(&mut from, vec![put("a", "1"), Operation::LeaseGrant { id: 9, ttl: 60 }, put("b", "2")]);
    apply_all(&mut to, vec![put("other", "x")]);
    let received = from_directory.path().join("received");
    let checkpoint = from.engine().checkpoint(&received).expect("a checkpoint");
    assert_eq!((checkpoint.revision, checkpoint.applied), (3, from.applied()));
    apply_all(&mut from, vec![put("later", "x")]);
    to.install(&received).expect("it installs");
    assert_eq!((to.applied(), to.membership()), (checkpoint.applied, checkpoint.membership));
    assert_eq!(to.engine().leases(), [LeaseRecord { id: 9, ttl: 60, remaining: 0 }]);
    let keys = to.engine().range(&everything(0)).expect("a range").kvs;
    assert_eq!(keys.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    apply_all(&mut to, vec![put("later", "x")]);
    assert_eq!(to.engine().applied_hash(), from.engine().applied_hash());
}

#[test]
fn only_what_is_flushed_counts_as_durable() {
    let (directory, mut machine) = opened();
    apply_all(&mut machine, vec![put("a", "1")]);
    assert_eq!(machine.engine().flushed_applied().expect("an index"), 0);
    machine.engine().flush().expect("a flush");
    assert_eq!(machine.engine().flushed_applied().expect("an index"), 1);
    apply_all(&mut machine, vec![put("a", "2")]);
    assert_eq!((machine.engine().applied_index(), machine.engine().flushed_applied().expect("an index")), (2, 1));
    // A copy of the files is what a crash would leave.
    let copy = directory.path().join("copy");
    copy_tree(&directory.path().join("state"), &copy);
    let after = StateMachine::open(config(&copy)).expect("it opens");
    assert_eq!(after.engine().applied_index(), 1);
    assert_eq!(after.engine().range(&everything(0)).expect("a range").kvs[0].value, "1");
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a listing") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[test]
fn a_damaged_state_names_the_directory_and_the_way_out() {
    let (directory, machine) = opened();
    machine.engine().flush().expect("a flush");
    drop(machine);
    let state = directory.path().join("state");
    let database = state.join(std::fs::read_to_string(state.join("CURRENT")).expect("a name"));
    let manifest = std::fs::read_dir(&database).expect("a listing").find_map(|entry| {
        let path = entry.expect("an entry").path();
        path.file_name()?.to_str()?.starts_with("MANIFEST").then_some(path)
    });
    std::fs::write(manifest.expect("a manifest"), b"not a manifest").expect("a write");
    let error = StateMachine::open(config(&state)).err().expect("it refuses").to_string();
    assert!(error.contains("db-1") && error.contains("re-seeded"), "{error}");
}

/// The answer to a plain range that comes in pieces, put together; and how many pieces.
fn listed(listing: Listing) -> (RangeResponse, usize) {
    let header = ResponseHeader { revision: listing.revision, ..Default::default() };
    let (first, length, mut rest) = listing.into_message(header);
    let (mut message, mut pieces) = (first.to_vec(), 1);
    while let Some(piece) = rest.as_mut().and_then(|rest| rest.piece().expect("it is read")) {
        assert!(piece.len() < 2 * (64 << 10), "a piece of {} bytes", piece.len());
        message.extend_from_slice(&piece);
        pieces += 1;
    }
    assert_eq!(message.len(), length, "the length is told before");
    (prost::Message::decode(&message[..]).expect("a response"), pieces)
}

#[test]
fn a_large_range_comes_in_pieces_of_one_moment() {
    let (_directory, mut machine) = opened();
    let value = "v".repeat(4 << 10);
    apply_all(&mut machine, (0..300).map(|number| put(&format!("k{number:03}"), &value)).collect());
    apply_all(&mut machine, vec![put("k007", ""), delete("k150"), put("z\0z", "escaped")]);
    let engine = machine.engine();
    for (limit, keys_only) in [(0, false), (200, false), (200, true), (0, true), (1, false)] {
        let request = RangeRequest { limit, keys_only, ..everything(0) };
        let expected = engine.range(&request).expect("a range");
        let (response, pieces) = listed(engine.list(&request).expect("a range"));
        assert_eq!(response, expected, "{request:?}");
        assert_eq!(pieces > 1, !keys_only && limit != 1, "{request:?}: {pieces} pieces");
    }
    let expected = engine.range(&everything(0)).expect("a range");
    let listing = engine.list(&everything(0)).expect("a range");
    let mut index = engine.applied_index();
    let mut apply = |operation| {
        index += 1;
        machine.apply(vec![entry(index, operation)]).expect("it applies");
    };
    (0..300).for_each(|number| apply(delete(&format!("k{number:03}"))));
    apply(put("k000", "after"));
    apply(compact(engine.revision()));
    engine.flush().expect("a flush");
    engine.live().db.compact_range::<&[u8], &[u8]>(None, None);
    assert_eq!(listed(listing).0, expected, "what was removed meanwhile is still told");
}
