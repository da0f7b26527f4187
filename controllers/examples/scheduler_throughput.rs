//! How many pods per second the scheduler's core decides, without an API server:
//! `cargo run --release -p quorate-controllers --example scheduler_throughput`.

use std::time::Duration;

use quorate_controllers::scheduler::cycle::{Core, Outcome, Step};
use quorate_proto::object::Object;
use serde_json::{Value, json};
use tokio::time::Instant;

const NODES: usize = 500;
const PODS: usize = 6000;

fn object(value: &Value, revision: u64) -> Object {
    Object::from_value(value, revision).expect("the value is an object")
}

fn node(index: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{index}"), "labels": {
            "kubernetes.io/hostname": format!("node-{index}"), "topology.kubernetes.io/zone": format!("zone-{}", index % 3)}},
        "spec": {},
        "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "pods": "110"}},
    })
}

fn pod(index: usize, more: &Value) -> Value {
    let mut spec = json!({"schedulerName": "default-scheduler", "containers": [
        {"name": "web", "image": "web", "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}}}]});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("web-{index}"), "namespace": "default", "uid": index.to_string(), "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}]},
        "spec": spec,
    })
}

/// Everything that the core does for a pod: seen, decided, bound, seen on its node.
fn measure(name: &str, more: &Value) {
    let mut core = Core::default();
    let start = Instant::now();
    for index in 0..NODES {
        core.node_seen(&format!("node-{index}"), Some(&object(&node(index), 1)), start).expect("a node");
    }
    let pods: Vec<Object> = (0..PODS).map(|index| object(&pod(index, more), 2)).collect();
    let began = Instant::now();
    for pod in &pods {
        core.pod_seen(&pod.meta().key(), Some(pod), began).expect("a pod");
    }
    let (mut bound, mut deciding) = (0, Duration::ZERO);
    loop {
        let before = Instant::now();
        let step = core.next(before);
        deciding += before.elapsed();
        match step {
            Some(Step::Bind { pod, .. }) => {
                core.bound(&pod, Outcome::Bound, began);
                bound += 1;
            }
            Some(Step::Explain { pod, message }) => panic!("{} has no node: {message}", pod.name),
            None => break,
        }
    }
    let rate = |time: Duration| bound as f64 / time.as_secs_f64();
    println!(
        "{name}: {bound} pods on {NODES} nodes, {:.0} pods/s, {:.0} decisions/s",
        rate(began.elapsed()),
        rate(deciding)
    );
}

fn main() {
    measure("plain", &json!({}));
    let selector = json!({"matchLabels": {"app": "web"}});
    let spread = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]);
    measure("spread over zones", &json!({"topologySpreadConstraints": spread}));
}
