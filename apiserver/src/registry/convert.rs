//! Kinds that are served in more than one group or version but stored in one.

use std::sync::Arc;

use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::{Map, Value, json};

use crate::schema::{ResourceDef, resource, resources};

/// The resource in whose version objects of `def` are stored.
pub(super) fn storage_def(def: &'static ResourceDef) -> &'static ResourceDef {
    let stored = match (def.group, def.version, def.resource) {
        ("events.k8s.io", _, "events") => resource("", "v1", "events"),
        ("autoscaling", "v1", "horizontalpodautoscalers") => resource("autoscaling", "v2", "horizontalpodautoscalers"),
        _ => None,
    };
    stored.unwrap_or(def)
}

/// A stored object as `def` serves it.
///
/// # Errors
/// When the stored object is of a version that is no longer known.
pub(crate) fn from_storage(def: &'static ResourceDef, object: Arc<Object>) -> Result<Arc<Object>, Status> {
    let gvk = object.gvk();
    if gvk.group == def.group && gvk.version == def.version {
        return Ok(object);
    }
    let value = value_from_storage(def, object.value().as_ref().clone());
    let converted = Object::from_value(&value, object.revision()).map_err(Status::internal)?;
    Ok(Arc::new(converted))
}

/// A stored value as `def` serves it.
pub(super) fn value_from_storage(def: &ResourceDef, mut value: Value) -> Value {
    if value["apiVersion"] == def.api_version() {
        return value;
    }
    match def.resource {
        "events" if def.group == "events.k8s.io" => rename_event(&mut value, &EVENT_FIELDS),
        "horizontalpodautoscalers" => downgrade_autoscaler(&mut value),
        _ => {}
    }
    value["apiVersion"] = def.api_version().into();
    value
}

/// What a client sent for `def`, as it is stored.
pub(super) fn value_to_storage(def: &'static ResourceDef, mut value: Value) -> Value {
    let stored = storage_def(def);
    if std::ptr::eq(stored, def) {
        return value;
    }
    match def.resource {
        "events" => {
            let fields = EVENT_FIELDS.map(|(core, events)| (events, core));
            rename_event(&mut value, &fields);
        }
        "horizontalpodautoscalers" => upgrade_autoscaler(&mut value),
        _ => {}
    }
    value["apiVersion"] = stored.api_version().into();
    value
}

/// An object of `def` as the same resource has it in another version, if that is served.
pub(super) fn to_version(
    def: &'static ResourceDef,
    value: &Value,
    api_version: &str,
) -> Option<(&'static ResourceDef, Value)> {
    let stored = storage_def(def);
    let is_that = |other: &ResourceDef| other.resource == def.resource && other.api_version() == api_version;
    let other = resources().iter().find(|other| is_that(other) && std::ptr::eq(storage_def(other), stored))?;
    Some((other, value_from_storage(other, value_to_storage(def, value.clone()))))
}

/// The same fields in core/v1 and in events.k8s.io/v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("source", "deprecatedSource"),
];

fn rename_event(value: &mut Value, fields: &[(&str, &str)]) {
    let Some(object) = value.as_object_mut() else { return };
    for (from, to) in fields {
        rename(object, from, to);
    }
}

fn rename(object: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = object.remove(from) {
        object.insert(to.to_owned(), value);
    }
}

/// autoscaling/v1 to v2: the one target becomes the first metric.
fn upgrade_autoscaler(value: &mut Value) {
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(target) = spec.remove("targetCPUUtilizationPercentage")
    {
        let metric = json!({"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}});
        spec.insert("metrics".to_owned(), json!([metric]));
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut)
        && let Some(current) = status.remove("currentCPUUtilizationPercentage")
    {
        let metric =
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": current}}});
        status.insert("currentMetrics".to_owned(), json!([metric]));
    }
}

/// autoscaling/v2 to v1: only the target for CPU utilization has a place there.
fn downgrade_autoscaler(value: &mut Value) {
    let cpu = |metrics: Option<Value>, field: &str| {
        metrics?
            .as_array()?
            .iter()
            .filter(|metric| metric["resource"]["name"] == "cpu")
            .find_map(|metric| metric["resource"][field].get("averageUtilization").cloned())
    };
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("behavior");
        if let Some(target) = cpu(spec.remove("metrics"), "target") {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), target);
        }
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
        if let Some(current) = cpu(status.remove("currentMetrics"), "current") {
            status.insert("currentCPUUtilizationPercentage".to_owned(), current);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_the_same_in_both_groups() {
        let def = resource("events.k8s.io", "v1", "events").unwrap();
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod"}, "note": "started", "deprecatedCount": 2});
        let stored = value_to_storage(def, event.clone());
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(stored["involvedObject"]["kind"], "Pod");
        assert_eq!(stored["message"], "started");
        assert_eq!(value_from_storage(def, stored), event);
    }

    #[test]
    fn an_autoscaler_keeps_its_cpu_target_through_v1() {
        let def = resource("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let autoscaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let stored = value_to_storage(def, autoscaler.clone());
        assert_eq!(stored["apiVersion"], "autoscaling/v2");
        assert_eq!(stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(value_from_storage(def, stored), autoscaler);
    }
}
