//! Faults of a process: killed, stopped, told to end.

use anyhow::{Context, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// Ends `pid` at once, as a crash or a lost machine does.
pub fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::SIGKILL)
}

/// Asks `pid` to end.
pub fn terminate(pid: u32) -> Result<()> {
    signal(pid, Signal::SIGTERM)
}

/// Stops `pid` where it is: it answers nobody, and its connections stay open.
pub fn stop(pid: u32) -> Result<()> {
    signal(pid, Signal::SIGSTOP)
}

/// Lets `pid` go on after [`stop`].
pub fn resume(pid: u32) -> Result<()> {
    signal(pid, Signal::SIGCONT)
}

/// Whether a process of that pid exists.
pub fn exists(pid: u32) -> bool {
    signal::kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    signal::kill(Pid::from_raw(pid.cast_signed()), signal)
        .with_context(|| format!("cannot send {signal} to process {pid}"))
}
