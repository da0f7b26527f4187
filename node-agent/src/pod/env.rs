//! Environment variables, and references to them in commands and arguments.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use quorate_proto::quantity::Quantity;
use serde_json::Value;

use super::spec;

/// Variables in the order in which they are defined.
pub type Variables = Vec<(String, String)>;

/// The data of a ConfigMap or Secret, decoded; `None` when it does not exist.
pub type Data = Option<BTreeMap<String, Vec<u8>>>;

/// What variables take their values from.
pub struct Sources<'a> {
    pub pod: &'a core::Pod,
    pub config_maps: &'a BTreeMap<String, Data>,
    pub secrets: &'a BTreeMap<String, Data>,
    pub services: Variables,
    /// For `status.podIP` and its siblings, which the API may not have yet.
    pub pod_addresses: &'a [String],
    pub node_address: &'a str,
    pub allocatable: Allocatable,
}

/// What limits default to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocatable {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
}

/// Names of the ConfigMaps and the Secrets that a container's variables refer to.
pub fn references(container: &core::Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|source| source.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|source| source.name.clone()));
    }
    (config_maps, secrets)
}

/// The variables of a container.
///
/// # Errors
/// Upstream's text for CreateContainerConfigError.
pub fn variables(container: &core::Container, sources: &Sources<'_>) -> Result<Variables, String> {
    let mut found = Variables::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, data) = if let Some(map) = &source.config_map_ref {
            ("configmap", &map.name, map.optional, sources.config_maps.get(&map.name))
        } else if let Some(secret) = &source.secret_ref {
            ("secret", &secret.name, secret.optional, sources.secrets.get(&secret.name))
        } else {
            continue;
        };
        match data.and_then(Option::as_ref) {
            Some(data) => {
                for (key, value) in data {
                    set(&mut found, format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
                }
            }
            None if optional == Some(true) => {}
            None => return Err(format!("{kind} {name:?} not found")),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), |name| {
                lookup(&found, &sources.services, name)
            })),
            Some(source) => value_from(source, container, sources)?,
        };
        if let Some(value) = value {
            set(&mut found, variable.name.clone(), value);
        }
    }
    // A service's variables never replace the container's own.
    let mut all: Variables =
        sources.services.iter().filter(|(name, _)| found.iter().all(|(own, _)| own != name)).cloned().collect();
    all.extend(found);
    Ok(all)
}

fn set(variables: &mut Variables, name: String, value: String) {
    match variables.iter_mut().find(|(existing, _)| *existing == name) {
        Some((_, existing)) => *existing = value,
        None => variables.push((name, value)),
    }
}

fn lookup(own: &Variables, services: &Variables, name: &str) -> Option<String> {
    own.iter().chain(services).find(|(existing, _)| existing == name).map(|(_, value)| value.clone())
}

fn value_from(
    source: &core::EnvVarSource,
    container: &core::Container,
    sources: &Sources<'_>,
) -> Result<Option<String>, String> {
    if let Some(reference) = &source.config_map_key_ref {
        let data = sources.config_maps.get(&reference.name).and_then(Option::as_ref);
        return of_key(
            "configmap",
            "ConfigMap",
            &reference.name,
            &reference.key,
            reference.optional,
            data,
            sources.pod,
        );
    }
    if let Some(reference) = &source.secret_key_ref {
        let data = sources.secrets.get(&reference.name).and_then(Option::as_ref);
        return of_key("secret", "Secret", &reference.name, &reference.key, reference.optional, data, sources.pod);
    }
    if let Some(reference) = &source.field_ref {
        return field(sources, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        let named = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let container =
            named.and_then(|name| spec::find(sources.pod, name).map(|(container, _)| container)).unwrap_or(container);
        return resource(container, reference, sources.allocatable).map(Some);
    }
    Err("the source of a variable is not supported".to_owned())
}

fn of_key(
    kind: &str,
    title: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    data: Option<&BTreeMap<String, Vec<u8>>>,
    pod: &core::Pod,
) -> Result<Option<String>, String> {
    match data {
        Some(data) => match data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional == Some(true) => Ok(None),
            None => Err(format!("couldn't find key {key} in {title} {}/{name}", spec::namespace(pod))),
        },
        None if optional == Some(true) => Ok(None),
        None => Err(format!("{kind} {name:?} not found")),
    }
}

/// The value of a field for the downward API.
///
/// # Errors
/// When the path names none of the fields that are offered.
pub fn field(sources: &Sources<'_>, path: &str) -> Result<String, String> {
    let pod = sources.pod;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(pod
            .metadata
            .annotations
            .iter()
            .flatten()
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v.clone())
            .unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(pod
            .metadata
            .labels
            .iter()
            .flatten()
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v.clone())
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&pod.metadata.name),
        "metadata.namespace" => text(&pod.metadata.namespace),
        "metadata.uid" => text(&pod.metadata.uid),
        "metadata.labels" => lines(pod.metadata.labels.as_ref()),
        "metadata.annotations" => lines(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "status.hostIP" | "status.hostIPs" => sources.node_address.to_owned(),
        "status.podIP" => sources.pod_addresses.first().cloned().unwrap_or_default(),
        "status.podIPs" => sources.pod_addresses.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['app']` → `app`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// `key="value"` lines, the value escaped as Go does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", Value::String(value.clone()));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

/// The value of a limit or request, in units of the divisor, rounded up.
///
/// # Errors
/// When the resource is none that is offered, or the divisor is no amount.
pub fn resource(
    container: &core::Container,
    reference: &core::ResourceFieldSelector,
    allocatable: Allocatable,
) -> Result<String, String> {
    let resources = container.resources.clone().unwrap_or_default();
    let Some((list, name)) = reference.resource.split_once('.') else {
        return Err(format!("unsupported container resource : {}", reference.resource));
    };
    let amounts = match list {
        "limits" => resources.limits,
        "requests" => resources.requests,
        _ => return Err(format!("unsupported container resource : {}", reference.resource)),
    };
    let amount = amounts.unwrap_or_default().get(name).and_then(|quantity| quantity.0.parse::<Quantity>().ok());
    let divisor = match &reference.divisor {
        Some(divisor) => divisor.0.parse::<Quantity>().map_err(|error| error.to_string())?,
        None => Quantity::ZERO,
    };
    let divisor = if divisor.is_zero() { Quantity::from_units(1) } else { divisor };
    let default = if list == "limits" {
        match name {
            "cpu" => Quantity::from_millis(allocatable.cpu_millis),
            "memory" => Quantity::from_bytes(allocatable.memory_bytes),
            "ephemeral-storage" => Quantity::from_bytes(allocatable.storage_bytes),
            _ => Quantity::ZERO,
        }
    } else {
        Quantity::ZERO
    };
    let amount = amount.unwrap_or(default);
    let (amount, unit) = match name {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    let unit = unit.max(1);
    Ok((amount / unit + i64::from(amount % unit != 0)).to_string())
}

/// Replaces `$(NAME)`; `$$` is a dollar, and unknown names stay as they are.
/// Source: API reference, Container.command.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The variables by which containers find services. Source: services-networking/service.
pub fn of_services<'a>(services: impl Iterator<Item = &'a core::Service>) -> Variables {
    let mut variables = Variables::new();
    for service in services {
        let spec = service.spec.clone().unwrap_or_default();
        let Some(address) = spec.cluster_ip.filter(|address| !address.is_empty() && address != "None") else {
            continue;
        };
        let prefix = service.metadata.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
        let ports = spec.ports.unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        let url = |port: &core::ServicePort| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            format!("{}://{host}:{}", protocol.to_lowercase(), port.port)
        };
        variables.push((format!("{prefix}_SERVICE_HOST"), address.clone()));
        variables.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in &ports {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.push((
                    format!("{prefix}_SERVICE_PORT_{}", name.to_uppercase().replace('-', "_")),
                    port.port.to_string(),
                ));
            }
        }
        variables.push((format!("{prefix}_PORT"), url(first)));
        for port in &ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.push((prefix.clone(), url(port)));
            variables.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), address.clone()));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_replaced() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("a$", "a$"),
            ("$$$(A)", "$1"),
            ("ä$(A)ö", "ä1ö"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    fn resolve(container: Value) -> Result<Variables, String> {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "web", "b": "2\n"}},
            "spec": {"containers": []},
        }))
        .unwrap();
        let data = Some(BTreeMap::from([("key".to_owned(), b"value".to_vec())]));
        let config_maps = BTreeMap::from([("map".to_owned(), data), ("gone".to_owned(), None)]);
        let sources = Sources {
            pod: &pod,
            config_maps: &config_maps,
            secrets: &BTreeMap::new(),
            services: vec![("DB_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())],
            pod_addresses: &["10.244.0.5".to_owned()],
            node_address: "127.0.10.101",
            allocatable: Allocatable { cpu_millis: 2000, memory_bytes: 1 << 30, storage_bytes: 0 },
        };
        variables(&serde_json::from_value(container).unwrap(), &sources)
    }

    #[track_caller]
    fn check(container: Value, expected: Result<&[(&str, &str)], &str>) {
        let found = resolve(container);
        let expected = expected
            .map(|pairs| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Variables>())
            .map_err(str::to_owned);
        assert_eq!(found, expected);
    }

    const SERVICE: (&str, &str) = ("DB_SERVICE_HOST", "10.0.0.1");

    #[test]
    fn values_come_from_their_sources() {
        check(
            json!({"name": "c", "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(DB_SERVICE_HOST)-$(C)"},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "key"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            ]}),
            Ok(&[
                SERVICE,
                ("A", "1"),
                ("B", "1-10.0.0.1-$(C)"),
                ("POD_IP", "10.244.0.5"),
                ("APP", "web"),
                ("KEY", "value"),
                ("CPU", "2"),
                ("MEM", "1024"),
            ]),
        );
        check(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "map"}}]}),
            Ok(&[SERVICE, ("P_key", "value")]),
        );
        check(
            json!({"name": "c", "env": [{"name": "DB_SERVICE_HOST", "value": "own"}]}),
            Ok(&[("DB_SERVICE_HOST", "own")]),
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "gone"}}]}),
            Err("configmap \"gone\" not found"),
        );
        check(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "gone", "optional": true}}]}), Ok(&[SERVICE]));
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "no"}}}]}),
            Err("couldn't find key no in ConfigMap ns/map"),
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no"}}}]}),
            Err("secret \"s\" not found"),
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
            Err("unsupported fieldPath: spec.x"),
        );
    }
}
