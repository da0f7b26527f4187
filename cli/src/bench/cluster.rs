//! Clusters that the benchmark starts itself, on loopback addresses and in a folder of their
//! own, and that end with it.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_proto::etcd::RangeRequest;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_transport::loopback::free_address;
use tempfile::TempDir;
use tokio::time::{self, Instant};

use super::servers;
use super::target::Target;
use crate::endpoints::Endpoints;

/// Longer than any member takes to start that starts at all, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two looks at a member that starts.
const START_LOOK: Duration = Duration::from_millis(100);

/// What of a log is told when a member does not start.
const LOG_LINES: usize = 8;

/// Killed and removed with this value.
pub(crate) struct OwnCluster {
    // Before the folder, so that nobody writes into it any more when it goes.
    members: Vec<Member>,
    _folder: TempDir,
}

struct Member {
    process: Child,
    url: String,
}

impl Drop for Member {
    fn drop(&mut self) {
        // One that has ended already is no failure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl OwnCluster {
    /// Starts `size` members of `program` with their data below `parent`, and waits until all
    /// of them serve.
    ///
    /// # Errors
    /// When one does not, with the end of its log.
    pub(crate) async fn start(program: &[String], size: usize, parent: &Path) -> Result<Self> {
        let cannot = || format!("cannot write in {}", parent.display());
        let folder = tempfile::Builder::new().prefix("quorate-bench-").tempdir_in(parent).with_context(cannot)?;
        let places: Vec<(String, SocketAddr, SocketAddr)> =
            (1..=size).map(|number| (format!("m{number}"), free_address(), free_address())).collect();
        let initial: Vec<String> = places.iter().map(|(name, _, peer)| format!("{name}=http://{peer}")).collect();
        let mut members = Vec::with_capacity(size);
        for (name, client, peer) in &places {
            members.push(start(program, name, [*client, *peer], &initial.join(","), folder.path())?);
        }
        for (member, (name, ..)) in members.iter_mut().zip(&places) {
            let log = folder.path().join(format!("{name}.log"));
            wait_until_serving(member).await.with_context(|| {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                format!("{} {name} does not start:\n{end}\n", program.join(" "))
            })?;
        }
        Ok(Self { members, _folder: folder })
    }

    /// Connects to all members.
    ///
    /// # Errors
    /// When they do not answer.
    pub(crate) async fn target(&self, connections: usize) -> Result<Target> {
        let urls = self.members.iter().map(|member| member.url.clone()).collect();
        let mut target = Target::connect(&Endpoints::plain(urls), connections, false).await?;
        for server in &mut target.servers {
            server.pid = self.members.iter().find(|member| member.url == server.url).map(|member| member.process.id());
        }
        ensure!(
            target.servers.len() == self.members.len() && target.servers.iter().all(|server| server.pid.is_some()),
            "not every member is known to the cluster"
        );
        Ok(target)
    }

    /// The most memory that a member has held since [`Self::forget_peaks`].
    pub(crate) fn memory_peak_bytes(&self) -> Option<f64> {
        let peaks = self.members.iter().map(|member| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", member.process.id())).ok()?;
            servers::number(&status, "VmHWM:").map(|kib| kib * 1024.0)
        });
        peaks.collect::<Option<Vec<f64>>>()?.into_iter().max_by(f64::total_cmp)
    }

    /// From now on peaks count anew.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub(crate) fn forget_peaks(&self) -> Result<()> {
        // proc(5): 5 resets the peak of resident memory.
        self.members.iter().try_for_each(|member| {
            std::fs::write(format!("/proc/{}/clear_refs", member.process.id()), "5")
                .context("the kernel does not reset the peak of a process's memory")
        })
    }
}

fn start(
    program: &[String],
    name: &str,
    [client, peer]: [SocketAddr; 2],
    initial: &str,
    folder: &Path,
) -> Result<Member> {
    let [file, arguments @ ..] = program else { bail!("no program is named") };
    let (url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let log = File::create(folder.join(format!("{name}.log"))).context("cannot create a log")?;
    let process = Command::new(file)
        .args(arguments)
        .args(["--name", name, "--initial-cluster", initial, "--initial-cluster-token", "quorate-bench"])
        .arg("--data-dir")
        .arg(folder.join(name))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        // Ctrl-C in the terminal reaches only the benchmark, which ends things in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {file}: install it, or name another"))?;
    Ok(Member { process, url })
}

async fn wait_until_serving(member: &mut Member) -> Result<()> {
    let endpoints = Endpoints::plain(vec![member.url.clone()]);
    let connections = endpoints.connect().await?;
    let connection = connections.first().context("no endpoint")?;
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let mut kv = KvClient::new(connection.service());
        let request = RangeRequest { key: "b".into(), ..RangeRequest::default() };
        let answer = connection.answer(kv.range(request)).await;
        // A member that has not told the others yet where it serves is not counted as one.
        let listed = match answer {
            Ok(_) => connection.members(true).await.is_ok_and(|all| all.iter().all(|one| !one.client_ur_ls.is_empty())),
            Err(_) => false,
        };
        if listed {
            return Ok(());
        }
        if let Some(status) = member.process.try_wait().context("cannot ask for a process")? {
            bail!("it ended with {status}");
        }
        ensure!(Instant::now() < deadline, "it does not serve within {} s", START_PATIENCE.as_secs());
        time::sleep(START_LOOK).await;
    }
}
