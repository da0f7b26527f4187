//! A member whose process is killed while it writes: nothing confirmed is lost, and what it
//! holds afterwards is what its whole log says.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use quorate_store::{Config, Store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;

/// Tells this program, started a second time, which directory it writes into.
const VICTIM: &str = "QUORATE_TEST_VICTIM";
/// And how many entries may be applied again when it starts.
const REPLAY: &str = "QUORATE_TEST_REPLAY";

const WRITERS: usize = 8;
/// Enough of them to fill a memtable within a few hundred writes.
const FILLER_BYTES: usize = 40 << 10;
/// Times that the process is killed in one directory.
const KILLS: usize = 5;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn start(directory: &Path, replay_entries: u64) -> Store {
    let mut config = Config::new("m", directory);
    config.memory_limit_bytes = 176 << 20;
    config.replay_entries = replay_entries;
    let store = Store::start(config).await.unwrap();
    store.leadership().wait_for(Option::is_some).await.unwrap();
    store
}

/// One writer counts upwards; what it has counted to is in its key, and confirmed on the
/// standard output. Around it things change in every way there is.
async fn write(store: &Store, writer: usize, random: &mut StdRng) {
    let key = |name: &str| Bytes::from(format!("{name}/{writer}"));
    let mut lease = 0;
    for count in 1u64.. {
        let filler: Vec<u8> = (0..random.random_range(1..FILLER_BYTES)).map(|_| random.random()).collect();
        let put = |key: Bytes, value: Bytes, lease: i64| RequestOp {
            request: Some(Request::RequestPut(PutRequest { key, value, lease, ..Default::default() })),
        };
        let counted = put(key("count"), count.to_string().into(), 0);
        let other = Bytes::from(format!("other/{}", random.random_range(0..500)));
        let operations = match count % 4 {
            0 => vec![counted, put(other, filler.into(), lease)],
            1 => vec![counted, put(key("filler"), filler.into(), 0)],
            2 => {
                let delete = DeleteRangeRequest { key: other, ..Default::default() };
                vec![counted, RequestOp { request: Some(Request::RequestDeleteRange(delete)) }]
            }
            _ => vec![counted],
        };
        store.txn(TxnRequest { success: operations, ..Default::default() }, None).await.unwrap();
        println!("confirmed {writer} {count}");
        if count % 50 == 0 {
            lease = store.lease_grant(LeaseGrantRequest { id: 0, ttl: 5000 }).await.unwrap().id;
        }
        if writer == 0 && count % 70 == 0 {
            let revision = store.revision() - 20;
            store.compact(CompactionRequest { revision, physical: false }).await.unwrap();
        }
    }
}

#[test]
#[ignore = "the process that the other tests kill"]
fn victim() {
    let directory = std::env::var_os(VICTIM).expect("it is started by another test");
    let replay_entries = std::env::var(REPLAY).unwrap().parse().unwrap();
    runtime().block_on(async {
        let store = start(Path::new(&directory), replay_entries).await;
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move { write(&store, writer, &mut StdRng::seed_from_u64(writer as u64)).await })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
}

struct Victim(Child);

impl Victim {
    fn start(directory: &Path, replay_entries: u64) -> Victim {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["--exact", "killed::victim", "--ignored", "--nocapture"])
            .env(VICTIM, directory)
            .env(REPLAY, replay_entries.to_string())
            .stdout(Stdio::piped())
            .spawn();
        Victim(child.unwrap())
    }

    /// Kills it after so many confirmations; returns the last of each writer.
    fn kill_after(mut self, count: usize) -> HashMap<u64, u64> {
        let mut confirmed = HashMap::new();
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut killed = false;
        // What was on its way when it was killed counts too.
        for (number, line) in lines.filter(|line| line.starts_with("confirmed ")).enumerate() {
            let numbers: Vec<u64> = line.split(' ').skip(1).filter_map(|word| word.parse().ok()).collect();
            // The very last line may be cut off.
            let [writer, counted] = numbers[..] else { continue };
            confirmed.insert(writer, counted);
            if number == count {
                self.0.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed, "it ended by itself");
        self.0.wait().unwrap();
        confirmed
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What makes two members equal: hash of the history, revision, hash of what can be read.
fn contents(store: &Store) -> (u64, i64, u32) {
    let status = store.status();
    (status.hash, status.revision, store.hash_kv(0).unwrap().hash)
}

async fn counted(store: &Store, writer: u64) -> u64 {
    let key = Bytes::from(format!("count/{writer}"));
    let found = store.range(RangeRequest { key, ..Default::default() }).await.unwrap().kvs.pop();
    found.map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap())
}

/// Kills the member again and again; returns its directory, and what it holds at the end.
fn killed_often(seed: u64, replay_entries: u64) -> (tempfile::TempDir, (u64, i64, u32)) {
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut held = None;
    for _ in 0..KILLS {
        let confirmed = Victim::start(directory.path(), replay_entries).kill_after(random.random_range(1..1500));
        held = Some(runtime().block_on(async {
            let store = start(directory.path(), replay_entries).await;
            for (writer, count) in confirmed {
                let found = counted(&store, writer).await;
                assert!(found >= count, "seed {seed}: {count} was confirmed to writer {writer}, it finds {found}");
            }
            let held = contents(&store);
            store.shutdown().await;
            held
        }));
    }
    (directory, held.unwrap())
}

fn reopened(directory: &Path) -> (u64, i64, u32) {
    runtime().block_on(async {
        let store = start(directory, u64::MAX).await;
        let held = contents(&store);
        store.shutdown().await;
        held
    })
}

#[test]
fn what_a_killed_member_holds_is_what_its_whole_log_says() {
    let seed = rand::random();
    // Nothing of the log goes.
    let (directory, held) = killed_often(seed, u64::MAX);
    std::fs::remove_dir_all(directory.path().join("db")).unwrap();
    assert_eq!(reopened(directory.path()), held, "seed {seed}");
}

#[test]
fn a_killed_member_needs_no_more_than_the_log_it_kept() {
    let seed = rand::random();
    let (directory, held) = killed_often(seed, 200);
    assert_eq!(reopened(directory.path()), held, "seed {seed}");
}
