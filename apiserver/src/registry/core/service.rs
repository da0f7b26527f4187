//! Services. Their addresses come from `registry/allocate.rs`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::strategy::{Strategy, child, default_to, items, items_mut, remove, set, text};
use super::super::validation::{Errors, NameRule, check_labels};

/// How long a client stays with its pod under `ClientIP` affinity. Source: core/v1 defaults.
const AFFINITY_SECONDS: i64 = 10_800;

pub(in crate::registry) struct ServiceStrategy;

impl Strategy for ServiceStrategy {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_to(spec, "sessionAffinity", "None");
        default_to(spec, "type", "ClusterIP");
        if text(spec, "sessionAffinity") == "ClientIP" {
            let config = child(child(spec, "sessionAffinityConfig"), "clientIP");
            default_to(config, "timeoutSeconds", AFFINITY_SECONDS);
        }
        for port in items_mut(spec, "ports") {
            default_to(port, "protocol", "TCP");
            let target = &port["targetPort"];
            if target.is_null() || *target == 0 || *target == "" {
                let number = port["port"].clone();
                set(port, "targetPort", number);
            }
        }
        let kind = text(spec, "type").to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            default_to(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            default_to(spec, "allocateLoadBalancerNodePorts", true);
        }
        if kind != "ExternalName" {
            default_to(spec, "internalTrafficPolicy", "Cluster");
            default_to(spec, "ipFamilyPolicy", "SingleStack");
            default_to(spec, "ipFamilies", json!(["IPv4"]));
            let address = text(spec, "clusterIP").to_owned();
            if !address.is_empty() && spec["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
                set(spec, "clusterIPs", json!([address]));
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"loadBalancer": {}}));
    }

    /// What was allocated stays, unless the client gives it up.
    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        let old = &old["spec"];
        let spec = child(object, "spec");
        let (kind, before) = (text(spec, "type").to_owned(), text(old, "type"));
        if kind == "ExternalName" {
            if before != "ExternalName" && spec["clusterIP"] == old["clusterIP"] {
                for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
                    remove(spec, field);
                }
            }
            return;
        }
        if text(spec, "clusterIP").is_empty() && before != "ExternalName" {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old.get(field) {
                    set(spec, field, value.clone());
                }
            }
        }
        let uses_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
        match (uses_ports(&kind), uses_ports(before)) {
            (true, true) => {
                for port in items_mut(spec, "ports") {
                    if port["nodePort"].as_i64().unwrap_or(0) != 0 {
                        continue;
                    }
                    let same = items(old, "ports")
                        .find(|earlier| earlier["port"] == port["port"] && earlier["protocol"] == port["protocol"]);
                    if let Some(number) = same.and_then(|same| same.get("nodePort")) {
                        set(port, "nodePort", number.clone());
                    }
                }
            }
            (false, true) => {
                for port in items_mut(spec, "ports") {
                    if items(old, "ports").any(|earlier| earlier["nodePort"] == port["nodePort"]) {
                        remove(port, "nodePort");
                    }
                }
                remove(spec, "externalTrafficPolicy");
                remove(spec, "allocateLoadBalancerNodePorts");
            }
            _ => {}
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let kind = text(spec, "type");
        errors.one_of("spec.type", &spec["type"], &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
        errors.one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"]);
        errors.one_of("spec.internalTrafficPolicy", &spec["internalTrafficPolicy"], &["Cluster", "Local"]);
        errors.one_of("spec.externalTrafficPolicy", &spec["externalTrafficPolicy"], &["Cluster", "Local"]);
        check_labels(&spec["selector"], "spec.selector", errors);
        let headless = text(spec, "clusterIP") == "None";
        let count = items(spec, "ports").count();
        if count == 0 && !headless && kind != "ExternalName" {
            errors.required("spec.ports", "");
        }
        if kind == "ExternalName" {
            let name = text(spec, "externalName").trim_end_matches('.');
            if name.is_empty() {
                errors.required("spec.externalName", "");
            } else {
                for wrong in NameRule::Subdomain.check(name) {
                    errors.invalid("spec.externalName", &spec["externalName"], wrong);
                }
            }
        }
        if headless && matches!(kind, "NodePort" | "LoadBalancer") {
            errors.invalid(
                "spec.clusterIPs[0]",
                &spec["clusterIP"],
                format_args!("may not be set to 'None' for {kind} services"),
            );
        }
        check_ports(spec, count, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (new, old) = (&object["spec"], &old["spec"]);
        let has_address = |spec: &Value| !text(spec, "clusterIP").is_empty() && text(spec, "type") != "ExternalName";
        if has_address(new) && has_address(old) && new["clusterIP"] != old["clusterIP"] {
            errors.invalid("spec.clusterIPs[0]", &new["clusterIP"], "may not change once set");
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label1035
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

fn check_ports(spec: &Value, count: usize, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in items(spec, "ports").enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() {
            if count > 1 {
                errors.required(&format!("{field}.name"), "");
            }
        } else {
            for wrong in NameRule::Label.check(name) {
                errors.invalid(&format!("{field}.name"), &port["name"], wrong);
            }
            if !names.insert(name) {
                errors.duplicate(&format!("{field}.name"), &port["name"]);
            }
        }
        super::pod_spec::check_port(&format!("{field}.port"), &port["port"], errors);
        errors.one_of(&format!("{field}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        if port["targetPort"].is_number() {
            super::pod_spec::check_port(&format!("{field}.targetPort"), &port["targetPort"], errors);
        }
        if !numbers.insert((port["port"].as_i64(), text(port, "protocol"))) {
            let value = json!({"protocol": port["protocol"], "port": port["port"]});
            errors.duplicate(&field, &value);
        }
        if text(spec, "type") == "ClusterIP" && port["nodePort"].as_i64().unwrap_or(0) != 0 {
            errors.forbidden(&format!("{field}.nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
}
