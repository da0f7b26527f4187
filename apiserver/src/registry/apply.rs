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
