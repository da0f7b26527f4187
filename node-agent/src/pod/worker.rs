//! One task per pod: looks, plans, acts, reports; then waits until something changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use quorate_proto::object::Object;
use quorate_runtime::client::{Client, DeleteOptions, Patch, WriteOptions};
use quorate_runtime::events::{EventRecorder, EventType, Reference};
use quorate_runtime::resources;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::config;
use super::env::{Allocatable, Sources};
use super::plan::{self, Failure, Memory, Outlook, Plan, Step};
use super::seen::{self, Container, Sandbox, Seen, State};
use super::spec;
use super::start::{Start, termination_file};
use super::status::{self, Inputs};
use crate::cri::{Cri, describe};
use crate::probe::action::Target;
use crate::probe::{Probed, Probes};
use crate::volume::Volumes;

/// A pod settles in a few rounds; one that does not is looked at again later.
const MAX_ROUNDS: u32 = 32;
/// Until something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Volumes are brought up to date, and a lost wake-up is made good, that often.
const RESYNC: Duration = Duration::from_secs(60);
/// The longest pause between two tries to make a sandbox or its volumes.
const MAX_SANDBOX_PAUSE: Duration = Duration::from_secs(60);
/// A container that must end at once still gets that long after its preStop hook. Upstream's.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// What is kept of last words, and of a log in their place. Upstream's bounds.
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_LOG_MESSAGE_BYTES: usize = 2048;

/// What all workers of a node share.
pub struct Shared {
    pub cri: Cri,
    pub client: Arc<dyn Client>,
    pub recorder: EventRecorder,
    pub volumes: Volumes,
    pub node: config::Node,
    pub node_address: String,
    /// The runtime's name: the scheme of container ids.
    pub runtime: String,
    pub allocatable: Allocatable,
    pub pods_dir: PathBuf,
    pub logs_dir: PathBuf,
}

impl Shared {
    /// Folder of a pod's logs: `NAMESPACE_NAME_UID`, as kubelet's.
    pub fn log_dir(&self, pod: &core::Pod) -> PathBuf {
        self.logs_dir.join(format!("{}_{}_{}", spec::namespace(pod), spec::name(pod), spec::uid(pod)))
    }
}

/// The worker of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    wanted: watch::Receiver<Option<Arc<Object>>>,
    wake: Arc<Notify>,
    memory: Memory,
    probes: Probes,
    /// The newest version of the pod, from the source or as answer to a report.
    last: Option<Arc<Object>>,
    waiting: BTreeMap<String, (String, String)>,
    volumes: BTreeMap<String, PathBuf>,
    volumes_at: Option<tokio::time::Instant>,
    /// Last words by container id.
    messages: BTreeMap<String, String>,
    /// Containers that have ended do not change any more.
    ended: BTreeMap<String, Container>,
    addresses: BTreeMap<String, Vec<String>>,
    pulls: BTreeMap<String, Option<Backoff>>,
    sandbox_failures: u32,
    stops: JoinSet<(String, Result<(), String>)>,
}

enum Next {
    /// The pod is gone, from the API and from the runtime.
    Gone,
    WaitUntil(Option<Timestamp>),
}

fn retry() -> Next {
    Next::WaitUntil(Timestamp::now().checked_add(RETRY).ok())
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        uid: String,
        wanted: watch::Receiver<Option<Arc<Object>>>,
        wake: Arc<Notify>,
    ) -> Self {
        let probes = Probes::new(shared.cri.clone(), shared.recorder.clone(), Arc::clone(&wake));
        Self {
            shared,
            uid,
            wanted,
            wake,
            memory: Memory::default(),
            probes,
            last: None,
            waiting: BTreeMap::new(),
            volumes: BTreeMap::new(),
            volumes_at: None,
            messages: BTreeMap::new(),
            ended: BTreeMap::new(),
            addresses: BTreeMap::new(),
            pulls: BTreeMap::new(),
            sandbox_failures: 0,
            stops: JoinSet::new(),
        }
    }

    /// Works until the pod is gone or `cancel` is cancelled; then returns the pod's uid.
    pub async fn run(mut self, cancel: CancellationToken) -> String {
        loop {
            let next = tokio::select! {
                () = cancel.cancelled() => break,
                next = self.sync() => next.unwrap_or_else(|error| {
                    tracing::warn!(uid = self.uid, error, "a pod could not be brought forward");
                    retry()
                }),
            };
            let until = match next {
                Next::Gone => break,
                Next::WaitUntil(until) => until,
            };
            let now = Timestamp::now();
            let pause = until.map_or(RESYNC, |until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = self.wanted.changed() => {}
                () = self.wake.notified() => {}
                Some(stopped) = self.stops.join_next() => self.note_stopped(stopped),
                () = tokio::time::sleep(pause.min(RESYNC)) => {}
            }
        }
        self.uid
    }

    fn note_stopped(&mut self, stopped: Result<(String, Result<(), String>), tokio::task::JoinError>) {
        match stopped {
            Ok((id, result)) => {
                self.memory.stopping.remove(&id);
                if let Err(error) = result {
                    tracing::warn!(container = id, error, "a container could not be stopped");
                }
            }
            // The id is not known: every stop is asked for again, which does no harm.
            Err(_) => self.memory.stopping.clear(),
        }
    }

    async fn sync(&mut self) -> Result<Next, String> {
        for _ in 0..MAX_ROUNDS {
            while let Some(stopped) = self.stops.try_join_next() {
                self.note_stopped(stopped);
            }
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(object) = &wanted {
                self.adopt(Arc::clone(object));
            }
            let pod = match &self.last {
                Some(object) => {
                    Some(object.typed::<core::Pod>().map_err(|error| format!("the pod does not parse: {error}"))?)
                }
                None => None,
            };
            let seen = self.observe().await.map_err(|status| describe(&status))?;
            let (Some(_), Some(pod)) = (&wanted, &pod) else {
                match self.remove(pod.as_deref(), &seen).await {
                    Some(next) => return Ok(next),
                    None => continue,
                }
            };
            self.update_probes(pod, &seen);
            let now = Timestamp::now();
            let plan = plan::plan(pod, &seen, &self.memory, now);
            self.read_last_words(pod, &seen);
            self.report_waits(pod, &plan);
            self.publish(pod, &seen, &plan, now).await?;
            if plan.outlook == Outlook::Deletable {
                self.forget(pod).await?;
                return Ok(retry());
            }
            if plan.steps.is_empty() {
                self.refresh_volumes(pod, &seen).await;
                return Ok(Next::WaitUntil(plan.wake_at));
            }
            for step in plan.steps {
                if let Err(error) = self.act(step, pod, &seen).await {
                    tracing::warn!(pod = spec::full_name(pod), error, "a step towards a pod's state failed");
                    return Ok(retry());
                }
            }
        }
        Ok(retry())
    }

    fn adopt(&mut self, object: Arc<Object>) {
        if self.last.as_ref().is_none_or(|last| last.revision() < object.revision()) {
            self.last = Some(object);
        }
    }

    async fn observe(&mut self) -> Result<Seen, tonic::Status> {
        let cri = self.shared.cri.clone();
        let mut sandboxes: Vec<Sandbox> =
            cri.sandboxes(Some(&self.uid)).await?.into_iter().map(Sandbox::from).collect();
        for sandbox in &mut sandboxes {
            if sandbox.ready
                && !self.addresses.contains_key(&sandbox.id)
                && let Some(status) = cri.sandbox_status(&sandbox.id).await?
            {
                self.addresses.insert(sandbox.id.clone(), seen::addresses(status));
            }
            sandbox.addresses = self.addresses.get(&sandbox.id).cloned().unwrap_or_default();
        }
        let mut containers = Vec::new();
        for listed in cri.containers(Some(&self.uid)).await? {
            if let Some(ended) = self.ended.get(&listed.id) {
                containers.push(ended.clone());
            } else if let Some(status) = cri.container_status(&listed.id).await? {
                let container = Container::from_wire(listed, status);
                if container.state == State::Exited {
                    self.ended.insert(container.id.clone(), container.clone());
                }
                containers.push(container);
            }
        }
        self.addresses.retain(|id, _| sandboxes.iter().any(|sandbox| sandbox.id == *id));
        self.ended.retain(|id, _| containers.iter().any(|container| container.id == *id));
        Ok(Seen::new(sandboxes, containers))
    }

    fn update_probes(&mut self, pod: &core::Pod, seen: &Seen) {
        let sandbox = seen.current_sandbox();
        let ending = spec::deletion_grace(pod).is_some() || spec::is_terminal(pod);
        let alive =
            |id: &&Sandbox| seen.running().filter(|container| container.sandbox_id == id.id).collect::<Vec<_>>();
        let running = sandbox.as_ref().map(alive).unwrap_or_default();
        let own_address = self.shared.node_address.clone();
        let address = sandbox.and_then(|sandbox| sandbox.addresses.first()).unwrap_or(&own_address);
        let mut probed = Vec::new();
        self.memory.starting.clear();
        self.memory.unhealthy.clear();
        for seen in running {
            let Some((container, _)) = spec::find(pod, &seen.name) else { continue };
            let about = self.about(pod, &seen.name);
            probed.push(Probed { container, container_id: &seen.id, address, about });
            if self.probes.is_starting(container, &seen.id) {
                self.memory.starting.insert(seen.id.clone());
            }
            if let Some(why) = self.probes.unhealthy(container, &seen.id) {
                self.memory.unhealthy.insert(seen.id.clone(), why);
            }
        }
        if ending {
            // A container that is asked to end is not restarted for being unwell.
            self.memory.unhealthy.clear();
        }
        self.probes.sync(&probed);
    }

    fn about(&self, pod: &core::Pod, container: &str) -> Reference {
        let list =
            if spec::init(pod).any(|(init, _)| init.name == container) { "initContainers" } else { "containers" };
        let about = self.last.as_deref().map(Reference::of).unwrap_or_default();
        about.with_field_path(format!("spec.{list}{{{container}}}"))
    }

    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        let about = self.last.as_deref().map(Reference::of).unwrap_or_default();
        self.shared.recorder.record(about, kind, reason, message);
    }

    /// Events for waits that have just begun.
    fn report_waits(&mut self, pod: &core::Pod, plan: &Plan) {
        for (name, (reason, message)) in &plan.waiting {
            let known = self.waiting.get(name).is_some_and(|(old, text)| old == reason && text == message);
            if known {
                continue;
            }
            let recorder = &self.shared.recorder;
            let about = self.about(pod, name);
            if reason == "CrashLoopBackOff" {
                let text = format!("Back-off restarting failed container {name} in pod {}", spec::full_name(pod));
                recorder.record(about, EventType::Warning, "BackOff", text);
            } else if reason == "ImagePullBackOff" {
                let image =
                    spec::find(pod, name).and_then(|(container, _)| container.image.clone()).unwrap_or_default();
                recorder.record(
                    about.clone(),
                    EventType::Normal,
                    "BackOff",
                    format!("Back-off pulling image {image:?}"),
                );
                recorder.record(about, EventType::Warning, "Failed", "Error: ImagePullBackOff");
            }
        }
        self.waiting.clone_from(&plan.waiting);
    }

    fn read_last_words(&mut self, pod: &core::Pod, seen: &Seen) {
        self.messages.retain(|id, _| seen.containers.iter().any(|container| container.id == *id));
        for container in seen.containers.iter().filter(|container| container.state == State::Exited) {
            if self.messages.contains_key(&container.id) {
                continue;
            }
            let pod_dir = self.shared.pods_dir.join(&self.uid);
            let words = read_start(&termination_file(&pod_dir, &container.name, container.attempt), MAX_MESSAGE_BYTES);
            let policy = spec::find(pod, &container.name).and_then(|(c, _)| c.termination_message_policy.clone());
            let fall_back = policy.as_deref() == Some("FallbackToLogsOnError") && container.exit_code != 0;
            let text = match words {
                Some(words) if !words.is_empty() => words,
                _ if fall_back => {
                    crate::server::logs::tail(std::path::Path::new(&container.log_path), MAX_LOG_MESSAGE_BYTES)
                }
                _ => String::new(),
            };
            self.messages.insert(container.id.clone(), text);
        }
    }

    async fn publish(&mut self, pod: &core::Pod, seen: &Seen, plan: &Plan, now: Timestamp) -> Result<(), String> {
        let late = plan::deadline_passed(pod, now) && !spec::is_terminal(pod);
        let probes = &self.probes;
        let new = status::status(&Inputs {
            pod,
            seen,
            memory: &self.memory,
            waiting: &plan.waiting,
            is_ready: &|container, id| probes.is_ready(container, id),
            messages: &self.messages,
            node_address: &self.shared.node_address,
            runtime: &self.shared.runtime,
            failure: late
                .then_some(("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")),
            now,
        });
        let Some(patch) = status::patch(&self.uid, pod.status.as_ref(), &new) else { return Ok(()) };
        let pods = resources::pods();
        let options = WriteOptions { field_manager: "kubelet".to_owned(), fence: None };
        let written = self.shared.client.patch(
            &pods,
            Some(spec::namespace(pod)),
            spec::name(pod),
            Some("status"),
            Patch::Merge(patch),
            options,
        );
        match written.await {
            Ok(object) => {
                self.adopt(object);
                Ok(())
            }
            // The source will tell that the pod is gone, or is another one now.
            Err(status) if status.is_not_found() || status.code == 409 => Ok(()),
            Err(status) => Err(format!("the pod's status was not written: {status}")),
        }
    }

    /// Lets the API forget a pod that has ended.
    async fn forget(&mut self, pod: &core::Pod) -> Result<(), String> {
        let pod_dir = self.shared.pods_dir.join(&self.uid);
        self.shared.volumes.tear_down(&pod_dir, Some(pod)).await?;
        let options =
            DeleteOptions { grace_period_seconds: Some(0), uid: Some(self.uid.clone()), ..DeleteOptions::default() };
        let pods = resources::pods();
        let deleted = self.shared.client.delete(&pods, Some(spec::namespace(pod)), spec::name(pod), options);
        match deleted.await {
            Ok(()) => Ok(()),
            Err(status) if status.is_not_found() || status.code == 409 => Ok(()),
            Err(status) => Err(format!("the pod was not deleted: {status}")),
        }
    }

    /// Ends what the runtime still has of a pod that the API has forgotten.
    /// `None` means: look again.
    async fn remove(&mut self, pod: Option<&core::Pod>, seen: &Seen) -> Option<Next> {
        self.probes.sync(&[]);
        let plan = plan::plan_removal(pod, seen, &self.memory);
        if plan.outlook == Outlook::Gone {
            self.clean_up(pod).await;
            return Some(Next::Gone);
        }
        if plan.steps.is_empty() {
            return Some(Next::WaitUntil(None));
        }
        let empty = core::Pod::default();
        for step in plan.steps {
            if let Err(error) = self.act(step, pod.unwrap_or(&empty), seen).await {
                tracing::warn!(uid = self.uid, error, "a pod could not be removed");
                return Some(retry());
            }
        }
        None
    }

    async fn clean_up(&mut self, pod: Option<&core::Pod>) {
        let pod_dir = self.shared.pods_dir.join(&self.uid);
        if let Err(error) = self.shared.volumes.tear_down(&pod_dir, pod).await {
            tracing::warn!(uid = self.uid, error, "the volumes of a pod stay behind");
        }
        if let Some(pod) = pod {
            let _ = std::fs::remove_dir_all(self.shared.log_dir(pod));
            let group = config::cgroup_parent(pod, &self.shared.node);
            if matches!(self.shared.node.cgroups, Some(crate::cgroup::Driver::Cgroupfs(_))) {
                crate::cgroup::remove(&group).await;
            }
        }
    }

    async fn act(&mut self, step: Step, pod: &core::Pod, seen: &Seen) -> Result<(), String> {
        let cri = self.shared.cri.clone();
        match step {
            Step::RunSandbox { attempt } => {
                self.run_sandbox(pod, attempt).await;
                Ok(())
            }
            Step::StopSandbox { id } => {
                cri.stop_sandbox(&id).await.map_err(|status| describe(&status))?;
                self.memory.stopped_sandboxes.insert(id);
                Ok(())
            }
            Step::RemoveSandbox { id } => cri.remove_sandbox(&id).await.map_err(|status| describe(&status)),
            Step::RemoveContainer { id } => cri.remove_container(&id).await.map_err(|status| describe(&status)),
            Step::StopContainer { id, name, grace, why } => {
                self.stop_container(pod, seen, id, &name, grace, why);
                Ok(())
            }
            Step::RunContainer { name, attempt, .. } => self.run_container(pod, seen, &name, attempt).await,
        }
    }

    fn sources<'a>(
        &'a self,
        pod: &'a core::Pod,
        addresses: &'a [String],
        empty: &'a BTreeMap<String, super::env::Data>,
    ) -> Sources<'a> {
        Sources {
            pod,
            config_maps: empty,
            secrets: empty,
            services: Vec::new(),
            pod_addresses: addresses,
            node_address: &self.shared.node_address,
            allocatable: self.shared.allocatable,
        }
    }

    async fn set_up_volumes(&mut self, pod: &core::Pod, addresses: &[String]) -> Result<(), String> {
        let pod_dir = self.shared.pods_dir.join(&self.uid);
        crate::volume::atomic::create_private(&pod_dir).map_err(|error| error.to_string())?;
        let empty = BTreeMap::new();
        let shared = Arc::clone(&self.shared);
        let ready = shared.volumes.set_up(&pod_dir, &self.sources(pod, addresses, &empty)).await;
        self.volumes = ready.map_err(|error| error.to_string())?;
        self.volumes_at = Some(tokio::time::Instant::now());
        Ok(())
    }

    /// Brings the files of a running pod up to date with the API.
    async fn refresh_volumes(&mut self, pod: &core::Pod, seen: &Seen) {
        let due = self.volumes_at.is_some_and(|at| at.elapsed() >= RESYNC);
        let Some(sandbox) = seen.current_sandbox().filter(|_| due && seen.running().next().is_some()) else { return };
        if let Err(message) = self.set_up_volumes(pod, &sandbox.addresses).await {
            self.event(EventType::Warning, "FailedMount", message);
            // The containers go on with what they have.
            self.volumes_at = Some(tokio::time::Instant::now());
        }
    }

    async fn run_sandbox(&mut self, pod: &core::Pod, attempt: u32) {
        let now = Timestamp::now();
        let refused = spec::unsupported(pod);
        let ready = if refused.is_some() { Ok(()) } else { self.set_up_volumes(pod, &[]).await };
        let made = match ready {
            Err(message) => {
                self.event(EventType::Warning, "FailedMount", message);
                false
            }
            Ok(()) => {
                let log_dir = self.shared.log_dir(pod);
                let made = match (refused, std::fs::create_dir_all(&log_dir)) {
                    (Some(why), _) => Err(why.to_owned()),
                    (None, Ok(())) => {
                        let config = config::sandbox(pod, &self.shared.node, attempt, &log_dir);
                        self.shared.cri.run_sandbox(config).await.map_err(|status| describe(&status))
                    }
                    (None, Err(error)) => Err(format!("cannot make {}: {error}", log_dir.display())),
                };
                if let Err(why) = &made {
                    let message = format!("Failed to create pod sandbox: {why}");
                    self.event(EventType::Warning, "FailedCreatePodSandBox", message);
                }
                made.is_ok()
            }
        };
        if made {
            self.sandbox_failures = 0;
            self.memory.sandbox_retry_at = None;
        } else {
            let pause = RETRY.saturating_mul(1 << self.sandbox_failures.min(6)).min(MAX_SANDBOX_PAUSE);
            self.sandbox_failures += 1;
            self.memory.sandbox_retry_at = now.checked_add(pause).ok();
        }
    }

    async fn run_container(&mut self, pod: &core::Pod, seen: &Seen, name: &str, attempt: u32) -> Result<(), String> {
        let (Some((container, _)), Some(sandbox)) = (spec::find(pod, name), seen.current_sandbox()) else {
            return Ok(());
        };
        if self.volumes_at.is_none() {
            // The agent was restarted since the sandbox was made.
            self.set_up_volumes(pod, &sandbox.addresses).await?;
        }
        if let Some(stale) = seen.latest(name).filter(|latest| latest.state == State::Created) {
            self.shared.cri.remove_container(&stale.id).await.map_err(|status| describe(&status))?;
        }
        let now = Timestamp::now();
        if seen.latest(name).is_some_and(|latest| latest.state == State::Exited && latest.sandbox_id == sandbox.id) {
            let backoff = Backoff::next(self.memory.restarts.get(name).copied(), now);
            self.memory.restarts.insert(name.to_owned(), backoff);
        }
        let shared = Arc::clone(&self.shared);
        let pod_dir = shared.pods_dir.join(&self.uid);
        let log_dir = shared.log_dir(pod);
        let mut pull_backoff = self.pulls.get(name).copied().flatten();
        let about = self.about(pod, name);
        let mut changes = self.wanted.clone();
        let start = Start {
            shared: &shared,
            pod,
            container,
            about,
            attempt,
            sandbox_id: &sandbox.id,
            sandbox_config: config::sandbox(pod, &shared.node, sandbox.attempt, &log_dir),
            addresses: &sandbox.addresses,
            volumes: &self.volumes,
            pod_dir: &pod_dir,
            pull_backoff: &mut pull_backoff,
        };
        // A pull can take minutes; a deletion does not wait for it.
        let result: Result<String, Failure> = tokio::select! {
            result = start.run() => result,
            () = until_unwanted(&mut changes) => return Ok(()),
        };
        self.pulls.insert(name.to_owned(), pull_backoff);
        match result {
            Ok(_) => {
                self.memory.failures.remove(name);
            }
            Err(failure) => {
                self.memory.failures.insert(name.to_owned(), failure);
            }
        }
        Ok(())
    }

    /// Stops a container in the background: its grace must not hold up the pod's other containers.
    fn stop_container(&mut self, pod: &core::Pod, seen: &Seen, id: String, name: &str, grace: Duration, why: String) {
        if !self.memory.stopping.contains_key(&id) {
            self.shared.recorder.record(self.about(pod, name), EventType::Normal, "Killing", why);
        }
        self.memory.stopping.insert(id.clone(), grace);
        let hook = spec::find(pod, name).and_then(|(container, _)| container.lifecycle.clone()?.pre_stop);
        let ports = spec::find(pod, name).and_then(|(container, _)| container.ports.clone()).unwrap_or_default();
        let address = seen.current_sandbox().and_then(|sandbox| sandbox.addresses.first().cloned()).unwrap_or_default();
        let shared = Arc::clone(&self.shared);
        let about = self.about(pod, name);
        self.stops.spawn(async move {
            let begun = tokio::time::Instant::now();
            if let Some(hook) = hook.filter(|_| !grace.is_zero()) {
                let target =
                    Target { cri: &shared.cri, container_id: &id, address: &address, ports: &ports, timeout: grace };
                let result = tokio::time::timeout(grace, target.hook(&hook)).await;
                if let Ok(Err(why)) = result {
                    shared.recorder.record(
                        about,
                        EventType::Warning,
                        "FailedPreStopHook",
                        format!("PreStopHook failed: {why}"),
                    );
                }
            }
            let rest =
                if grace.is_zero() { grace } else { grace.saturating_sub(begun.elapsed()).max(MIN_GRACE.min(grace)) };
            let stopped = shared.cri.stop_container(&id, rest).await.map_err(|status| describe(&status));
            (id, stopped)
        });
    }
}

/// Waits until the pod is deleted, or is asked to be.
async fn until_unwanted(changes: &mut watch::Receiver<Option<Arc<Object>>>) {
    let _ = changes.wait_for(|pod| pod.as_ref().is_none_or(|pod| pod.meta().is_terminating())).await;
}

fn read_start(path: &std::path::Path, limit: usize) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
