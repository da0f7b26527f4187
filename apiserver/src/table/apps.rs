//! Columns of workloads: apps, batch, autoscaling, policy and the replication controller.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::core::selector_at;
use super::duration::human_duration;
use super::look::{Look, at, labels, or, plain, text, truth};
use super::{AGE, Column, NAME, Printer, column, integer, wide};

pub(super) fn printer(group: &str, resource: &str) -> Option<&'static Printer> {
    Some(match (group, resource) {
        ("apps", "deployments") => &DEPLOYMENT,
        ("apps", "replicasets") => &REPLICA_SET,
        ("", "replicationcontrollers") => &REPLICATION_CONTROLLER,
        ("apps", "statefulsets") => &STATEFUL_SET,
        ("apps", "daemonsets") => &DAEMON_SET,
        ("apps", "controllerrevisions") => &CONTROLLER_REVISION,
        ("batch", "jobs") => &JOB,
        ("batch", "cronjobs") => &CRON_JOB,
        ("autoscaling", "horizontalpodautoscalers") => &AUTOSCALER,
        ("policy", "poddisruptionbudgets") => &DISRUPTION_BUDGET,
        _ => return None,
    })
}

const CONTAINERS: Column = wide("Containers", "Names of the template's containers.");
const IMAGES: Column = wide("Images", "Images of the template's containers.");
const SELECTOR: Column = wide("Selector", "The labels of the pods that are counted.");
const READY: Column = column("Ready", "How many pods are ready, of how many wanted.");

const TEMPLATE: &str = "spec.template.spec.containers";

static DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        READY,
        integer("Up-to-date", "How many pods follow the newest template."),
        integer("Available", "How many pods have been ready for long enough."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |look| {
        let [containers, images] = look.containers(TEMPLATE);
        vec![
            look.name(),
            json!(format!("{}/{}", look.integer("status.readyReplicas"), look.integer("spec.replicas"))),
            json!(look.integer("status.updatedReplicas")),
            json!(look.integer("status.availableReplicas")),
            look.age(),
            containers,
            images,
            selector_at(look, "spec.selector"),
        ]
    },
};

const REPLICA_COLUMNS: &[Column] = &[
    NAME,
    integer("Desired", "How many pods are wanted."),
    integer("Current", "How many pods there are."),
    integer("Ready", "How many pods are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn replica_cells(look: &Look<'_>, selector: Value) -> Vec<Value> {
    let [containers, images] = look.containers(TEMPLATE);
    vec![
        look.name(),
        json!(look.integer("spec.replicas")),
        json!(look.integer("status.replicas")),
        json!(look.integer("status.readyReplicas")),
        look.age(),
        containers,
        images,
        selector,
    ]
}

static REPLICA_SET: Printer =
    Printer { columns: REPLICA_COLUMNS, cells: |look| replica_cells(look, selector_at(look, "spec.selector")) };

static REPLICATION_CONTROLLER: Printer =
    Printer { columns: REPLICA_COLUMNS, cells: |look| replica_cells(look, json!(labels(look.at("spec.selector")))) };

static STATEFUL_SET: Printer = Printer {
    columns: &[NAME, READY, AGE, CONTAINERS, IMAGES],
    cells: |look| {
        let [containers, images] = look.containers(TEMPLATE);
        let ready = format!("{}/{}", look.integer("status.readyReplicas"), look.integer("spec.replicas"));
        vec![look.name(), json!(ready), look.age(), containers, images]
    },
};

static DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "How many nodes should run a pod."),
        integer("Current", "How many of them do."),
        integer("Ready", "How many of these pods are ready."),
        integer("Up-to-date", "How many pods follow the newest template."),
        integer("Available", "How many pods have been ready for long enough."),
        column("Node Selector", "The labels of the nodes."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |look| {
        let [containers, images] = look.containers(TEMPLATE);
        vec![
            look.name(),
            json!(look.integer("status.desiredNumberScheduled")),
            json!(look.integer("status.currentNumberScheduled")),
            json!(look.integer("status.numberReady")),
            json!(look.integer("status.updatedNumberScheduled")),
            json!(look.integer("status.numberAvailable")),
            json!(labels(look.at("spec.template.spec.nodeSelector"))),
            look.age(),
            containers,
            images,
            selector_at(look, "spec.selector"),
        ]
    },
};

static CONTROLLER_REVISION: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "What this is a revision of."),
        integer("Revision", "The number of the revision."),
        AGE,
    ],
    cells: |look| {
        let owner = look.items("metadata.ownerReferences").iter().find(|owner| owner["controller"] == true);
        let controller = owner.map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let kind = text(owner, "kind").to_lowercase();
                let name = text(owner, "name");
                match text(owner, "apiVersion").split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}/{name}"),
                    None => format!("{kind}/{name}"),
                }
            },
        );
        vec![look.name(), json!(controller), json!(look.integer("revision")), look.age()]
    },
};

static JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the job runs, is complete or has failed."),
        column("Completions", "How many pods succeeded, of how many wanted."),
        column("Duration", "How long the job has taken."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |look| {
        let [containers, images] = look.containers(TEMPLATE);
        vec![
            look.name(),
            json!(job_status(look)),
            json!(job_completions(look)),
            json!(job_duration(look)),
            look.age(),
            containers,
            images,
            selector_at(look, "spec.selector"),
        ]
    },
};

fn job_status(look: &Look<'_>) -> &'static str {
    let condition = |kind| look.has_condition(kind);
    if condition("Complete") {
        "Complete"
    } else if condition("Failed") {
        "Failed"
    } else if look.is_terminating() {
        "Terminating"
    } else if condition("Suspended") {
        "Suspended"
    } else if condition("FailureTarget") {
        "FailureTarget"
    } else if condition("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn job_completions(look: &Look<'_>) -> String {
    let succeeded = look.integer("status.succeeded");
    match look.at("spec.completions").as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match look.integer("spec.parallelism") {
            parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            _ => format!("{succeeded}/1"),
        },
    }
}

fn job_duration(look: &Look<'_>) -> String {
    let start = look.text("status.startTime");
    match (start.parse::<Timestamp>(), look.text("status.completionTime").parse::<Timestamp>()) {
        (Err(_), _) => String::new(),
        (Ok(_), Err(_)) => look.since(start),
        (Ok(start), Ok(end)) => human_duration(end.as_second() - start.as_second()),
    }
}

static CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        column("Schedule", "When jobs are started."),
        column("Timezone", "The time zone of the schedule."),
        column("Suspend", "Whether no jobs are started for now."),
        integer("Active", "How many jobs run."),
        column("Last Schedule", "How long ago a job was started."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |look| {
        let [containers, images] = look.containers("spec.jobTemplate.spec.template.spec.containers");
        let last = match look.text("status.lastScheduleTime") {
            "" => "<none>".to_owned(),
            time => look.since(time),
        };
        vec![
            look.name(),
            json!(look.text("spec.schedule")),
            look.or_none("spec.timeZone"),
            json!(truth(look.at("spec.suspend"))),
            json!(look.count("status.active")),
            json!(last),
            look.age(),
            containers,
            images,
            selector_at(look, "spec.jobTemplate.spec.selector"),
        ]
    },
};

static AUTOSCALER: Printer = Printer {
    columns: &[
        NAME,
        column("Reference", "What is scaled."),
        column("Targets", "Each metric's value, and the value aimed at."),
        column("MinPods", "The least number of pods."),
        column("MaxPods", "The greatest number of pods."),
        integer("Replicas", "How many pods there are."),
        AGE,
    ],
    cells: |look| {
        let reference = format!("{}/{}", look.text("spec.scaleTargetRef.kind"), look.text("spec.scaleTargetRef.name"));
        let least = plain(look.at("spec.minReplicas"));
        vec![
            look.name(),
            json!(reference),
            json!(autoscaler_targets(look)),
            json!(or(&least, "<unset>")),
            json!(look.integer("spec.maxReplicas").to_string()),
            json!(look.integer("status.currentReplicas")),
            look.age(),
        ]
    },
};

/// Metrics of version 2, or the single one of version 1.
fn autoscaler_targets(look: &Look<'_>) -> String {
    if let Some(target) = look.at("spec.targetCPUUtilizationPercentage").as_i64() {
        return match look.at("status.currentCPUUtilizationPercentage").as_i64() {
            Some(current) => format!("cpu: {current}%/{target}%"),
            None => format!("cpu: <unknown>/{target}%"),
        };
    }
    let mut texts: Vec<String> = look
        .items("spec.metrics")
        .iter()
        .enumerate()
        .map(|(index, metric)| {
            metric_text(metric, look.items("status.currentMetrics").get(index).unwrap_or(&Value::Null))
        })
        .collect();
    match texts.len() {
        0 => "<none>".to_owned(),
        1 | 2 => texts.join(", "),
        more => {
            texts.truncate(2);
            format!("{} + {} more...", texts.join(", "), more - 2)
        }
    }
}

fn metric_text(metric: &Value, current: &Value) -> String {
    let kind = text(metric, "type");
    let (first, rest) = kind.split_at(kind.len().min(1));
    let field = format!("{}{rest}", first.to_lowercase());
    let (own, seen) = (&metric[&field], &current[&field]["current"]);
    let percent = at(own, "target.averageUtilization");
    let (seen, target) = if percent.is_null() {
        let name = if at(own, "target.averageValue").is_null() { "value" } else { "averageValue" };
        let average = if name == "averageValue" && kind != "Pods" && kind != "Resource" && kind != "ContainerResource" {
            " (avg)"
        } else {
            ""
        };
        (plain(&seen[name]), format!("{}{average}", plain(&own["target"][name])))
    } else {
        let seen = plain(&seen["averageUtilization"]);
        (if seen.is_empty() { seen } else { format!("{seen}%") }, format!("{}%", plain(percent)))
    };
    let value = format!("{}/{target}", or(&seen, "<unknown>"));
    match kind {
        "Resource" | "ContainerResource" => format!("{}: {value}", text(own, "name")),
        _ => value,
    }
}

static DISRUPTION_BUDGET: Printer = Printer {
    columns: &[
        NAME,
        column("Min Available", "How many pods have to stay."),
        column("Max Unavailable", "How many pods may be missing."),
        integer("Allowed Disruptions", "How many pods may be evicted now."),
        AGE,
    ],
    cells: |look| {
        let amount = |path: &str| json!(or(&plain(look.at(path)), "N/A"));
        vec![
            look.name(),
            amount("spec.minAvailable"),
            amount("spec.maxUnavailable"),
            json!(look.integer("status.disruptionsAllowed")),
            look.age(),
        ]
    },
};
