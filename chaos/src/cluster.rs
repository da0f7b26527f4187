//! A cluster under test: `quorate up` as a process, and what it says of itself.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use quorate_transport::loopback::free_address;
use serde::Deserialize;

use crate::fault::process;

/// How often a condition is looked at again.
const LOOK: Duration = Duration::from_millis(25);

/// How long a whole cluster may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The third octet of the next cluster's loopback network: clusters of one test run
/// never share addresses, and those of users begin at 10.
static NEXT_NETWORK: AtomicU16 = AtomicU16::new(0);

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `quorate` binary.
    pub binary: PathBuf,
    pub data_dir: PathBuf,
    pub masters: u8,
    pub nodes: u8,
    /// Image archives for the nodes.
    pub images: Option<PathBuf>,
    /// Masters whose disks and clocks can be failed.
    pub faults: bool,
    /// Ctrl-C in the terminal does not reach it: whoever started it ends it in order.
    pub detached: bool,
}

/// A cluster that runs until it is stopped or dropped.
pub struct Cluster {
    options: Options,
    network: String,
    endpoint: SocketAddr,
    up: Option<Child>,
}

/// The answer of `quorate status -o json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub leader: Option<String>,
    pub term: u64,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub name: String,
    pub role: String,
    pub applied_index: Option<u64>,
    pub lag: Option<u64>,
    pub pid: Option<u32>,
    pub api: SocketAddr,
    pub client: SocketAddr,
}

impl Cluster {
    /// Starts the cluster and waits until every master is ready.
    ///
    /// # Errors
    /// When it does not become ready; the message holds what `quorate up` said.
    pub fn start(options: Options) -> Result<Self> {
        let number =
            NEXT_NETWORK.fetch_add(1, Ordering::Relaxed) + u16::try_from(std::process::id() % 40).unwrap_or(0) * 4;
        let network = format!("127.{}.{}.0", 20 + number / 200, number % 200 + 20);
        let endpoint = free_address();
        let mut cluster = Self { options, network, endpoint, up: None };
        cluster.launch()?;
        Ok(cluster)
    }

    /// Starts the same cluster again, on its old state.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.up.is_none(), "the cluster runs already");
        std::fs::create_dir_all(&self.options.data_dir).context("cannot make the data directory")?;
        let log = std::fs::File::create(self.up_log()).context("cannot make the log of `quorate up`")?;
        let mut command = Command::new(&self.options.binary);
        command
            .arg("up")
            .arg(format!("--masters={}", self.options.masters))
            .arg(format!("--nodes={}", self.options.nodes))
            .arg(format!("--data-dir={}", self.options.data_dir.display()))
            .arg(format!("--network={}", self.network))
            .arg(format!("--endpoint={}", self.endpoint))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log);
        if let Some(images) = &self.options.images {
            command.arg(format!("--images={}", images.display()));
        }
        if self.options.faults {
            command.arg("--faults");
        }
        if self.options.detached {
            command.process_group(0);
        }
        self.up = Some(command.spawn().with_context(|| format!("cannot start {}", self.options.binary.display()))?);
        self.wait_for("every master to be ready", Duration::from_secs(60), |cluster| {
            if let Some(up) = cluster.up.as_mut()
                && let Some(status) = up.try_wait()?
            {
                bail!("`quorate up` ended with {status}: {}", cluster.up_says());
            }
            Ok(cluster.up_says().contains(&format!("All {} masters ready", cluster.options.masters)).then_some(()))
        })
    }

    /// Looks until `condition` gives something.
    ///
    /// # Errors
    /// When the deadline passes, naming `what`; or as soon as `condition` fails.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = condition(self)? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("waited {} s in vain for {what}; `quorate up` said: {}", patience.as_secs(), self.up_says());
            }
            pause(LOOK);
        }
    }

    /// `quorate status`, also when there is no leader.
    pub fn status(&self) -> Result<Status> {
        let output = self.quorate(&["status", "--data-dir", &self.options.data_dir.to_string_lossy(), "-o", "json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`quorate status` printed no JSON: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Runs another command of the same binary.
    pub fn quorate(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.options.binary).args(arguments).output().context("cannot run quorate")
    }

    /// The process of `quorate up`, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.up.as_ref().map(Child::id)
    }

    pub fn data_dir(&self) -> &Path {
        &self.options.data_dir
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.options.data_dir.join("admin.kubeconfig")
    }

    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Kills every master in one go, and `quorate up` with them, as a power cut would.
    pub fn power_off(&mut self) -> Result<()> {
        let pids: Vec<u32> = self.status()?.members.iter().filter_map(|member| member.pid).collect();
        let Some(mut up) = self.up.take() else { bail!("the cluster does not run") };
        // First the supervisor, which would start them again.
        up.kill().context("cannot kill `quorate up`")?;
        for pid in &pids {
            process::kill(*pid)?;
        }
        up.wait().context("`quorate up` did not end")?;
        self.wait_for("the killed processes to be gone", Duration::from_secs(10), |_| {
            Ok(pids.iter().all(|pid| !process::exists(*pid)).then_some(()))
        })
    }

    /// Ends the cluster as Ctrl-C does, and waits for it.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut up) = self.up.take() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(up.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGINT).context("cannot interrupt `quorate up`")?;
        let deadline = Instant::now() + STOP_PATIENCE;
        while up.try_wait().context("cannot wait for `quorate up`")?.is_none() {
            if Instant::now() > deadline {
                up.kill().context("cannot kill `quorate up`")?;
                bail!("`quorate up` did not end within {} s of Ctrl-C", STOP_PATIENCE.as_secs());
            }
            pause(LOOK);
        }
        Ok(())
    }

    fn up_log(&self) -> PathBuf {
        self.options.data_dir.join("up.log")
    }

    /// What `quorate up` printed since its start.
    pub fn up_says(&self) -> String {
        std::fs::read_to_string(self.up_log()).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind either.
        let _ = self.stop();
    }
}

/// Conditions of other processes can only be polled.
#[allow(clippy::disallowed_methods)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
