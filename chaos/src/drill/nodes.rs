//! Drills of nodes: agents stop, as if their machines' network were lost, and containers go on.
//! What the cluster makes of it is asked through the endpoint, over and over.
//!
//! Always: pods of the drill alone say that they tolerate it for two seconds; other pods keep
//! to what they say themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time;

use super::act::Act;
use super::api::{Api, Refusal};
use super::probe::{LABEL, Lab, PATIENCE};
use super::report::{Check, FaultSpan};
use super::run::{ANSWER, BACK_PATIENCE, RunError, Stage, WATCHDOG_SLACK};
use super::scenario::{Scenario, Victim};
use super::target::Target;
use super::watchdog::{Armed, Undo};
use crate::fault::process;

/// Of `images/build.sh`: it needs no registry.
const IMAGE: &str = "quorate.local/web:1";

/// The drill's Deployment and Service, and the label of its pods.
const APP: &str = "web";

/// As `--node-failover fast` gives to pods that say nothing.
const TOLERATION_SECONDS: u32 = 2;

/// How long pods may take to be ready before the fault.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How often the API is asked.
const LOOK: Duration = Duration::from_millis(50);

/// Why `scenario` cannot be done with so many nodes, if so.
pub(super) fn obstacle(scenario: &Scenario, nodes: usize) -> Option<String> {
    let least = scenario.least_nodes();
    (nodes < least).then(|| format!("it needs {least} nodes, and there are {nodes}: start more with --nodes"))
}

/// Every reason why the nodes should not be drilled now.
pub(super) async fn reasons(scenario: &Scenario, target: &Target) -> Vec<String> {
    if scenario.least_nodes() == 0 || obstacle(scenario, target.nodes.len()).is_some() {
        return Vec::new();
    }
    let process = |name: &str| target.node_process(name).map(drop).map_err(|error| format!("{error:#}"));
    match listed(target).await {
        Ok(list) => judge(items(&list), &target.nodes, process),
        Err(error) => vec![format!("the nodes cannot be looked at: {error:#}")],
    }
}

async fn listed(target: &Target) -> Result<Value> {
    let endpoint = Api::connect(&target.kubeconfig, target.endpoint).await?;
    endpoint.get("/api/v1/nodes", ANSWER).await.context("the API does not answer")
}

/// Why `own` nodes should not be drilled, from what the API lists; `process` says why the one of
/// a node cannot be found.
fn judge(listed: &[Value], own: &[String], process: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
    let mut reasons = Vec::new();
    for name in own {
        match listed.iter().find(|node| name_of(node) == name) {
            None => reasons.push(format!("{name} is not registered: look at its log")),
            Some(node) if !is_whole(node) => {
                reasons.push(format!("{name} is not ready or takes no pods: see `kubectl describe node {name}`"));
            }
            Some(node) if !holds_image(node) => {
                reasons.push(format!("{name} does not hold {IMAGE}: start the cluster with --images"));
            }
            Some(_) => {}
        }
        reasons.extend(process(name).err());
    }
    let is_drills = |node: &Value| !node["metadata"]["labels"][LABEL].is_null();
    for node in listed.iter().filter(|node| !is_drills(node)) {
        let name = name_of(node);
        if !own.iter().any(|own| own == name) {
            reasons
                .push(format!("{name} is not run by this cluster's `quorate up`: delete it, or drill another cluster"));
        }
    }
    reasons
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn is_leaving(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Of a node or a pod.
fn is_ready(object: &Value) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether a node is ready, and nothing of its state keeps pods away.
fn is_whole(node: &Value) -> bool {
    let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
    is_ready(node)
        && !taints.any(|taint| taint["key"].as_str().is_some_and(|key| key.starts_with("node.kubernetes.io/")))
}

fn holds_image(node: &Value) -> bool {
    let images = node["status"]["images"].as_array().into_iter().flatten();
    images.flat_map(|image| image["names"].as_array().into_iter().flatten()).any(|name| name == IMAGE)
}

/// Whom a fault hits: first of all those on which pods of the drill live; `homes` has the pods
/// and their nodes.
pub(super) fn victims(victim: Victim, nodes: &[String], homes: &BTreeMap<String, String>) -> Vec<String> {
    let count = if victim == Victim::ManyNodes { too_many(nodes.len()) } else { 1 };
    let (hosts, others): (Vec<&String>, Vec<&String>) =
        nodes.iter().partition(|node| homes.values().any(|home| home == *node));
    hosts.into_iter().chain(others).take(count).cloned().collect()
}

/// The least that is more than a third of so many nodes and the drill's own.
fn too_many(nodes: usize) -> usize {
    (nodes + 1) / 3 + 1
}

/// What is there before the fault.
pub(super) struct Arranged {
    victims: Vec<String>,
    /// Pods of the Deployment, and their nodes.
    homes: BTreeMap<String, String>,
}

fn endpoint(lab: &Lab) -> Result<&Api> {
    Ok(&lab.apis.as_ref().context("nodes are drilled through the API, which does not answer")?.endpoint)
}

/// Makes a Deployment with a pod for each node, and its Service; returns once all are ready and
/// sent to.
///
/// # Errors
/// When that takes too long; `Interrupted` by `stop`.
pub(super) async fn arrange(stage: Stage<'_>) -> Result<Arranged, RunError> {
    let Stage { scenario, target, lab, say, .. } = stage;
    let endpoint = endpoint(lab)?;
    let (namespace, replicas) = (&lab.namespace, target.nodes.len());
    say(&format!("starting {replicas} pods on {replicas} nodes"));
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    endpoint.create(&path, &deployment(replicas), PATIENCE).await.context("cannot make a Deployment")?;
    let path = format!("/api/v1/namespaces/{namespace}/services");
    endpoint.create(&path, &service(), PATIENCE).await.context("cannot make a Service")?;
    let deadline = time::Instant::now() + READY_PATIENCE;
    loop {
        if let Ok(look) = look(lab, endpoint).await {
            let ready = look.pods.iter().filter(|pod| pod.is_ready);
            let homes: BTreeMap<String, String> = ready.map(|pod| (pod.name.clone(), pod.node.clone())).collect();
            if homes.len() >= replicas && homes.values().all(|node| look.serving.contains(node)) {
                return Ok(Arranged { victims: victims(scenario.victim, &target.nodes, &homes), homes });
            }
        }
        if time::Instant::now() > deadline {
            let seconds = READY_PATIENCE.as_secs();
            return Err(anyhow!("the drill's pods were not ready within {seconds} s: look at the nodes' logs").into());
        }
        stage.pause(LOOK).await?;
    }
}

fn deployment(replicas: usize) -> Value {
    let labels = json!({"app": APP});
    let tolerations = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(
        |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}),
    );
    // A wish, no more: while a node is lost, two of its pods share another.
    let apart = json!({"weight": 100, "podAffinityTerm": {
        "labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname",
    }});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": APP},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "tolerations": tolerations,
                    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart]}},
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": APP, "image": IMAGE, "ports": [{"containerPort": 8080}]}],
                },
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": APP},
        "spec": {"selector": {"app": APP}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

/// What the API says at one moment.
#[derive(Debug)]
struct Look {
    /// Nodes that are not ready.
    silent: BTreeSet<String>,
    /// Nodes with an address that the Service sends to, by its slices or its Endpoints.
    serving: BTreeSet<String>,
    pods: Vec<Pod>,
}

/// A pod of the Deployment.
#[derive(Debug)]
struct Pod {
    name: String,
    /// Empty before it is bound.
    node: String,
    /// Running, ready, and not about to go.
    is_ready: bool,
    is_leaving: bool,
}

impl Look {
    fn of(nodes: &Value, slices: &Value, endpoints: &Value, pods: &Value) -> Self {
        let silent = items(nodes).iter().filter(|node| !is_ready(node)).map(|node| name_of(node).to_owned()).collect();
        let flat = |objects: &Value, field: &str| -> Vec<Value> {
            items(objects).iter().flat_map(|object| object[field].as_array().cloned().unwrap_or_default()).collect()
        };
        let mut addresses = flat(slices, "endpoints");
        addresses.retain(|endpoint| endpoint["conditions"]["ready"] == true);
        for subset in flat(endpoints, "subsets") {
            addresses.extend(subset["addresses"].as_array().cloned().unwrap_or_default());
        }
        let serving = addresses.iter().filter_map(|address| Some(address["nodeName"].as_str()?.to_owned())).collect();
        let pods = items(pods).iter().map(|pod| Pod {
            name: name_of(pod).to_owned(),
            node: pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
            is_ready: pod["status"]["phase"] == "Running" && is_ready(pod) && !is_leaving(pod),
            is_leaving: is_leaving(pod),
        });
        Self { silent, serving, pods: pods.collect() }
    }
}

async fn look(lab: &Lab, endpoint: &Api) -> Result<Look, Refusal> {
    let namespace = &lab.namespace;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let endpoints = format!("/api/v1/namespaces/{namespace}/endpoints");
    let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{APP}");
    let (nodes, slices, endpoints, pods) = tokio::try_join!(
        endpoint.get("/api/v1/nodes", ANSWER),
        endpoint.get(&slices, ANSWER),
        endpoint.get(&endpoints, ANSWER),
        endpoint.get(&pods, ANSWER),
    )?;
    Ok(Look::of(&nodes, &slices, &endpoints, &pods))
}

impl Arranged {
    fn is_lost(&self, node: &str) -> bool {
        self.victims.iter().any(|victim| victim == node)
    }

    /// Whether everybody knows that the nodes are silent, and no Service sends to them.
    fn is_withdrawn(&self, look: &Look) -> bool {
        self.victims.iter().all(|node| look.silent.contains(node) && !look.serving.contains(node))
    }

    /// Whether as many new pods as were lost are ready elsewhere.
    fn is_replaced(&self, look: &Look) -> bool {
        let lost = self.homes.values().filter(|node| self.is_lost(node)).count();
        let is_new = |pod: &&Pod| !self.homes.contains_key(&pod.name) && !self.is_lost(&pod.node);
        look.pods.iter().filter(|pod| pod.is_ready).filter(is_new).count() >= lost
    }

    /// Pods of other nodes that went although nothing is wrong with them.
    fn disturbed(&self, look: &Look) -> Vec<String> {
        let stays = |name: &str| look.pods.iter().any(|pod| pod.name == name && !pod.is_leaving);
        let others = self.homes.iter().filter(|(_, node)| !self.is_lost(node));
        others.filter(|(name, _)| !stays(name)).map(|(name, _)| name.clone()).collect()
    }
}

/// What became of the cluster, in seconds since the fault.
#[derive(Debug, Default)]
pub(super) struct Observed {
    withdrawn: Option<f64>,
    replaced: Option<f64>,
    /// When operators were told that evictions are held back.
    alarmed: Option<f64>,
    /// Pods that should have stayed and did not.
    evicted: BTreeSet<String>,
}

impl Observed {
    /// The value of a line of the budget; `None` when it never happened.
    pub(super) fn figure(&self, id: &str) -> Option<f64> {
        match id {
            "F9" => self.withdrawn,
            "F10" => self.replaced,
            "F12 alarm" => self.alarmed,
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            "F12 evicted" => Some(self.evicted.len() as f64),
            _ => None,
        }
    }

    pub(super) fn check(&self) -> Check {
        let named: Vec<&str> = self.evicted.iter().map(String::as_str).collect();
        Check {
            name: "pods that should stay: none is evicted".to_owned(),
            passed: named.is_empty(),
            detail: if named.is_empty() { "none".to_owned() } else { named.join(", ") },
        }
    }
}

/// Stops the agents of all victims at once, watches, lets them go on, and returns once their
/// nodes are ready.
///
/// # Errors
/// When an agent cannot be stopped, or its node does not come back; `Interrupted` by `stop`.
pub(super) async fn lose(stage: Stage<'_>, arranged: &Arranged, act: &mut Act) -> Result<(), RunError> {
    let Stage { scenario, target, settings, lab, say, .. } = stage;
    let endpoint = endpoint(lab)?;
    beat(lab, endpoint).await?;
    let before = Before {
        pods: staying(endpoint, &arranged.victims).await.context("cannot list pods")?,
        alarms: alarms(endpoint).await.context("cannot list events")?,
    };
    let mut identities = Vec::new();
    let mut armed = Vec::new();
    for victim in &arranged.victims {
        let identity = target.node_process(victim)?;
        armed.push(Armed::arm(&settings.binary, Undo::Resume(identity), scenario.observe + WATCHDOG_SLACK)?);
        identities.push(identity);
    }
    let from_ms = lab.clock.now_ms();
    for identity in &identities {
        process::stop(identity.pid)?;
    }
    let (what, names) = (scenario.fault.name(), arranged.victims.join(", "));
    say(&format!("{what} to {names}"));
    let mut observed = match scenario.victim {
        Victim::ManyNodes => follow_many(stage, endpoint, arranged, &before, from_ms).await?,
        _ => follow_one(stage, endpoint, arranged, from_ms).await?,
    };
    for armed in armed {
        armed.undo()?;
    }
    say(&format!("{names} go on"));
    let to_ms = back(stage, endpoint, &arranged.victims).await?;
    say(&format!("{names} ready again, {:.1} s after the fault", (to_ms - from_ms) / 1e3));
    if scenario.victim == Victim::ManyNodes {
        // Nodes come back one after the other; and that nothing was evicted is said by an
        // answer, not by the lack of one.
        let pods = staying(endpoint, &arranged.victims).await.context("cannot list pods")?;
        observed.evicted.extend(gone(&before.pods, &pods));
    }
    let span = |victim: &String| FaultSpan { victim: victim.clone(), what: what.to_owned(), from_ms, to_ms };
    act.spans.extend(arranged.victims.iter().map(span));
    act.nodes = Some(observed);
    Ok(())
}

/// A sign of life of the drill's own node, which has no agent: it must not count among those
/// that fell silent. One lasts longer than any drill of nodes watches.
async fn beat(lab: &Lab, endpoint: &Api) -> Result<()> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let ready = json!([{"type": "Ready", "status": "True", "reason": "Drill", "lastHeartbeatTime": now}]);
    let path = format!("/api/v1/nodes/{}/status", lab.namespace);
    let beaten = endpoint.merge(&path, &json!({"status": {"conditions": ready}}), PATIENCE).await;
    beaten.map(drop).context("cannot write the status of the drill's own node")
}

/// One node is lost: until it is known and made good, or the time is over.
async fn follow_one(stage: Stage<'_>, endpoint: &Api, arranged: &Arranged, from_ms: f64) -> Result<Observed, RunError> {
    let Stage { scenario, lab, .. } = stage;
    let mut observed = Observed::default();
    let end = time::Instant::now() + scenario.observe;
    while time::Instant::now() < end && (observed.withdrawn.is_none() || observed.replaced.is_none()) {
        // After a look that fails comes the next.
        if let Ok(look) = look(lab, endpoint).await {
            let after = (lab.clock.now_ms() - from_ms) / 1e3;
            observed.withdrawn = observed.withdrawn.or_else(|| arranged.is_withdrawn(&look).then_some(after));
            observed.replaced = observed.replaced.or_else(|| arranged.is_replaced(&look).then_some(after));
            observed.evicted.extend(arranged.disturbed(&look));
        }
        stage.pause(LOOK).await?;
    }
    Ok(observed)
}

/// What was there before too many nodes were lost.
struct Before {
    pods: BTreeMap<String, String>,
    alarms: BTreeSet<String>,
}

/// Too many are lost: for the whole time, because what should not happen may happen late.
async fn follow_many(
    stage: Stage<'_>,
    endpoint: &Api,
    arranged: &Arranged,
    before: &Before,
    from_ms: f64,
) -> Result<Observed, RunError> {
    let Stage { scenario, lab, .. } = stage;
    let mut observed = Observed::default();
    let end = time::Instant::now() + scenario.observe;
    while time::Instant::now() < end {
        if let Ok(pods) = staying(endpoint, &arranged.victims).await {
            observed.evicted.extend(gone(&before.pods, &pods));
        }
        if observed.alarmed.is_none()
            && let Ok(alarms) = alarms(endpoint).await
            && !alarms.is_subset(&before.alarms)
        {
            observed.alarmed = Some((lab.clock.now_ms() - from_ms) / 1e3);
        }
        stage.pause(LOOK).await?;
    }
    Ok(observed)
}

/// Pods on `nodes` that are not about to go, whoever made them: namespace and name by uid.
async fn staying(endpoint: &Api, nodes: &[String]) -> Result<BTreeMap<String, String>, Refusal> {
    let paths: Vec<String> =
        nodes.iter().map(|node| format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")).collect();
    let lists = try_join_all(paths.iter().map(|path| endpoint.get(path, ANSWER))).await?;
    let pods = lists.iter().flat_map(items).filter(|pod| !is_leaving(pod));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(pods
        .map(|pod| (text(&pod["metadata"]["uid"]), format!("{}/{}", text(&pod["metadata"]["namespace"]), name_of(pod))))
        .collect())
}

/// The names of pods that were there before and are not now.
fn gone(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    before.iter().filter(|(uid, _)| !now.contains_key(*uid)).map(|(_, name)| name.clone()).collect()
}

/// Events that say that evictions are held back. One that is told again has another version.
async fn alarms(endpoint: &Api) -> Result<BTreeSet<String>, Refusal> {
    let list = endpoint.get("/api/v1/events?fieldSelector=reason%3DEvictionBrake", ANSWER).await?;
    let version = |event: &Value| Some(event["metadata"]["resourceVersion"].as_str()?.to_owned());
    Ok(items(&list).iter().filter_map(version).collect())
}

/// When all nodes are ready again and take pods.
async fn back(stage: Stage<'_>, endpoint: &Api, nodes: &[String]) -> Result<f64, RunError> {
    let deadline = time::Instant::now() + BACK_PATIENCE;
    loop {
        if let Ok(list) = endpoint.get("/api/v1/nodes", ANSWER).await {
            let is_back = |name: &String| items(&list).iter().any(|node| name_of(node) == name && is_whole(node));
            if nodes.iter().all(is_back) {
                return Ok(stage.lab.clock.now_ms());
            }
        }
        if time::Instant::now() > deadline {
            let (names, seconds) = (nodes.join(", "), BACK_PATIENCE.as_secs());
            return Err(anyhow!("{names}: not ready again within {seconds} s: look at the log").into());
        }
        stage.pause(LOOK).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario;
    use super::*;

    fn node(name: &str, ready: &str, taints: &[&str]) -> Value {
        let taints: Vec<Value> = taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        json!({
            "metadata": {"name": name}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}], "images": [{"names": [IMAGE, "other"]}]},
        })
    }

    fn list(items: &[Value]) -> Value {
        json!({"items": items})
    }

    #[test]
    fn nodes_can_be_drilled_when_all_are_well() {
        let own = ["n1".to_owned(), "n2".to_owned()];
        let check = |listed: &[Value], expected: &[&str]| {
            let process = |name: &str| if name == "n9" { Err("n9 does not run".to_owned()) } else { Ok(()) };
            let reasons = judge(listed, &own, process);
            assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
            for (reason, expected) in reasons.iter().zip(expected) {
                assert!(reason.contains(expected), "{reason}");
            }
        };
        let well = node("n1", "True", &["of a user"]);
        check(&[well.clone(), node("n2", "True", &[])], &[]);
        check(std::slice::from_ref(&well), &["n2 is not registered"]);
        check(&[well.clone(), node("n2", "Unknown", &[])], &["n2 is not ready"]);
        check(&[well.clone(), node("n2", "True", &["node.kubernetes.io/unreachable"])], &["takes no pods"]);
        let mut bare = node("n2", "True", &[]);
        bare["status"]["images"] = json!([]);
        check(&[well.clone(), bare], &["--images"]);
        let foreign = node("other", "True", &[]);
        let mut drills = node("drill", "True", &[]);
        drills["metadata"]["labels"] = json!({LABEL: "drill"});
        check(&[well, node("n2", "True", &[]), foreign, drills], &["other is not run by"]);
        assert_eq!(judge(&[node("n9", "True", &[])], &["n9".to_owned()], |_| Err("lost".to_owned())), ["lost"]);
        let mass = scenario::find("mass-node-loss").unwrap();
        assert!(obstacle(mass, 2).is_some_and(|reason| reason.contains("3 nodes")) && obstacle(mass, 3).is_none());
        assert_eq!(obstacle(scenario::find("leader-kill").unwrap(), 0), None);
    }

    #[test]
    fn victims_have_pods_of_the_drill() {
        let check = |victim: Victim, count: usize, homes: &[&str], expected: &[&str]| {
            let nodes: Vec<String> = (1..=count).map(|number| format!("n{number}")).collect();
            let homes = homes.iter().enumerate().map(|(pod, node)| (pod.to_string(), (*node).to_owned())).collect();
            assert_eq!(victims(victim, &nodes, &homes), expected, "{homes:?}");
        };
        check(Victim::Node, 2, &[], &["n1"]);
        check(Victim::Node, 2, &["n2", "n2"], &["n2"]);
        check(Victim::ManyNodes, 3, &["n3", "n2"], &["n2", "n3"]);
        check(Victim::ManyNodes, 4, &["n4"], &["n4", "n1"]);
        check(Victim::ManyNodes, 5, &[], &["n1", "n2", "n3"]);
    }

    fn pod(name: &str, node: &str, ready: &str, leaving: bool) -> Value {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name}, "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        });
        if leaving {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        pod
    }

    fn slices(endpoints: &[(&str, bool)]) -> Value {
        let endpoints: Vec<Value> =
            endpoints.iter().map(|(node, ready)| json!({"nodeName": node, "conditions": {"ready": ready}})).collect();
        list(&[json!({"endpoints": endpoints})])
    }

    #[test]
    fn a_loss_is_known_when_nobody_sends_there_and_made_good_by_new_pods_elsewhere() {
        let arranged = Arranged {
            victims: vec!["n1".to_owned()],
            homes: [("a", "n1"), ("b", "n2")].map(|(pod, node)| (pod.to_owned(), node.to_owned())).into(),
        };
        let check =
            |ready: &str, serving: &[(&str, bool)], old: &[&str], pods: &[Value], expected: (bool, bool, usize)| {
                let nodes = list(&[node("n1", ready, &[]), node("n2", "True", &[])]);
                let old: Vec<Value> = old.iter().map(|node| json!({"nodeName": node})).collect();
                let endpoints =
                    list(&[json!({"subsets": [{"addresses": old, "notReadyAddresses": [{"nodeName": "n1"}]}]})]);
                let look = Look::of(&nodes, &slices(serving), &endpoints, &list(pods));
                let seen = (arranged.is_withdrawn(&look), arranged.is_replaced(&look), arranged.disturbed(&look).len());
                assert_eq!(seen, expected, "{look:?}");
            };
        let (a, b) = (pod("a", "n1", "True", false), pod("b", "n2", "True", false));
        let both = [("n1", true), ("n2", true)];
        check("True", &both, &["n1", "n2"], &[a.clone(), b.clone()], (false, false, 0));
        check("Unknown", &both, &["n2"], &[a.clone(), b.clone()], (false, false, 0));
        let withdrawn = [("n1", false), ("n2", true)];
        check("Unknown", &withdrawn, &["n1", "n2"], &[a.clone(), b.clone()], (false, false, 0));
        check("Unknown", &withdrawn, &["n2"], &[a.clone(), b.clone()], (true, false, 0));
        check("True", &withdrawn, &["n2"], &[a.clone(), b.clone()], (false, false, 0));
        let leaving = pod("a", "n1", "False", true);
        let starting = pod("c", "n2", "False", false);
        check("Unknown", &withdrawn, &["n2"], &[leaving.clone(), b.clone(), starting], (true, false, 0));
        let elsewhere = pod("c", "n2", "True", false);
        check("Unknown", &withdrawn, &["n2"], &[leaving.clone(), b, elsewhere.clone()], (true, true, 0));
        check("Unknown", &withdrawn, &["n2"], &[leaving.clone(), elsewhere.clone()], (true, true, 1));
        let going = pod("b", "n2", "True", true);
        check("Unknown", &withdrawn, &["n2"], &[leaving, going, elsewhere], (true, true, 1));
    }

    #[test]
    fn a_pod_that_is_gone_was_evicted() {
        let pods = |uids: &[&str]| uids.iter().map(|uid| ((*uid).to_owned(), format!("a/{uid}"))).collect();
        assert_eq!(gone(&pods(&["1", "2"]), &pods(&["2", "3"])), ["a/1"]);
        let mut observed = Observed { alarmed: Some(3.5), ..Observed::default() };
        assert_eq!((observed.figure("F12 alarm"), observed.figure("F12 evicted")), (Some(3.5), Some(0.0)));
        assert!(observed.check().passed);
        observed.evicted.insert("a/1".to_owned());
        assert_eq!((observed.figure("F9"), observed.figure("F12 evicted")), (None, Some(1.0)));
        assert_eq!((observed.check().passed, observed.check().detail.as_str()), (false, "a/1"));
    }
}
