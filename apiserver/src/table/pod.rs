//! The cells of a pod: what `kubectl get pods` says a pod is doing.

use quorate_proto::gvk::GroupVersionKind;
use serde_json::{Value, json};

use super::look::{Look, items, or, text};
use super::{AGE, Column, NAME, Printer, column, wide};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "How many of the pod's containers are ready."),
    column("Status", "What the pod is doing, in one word."),
    column("Restarts", "How often containers were restarted, and when last."),
    AGE,
    wide("IP", "The pod's address."),
    wide("Node", "The node that the pod was given to."),
    wide("Nominated Node", "The node where the pod preempts others."),
    wide("Readiness Gates", "How many of the pod's readiness gates are true."),
];

pub(super) static PRINTER: Printer = Printer { columns: COLUMNS, cells };

/// What counting over a pod's containers found.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// RFC 3339; empty when nothing was restarted.
    last_restart: String,
}

fn cells(look: &Look<'_>) -> Vec<Value> {
    let summary = summarise(look);
    let restarts = if summary.restarts != 0 && !summary.last_restart.is_empty() {
        format!("{} ({} ago)", summary.restarts, look.since(&summary.last_restart))
    } else {
        summary.restarts.to_string()
    };
    let ip = look.items("status.podIPs").first().map_or(look.text("status.podIP"), |ip| text(ip, "ip"));
    let gates = look.items("spec.readinessGates");
    let gates_text = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates.iter().filter(|gate| look.has_condition(text(gate, "conditionType"))).count();
        format!("{met}/{}", gates.len())
    };
    vec![
        look.name(),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        look.age(),
        json!(or(ip, "<none>")),
        look.or_none("spec.nodeName"),
        look.or_none("status.nominatedNodeName"),
        json!(gates_text),
    ]
}

fn summarise(look: &Look<'_>) -> Summary {
    let phase = look.text("status.phase");
    let gated = look
        .items("status.conditions")
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
    let mut summary = Summary {
        reason: if gated { "SchedulingGated" } else { or(look.text("status.reason"), phase) }.to_owned(),
        ready: 0,
        total: look.count("spec.containers")
            + look.items("spec.initContainers").iter().filter(|init| is_sidecar(init)).count(),
        restarts: 0,
        last_restart: String::new(),
    };
    let mut sidecar_restarts = 0;
    let mut sidecar_last_restart = String::new();
    let initializing = count_init_containers(look, &mut summary, &mut sidecar_restarts, &mut sidecar_last_restart);
    if !initializing || look.has_condition("Initialized") {
        summary.restarts = sidecar_restarts;
        summary.last_restart = sidecar_last_restart;
        count_containers(look, &mut summary);
    }
    if look.is_terminating() && look.text("status.reason") == "NodeLost" {
        summary.reason = "Unknown".to_owned();
    } else if look.is_terminating() && !matches!(phase, "Succeeded" | "Failed") {
        summary.reason = "Terminating".to_owned();
    }
    summary
}

/// Counts over init containers up to the first that is not done; tells whether there is one.
fn count_init_containers(
    look: &Look<'_>,
    summary: &mut Summary,
    sidecar_restarts: &mut i64,
    sidecar_last_restart: &mut String,
) -> bool {
    let specs = look.items("spec.initContainers");
    for (index, status) in look.items("status.initContainerStatuses").iter().enumerate() {
        let sidecar = specs.iter().any(|spec| spec["name"] == status["name"] && is_sidecar(spec));
        let restarts = status["restartCount"].as_i64().unwrap_or_default();
        summary.restarts += restarts;
        keep_later(&mut summary.last_restart, status);
        if sidecar {
            *sidecar_restarts += restarts;
            keep_later(sidecar_last_restart, status);
        }
        let terminated = &status["state"]["terminated"];
        let waiting = text(status, "state.waiting.reason");
        if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or_default() == 0 {
            continue;
        }
        if sidecar && status["started"] == true {
            summary.ready += usize::from(status["ready"] == true);
            continue;
        }
        summary.reason = if terminated.is_object() {
            format!("Init:{}", end_of(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", specs.len())
        };
        return true;
    }
    false
}

fn count_containers(look: &Look<'_>, summary: &mut Summary) {
    let mut has_running = false;
    for status in look.items("status.containerStatuses").iter().rev() {
        summary.restarts += status["restartCount"].as_i64().unwrap_or_default();
        keep_later(&mut summary.last_restart, status);
        let waiting = text(status, "state.waiting.reason");
        let terminated = &status["state"]["terminated"];
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if terminated.is_object() {
            summary.reason = end_of(terminated);
        } else if status["ready"] == true && status["state"]["running"].is_object() {
            has_running = true;
            summary.ready += 1;
        }
    }
    // One container that is done does not end a pod in which another runs.
    if summary.reason == "Completed" && has_running {
        summary.reason = if look.has_condition("Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

/// Why a container ended: its reason, else its signal or exit code.
fn end_of(terminated: &Value) -> String {
    let reason = text(terminated, "reason");
    let number = |name: &str| terminated[name].as_i64().unwrap_or_default();
    if !reason.is_empty() {
        reason.to_owned()
    } else if number("signal") != 0 {
        format!("Signal:{}", number("signal"))
    } else {
        format!("ExitCode:{}", number("exitCode"))
    }
}

/// Keeps the later of `last` and the end of the container's previous run. Both are in
/// the server's own notation, whose order as text is the order in time.
fn keep_later(last: &mut String, status: &Value) {
    let finished = text(status, "lastState.terminated.finishedAt");
    if finished > last.as_str() {
        *last = finished.to_owned();
    }
}

/// An init container that keeps running beside the others.
fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// Rows of finished pods say so: `kubectl` may leave them out.
pub(super) fn row_conditions(gvk: &GroupVersionKind, pod: &Value) -> Option<Value> {
    if gvk.kind != "Pod" || !gvk.group.is_empty() {
        return None;
    }
    let (reason, message) = match text(pod, "status.phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// The names of a pod template's containers, their images and its labels.
pub(super) static TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        column("Containers", "Names of the template's containers."),
        column("Images", "Images of the template's containers."),
        column("Pod Labels", "The labels that pods of this template have."),
    ],
    cells: |look| {
        let join = |field: &str| -> Value {
            json!(
                items(look.object, "template.spec.containers")
                    .iter()
                    .map(|own| text(own, field))
                    .collect::<Vec<_>>()
                    .join(",")
            )
        };
        vec![look.name(), join("name"), join("image"), json!(super::look::labels(look.at("template.metadata.labels")))]
    },
};
