//! Subresources whose body is another kind: Scale, Binding, Eviction, tokens.

use std::sync::Arc;

use quorate_proto::object::Object;
use quorate_proto::selector::LabelSelector;
use quorate_proto::status::{Status, StatusCause, StatusDetails};
use serde_json::{Value, json};

use super::context::RequestContext;
use super::create::now;
use super::delete::DeleteRequest;
use super::ownership::Ownership;
use super::status::{not_found, not_supported};
use super::strategy::{child, items, remove, set, text};
use super::update::{PatchBody, Written};
use super::{Registry, Target};
use crate::schema::resource;
use crate::watch_cache::Selection;

/// How many evicted pods a disruption budget may wait for. Source: policy strategy.
const MAX_DISRUPTED_PODS: usize = 2_000;

impl Registry {
    /// Answers a POST to a subresource.
    ///
    /// # Errors
    /// As the subresource says; 405 for those that cannot be created.
    pub async fn create_subresource(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        body: Value,
    ) -> Result<Value, Status> {
        if let Some(handler) = self.virtual_resource(target.def, target.subresource) {
            return handler.create(context, target.namespace, target.name, body).await;
        }
        match (target.def.group, target.def.resource, target.subresource) {
            ("", "pods", "binding") => self.bind(context, target, &body).await,
            ("", "pods", "eviction") => self.evict(context, target, &body).await,
            _ => Err(not_supported(target.def, "create")),
        }
    }

    /// Reads a Scale.
    ///
    /// # Errors
    /// As [`Registry::get`].
    pub async fn get_scale(&self, target: Target<'_>) -> Result<Arc<Object>, Status> {
        let object = self.get(Target { subresource: "", ..target }, "").await?;
        scale_object(&object)
    }

    pub(super) async fn update_scale(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        scale: Value,
    ) -> Result<Written, Status> {
        self.change_scale(context, target, &|_| Ok(scale.clone())).await
    }

    pub(super) async fn patch_scale(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        patch: &PatchBody,
    ) -> Result<Written, Status> {
        let make = |scale: &Value| match patch {
            PatchBody::Json(patch) => crate::patch::json(scale, patch),
            // A Scale has no lists of objects: both merges do the same.
            PatchBody::Merge(patch) | PatchBody::Strategic(patch) => crate::patch::merge(scale, patch),
            PatchBody::Apply(_) => Err(Status::internal("an applied configuration is no patch")),
        };
        self.change_scale(context, target, &make).await
    }

    async fn change_scale(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        make: &(dyn Fn(&Value) -> Result<Value, Status> + Send + Sync),
    ) -> Result<Written, Status> {
        if target.def.subresource("scale").is_none() {
            return Err(not_supported(target.def, "scale"));
        }
        let change = |current: &Value| {
            let scale = make(&scale_value(current))?;
            let replicas = match &scale["spec"]["replicas"] {
                Value::Null => 0,
                value => value.as_i64().ok_or_else(|| Status::bad_request("spec.replicas must be an integer"))?,
            };
            if replicas < 0 {
                let cause = StatusCause {
                    reason: "FieldValueInvalid".to_owned(),
                    message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                    field: "spec.replicas".to_owned(),
                };
                return Err(Status::invalid("autoscaling", "Scale", target.name, vec![cause]));
            }
            let mut object = current.clone();
            set(child(&mut object, "spec"), "replicas", replicas);
            let version = text(&scale["metadata"], "resourceVersion");
            if version.is_empty() {
                remove(child(&mut object, "metadata"), "resourceVersion");
            } else {
                set(child(&mut object, "metadata"), "resourceVersion", version);
            }
            Ok(object)
        };
        let object = self.change(context, target, &change, Ownership::Track).await?;
        Ok(Written { object: scale_object(&object)?, created: false })
    }

    /// Assigns a pod to a node, once.
    pub(super) async fn bind(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        binding: &Value,
    ) -> Result<Value, Status> {
        let node = text(&binding["target"], "name");
        let kind = text(&binding["target"], "kind");
        if node.is_empty() {
            let cause = StatusCause {
                reason: "FieldValueRequired".to_owned(),
                message: "Required value".to_owned(),
                field: "target.name".to_owned(),
            };
            return Err(Status::invalid("", "Binding", target.name, vec![cause]));
        }
        if !matches!(kind, "" | "Node") {
            let cause = StatusCause {
                reason: "FieldValueNotSupported".to_owned(),
                message: format!("Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""),
                field: "target.kind".to_owned(),
            };
            return Err(Status::invalid("", "Binding", target.name, vec![cause]));
        }
        let change = |current: &Value| {
            let conflict = |why: String| Err(Status::conflict("", "pods/binding", target.name, &why));
            let uid = text(&binding["metadata"], "uid");
            if !uid.is_empty() && uid != text(&current["metadata"], "uid") {
                return conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    text(&current["metadata"], "uid")
                ));
            }
            if !current["metadata"]["deletionTimestamp"].is_null() {
                return conflict(format!("pod {} is being deleted, cannot be assigned to a host", target.name));
            }
            let assigned = text(&current["spec"], "nodeName");
            if !assigned.is_empty() {
                return conflict(format!("pod {} is already assigned to node {assigned:?}", target.name));
            }
            if items(&current["spec"], "schedulingGates").next().is_some() {
                return conflict(format!("pod {} has non-empty .spec.schedulingGates", target.name));
            }
            let mut pod = current.clone();
            set(child(&mut pod, "spec"), "nodeName", node);
            let annotations = child(child(&mut pod, "metadata"), "annotations");
            for (name, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
                set(annotations, name, value.clone());
            }
            if annotations.as_object().is_some_and(serde_json::Map::is_empty) {
                remove(child(&mut pod, "metadata"), "annotations");
            }
            set_condition(child(&mut pod, "status"), "PodScheduled");
            Ok(pod)
        };
        self.change(context, Target { subresource: "binding", ..target }, &change, Ownership::Keep).await?;
        let status = Status { code: 201, ..Status::success() };
        serde_json::to_value(status).map_err(Status::internal)
    }

    /// Deletes a pod if no disruption budget forbids it.
    async fn evict(&self, context: &RequestContext, target: Target<'_>, eviction: &Value) -> Result<Value, Status> {
        let pod = self.get(Target { subresource: "", ..target }, "").await?;
        let options = &eviction["deleteOptions"];
        let request = DeleteRequest {
            grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
            propagation_policy: options["propagationPolicy"].as_str().map(str::to_owned),
            orphan_dependents: None,
            uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
            resource_version: options["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
        };
        let context = RequestContext {
            dry_run: context.dry_run || items(options, "dryRun").any(|value| value == "All"),
            ..context.clone()
        };
        // A pod that has ended, or never began, serves nobody: no budget counts it.
        let counts = !matches!(text(&pod.value()["status"], "phase"), "Succeeded" | "Failed" | "Pending")
            && !pod.meta().is_terminating();
        if counts {
            self.spend_budget(&context, &pod).await?;
        }
        self.delete(&context, Target { subresource: "", ..target }, &request).await?;
        let status = Status { code: 201, ..Status::success() };
        serde_json::to_value(status).map_err(Status::internal)
    }

    /// Takes one disruption from the budget that covers `pod`, if one does.
    async fn spend_budget(&self, context: &RequestContext, pod: &Object) -> Result<(), Status> {
        let def = resource("policy", "v1", "poddisruptionbudgets")
            .ok_or_else(|| Status::internal("policy/v1 is not served"))?;
        let selection = Selection { namespace: pod.meta().namespace.clone(), ..Selection::default() };
        let budgets = self.cache().of(def)?.list(&selection, "", 0).items;
        let covering: Vec<_> = budgets
            .iter()
            .filter(|budget| {
                let selector = LabelSelector::from_object(&budget.value()["spec"]["selector"]);
                selector.is_ok_and(|selector| selector.matches(&pod.meta().labels))
            })
            .collect();
        let budget = match covering.as_slice() {
            [] => return Ok(()),
            [budget] => budget,
            _ => {
                return Err(Status::failure(
                    500,
                    "InternalError",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let name = budget.meta().name.as_str();
        let target = Target { def, namespace: &pod.meta().namespace, name, subresource: "status" };
        let change = |current: &Value| {
            let refuse = |message: String| {
                let details = StatusDetails {
                    retry_after_seconds: 10,
                    causes: vec![StatusCause { reason: "DisruptionBudget".to_owned(), message, field: String::new() }],
                    ..StatusDetails::default()
                };
                let text = "Cannot evict pod as it would violate the pod's disruption budget.";
                Err(Status::failure(429, "TooManyRequests", text).with_details(details))
            };
            let status = &current["status"];
            let observed = status["observedGeneration"].as_i64().unwrap_or(0);
            if observed < current["metadata"]["generation"].as_i64().unwrap_or(0) {
                return refuse(format!("The disruption budget {name} is still being processed by the server."));
            }
            let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
            let disrupted = status["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
            if allowed <= 0 || disrupted > MAX_DISRUPTED_PODS {
                return refuse(format!(
                    "The disruption budget {name} needs {} healthy pods and has {} currently",
                    status["desiredHealthy"].as_i64().unwrap_or(0),
                    status["currentHealthy"].as_i64().unwrap_or(0)
                ));
            }
            let mut budget = current.clone();
            let status = child(&mut budget, "status");
            set(status, "disruptionsAllowed", allowed - 1);
            set(child(status, "disruptedPods"), &pod.meta().name, now());
            Ok(budget)
        };
        self.change(context, target, &change, Ownership::Keep).await.map(drop)
    }

    /// Answers `POST bindings`: the old path for what `pods/binding` does.
    ///
    /// # Errors
    /// As for `pods/binding`.
    pub async fn create_binding(
        &self,
        context: &RequestContext,
        namespace: &str,
        binding: &Value,
    ) -> Result<Value, Status> {
        let def = resource("", "v1", "pods").ok_or_else(|| Status::internal("pods are not served"))?;
        let name = text(&binding["metadata"], "name");
        if name.is_empty() {
            return Err(not_found(def, name));
        }
        self.bind(context, Target { def, namespace, name, subresource: "binding" }, binding).await
    }
}

/// Adds a condition that holds, or makes it hold.
fn set_condition(status: &mut Value, kind: &str) {
    let condition = json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now()});
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(existing) => *existing = condition,
        None => conditions.push(condition),
    }
    set(status, "conditions", conditions);
}

pub(super) fn scale_object(object: &Object) -> Result<Arc<Object>, Status> {
    Object::from_value(&scale_value(object.value()), object.revision()).map(Arc::new).map_err(Status::internal)
}

/// The Scale of anything that has replicas and a selector.
fn scale_value(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            set(&mut kept, field, value.clone());
        }
    }
    let selector = &object["spec"]["selector"];
    let is_object = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let selector = if is_object {
        LabelSelector::from_object(selector).unwrap_or_default()
    } else {
        // A ReplicationController's selector is the labels themselves.
        LabelSelector::from_object(&json!({"matchLabels": selector})).unwrap_or_default()
    };
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        set(&mut status, "selector", selector.to_string());
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let deployment = json!({"metadata": {"name": "web", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2}});
        let scale = scale_value(&deployment);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=web"}));
        assert_eq!(scale["metadata"], json!({"name": "web", "resourceVersion": "7"}));
        let controller = json!({"metadata": {}, "spec": {"selector": {"app": "old"}}});
        assert_eq!(scale_value(&controller)["status"]["selector"], "app=old");
    }
}
