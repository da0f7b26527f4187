//! Programs that the agent runs: short ones to their end, long ones that never outlive it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::sync::{oneshot, watch};

/// No program that the agent waits for needs longer on a healthy machine.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Where system programs are, even for users whose PATH ends before `/usr/sbin`.
const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("cannot run {program}")]
    Spawn { program: String, source: std::io::Error },
    #[error("{program} ended with {status}: {output}")]
    Failed { program: String, status: ExitStatus, output: String },
    #[error("{program} did not end within {COMMAND_TIMEOUT:?}")]
    Timeout { program: String },
}

/// The PATH for children: the user's, then the system's folders.
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_FOLDERS);
    path
}

/// The file that running `program` would start.
pub fn find_program(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|folder| folder.join(program)).find(|path| is_executable(path))
}

/// Whether `path` is a file that may be executed.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs `program` to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started, ends with a failure, or takes too long; then it is killed.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let name = || program.to_owned();
    let spawned = tokio::process::Command::new(program)
        .args(arguments)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|source| CommandError::Spawn { program: name(), source })?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends without reading its input says why by its exit code.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(COMMAND_TIMEOUT, work)
        .await
        .map_err(|_| CommandError::Timeout { program: name() })?
        .map_err(|source| CommandError::Spawn { program: name(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.is_empty() {
        text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    Err(CommandError::Failed { program: name(), status: output.status, output: text })
}

/// A long-running child that the kernel kills when this process ends.
pub struct Guarded {
    pid: Pid,
    ended: watch::Receiver<bool>,
}

impl Guarded {
    /// Starts `program` in a process group of its own, its output appended to `log`.
    ///
    /// The kernel binds a parent-death signal to the *thread* that made the child, and
    /// tokio's threads come and go; so one thread makes the child and waits for its end.
    ///
    /// # Errors
    /// When the program or its log file cannot be opened.
    pub async fn spawn(program: &str, arguments: Vec<OsString>, log: &Path) -> Result<Self, CommandError> {
        let name = program.to_owned();
        let failed = |source| CommandError::Spawn { program: program.to_owned(), source };
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
        let (started, start) = oneshot::channel();
        let (end, ended) = watch::channel(false);
        let keeper = move || {
            let spawned = log.try_clone().and_then(|errors| {
                std::process::Command::new("setpriv")
                    .args(["--pdeathsig", "KILL", "--", &name])
                    .args(arguments)
                    .env("PATH", search_path())
                    .stdin(Stdio::null())
                    .stdout(log)
                    .stderr(errors)
                    .process_group(0)
                    .spawn()
            });
            match spawned {
                Ok(mut child) => {
                    let _ = started.send(Ok(child.id()));
                    let _ = child.wait();
                    end.send_replace(true);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        std::thread::Builder::new().name("child-keeper".to_owned()).spawn(keeper).map_err(failed)?;
        let pid = start
            .await
            .unwrap_or_else(|_| Err(std::io::Error::other("the keeper of the child ended")))
            .map_err(failed)?;
        Ok(Self { pid: Pid::from_raw(pid.cast_signed()), ended })
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Kills the child and returns once it is gone.
    pub async fn kill(&mut self) {
        if !self.has_ended() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        // An error means that the keeper is gone, and so is the child.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}
