//! Writes on their way into the log: through members that stop, lag, or have a slow disk,
//! and beside others that are large.

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::etcd::{DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest};
use quorate_store::fs::{self, Disk, File};
use quorate_store::{Config, Store, StoreError};
use quorate_transport::loopback::free_address;

use crate::common::{Cluster, put, wait};

const MIB: usize = 1 << 20;

async fn put_bytes(store: &Store, key: String, bytes: usize) -> Result<(), StoreError> {
    let request = PutRequest { key: key.into(), value: vec![b'v'; bytes].into(), ..Default::default() };
    store.put(request).await.map(drop)
}

/// Lets nobody through while it is closed.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn close(&self, closed: bool) {
        *self.0.0.lock().unwrap() = closed;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |closed| *closed).unwrap());
    }
}

/// Stands at `address` for what listens at `target`, and lets bytes through the gate.
fn forward(address: SocketAddr, target: SocketAddr, gate: Gate) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(from), Ok(to)) = (stream, TcpStream::connect(target)) else { continue };
            for (mut from, mut to) in
                [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to.try_clone().unwrap(), from)]
            {
                let gate = gate.clone();
                thread::spawn(move || {
                    let mut buffer = [0; 64 << 10];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        gate.pass();
                        if to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

#[test]
fn what_is_under_way_leaves_a_leader_that_has_vanished() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let follower = (leader + 1) % 3;
    let lease = cluster.on(follower, async |store| {
        put(&store, "k", "before").await;
        store.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id
    });
    let (store, gone) = (cluster.store(follower), cluster.store(leader).status().member_id);
    let _frozen = cluster.freeze(leader);
    let renewal = cluster.spawn(follower, {
        let store = store.clone();
        async move { store.lease_keep_alive(lease).await.unwrap().ttl }
    });
    // More messages than are under way at once.
    let writes: Vec<_> = (0..100)
        .map(|number| {
            thread::sleep(Duration::from_millis(1));
            let store = store.clone();
            cluster.spawn(follower, async move { put(&store, &format!("k{number}"), "v").await })
        })
        .collect();
    wait("another leader", || [0, gone].iter().all(|id| *id != store.status().leader).then_some(()));
    let began = Instant::now();
    let ttl = cluster.on(follower, async move |_| {
        futures::future::try_join_all(writes).await.unwrap();
        renewal.await.unwrap()
    });
    let waited = began.elapsed();
    eprintln!("after the election: {waited:?}");
    assert_eq!(ttl, 60);
    // Connections to a machine that is gone are given up seconds later.
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[test]
fn a_leader_that_was_held_up_renews_no_lease_that_has_ended() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let follower = (leader + 1) % 3;
    let lease =
        cluster.on(follower, async |store| store.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id);
    let (ended, gone) = (Arc::new(AtomicBool::new(false)), cluster.store(leader).status().member_id);
    let renewals: Vec<_> = (0..200)
        .map(|_| {
            let (store, ended) = (cluster.store(leader), Arc::clone(&ended));
            cluster.spawn(leader, async move {
                loop {
                    let answer = store.lease_keep_alive(lease).await;
                    if ended.load(Ordering::SeqCst) {
                        return answer.map(|renewed| renewed.ttl);
                    }
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let frozen = cluster.freeze(leader);
    let store = cluster.store(follower);
    wait("another leader", || [0, gone].iter().all(|id| *id != store.status().leader).then_some(()));
    cluster.on(follower, async |store| store.lease_revoke(LeaseRevokeRequest { id: lease }).await.unwrap());
    ended.store(true, Ordering::SeqCst);
    drop(frozen);
    cluster.on(leader, async move |_| {
        for answer in futures::future::try_join_all(renewals).await.unwrap() {
            assert!(matches!(answer, Ok(0) | Err(StoreError::Timeout | StoreError::NoLeader)), "{answer:?}");
        }
    });
}

#[test]
fn many_large_values_go_through_a_follower() {
    let cluster = Cluster::start_with(3, |config| {
        config.log_segment_bytes = 64 << 20;
        config.request_timeout = Duration::from_secs(25);
        // Room for all of them at once.
        config.memory_limit_bytes = 1 << 30;
    });
    let leader = cluster.wait_for_leader();
    let count = cluster.on((leader + 1) % 3, async |store| {
        let writes = (0..100).map(|number| put_bytes(&store, format!("k{number}"), MIB));
        futures::future::try_join_all(writes).await.unwrap();
        let (key, range_end) = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
        let all = RangeRequest { key, range_end, count_only: true, ..Default::default() };
        store.range(all).await.unwrap().count
    });
    assert_eq!(count, 100);
}

#[test]
fn a_member_that_lags_proposes_once() {
    let (gate, target) = (Gate::default(), OnceCell::new());
    let cluster = Cluster::start_with(3, |config| {
        (config.election_timeout_min, config.election_timeout_max) = (Duration::from_secs(6), Duration::from_secs(8));
        config.request_timeout = Duration::from_secs(20);
        if config.name == "m0" {
            let known = std::mem::replace(&mut config.listen_peer, free_address());
            config.advertise_peer = Some(known.to_string());
            forward(known, config.listen_peer, gate.clone());
            target.set(known).unwrap();
        }
    });
    if cluster.wait_for_leader() == 0 {
        cluster.on(0, async |store| store.transfer_leadership().await.unwrap());
    }
    let leader = wait("a leader that does not lag", || Some(cluster.wait_for_leader()).filter(|leader| *leader != 0));
    for member in 0..3 {
        cluster.on(member, async |store| put(&store, "k", "1").await);
    }
    let last = || cluster.store(leader).status().last_index;
    // What members say of themselves comes before.
    let before = wait("silence", || {
        let before = last();
        thread::sleep(Duration::from_secs(1));
        (last() == before).then_some(before)
    });
    gate.close(true);
    let (store, began) = (cluster.store(0), Instant::now());
    let write = cluster.spawn(0, async move { put(&store, "k", "2").await });
    wait("the write", || (last() > before).then_some(()));
    // Below what the leader's connection to it takes to be given up.
    thread::sleep(Duration::from_millis(2500).saturating_sub(began.elapsed()));
    let after = last();
    assert!(!write.is_finished(), "it is not applied where it was asked");
    gate.close(false);
    cluster.on(0, async move |_| write.await.unwrap());
    assert_eq!(after, before + 1, "proposed once");
}

#[test]
fn a_large_answer_harms_no_other_write() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    cluster.on(leader, async |store| {
        for number in 0..10 {
            put_bytes(&store, format!("/big/{number}"), MIB).await.unwrap();
        }
    });
    let writers: Vec<_> = (0..3)
        .flat_map(|member| (0..50).map(move |writer| (member, writer)))
        .map(|(member, writer)| {
            let store = cluster.store(member);
            cluster.spawn(member, async move {
                for number in 0..20 {
                    put_bytes(&store, format!("k{member}-{writer}-{number}"), 10).await?;
                }
                Ok::<(), StoreError>(())
            })
        })
        .collect();
    let deleted = cluster.on((leader + 1) % 3, async |store| {
        let (key, range_end) = (Bytes::from_static(b"/big/"), Bytes::from_static(b"/big0"));
        store.delete_range(DeleteRangeRequest { key, range_end, prev_kv: true }).await.unwrap()
    });
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (10, 10));
    cluster.on(leader, async move |_| {
        for written in futures::future::try_join_all(writers).await.unwrap() {
            written.unwrap();
        }
    });
    cluster.wait_for_equal_hashes();
}

/// The machine's disk, whose writes wait at a gate.
struct Slow {
    disk: Arc<dyn Disk>,
    gate: Gate,
}

struct SlowFile {
    file: Arc<dyn File>,
    gate: Gate,
}

impl Slow {
    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(SlowFile { file, gate: self.gate.clone() })
    }
}

impl Disk for Slow {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }
    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.disk.create_dir_all(directory)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.create(path).map(|file| self.file(file))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.open(path).map(|file| self.file(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        self.disk.sync_dir(directory)
    }
}

impl File for SlowFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass();
        self.file.write_all_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass();
        self.file.sync_data()
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

#[tokio::test]
async fn what_waits_for_a_stalled_disk_is_bounded() {
    const VALUE: usize = MIB + (400 << 10);
    let (directory, gate) = (tempfile::tempdir().unwrap(), Gate::default());
    let mut config = Config::new("m0", directory.path());
    config.request_timeout = Duration::from_millis(500);
    let disk = Slow { disk: fs::real(), gate: gate.clone() };
    let store = Store::start_on(config, Arc::new(disk)).await.unwrap();
    crate::common::fence(&store).await;
    gate.close(true);
    let (mut unknown, mut refused) = (0, 0);
    // Clients that try again when nobody has answered.
    for _ in 0..4 {
        let writes = (0..100).map(|number| put_bytes(&store, format!("k{number}"), VALUE));
        for written in futures::future::join_all(writes).await {
            match written.unwrap_err() {
                StoreError::TooManyRequests => refused += 1,
                StoreError::Timeout | StoreError::LeaderFailed => unknown += 1,
                other => panic!("{other}"),
            }
        }
    }
    // Before anything can fail: a log that waits for its disk does not end.
    gate.close(false);
    // A quarter of what the default limit shares out.
    assert!(refused > 0 && unknown > 10, "{refused} refused, {unknown} unknown");
    assert!(unknown * VALUE <= 28 * MIB, "{unknown} are in memory");
    let began = Instant::now();
    let deadline = began + Duration::from_secs(30);
    while let Err(error) = put_bytes(&store, "k".to_owned(), 1).await {
        assert!(Instant::now() < deadline, "it does not go on: {error}, {:?}", store.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("{unknown} unknown, {refused} refused, going on after {:?}", began.elapsed());
    store.shutdown().await;
}
