//! Columns of everything else: networking, access, leases, admission, flow control, devices.

use serde_json::{Value, json};

use super::core::selector_at;
use super::look::{Look, at, items, or, plain, text};
use super::{AGE, NAME, Printer, column, integer, wide};

pub(super) fn printer(group: &str, resource: &str) -> Option<&'static Printer> {
    Some(match (group, resource) {
        ("networking.k8s.io", "ingresses") => &INGRESS,
        ("networking.k8s.io", "ingressclasses") => &INGRESS_CLASS,
        ("networking.k8s.io", "networkpolicies") => &NETWORK_POLICY,
        ("networking.k8s.io", "ipaddresses") => &IP_ADDRESS,
        ("networking.k8s.io", "servicecidrs") => &SERVICE_CIDR,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &ROLE_BINDING,
        ("certificates.k8s.io", "certificatesigningrequests") => &SIGNING_REQUEST,
        ("coordination.k8s.io", "leases") => &LEASE,
        ("scheduling.k8s.io", "priorityclasses") => &PRIORITY_CLASS,
        ("node.k8s.io", "runtimeclasses") => &RUNTIME_CLASS,
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            &WEBHOOKS
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => &ADMISSION_POLICY,
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => &ADMISSION_BINDING,
        ("apiregistration.k8s.io", "apiservices") => &API_SERVICE,
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => &FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => &PRIORITY_LEVEL,
        ("resource.k8s.io", "resourceclaims") => &RESOURCE_CLAIM,
        ("resource.k8s.io", "resourceslices") => &RESOURCE_SLICE,
        ("resource.k8s.io", "deviceclasses" | "resourceclaimtemplates") => &NAME_AND_AGE,
        _ => return None,
    })
}

static NAME_AND_AGE: Printer = Printer { columns: &[NAME, AGE], cells: |look| vec![look.name(), look.age()] };

static INGRESS: Printer = Printer {
    columns: &[
        NAME,
        column("Class", "The class of controllers that serves it."),
        column("Hosts", "The host names it is for."),
        column("Address", "Where it is reached."),
        column("Ports", "The ports it is reached at."),
        AGE,
    ],
    cells: |look| {
        let hosts: Vec<&str> =
            look.items("spec.rules").iter().map(|rule| text(rule, "host")).filter(|host| !host.is_empty()).collect();
        let hosts = match hosts.len() {
            0 => "*".to_owned(),
            1..=3 => hosts.join(","),
            more => format!("{} + {} more...", hosts[..3].join(","), more - 3),
        };
        let addresses: Vec<&str> = look
            .items("status.loadBalancer.ingress")
            .iter()
            .map(|ingress| or(text(ingress, "ip"), text(ingress, "hostname")))
            .collect();
        vec![
            look.name(),
            look.or_none("spec.ingressClassName"),
            json!(hosts),
            json!(addresses.join(",")),
            json!(if look.count("spec.tls") > 0 { "80, 443" } else { "80" }),
            look.age(),
        ]
    },
};

static INGRESS_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "Who serves ingresses of this class."),
        column("Parameters", "Where the controller's parameters are."),
        AGE,
    ],
    cells: |look| {
        let kind = look.text("spec.parameters.kind");
        let name = look.text("spec.parameters.name");
        let parameters = match (kind, look.text("spec.parameters.apiGroup")) {
            ("", _) => "<none>".to_owned(),
            (kind, "") => format!("{kind}/{name}"),
            (kind, group) => format!("{kind}.{group}/{name}"),
        };
        vec![look.name(), json!(look.text("spec.controller")), json!(parameters), look.age()]
    },
};

static NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, column("Pod-Selector", "The labels of the pods it is for."), AGE],
    cells: |look| vec![look.name(), selector_at(look, "spec.podSelector"), look.age()],
};

static IP_ADDRESS: Printer = Printer {
    columns: &[NAME, column("ParentRef", "Who uses the address."), AGE],
    cells: |look| {
        let parts = ["group", "resource", "namespace", "name"]
            .map(|part| look.at("spec.parentRef")[part].as_str().unwrap_or_default());
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let resource = if look.text("spec.parentRef.group").is_empty() {
            parts.join("/")
        } else {
            format!("{}.{}", parts[0], parts[1..].join("/"))
        };
        vec![look.name(), json!(or(&resource, "<none>")), look.age()]
    },
};

static SERVICE_CIDR: Printer = Printer {
    columns: &[NAME, column("CIDRs", "The ranges that services get addresses from."), AGE],
    cells: |look| {
        let ranges: Vec<String> = look.items("spec.cidrs").iter().map(plain).collect();
        vec![look.name(), json!(ranges.join(",")), look.age()]
    },
};

static ROLE_BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("Role", "The role that is given."),
        AGE,
        wide("Users", "The users who get it."),
        wide("Groups", "The groups that get it."),
        wide("ServiceAccounts", "The service accounts that get it."),
    ],
    cells: |look| {
        let of_kind = |kind: &str| -> Value {
            let names: Vec<String> = look
                .items("subjects")
                .iter()
                .filter(|subject| subject["kind"] == kind)
                .map(|subject| match kind {
                    "ServiceAccount" => format!("{}/{}", text(subject, "namespace"), text(subject, "name")),
                    _ => text(subject, "name").to_owned(),
                })
                .collect();
            json!(names.join(", "))
        };
        let role = format!("{}/{}", look.text("roleRef.kind"), look.text("roleRef.name"));
        vec![look.name(), json!(role), look.age(), of_kind("User"), of_kind("Group"), of_kind("ServiceAccount")]
    },
};

static SIGNING_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        column("SignerName", "Who is asked to sign."),
        column("Requestor", "Who asks."),
        column("RequestedDuration", "For how long the certificate should be valid."),
        column("Condition", "What has been decided."),
    ],
    cells: |look| {
        let duration = match look.at("spec.expirationSeconds").as_i64() {
            Some(seconds) => super::human_duration(seconds),
            None => "<none>".to_owned(),
        };
        let has = |kind: &str| look.items("status.conditions").iter().any(|condition| condition["type"] == kind);
        let mut condition = if has("Denied") {
            "Denied".to_owned()
        } else if has("Approved") {
            "Approved".to_owned()
        } else {
            "Pending".to_owned()
        };
        if has("Failed") {
            condition.push_str(",Failed");
        }
        if !look.text("status.certificate").is_empty() {
            condition.push_str(",Issued");
        }
        vec![
            look.name(),
            look.age(),
            json!(or(look.text("spec.signerName"), "<none>")),
            json!(look.text("spec.username")),
            json!(duration),
            json!(condition),
        ]
    },
};

static LEASE: Printer = Printer {
    columns: &[NAME, column("Holder", "Who holds the lease."), AGE],
    cells: |look| vec![look.name(), json!(look.text("spec.holderIdentity")), look.age()],
};

static PRIORITY_CLASS: Printer = Printer {
    columns: &[
        NAME,
        integer("Value", "The priority of the class's pods."),
        column("Global-Default", "Whether pods without a class get this one."),
        AGE,
        column("PreemptionPolicy", "Whether the class's pods may displace others."),
    ],
    cells: |look| {
        vec![
            look.name(),
            json!(look.integer("value")),
            json!(look.at("globalDefault").as_bool().unwrap_or_default().to_string()),
            look.age(),
            json!(or(look.text("preemptionPolicy"), "PreemptLowerPriority")),
        ]
    },
};

static RUNTIME_CLASS: Printer = Printer {
    columns: &[NAME, column("Handler", "The runtime's own name of the class."), AGE],
    cells: |look| vec![look.name(), json!(look.text("handler")), look.age()],
};

static WEBHOOKS: Printer = Printer {
    columns: &[NAME, integer("Webhooks", "How many webhooks there are."), AGE],
    cells: |look| vec![look.name(), json!(look.count("webhooks")), look.age()],
};

static ADMISSION_POLICY: Printer = Printer {
    columns: &[
        NAME,
        integer("Validations", "How many expressions there are."),
        column("ParamKind", "The kind of the policy's parameters."),
        AGE,
    ],
    cells: |look| {
        let kind = look.at("spec.paramKind");
        let kind = if kind.is_object() {
            format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind"))
        } else {
            "<unset>".to_owned()
        };
        vec![look.name(), json!(look.count("spec.validations")), json!(kind), look.age()]
    },
};

static ADMISSION_BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("PolicyName", "The policy that is bound."),
        column("ParamRef", "The parameters that it gets."),
        AGE,
    ],
    cells: |look| {
        let reference = look.at("spec.paramRef");
        let reference = match (text(reference, "namespace"), text(reference, "name")) {
            _ if !reference.is_object() => "<unset>".to_owned(),
            ("", name) => or(name, "*").to_owned(),
            (namespace, name) => format!("{namespace}/{}", or(name, "*")),
        };
        vec![look.name(), json!(look.text("spec.policyName")), json!(reference), look.age()]
    },
};

static API_SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Service", "Who serves the group and version."),
        column("Available", "Whether it answers."),
        AGE,
    ],
    cells: |look| {
        let service = match look.text("spec.service.name") {
            "" => "Local".to_owned(),
            name => format!("{}/{name}", look.text("spec.service.namespace")),
        };
        let condition = look.items("status.conditions").iter().find(|condition| condition["type"] == "Available");
        let available = match condition {
            None => "Unknown".to_owned(),
            Some(condition) if condition["status"] == "True" => "True".to_owned(),
            Some(condition) => format!("{} ({})", text(condition, "status"), text(condition, "reason")),
        };
        vec![look.name(), json!(service), json!(available), look.age()]
    },
};

static FLOW_SCHEMA: Printer = Printer {
    columns: &[
        NAME,
        column("PriorityLevel", "The level of its requests."),
        integer("MatchingPrecedence", "Lower ones are tried first."),
        column("DistinguisherMethod", "What makes requests one flow."),
        AGE,
        column("MissingPL", "Whether its level does not exist."),
    ],
    cells: |look| {
        let dangling = look.items("status.conditions").iter().find(|condition| condition["type"] == "Dangling");
        vec![
            look.name(),
            look.or_none("spec.priorityLevelConfiguration.name"),
            json!(look.integer("spec.matchingPrecedence")),
            look.or_none("spec.distinguisherMethod.type"),
            look.age(),
            json!(dangling.map_or("?", |condition| text(condition, "status"))),
        ]
    },
};

static PRIORITY_LEVEL: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "Whether requests of the level are limited."),
        column("NominalConcurrencyShares", "The level's share of what is served at once."),
        column("Queues", "How many queues there are."),
        column("HandSize", "How many queues a flow may use."),
        column("QueueLengthLimit", "How many requests may wait in a queue."),
        AGE,
    ],
    cells: |look| {
        let field = |value: &Value| json!(or(&plain(value), "<none>"));
        let limited = look.at("spec.limited");
        let shares = if limited.is_object() { limited } else { look.at("spec.exempt") };
        let queuing = at(limited, "limitResponse.queuing");
        vec![
            look.name(),
            json!(look.text("spec.type")),
            field(&shares["nominalConcurrencyShares"]),
            field(&queuing["queues"]),
            field(&queuing["handSize"]),
            field(&queuing["queueLengthLimit"]),
            look.age(),
        ]
    },
};

static RESOURCE_CLAIM: Printer = Printer {
    columns: &[NAME, column("State", "What of the claim has been done."), AGE],
    cells: |look| vec![look.name(), json!(claim_state(look)), look.age()],
};

fn claim_state(look: &Look<'_>) -> String {
    let mut states = Vec::new();
    if look.is_terminating() {
        states.push("deleted");
    }
    if look.at("status.allocation").is_object() {
        states.push("allocated");
    } else if !look.is_terminating() {
        states.push("pending");
    }
    if !items(look.object, "status.reservedFor").is_empty() {
        states.push("reserved");
    }
    states.join(",")
}

static RESOURCE_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("Node", "The node that has the devices."),
        column("Driver", "The driver that offers them."),
        column("Pool", "The pool that they belong to."),
        AGE,
    ],
    cells: |look| {
        vec![
            look.name(),
            json!(or(look.text("spec.nodeName"), "<unset>")),
            json!(look.text("spec.driver")),
            json!(look.text("spec.pool.name")),
            look.age(),
        ]
    },
};
