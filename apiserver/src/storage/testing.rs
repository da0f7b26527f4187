//! Real stores for tests: our own in process, and Debian's etcd on a port of its own.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_store::{Config, Store};
use quorate_transport::loopback::free_address;
use tonic::transport::Endpoint;

use super::Storage;
use super::etcd::EtcdStorage;
use super::local::LocalStorage;

/// A running etcd; it ends with this value.
pub(crate) struct EtcdProcess {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts an etcd and waits until it answers.
pub(crate) async fn etcd() -> (EtcdProcess, EtcdStorage) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let url = |address: SocketAddr| format!("http://{address}");
    let (client, peer) = (url(free_address()), url(free_address()));
    let child = Command::new("/usr/bin/etcd")
        .args(["--name", "test", "--unsafe-no-fsync", "--data-dir"])
        .arg(directory.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Debian's etcd-server is installed");
    let process = EtcdProcess { child, _directory: directory };
    let storage = EtcdStorage::new(Endpoint::from_shared(client).expect("a URL").connect_lazy());
    for _ in 0..300 {
        if storage.read_index().await.is_ok() {
            return (process, storage);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("etcd answers within 30 s");
}

/// A member of a cluster of one in a directory that ends with this value.
pub(crate) struct Member {
    pub(crate) store: Store,
    _directory: tempfile::TempDir,
}

/// Starts a store and waits until it leads.
pub(crate) async fn local() -> (Member, LocalStorage) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut config = Config::new("test", directory.path());
    config.log_segment_bytes = 1 << 20;
    let store = Store::start(config).await.expect("the store starts");
    let mut leadership = store.leadership();
    let leads = leadership.wait_for(Option::is_some);
    tokio::time::timeout(Duration::from_secs(20), leads).await.expect("it leads within 20 s").expect("it lives");
    let storage = LocalStorage::new(store.clone());
    (Member { store, _directory: directory }, storage)
}
