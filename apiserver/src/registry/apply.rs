//! The verb patch with an applied configuration: creates what is not there, changes
//! what is, and keeps account of who owns what.

use quorate_proto::status::{Status, StatusCause};
use serde_json::{Value, json};

use super::context::RequestContext;
use super::ownership::{self, Ownership};
use super::strategy::{set, text};
use super::subresources::scale_object;
use super::update::{ATTEMPTS, Written, check_identity, check_subresource};
use super::{Registry, Target};
use crate::apply::applied;
use crate::schema::Verb;

/// What a client applies.
#[derive(Clone, Debug)]
pub struct Apply {
    /// A part of an object, as the client wrote it.
    pub config: Value,
    /// Takes over what others own.
    pub force: bool,
    /// Why this client may not create what is not there.
    pub create_refusal: Option<Status>,
}

impl Registry {
    /// Applies a configuration.
    pub(super) async fn apply(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        apply: &Apply,
    ) -> Result<Written, Status> {
        check_subresource(target, Verb::Patch)?;
        let scope = || {
            ownership::scope(context, target)
                .ok_or_else(|| Status::internal(format!("{} has no schema", target.def.group_resource())))
        };
        let of_scale = target.subresource == "scale";
        let of_parent = if of_scale { Some(scaled(target, &apply.config)?) } else { None };
        let config = of_parent.as_ref().unwrap_or(&apply.config);
        let make = |current: &Value| {
            let object = applied(&scope()?, Some(current), config, apply.force)?;
            check_identity(target, &object)?;
            Ok(object)
        };
        for _ in 0..ATTEMPTS {
            match self.change(context, target, &make, Ownership::Given).await {
                Err(status) if status.is_not_found() && target.subresource.is_empty() => {}
                outcome => {
                    let object = outcome?;
                    let object = if of_scale { scale_object(&object)? } else { object };
                    return Ok(Written { object, created: false });
                }
            }
            if let Some(refusal) = &apply.create_refusal {
                return Err(refusal.clone());
            }
            let object = applied(&scope()?, None, config, apply.force)?;
            check_identity(target, &object)?;
            check_uid(target, &object)?;
            match self.create_owned(context, target, object, Ownership::Given).await {
                // Somebody else has created it meanwhile.
                Err(status) if status.is_already_exists() => {}
                outcome => return Ok(Written { object: outcome?, created: true }),
            }
        }
        Err(Status::modified(target.def.group, target.def.resource, target.name))
    }
}

/// Who names a uid means an object that was there.
fn check_uid(target: Target<'_>, object: &Value) -> Result<(), Status> {
    let uid = text(&object["metadata"], "uid");
    if uid.is_empty() {
        return Ok(());
    }
    let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
    Err(Status::conflict(target.def.group, target.def.resource, target.name, &why))
}

/// An applied Scale as a configuration of what it scales.
fn scaled(target: Target<'_>, scale: &Value) -> Result<Value, Status> {
    let mut config = json!({"apiVersion": target.def.api_version(), "kind": target.def.kind, "metadata": {}});
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        if let Some(value) = scale["metadata"].get(field) {
            set(&mut config["metadata"], field, value.clone());
        }
    }
    let replicas = &scale["spec"]["replicas"];
    if !replicas.is_null() {
        if replicas.as_i64().is_some_and(|count| count < 0) {
            let cause = StatusCause {
                reason: "FieldValueInvalid".to_owned(),
                message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                field: "spec.replicas".to_owned(),
            };
            return Err(Status::invalid("autoscaling", "Scale", target.name, vec![cause]));
        }
        config["spec"] = json!({"replicas": replicas});
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::PatchBody;
    use super::super::testing::{World, def, target};
    use super::*;
    use crate::schema::resource;

    fn of(world: &World, manager: &str) -> RequestContext {
        RequestContext { field_manager: manager.to_owned(), ..world.context.clone() }
    }

    fn apply(config: Value, force: bool) -> PatchBody {
        PatchBody::Apply(Apply { config, force, create_refusal: None })
    }

    impl World {
        async fn patched(&self, manager: &str, target: Target<'_>, patch: PatchBody) -> Result<Value, Status> {
            let written = self.registry.patch(&of(self, manager), target, &patch).await?;
            Ok(written.object.value().as_ref().clone())
        }
    }

    /// `manager operation subresource version` of every entry, sorted, and its fields.
    fn owners(object: &Value) -> Vec<(String, Value)> {
        let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        let mut owners: Vec<(String, Value)> = entries
            .map(|entry| {
                let words = ["manager", "operation", "subresource", "apiVersion"].map(|name| text(entry, name));
                (words.join(" "), entry["fieldsV1"].clone())
            })
            .collect();
        owners.sort_by(|a, b| a.0.cmp(&b.0));
        owners
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn parts_have_owners_of_their_own() {
        let world = World::start().await;
        let pods = def("", "pods");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        world.registry.create(&of(&world, "creator"), target(pods, ""), pod).await.unwrap();
        let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
        let bind = Target { subresource: "binding", ..target(pods, "p") };
        world.registry.create_subresource(&of(&world, "scheduler"), bind, binding).await.unwrap();
        let status = Target { subresource: "status", ..target(pods, "p") };
        let running = PatchBody::Merge(json!({"status": {"phase": "Running"}}));
        let pod = world.patched("kubelet", status, running).await.unwrap();
        let owners = owners(&pod);
        assert_eq!(owners[0].0, "creator Update  v1");
        assert_eq!(owners[1], ("kubelet Update status v1".to_owned(), json!({"f:status": {"f:phase": {}}})));
        assert_eq!(owners.len(), 2, "nobody owns what the scheduler's binding wrote");
        let created = &owners[0].1;
        assert!(created["f:spec"]["f:containers"][r#"k:{"name":"c"}"#]["f:imagePullPolicy"].is_object(), "{created}");
        assert!(created.get("f:status").is_none() && created["f:spec"].get("f:nodeName").is_none(), "{created}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_scale_is_a_part_too() {
        let world = World::start().await;
        let web = target(def("apps", "deployments"), "web");
        let scale = Target { subresource: "scale", ..web };
        let deployment = |replicas: u8| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
        };
        world.patched("x", web, apply(deployment(1), false)).await.unwrap();
        let three = PatchBody::Merge(json!({"spec": {"replicas": 3}}));
        assert_eq!(world.patched("scaler", scale, three).await.unwrap()["spec"]["replicas"], 3);
        let conflict = world.patched("x", web, apply(deployment(1), false)).await.unwrap_err();
        let expected = "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas";
        assert_eq!(conflict.message, expected);
        let two = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 2}});
        let conflict = world.patched("other", scale, apply(two.clone(), false)).await.unwrap_err();
        assert_eq!(conflict.message, expected);
        assert_eq!(world.patched("other", scale, apply(two, true)).await.unwrap()["spec"]["replicas"], 2);
        let deployment = world.registry.get(web, "").await.unwrap();
        let owners = owners(deployment.value());
        assert_eq!(owners[0].0, "other Apply scale apps/v1");
        assert_eq!(owners[0].1, json!({"f:spec": {"f:replicas": {}}}));
        assert_eq!(owners[1].0, "x Apply  apps/v1");
        assert_eq!(owners.len(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_changes_in_one_version_changes_hands_in_all() {
        let world = World::start().await;
        let autoscalers =
            |version: &str| target(resource("autoscaling", version, "horizontalpodautoscalers").unwrap(), "h");
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "metrics": [metric]}});
        world.patched("x", autoscalers("v2"), apply(autoscaler, false)).await.unwrap();
        let less = PatchBody::Merge(json!({"spec": {"targetCPUUtilizationPercentage": 50}}));
        let changed = world.patched("y", autoscalers("v1"), less).await.unwrap();
        let owners = owners(&changed);
        assert_eq!(owners[0].0, "x Apply  autoscaling/v2");
        assert_eq!(
            owners[0].1,
            json!({"f:spec": {"f:maxReplicas": {}, "f:scaleTargetRef": {"f:kind": {}, "f:name": {}}}})
        );
        assert_eq!(
            owners[1],
            ("y Update  autoscaling/v1".to_owned(), json!({"f:spec": {"f:targetCPUUtilizationPercentage": {}}}))
        );
    }
}
