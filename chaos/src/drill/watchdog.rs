//! The dead man's switch: a process of its own that undoes a fault when the drill does not,
//! because it was killed, hangs, or runs on past its time.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::target::Identity;
use crate::fault::disk::{self, Behaviour, Bit};
use crate::fault::link::Table;
use crate::fault::process;

/// Ends the watchdog without an action.
const DISARM: &str = "disarm";

/// What is undone, should the drill not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Lets a process go on that was stopped.
    Resume(Identity),
    /// Asks a process to end: a cluster that the drill started for itself.
    End(Identity),
    /// Makes links whole.
    Mend(Table),
    /// Makes the disk and the clock whole that are controlled by this file.
    Heal(PathBuf),
    /// Makes a bit what it was.
    Restore(Bit),
}

impl Undo {
    /// Does it, unless there is nothing to undo any more.
    ///
    /// # Errors
    /// When the signal cannot be sent, the table not be removed, or the file not be written.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Resume(identity) if identity.is_there() => process::resume(identity.pid),
            Self::End(identity) if identity.is_there() => process::signal(identity.pid, Signal::SIGINT),
            Self::Resume(_) | Self::End(_) => Ok(()),
            Self::Mend(table) => table.remove(),
            Self::Heal(control) => disk::behave(control, Behaviour::default()),
            Self::Restore(bit) => bit.restore(),
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resume(identity) => write!(f, "resume={identity}"),
            Self::End(identity) => write!(f, "end={identity}"),
            Self::Mend(table) => write!(f, "mend={table}"),
            Self::Heal(control) => write!(f, "heal={}", control.display()),
            Self::Restore(bit) => write!(f, "restore={}:{}:{}", bit.at, bit.was, bit.file.display()),
        }
    }
}

impl FromStr for Undo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("resume", identity)) => identity.parse().map(Self::Resume),
            Some(("end", identity)) => identity.parse().map(Self::End),
            Some(("mend", table)) => table.parse().map(Self::Mend),
            Some(("heal", control)) => Ok(Self::Heal(control.into())),
            Some(("restore", bit)) => match bit.splitn(3, ':').collect::<Vec<_>>().as_slice() {
                &[at, was, file] => match (at.parse(), was.parse()) {
                    (Ok(at), Ok(was)) => Ok(Self::Restore(Bit { file: file.into(), at, was })),
                    _ => Err(format!("{at}:{was} are no place and no byte")),
                },
                _ => Err(format!("{bit:?} is not of the form PLACE:BYTE:FILE")),
            },
            _ => Err(format!(
                "{text:?} is not of the form resume=PID:START, end=PID:START, mend=TABLE, heal=FILE or \
                 restore=PLACE:BYTE:FILE"
            )),
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
        let mut watchdog = Command::new(binary)
            .args(["drill", "watchdog", &undo.to_string(), &format!("--after={}", patience.as_secs_f64())])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_told_what_to_undo() {
        let identity = Identity { pid: 7, start_ticks: 9 };
        let mend = Undo::Mend("quorate_drill_7".parse().unwrap());
        let restore = Undo::Restore(Bit { file: "/a:b".into(), at: 7, was: 9 });
        for undo in [Undo::Resume(identity), Undo::End(identity), mend, Undo::Heal("/a b".into()), restore] {
            assert_eq!(undo.to_string().parse(), Ok(undo));
        }
        for text in ["", "resume", "resume=7", "mend=filter", "kill=7:9", "restore=7:/a", "restore=7:256:/a"] {
            assert!(text.parse::<Undo>().is_err(), "{text:?}");
        }
    }
}
