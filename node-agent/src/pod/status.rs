//! What the API is told of a pod, from what is seen of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::plan::Memory;
use super::seen::{Container, Seen, State};
use super::spec::{self, Kind};

/// Everything that a pod's status depends on.
pub struct Inputs<'a> {
    pub pod: &'a core::Pod,
    pub seen: &'a Seen,
    pub memory: &'a Memory,
    /// Reasons of the plan, by container name.
    pub waiting: &'a BTreeMap<String, (String, String)>,
    /// Containers whose readiness probe has succeeded last, by id.
    pub is_ready: &'a dyn Fn(&core::Container, &str) -> bool,
    /// Termination messages by container id.
    pub messages: &'a BTreeMap<String, String>,
    pub node_address: &'a str,
    /// The runtime's name: the scheme of container ids.
    pub runtime: &'a str,
    /// Why the pod failed without any of its containers: reason and message.
    pub failure: Option<(&'a str, &'a str)>,
    pub now: Timestamp,
}

/// The status as the API should have it.
pub fn status(inputs: &Inputs<'_>) -> core::PodStatus {
    let pod = inputs.pod;
    let old = pod.status.clone().unwrap_or_default();
    let init: Vec<_> = spec::init(pod).map(|(container, kind)| inputs.container(container, kind)).collect();
    let regular: Vec<_> = spec::regular(pod).map(|container| inputs.container(container, Kind::Regular)).collect();
    let phase = inputs.phase(&init, &regular);
    let addresses = inputs.addresses(&old);
    let conditions = inputs.conditions(&old, phase, &init, &regular);
    let host = inputs.node_address.to_owned();
    core::PodStatus {
        conditions: Some(conditions),
        container_statuses: Some(regular),
        host_ip: Some(host.clone()),
        host_ips: Some(vec![core::HostIP { ip: host }]),
        init_container_statuses: (!init.is_empty()).then_some(init),
        message: inputs.failure.map(|(_, message)| message.to_owned()).or(old.message.clone()),
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ip: addresses.first().cloned(),
        pod_ips: (!addresses.is_empty()).then(|| addresses.into_iter().map(|ip| core::PodIP { ip }).collect()),
        qos_class: Some(old.qos_class.clone().unwrap_or_else(|| spec::qos_class(pod).to_owned())),
        reason: inputs.failure.map(|(reason, _)| reason.to_owned()).or(old.reason.clone()),
        start_time: Some(old.start_time.clone().unwrap_or(Time(whole_seconds(inputs.now)))),
        ..old
    }
}

/// The change from `old` to `new` as a merge patch; `None` when there is none.
pub fn patch(uid: &str, old: Option<&core::PodStatus>, new: &core::PodStatus) -> Option<Value> {
    let value = |status: Option<&core::PodStatus>| {
        status.and_then(|status| serde_json::to_value(status).ok()).unwrap_or_else(|| json!({}))
    };
    let (old, new) = (value(old), value(Some(new)));
    if old == new {
        return None;
    }
    let mut status = new.as_object().cloned().unwrap_or_default();
    for key in old.as_object().into_iter().flat_map(|fields| fields.keys()) {
        status.entry(key.clone()).or_insert(Value::Null);
    }
    Some(json!({"metadata": {"uid": uid}, "status": status}))
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn time(at: Timestamp) -> Option<Time> {
    (at != Timestamp::UNIX_EPOCH).then(|| Time(whole_seconds(at)))
}

impl Inputs<'_> {
    fn container_id(&self, container: &Container) -> String {
        format!("{}://{}", self.runtime, container.id)
    }

    fn container(&self, container: &core::Container, kind: Kind) -> core::ContainerStatus {
        let name = container.name.as_str();
        let mut attempts = self.seen.attempts(name);
        let latest = attempts.next();
        let previous = attempts.next();
        let recorded = spec::recorded(self.pod, name);
        let Some(latest) = latest else { return self.unseen(container, recorded) };
        let ended = || self.terminated(latest);
        let waiting = self.waiting.get(name);
        let alive = latest.is_alive();
        let (state, last_state) = match (alive, waiting) {
            (true, _) => (running(latest), previous.map(|previous| self.terminated(previous))),
            (false, Some(reason)) if latest.state == State::Exited => (wait(reason), Some(ended())),
            (false, Some(reason)) => (wait(reason), previous.map(|previous| self.terminated(previous))),
            (false, None) if latest.state == State::Created => {
                (wait(&self.default_wait()), previous.map(|previous| self.terminated(previous)))
            }
            (false, None) => (ended(), previous.map(|previous| self.terminated(previous))),
        };
        let last_state = last_state.or_else(|| recorded.and_then(|status| status.last_state.clone()));
        let started = alive && !self.memory.starting.contains(&latest.id);
        let ready = match kind {
            Kind::Init => latest.state == State::Exited && latest.exit_code == 0,
            Kind::Regular | Kind::Sidecar => started && (self.is_ready)(container, &latest.id),
        };
        core::ContainerStatus {
            container_id: Some(self.container_id(latest)),
            image: if latest.image.is_empty() {
                container.image.clone().unwrap_or_default()
            } else {
                latest.image.clone()
            },
            image_id: latest.image_ref.clone(),
            last_state: Some(last_state.unwrap_or_default()),
            name: name.to_owned(),
            ready,
            restart_count: i32::try_from(latest.attempt).unwrap_or(i32::MAX),
            started: Some(started),
            state: Some(state),
            ..core::ContainerStatus::default()
        }
    }

    /// A container that the runtime does not have: not made yet, or lost.
    fn unseen(&self, container: &core::Container, recorded: Option<&core::ContainerStatus>) -> core::ContainerStatus {
        let name = container.name.as_str();
        let mut status = recorded.cloned().unwrap_or_else(|| core::ContainerStatus {
            image: container.image.clone().unwrap_or_default(),
            last_state: Some(core::ContainerState::default()),
            name: name.to_owned(),
            ..core::ContainerStatus::default()
        });
        let state = status.state.clone().unwrap_or_default();
        status.ready = state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0)
            && spec::init(self.pod).any(|(init, kind)| init.name == name && kind == Kind::Init);
        status.started = Some(false);
        if state.terminated.is_none() {
            if let Some(running) = state.running {
                status.last_state = Some(lost(running, status.container_id.clone()));
            }
            let reason = self.waiting.get(name).cloned().unwrap_or_else(|| self.default_wait());
            status.state = Some(wait(&reason));
        }
        status
    }

    /// What a container waits for when nothing has gone wrong.
    fn default_wait(&self) -> (String, String) {
        let initializing =
            spec::init(self.pod).next().is_some() && !spec::is_initialized(self.pod, self.seen, &self.memory.starting);
        let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
        (reason.to_owned(), String::new())
    }

    fn terminated(&self, container: &Container) -> core::ContainerState {
        let reason = match (container.reason.as_str(), container.exit_code) {
            ("", 0) => "Completed",
            ("", _) => "Error",
            (reason, _) => reason,
        };
        let message = self.messages.get(&container.id).filter(|text| !text.is_empty()).unwrap_or(&container.message);
        core::ContainerState {
            terminated: Some(core::ContainerStateTerminated {
                container_id: Some(self.container_id(container)),
                exit_code: container.exit_code,
                finished_at: time(container.finished_at),
                message: (!message.is_empty()).then(|| message.clone()),
                reason: Some(reason.to_owned()),
                started_at: time(container.started_at),
                ..core::ContainerStateTerminated::default()
            }),
            ..core::ContainerState::default()
        }
    }

    /// Source: concepts/workloads/pods/pod-lifecycle, pod phase.
    fn phase(&self, init: &[core::ContainerStatus], regular: &[core::ContainerStatus]) -> &'static str {
        // A phase that is final stays, whatever happens to the containers.
        match self.pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Succeeded") => return "Succeeded",
            Some("Failed") => return "Failed",
            _ if self.failure.is_some() => return "Failed",
            _ => {}
        }
        let exit = |status: &core::ContainerStatus| {
            status.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|ended| ended.exit_code)
        };
        let policy = spec::restart_policy(self.pod);
        let deleting = spec::deletion_grace(self.pod).is_some();
        let init_failed = |status: &core::ContainerStatus| {
            let kind = spec::find(self.pod, &status.name).map(|(_, kind)| kind);
            kind == Some(Kind::Init) && policy == "Never" && exit(status).is_some_and(|code| code != 0)
        };
        if init.iter().any(init_failed) {
            return "Failed";
        }
        let codes: Option<Vec<i32>> = regular.iter().map(exit).collect();
        match codes {
            // Sidecars end last; the pod has not ended before them.
            Some(_) if self.seen.running().next().is_some() => "Running",
            Some(codes) if deleting || policy != "Always" => {
                let failed = codes.iter().any(|code| *code != 0);
                match (failed, policy) {
                    (false, _) => "Succeeded",
                    (true, "OnFailure") if !deleting => "Running",
                    (true, _) => "Failed",
                }
            }
            Some(_) => "Running",
            None => {
                let begun = regular.iter().any(|status| {
                    let state = status.state.clone().unwrap_or_default();
                    let ran_before = status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
                    state.running.is_some() || state.terminated.is_some() || ran_before
                });
                if begun { "Running" } else { "Pending" }
            }
        }
    }

    fn addresses(&self, old: &core::PodStatus) -> Vec<String> {
        if spec::host_network(self.pod) {
            return vec![self.node_address.to_owned()];
        }
        match self.seen.current_sandbox() {
            Some(sandbox) if !sandbox.addresses.is_empty() => sandbox.addresses.clone(),
            // A pod that has ended keeps the address it had, for those who read its logs.
            _ => old.pod_ips.iter().flatten().map(|address| address.ip.clone()).collect(),
        }
    }

    fn conditions(
        &self,
        old: &core::PodStatus,
        phase: &str,
        init: &[core::ContainerStatus],
        regular: &[core::ContainerStatus],
    ) -> Vec<core::PodCondition> {
        let sandbox = self.seen.current_sandbox();
        let network = sandbox.is_some_and(|sandbox| spec::host_network(self.pod) || !sandbox.addresses.is_empty());
        let initialized = match phase {
            "Succeeded" => Verdict::reason(true, "PodCompleted"),
            _ => Verdict::incomplete(
                "ContainersNotInitialized",
                "incomplete",
                init.iter().filter(|status| !self.has_initialized(status)).map(|status| status.name.as_str()),
            ),
        };
        let sidecars = init
            .iter()
            .filter(|status| spec::find(self.pod, &status.name).is_some_and(|(_, kind)| kind == Kind::Sidecar));
        let containers_ready = match phase {
            "Succeeded" => Verdict::reason(false, "PodCompleted"),
            "Failed" => Verdict::reason(false, "PodFailed"),
            _ => Verdict::incomplete(
                "ContainersNotReady",
                "unready",
                sidecars.chain(regular).filter(|status| !status.ready).map(|status| status.name.as_str()),
            ),
        };
        let ready =
            self.readiness_gates(old).filter(|_| containers_ready.met).unwrap_or_else(|| containers_ready.clone());
        let own = [
            ("PodReadyToStartContainers", Verdict::plain(network)),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", containers_ready),
        ];
        let mut conditions: Vec<_> = own.iter().map(|(kind, verdict)| self.condition(old, kind, verdict)).collect();
        let others =
            old.conditions.iter().flatten().filter(|condition| own.iter().all(|(kind, _)| *kind != condition.type_));
        conditions.extend(others.cloned());
        if conditions.iter().all(|condition| condition.type_ != "PodScheduled") {
            conditions.push(self.condition(old, "PodScheduled", &Verdict::plain(true)));
        }
        conditions
    }

    fn has_initialized(&self, status: &core::ContainerStatus) -> bool {
        let sidecar = spec::find(self.pod, &status.name).is_some_and(|(_, kind)| kind == Kind::Sidecar);
        if sidecar { status.started == Some(true) } else { status.ready || spec::has_begun(self.pod, self.seen) }
    }

    /// `Some` when a readiness gate holds the pod back.
    fn readiness_gates(&self, old: &core::PodStatus) -> Option<Verdict> {
        let gates = self.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
        let mut unmet = gates.filter_map(|gate| {
            let found = old.conditions.iter().flatten().find(|condition| condition.type_ == gate.condition_type);
            match found.map(|condition| condition.status.as_str()) {
                Some("True") => None,
                Some(_) => Some(format!(
                    "the status of pod readiness gate {:?} is not \"True\", but False",
                    gate.condition_type
                )),
                None => Some(format!(
                    "corresponding condition of pod readiness gate {:?} does not exist.",
                    gate.condition_type
                )),
            }
        });
        let message = unmet.next()?;
        Some(Verdict { met: false, reason: Some("ReadinessGatesNotReady".to_owned()), message: Some(message) })
    }

    fn condition(&self, old: &core::PodStatus, kind: &str, verdict: &Verdict) -> core::PodCondition {
        let status = if verdict.met { "True" } else { "False" };
        let before = old.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        let unchanged = before
            .filter(|condition| condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone());
        core::PodCondition {
            last_probe_time: None,
            last_transition_time: Some(unchanged.unwrap_or(Time(whole_seconds(self.now)))),
            message: verdict.message.clone(),
            observed_generation: self.pod.metadata.generation,
            reason: verdict.reason.clone(),
            status: status.to_owned(),
            type_: kind.to_owned(),
        }
    }
}

#[derive(Clone)]
struct Verdict {
    met: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn plain(met: bool) -> Self {
        Self { met, reason: None, message: None }
    }

    fn reason(met: bool, reason: &str) -> Self {
        Self { met, reason: Some(reason.to_owned()), message: None }
    }

    /// Met when `names` is empty.
    fn incomplete<'a>(reason: &str, what: &str, names: impl Iterator<Item = &'a str>) -> Self {
        let names: Vec<&str> = names.collect();
        if names.is_empty() {
            return Self::plain(true);
        }
        let message = format!("containers with {what} status: [{}]", names.join(" "));
        Self { met: false, reason: Some(reason.to_owned()), message: Some(message) }
    }
}

fn running(container: &Container) -> core::ContainerState {
    core::ContainerState {
        running: Some(core::ContainerStateRunning { started_at: time(container.started_at) }),
        ..core::ContainerState::default()
    }
}

fn wait((reason, message): &(String, String)) -> core::ContainerState {
    core::ContainerState {
        waiting: Some(core::ContainerStateWaiting {
            message: (!message.is_empty()).then(|| message.clone()),
            reason: Some(reason.clone()),
        }),
        ..core::ContainerState::default()
    }
}

/// The end of a container that vanished from the runtime. Source: upstream's texts.
fn lost(running: core::ContainerStateRunning, container_id: Option<String>) -> core::ContainerState {
    core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            container_id,
            exit_code: 137,
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            reason: Some("ContainerStatusUnknown".to_owned()),
            started_at: running.started_at,
            ..core::ContainerStateTerminated::default()
        }),
        ..core::ContainerState::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::seen::Sandbox;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(spec: Value) -> core::Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 4}, "spec": spec}),
        )
        .unwrap()
    }

    fn web(policy: &str) -> core::Pod {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "i"}]}))
    }

    fn container(name: &str, attempt: u32, state: State, exit_code: i32) -> Container {
        Container {
            id: format!("{name}{attempt}"),
            name: name.to_owned(),
            attempt,
            sandbox_id: "s".to_owned(),
            state,
            exit_code,
            started_at: at(10),
            finished_at: if state == State::Exited { at(20) } else { Timestamp::UNIX_EPOCH },
            image: "full/i:1".to_owned(),
            image_ref: "sha256:1".to_owned(),
            ..Container::default()
        }
    }

    fn seen(containers: Vec<Container>) -> Seen {
        let sandbox =
            Sandbox { id: "s".to_owned(), ready: true, addresses: vec!["10.1.0.2".to_owned()], ..Sandbox::default() };
        Seen::new(vec![sandbox], containers)
    }

    fn report(pod: &core::Pod, seen: &Seen, waiting: &[(&str, &str)], ready: bool) -> Value {
        let waiting =
            waiting.iter().map(|(name, reason)| ((*name).to_owned(), ((*reason).to_owned(), "m".to_owned()))).collect();
        let status = status(&Inputs {
            pod,
            seen,
            memory: &Memory::default(),
            waiting: &waiting,
            is_ready: &|_, _| ready,
            messages: &BTreeMap::new(),
            node_address: "127.0.10.101",
            runtime: "containerd",
            failure: None,
            now: at(30),
        });
        serde_json::to_value(status).unwrap()
    }

    fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
    }

    #[test]
    fn a_pod_that_waits_for_its_first_container_is_pending() {
        let status = report(&web("Always"), &Seen::default(), &[], true);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"], json!({"waiting": {"reason": "ContainerCreating"}}));
        assert_eq!(condition(&status, "PodReadyToStartContainers")["status"], "False");
        assert_eq!(condition(&status, "Ready")["message"], "containers with unready status: [web]");
        assert_eq!((&status["hostIP"], &status["qosClass"]), (&json!("127.0.10.101"), &json!("BestEffort")));
    }

    #[test]
    fn a_running_pod_tells_where_it_is() {
        let seen = seen(vec![container("web", 0, State::Running, 0)]);
        let status = report(&web("Always"), &seen, &[], true);
        assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("10.1.0.2")));
        assert_eq!(status["containerStatuses"][0]["containerID"], "containerd://web0");
        assert_eq!(status["containerStatuses"][0]["state"]["running"]["startedAt"], "1970-01-01T00:00:10Z");
        assert_eq!(condition(&status, "Ready")["status"], "True");
        assert_eq!(condition(&status, "Ready")["observedGeneration"], 4);
        let unready = report(&web("Always"), &seen, &[], false);
        assert_eq!(condition(&unready, "ContainersReady")["reason"], "ContainersNotReady");
        assert_eq!(unready["containerStatuses"][0]["started"], true);
    }

    #[test]
    fn a_container_that_backs_off_keeps_its_last_end() {
        let seen = seen(vec![container("web", 2, State::Exited, 3), container("web", 1, State::Exited, 1)]);
        let status = report(&web("Always"), &seen, &[("web", "CrashLoopBackOff")], true);
        let web = &status["containerStatuses"][0];
        assert_eq!(web["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(web["lastState"]["terminated"]["exitCode"], 3);
        assert_eq!(web["lastState"]["terminated"]["reason"], "Error");
        assert_eq!((&web["restartCount"], &status["phase"]), (&json!(2), &json!("Running")));
    }

    #[track_caller]
    fn check_phase(policy: &str, exit_code: i32, expected: &str) {
        let status = report(&web(policy), &seen(vec![container("web", 0, State::Exited, exit_code)]), &[], true);
        assert_eq!(status["phase"], expected, "{policy} {exit_code}");
    }

    #[test]
    fn the_phase_follows_the_restart_policy() {
        check_phase("Never", 0, "Succeeded");
        check_phase("Never", 1, "Failed");
        check_phase("OnFailure", 0, "Succeeded");
        check_phase("OnFailure", 1, "Running");
        check_phase("Always", 0, "Running");
    }

    #[test]
    fn a_final_phase_stays() {
        let mut pod = web("Never");
        pod.status = Some(core::PodStatus { phase: Some("Failed".to_owned()), ..core::PodStatus::default() });
        let status = report(&pod, &Seen::default(), &[], true);
        assert_eq!(status["phase"], "Failed");
        assert_eq!(condition(&status, "Ready")["reason"], "PodFailed");
    }

    #[test]
    fn a_completed_pod_is_not_ready_any_more() {
        let status = report(&web("Never"), &seen(vec![container("web", 0, State::Exited, 0)]), &[], true);
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
        assert_eq!(condition(&status, "Ready")["reason"], "PodCompleted");
        assert_eq!(condition(&status, "Initialized")["status"], "True");
    }

    #[test]
    fn init_containers_are_reported_apart() {
        let pod = pod(
            json!({"initContainers": [{"name": "a", "image": "i"}], "containers": [{"name": "web", "image": "i"}]}),
        );
        let status = report(&pod, &seen(vec![container("a", 0, State::Running, 0)]), &[], true);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(condition(&status, "Initialized")["message"], "containers with incomplete status: [a]");
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
        let done = report(&pod, &seen(vec![container("a", 0, State::Exited, 0)]), &[], true);
        assert_eq!(condition(&done, "Initialized")["status"], "True");
        assert_eq!(done["initContainerStatuses"][0]["ready"], true);
    }

    #[test]
    fn conditions_keep_their_time_and_strangers_stay() {
        let mut pod = web("Always");
        let old = json!({"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"},
            {"type": "example.test/gate", "status": "True"},
        ]});
        pod.status = Some(serde_json::from_value(old).unwrap());
        let status = report(&pod, &seen(vec![container("web", 0, State::Running, 0)]), &[], true);
        assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "1970-01-01T00:00:05Z");
        assert_eq!(condition(&status, "ContainersReady")["lastTransitionTime"], "1970-01-01T00:00:30Z");
        assert_eq!(condition(&status, "example.test/gate")["status"], "True");
    }

    #[test]
    fn a_readiness_gate_holds_the_pod_back() {
        let pod =
            pod(json!({"readinessGates": [{"conditionType": "x/y"}], "containers": [{"name": "web", "image": "i"}]}));
        let status = report(&pod, &seen(vec![container("web", 0, State::Running, 0)]), &[], true);
        assert_eq!(condition(&status, "ContainersReady")["status"], "True");
        assert_eq!(condition(&status, "Ready")["reason"], "ReadinessGatesNotReady");
    }

    #[test]
    fn a_container_that_vanished_is_reported_as_lost() {
        let mut pod = web("Always");
        let old = json!({"containerStatuses": [{
            "name": "web", "image": "i", "imageID": "x", "ready": true, "restartCount": 1, "containerID": "containerd://z",
            "state": {"running": {"startedAt": "1970-01-01T00:00:05Z"}},
        }]});
        pod.status = Some(serde_json::from_value(old).unwrap());
        let status = report(&pod, &Seen::default(), &[], true);
        let web = &status["containerStatuses"][0];
        assert_eq!(web["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
        assert_eq!((&web["ready"], &web["state"]["waiting"]["reason"]), (&json!(false), &json!("ContainerCreating")));
    }

    #[test]
    fn a_patch_names_what_is_gone() {
        let old = core::PodStatus {
            reason: Some("Evicted".to_owned()),
            phase: Some("Pending".to_owned()),
            ..Default::default()
        };
        let new = core::PodStatus { phase: Some("Running".to_owned()), ..Default::default() };
        let patch = super::patch("u", Some(&old), &new).unwrap();
        assert_eq!(patch, json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null}}));
        assert_eq!(super::patch("u", Some(&new), &new), None);
    }
}
