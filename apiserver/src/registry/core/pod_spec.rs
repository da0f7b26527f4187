//! The spec of pods, alone and in the templates of workloads.

use std::collections::BTreeSet;

use quorate_proto::quantity::Quantity;
use serde_json::{Value, json};

use super::super::strategy::{child, default_to, items, items_mut, set, text};
use super::super::validation::{Errors, NameRule};

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Modes of files that volumes make up. Source: core/v1 defaults: 0644.
const FILE_MODE: i64 = 0o644;

/// How long a projected token lives, by default.
const TOKEN_SECONDS: i64 = 3600;

/// Sets the defaults of a pod's spec.
pub(in crate::registry) fn default(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "schedulerName", "default-scheduler");
    default_to(spec, "securityContext", json!({}));
    default_to(spec, "terminationGracePeriodSeconds", 30);
    let account = text(spec, "serviceAccountName").to_owned();
    if !account.is_empty() {
        // The field's name of before 1.0 is still written.
        set(spec, "serviceAccount", account);
    } else if !text(spec, "serviceAccount").is_empty() {
        let account = text(spec, "serviceAccount").to_owned();
        set(spec, "serviceAccountName", account);
    }
    let host_network = spec["hostNetwork"] == true;
    for list in LISTS {
        for container in items_mut(spec, list) {
            default_container(container, host_network);
        }
    }
    for volume in items_mut(spec, "volumes") {
        default_volume(volume);
    }
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        default_to(constraint, "nodeAffinityPolicy", "Honor");
        default_to(constraint, "nodeTaintsPolicy", "Ignore");
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    default_to(container, "resources", json!({}));
    let policy = if image_tag(text(container, "image")) == "latest" { "Always" } else { "IfNotPresent" };
    default_to(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        default_to(port, "protocol", "TCP");
        if host_network {
            let number = port["containerPort"].clone();
            default_to(port, "hostPort", number);
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = variable.get_mut("valueFrom").and_then(|source| source.get_mut("fieldRef")) {
            default_to(field, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name) {
            default_to(probe, "timeoutSeconds", 1);
            default_to(probe, "periodSeconds", 10);
            default_to(probe, "successThreshold", 1);
            default_to(probe, "failureThreshold", 3);
            default_handler(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get_mut(name) {
                default_handler(handler);
            }
        }
    }
    // What is limited is requested as much, unless said otherwise.
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for (name, amount) in limits {
        default_to(child(child(container, "resources"), "requests"), &name, amount);
    }
}

fn default_handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        default_to(get, "path", "/");
        default_to(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc") {
        default_to(grpc, "service", "");
    }
}

fn image_tag(image: &str) -> &str {
    let image = match image.split_once('@') {
        Some(_) => return "",
        None => image,
    };
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').map_or("latest", |(_, tag)| tag)
}

fn default_volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |fields| fields.keys().filter(|name| *name != "name").count());
    if sources == 0 {
        default_to(volume, "emptyDir", json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(name) {
            default_to(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        default_to(path, "type", "");
    }
    if let Some(api) = volume.get_mut("downwardAPI") {
        default_field_refs(api);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default_to(token, "expirationSeconds", TOKEN_SECONDS);
            }
            if let Some(api) = source.get_mut("downwardAPI") {
                default_field_refs(api);
            }
        }
    }
}

fn default_field_refs(downward: &mut Value) {
    for item in items_mut(downward, "items") {
        if let Some(field) = item.get_mut("fieldRef") {
            default_to(field, "apiVersion", "v1");
        }
    }
}

/// Checks a pod's spec, which stands at `field`.
pub(in crate::registry) fn validate(spec: &Value, field: &str, errors: &mut Errors) {
    if items(spec, "containers").next().is_none() {
        errors.required(&format!("{field}.containers"), "");
    }
    let volumes = check_volumes(spec, field, errors);
    let mut names = BTreeSet::new();
    for list in LISTS {
        for (index, container) in items(spec, list).enumerate() {
            let field = format!("{field}.{list}[{index}]");
            check_container(container, &field, &volumes, errors);
            if !names.insert(text(container, "name")) {
                errors.duplicate(&format!("{field}.name"), &container["name"]);
            }
        }
    }
    errors.one_of(&format!("{field}.restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    errors.one_of(
        &format!("{field}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    errors.non_negative(&format!("{field}.terminationGracePeriodSeconds"), &spec["terminationGracePeriodSeconds"]);
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds < 1) {
        errors.invalid(
            &format!("{field}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for name in ["nodeName", "serviceAccountName", "hostname", "subdomain"] {
        let value = text(spec, name);
        let rule = if matches!(name, "hostname" | "subdomain") { NameRule::Label } else { NameRule::Subdomain };
        if !value.is_empty() {
            for wrong in rule.check(value) {
                errors.invalid(&format!("{field}.{name}"), &spec[name], wrong);
            }
        }
    }
    for (index, toleration) in items(spec, "tolerations").enumerate() {
        check_toleration(toleration, &format!("{field}.tolerations[{index}]"), errors);
    }
}

fn check_volumes<'a>(spec: &'a Value, field: &str, errors: &mut Errors) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in items(spec, "volumes").enumerate() {
        let field = format!("{field}.volumes[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            errors.required(&format!("{field}.name"), "");
            continue;
        }
        for wrong in NameRule::Label.check(name) {
            errors.invalid(&format!("{field}.name"), &volume["name"], wrong);
        }
        if !names.insert(name) {
            errors.duplicate(&format!("{field}.name"), &volume["name"]);
        }
        let sources = volume.as_object().map_or(0, |fields| fields.keys().filter(|name| *name != "name").count());
        if sources > 1 {
            errors.forbidden(&field, "may not specify more than 1 volume type");
        }
    }
    names
}

fn check_container(container: &Value, field: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.required(&format!("{field}.name"), "");
    } else {
        for wrong in NameRule::Label.check(name) {
            errors.invalid(&format!("{field}.name"), &container["name"], wrong);
        }
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.required(&format!("{field}.image"), "");
    } else if image.trim() != image {
        errors.invalid(&format!("{field}.image"), &container["image"], "must not have leading or trailing whitespace");
    }
    errors.one_of(
        &format!("{field}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    errors.one_of(
        &format!("{field}.terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
    );
    let mut port_names = BTreeSet::new();
    for (index, port) in items(container, "ports").enumerate() {
        let field = format!("{field}.ports[{index}]");
        check_port(&format!("{field}.containerPort"), &port["containerPort"], errors);
        if port["hostPort"].as_i64().unwrap_or(0) != 0 {
            check_port(&format!("{field}.hostPort"), &port["hostPort"], errors);
        }
        errors.one_of(&format!("{field}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        let name = text(port, "name");
        if !name.is_empty() && !port_names.insert(name) {
            errors.duplicate(&format!("{field}.name"), &port["name"]);
        }
    }
    for (index, variable) in items(container, "env").enumerate() {
        if text(variable, "name").is_empty() {
            errors.required(&format!("{field}.env[{index}].name"), "");
        }
        if !text(variable, "value").is_empty() && variable["valueFrom"].is_object() {
            errors.invalid(
                &format!("{field}.env[{index}].valueFrom"),
                &Value::from(""),
                "may not be specified when `value` is not empty",
            );
        }
    }
    let mut paths = BTreeSet::new();
    for (index, mount) in items(container, "volumeMounts").enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.required(&format!("{field}.name"), "");
        } else if !volumes.contains(name) {
            errors.not_found(&format!("{field}.name"), &mount["name"]);
        }
        let path = text(mount, "mountPath");
        if path.is_empty() {
            errors.required(&format!("{field}.mountPath"), "");
        } else if !paths.insert(path) {
            errors.invalid(&format!("{field}.mountPath"), &mount["mountPath"], "must be unique");
        }
    }
    check_resources(&container["resources"], &format!("{field}.resources"), errors);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[name];
        if probe.is_object() {
            check_probe(probe, &format!("{field}.{name}"), name != "readinessProbe", errors);
        }
    }
}

fn check_probe(probe: &Value, field: &str, once: bool, errors: &mut Errors) {
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|name| probe[**name].is_object()).count();
    match handlers {
        0 => errors.required(field, "must specify a handler type"),
        1 => {}
        _ => errors.forbidden(field, "may not specify more than 1 handler type"),
    }
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.non_negative(&format!("{field}.{name}"), &probe[name]);
    }
    if once && probe["successThreshold"].as_i64().is_some_and(|threshold| threshold != 1) {
        errors.invalid(&format!("{field}.successThreshold"), &probe["successThreshold"], "must be 1");
    }
}

fn check_resources(resources: &Value, field: &str, errors: &mut Errors) {
    let amount = |value: &Value| -> Option<Quantity> {
        match value {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.to_string().parse().ok(),
            _ => None,
        }
    };
    for kind in ["limits", "requests"] {
        for (name, value) in resources[kind].as_object().into_iter().flatten() {
            let field = format!("{field}.{kind}[{name}]");
            match amount(value) {
                None => errors.invalid(
                    &field,
                    value,
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                ),
                Some(amount) if amount < Quantity::ZERO => {
                    errors.invalid(&field, value, "must be greater than or equal to 0")
                }
                Some(_) => {}
            }
        }
    }
    for (name, value) in resources["requests"].as_object().into_iter().flatten() {
        let limit = amount(&resources["limits"][name.as_str()]);
        if let (Some(request), Some(limit)) = (amount(value), limit)
            && request > limit
        {
            errors.invalid(
                &format!("{field}.requests"),
                value,
                format_args!("must be less than or equal to {name} limit of {limit}"),
            );
        }
    }
}

/// Checks a port number that must be there.
pub(in crate::registry) fn check_port(field: &str, value: &Value, errors: &mut Errors) {
    match value.as_i64() {
        None => errors.required(field, ""),
        Some(1..=65535) => {}
        Some(_) => errors.invalid(field, value, "must be between 1 and 65535, inclusive"),
    }
}

fn check_toleration(toleration: &Value, field: &str, errors: &mut Errors) {
    errors.one_of(&format!("{field}.operator"), &toleration["operator"], &["Equal", "Exists"]);
    let has_key = !text(toleration, "key").is_empty();
    if !has_key && text(toleration, "operator") != "Exists" {
        errors.invalid(
            &format!("{field}.operator"),
            &toleration["operator"],
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if text(toleration, "operator") == "Exists" && !text(toleration, "value").is_empty() {
        errors.invalid(&format!("{field}.operator"), toleration, "value must be empty when `operator` is 'Exists'");
    }
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !text(toleration, "effect").is_empty() {
        errors.one_of(&format!("{field}.effect"), &toleration["effect"], &effects);
    }
    if !toleration["tolerationSeconds"].is_null() && text(toleration, "effect") != "NoExecute" {
        errors.invalid(
            &format!("{field}.effect"),
            &toleration["effect"],
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Source: concepts, "Pod Quality of Service Classes".
pub(in crate::registry) fn qos_class(spec: &Value) -> &'static str {
    let containers: Vec<&Value> = items(spec, "containers").chain(items(spec, "initContainers")).collect();
    let names = ["cpu", "memory"];
    let amount = |container: &Value, kind: &str, name: &str| -> Option<Quantity> {
        let parsed: Quantity = match &container["resources"][kind][name] {
            Value::String(text) => text.parse().ok()?,
            Value::Number(number) => number.to_string().parse().ok()?,
            _ => return None,
        };
        (parsed > Quantity::ZERO).then_some(parsed)
    };
    let asks = |container: &&Value| {
        names.iter().any(|name| amount(container, "requests", name).or(amount(container, "limits", name)).is_some())
    };
    if !containers.iter().any(asks) {
        return "BestEffort";
    }
    let is_guaranteed = |container: &&Value| {
        names.iter().all(|name| {
            let limit = amount(container, "limits", name);
            limit.is_some() && amount(container, "requests", name).is_none_or(|request| Some(request) == limit)
        })
    };
    if containers.iter().all(is_guaranteed) { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_their_defaults_once() {
        let mut spec = json!({"containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}]});
        default(&mut spec);
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/");
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        let once = spec.clone();
        default(&mut spec);
        assert_eq!(spec, once);
        let mut errors = Errors::default();
        validate(&spec, "spec", &mut errors);
        assert_eq!(errors.texts(), Vec::<String>::new());
    }

    #[test]
    fn only_moving_tags_are_always_pulled() {
        let tag = |image| image_tag(image).to_owned();
        assert_eq!(tag("nginx"), "latest");
        assert_eq!(tag("registry.example:5000/nginx"), "latest");
        assert_eq!(tag("nginx:1.27"), "1.27");
        assert_eq!(tag("nginx@sha256:abc"), "");
    }

    #[track_caller]
    fn check(spec: Value, expected: &str) {
        let mut errors = Errors::default();
        validate(&spec, "spec", &mut errors);
        assert!(errors.texts().iter().any(|text| text.starts_with(expected)), "{:?}", errors.texts());
    }

    #[test]
    fn broken_specs_are_refused() {
        check(json!({}), "spec.containers: Required value");
        check(
            json!({"containers": [{"name": "A", "image": "i"}]}),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label",
        );
        check(json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value");
        check(
            json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        );
        check(
            json!({"containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        );
        check(
            json!({"restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\"",
        );
    }

    #[test]
    fn quality_of_service_follows_from_resources() {
        let spec = |resources: Value| json!({"containers": [{"name": "a", "resources": resources}]});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(qos_class(&spec(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos_class(&spec(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
    }
}
