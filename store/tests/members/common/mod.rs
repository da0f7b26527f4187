//! Clusters in this process: one runtime per member, so that a member can be killed.

pub(crate) mod etcd;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::etcd::{PutRequest, RangeRequest};
use quorate_proto::fence::Fence;
use quorate_store::fs::Memory;
use quorate_store::{ClusterState, Config, StartError, Store};
use quorate_transport::loopback::free_address;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longer than anything takes that is going to happen at all.
const DEADLINE: Duration = Duration::from_secs(30);

/// A member that does nothing while this is there, but whose connections stay.
pub(crate) struct Frozen(#[expect(dead_code, reason = "held until it is dropped")] mpsc::Sender<()>);

pub(crate) struct Cluster {
    members: Vec<Member>,
    _directory: TempDir,
}

struct Member {
    config: Config,
    /// The log's disk, when it is not the machine's.
    disk: Option<Memory>,
    running: Option<(Runtime, Store)>,
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Self {
        Self::start_with(size, |_| {})
    }

    pub(crate) fn start_with(size: usize, change: impl Fn(&mut Config)) -> Self {
        let mut cluster = Self::prepare(size, change);
        cluster.revive_all();
        cluster
    }

    fn prepare(size: usize, change: impl Fn(&mut Config)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let directory = tempfile::tempdir().unwrap();
        let addresses: Vec<SocketAddr> = (0..size).map(|_| free_address()).collect();
        let names: Vec<(String, String)> =
            addresses.iter().enumerate().map(|(number, address)| (format!("m{number}"), address.to_string())).collect();
        let members = addresses
            .iter()
            .enumerate()
            .map(|(number, address)| {
                let name = format!("m{number}");
                let mut config = Config::new(&name, directory.path().join(&name));
                config.listen_peer = *address;
                config.initial_cluster = names.clone();
                config.log_segment_bytes = 1 << 20;
                change(&mut config);
                Member { config, disk: None, running: None }
            })
            .collect();
        Self { members, _directory: directory }
    }

    /// With logs on disks in memory, which can lose their power.
    pub(crate) fn start_in_memory(size: usize) -> Self {
        let mut cluster = Self::prepare(size, |_| {});
        for member in &mut cluster.members {
            member.disk = Some(Memory::new());
        }
        cluster.revive_all();
        cluster
    }

    fn revive_all(&mut self) {
        for member in 0..self.members.len() {
            self.revive(member);
        }
    }

    /// Where clients reach a running member.
    pub(crate) fn client_address(&self, member: usize) -> SocketAddr {
        self.members[member].running.as_ref().unwrap().1.client_address().unwrap()
    }

    pub(crate) fn data_dir(&self, member: usize) -> &Path {
        &self.members[member].config.data_dir
    }

    /// Starts a member that is not running from its files.
    pub(crate) fn revive(&mut self, member: usize) {
        self.try_revive(member).unwrap();
    }

    /// The same, for one that may not start.
    pub(crate) fn try_revive(&mut self, member: usize) -> Result<(), StartError> {
        let member = &mut self.members[member];
        assert!(member.running.is_none());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = match member.disk.clone() {
            Some(disk) => runtime.block_on(Store::start_on(member.config.clone(), Arc::new(disk))),
            None => runtime.block_on(Store::start(member.config.clone())),
        };
        member.running = Some((runtime, store?));
        Ok(())
    }

    /// Another process that has not started: it will join. Returns its number.
    pub(crate) fn prepare_joiner(&mut self, change: impl FnOnce(&mut Config)) -> usize {
        let number = self.members.len();
        let name = format!("m{number}");
        let address = free_address();
        let mut config = Config::new(&name, self._directory.path().join(&name));
        config.listen_peer = address;
        config.initial_cluster = self.members[0].config.initial_cluster.clone();
        config.initial_cluster.push((name, address.to_string()));
        config.initial_cluster_state = ClusterState::Existing;
        config.log_segment_bytes = 1 << 20;
        change(&mut config);
        self.members.push(Member { config, disk: None, running: None });
        number
    }

    /// `http://host:port` where a member's peers reach it.
    pub(crate) fn peer_url(&self, member: usize) -> String {
        format!("http://{}", self.members[member].config.listen_peer)
    }

    /// Changes the settings of a member that is not running.
    pub(crate) fn configure(&mut self, member: usize, change: impl FnOnce(&mut Config)) {
        assert!(self.members[member].running.is_none());
        change(&mut self.members[member].config);
    }

    /// A running member's handle; `on` runs work on its runtime.
    pub(crate) fn store(&self, member: usize) -> Store {
        self.members[member].running.as_ref().unwrap().1.clone()
    }

    /// A task on a member's runtime.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        member: usize,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.members[member].running.as_ref().unwrap().0.spawn(work)
    }

    /// All members lose their power: at one moment their disks forget what was not synced,
    /// and the state machines what was not flushed. Only for logs in memory.
    pub(crate) fn power_loss(&mut self, seed: u64) {
        let after: Vec<Memory> = self.members.iter().map(|member| member.disk.as_ref().unwrap().crash(seed)).collect();
        for (member, disk) in self.members.iter_mut().zip(after) {
            let data = member.config.data_dir.join("db");
            let kept = member.config.data_dir.join("kept");
            copy_files(&data, &kept);
            member.disk = Some(disk);
        }
        for number in 0..self.members.len() {
            self.kill(number);
            let directory = &self.members[number].config.data_dir;
            fs::remove_dir_all(directory.join("db")).unwrap();
            fs::rename(directory.join("kept"), directory.join("db")).unwrap();
        }
        for number in 0..self.members.len() {
            self.revive(number);
        }
    }

    /// Removes the files of a member that is not running.
    pub(crate) fn forget(&self, member: usize) {
        fs::remove_dir_all(&self.members[member].config.data_dir).unwrap();
    }

    /// Stops a member between any two of its steps, as a signal would.
    pub(crate) fn freeze(&self, member: usize) -> Frozen {
        let ((thaw, thawed), (tell, frozen)) = (mpsc::channel::<()>(), mpsc::channel());
        // Its runtime has one thread.
        drop(self.spawn(member, async move {
            tell.send(()).unwrap();
            // Ends with the sender.
            let _ = thawed.recv();
        }));
        frozen.recv().unwrap();
        Frozen(thaw)
    }

    /// Ends a member between any two of its steps, without a word to anybody.
    pub(crate) fn kill(&mut self, member: usize) {
        let (runtime, store) = self.members[member].running.take().unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(store);
    }

    /// Runs `work` on a running member.
    pub(crate) fn on<T>(&self, member: usize, work: impl AsyncFnOnce(Store) -> T) -> T {
        let (runtime, store) = self.members[member].running.as_ref().unwrap();
        let store = store.clone();
        runtime.block_on(async move { tokio::time::timeout(DEADLINE, work(store)).await.expect("it takes too long") })
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Store)> {
        self.members.iter().enumerate().filter_map(|(number, member)| Some((number, &member.running.as_ref()?.1)))
    }

    /// The member that may act as leader.
    pub(crate) fn wait_for_leader(&self) -> usize {
        wait("a leader", || {
            self.running().find(|(_, store)| store.leadership().borrow().is_some()).map(|(number, _)| number)
        })
    }

    /// Waits until every running member has applied the same and holds the same.
    pub(crate) fn wait_for_equal_hashes(&self) {
        wait("equal hashes", || {
            let mut hashes: Vec<_> =
                self.running().map(|(_, store)| (store.status().hash_index, store.status().hash)).collect();
            hashes.dedup();
            (hashes.len() == 1).then_some(())
        });
        let mut contents: Vec<_> = self.running().map(|(_, store)| store.hash_kv(0).unwrap().hash).collect();
        contents.dedup();
        assert_eq!(contents.len(), 1, "equal at every revision");
    }
}

pub(crate) fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) async fn put(store: &Store, key: &str, value: &str) {
    let request = PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    };
    store.put(request).await.unwrap();
}

/// A linearizable read.
pub(crate) async fn value_of(store: &Store, key: &str) -> Option<String> {
    let request = RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
    let kv = store.range(request).await.unwrap().kvs.pop()?;
    Some(String::from_utf8(kv.value.to_vec()).unwrap())
}

pub(crate) async fn fence(store: &Store) -> Fence {
    let mut leadership = store.leadership();
    leadership.wait_for(Option::is_some).await.unwrap().unwrap()
}
