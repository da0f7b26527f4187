//! Endpoints, EndpointSlices and Events: what controllers and agents report.

use serde_json::Value;

use super::super::strategy::{Strategy, default_to, items, items_mut, text};
use super::super::validation::Errors;

/// How many endpoints one slice may hold. Source: discovery/v1.
const ENDPOINTS_LIMIT: usize = 1000;

pub(in crate::registry) struct EndpointsStrategy;
pub(in crate::registry) struct EndpointSliceStrategy;
pub(in crate::registry) struct EventStrategy;

impl Strategy for EndpointsStrategy {
    fn default(&self, object: &mut Value) {
        for subset in items_mut(object, "subsets") {
            for port in items_mut(subset, "ports") {
                default_to(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (index, subset) in items(object, "subsets").enumerate() {
            for kind in ["addresses", "notReadyAddresses"] {
                for (place, address) in items(subset, kind).enumerate() {
                    let field = format!("subsets[{index}].{kind}[{place}].ip");
                    check_address(&field, &address["ip"], errors);
                }
            }
        }
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }
}

fn check_address(field: &str, value: &Value, errors: &mut Errors) {
    if value.as_str().is_none_or(|text| text.parse::<std::net::IpAddr>().is_err()) {
        errors.invalid(field, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

impl Strategy for EndpointSliceStrategy {
    fn default(&self, object: &mut Value) {
        for port in items_mut(object, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        if text(object, "addressType").is_empty() {
            errors.required("addressType", "");
        } else {
            errors.one_of("addressType", &object["addressType"], &["FQDN", "IPv4", "IPv6"]);
        }
        if items(object, "endpoints").count() > ENDPOINTS_LIMIT {
            errors.too_long("endpoints", ENDPOINTS_LIMIT);
        }
        for (index, endpoint) in items(object, "endpoints").enumerate() {
            let field = format!("endpoints[{index}].addresses");
            if items(endpoint, "addresses").next().is_none() {
                errors.required(&field, "must contain at least 1 address");
            }
            if text(object, "addressType") != "FQDN" {
                for (place, address) in items(endpoint, "addresses").enumerate() {
                    check_address(&format!("{field}[{place}]"), address, errors);
                }
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("addressType", &object["addressType"], &old["addressType"]);
    }
}

impl Strategy for EventStrategy {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        // Cluster-scoped objects have their events in the default namespace.
        let about = if object["regarding"].is_object() { "regarding" } else { "involvedObject" };
        let namespace = text(&object[about], "namespace");
        let own = text(&object["metadata"], "namespace");
        if !namespace.is_empty() && namespace != own {
            errors.invalid(
                &format!("{about}.namespace"),
                &object[about]["namespace"],
                "does not match event.namespace",
            );
        }
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }
}
