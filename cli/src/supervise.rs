//! Runs a process of the cluster, and runs it again when it ends by itself.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// A process that lived that long was healthy: its next restart is prompt again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// The longest wait between two starts of a process that keeps failing.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What to run, and where its output goes.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub name: String,
    pub arguments: Vec<String>,
    /// Beside what this process has.
    pub environment: Vec<(&'static str, PathBuf)>,
    pub log: PathBuf,
    /// The wait before the first restart; doubles while the process keeps failing.
    pub restart_delay: Duration,
}

/// How a supervised process is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// Absent while it does not run.
    pub pid: Option<u32>,
    /// How often it has ended by itself.
    pub failures: u32,
}

/// Keeps `process` running until `cancel`, telling how it does through `life`.
///
/// The child holds a pipe to this process as its standard input and ends when the
/// pipe closes, so that nothing is left behind even if this process is killed.
pub(crate) async fn supervise(process: Process, life: watch::Sender<Life>, cancel: CancellationToken) {
    let mut delay = process.restart_delay;
    loop {
        let started = Instant::now();
        match spawn(&process) {
            Ok(mut child) => {
                // Held here, because waiting for a child closes the pipe that it still has.
                let _lifeline = child.stdin.take();
                life.send_modify(|life| life.pid = child.id());
                let ended = tokio::select! {
                    status = child.wait() => Some(status),
                    () = cancel.cancelled() => None,
                };
                let Some(status) = ended else {
                    stop(&process.name, &mut child).await;
                    life.send_modify(|life| life.pid = None);
                    return;
                };
                life.send_modify(|life| *life = Life { pid: None, failures: life.failures + 1 });
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                println!("{} ended ({how}); its log is {}", process.name, process.log.display());
            }
            Err(error) => {
                life.send_modify(|life| life.failures += 1);
                tracing::error!(process = process.name, error = format!("{error:#}"), "a process could not be started");
            }
        }
        if started.elapsed() > HEALTHY_AFTER {
            delay = process.restart_delay;
        }
        tokio::select! {
            () = time::sleep(delay) => {}
            () = cancel.cancelled() => return,
        }
        delay = (delay * 2).min(LONGEST_WAIT);
        println!("{} starts again", process.name);
    }
}

fn spawn(process: &Process) -> Result<Child> {
    let executable = std::env::current_exe().context("cannot find this program's own file")?;
    if let Some(folder) = process.log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&process.log)
        .with_context(|| format!("cannot open {}", process.log.display()))?;
    Command::new(executable)
        .args(&process.arguments)
        .envs(process.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        // Ctrl-C in the terminal reaches only the supervisor, which stops things in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", process.name))
}

async fn stop(name: &str, child: &mut Child) {
    let Some(id) = child.id() else { return };
    let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM);
    if time::timeout(STOP_GRACE, child.wait()).await.is_err() {
        tracing::warn!(process = name, "killed a process that did not end in time");
        let _ = child.kill().await;
    }
}

/// Ends when this process should: on SIGTERM or SIGINT, or, with `lifeline`, when
/// standard input closes because the supervisor is gone.
pub(crate) async fn shutdown_signal(lifeline: bool) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = supervisor_gone(), if lifeline => {}
    }
    Ok(())
}

/// Cancelled at the first Ctrl-C, or when the terminal goes: what was measured until then is
/// reported, and what was started is ended.
pub(crate) fn stop_on_signal() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = hangup.recv() => {}
            ended = shutdown_signal(false) => if let Err(error) = ended {
                tracing::warn!(error = format!("{error:#}"), "Ctrl-C ends this at once");
                return;
            },
        }
        cancel.cancel();
    });
    Ok(stop)
}

async fn supervisor_gone() {
    // A thread of its own: a blocking read on the runtime's pool would keep the
    // runtime from ending.
    let (gone, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = gone.send(());
    });
    let _ = told.await;
}
