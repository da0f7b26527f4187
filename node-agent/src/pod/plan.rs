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
    RunSandbox {
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    /// Takes the containers inside with it.
    RemoveSandbox {
        id: String,
    },
    RunContainer {
        name: String,
        kind: Kind,
        attempt: u32,
    },
    StopContainer {
        id: String,
        name: String,
        grace: Duration,
        why: String,
    },
    RemoveContainer {
        id: String,
    },
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
    Done {
        failed: bool,
    },
}

impl Plan {
    fn wait(&mut self, name: &str, (reason, message): (String, String), until: Timestamp) {
        self.waiting.insert(name.to_owned(), (reason, message));
        self.wake_at = earliest(self.wake_at, Some(until));
    }

    fn stop_container(&mut self, container: &Container, memory: &Memory, grace: Duration, why: String) {
        if memory.stopping.get(&container.id).is_none_or(|earlier| *earlier > grace) {
            self.steps.push(Step::StopContainer { id: container.id.clone(), name: container.name.clone(), grace, why });
        }
    }

    /// Ends everything: containers first, sidecars after them, then the sandboxes.
    fn stop(&mut self, pod: &core::Pod, seen: &Seen, memory: &Memory, grace: Duration, why: &str) {
        let is_sidecar =
            |container: &&Container| spec::find(pod, &container.name).is_some_and(|(_, kind)| kind == Kind::Sidecar);
        let main: Vec<_> = seen.running().filter(|container| !is_sidecar(container)).collect();
        let next = if main.is_empty() { seen.running().collect() } else { main };
        for container in &next {
            self.stop_container(container, memory, grace, format!("{why} {}", container.name));
        }
        if !next.is_empty() {
            return;
        }
        for sandbox in
            seen.sandboxes.iter().filter(|sandbox| sandbox.ready || !memory.stopped_sandboxes.contains(&sandbox.id))
        {
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
    let message =
        format!("back-off {} restarting failed container={name} pod={}", backoff::text(delay), spec::full_name(pod));
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::seen::Sandbox;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(spec: Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn web() -> core::Pod {
        pod(json!({"containers": [{"name": "web", "image": "i"}]}))
    }

    fn with_policy(policy: &str) -> core::Pod {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "i"}]}))
    }

    fn with_init() -> core::Pod {
        pod(json!({
            "initContainers": [{"name": "first", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "web", "image": "i"}],
        }))
    }

    fn deleted(mut pod: core::Pod, grace: i64) -> core::Pod {
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        pod
    }

    /// `s0+` is a ready sandbox, `s0-` one that is not; `web/0@s0=run`, `=3` exited with 3, `=new` created.
    fn seen(text: &str) -> Seen {
        let (mut sandboxes, mut containers) = (Vec::new(), Vec::new());
        for word in text.split_whitespace() {
            if let Some((name, state)) = word.split_once('=') {
                let (name, sandbox) = name.split_once('@').unwrap();
                let (name, attempt) = name.split_once('/').unwrap();
                let (state, exit_code) = match state {
                    "run" => (State::Running, 0),
                    "new" => (State::Created, 0),
                    code => (State::Exited, code.parse().unwrap()),
                };
                containers.push(Container {
                    id: format!("{name}{attempt}"),
                    name: name.to_owned(),
                    attempt: attempt.parse().unwrap(),
                    sandbox_id: sandbox.to_owned(),
                    state,
                    exit_code,
                    finished_at: at(100),
                    hash: spec::hash(&core::Container {
                        name: name.to_owned(),
                        image: Some("i".to_owned()),
                        ..Default::default()
                    }),
                    ..Container::default()
                });
            } else {
                let (id, ready) = word.split_at(word.len() - 1);
                let attempt = id[1..].parse().unwrap();
                sandboxes.push(Sandbox { id: id.to_owned(), attempt, ready: ready == "+", ..Sandbox::default() });
            }
        }
        Seen::new(sandboxes, containers)
    }

    fn words(plan: &Plan) -> String {
        let word = |step: &Step| match step {
            Step::RunSandbox { attempt } => format!("run-sandbox/{attempt}"),
            Step::StopSandbox { id } => format!("stop-sandbox:{id}"),
            Step::RemoveSandbox { id } => format!("remove-sandbox:{id}"),
            Step::RunContainer { name, attempt, .. } => format!("run:{name}/{attempt}"),
            Step::StopContainer { id, grace, .. } => format!("stop:{id}/{}", grace.as_secs()),
            Step::RemoveContainer { id } => format!("remove:{id}"),
        };
        let mut all: Vec<String> = plan.steps.iter().map(word).collect();
        all.extend(plan.waiting.iter().map(|(name, (reason, _))| format!("{name}:{reason}")));
        match plan.outlook {
            Outlook::Active => {}
            outlook => all.push(format!("{outlook:?}")),
        }
        all.join(" ")
    }

    #[track_caller]
    fn check_with(pod: &core::Pod, state: &str, memory: &Memory, expected: &str) {
        assert_eq!(words(&plan(pod, &seen(state), memory, at(105))), expected, "{state}");
    }

    #[track_caller]
    fn check(pod: &core::Pod, state: &str, expected: &str) {
        // A sandbox that is not ready was stopped by an earlier plan.
        let sandboxes = seen(state).sandboxes;
        let stopped = sandboxes.into_iter().filter(|sandbox| !sandbox.ready).map(|sandbox| sandbox.id);
        check_with(pod, state, &Memory { stopped_sandboxes: stopped.collect(), ..Memory::default() }, expected);
    }

    #[test]
    fn a_pod_gets_its_sandbox_and_then_its_containers() {
        check(&web(), "", "run-sandbox/0");
        check(&web(), "s0+", "run:web/0");
        check(&web(), "s0+ web/0@s0=run", "");
        check(&web(), "s0+ web/0@s0=new", "run:web/1");
    }

    #[test]
    fn a_lost_sandbox_is_replaced() {
        check(&web(), "s0- web/0@s0=255", "run-sandbox/1");
        check(&web(), "s0- s1+ web/0@s0=255", "run:web/1");
        check(&web(), "s0- s1+ web/0@s0=255 web/1@s1=run", "");
        check(&web(), "s0- s1+ web/1@s1=run", "remove-sandbox:s0");
        check_with(&web(), "s0- web/0@s0=255", &Memory::default(), "stop-sandbox:s0 run-sandbox/1");
    }

    #[test]
    fn the_restart_policy_decides_after_an_exit() {
        check(&web(), "s0+ web/0@s0=0", "run:web/1");
        check(&with_policy("OnFailure"), "s0+ web/0@s0=1", "run:web/1");
        check(&with_policy("OnFailure"), "s0+ web/0@s0=0", "stop-sandbox:s0");
        check(&with_policy("Never"), "s0+ web/0@s0=1", "stop-sandbox:s0");
        check(&with_policy("Never"), "s0- web/0@s0=1", "Ended");
        check(&with_policy("Never"), "s0- web/0@s0=255", "Ended");
    }

    #[test]
    fn what_the_api_remembers_is_not_run_again() {
        let mut pod = with_policy("Never");
        let status = json!({"containerStatuses": [{
            "name": "web", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "containerID": "c://1",
            "state": {"terminated": {"exitCode": 0}},
        }]});
        pod.status = Some(serde_json::from_value(status).unwrap());
        check(&pod, "", "Ended");
    }

    #[test]
    fn restarts_wait_for_their_back_off() {
        let tried = Backoff { delay: Duration::from_secs(20), since: at(90) };
        let memory = Memory { restarts: BTreeMap::from([("web".to_owned(), tried)]), ..Memory::default() };
        let waiting = plan(&web(), &seen("s0+ web/0@s0=1"), &memory, at(105));
        assert_eq!(words(&waiting), "web:CrashLoopBackOff");
        assert_eq!(waiting.wake_at, Some(at(120)));
        assert_eq!(waiting.waiting["web"].1, "back-off 20s restarting failed container=web pod=p_ns(u)");
        assert_eq!(words(&plan(&web(), &seen("s0+ web/0@s0=1"), &memory, at(120))), "run:web/1");
    }

    #[test]
    fn a_failed_start_is_reported_and_tried_again() {
        let failure = Failure {
            reason: "ErrImagePull".to_owned(),
            message: "no".to_owned(),
            waiting: ("ImagePullBackOff".to_owned(), "back-off".to_owned()),
            settle_at: at(102),
            retry_at: at(110),
        };
        let memory = Memory { failures: BTreeMap::from([("web".to_owned(), failure)]), ..Memory::default() };
        for (second, expected) in [(101, "web:ErrImagePull"), (105, "web:ImagePullBackOff"), (110, "run:web/0")] {
            assert_eq!(words(&plan(&web(), &seen("s0+"), &memory, at(second))), expected);
        }
    }

    #[test]
    fn init_containers_run_one_after_another() {
        check(&with_init(), "s0+", "run:first/0");
        check(&with_init(), "s0+ first/0@s0=run", "");
        check(&with_init(), "s0+ first/0@s0=1", "run:first/1");
        check(&with_init(), "s0+ first/0@s0=0", "run:side/0");
        check(&with_init(), "s0+ first/0@s0=0 side/0@s0=run", "run:web/0");
        check(&with_init(), "s0+ first/0@s0=0 side/0@s0=run web/0@s0=run", "");
        check(&with_init(), "s0+ first/0@s0=0 side/0@s0=1 web/0@s0=run", "run:side/1");
        check(&with_init(), "s0- s1+ first/0@s0=0 side/0@s0=255 web/0@s0=255", "run:first/1");
        let starting = Memory { starting: BTreeSet::from(["side0".to_owned()]), ..Memory::default() };
        check_with(&with_init(), "s0+ first/0@s0=0 side/0@s0=run", &starting, "");
    }

    #[test]
    fn an_init_container_that_fails_for_good_ends_the_pod() {
        let pod = pod(json!({
            "restartPolicy": "Never",
            "initContainers": [{"name": "first", "image": "i"}],
            "containers": [{"name": "web", "image": "i"}],
        }));
        check(&pod, "s0+ first/0@s0=1", "stop-sandbox:s0");
        check(&pod, "s0- first/0@s0=1", "Ended");
    }

    #[test]
    fn sidecars_end_last() {
        check(&deleted(with_init(), 7), "s0+ side/0@s0=run web/0@s0=run", "stop:web0/7");
        check(&deleted(with_init(), 7), "s0+ side/0@s0=run web/0@s0=0", "stop:side0/7");
        check(&deleted(with_init(), 7), "s0+ side/0@s0=0 web/0@s0=0", "stop-sandbox:s0");
        check(&deleted(with_init(), 7), "s0- side/0@s0=0 web/0@s0=0", "Deletable");
        check(&deleted(with_init(), 7), "", "Deletable");
    }

    #[test]
    fn a_stop_is_asked_for_once_unless_it_must_be_faster() {
        let stopping = |seconds| Memory {
            stopping: BTreeMap::from([("web0".to_owned(), Duration::from_secs(seconds))]),
            ..Memory::default()
        };
        check_with(&deleted(web(), 5), "s0+ web/0@s0=run", &stopping(5), "");
        check_with(&deleted(web(), 0), "s0+ web/0@s0=run", &stopping(5), "stop:web0/0");
    }

    #[test]
    fn a_container_is_replaced_when_its_definition_or_health_says_so() {
        let other = pod(json!({"containers": [{"name": "web", "image": "other"}]}));
        check(&other, "s0+ web/0@s0=run", "stop:web0/30");
        check(&other, "s0+ web/0@s0=0", "run:web/1");
        let unhealthy =
            Memory { unhealthy: BTreeMap::from([("web0".to_owned(), "why".to_owned())]), ..Memory::default() };
        check_with(&web(), "s0+ web/0@s0=run", &unhealthy, "stop:web0/30");
    }

    #[test]
    fn old_attempts_are_removed() {
        check(&web(), "s0+ web/2@s0=run web/1@s0=1 web/0@s0=1", "remove:web0");
    }

    #[test]
    fn a_deadline_ends_a_pod() {
        let mut pod = pod(json!({"activeDeadlineSeconds": 10, "containers": [{"name": "web", "image": "i"}]}));
        pod.status = Some(core::PodStatus {
            start_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100))),
            ..Default::default()
        });
        let running = seen("s0+ web/0@s0=run");
        assert_eq!(plan(&pod, &running, &Memory::default(), at(105)).wake_at, Some(at(110)));
        assert_eq!(words(&plan(&pod, &running, &Memory::default(), at(110))), "stop:web0/30");
    }

    #[test]
    fn what_nobody_wants_is_removed() {
        let removal = |state: &str, stopped: &[&str]| {
            let stopped_sandboxes = stopped.iter().map(|id| (*id).to_owned()).collect();
            words(&plan_removal(None, &seen(state), &Memory { stopped_sandboxes, ..Memory::default() }))
        };
        assert_eq!(removal("s0+ web/0@s0=run", &[]), "stop:web0/10");
        assert_eq!(removal("s0+ web/0@s0=0", &[]), "stop-sandbox:s0");
        assert_eq!(removal("s0- web/0@s0=0", &["s0"]), "remove-sandbox:s0");
        assert_eq!(removal("web/0@s9=0", &[]), "remove:web0");
        assert_eq!(removal("", &[]), "Gone");
    }

    /// Whatever is seen: planning does not panic, and a deleted pod never starts anything.
    #[test]
    fn random_states_are_planned_safely() {
        for seed in 0..2000_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut next = |bound: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 33) % bound
            };
            let mut state = String::new();
            for sandbox in 0..next(3) {
                state.push_str(&format!("s{sandbox}{} ", if next(2) == 0 { "+" } else { "-" }));
            }
            for name in ["first", "side", "web"] {
                for attempt in 0..next(3) {
                    let how = ["run", "new", "0", "1", "255"][usize::try_from(next(5)).unwrap()];
                    state.push_str(&format!("{name}/{attempt}@s{}={how} ", next(3)));
                }
            }
            let plan = plan(&deleted(with_init(), 3), &seen(&state), &Memory::default(), at(105));
            let starts = |step: &Step| matches!(step, Step::RunSandbox { .. } | Step::RunContainer { .. });
            assert!(!plan.steps.iter().any(starts), "seed {seed}: {state}");
            let _ = super::plan(&with_init(), &seen(&state), &Memory::default(), at(105));
        }
    }
}
