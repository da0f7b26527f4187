//! Decisions as tables, and random clusters against a second, slower opinion.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quorate_proto::object::Object;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::cycle::{Core, Outcome, Step};
use super::framework::{Cluster, Context, Decider, Decision};
use super::node::{NodeInfo, node};
use super::pod::{PodInfo, pod, pod_named};
use super::preemption;

fn decide(nodes: &[NodeInfo], pod: &PodInfo) -> Result<String, String> {
    let namespaces = BTreeMap::from([("other".to_owned(), BTreeMap::from([("team".to_owned(), "b".to_owned())]))]);
    let mut image_nodes: HashMap<String, usize> = HashMap::new();
    for image in nodes.iter().flat_map(|node| node.facts.images.keys()) {
        *image_nodes.entry(image.clone()).or_default() += 1;
    }
    let cluster = Cluster { nodes, image_nodes: &image_nodes, namespaces: &namespaces };
    let context = Context::new(pod, cluster);
    match Decider::default().decide(&context) {
        Decision::Node(index) => Ok(nodes[index].name().to_owned()),
        Decision::Nowhere(diagnosis) => Err(diagnosis.message(pod, &preemption::outlook(&context, &diagnosis))),
    }
}

#[track_caller]
fn goes(nodes: &[NodeInfo], spec: Value, expected: &str) {
    assert_eq!(decide(nodes, &pod(spec.clone())).as_deref(), Ok(expected), "{spec}");
}

/// `expected` is what stands before the claims and the preemption.
#[track_caller]
fn refused(nodes: &[NodeInfo], spec: Value, expected: &str) {
    let message = decide(nodes, &pod(spec.clone())).expect_err("no node fits");
    assert_eq!(message.split(". no new claims").next(), Some(expected), "{spec}");
}

fn requests(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "web", "resources": {"requests": {"cpu": cpu}}}]})
}

fn with_pods(mut node: NodeInfo, pods: Vec<PodInfo>) -> NodeInfo {
    for pod in pods {
        node.add_pod(Arc::new(pod));
    }
    node
}

fn taint(key: &str, effect: &str) -> Value {
    json!({"taints": [{"key": key, "effect": effect}]})
}

#[test]
fn nobody_is_there() {
    assert_eq!(decide(&[], &pod(json!({}))), Err("no nodes available to schedule pods".to_owned()));
}

#[test]
fn messages_are_those_of_kubernetes() {
    let nodes = [node("a", json!({})), node("b", taint("k", "NoSchedule")), node("c", taint("k", "NoExecute"))];
    let message = decide(&nodes, &pod(requests("5"))).unwrap_err();
    assert_eq!(
        message,
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). no new claims to deallocate, \
         preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
    let full = [with_pods(node("a", json!({})), vec![pod_named("default", "x", requests("3"))])];
    let message = decide(&full, &pod(requests("2"))).unwrap_err();
    assert_eq!(
        message,
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
         preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    let mut urgent = requests("2");
    urgent["priority"] = json!(10);
    let message = decide(&full, &pod(urgent.clone())).unwrap_err();
    assert!(message.contains("1 node(s) could make room by preemption, which is not supported yet"), "{message}");
    urgent["preemptionPolicy"] = json!("Never");
    let message = decide(&full, &pod(urgent)).unwrap_err();
    assert!(message.ends_with("preemption: not eligible due to preemptionPolicy=Never."), "{message}");
}

#[test]
fn resources() {
    let small = || node("a", json!({"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}));
    goes(&[small()], requests("1"), "a");
    refused(&[small()], requests("1001m"), "0/1 nodes are available: 1 Insufficient cpu");
    let greedy = json!({"containers": [{"name": "c", "resources": {
        "requests": {"cpu": "2", "memory": "2Gi", "ephemeral-storage": "1", "example.com/gpu": "1"}}}]});
    refused(
        &[with_pods(small(), vec![pod_named("default", "x", json!({}))])],
        greedy,
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient ephemeral-storage, 1 Insufficient example.com/gpu, \
         1 Insufficient memory, 1 Too many pods",
    );
    let full = with_pods(
        node("a", json!({"allocatable": {"cpu": "1", "pods": "9"}})),
        vec![pod_named("d", "x", requests("3"))],
    );
    goes(&[full], json!({}), "a");
}

#[test]
fn taints_and_cordons() {
    let cordoned = || {
        node(
            "a",
            json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
        )
    };
    refused(&[cordoned()], json!({}), "0/1 nodes are available: 1 node(s) were unschedulable");
    goes(
        &[cordoned()],
        json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}),
        "a",
    );
    let nodes = [node("a", taint("k", "NoSchedule")), node("b", taint("k", "PreferNoSchedule")), node("c", json!({}))];
    goes(&nodes, json!({}), "c");
    goes(&nodes[..2], json!({}), "b");
    refused(&nodes[..1], json!({}), "0/1 nodes are available: 1 node(s) had untolerated taint(s)");
    goes(&nodes[..1], json!({"tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]}), "a");
}

#[test]
fn selectors_and_affinity_to_nodes() {
    let nodes = [node("a", json!({"labels": {"disk": "hdd"}})), node("b", json!({"labels": {"disk": "ssd"}}))];
    let miss = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector";
    goes(&nodes, json!({"nodeSelector": {"disk": "ssd"}}), "b");
    refused(&nodes, json!({"nodeSelector": {"disk": "tape"}}), miss);
    let affinity = |kind: &str, value: Value| json!({"affinity": {"nodeAffinity": {kind: value}}});
    let expression =
        |operator: &str| json!({"matchExpressions": [{"key": "disk", "operator": operator, "values": ["hdd"]}]});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    goes(&nodes, affinity(required, json!({"nodeSelectorTerms": [expression("NotIn")]})), "b");
    goes(&nodes, affinity(required, json!({"nodeSelectorTerms": [{}, expression("In")]})), "a");
    refused(&nodes, affinity(required, json!({"nodeSelectorTerms": [{}]})), miss);
    goes(&nodes, affinity(preferred, json!([{"weight": 1, "preference": expression("NotIn")}])), "b");
    goes(&nodes, affinity(preferred, json!([{"weight": 1, "preference": expression("In")}])), "a");
    refused(
        &nodes,
        json!({"nodeName": "z"}),
        "0/2 nodes are available: 2 node(s) didn't match the requested node name",
    );
}

#[test]
fn host_ports() {
    let port = |ip: &str, protocol: &str, port: i32| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": port, "hostIP": ip, "protocol": protocol}]}]});
    let taken = || [with_pods(node("a", json!({})), vec![pod_named("default", "x", port("10.0.0.1", "TCP", 80))])];
    let miss = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports";
    refused(&taken(), port("", "TCP", 80), miss);
    refused(&taken(), port("10.0.0.1", "TCP", 80), miss);
    goes(&taken(), port("10.0.0.2", "TCP", 80), "a");
    goes(&taken(), port("", "UDP", 80), "a");
    goes(&taken(), port("", "TCP", 81), "a");
}

#[test]
fn affinity_between_pods() {
    let zone = |name: &str, zone: &str| node(name, json!({"labels": {"zone": zone}}));
    let rule = |kind: &str, namespaces: Value| {
        let mut term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
        for (key, value) in namespaces.as_object().unwrap() {
            term[key] = value.clone();
        }
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    };
    let web = |namespace: &str| pod_named(namespace, "w", json!({"labels": {"app": "web"}}));
    let nodes = |namespace: &str| [with_pods(zone("a", "1"), vec![web(namespace)]), zone("b", "1"), zone("c", "2")];
    let (near, far) = ("podAffinity", "podAntiAffinity");
    let near_miss = "0/3 nodes are available: 3 node(s) didn't match pod affinity rules";
    goes(&nodes("default"), rule(far, json!({})), "c");
    goes(&nodes("default")[1..], rule(far, json!({})), "b");
    refused(
        &nodes("default")[..2],
        rule(far, json!({})),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules",
    );
    goes(&nodes("default")[..2], rule(near, json!({})), "b");
    refused(&nodes("other"), rule(near, json!({})), near_miss);
    goes(&nodes("other")[..2], rule(near, json!({"namespaces": ["other"]})), "b");
    goes(&nodes("other")[..2], rule(near, json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})), "b");
    refused(&nodes("other"), rule(near, json!({"namespaceSelector": {"matchLabels": {"team": "c"}}})), near_miss);
    // The first of a group that wants its own company starts anywhere that has the label.
    let mut first = rule(near, json!({}));
    first["labels"] = json!({"app": "web"});
    goes(&[node("x", json!({})), zone("c", "2")], first, "c");
    let mut loner = rule(far, json!({}));
    loner["labels"] = json!({"app": "other"});
    let lonely = [with_pods(zone("a", "1"), vec![pod_named("default", "l", loner)]), zone("b", "1"), zone("c", "2")];
    goes(&lonely, json!({"labels": {"app": "web"}}), "c");
    refused(
        &lonely[..2],
        json!({"labels": {"app": "web"}}),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules",
    );
    let wish = |kind: &str| {
        json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm":
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}}]}}})
    };
    goes(&nodes("default"), wish(far), "c");
    goes(&[zone("c", "2"), nodes("default")[0].clone()], wish(near), "a");
}

#[test]
fn spread_over_zones() {
    let zone = |name: &str, zone: &str, pods: usize| {
        let pods =
            (0..pods).map(|index| pod_named("default", &format!("{name}-{index}"), json!({"labels": {"app": "web"}})));
        with_pods(node(name, json!({"labels": {"zone": zone}})), pods.collect())
    };
    let spread = |more: Value| {
        let mut constraint = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        for (key, value) in more.as_object().unwrap() {
            constraint[key] = value.clone();
        }
        json!({"labels": {"app": "web"}, "topologySpreadConstraints": [constraint]})
    };
    let nodes = [zone("a", "1", 2), zone("b", "2", 1)];
    goes(&nodes, spread(json!({})), "b");
    goes(&nodes[..1], spread(json!({})), "a");
    refused(
        &nodes,
        spread(json!({"minDomains": 3})),
        "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints",
    );
    refused(
        &[node("x", json!({}))],
        spread(json!({})),
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)",
    );
    goes(&nodes, spread(json!({"whenUnsatisfiable": "ScheduleAnyway"})), "b");
    // A tainted zone counts unless the constraint honours taints.
    let mut tainted = zone("c", "3", 0);
    tainted.facts.taints = node("t", taint("k", "NoSchedule")).facts.taints;
    let three = [zone("a", "1", 2), zone("b", "2", 1), tainted];
    refused(
        &three,
        spread(json!({})),
        "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match pod topology spread constraints",
    );
    goes(&three, spread(json!({"nodeTaintsPolicy": "Honor"})), "b");
}

#[test]
fn scores() {
    let busy = with_pods(node("a", json!({})), vec![pod_named("default", "x", requests("3"))]);
    goes(&[busy, node("b", json!({}))], requests("100m"), "b");
    let big = json!([{"names": ["web:latest"], "sizeBytes": 900 << 20}]);
    goes(&[node("a", json!({})), node("b", json!({"images": big}))], requests("100m"), "b");
    let owners = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
    let owned = |name: &str| pod_named("default", name, json!({"ownerReferences": owners}));
    let nodes = [
        with_pods(node("a", json!({})), vec![owned("x")]),
        with_pods(node("b", json!({})), vec![pod_named("d", "y", json!({}))]),
    ];
    goes(&nodes, json!({"ownerReferences": owners}), "b");
}

/// Random clusters: whether the decision agrees with rules written a second time, in the
/// words of the API's documentation and on the JSON itself.
#[test]
fn random_pods_go_where_the_rules_allow() {
    let seed =
        std::env::var("QUORATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("QUORATE_TEST_SEED={seed} cargo test -p quorate-controllers random_pods");
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut placed, mut nowhere) = (0, 0);
    for _ in 0..300 {
        let nodes: Vec<Value> = (0..rng.random_range(1..8)).map(|index| random_node(&mut rng, index)).collect();
        let mut infos: Vec<NodeInfo> = nodes.iter().map(info).collect();
        let mut running: Vec<Vec<Value>> = vec![Vec::new(); nodes.len()];
        for index in 0..30 {
            let spec = random_pod(&mut rng);
            let pod = pod_named("default", &format!("p{index}"), spec.clone());
            let allowed: Vec<usize> = (0..nodes.len()).filter(|at| allows(&nodes[*at], &running[*at], &spec)).collect();
            match decide(&infos, &pod) {
                Ok(name) => {
                    let at = infos.iter().position(|info| info.name() == name).unwrap();
                    assert!(allowed.contains(&at), "seed {seed}: {spec} on {} {:?}", nodes[at], running[at]);
                    infos[at].add_pod(Arc::new(pod));
                    running[at].push(spec);
                    placed += 1;
                }
                Err(message) => {
                    assert!(allowed.is_empty(), "seed {seed}: {spec} fits {:?}: {message}", nodes[allowed[0]]);
                    nowhere += 1;
                }
            }
        }
    }
    assert!(placed > 500 && nowhere > 500, "both kinds happen: {placed} {nowhere}");
}

fn info(value: &Value) -> NodeInfo {
    let object = Object::from_value(value, 1).unwrap();
    NodeInfo::new(super::node::NodeFacts::from_object(&object).unwrap())
}

fn random_node(rng: &mut StdRng, index: usize) -> Value {
    let mut labels = json!({"kubernetes.io/hostname": format!("n{index}")});
    if rng.random_bool(0.7) {
        labels["disk"] = json!((["ssd", "hdd"][rng.random_range(0..2)]));
    }
    let mut spec = json!({"unschedulable": rng.random_bool(0.1)});
    if rng.random_bool(0.4) {
        let effect = ["NoSchedule", "NoExecute", "PreferNoSchedule"][rng.random_range(0..3)];
        spec["taints"] = json!([{"key": "k", "value": (["v", "w"][rng.random_range(0..2)]), "effect": effect}]);
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{index}"), "labels": labels}, "spec": spec,
        "status": {"allocatable": {
            "cpu": format!("{}m", rng.random_range(0..4000)),
            "memory": format!("{}Mi", rng.random_range(0..4000)),
            "pods": rng.random_range(1..10).to_string(),
        }},
    })
}

fn random_pod(rng: &mut StdRng) -> Value {
    let mut container = json!({"name": "c"});
    if rng.random_bool(0.8) {
        container["resources"] = json!({"requests": {
            "cpu": format!("{}m", rng.random_range(0..2000)),
            "memory": format!("{}Mi", rng.random_range(0..2000)),
        }});
    }
    if rng.random_bool(0.2) {
        container["ports"] = json!([{"containerPort": 1, "hostPort": rng.random_range(80..83), "protocol": "TCP"}]);
    }
    let mut spec = json!({"containers": [container]});
    if rng.random_bool(0.3) {
        spec["nodeSelector"] = json!({"disk": (["ssd", "hdd", "tape"][rng.random_range(0..3)])});
    }
    if rng.random_bool(0.4) {
        let mut toleration = json!({"key": "k", "operator": (["Exists", "Equal"][rng.random_range(0..2)])});
        if toleration["operator"] == "Equal" {
            toleration["value"] = json!((["v", "w"][rng.random_range(0..2)]));
        }
        if rng.random_bool(0.5) {
            toleration["effect"] = json!((["NoSchedule", "NoExecute"][rng.random_range(0..2)]));
        }
        spec["tolerations"] = json!([toleration]);
    }
    spec
}

fn amount(value: &Value, suffix: &str) -> i64 {
    value.as_str().map_or(0, |text| text.trim_end_matches(suffix).parse().unwrap())
}

fn allows(node: &Value, running: &[Value], pod: &Value) -> bool {
    let request =
        |pod: &Value, name: &str, suffix: &str| amount(&pod["containers"][0]["resources"]["requests"][name], suffix);
    let fits = |name: &str, suffix: &str| {
        let wanted = request(pod, name, suffix);
        let used: i64 = running.iter().map(|other| request(other, name, suffix)).sum();
        wanted == 0 || wanted + used <= amount(&node["status"]["allocatable"][name], suffix)
    };
    let room = running.len() < usize::try_from(amount(&node["status"]["allocatable"]["pods"], "")).unwrap();
    let port = |pod: &Value| pod["containers"][0]["ports"][0]["hostPort"].as_i64();
    let port_free = port(pod).is_none() || running.iter().all(|other| port(other) != port(pod));
    let selected = pod["nodeSelector"]["disk"].as_str().is_none_or(|disk| node["metadata"]["labels"]["disk"] == disk);
    let tolerated = node["spec"]["taints"].as_array().into_iter().flatten().all(|taint| {
        let toleration = &pod["tolerations"][0];
        let effect_agrees = toleration["effect"].is_null() || toleration["effect"] == taint["effect"];
        let value_agrees = toleration["operator"] == "Exists" || toleration["value"] == taint["value"];
        taint["effect"] == "PreferNoSchedule" || (toleration.is_object() && effect_agrees && value_agrees)
    });
    let cordoned = node["spec"]["unschedulable"] == true;
    fits("cpu", "m") && fits("memory", "Mi") && room && port_free && selected && tolerated && !cordoned
}

struct World {
    core: Core,
    now: Instant,
    revision: u64,
}

impl World {
    fn new() -> Self {
        Self { core: Core::default(), now: Instant::now(), revision: 1 }
    }

    fn node(&mut self, name: &str, cpu: &str) {
        self.revision += 1;
        let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "9"}}});
        let object = Object::from_value(&value, self.revision).unwrap();
        self.core.node_seen(name, Some(&object), self.now).unwrap();
    }

    fn pod(&mut self, name: &str, uid: &str, mut spec: Value, node: &str) {
        self.revision += 1;
        if !node.is_empty() {
            spec["nodeName"] = json!(node);
        }
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "d", "uid": uid}, "spec": spec});
        let object = Object::from_value(&value, self.revision).unwrap();
        self.core.pod_seen(&format!("d/{name}"), Some(&object), self.now).unwrap();
    }

    fn gone(&mut self, name: &str) {
        self.core.pod_seen(&format!("d/{name}"), None, self.now).unwrap();
    }

    fn next(&mut self) -> String {
        match self.core.next(self.now) {
            None => "-".to_owned(),
            Some(Step::Bind { pod, node }) => format!("{} to {node}", pod.name),
            Some(Step::Explain { pod, message }) => format!("{}: {message}", pod.name),
        }
    }

    fn bound(&mut self, name: &str, uid: &str, outcome: Outcome) {
        let mut pod = pod_named("d", name, json!({}));
        pod.uid = uid.to_owned();
        self.core.bound(&pod, outcome, self.now);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += std::time::Duration::from_secs(seconds);
    }
}

#[test]
fn pods_that_are_on_their_way_take_room() {
    let mut world = World::new();
    world.node("a", "2");
    world.pod("p", "1", requests("1500m"), "");
    world.pod("q", "2", requests("1"), "");
    assert_eq!(world.next(), "p to a");
    assert!(world.next().starts_with("q: 0/1 nodes are available: 1 Insufficient cpu."));
    // The binding fails: its room is free again, and both are tried after their pause.
    world.bound("p", "1", Outcome::Failed);
    assert_eq!(world.next(), "-");
    world.pass(1);
    assert_eq!(world.next(), "p to a");
    assert!(world.next().starts_with("q: 0/1"));
    world.gone("p");
    world.pass(2);
    assert_eq!(world.next(), "q to a");
}

#[test]
fn a_late_sight_does_not_schedule_twice() {
    let mut world = World::new();
    world.node("a", "4");
    world.pod("p", "1", requests("1"), "");
    assert_eq!(world.next(), "p to a");
    world.pod("p", "1", requests("1"), "");
    assert_eq!(world.next(), "-");
    world.bound("p", "1", Outcome::Bound);
    world.pod("p", "1", requests("1"), "");
    assert_eq!(world.next(), "-");
    world.pod("p", "1", requests("1"), "a");
    assert_eq!(world.next(), "-");
    world.gone("p");
    world.pod("q", "2", requests("4"), "");
    assert_eq!(world.next(), "q to a");
}

#[test]
fn a_pod_made_anew_is_another_pod() {
    let mut world = World::new();
    world.node("a", "1");
    world.pod("p", "1", requests("1"), "");
    assert_eq!(world.next(), "p to a");
    world.pod("p", "2", requests("1"), "");
    assert_eq!(world.next(), "p to a");
    // The first one's end must not take the second one's place away.
    world.bound("p", "1", Outcome::Gone);
    world.pod("q", "3", requests("1"), "");
    assert!(world.next().starts_with("q: 0/1"));
}

#[test]
fn a_new_reign_starts_from_what_is_visible() {
    let mut world = World::new();
    world.node("a", "1");
    world.pod("p", "1", requests("1"), "");
    world.pod("q", "2", requests("1"), "");
    assert_eq!(world.next(), "p to a");
    assert!(world.next().starts_with("q: 0/1"));
    world.core.restart();
    // p's binding was refused with its fence; both are looked at again, at once.
    let first = world.next();
    assert!(first.ends_with("to a"), "{first}");
    assert!(world.next().contains("Insufficient cpu"));
}

#[test]
fn waiting_pods_wake_when_room_appears() {
    let mut world = World::new();
    world.pod("p", "1", requests("1"), "");
    assert_eq!(world.next(), "p: no nodes available to schedule pods");
    world.pass(20);
    world.node("a", "0");
    assert!(world.next().contains("1 Insufficient cpu"));
    world.pass(20);
    world.node("a", "1");
    assert_eq!(world.next(), "p to a");
}

#[test]
fn what_is_not_supported_is_said() {
    let mut world = World::new();
    world.node("a", "1");
    world.pod(
        "p",
        "1",
        json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
        "",
    );
    assert_eq!(world.next(), "p: the pod needs persistent volume claims, which this scheduler does not support yet");
    world.pass(20);
    world.node("b", "1");
    assert_eq!(world.next(), "-");
}
