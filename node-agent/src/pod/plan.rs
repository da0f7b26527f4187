//! The next steps for one pod, decided from what is wanted and what is seen.
//!
//! Always: the steps of one plan may be done in any order that keeps their own,
//! and a plan made from the same values is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::backoff::{self, Backoff};
use super::seen::{Container, Seen, State};
use super::spec::{self, Kind};

/// Grace for containers whose pod nobody knows any more.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    RunSandbox { attempt: u32 },
    StopSandbox { id: String },
    /// Takes the containers inside with it.
    RemoveSandbox { id: String },
    RunContainer { name: String, kind: Kind, attempt: u32 },
    StopContainer { id: String, name: String, grace: Duration, why: String },
    RemoveContainer { id: String },
}

/// What a plan leaves of a pod once its steps are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outlook {
    #[default]
    Active,
    /// Nothing runs and nothing will: the containers are kept for their logs.
    Ended,
    /// Ended, and its deletion was asked for: the API may forget it.
    Deletable,
    /// Nothing is left in the runtime, and the API has forgotten it.
    Gone,
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Why containers wait, by name: reason and message.
    pub waiting: BTreeMap<String, (String, String)>,
    /// When to plan again although nothing happens.
    pub wake_at: Option<Timestamp>,
    pub outlook: Outlook,
}

/// A start that failed, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
    /// What the status says from `settle_at` until the next try.
    pub waiting: (String, String),
    pub settle_at: Timestamp,
    pub retry_at: Timestamp,
}

/// What a worker remembers between two plans; all of it may be lost.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Restarts by container name.
    pub restarts: BTreeMap<String, Backoff>,
    /// Failed starts by container name.
    pub failures: BTreeMap<String, Failure>,
    /// No sandbox is tried before then.
    pub sandbox_retry_at: Option<Timestamp>,
    /// Containers that are being stopped, by id, with their grace.
    pub stopping: BTreeMap<String, Duration>,
    /// Sandboxes whose network was released.
    pub stopped_sandboxes: BTreeSet<String>,
    /// Containers that failed a probe, by id, with upstream's words for the event.
    pub unhealthy: BTreeMap<String, String>,
    /// Containers whose startup probe has not succeeded, by id.
    pub starting: BTreeSet<String>,
}

/// Plans for a pod that the API knows.
pub fn plan(pod: &core::Pod, seen: &Seen, memory: &Memory, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if let Some(grace) = spec::deletion_grace(pod) {
        plan.stop(pod, seen, memory, grace, "Stopping container");
        plan.outlook = if plan.outlook == Outlook::Ended { Outlook::Deletable } else { Outlook::Active };
        return plan;
    }
    if spec::is_terminal(pod) || deadline_passed(pod, now) {
        plan.stop(pod, seen, memory, spec::grace(pod), "Stopping container");
        return plan;
    }
    plan.run(pod, seen, memory, now);
    plan.wake_at = earliest(plan.wake_at, deadline(pod).filter(|deadline| *deadline > now));
    plan
}

/// Plans the end of a pod that the API has forgotten; `pod` is its last known state.
pub fn plan_removal(pod: Option<&core::Pod>, seen: &Seen, memory: &Memory) -> Plan {
    let mut plan = Plan::default();
    let grace = pod.map_or(ORPHAN_GRACE, |pod| spec::deletion_grace(pod).unwrap_or_else(|| spec::grace(pod)));
    let empty = core::Pod::default();
    plan.stop(pod.unwrap_or(&empty), seen, memory, grace, "Stopping container");
    if plan.outlook == Outlook::Ended {
        plan.steps.extend(seen.sandboxes.iter().map(|sandbox| Step::RemoveSandbox { id: sandbox.id.clone() }));
        let inside = |container: &&Container| !seen.sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox_id);
        let strays = seen.containers.iter().filter(inside);
        plan.steps.extend(strays.map(|container| Step::RemoveContainer { id: container.id.clone() }));
        plan.outlook = if plan.steps.is_empty() { Outlook::Gone } else { Outlook::Active };
    }
    plan
}

/// When `activeDeadlineSeconds` ends, once the pod has started.
fn deadline(pod: &core::Pod) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    start.checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).ok()
}

pub fn deadline_passed(pod: &core::Pod, now: Timestamp) -> bool {
    deadline(pod).is_some_and(|deadline| deadline <= now)
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// What a restart policy makes of the last exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Running,
    /// Never ran, or its definition changed.
    Start,
    /// Ended, and must run again; since when.
    Restart(Timestamp),
    Done { failed: bool },
}

impl Plan {
    fn wait(&mut self, name: &str, (reason, message): (String, String), until: Timestamp) {
        self.waiting.insert(name.to_owned(), (reason, message));
        self.wake_at = earliest(self.wake_at, Some(until));
    }

    fn stop_container(&mut self, container: &Container, memory: &Memory, grace: Duration, why: String) {
        if memory.stopping.get(&container.id).is_none_or(|earlier| *earlier > grace) {
            self.steps.push(Step::StopContainer {
                id: container.id.clone(),
                name: container.name.clone(),
                grace,
                why,
            });
        }
    }

    /// Ends everything: containers first, sidecars after them, then the sandboxes.
    fn stop(&mut self, pod: &core::Pod, seen: &Seen, memory: &Memory, grace: Duration, why: &str) {
        let is_sidecar = |container: &&Container| spec::find(pod, &container.name).is_some_and(|(_, kind)| kind == Kind::Sidecar);
        let main: Vec<_> = seen.running().filter(|container| !is_sidecar(container)).collect();
        let next = if main.is_empty() { seen.running().collect() } else { main };
        for container in &next {
            self.stop_container(container, memory, grace, format!("{why} {}", container.name));
        }
        if !next.is_empty() {
            return;
        }
        for sandbox in seen.sandboxes.iter().filter(|sandbox| sandbox.ready || !memory.stopped_sandboxes.contains(&sandbox.id)) {
            self.steps.push(Step::StopSandbox { id: sandbox.id.clone() });
        }
        if self.steps.is_empty() {
            self.outlook = Outlook::Ended;
        }
    }

    fn run(&mut self, pod: &core::Pod, seen: &Seen, memory: &Memory, now: Timestamp) {
        self.clear_old_sandboxes(seen, memory);
        let sandbox = seen.current_sandbox().map(|sandbox| sandbox.id.as_str());
        let mut needed = Vec::new();
        let init_failed = self.init_containers(pod, seen, memory, sandbox, now, &mut needed);
        let initialized = spec::is_initialized(pod, seen, &memory.starting);
        let mut open = false;
        for container in spec::regular(pod) {
            let next = next(pod, container, Kind::Regular, seen, sandbox);
            open |= !matches!(next, Next::Done { .. });
            if initialized {
                self.advance(pod, container, Kind::Regular, next, seen, memory, now, &mut needed);
            }
        }
        if init_failed || !open {
            // The API learns the phase first; a terminal pod is stopped by the next plan.
            self.steps.clear();
            self.waiting.clear();
            self.wake_at = None;
            self.stop(pod, seen, memory, spec::grace(pod), "Stopping container");
            return;
        }
        if sandbox.is_some() {
            self.steps.extend(needed);
            self.remove_old_containers(seen);
        } else {
            self.open_sandbox(seen, memory, now);
        }
    }

    /// Releases the network of sandboxes that are not in use, and removes the empty ones.
    fn clear_old_sandboxes(&mut self, seen: &Seen, memory: &Memory) {
        let current = seen.current_sandbox().map(|sandbox| &sandbox.id);
        for sandbox in seen.sandboxes.iter().filter(|sandbox| Some(&sandbox.id) != current) {
            if sandbox.ready || !memory.stopped_sandboxes.contains(&sandbox.id) {
                self.steps.push(Step::StopSandbox { id: sandbox.id.clone() });
            } else if !seen.containers.iter().any(|container| container.sandbox_id == sandbox.id) {
                self.steps.push(Step::RemoveSandbox { id: sandbox.id.clone() });
            }
        }
    }

    fn open_sandbox(&mut self, seen: &Seen, memory: &Memory, now: Timestamp) {
        match memory.sandbox_retry_at {
            Some(retry_at) if retry_at > now => self.wake_at = earliest(self.wake_at, Some(retry_at)),
            _ => {
                let attempt = seen.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
                self.steps.push(Step::RunSandbox { attempt });
            }
        }
    }

    /// Keeps of every container the newest attempt, and the newest that ended.
    fn remove_old_containers(&mut self, seen: &Seen) {
        let mut kept: BTreeMap<&str, u32> = BTreeMap::new();
        for container in &seen.containers {
            let count = kept.entry(&container.name).or_default();
            *count += 1;
            if *count > 2 && !container.is_alive() {
                self.steps.push(Step::RemoveContainer { id: container.id.clone() });
            }
        }
    }

    /// Returns whether one has failed for good.
    fn init_containers(
        &mut self,
        pod: &core::Pod,
        seen: &Seen,
        memory: &Memory,
        sandbox: Option<&str>,
        now: Timestamp,
        needed: &mut Vec<Step>,
    ) -> bool {
        let begun = spec::has_begun(pod, seen);
        for (container, kind) in spec::init(pod) {
            if kind == Kind::Init && begun {
                continue;
            }
            let next = next(pod, container, kind, seen, sandbox);
            match next {
                Next::Done { failed: true } => return true,
                Next::Done { failed: false } => {}
                Next::Running if kind == Kind::Sidecar && !is_starting(seen, memory, &container.name) => {
                    self.advance(pod, container, kind, next, seen, memory, now, needed);
                }
                _ => {
                    self.advance(pod, container, kind, next, seen, memory, now, needed);
                    // The next one waits for this one, unless the pod is past that.
                    if !begun {
                        return false;
                    }
                }
            }
        }
        false
    }

    fn advance(
        &mut self,
        pod: &core::Pod,
        container: &core::Container,
        kind: Kind,
        next: Next,
        seen: &Seen,
        memory: &Memory,
        now: Timestamp,
        needed: &mut Vec<Step>,
    ) {
        let name = container.name.as_str();
        let attempt = spec::next_attempt(pod, seen, name);
        match next {
            Next::Done { .. } => {}
            Next::Running => {
                let Some(running) = seen.latest(name) else { return };
                if running.hash != spec::hash(container) {
                    let why = format!("Container {name} definition changed, will be restarted");
                    self.stop_container(running, memory, spec::grace(pod), why);
                } else if let Some(why) = memory.unhealthy.get(&running.id) {
                    self.stop_container(running, memory, spec::grace(pod), why.clone());
                }
            }
            Next::Start | Next::Restart(_) => {
                if let Some(failure) = memory.failures.get(name).filter(|failure| failure.retry_at > now) {
                    if failure.settle_at > now {
                        self.wait(name, (failure.reason.clone(), failure.message.clone()), failure.settle_at);
                    } else {
                        self.wait(name, failure.waiting.clone(), failure.retry_at);
                    }
                    return;
                }
                if let Next::Restart(ended_at) = next {
                    let backoff = memory.restarts.get(name);
                    if let Some(until) = backoff.and_then(|backoff| backoff.until(ended_at, now)) {
                        let delay = backoff.map_or(backoff::INITIAL, |backoff| backoff.delay);
                        self.wait(name, crash_loop(pod, name, delay), until);
                        return;
                    }
                }
                needed.push(Step::RunContainer { name: name.to_owned(), kind, attempt });
            }
        }
    }
}

fn is_starting(seen: &Seen, memory: &Memory, name: &str) -> bool {
    seen.latest(name).is_some_and(|container| memory.starting.contains(&container.id))
}

fn crash_loop(pod: &core::Pod, name: &str, delay: Duration) -> (String, String) {
    let message = format!(
        "back-off {} restarting failed container={name} pod={}",
        backoff::text(delay),
        spec::full_name(pod)
    );
    ("CrashLoopBackOff".to_owned(), message)
}

fn next(pod: &core::Pod, container: &core::Container, kind: Kind, seen: &Seen, sandbox: Option<&str>) -> Next {
    let policy = match kind {
        Kind::Sidecar => "Always",
        Kind::Init if spec::restart_policy(pod) == "Always" => "OnFailure",
        Kind::Init | Kind::Regular => spec::restart_policy(pod),
    };
    let Some(latest) = seen.latest(&container.name) else {
        // The runtime may have lost what the API still knows.
        return match spec::recorded_exit(pod, &container.name) {
            Some(code) if policy == "Never" || (policy == "OnFailure" && code == 0) => Next::Done { failed: code != 0 },
            _ => Next::Start,
        };
    };
    let here = sandbox == Some(latest.sandbox_id.as_str());
    match latest.state {
        State::Running | State::Unknown if here => Next::Running,
        State::Created => Next::Start,
        // An init container must run again in every new sandbox.
        _ if kind == Kind::Init && !here && sandbox.is_some() && latest.exit_code == 0 => Next::Start,
        _ => {
            let failed = latest.exit_code != 0;
            let changed = latest.hash != spec::hash(container);
            match policy {
                "Never" => Next::Done { failed },
                "OnFailure" if !failed => Next::Done { failed },
                _ if changed => Next::Start,
                // Its sandbox went away beneath it: that is no crash of its own.
                _ if !here => Next::Start,
                _ => Next::Restart(latest.finished_at),
            }
        }
    }
}
