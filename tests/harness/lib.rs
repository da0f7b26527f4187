//! What every end-to-end test begins with: a cluster of its own, and stock clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_chaos::cluster::{Cluster, Options};
use serde_json::Value;

/// A cluster in a folder of its own, removed with it.
pub struct TestCluster {
    pub cluster: Cluster,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// One cluster at a time: a second one would take the cores from the times that are measured.
static TURN: Mutex<()> = Mutex::new(());

impl TestCluster {
    /// # Errors
    /// When the cluster does not start; with nodes, also when the tests do not run as root.
    pub fn start(masters: u8, nodes: u8) -> Result<Self> {
        Self::start_on(masters, nodes, false)
    }

    /// With masters whose disks and clocks can be failed.
    ///
    /// # Errors
    /// When the cluster does not start.
    pub fn start_with_faults(masters: u8) -> Result<Self> {
        Self::start_on(masters, 0, true)
    }

    fn start_on(masters: u8, nodes: u8, faults: bool) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("quorate-test-").tempdir().context("no temporary folder")?;
        let images = std::env::var_os("QUORATE_IMAGES").map(PathBuf::from);
        ensure!(nodes == 0 || images.is_some(), "QUORATE_IMAGES is not set: run the tests with ./x test");
        let options = Options {
            binary: binary()?,
            data_dir: folder.path().join("data"),
            masters,
            nodes,
            images: images.filter(|_| nodes > 0),
            faults,
            detached: false,
        };
        Ok(Self { cluster: Cluster::start(options)?, _folder: folder, _turn: turn })
    }

    /// Stock kubectl as the cluster's administrator.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl { kubeconfig: self.cluster.kubeconfig() }
    }
}

/// The `quorate` binary that `./x test` built.
///
/// # Errors
/// When the tests were started in another way.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("QUORATE_BIN")
        .map(PathBuf::from)
        .context("QUORATE_BIN is not set: run the tests with ./x test")?;
    ensure!(path.is_file(), "there is no binary at {}", path.display());
    Ok(path)
}

/// Tells whoever runs the tests a figure, also when the test passes and its output is not shown.
pub fn report(text: &str) {
    use std::io::Write;
    // Not `println!`, which the test runner captures; a closed terminal is no failure.
    let _ = writeln!(std::io::stderr(), "  {text}");
}

/// The project's root, for its examples. Cargo runs tests in the folder of their crate; the
/// path at compile time may be that of another clone with the same target folder.
pub fn root() -> &'static Path {
    Path::new("..")
}

/// Stock kubectl with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub fn with_kubeconfig(kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned() }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        // A cache of its own: another cluster's discovery must not leak in.
        let cache = self.kubeconfig.with_file_name("kubectl-cache");
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(cache).args(arguments);
        command
    }

    /// Runs kubectl to its end, whatever that is.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).stdin(Stdio::null()).output().context("kubectl does not run")
    }

    /// What kubectl prints when it succeeds.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        if !output.status.success() {
            bail!("kubectl {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Hands `input` to kubectl's standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<Output> {
        use std::io::Write;
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl does not run")?;
        child.stdin.take().context("standard input is a pipe")?.write_all(input.as_bytes())?;
        child.wait_with_output().context("kubectl does not end")
    }

    /// What kubectl says when it fails, as it must.
    pub fn fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        ensure!(!output.status.success(), "kubectl {} succeeded", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// An object or list as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }
}

/// Looks every 50 ms until `condition` gives something; its errors count as "not yet".
///
/// # Errors
/// After `patience`, with what was looked for and the last error.
#[allow(clippy::disallowed_methods)] // Conditions of other processes can only be polled.
pub fn eventually<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let seen = condition();
        match seen {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if Instant::now() > deadline => bail!("waited {} s in vain for {what}", patience.as_secs()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {} s in vain for {what}", patience.as_secs())));
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
