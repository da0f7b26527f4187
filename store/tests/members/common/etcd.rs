//! The etcd and the `etcdctl` of the machine.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use quorate_transport::loopback::free_address;

use super::wait;

/// An `etcdctl` with its flags.
pub(crate) struct Etcdctl {
    pub(crate) flags: Vec<String>,
}

impl Etcdctl {
    pub(crate) fn run(&self, command: &str, input: &str) -> Output {
        let words: Vec<&str> = command.split(' ').map(|word| word.trim_matches('\'')).collect();
        self.run_words(&words, input)
    }

    pub(crate) fn run_words(&self, words: &[&str], input: &str) -> Output {
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(&self.flags)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl is installed (Debian: etcd-client)");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// The etcd of the machine, one member without TLS.
pub(crate) struct Etcd {
    process: Child,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Etcd {
    /// Starts the member whose state is in `data`, which is made if it does not exist.
    pub(crate) fn start(data: &Path, peer: SocketAddr) -> Etcd {
        Etcd::start_with(data, peer, &[])
    }

    /// The same with more flags.
    pub(crate) fn start_with(data: &Path, peer: SocketAddr, more: &[&str]) -> Etcd {
        let address = free_address();
        let (client, peer) = (format!("http://{address}"), format!("http://{peer}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        let etcd = Etcd { process, address };
        wait("etcd", || etcd.ctl().run("endpoint health", "").status.success().then_some(()));
        etcd
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn ctl(&self) -> Etcdctl {
        Etcdctl { flags: vec![format!("--endpoints={}", self.endpoint())] }
    }

    /// Ends it as an operator does, so that its file holds everything.
    pub(crate) fn stop(mut self) {
        let ended = Command::new("kill").arg("-TERM").arg(self.process.id().to_string()).status().unwrap();
        assert!(ended.success());
        self.process.wait().unwrap();
    }
}
