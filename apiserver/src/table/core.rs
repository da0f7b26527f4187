//! Columns of the core group.

use serde_json::{Value, json};

use super::look::{Look, at, first_three, items, labels, or, plain, selector, text};
use super::{AGE, Column, ColumnKind, NAME, Printer, column, integer, pod, wide};

pub(super) fn printer(group: &str, resource: &str) -> Option<&'static Printer> {
    Some(match (group, resource) {
        ("", "pods") => &pod::PRINTER,
        ("", "podtemplates") => &pod::TEMPLATE,
        ("", "services") => &SERVICE,
        ("", "nodes") => &NODE,
        ("", "namespaces") => &NAMESPACE,
        ("", "configmaps") => &CONFIG_MAP,
        ("", "secrets") => &SECRET,
        ("", "serviceaccounts") => &SERVICE_ACCOUNT,
        ("", "endpoints") => &ENDPOINTS,
        ("", "resourcequotas") => &RESOURCE_QUOTA,
        ("", "componentstatuses") => &COMPONENT_STATUS,
        ("" | "events.k8s.io", "events") => &EVENT,
        ("discovery.k8s.io", "endpointslices") => &ENDPOINT_SLICE,
        _ => return None,
    })
}

static NAMESPACE: Printer = Printer {
    columns: &[NAME, column("Status", "Whether the namespace is active or terminating."), AGE],
    cells: |look| vec![look.name(), json!(look.text("status.phase")), look.age()],
};

static CONFIG_MAP: Printer = Printer {
    columns: &[NAME, integer("Data", "How many entries there are."), AGE],
    cells: |look| vec![look.name(), json!(look.count("data") + look.count("binaryData")), look.age()],
};

static SECRET: Printer = Printer {
    columns: &[NAME, column("Type", "What the data is for."), integer("Data", "How many entries there are."), AGE],
    cells: |look| vec![look.name(), json!(look.text("type")), json!(look.count("data")), look.age()],
};

static SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, integer("Secrets", "How many secrets the account names."), AGE],
    cells: |look| vec![look.name(), json!(look.count("secrets")), look.age()],
};

static COMPONENT_STATUS: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the component is healthy."),
        column("Message", "What the check answered."),
        column("Error", "Why the check failed."),
    ],
    cells: |look| {
        let condition = look.items("conditions").iter().find(|condition| condition["type"] == "Healthy");
        let (status, message, error) = match condition {
            Some(condition) => {
                let status = if condition["status"] == "True" { "Healthy" } else { "Unhealthy" };
                (status, text(condition, "message"), text(condition, "error"))
            }
            None => ("Unknown", "", ""),
        };
        vec![look.name(), json!(status), json!(message), json!(error)]
    },
};

static SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "How the service is reached."),
        column("Cluster-IP", "The address inside the cluster."),
        column("External-IP", "The addresses outside of it."),
        column("Port(s)", "Ports, with node ports and protocols."),
        AGE,
        wide("Selector", "The labels of the pods behind it."),
    ],
    cells: |look| {
        let cluster_ip =
            look.items("spec.clusterIPs").first().map_or_else(|| look.text("spec.clusterIP").to_owned(), plain);
        vec![
            look.name(),
            json!(look.text("spec.type")),
            json!(or(&cluster_ip, "<none>")),
            json!(external_ip(look)),
            json!(ports(look.items("spec.ports"))),
            look.age(),
            json!(labels(look.at("spec.selector"))),
        ]
    },
};

fn external_ip(look: &Look<'_>) -> String {
    let external: Vec<String> = look.items("spec.externalIPs").iter().map(plain).collect();
    match look.text("spec.type") {
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => external.join(","),
        "LoadBalancer" => {
            let mut all: Vec<String> = look
                .items("status.loadBalancer.ingress")
                .iter()
                .map(|ingress| or(text(ingress, "ip"), text(ingress, "hostname")).to_owned())
                .collect();
            all.extend(external);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => look.text("spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(ports: &[Value]) -> String {
    let texts: Vec<String> = ports
        .iter()
        .map(|port| {
            let (number, protocol) = (plain(&port["port"]), or(text(port, "protocol"), "TCP"));
            match port["nodePort"].as_i64().unwrap_or_default() {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") }
}

static NODE: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the node is ready, and takes new pods."),
        column("Roles", "The roles that labels give the node."),
        AGE,
        column("Version", "The version of the node's agent."),
        wide("Internal-IP", "The address inside the cluster."),
        wide("External-IP", "The address outside of it."),
        wide("OS-Image", "The node's operating system."),
        wide("Kernel-Version", "The node's kernel."),
        wide("Container-Runtime", "What runs the containers, and its version."),
    ],
    cells: |look| {
        let address = |kind: &str| {
            let found = look.items("status.addresses").iter().find(|address| address["type"] == kind);
            json!(found.map_or("<none>", |address| or(text(address, "address"), "<none>")))
        };
        let unknown = |path: &str| json!(or(look.text(path), "<unknown>"));
        vec![
            look.name(),
            json!(node_status(look)),
            json!(node_roles(look)),
            look.age(),
            json!(look.text("status.nodeInfo.kubeletVersion")),
            address("InternalIP"),
            address("ExternalIP"),
            unknown("status.nodeInfo.osImage"),
            unknown("status.nodeInfo.kernelVersion"),
            unknown("status.nodeInfo.containerRuntimeVersion"),
        ]
    },
};

fn node_status(look: &Look<'_>) -> String {
    let ready = look.items("status.conditions").iter().find(|condition| condition["type"] == "Ready");
    let status = match ready {
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if look.at("spec.unschedulable") == true { format!("{status},SchedulingDisabled") } else { status.to_owned() }
}

fn node_roles(look: &Look<'_>) -> String {
    let mut roles: Vec<String> = look
        .at("metadata.labels")
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(label, value)| match label.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            None if label == "kubernetes.io/role" => Some(plain(value)).filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

static ENDPOINTS: Printer = Printer {
    columns: &[NAME, column("Endpoints", "Where the service's traffic goes."), AGE],
    cells: |look| {
        let mut list = Vec::new();
        for subset in look.items("subsets") {
            let ports = items(subset, "ports");
            let addresses = items(subset, "addresses");
            if ports.is_empty() {
                list.extend(addresses.iter().map(|address| text(address, "ip").to_owned()));
            }
            for port in ports {
                list.extend(addresses.iter().map(|address| host_port(text(address, "ip"), &plain(&port["port"]))));
            }
        }
        let shown = if look.count("subsets") == 0 { "<none>".to_owned() } else { first_three(&list) };
        vec![look.name(), json!(shown), look.age()]
    },
};

fn host_port(ip: &str, port: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

static ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("AddressType", "What the addresses are: IPv4, IPv6 or FQDN."),
        column("Ports", "The ports of all endpoints."),
        column("Endpoints", "The addresses."),
        AGE,
    ],
    cells: |look| {
        let ports: Vec<String> =
            look.items("ports").iter().map(|port| or(&plain(&port["port"]), "*").to_owned()).collect();
        let addresses: Vec<String> = look
            .items("endpoints")
            .iter()
            .flat_map(|endpoint| items(endpoint, "addresses").iter().map(plain))
            .collect();
        let unset = |list: &[String]| if list.is_empty() { "<unset>".to_owned() } else { first_three(list) };
        vec![look.name(), json!(look.text("addressType")), json!(unset(&ports)), json!(unset(&addresses)), look.age()]
    },
};

static RESOURCE_QUOTA: Printer = Printer {
    columns: &[
        NAME,
        column("Request", "What is used of what may be requested."),
        column("Limit", "What is used of what limits may add up to."),
        AGE,
    ],
    cells: |look| {
        let mut names: Vec<&String> =
            look.at("status.hard").as_object().into_iter().flat_map(|hard| hard.keys()).collect();
        names.sort_unstable();
        let join = |limits: bool| {
            let texts: Vec<String> = names
                .iter()
                .filter(|name| name.starts_with("limits") == limits)
                .map(|name| {
                    let used = plain(&look.at("status.used")[name.as_str()]);
                    format!("{name}: {}/{}", or(&used, "0"), plain(&look.at("status.hard")[name.as_str()]))
                })
                .collect();
            json!(texts.join(", "))
        };
        vec![look.name(), join(false), join(true), look.age()]
    },
};

/// Core events and those of events.k8s.io, which name the same fields differently.
static EVENT: Printer = Printer {
    columns: &[
        column("Last Seen", "How long ago this happened last."),
        column("Type", "Normal or Warning."),
        column("Reason", "What happened, in one word."),
        column("Object", "What it happened to."),
        wide("Subobject", "Which part of the object."),
        wide("Source", "Who saw it."),
        column("Message", "What happened, for people."),
        wide("First Seen", "How long ago this happened first."),
        Column { name: "Count", kind: ColumnKind::Integer, wide: true, description: "How often this happened." },
        Column { name: "Name", kind: ColumnKind::Name, wide: true, description: "Name of the event." },
    ],
    cells: |look| {
        let either = |one: &str, other: &str| or(look.text(one), look.text(other)).to_owned();
        let involved =
            if look.at("involvedObject").is_object() { look.at("involvedObject") } else { look.at("regarding") };
        let first_time = either("firstTimestamp", "deprecatedFirstTimestamp");
        let first = look.since(or(&first_time, look.text("eventTime")));
        let last_time = either("lastTimestamp", "deprecatedLastTimestamp");
        let mut last = if last_time.is_empty() { first.clone() } else { look.since(&last_time) };
        let mut count = look.integer("count").max(look.integer("deprecatedCount")).max(1);
        if look.at("series").is_object() {
            last = look.since(look.text("series.lastObservedTime"));
            count = look.integer("series.count");
        }
        let kind = text(involved, "kind").to_lowercase();
        let target = match text(involved, "name") {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let source = if look.at("source").is_object() { look.at("source") } else { look.at("deprecatedSource") };
        let component =
            or(text(source, "component"), either("reportingComponent", "reportingController").as_str()).to_owned();
        let host = text(source, "host");
        let source = if host.is_empty() { component } else { format!("{component}, {host}") };
        vec![
            json!(last),
            json!(look.text("type")),
            json!(look.text("reason")),
            json!(target),
            json!(text(involved, "fieldPath")),
            json!(source),
            json!(either("message", "note").trim()),
            json!(first),
            json!(count),
            look.name(),
        ]
    },
};

/// Also used by the other groups: a pod selector in the words of a query.
pub(super) fn selector_at(look: &Look<'_>, path: &str) -> Value {
    json!(selector(at(look.object, path)))
}
