//! What the machine must offer, checked before anything is changed.

use std::path::{Path, PathBuf};

use crate::config::{Config, Runtime};
use crate::containerd::Layout;
use crate::process;

/// The longest path of a socket is 107 bytes; containerd adds `.ttrpc` to its own.
const MAX_SOCKET_PATH: usize = 107 - ".ttrpc".len();

/// Programs that a managed runtime needs, and the Debian package that has each.
const PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("nsenter", "util-linux"),
];

/// CNI plugins that a managed runtime needs.
const PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// What was seen of the machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub root: bool,
    pub managed: bool,
    /// Programs that are not on the PATH.
    pub missing_programs: Vec<&'static str>,
    pub plugin_dir: PathBuf,
    pub missing_plugins: Vec<&'static str>,
    /// Controllers that are mounted or enabled.
    pub cgroup_controllers: Vec<String>,
    /// IPv4 forwarding is on, or may be switched on.
    pub forwarding: bool,
    pub socket: PathBuf,
    /// With an external runtime: whether its socket is there.
    pub socket_exists: bool,
}

/// Something is missing: one sentence each, with its remedy.
#[derive(Debug, thiserror::Error)]
#[error("this machine cannot run a node:\n  - {}", .problems.join("\n  - "))]
pub struct PreflightError {
    pub problems: Vec<String>,
}

/// Looks at the machine and reports everything that is missing at once.
///
/// # Errors
/// When anything is missing.
pub fn check(config: &Config) -> Result<(), PreflightError> {
    let problems = problems(&observe(config));
    if problems.is_empty() { Ok(()) } else { Err(PreflightError { problems }) }
}

fn observe(config: &Config) -> Machine {
    let (managed, socket) = match &config.runtime {
        Runtime::Managed => (true, Layout::new(&config.data_dir).socket()),
        Runtime::Socket(socket) => (false, socket.clone()),
    };
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    Machine {
        root: nix::unistd::geteuid().is_root(),
        managed,
        missing_programs: PROGRAMS
            .iter()
            .map(|(program, _)| *program)
            .filter(|program| process::find_program(program).is_none())
            .collect(),
        plugin_dir: config.cni_plugin_dir.clone(),
        missing_plugins: PLUGINS
            .into_iter()
            .filter(|plugin| !process::is_executable(&config.cni_plugin_dir.join(plugin)))
            .collect(),
        cgroup_controllers: crate::cgroup::controllers(),
        forwarding: std::fs::read_to_string(forward).is_ok_and(|on| on.trim() == "1")
            || std::fs::OpenOptions::new().write(true).open(forward).is_ok(),
        socket_exists: socket.exists(),
        socket,
    }
}

/// The decision: what is missing, and what to do about each.
pub fn problems(machine: &Machine) -> Vec<String> {
    let mut problems = Vec::new();
    if !machine.root {
        problems.push("containers need root; run it with sudo, or without a node".to_owned());
    }
    if !machine.managed {
        if !machine.socket_exists {
            problems.push(format!(
                "no container runtime listens on {}; start it, or leave the socket out to have one started",
                machine.socket.display()
            ));
        }
        return problems;
    }
    for (program, package) in PROGRAMS {
        if machine.missing_programs.contains(&program) {
            problems.push(format!("the program {program} is missing; install it: apt-get install {package}"));
        }
    }
    if !machine.missing_plugins.is_empty() {
        problems.push(format!(
            "the CNI plugins {} are missing in {}; install them: apt-get install containernetworking-plugins",
            machine.missing_plugins.join(", "),
            machine.plugin_dir.display()
        ));
    }
    for controller in ["cpu", "memory", "pids"] {
        if !machine.cgroup_controllers.iter().any(|found| found == controller) {
            problems.push(format!(
                "the cgroup controller {controller} is not available below /sys/fs/cgroup; mount cgroups, or in a container start it with --privileged"
            ));
        }
    }
    if !machine.forwarding {
        problems.push(
            "IPv4 forwarding is off and cannot be switched on; allow it: sysctl -w net.ipv4.ip_forward=1".to_owned(),
        );
    }
    if machine.socket.as_os_str().len() > MAX_SOCKET_PATH {
        problems.push(format!(
            "the path {} is too long for a socket; choose a data directory that is at least {} bytes shorter",
            machine.socket.display(),
            machine.socket.as_os_str().len() - MAX_SOCKET_PATH
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Machine {
        Machine {
            root: true,
            managed: true,
            cgroup_controllers: ["cpu", "memory", "pids"].map(str::to_owned).to_vec(),
            forwarding: true,
            socket: "/d/containerd.sock".into(),
            ..Machine::default()
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Machine), expected: &[&str]) {
        let mut machine = good();
        change(&mut machine);
        let problems = problems(&machine);
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, words) in problems.iter().zip(expected) {
            assert!(problem.contains(words), "{problem} names {words}");
        }
    }

    #[test]
    fn each_missing_thing_has_its_remedy() {
        check(|_| {}, &[]);
        check(|m| m.root = false, &["sudo"]);
        check(|m| m.missing_programs = vec!["runc", "nft"], &["apt-get install runc", "apt-get install nftables"]);
        check(|m| m.missing_plugins = vec!["bridge"], &["containernetworking-plugins"]);
        check(|m| m.cgroup_controllers.retain(|c| c != "memory"), &["controller memory"]);
        check(|m| m.forwarding = false, &["net.ipv4.ip_forward=1"]);
        check(|m| m.socket = format!("/{}", "x".repeat(110)).into(), &["10 bytes shorter"]);
    }

    #[test]
    fn an_external_runtime_needs_its_socket_only() {
        let external = |m: &mut Machine| {
            m.managed = false;
            m.missing_programs = vec!["containerd"];
        };
        check(external, &["no container runtime listens on /d/containerd.sock"]);
    }
}
