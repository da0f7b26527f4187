//! From a state machine to a file and back, from seeds.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use quorate_proto::authpb::Permission;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::*;
use crate::apply::{Entry, Payload, StateMachine};
use crate::auth::AuthChange;
use crate::command::{Command, Operation};
use crate::config::Config;
use crate::mvcc::{self, Engine, KeyRange};
use crate::wal::EntryId;

fn machine_config(directory: &Path) -> mvcc::Config {
    mvcc::Config {
        block_cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
        history_bytes: 1 << 16,
        ..mvcc::Config::new(directory.to_owned())
    }
}

/// A state machine that has lived: few keys, so that they have history.
struct Past {
    machine: StateMachine,
    random: StdRng,
    index: u64,
    directory: TempDir,
}

impl Past {
    fn new(seed: u64) -> Past {
        let directory = tempfile::tempdir().unwrap();
        let machine = StateMachine::open(machine_config(&directory.path().join("db"))).unwrap();
        Past { machine, random: StdRng::seed_from_u64(seed), index: 0, directory }
    }

    fn apply(&mut self, operation: Operation) {
        self.index += 1;
        let id = EntryId { term: 3, node: 0, index: self.index };
        self.machine.apply(vec![Entry { id, payload: Payload::Command(Command::new(operation)) }]).unwrap();
    }

    fn key(&mut self) -> Bytes {
        let key = format!("k{}", self.random.random_range(0..12));
        if self.random.random_bool(0.1) { Bytes::from_static(b"\0\xff") } else { key.into() }
    }

    fn put(&mut self) -> PutRequest {
        let (key, lease) = (self.key(), if self.random.random_bool(0.3) { self.random.random_range(1..4) } else { 0 });
        let length = if self.random.random_bool(0.05) { 9000 } else { 20 };
        let value = vec![self.random.random(); self.random.random_range(0..length)].into();
        PutRequest { key, value, lease, ..Default::default() }
    }

    fn step(&mut self) {
        let operation = match self.random.random_range(0..20) {
            0 => Operation::LeaseGrant { id: self.random.random_range(1..4), ttl: 60 },
            1 => Operation::LeaseRevoke { id: self.random.random_range(1..4) },
            2 => Operation::LeaseCheckpoint(vec![(self.random.random_range(1..4), 30)]),
            3 => {
                let revision = self.machine.engine().revision();
                let revision = self.random.random_range(0..=revision);
                Operation::Compact(CompactionRequest { revision, physical: false })
            }
            4..8 => {
                let key = self.key();
                let range_end = if self.random.random_bool(0.2) { Bytes::from_static(b"k5") } else { Bytes::new() };
                Operation::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })
            }
            8..11 => {
                let mut keys = std::collections::BTreeMap::new();
                for _ in 0..4 {
                    let request = self.put();
                    keys.insert(request.key.clone(), RequestOp { request: Some(Request::RequestPut(request)) });
                }
                Operation::Txn(TxnRequest { success: keys.into_values().collect(), ..Default::default() })
            }
            _ => Operation::Put(self.put()),
        };
        self.apply(operation);
    }

    fn users(&mut self) {
        let (user, role) = ("root".to_owned(), "root".to_owned());
        let permission = Permission { perm_type: 2, key: "k".into(), range_end: "l".into() };
        let changes = [
            AuthChange::UserAdd { name: user.clone(), password: "$2b$".into(), no_password: false },
            AuthChange::RoleAdd { name: role.clone() },
            AuthChange::RoleAdd { name: "some".into() },
            AuthChange::RoleGrantPermission { role: "some".into(), permission: Some(permission) },
            AuthChange::UserGrantRole { user, role },
            AuthChange::Enable { secret: "secret".into() },
        ];
        changes.into_iter().for_each(|change| self.apply(Operation::Auth(change)));
    }

    fn save(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        save(&self.machine.engine(), self.directory.path(), &path);
        path
    }
}

fn save(engine: &Engine, scratch: &Path, path: &Path) {
    use std::io::{Read, Seek, SeekFrom};
    let mut exported = export(engine, scratch).unwrap();
    let mut bytes = Vec::new();
    exported.file.seek(SeekFrom::Start(0)).unwrap();
    exported.file.read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.len() as u64, exported.revision), (exported.size_bytes, engine.revision()));
    bytes.extend_from_slice(&exported.checksum);
    fs::write(path, bytes).unwrap();
}

fn settings(source: &Path, target: &Path) -> Restore {
    let mut member = Config::new("a", target);
    member.initial_cluster = vec![("a".into(), "127.0.0.1:1".into()), ("b".into(), "127.0.0.1:2".into())];
    Restore { source: source.to_owned(), skip_hash_check: false, bump_revision: None, mark_compacted: None, member }
}

fn exactly(source: &Path, target: &Path) -> Restore {
    Restore { bump_revision: Some(0), ..settings(source, target) }
}

fn quiet(_: u64, _: u64) {}

fn open(data_dir: &Path) -> StateMachine {
    StateMachine::open(machine_config(&data_dir.join("db"))).unwrap()
}

fn everything(revision: i64) -> RangeRequest {
    RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() }
}

fn content(engine: &Engine, revision: i64) -> Vec<quorate_proto::mvccpb::KeyValue> {
    engine.range(&everything(revision)).unwrap().kvs
}

/// All that a client could see, at every revision that can still be read.
fn assert_same(before: &Engine, after: &Engine, seed: u64) {
    assert_eq!(after.revision(), before.revision(), "seed {seed}");
    assert_eq!(after.compact_revision(), before.compact_revision(), "seed {seed}");
    let oldest = before.compact_revision().max(1);
    for revision in oldest..=before.revision() {
        assert_eq!(content(after, revision), content(before, revision), "seed {seed}, revision {revision}");
    }
    let first = Bytes::from_static(b"\0");
    let changes =
        |engine: &Engine| engine.changes(oldest, KeyRange::From(&first), usize::MAX, usize::MAX).unwrap().changes;
    assert_eq!(changes(after), changes(before), "seed {seed}");
    assert_eq!(after.leases(), before.leases(), "seed {seed}");
    for lease in before.leases() {
        assert_eq!(after.lease_keys(lease.id).unwrap(), before.lease_keys(lease.id).unwrap(), "seed {seed}");
    }
    assert_eq!(after.hash_kv(0).unwrap(), before.hash_kv(0).unwrap(), "seed {seed}");
}

#[test]
fn a_restored_state_is_the_saved_one() {
    for seed in 0..8 {
        let mut past = Past::new(seed);
        for _ in 0..past.random.random_range(0..300) {
            past.step();
        }
        if seed % 2 == 0 {
            past.users();
        }
        let engine = past.machine.engine();
        let (file, target) = (past.save("snapshot.db"), past.directory.path().join("new"));
        let restored = restore(&exactly(&file, &target), &mut quiet).unwrap();
        assert_eq!((restored.saved_revision, restored.revision), (engine.revision(), engine.revision()));
        let mut after = open(&target);
        assert_same(&engine, &after.engine(), seed);
        let (auth, saved) = (after.engine().auth(), engine.auth());
        assert_eq!((auth.enabled(), auth.revision()), (saved.enabled(), saved.revision()));
        assert_eq!((auth.user("root"), auth.role("some")), (saved.user("root"), saved.role("some")));
        assert!(auth.secret().is_empty(), "tokens of the old cluster are void");

        // And it lives on: what is written next takes the next revision.
        let next = PutRequest { key: "next".into(), ..Default::default() };
        let id = EntryId { term: 2, node: 0, index: 2 };
        let payload = Payload::Command(Command::new(Operation::Put(next)));
        after.apply(vec![Entry { id, payload }]).unwrap();
        assert_eq!(after.engine().revision(), engine.revision() + 1);

        // A second time around, the file holds the same.
        let again = past.directory.path().join("again.db");
        drop(after);
        fs::remove_dir_all(&target).unwrap();
        restore(&exactly(&file, &target), &mut quiet).unwrap();
        save(&open(&target).engine(), past.directory.path(), &again);
        let keys = |path: &Path| summarize(path, false, &mut quiet).map(|found| (found.revision, found.total_key));
        assert_eq!(keys(&again).unwrap(), keys(&file).unwrap(), "seed {seed}");
    }
}

#[test]
fn a_raised_revision_is_never_a_known_one() {
    let mut past = Past::new(1);
    (0..200).for_each(|_| past.step());
    let engine = past.machine.engine();
    let (file, target) = (past.save("snapshot.db"), past.directory.path().join("new"));
    let restored = restore(&settings(&file, &target), &mut quiet).unwrap();
    assert_eq!(restored.revision, engine.revision() + 1_000_000_000);
    assert_eq!(restored.compact_revision, restored.revision);
    let after = open(&target);
    assert_eq!(content(&after.engine(), 0), content(&engine, 0));
    // Whatever a watch had seen last, it hears that something is missing.
    let first = Bytes::from_static(b"\0");
    for from in [1, engine.revision(), engine.revision() + 7, restored.revision - 1] {
        assert!(after.engine().changes(from, KeyRange::From(&first), 1, 1).is_err(), "{from}");
    }
    let nothing = after.engine().changes(restored.revision, KeyRange::From(&first), 1, 1).unwrap().changes;
    assert!(nothing.is_empty(), "{nothing:?}");

    // The revision survives the next snapshot although nothing was written at it.
    for (number, mark_compacted) in [Some(true), Some(false)].into_iter().enumerate() {
        let target = past.directory.path().join(format!("raised-{number}"));
        restore(&Restore { bump_revision: Some(50), mark_compacted, ..settings(&file, &target) }, &mut quiet).unwrap();
        let raised = open(&target);
        let next = past.directory.path().join(format!("raised-{number}.db"));
        save(&raised.engine(), past.directory.path(), &next);
        let target = past.directory.path().join(format!("again-{number}"));
        let again = restore(&exactly(&next, &target), &mut quiet).unwrap();
        assert_eq!(again.revision, engine.revision() + 50);
        assert_same(&raised.engine(), &open(&target).engine(), 1);
    }
}

#[test]
fn members_agree_and_are_strangers_to_the_old_ones() {
    let mut past = Past::new(2);
    (0..50).for_each(|_| past.step());
    let file = past.save("snapshot.db");
    let restore_as = |name: &str, directory: &str, bump: u64| {
        let mut settings = settings(&file, &past.directory.path().join(directory));
        settings.member.name = name.to_owned();
        settings.bump_revision = Some(bump);
        restore(&settings, &mut quiet).unwrap()
    };
    let (a, b, other) = (restore_as("a", "a", 5), restore_as("b", "b", 5), restore_as("a", "other", 6));
    assert_eq!(a.cluster_id, b.cluster_id);
    assert!(a.member_id != b.member_id && a.cluster_id != other.cluster_id && a.member_id != other.member_id);
    let token = &Config::new("a", "").cluster_token;
    assert_ne!(a.cluster_id, crate::config::cluster_id(token, ["a", "b"]));
    assert_ne!(a.member_id, crate::config::member_id(token, "a"));
    let state = |directory: &str| {
        let machine = open(&past.directory.path().join(directory));
        (machine.membership(), machine.applied(), machine.engine().applied_hash(), machine.engine().generation())
    };
    assert_eq!(state("a"), state("b"));
    assert_eq!(state("a").3, 2, "the generation after the saved one");
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_behind() {
    let mut past = Past::new(3);
    (0..20).for_each(|_| past.step());
    let file = past.save("snapshot.db");
    let target = past.directory.path().join("new");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("precious"), "x").unwrap();
    assert!(matches!(restore(&settings(&file, &target), &mut quiet), Err(SnapshotError::NotEmpty { .. })));
    fs::remove_file(target.join("precious")).unwrap();
    let mut bad = settings(&file, &target);
    bad.bump_revision = Some(u64::MAX);
    assert!(matches!(restore(&bad, &mut quiet), Err(SnapshotError::Option(_))));
    let mut names: Vec<_> =
        fs::read_dir(past.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["db", "new", "snapshot.db"]);
    // An empty directory is as good as none.
    restore(&settings(&file, &target), &mut quiet).unwrap();
}

#[test]
fn a_changed_file_is_refused() {
    let mut past = Past::new(4);
    (0..100).for_each(|_| past.step());
    let file = past.save("snapshot.db");
    let bytes = fs::read(&file).unwrap();
    let check = |bytes: &[u8], skip: bool| {
        fs::write(&file, bytes).unwrap();
        summarize(&file, skip, &mut quiet)
    };
    let sound = check(&bytes, false).unwrap();
    let mut damaged = bytes.clone();
    damaged[5000] ^= 1;
    assert!(matches!(check(&damaged, false), Err(SnapshotError::Checksum { .. })));
    let pages = &bytes[..bytes.len() - CHECKSUM_BYTES];
    assert!(matches!(check(pages, false), Err(SnapshotError::NoChecksum { .. })));
    assert_eq!(check(pages, true).unwrap(), sound);
    assert!(check(&bytes[..bytes.len() / 2], true).is_err());
    assert!(check(b"", true).is_err() && check(b"not a database", true).is_err());
}

/// Without its checksum a damaged file may pass for another one, but stops nobody.
#[test]
fn damage_is_never_a_panic() {
    for seed in 0..2 {
        let mut past = Past::new(seed);
        (0..150).for_each(|_| past.step());
        let file = past.save("snapshot.db");
        let bytes = fs::read(&file).unwrap();
        let target = past.directory.path().join("new");
        let mut refused = 0;
        for _ in 0..20 {
            let mut damaged = bytes.clone();
            for _ in 0..past.random.random_range(1..8) {
                let at = past.random.random_range(0..damaged.len());
                damaged[at] = past.random.random();
            }
            fs::write(&file, damaged).unwrap();
            let settings = Restore { skip_hash_check: true, ..exactly(&file, &target) };
            match restore(&settings, &mut quiet) {
                Ok(_) => fs::remove_dir_all(&target).unwrap(),
                Err(_) => refused += 1,
            }
            assert!(!target.exists(), "seed {seed}");
        }
        assert!(refused > 0, "seed {seed}: no damage was noticed");
    }
}
