//! Members of a store as processes: `quorate store` with an `etcd.conf`, and etcd's own client.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::{binary, eventually};
use quorate_transport::loopback::free_address;
use serde_json::Value;

/// How long members may take to found a cluster on a machine that does other things too.
pub(crate) const START: Duration = Duration::from_secs(30);

/// How long a member may take to end.
const END: Duration = Duration::from_secs(15);

/// One member as its service manager sees it.
pub(crate) struct Member {
    process: Child,
    pub(crate) conf: PathBuf,
    manager: UnixDatagram,
    log: PathBuf,
}

impl Drop for Member {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Member {
    /// Starts `quorate store` with the variables of `conf`, as systemd does with an
    /// `EnvironmentFile`.
    pub(crate) fn start(conf: &Path) -> Result<Self> {
        let place = conf.with_extension("notify");
        let _ = std::fs::remove_file(&place);
        let manager = UnixDatagram::bind(&place).context("cannot listen for notifications")?;
        manager.set_read_timeout(Some(START))?;
        let log = conf.with_extension("log");
        let mut command = Command::new(binary()?);
        command.arg("store").env("NOTIFY_SOCKET", &place).stdin(Stdio::null());
        for line in std::fs::read_to_string(conf)?.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.split_once('=').context("a line of an environment file")?;
            command.env(name, value.trim_matches('"'));
        }
        let output = std::fs::File::options().create(true).append(true).open(&log)?;
        let process = command.stdout(output.try_clone()?).stderr(output).spawn().context("quorate does not run")?;
        Ok(Self { process, conf: conf.to_owned(), manager, log })
    }

    /// Waits until the member says that it serves.
    pub(crate) fn wait_until_ready(&self) -> Result<()> {
        let mut buffer = [0; 512];
        loop {
            let length = self.manager.recv(&mut buffer).with_context(|| format!("not ready: {}", self.said()))?;
            if buffer[..length].starts_with(b"READY=1") {
                return Ok(());
            }
        }
    }

    /// Ends the member as `systemctl stop` does.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        let id = self.process.id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status()?.success(), "SIGTERM was not sent");
        self.wait_until_ended()
    }

    /// Waits until the member has ended by itself.
    pub(crate) fn wait_until_ended(&mut self) -> Result<ExitStatus> {
        eventually("the member to end", END, || Ok(self.process.try_wait()?))
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub(crate) fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    std::array::from_fn(|_| free_address())
}

pub(crate) fn etcdctl(endpoints: &[String], arguments: &[&str]) -> Result<Output> {
    Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(arguments)
        .output()
        .context("etcdctl does not run")
}

pub(crate) fn etcdctl_prints(endpoints: &[String], arguments: &[&str]) -> Result<String> {
    let output = etcdctl(endpoints, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "etcdctl {} failed: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The place of the endpoint that leads.
pub(crate) fn leader(endpoints: &[String]) -> Result<usize> {
    let status = etcdctl_prints(endpoints, &["endpoint", "status", "-w", "json"])?;
    let status: Vec<Value> = serde_json::from_str(&status)?;
    let leads = |member: &Value| member["Status"]["header"]["member_id"] == member["Status"]["leader"];
    let leader = status.iter().find(|member| leads(member)).context("nobody leads")?;
    endpoints.iter().position(|endpoint| leader["Endpoint"] == **endpoint).context("a member that was asked")
}

/// Writes an `etcd.conf` for each of three members; `extra` adds lines.
pub(crate) fn write_confs(
    folder: &Path,
    scheme: &str,
    peers: &[SocketAddr],
    clients: &[SocketAddr],
    extra: &str,
) -> Result<Vec<PathBuf>> {
    let cluster: Vec<String> =
        peers.iter().enumerate().map(|(index, peer)| format!("m{index}={scheme}://{peer}")).collect();
    let write = |(index, (peer, client)): (usize, (&SocketAddr, &SocketAddr))| {
        let conf = folder.join(format!("m{index}.conf"));
        let data = folder.join(format!("m{index}.data"));
        let text = format!(
            "# [member]\n\
             ETCD_NAME=m{index}\n\
             ETCD_DATA_DIR=\"{data}\"\n\
             ETCD_LISTEN_PEER_URLS=\"{scheme}://{peer}\"\n\
             ETCD_LISTEN_CLIENT_URLS=\"{scheme}://{client}\"\n\
             ETCD_SNAPSHOT_COUNT=\"10000\"\n\
             # [cluster]\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS=\"{scheme}://{peer}\"\n\
             ETCD_INITIAL_CLUSTER=\"{cluster}\"\n\
             ETCD_INITIAL_CLUSTER_TOKEN=\"etcd-cluster-1\"\n\
             ETCD_ADVERTISE_CLIENT_URLS=\"{scheme}://{client}\"\n\
             {extra}",
            data = data.display(),
            cluster = cluster.join(",")
        );
        std::fs::write(&conf, text)?;
        Ok(conf)
    };
    peers.iter().zip(clients).enumerate().map(write).collect()
}

pub(crate) fn start_all(confs: &[PathBuf]) -> Result<Vec<Member>> {
    let members: Vec<Member> = confs.iter().map(|conf| Member::start(conf)).collect::<Result<_>>()?;
    members.iter().try_for_each(Member::wait_until_ready)?;
    Ok(members)
}
