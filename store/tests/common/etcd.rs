//! The etcd and the `etcdctl` of the machine, to compare with.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{free_addresses, wait};

/// An `etcdctl` with its flags.
pub(crate) struct Etcdctl {
    pub(crate) flags: Vec<String>,
}

impl Etcdctl {
    pub(crate) fn run(&self, command: &str, input: &str) -> Output {
        let mut child = self.spawn(command);
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn spawn(&self, command: &str) -> Child {
        let words = command.split(' ').map(|word| word.trim_matches('\''));
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(&self.flags)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl is installed (Debian: etcd-client)")
    }

    /// Starts a command that does not end, and ends it once it was silent for long enough.
    pub(crate) fn run_for(&self, command: &str, time: Duration) -> Output {
        let mut child = self.spawn(command);
        std::thread::sleep(time);
        child.kill().unwrap();
        child.wait_with_output().unwrap()
    }
}

/// The etcd of the machine, one member without TLS.
pub(crate) struct Etcd {
    process: Child,
    pub(crate) ctl: Etcdctl,
    _directory: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.process.kill().expect("etcd was started by this test");
        self.process.wait().expect("etcd was started by this test");
    }
}

pub(crate) fn start_etcd(more: &[&str]) -> Etcd {
    let directory = tempfile::tempdir().unwrap();
    let addresses = free_addresses(2);
    let (client, peer) = (format!("http://{}", addresses[0]), format!("http://{}", addresses[1]));
    let process = Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is installed (Debian: etcd-server)");
    let ctl = Etcdctl { flags: vec![format!("--endpoints={client}")] };
    wait("etcd", || ctl.run("endpoint health", "").status.success().then_some(()));
    Etcd { process, ctl, _directory: directory }
}

/// What must be the same: the answer without the names of who answered, and the last
/// line of an error.
pub(crate) fn essence(output: &Output) -> (bool, String, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = match serde_json::from_str::<Value>(&text) {
        Ok(mut value) => {
            forget_who(&mut value);
            value.to_string()
        }
        Err(_) => text,
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    // Lines of its log bear the time.
    let error = errors.lines().rfind(|line| !line.starts_with(r#"{"level""#)).unwrap_or_default();
    (output.status.success(), without_addresses(&answer), without_addresses(error))
}

fn forget_who(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["cluster_id", "member_id", "raft_term"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(forget_who);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_who),
        _ => {}
    }
}

fn without_addresses(text: &str) -> String {
    let words = text.split(' ').filter(|word| !word.contains("127.0.0.1"));
    // A lock's key ends in its lease, which is different each time.
    let lines: Vec<String> = words.collect::<Vec<_>>().join(" ").lines().map(ToOwned::to_owned).collect();
    lines.into_iter().filter(|line| !line.starts_with("name/")).collect::<Vec<_>>().join("\n")
}
