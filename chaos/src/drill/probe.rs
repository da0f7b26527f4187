//! Probes: clients that ask at a steady rate whatever becomes of earlier answers, and note
//! every answer with its time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use quorate_proto::etcd::StatusResponse;
use serde_json::{Value, json};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{Api, Refusal};
use super::sample::{self, Clock, Outcome, Probe, Role, RoleSpan, Sample};
use super::store::{self, Store};
use crate::history::{
    Answer, Client, Event, KeyValue, Member, OperationId, Read, Recorder, Reply, Request, Revision, Term,
};

/// How often each master is asked for a write, a read, and its role.
const WRITES_A_SECOND: u32 = 50;
const READS_A_SECOND: u32 = 20;
const ROLES_A_SECOND: u32 = 40;

/// How often a pod and a Deployment are created.
const PODS_A_SECOND: u32 = 10;
const DEPLOYMENTS_A_SECOND: u32 = 10;

/// The pause of the sequential client between two objects.
const CLIENT_PAUSE: Duration = Duration::from_millis(10);

/// How long a request waits for its answer, and how long a client goes on with one object.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A master that does not say its role within that is silent for now.
const ROLE_PATIENCE: Duration = Duration::from_millis(250);

/// The pause before a watch or an attempt that failed is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// How many writes are sent through each surviving master right before a fault.
pub(super) const IN_FLIGHT: usize = 4;

/// How many watches a large cluster's clients have on one master.
pub(super) const HERD: usize = 300;

/// Marks what drills leave in a cluster, so that a later one can sweep up after one that was killed.
pub(super) const LABEL: &str = "quorate-drill";

/// What all probes of a run share.
pub(super) struct Lab {
    pub(super) clock: Clock,
    /// Keys of the run begin with it.
    pub(super) prefix: String,
    /// Objects of the run are in that namespace; its name is also that of its node.
    pub(super) namespace: String,
    pub(super) stores: Vec<Store>,
    /// Each master's API and the endpoint's; absent when the API does not answer.
    pub(super) apis: Option<Apis>,
    pub(super) seen: Mutex<Seen>,
    history: Recorder<BufWriter<File>>,
    /// Each request in the history is a client of its own: they overlap.
    clients: AtomicU32,
    values: AtomicU64,
    /// Ends the asking.
    pub(super) stop: CancellationToken,
    /// Ends the watches.
    pub(super) watching: CancellationToken,
    /// Those who ask; they end what they are at.
    pub(super) asking: TaskTracker,
    pub(super) watchers: TaskTracker,
}

pub(super) struct Apis {
    pub(super) masters: Vec<(String, Api)>,
    pub(super) endpoint: Api,
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) samples: Vec<Sample>,
    pub(super) roles: Vec<RoleSpan>,
    /// By watcher: the ConfigMaps it was told of, with their versions, in that order.
    pub(super) told: BTreeMap<String, Vec<(String, u64)>>,
    /// What watchers were refused because it was too old.
    pub(super) relists: usize,
    /// When watchers first saw a pod bound, and a Deployment's ReplicaSet.
    done: BTreeMap<String, f64>,
    /// When pods and Deployments were asked for.
    asked: BTreeMap<String, (Probe, f64)>,
    /// ConfigMaps whose creation was acknowledged.
    pub(super) acknowledged: Vec<String>,
}

impl Lab {
    pub(super) fn new(name: &str, stores: Vec<Store>, apis: Option<Apis>, history: File) -> Self {
        Self {
            clock: Clock::start(),
            prefix: format!("/quorate-drill/{name}/"),
            namespace: format!("drill-{name}"),
            stores,
            apis,
            seen: Mutex::default(),
            history: Recorder::new(BufWriter::new(history)),
            clients: AtomicU32::new(0),
            values: AtomicU64::new(0),
            stop: CancellationToken::new(),
            watching: CancellationToken::new(),
            asking: TaskTracker::new(),
            watchers: TaskTracker::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self) -> String {
        format!("{}register", self.prefix)
    }

    pub(super) fn in_flight(&self) -> String {
        format!("{}in-flight/", self.prefix)
    }

    pub(super) fn config_maps(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    /// What the history holds is flushed; the rest of what was seen remains.
    ///
    /// # Errors
    /// When the history could not be written.
    pub(super) fn finish(self) -> Result<Seen> {
        self.history.finish()?;
        Ok(self.seen.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, probe: Probe, via: &str, at_ms: f64, term: Option<u64>, error: Option<(Outcome, String)>) {
        self.note_attempt(probe, via, at_ms, term, error, false);
    }

    fn note_attempt(
        &self,
        probe: Probe,
        via: &str,
        at_ms: f64,
        term: Option<u64>,
        error: Option<(Outcome, String)>,
        retry: bool,
    ) {
        let took_ms = self.clock.now_ms() - at_ms;
        let (outcome, error) = match error {
            None => (Outcome::Ok, None),
            Some((outcome, error)) => (outcome, Some(error)),
        };
        let sample = Sample { probe, via: via.to_owned(), at_ms, took_ms, outcome, term, retry, error };
        self.lock().samples.push(sample);
    }

    fn invoke(&self, member: usize, request: Request) -> OperationId {
        let client = Client(self.clients.fetch_add(1, Ordering::Relaxed));
        self.history.invoke(client, Member(u16::try_from(member).unwrap_or(u16::MAX)), request)
    }

    fn answered<T>(&self, operation: OperationId, result: &Result<T, tonic::Status>, reply: impl FnOnce(&T) -> Reply) {
        let event = match result {
            Ok(answer) => Event::Ok { operation, reply: reply(answer) },
            Err(status) => {
                let error = status.message().to_owned();
                match store::outcome(status) {
                    Outcome::Unreachable => Event::Fail { operation, error },
                    Outcome::Ok | Outcome::Failed => Event::Unknown { operation, error },
                }
            }
        };
        self.history.record(event);
    }

    /// One write through a master's store.
    async fn write(&self, probe: Probe, member: usize, key: &str) {
        let store = &self.stores[member];
        let value = self.values.fetch_add(1, Ordering::Relaxed).to_string();
        let at = self.clock.now_ms();
        let operation = self.invoke(member, Request::Put { key: key.to_owned(), value: value.clone(), lease: 0 });
        let result = store.put(key, &value, PATIENCE).await;
        self.answered(operation, &result, |answer| reply(answer.header.as_ref(), Answer::Done));
        let term = result.as_ref().ok().and_then(|answer| answer.header.as_ref()).map(|header| header.raft_term);
        let error = result.err().map(|status| (store::outcome(&status), status.message().to_owned()));
        self.note(probe, &store.name, at, term, error);
    }

    async fn read(&self, member: usize, key: &str) {
        let store = &self.stores[member];
        let at = self.clock.now_ms();
        let operation = self.invoke(member, Request::Get { key: key.to_owned(), read: Read::Linearizable });
        let result = store.get(key, PATIENCE).await;
        self.answered(operation, &result, |answer| {
            reply(answer.header.as_ref(), Answer::Found(answer.kvs.first().map(key_value)))
        });
        let term = result.as_ref().ok().and_then(|answer| answer.header.as_ref()).map(|header| header.raft_term);
        let error = result.err().map(|status| (store::outcome(&status), status.message().to_owned()));
        self.note(Probe::Read, &store.name, at, term, error);
    }

    async fn role(&self, member: usize) {
        let store = &self.stores[member];
        let status = store.status(ROLE_PATIENCE).await.ok();
        let (role, term) = role(status.as_ref());
        let at = self.clock.now_ms();
        sample::extend(&mut self.lock().roles, &store.name, role.clone(), term, at);
        let member = Member(u16::try_from(member).unwrap_or(u16::MAX));
        let told = match role {
            Role::Leader => crate::history::Role::Leader,
            Role::Follower => crate::history::Role::Follower,
            Role::Leaderless => crate::history::Role::Candidate,
            Role::Silent => return,
        };
        self.history.record(Event::Role { member, term: Term(term), role: told });
    }
}

fn reply(header: Option<&quorate_proto::etcd::ResponseHeader>, answer: Answer) -> Reply {
    Reply {
        revision: header.map(|header| Revision(header.revision)),
        term: header.map(|header| Term(header.raft_term)),
        answer,
    }
}

fn key_value(kv: &quorate_proto::mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        value: String::from_utf8_lossy(&kv.value).into_owned(),
        create_revision: Revision(kv.create_revision),
        mod_revision: Revision(kv.mod_revision),
        version: kv.version,
        lease: kv.lease,
    }
}

/// What a member says that it is, and in which term.
pub(super) fn role(status: Option<&StatusResponse>) -> (Role, u64) {
    match status {
        None => (Role::Silent, 0),
        Some(status) if status.leader == 0 => (Role::Leaderless, status.raft_term),
        Some(status) if status.header.as_ref().is_some_and(|header| header.member_id == status.leader) => {
            (Role::Leader, status.raft_term)
        }
        Some(status) => (Role::Follower, status.raft_term),
    }
}

/// Begins `work` so often a second, whether or not earlier ones have ended, until the probes stop.
fn steadily<F>(lab: &Arc<Lab>, a_second: u32, work: impl Fn(Arc<Lab>, u64) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let lab = Arc::clone(lab);
    let tasks = lab.asking.clone();
    tasks.spawn(async move {
        let mut ticks = time::interval(Duration::from_secs(1) / a_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 0.. {
            tokio::select! {
                _ = ticks.tick() => {}
                () = lab.stop.cancelled() => return,
            }
            lab.asking.spawn(work(Arc::clone(&lab), number));
        }
    });
}

/// Starts all probes.
pub(super) fn start(lab: &Arc<Lab>) {
    let register: Arc<str> = lab.register().into();
    for member in 0..lab.stores.len() {
        let key = Arc::clone(&register);
        steadily(lab, WRITES_A_SECOND, move |lab, _| {
            let key = Arc::clone(&key);
            async move { lab.write(Probe::Write, member, &key).await }
        });
        let key = Arc::clone(&register);
        steadily(lab, READS_A_SECOND, move |lab, _| {
            let key = Arc::clone(&key);
            async move { lab.read(member, &key).await }
        });
    }
    let Some(apis) = &lab.apis else { return };
    lab.asking.spawn(client(Arc::clone(lab)));
    steadily(lab, PODS_A_SECOND, |lab, number| async move {
        let name = format!("pod-{number}");
        let path = format!("/api/v1/namespaces/{}/pods", lab.namespace);
        ask(&lab, Probe::Pod, &path, &name, &pod(&lab.namespace, &name)).await;
    });
    steadily(lab, DEPLOYMENTS_A_SECOND, |lab, number| async move {
        let name = format!("deployment-{number}");
        let path = format!("/apis/apps/v1/namespaces/{}/deployments", lab.namespace);
        ask(&lab, Probe::Controller, &path, &name, &deployment(&name)).await;
    });
    for home in 0..apis.masters.len() {
        for watched in [Watched::ConfigMaps, Watched::Pods, Watched::ReplicaSets] {
            lab.watchers.spawn(watcher(Arc::clone(lab), home, watched));
        }
    }
}

/// Follows the masters' roles; they outlive the other probes, until `stop`.
pub(super) fn follow_roles(lab: &Arc<Lab>, stop: &CancellationToken) -> TaskTracker {
    let tasks = TaskTracker::new();
    for member in 0..lab.stores.len() {
        let (lab, stop) = (Arc::clone(lab), stop.clone());
        tasks.spawn(async move {
            let mut ticks = time::interval(Duration::from_secs(1) / ROLES_A_SECOND);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => lab.role(member).await,
                    () = stop.cancelled() => return,
                }
            }
        });
    }
    tasks.close();
    tasks
}

/// Sends writes with keys of their own through every master but `victim`, and does not wait.
pub(super) fn send_in_flight(lab: &Arc<Lab>, victim: &str) {
    for (member, store) in lab.stores.iter().enumerate().filter(|(_, store)| store.name != victim) {
        for number in 0..IN_FLIGHT {
            let (lab, key) = (Arc::clone(lab), format!("{}{}-{number}", lab.in_flight(), store.name));
            lab.asking.clone().spawn(async move { lab.write(Probe::InFlight, member, &key).await });
        }
    }
}

/// One object after another through the endpoint, each tried until it is there.
async fn client(lab: Arc<Lab>) {
    let Some(apis) = &lab.apis else { return };
    let path = lab.config_maps();
    for number in 0.. {
        if lab.stop.is_cancelled() {
            return;
        }
        let name = format!("object-{number}");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let began = lab.clock.now_ms();
        for attempt in 0.. {
            let at = lab.clock.now_ms();
            let result = apis.endpoint.create(&path, &object, PATIENCE).await;
            let done = is_there(&result, attempt > 0);
            let error = result.err().filter(|_| !done).map(|refusal| (refusal.outcome, refusal.to_string()));
            lab.note_attempt(Probe::Client, "endpoint", at, None, error, attempt > 0);
            if done {
                lab.lock().acknowledged.push(name);
                break;
            }
            if lab.clock.now_ms() - began > PATIENCE.as_secs_f64() * 1e3 {
                break;
            }
            time::sleep(RETRY).await;
        }
        time::sleep(CLIENT_PAUSE).await;
    }
}

/// Whether the object exists now: a retry may find what an attempt without an answer made.
fn is_there(result: &Result<Value, Refusal>, is_retry: bool) -> bool {
    match result {
        Ok(_) => true,
        Err(refusal) => is_retry && refusal.code == Some(409),
    }
}

/// Creates an object of which watchers will see what came of it.
async fn ask(lab: &Lab, probe: Probe, path: &str, name: &str, object: &Value) {
    let Some(apis) = &lab.apis else { return };
    let at = lab.clock.now_ms();
    lab.lock().asked.insert(name.to_owned(), (probe, at));
    for attempt in 0.. {
        let result = apis.endpoint.create(path, object, PATIENCE).await;
        if is_there(&result, attempt > 0) || lab.clock.now_ms() - at > PATIENCE.as_secs_f64() * 1e3 {
            return;
        }
        time::sleep(RETRY).await;
    }
}

impl Seen {
    /// Turns pods and Deployments into samples: bound, controlled, or neither until `end_ms`.
    pub(super) fn settle(&mut self, end_ms: f64) {
        for (name, (probe, at_ms)) in std::mem::take(&mut self.asked) {
            let (outcome, took_ms, error) = match self.done.get(&name) {
                Some(done) => (Outcome::Ok, done - at_ms, None),
                None => (Outcome::Failed, end_ms - at_ms, Some(format!("nothing came of {name}"))),
            };
            let via = "endpoint".to_owned();
            self.samples.push(Sample { probe, via, at_ms, took_ms, outcome, term: None, retry: false, error });
        }
        self.samples.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    }

    /// Whether of each kind at least one has come to its end.
    pub(super) fn pods_and_controllers_act(&self) -> bool {
        ["pod-", "deployment-"].iter().all(|kind| self.done.keys().any(|name| name.starts_with(kind)))
    }

    /// Whether something came of all that was asked for, and every watcher was told of every
    /// ConfigMap that was acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.asked.keys().all(|name| self.done.contains_key(name))
            && self.told.values().all(|told| told.len() >= self.acknowledged.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    ConfigMaps,
    Pods,
    ReplicaSets,
    /// What hardly changes; there are many of these.
    Quiet,
}

impl Watched {
    fn path(self, namespace: &str) -> String {
        match self {
            Self::ConfigMaps => format!("/api/v1/namespaces/{namespace}/configmaps"),
            Self::Pods => format!("/api/v1/namespaces/{namespace}/pods"),
            Self::ReplicaSets => format!("/apis/apps/v1/namespaces/{namespace}/replicasets"),
            Self::Quiet => "/api/v1/namespaces/default/configmaps".to_owned(),
        }
    }
}

/// Watches from master `home`, and from the next one whenever the watch breaks, always going
/// on after the last version that it was told of.
async fn watcher(lab: Arc<Lab>, home: usize, watched: Watched) {
    tokio::select! {
        () = watch(&lab, home, watched) => {}
        () = lab.watching.cancelled() => {}
    }
}

/// Opens watches of what hardly changes on one master, and keeps them open, on others where
/// need be; returns once all are.
///
/// # Errors
/// When the master does not serve them.
pub(super) async fn herd(lab: &Arc<Lab>, home: &str) -> Result<()> {
    let apis = lab.apis.as_ref().context("watches are the API's, which does not answer")?;
    let home = apis.masters.iter().position(|(name, _)| name == home).context("no such master")?;
    for _ in 0..HERD {
        lab.watchers.spawn(watcher(Arc::clone(lab), home, Watched::Quiet));
    }
    let deadline = time::Instant::now() + PATIENCE * 2;
    let open = || lab.lock().samples.iter().filter(|sample| sample.probe == Probe::Herd).count();
    while open() < HERD {
        anyhow::ensure!(time::Instant::now() < deadline, "{} of {HERD} watches were opened", open());
        time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn watch(lab: &Lab, home: usize, watched: Watched) {
    let Some(apis) = &lab.apis else { return };
    let path = watched.path(&lab.namespace);
    let watcher = &apis.masters[home].0;
    let (mut version, mut since, mut hop) = (0, lab.clock.now_ms(), home);
    if watched == Watched::ConfigMaps {
        lab.lock().told.entry(watcher.clone()).or_default();
    }
    loop {
        let (via, api) = &apis.masters[hop % apis.masters.len()];
        let opened = if version == 0 { list(lab, watcher, watched, api, &path, &mut version).await } else { Ok(()) };
        let lines = match opened {
            Ok(()) => api.watch(&path, version, PATIENCE).await,
            Err(refusal) => Err(refusal),
        };
        match lines {
            Ok(mut lines) => {
                match watched {
                    Watched::ConfigMaps => lab.note(Probe::Watch, via, since, None, None),
                    Watched::Quiet => lab.note(Probe::Herd, via, since, None, None),
                    Watched::Pods | Watched::ReplicaSets => {}
                }
                while let Some(Ok(line)) = lines.next().await {
                    let Ok(event) = serde_json::from_str::<Value>(&line) else { break };
                    if !tell(lab, watcher, watched, &event, &mut version) {
                        break;
                    }
                }
                since = lab.clock.now_ms();
            }
            Err(refusal) => {
                if refusal.code == Some(410) {
                    lab.lock().relists += 1;
                    version = 0;
                }
                time::sleep(RETRY).await;
            }
        }
        hop += 1;
    }
}

/// What is there before a watch, and the version from which the watch goes on.
async fn list(
    lab: &Lab,
    watcher: &str,
    watched: Watched,
    api: &Api,
    path: &str,
    version: &mut u64,
) -> Result<(), Refusal> {
    let list = api.get(path, PATIENCE).await?;
    let of = |object: &Value| object["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok();
    *version = of(&list).unwrap_or(0);
    if watched == Watched::ConfigMaps {
        let items = list["items"].as_array().into_iter().flatten();
        let named = items.filter_map(|item| Some((item["metadata"]["name"].as_str()?.to_owned(), of(item)?)));
        let mut found: Vec<(String, u64)> = named.filter(|(name, _)| name.starts_with("object-")).collect();
        found.sort_by_key(|(_, version)| *version);
        // A list that follows one that was too old begins anew: it is counted as such.
        lab.lock().told.insert(watcher.to_owned(), found);
    }
    Ok(())
}

/// Notes one event; whether the watch can go on.
fn tell(lab: &Lab, watcher: &str, watched: Watched, event: &Value, version: &mut u64) -> bool {
    let object = &event["object"];
    let metadata = &object["metadata"];
    if event["type"] == "ERROR" {
        if object["code"] == 410 {
            lab.lock().relists += 1;
            *version = 0;
        }
        return false;
    }
    if let Some(newer) = metadata["resourceVersion"].as_str().and_then(|text| text.parse().ok()) {
        *version = newer;
    }
    let name = metadata["name"].as_str().unwrap_or_default();
    let done = match watched {
        Watched::ConfigMaps => {
            if event["type"] == "ADDED" && name.starts_with("object-") {
                lab.lock().told.entry(watcher.to_owned()).or_default().push((name.to_owned(), *version));
            }
            return true;
        }
        Watched::Pods => Some(name).filter(|_| object["spec"]["nodeName"].is_string()),
        Watched::ReplicaSets => metadata["ownerReferences"][0]["name"].as_str(),
        Watched::Quiet => return true,
    };
    if let (Some(done), "ADDED" | "MODIFIED") = (done, event["type"].as_str().unwrap_or_default()) {
        let now = lab.clock.now_ms();
        lab.lock().done.entry(done.to_owned()).or_insert(now);
    }
    true
}

fn pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {LABEL: namespace},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "none", "image": "drill.invalid/none"}],
        },
    })
}

/// Without pods: what is measured is the controller alone.
fn deployment(name: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "none", "image": "drill.invalid/none"}]},
            },
        },
    })
}

/// Makes what pods of the run need: a namespace, and a node that exists in the API alone, so
/// that no container is ever started. Sweeps up after drills that were killed.
///
/// # Errors
/// When the API refuses.
pub(super) async fn prepare(lab: &Lab) -> Result<()> {
    let Some(Apis { endpoint, .. }) = &lab.apis else { return Ok(()) };
    sweep(endpoint).await.context("cannot remove what an earlier drill left")?;
    let name = &lab.namespace;
    let metadata = json!({"name": name, "labels": {LABEL: name}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
    endpoint.create("/api/v1/namespaces", &namespace, PATIENCE).await.context("cannot make a namespace")?;
    let taints = json!([{"key": LABEL, "effect": "NoSchedule"}]);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
    endpoint.create("/api/v1/nodes", &node, PATIENCE).await.context("cannot make a node")?;
    let room = json!({"cpu": "1000", "memory": "1000Gi", "pods": "100000"});
    let ready = json!([{"type": "Ready", "status": "True", "reason": "Drill"}]);
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": ready}});
    let path = format!("/api/v1/nodes/{name}/status");
    endpoint.merge(&path, &status, PATIENCE).await.context("cannot make the node ready")?;
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    let deadline = lab.clock.now_ms() + PATIENCE.as_secs_f64() * 1e3;
    while let Err(refusal) = endpoint.get(&account, PATIENCE).await {
        if lab.clock.now_ms() > deadline {
            return Err(refusal).context("the namespace has no service account: do controllers act?");
        }
        time::sleep(RETRY).await;
    }
    Ok(())
}

/// Removes every namespace and node that drills have made, and returns when they are gone.
///
/// # Errors
/// When the API refuses, or they do not go.
pub(super) async fn sweep(endpoint: &Api) -> Result<()> {
    const SWEEP_PATIENCE: Duration = Duration::from_secs(30);
    let deadline = time::Instant::now() + SWEEP_PATIENCE;
    loop {
        let mut left = 0;
        for kind in ["namespaces", "nodes"] {
            let path = format!("/api/v1/{kind}");
            let list = endpoint.get(&format!("{path}?labelSelector={LABEL}"), PATIENCE).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                left += 1;
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                if item["metadata"]["deletionTimestamp"].is_null() {
                    if kind == "namespaces" {
                        let pods = format!("{path}/{name}/pods?gracePeriodSeconds=0");
                        endpoint.delete(&pods, PATIENCE).await?;
                    }
                    endpoint.delete(&format!("{path}/{name}"), PATIENCE).await?;
                }
            }
        }
        if left == 0 {
            return Ok(());
        }
        anyhow::ensure!(time::Instant::now() < deadline, "{left} namespaces and nodes of drills do not go");
        time::sleep(Duration::from_millis(50)).await;
    }
}
