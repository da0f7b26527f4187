//! The verbs update and patch: one optimistic change, tried again when somebody was faster.

use std::sync::Arc;

use quorate_proto::codec;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::apply::Apply;
use super::context::RequestContext;
use super::create::attributes;
use super::ownership::{self, Ownership};
use super::read::parse_revision;
use super::status::{not_found, not_supported, of_storage};
use super::strategy::{self, child, has_generation, remove, set, strategy};
use super::validation::{Errors, check_metadata, check_metadata_update};
use super::{Registry, Target, convert};
use crate::admission::Operation;
use crate::schema::{Verb, apply_defaults, decode};
use crate::storage::{Condition, StorageError, Transaction, Write};

/// How often a change is tried against newer and newer versions. Upstream's number for patches.
pub(super) const ATTEMPTS: usize = 6;

/// A change described instead of a whole object.
#[derive(Clone, Debug)]
pub enum PatchBody {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' merge by keys.
    Strategic(Value),
    /// Server-side apply.
    Apply(Apply),
}

/// What a write left behind.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: Arc<Object>,
    /// The object did not exist before.
    pub created: bool,
}

/// Makes the new object of the current one; both in the version of the request.
pub(super) type Make<'a> = &'a (dyn Fn(&Value) -> Result<Value, Status> + Send + Sync);

impl Registry {
    /// Replaces an object, or the part of it that `target.subresource` names.
    ///
    /// # Errors
    /// `Conflict` when the resourceVersion given is not the newest, `NotFound`, `Invalid`,
    /// `Forbidden`, or a failure of the store.
    pub async fn update(&self, context: &RequestContext, target: Target<'_>, object: Value) -> Result<Written, Status> {
        if target.subresource == "scale" {
            return self.update_scale(context, target, object).await;
        }
        check_identity(target, &object)?;
        check_subresource(target, Verb::Update)?;
        let version = strategy::text(&object["metadata"], "resourceVersion").to_owned();
        let unconditional = matches!(version.as_str(), "" | "0");
        if unconditional && !strategy(target.def).allows_unconditional_update() {
            let cause = quorate_proto::status::StatusCause {
                reason: "FieldValueInvalid".to_owned(),
                message: "Invalid value: 0x0: must be specified for an update".to_owned(),
                field: "metadata.resourceVersion".to_owned(),
            };
            return Err(Status::invalid(target.def.group, target.def.kind, target.name, vec![cause]));
        }
        if !unconditional {
            parse_revision(&version)?;
        }
        let replaced = self.change(context, target, &|_current| Ok(object.clone()), Ownership::Track).await;
        match replaced {
            Err(status)
                if status.is_not_found()
                    && unconditional
                    && target.subresource.is_empty()
                    && strategy(target.def).allows_create_on_update() =>
            {
                let object = self.create(context, target, object).await?;
                Ok(Written { object, created: true })
            }
            outcome => Ok(Written { object: outcome?, created: false }),
        }
    }

    /// Changes an object, or the part of it that `target.subresource` names.
    ///
    /// # Errors
    /// As [`Registry::update`], and when the patch does not fit the object.
    pub async fn patch(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        patch: &PatchBody,
    ) -> Result<Written, Status> {
        if let PatchBody::Apply(apply) = patch {
            return self.apply(context, target, apply).await;
        }
        if target.subresource == "scale" {
            return self.patch_scale(context, target, patch).await;
        }
        check_subresource(target, Verb::Patch)?;
        let mode = context.field_validation;
        let make = |current: &Value| {
            let mut patched = match patch {
                PatchBody::Json(patch) => crate::patch::json(current, patch),
                PatchBody::Merge(patch) => crate::patch::merge(current, patch),
                PatchBody::Strategic(patch) => crate::patch::strategic(current, patch, target.def),
                PatchBody::Apply(_) => Err(Status::internal("an applied configuration is no patch")),
            }?;
            check_identity(target, &patched)?;
            for warning in decode(target.def, &mut patched, mode)? {
                context.warnings.add(warning);
            }
            Ok(patched)
        };
        Ok(Written { object: self.change(context, target, &make, Ownership::Track).await?, created: false })
    }

    /// Makes a change of the newest version, again when somebody else was faster.
    pub(super) async fn change(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        make: Make<'_>,
        ownership: Ownership,
    ) -> Result<Arc<Object>, Status> {
        // Memory first: most of the time it is the newest, and the store says when not.
        let mut current = self.cache().of(target.def)?.get(&target.relative_key());
        let mut is_newest = false;
        for _ in 0..ATTEMPTS {
            let Some(object) = &current else {
                if is_newest {
                    return Err(not_found(target.def, target.name));
                }
                (current, is_newest) = (self.read(target).await?, true);
                continue;
            };
            match self.change_once(context, target, object, make, ownership, is_newest).await {
                Ok(object) => return convert::from_storage(target.def, object),
                Err(Missed::Newer(newer)) => (current, is_newest) = (newer, true),
                // What was wrong with an old version may be right with the newest.
                Err(Missed::Status(_)) if !is_newest => (current, is_newest) = (self.read(target).await?, true),
                Err(Missed::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(target.def.group, target.def.resource, target.name))
    }

    async fn change_once(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        current: &Arc<Object>,
        make: Make<'_>,
        ownership: Ownership,
        is_newest: bool,
    ) -> Result<Arc<Object>, Missed> {
        let def = target.def;
        let strategy = strategy(def);
        let old = convert::value_from_storage(def, current.value().as_ref().clone());
        let mut made = make(&old)?;
        let given = remove(child(&mut made, "metadata"), "managedFields");
        let version = strategy::text(&made["metadata"], "resourceVersion");
        if !matches!(version, "" | "0") && version != old["metadata"]["resourceVersion"] {
            return Err(Missed::Status(Status::modified(def.group, def.resource, target.name)));
        }
        let mut object = merge_part(target, made, &old)?;
        carry_metadata(&mut object, &old, target)?;
        apply_defaults(def, &mut object);
        strategy.default(&mut object);
        // As upstream: what admission adds belongs to nobody.
        ownership::record(context, target, ownership, &mut object, &old, given);
        if let Some(admission) = self.admission() {
            let attributes = attributes(context, target, target.name, Operation::Update);
            admission.mutate(attributes, &mut object, Some(&old)).await?;
            apply_defaults(def, &mut object);
            strategy.default(&mut object);
        }
        if target.subresource.is_empty() {
            strategy.prepare_for_update(&mut object, &old);
        }
        count_generation(target, &mut object, &old);
        let claims = self.allocate(def, &mut object, Some(&old))?;
        let mut errors = Errors::default();
        check_metadata(&object, strategy.name_rule(), &mut errors);
        check_metadata_update(&object, &old, &mut errors);
        // Whoever writes a part answers for that part only.
        if target.subresource.is_empty() {
            strategy.validate(&object, &mut errors);
            strategy.validate_update(&object, &old, &mut errors);
        }
        errors.finish(def, target.name)?;
        if let Some(admission) = self.admission() {
            let attributes = attributes(context, target, target.name, Operation::Update);
            admission.validate(attributes, Some(&object), Some(&old)).await?;
        }
        for warning in strategy.warnings(&object) {
            context.warnings.add(warning);
        }

        ownership::settle(&mut object, &old);
        let ends = is_released(target, &object);
        let stored = convert::value_to_storage(def, object);
        let value = codec::encode_stored(&stored);
        let same = Object::from_stored(&value, current.revision()).is_ok_and(|new| new.json() == current.json());
        if same && !ends && claims.is_empty() {
            // Only the newest version can tell that nothing would change.
            return if is_newest { Ok(Arc::clone(current)) } else { Err(Missed::Newer(self.read(target).await?)) };
        }
        if context.dry_run {
            return Object::from_stored(&value, current.revision())
                .map(Arc::new)
                .map_err(|error| Missed::Status(Status::internal(error)));
        }
        let write = if ends {
            Write::Delete { key: target.key() }
        } else {
            Write::Put { key: target.key(), value: value.clone() }
        };
        let mut transaction = Transaction {
            conditions: vec![Condition { key: target.key(), mod_revision: current.revision() }],
            writes: vec![write],
        };
        if ends {
            self.release_claims(def, &stored, &mut transaction);
        } else {
            claims.add_to(&mut transaction);
        }
        match self.storage().transact(transaction, context.fence).await {
            Ok(revision) => Object::from_stored(&value, revision)
                .map(Arc::new)
                .map_err(|error| Missed::Status(Status::internal(error))),
            Err(StorageError::Conflict { found }) => {
                let newest = found.into_iter().next().flatten();
                if newest.as_ref().is_some_and(|item| item.mod_revision == current.revision()) {
                    // The object is as it was: what it claims is taken.
                    return Err(if claims.can_choose_again {
                        Missed::Newer(Some(Arc::clone(current)))
                    } else {
                        Missed::Status(claims.refusal(def, target.name))
                    });
                }
                let newest =
                    newest.map(|item| Object::from_stored(&item.value, item.mod_revision).map(Arc::new)).transpose();
                Err(Missed::Newer(newest.map_err(Status::internal)?))
            }
            Err(error) => Err(Missed::Status(of_storage(&error))),
        }
    }

    /// Reads the newest stored version, in the version it is stored in.
    pub(super) async fn read(&self, target: Target<'_>) -> Result<Option<Arc<Object>>, Status> {
        let got = self.storage().get(&target.key()).await.map_err(|error| of_storage(&error))?;
        got.value
            .map(|item| Object::from_stored(&item.value, item.mod_revision).map(Arc::new))
            .transpose()
            .map_err(|error| Status::internal(format!("unable to decode {}: {error}", target.key())))
    }
}

/// Why a change did not take effect.
enum Missed {
    /// Somebody else changed the object: this is what it is now.
    Newer(Option<Arc<Object>>),
    Status(Status),
}

impl From<Status> for Missed {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

pub(super) fn check_subresource(target: Target<'_>, verb: Verb) -> Result<(), Status> {
    let known = match target.subresource {
        "" => target.def.has_verb(verb),
        name => target.def.subresource(name).is_some_and(|sub| sub.verbs.contains(&verb)),
    };
    if known { Ok(()) } else { Err(not_supported(target.def, verb.as_str())) }
}

/// The object must be the one that the path names.
pub(super) fn check_identity(target: Target<'_>, object: &Value) -> Result<(), Status> {
    let metadata = &object["metadata"];
    let name = strategy::text(metadata, "name");
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        )));
    }
    if name != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let namespace = strategy::text(metadata, "namespace");
    if !namespace.is_empty() && namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The old object with that part replaced which the request may write.
fn merge_part(target: Target<'_>, mut new: Value, old: &Value) -> Result<Value, Status> {
    let def = target.def;
    match target.subresource {
        // The registry itself makes the whole object in these cases.
        "scale" | "binding" => Ok(new),
        "" => {
            if def.subresource("status").is_some() {
                match old.get("status") {
                    Some(status) => set(&mut new, "status", status.clone()),
                    None => drop(remove(&mut new, "status")),
                }
            }
            Ok(new)
        }
        "status" => {
            let mut object = old.clone();
            set(&mut object, "status", remove(&mut new, "status").unwrap_or_else(|| json!({})));
            if strategy(def).status_writes_metadata() {
                for field in ["labels", "annotations", "finalizers"] {
                    match new["metadata"].get(field) {
                        Some(value) => set(child(&mut object, "metadata"), field, value.clone()),
                        None => drop(remove(child(&mut object, "metadata"), field)),
                    }
                }
            }
            Ok(object)
        }
        "finalize" => {
            let mut object = old.clone();
            let finalizers = new["spec"].get("finalizers").cloned().unwrap_or_else(|| json!([]));
            set(child(&mut object, "spec"), "finalizers", finalizers);
            Ok(object)
        }
        "approval" => {
            // Source: certificates strategy: only conditions change, and only this way.
            let mut object = old.clone();
            let conditions = new["status"].get("conditions").cloned().unwrap_or_else(|| json!([]));
            set(child(&mut object, "status"), "conditions", conditions);
            Ok(object)
        }
        "ephemeralcontainers" => {
            let mut object = old.clone();
            if let Some(containers) = new["spec"].get("ephemeralContainers") {
                set(child(&mut object, "spec"), "ephemeralContainers", containers.clone());
            }
            Ok(object)
        }
        "resize" => {
            let mut object = old.clone();
            let wanted = new["spec"]["containers"].as_array().cloned().unwrap_or_default();
            for container in strategy::items_mut(child(&mut object, "spec"), "containers") {
                let same = wanted.iter().find(|candidate| candidate["name"] == container["name"]);
                if let Some(resources) = same.and_then(|same| same.get("resources")) {
                    set(container, "resources", resources.clone());
                }
            }
            Ok(object)
        }
        other => {
            Err(Status::failure(405, "MethodNotAllowed", format!("{}/{other} cannot be updated", def.group_resource())))
        }
    }
}

/// Metadata that no update changes comes from the old object.
fn carry_metadata(object: &mut Value, old: &Value, target: Target<'_>) -> Result<(), Status> {
    let metadata = child(object, "metadata");
    let uid = strategy::text(metadata, "uid");
    if !uid.is_empty() && uid != old["metadata"]["uid"] {
        return Err(Status::conflict(
            target.def.group,
            target.def.resource,
            target.name,
            &format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                strategy::text(&old["metadata"], "uid")
            ),
        ));
    }
    let kept = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "namespace",
        "generateName",
    ];
    for field in kept {
        match old["metadata"].get(field) {
            Some(value) => set(metadata, field, value.clone()),
            None => drop(remove(metadata, field)),
        }
    }
    for field in ["resourceVersion", "selfLink", "managedFields"] {
        remove(metadata, field);
    }
    Ok(())
}

/// A change of anything but metadata and status is a new generation.
fn count_generation(target: Target<'_>, object: &mut Value, old: &Value) {
    // Being assigned to a node is not a wish of the pod's owner.
    if !has_generation(target.def) || matches!(target.subresource, "status" | "binding") {
        return;
    }
    let wish = |value: &Value| -> Vec<(String, Value)> {
        let fields = value.as_object().into_iter().flatten();
        fields
            .filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    if wish(object) != wish(old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        set(child(object, "metadata"), "generation", generation + 1);
    }
}

/// Nothing holds a terminating object any longer: this change is its end.
fn is_released(target: Target<'_>, object: &Value) -> bool {
    let metadata = &object["metadata"];
    !metadata["deletionTimestamp"].is_null()
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !strategy(target.def).is_held(object)
}
