//! What the runtime says of one pod.

use jiff::Timestamp;
use quorate_proto::cri as wire;

use crate::cri::labels;

/// Annotation that tells from which definition a container was made.
pub const HASH_ANNOTATION: &str = "io.kubernetes.container.hash";

/// The sandboxes and containers of one pod, the newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    /// Empty for pods on the node's network.
    pub addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Made, but not started: the agent ended in between.
    #[default]
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub sandbox_id: String,
    pub state: State,
    pub created_at: Timestamp,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub hash: String,
    /// Path of the log file, as the runtime was told.
    pub log_path: String,
}

impl Seen {
    /// Puts both lists in order.
    pub fn new(mut sandboxes: Vec<Sandbox>, mut containers: Vec<Container>) -> Self {
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        Self { sandboxes, containers }
    }

    /// The sandbox that pods live in now: the newest, if it is ready.
    pub fn current_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// All attempts of a container, the newest first.
    pub fn attempts<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Container> + use<'a> {
        let name = name.to_owned();
        self.containers.iter().filter(move |container| container.name == name)
    }

    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.attempts(name).next()
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| container.is_alive())
    }
}

impl Container {
    /// A runtime that does not know its container may still have its processes.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Running | State::Unknown)
    }
}

/// Reads a time of the runtime; 0 is "never".
pub fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl From<wire::PodSandbox> for Sandbox {
    fn from(sandbox: wire::PodSandbox) -> Self {
        Self {
            ready: sandbox.state() == wire::PodSandboxState::SandboxReady,
            id: sandbox.id,
            attempt: sandbox.metadata.map_or(0, |metadata| metadata.attempt),
            created_at: time(sandbox.created_at),
            addresses: Vec::new(),
        }
    }
}

/// The addresses of a sandbox, the primary one first.
pub fn addresses(status: wire::PodSandboxStatus) -> Vec<String> {
    let network = status.network.unwrap_or_default();
    std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|address| address.ip))
        .filter(|address| !address.is_empty())
        .collect()
}

impl Container {
    /// Joins what a list and what a status call say of one container.
    pub fn from_wire(listed: wire::Container, status: wire::ContainerStatus) -> Self {
        let state = match status.state() {
            wire::ContainerState::ContainerCreated => State::Created,
            wire::ContainerState::ContainerRunning => State::Running,
            wire::ContainerState::ContainerExited => State::Exited,
            wire::ContainerState::ContainerUnknown => State::Unknown,
        };
        let name = listed.labels.get(labels::CONTAINER_NAME).cloned();
        let metadata = listed.metadata.unwrap_or_default();
        Self {
            id: listed.id,
            name: name.unwrap_or(metadata.name),
            attempt: metadata.attempt,
            sandbox_id: listed.pod_sandbox_id,
            state,
            created_at: time(status.created_at),
            started_at: time(status.started_at),
            finished_at: time(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            image: status.image.unwrap_or_default().image,
            image_ref: status.image_ref,
            hash: listed.annotations.get(HASH_ANNOTATION).cloned().unwrap_or_default(),
            log_path: status.log_path,
        }
    }
}
