//! Clusters that the benchmark starts itself, on loopback addresses and in a folder of their
//! own, and that end with it.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
const START_LOOK: Duration = Duration::from_millis(20);

/// How long a member may take to end.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// Of util-linux, which every Debian machine has; it becomes the program that it starts.
const SETPRIV: &str = "/usr/bin/setpriv";

/// What of a log is told when a member does not start.
const LOG_LINES: usize = 8;

/// Killed and removed with this value.
pub(crate) struct OwnCluster {
    // Before the folder, so that nobody writes into it any more when it goes.
    members: Vec<Member>,
    folder: TempDir,
}

struct Member {
    process: Child,
    url: String,
    place: Place,
}

/// What a member is started with, the first time and again.
#[derive(Clone)]
struct Place {
    program: Vec<String>,
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    initial: String,
    folder: PathBuf,
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
        let mut places: Vec<Place> = (1..=size)
            .map(|number| Place {
                program: program.to_vec(),
                name: format!("m{number}"),
                client: free_address(),
                peer: free_address(),
                initial: String::new(),
                folder: folder.path().to_owned(),
            })
            .collect();
        let initial: Vec<String> = places.iter().map(|place| format!("{}=http://{}", place.name, place.peer)).collect();
        places.iter_mut().for_each(|place| place.initial = initial.join(","));
        let members = places.into_iter().map(start).collect::<Result<Vec<Member>>>()?;
        let mut cluster = Self { members, folder };
        cluster.wait_until_serving().await?;
        Ok(cluster)
    }

    /// Ends every member as a service manager does, starts all again, and tells how long it
    /// took from then until all of them serve.
    ///
    /// # Errors
    /// When one does not end or does not start.
    pub(crate) async fn restart(&mut self) -> Result<Duration> {
        for member in &mut self.members {
            kill(Pid::from_raw(member.process.id().cast_signed()), Signal::SIGTERM).context("cannot end a member")?;
        }
        let deadline = Instant::now() + END_PATIENCE;
        for member in &mut self.members {
            while member.process.try_wait().context("cannot ask for a process")?.is_none() {
                ensure!(Instant::now() < deadline, "{} does not end within {END_PATIENCE:?}", member.place.name);
                time::sleep(START_LOOK).await;
            }
        }
        let begin = Instant::now();
        for member in &mut self.members {
            *member = start(member.place.clone())?;
        }
        self.wait_until_serving().await?;
        Ok(begin.elapsed())
    }

    async fn wait_until_serving(&mut self) -> Result<()> {
        for member in &mut self.members {
            let (name, log) = (member.place.name.clone(), member.place.log());
            wait_until_serving(member).await.with_context(|| {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                format!("{name} does not start:\n{end}\n")
            })?;
        }
        Ok(())
    }

    /// Connects to all members.
    ///
    /// # Errors
    /// When they do not answer.
    pub(crate) async fn target(&self, connections: usize) -> Result<Target> {
        let urls = self.members.iter().map(|member| member.url.clone()).collect();
        let mut target = Target::connect(&Endpoints::plain(urls), connections, false).await?;
        ensure!(target.servers.len() == self.members.len(), "not every member is known to the cluster");
        target.data_dir = Some(self.folder.path().to_owned());
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

impl Place {
    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}

fn start(place: Place) -> Result<Member> {
    let [file, arguments @ ..] = place.program.as_slice() else { bail!("no program is named") };
    let (url, peer_url) = (format!("http://{}", place.client), format!("http://{}", place.peer));
    let log = File::options().create(true).append(true).open(place.log()).context("cannot create a log")?;
    let process = bound_to_us(file)
        .args(arguments)
        .args(["--name", &place.name, "--initial-cluster", &place.initial])
        .args(["--initial-cluster-token", "quorate-bench"])
        .arg("--data-dir")
        .arg(place.folder.join(&place.name))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        // Ctrl-C in the terminal reaches only the benchmark, which ends things in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {file}: install it, or name another"))?;
    Ok(Member { process, url, place })
}

/// A command that the kernel ends when this process ends without ending it, as it does when
/// somebody kills it. Where the wrapper is not installed, nothing does.
fn bound_to_us(file: &str) -> Command {
    if !Path::new(SETPRIV).exists() {
        return Command::new(file);
    }
    let mut command = Command::new(SETPRIV);
    command.args(["--pdeathsig", "KILL", "--", file]);
    command
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
