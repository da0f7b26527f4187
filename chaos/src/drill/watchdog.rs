//! The dead man's switch: a process of its own that undoes a fault when the drill does not,
//! because it was killed, hangs, or runs on past its time.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::target::Identity;
use crate::fault::process;

/// Ends the watchdog without an action.
const DISARM: &str = "disarm";

/// Who is let go on, or ended, should the drill not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    Resume(Identity),
    /// Asks a process to end: a cluster that the drill started for itself.
    End(Identity),
}

impl Undo {
    /// Does it, unless the process is gone.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Resume(identity) if identity.is_there() => process::resume(identity.pid),
            Self::End(identity) if identity.is_there() => process::signal(identity.pid, Signal::SIGINT),
            Self::Resume(_) | Self::End(_) => Ok(()),
        }
    }
}

/// A fault that is undone when this is dropped, and also when this process dies.
pub struct Armed {
    undo: Undo,
    watchdog: Child,
    /// Closes when this process ends.
    lifeline: Option<ChildStdin>,
}

impl Armed {
    /// Starts a watchdog that undoes `undo` when this process is gone, or after `patience`.
    /// `binary` is `quorate`.
    ///
    /// # Errors
    /// When it cannot be started: the fault must not happen then.
    pub fn arm(binary: &Path, undo: Undo, patience: Duration) -> Result<Self> {
        let flag = match undo {
            Undo::Resume(identity) => format!("--resume={identity}"),
            Undo::End(identity) => format!("--end={identity}"),
        };
        let mut watchdog = Command::new(binary)
            .args(["drill", "watchdog", &flag, &format!("--after={}", patience.as_secs_f64())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C in the terminal is the drill's to handle.
            .process_group(0)
            .spawn()
            .context("cannot start the watchdog")?;
        let lifeline = watchdog.stdin.take();
        let says = watchdog.stdout.take().context("the watchdog's standard output is a pipe")?;
        let mut armed = Self { undo, watchdog, lifeline };
        let mut word = String::new();
        BufReader::new(says).read_line(&mut word).context("the watchdog does not speak")?;
        if word.trim() != "armed" {
            armed.disarm()?;
            anyhow::bail!("the watchdog did not start");
        }
        Ok(armed)
    }

    /// Undoes the fault now.
    ///
    /// # Errors
    /// When that fails; the watchdog then tries as well.
    pub fn undo(mut self) -> Result<()> {
        self.undo.run()?;
        self.disarm()
    }

    /// For what has ended by itself.
    ///
    /// # Errors
    /// When the watchdog cannot be waited for.
    pub fn disarm(&mut self) -> Result<()> {
        use std::io::Write;
        if let Some(mut lifeline) = self.lifeline.take() {
            // A watchdog that is gone needs no word.
            let _ = writeln!(lifeline, "{DISARM}");
            self.watchdog.wait().context("the watchdog does not end")?;
        }
        Ok(())
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if self.lifeline.is_some() {
            // The watchdog does it once more when its pipe closes, should this have failed.
            let _ = self.undo.run();
            drop(self.lifeline.take());
            let _ = self.watchdog.wait();
        }
    }
}

/// The watchdog's own life. Ends after it has acted, or has been disarmed.
///
/// # Errors
/// When it acted and failed.
pub fn watch(undo: Undo, patience: Duration) -> Result<()> {
    println!("armed");
    let (told, words) = mpsc::channel();
    std::thread::spawn(move || {
        let mut word = String::new();
        let _ = std::io::stdin().lock().read_line(&mut word);
        let _ = told.send(word.trim() == DISARM);
    });
    match words.recv_timeout(patience) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => undo.run(),
    }
}
