//! The cluster under drill: where it answers, and which processes it is made of.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quorate_transport::tls::TlsFiles;

use crate::fault::disk::Disk;
use crate::fault::process;

/// A cluster of `quorate up` on this machine.
#[derive(Clone)]
pub struct Target {
    pub masters: Vec<Master>,
    /// Names of the nodes whose agents run on this machine.
    pub nodes: Vec<String>,
    /// Leads to any master that serves the API.
    pub endpoint: SocketAddr,
    /// An administrator's.
    pub kubeconfig: PathBuf,
    /// What clients show to the store.
    pub store_tls: TlsFiles,
    /// The process table as it is now: ids change when processes start again.
    pub processes: Arc<dyn Fn() -> Result<Processes> + Send + Sync>,
    /// By master; none where masters were started without.
    pub disks: BTreeMap<String, Disk>,
}

/// Where a master answers.
#[derive(Clone, Debug)]
pub struct Master {
    pub name: String,
    pub api: SocketAddr,
    pub client: SocketAddr,
    pub peer: SocketAddr,
}

/// The processes of a cluster; those that do not run are absent.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    /// Starts the others again.
    pub supervisor: Option<u32>,
    pub masters: BTreeMap<String, u32>,
    pub nodes: BTreeMap<String, u32>,
}

/// A process that was there when it was looked at: another one under its id is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    /// Of /proc/PID/stat.
    pub start_ticks: u64,
}

impl Identity {
    /// `None` when there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start_ticks: start_ticks(&stat)? })
    }

    pub fn is_there(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// The 22nd field; the second, a name in parentheses, may hold spaces.
fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

impl std::str::FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (pid, start) = text.split_once(':')?;
            Some(Self { pid: pid.parse().ok()?, start_ticks: start.parse().ok()? })
        };
        parse().ok_or_else(|| format!("{text:?} is not of the form PID:START"))
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.pid, self.start_ticks)
    }
}

impl Target {
    /// The process of a master, once it is certain that it is one.
    ///
    /// # Errors
    /// When it does not run, or something else runs under its id.
    pub(crate) fn master_process(&self, name: &str) -> Result<Identity> {
        certain(&(self.processes)()?.masters, "master", name)
    }

    /// The process of a node's agent, likewise.
    ///
    /// # Errors
    /// As [`Target::master_process`].
    pub(crate) fn node_process(&self, name: &str) -> Result<Identity> {
        certain(&(self.processes)()?.nodes, "node", name)
    }
}

/// The process that `processes` has for `name`, whose command line says that it is that `role`.
fn certain(processes: &BTreeMap<String, u32>, role: &str, name: &str) -> Result<Identity> {
    let pid = *processes.get(name).with_context(|| format!("{name} does not run"))?;
    let identity = Identity::of(pid).with_context(|| format!("{name} has just ended"))?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).with_context(|| format!("{name} has just ended"))?;
    let wanted = format!("--name={name}");
    let says = |wanted: &str| command.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes());
    ensure!(
        process::exists(pid) && says(role) && says(&wanted),
        "process {pid} is not {name}: look at it with `ps {pid}`"
    );
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_id_and_its_start() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.is_there());
        assert_eq!(own.to_string().parse(), Ok(own));
        assert!(!Identity { start_ticks: own.start_ticks + 1, ..own }.is_there());
        assert!("12".parse::<Identity>().is_err());
        let fields: Vec<String> = (3..=25).map(|field| field.to_string()).collect();
        assert_eq!(start_ticks(&format!("7 (a) b) {}", fields.join(" "))), Some(22));
    }
}
