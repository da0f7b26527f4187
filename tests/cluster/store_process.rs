//! `quorate store` in the place of etcd: an `etcd.conf` as it is, etcd's TLS flags,
//! etcd's own client, and an end that no client notices.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::{binary, eventually};
use quorate_transport::authority::{Authority, Profile};
use serde_json::Value;
use tempfile::TempDir;

/// How long members may take to found a cluster on a machine that does other things too.
const START: Duration = Duration::from_secs(30);

/// How long a member may take to end.
const END: Duration = Duration::from_secs(15);

/// One member as its service manager sees it.
struct Member {
    process: Child,
    conf: PathBuf,
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
    fn start(conf: &Path) -> Result<Self> {
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
    fn wait_until_ready(&self) -> Result<()> {
        let mut buffer = [0; 512];
        loop {
            let length = self.manager.recv(&mut buffer).with_context(|| format!("not ready: {}", self.said()))?;
            if buffer[..length].starts_with(b"READY=1") {
                return Ok(());
            }
        }
    }

    /// Ends the member as `systemctl stop` does.
    fn stop(&mut self) -> Result<ExitStatus> {
        let id = self.process.id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status()?.success(), "SIGTERM was not sent");
        eventually("the member to end", END, || Ok(self.process.try_wait()?))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let held: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn etcdctl(endpoints: &[String], arguments: &[&str]) -> Result<Output> {
    Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(arguments)
        .output()
        .context("etcdctl does not run")
}

fn etcdctl_prints(endpoints: &[String], arguments: &[&str]) -> Result<String> {
    let output = etcdctl(endpoints, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "etcdctl {} failed: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The place of the endpoint that leads.
fn leader(endpoints: &[String]) -> Result<usize> {
    let status = etcdctl_prints(endpoints, &["endpoint", "status", "-w", "json"])?;
    let status: Vec<Value> = serde_json::from_str(&status)?;
    let leads = |member: &Value| member["Status"]["header"]["member_id"] == member["Status"]["leader"];
    let leader = status.iter().find(|member| leads(member)).context("nobody leads")?;
    endpoints.iter().position(|endpoint| leader["Endpoint"] == **endpoint).context("a member that was asked")
}

/// Writes an `etcd.conf` for each of three members; `extra` adds lines.
fn write_confs(folder: &Path, scheme: &str, peers: &[u16], clients: &[u16], extra: &str) -> Result<Vec<PathBuf>> {
    let cluster: Vec<String> =
        peers.iter().enumerate().map(|(index, port)| format!("m{index}={scheme}://127.0.0.1:{port}")).collect();
    let write = |(index, (peer, client)): (usize, (&u16, &u16))| {
        let conf = folder.join(format!("m{index}.conf"));
        let data = folder.join(format!("m{index}.data"));
        let text = format!(
            "# [member]\n\
             ETCD_NAME=m{index}\n\
             ETCD_DATA_DIR=\"{data}\"\n\
             ETCD_LISTEN_PEER_URLS=\"{scheme}://127.0.0.1:{peer}\"\n\
             ETCD_LISTEN_CLIENT_URLS=\"{scheme}://127.0.0.1:{client}\"\n\
             ETCD_SNAPSHOT_COUNT=\"10000\"\n\
             # [cluster]\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS=\"{scheme}://127.0.0.1:{peer}\"\n\
             ETCD_INITIAL_CLUSTER=\"{cluster}\"\n\
             ETCD_INITIAL_CLUSTER_TOKEN=\"etcd-cluster-1\"\n\
             ETCD_ADVERTISE_CLIENT_URLS=\"{scheme}://127.0.0.1:{client}\"\n\
             {extra}",
            data = data.display(),
            cluster = cluster.join(",")
        );
        std::fs::write(&conf, text)?;
        Ok(conf)
    };
    peers.iter().zip(clients).enumerate().map(write).collect()
}

fn start_all(confs: &[PathBuf]) -> Result<Vec<Member>> {
    let members: Vec<Member> = confs.iter().map(|conf| Member::start(conf)).collect::<Result<_>>()?;
    members.iter().try_for_each(Member::wait_until_ready)?;
    Ok(members)
}

#[test]
fn an_etcd_conf_runs_as_it_is() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_ports()?;
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|port| format!("http://127.0.0.1:{port}"));
    let confs = write_confs(folder.path(), "http", &[p0, p1, p2], &clients, "")?;
    let mut members = start_all(&confs)?;
    ensure!(members[0].said().contains("ETCD_SNAPSHOT_COUNT has no effect"), "{}", members[0].said());

    ensure!(etcdctl_prints(&endpoints[..1], &["put", "a", "1"])? == "OK\n");
    for endpoint in &endpoints {
        ensure!(etcdctl_prints(std::slice::from_ref(endpoint), &["get", "a"])? == "a\n1\n");
    }
    eventually("every member to say where clients reach it", START, || {
        let list = etcdctl_prints(&endpoints, &["member", "list"])?;
        let known = |(index, endpoint): (usize, &String)| {
            list.contains(&format!("m{index}, http://")) && list.contains(endpoint.as_str())
        };
        Ok(endpoints.iter().enumerate().all(known).then_some(()))
    })?;

    // A leader that is told to end goes without a failed write.
    let leading = leader(&endpoints)?;
    let others: Vec<String> = endpoints.iter().filter(|endpoint| **endpoint != endpoints[leading]).cloned().collect();
    let status = members[leading].stop()?;
    ensure!(status.success(), "{status}: {}", members[leading].said());
    ensure!(etcdctl_prints(&others[..1], &["put", "a", "2"])? == "OK\n", "a write through a survivor");

    members[leading] = Member::start(&members[leading].conf.clone())?;
    members[leading].wait_until_ready()?;
    ensure!(etcdctl_prints(&endpoints[leading..=leading], &["get", "a", "--print-value-only"])? == "2\n");
    for member in &mut members {
        let status = member.stop()?;
        ensure!(status.success(), "{status}: {}", member.said());
    }
    Ok(())
}

#[test]
fn tls_is_as_etcd_has_it() -> Result<()> {
    let folder = TempDir::new()?;
    let authority = Authority::load_or_create(folder.path(), "ca", "test")?;
    let (cert, key) = (folder.path().join("m.crt"), folder.path().join("m.key"));
    // As operators make them: an address and no name of ours.
    authority.issue(&Profile::new("member").address(Ipv4Addr::LOCALHOST.into()).server().client(), &cert, &key)?;
    let ca = authority.certificate_path().display().to_string();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());

    let [p0, p1, p2, c0, c1, c2, plain] = free_ports()?;
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|port| format!("https://127.0.0.1:{port}"));
    let extra = format!(
        "ETCD_CERT_FILE={cert}\nETCD_KEY_FILE={key}\nETCD_TRUSTED_CA_FILE={ca}\nETCD_CLIENT_CERT_AUTH=true\n\
         ETCD_PEER_CERT_FILE={cert}\nETCD_PEER_KEY_FILE={key}\nETCD_PEER_TRUSTED_CA_FILE={ca}\n\
         ETCD_PEER_CLIENT_CERT_AUTH=true\n"
    );
    let confs = write_confs(folder.path(), "https", &[p0, p1, p2], &clients, &extra)?;
    // One member also serves in plain text and answers monitoring, as its URLs say.
    let text = std::fs::read_to_string(&confs[0])?;
    let urls = format!("ETCD_LISTEN_CLIENT_URLS=\"https://127.0.0.1:{c0}\"");
    let both = format!("ETCD_LISTEN_CLIENT_URLS=\"https://127.0.0.1:{c0},http://127.0.0.1:{plain}\"");
    std::fs::write(&confs[0], text.replace(&urls, &both))?;
    let mut members = start_all(&confs)?;

    let identity = [format!("--cacert={ca}"), format!("--cert={cert}"), format!("--key={key}")];
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    let with_identity = |arguments: &[&'static str]| [arguments, identity.as_slice()].concat();
    ensure!(etcdctl_prints(&endpoints, &with_identity(&["put", "a", "1"]))? == "OK\n");
    let stranger = etcdctl(&endpoints[..1], &["get", "a", "--command-timeout=2s", identity[0]])?;
    ensure!(!stranger.status.success(), "a client without a certificate was let in");
    let plain = [format!("http://127.0.0.1:{plain}")];
    ensure!(etcdctl_prints(&plain, &["get", "a"])? == "a\n1\n", "the plain URL serves beside the other");
    members.iter_mut().try_for_each(|member| member.stop().map(|_| ()))
}

#[test]
fn https_without_certificates_makes_them() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_ports()?;
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|port| format!("https://127.0.0.1:{port}"));
    let mut members = start_all(&write_confs(folder.path(), "https", &[p0, p1, p2], &clients, "")?)?;
    let skip = ["--insecure-transport=false", "--insecure-skip-tls-verify"];
    ensure!(etcdctl_prints(&endpoints, &["put", "a", "1", skip[0], skip[1]])? == "OK\n");
    ensure!(etcdctl_prints(&endpoints[2..], &["get", "a", skip[0], skip[1]])? == "a\n1\n");
    ensure!(folder.path().join("m0.data/fixtures/client/cert.pem").is_file(), "certificates lie in fixtures");
    members.iter_mut().try_for_each(|member| member.stop().map(|_| ()))
}

#[test]
fn what_etcd_wrote_is_not_written_over() -> Result<()> {
    let folder = TempDir::new()?;
    std::fs::create_dir_all(folder.path().join("member/wal"))?;
    let output = Command::new(binary()?).args(["store", "-data-dir"]).arg(folder.path()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("quorate snapshot import"), "{said}");
    Ok(())
}
