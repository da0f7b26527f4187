//! The verbs delete and deletecollection.

use std::sync::Arc;

use futures::StreamExt;
use quorate_proto::codec;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::context::RequestContext;
use super::create::{after, attributes};
use super::read::{ListQuery, Listed};
use super::status::{not_found, not_supported, of_storage};
use super::strategy::{Strategy, child, set, strategy, text};
use super::{Registry, Target, convert};
use crate::admission::Operation;
use crate::schema::{ResourceDef, Verb};
use crate::storage::{Condition, StorageError, Transaction, Write};

/// How often a deletion is tried against newer and newer versions.
const ATTEMPTS: usize = 16;

/// How many objects of a collection are deleted at the same time.
const COLLECTION_WORKERS: usize = 16;

/// The finalizer under which dependents lose this owner before it goes.
const ORPHAN: &str = "orphan";
/// The finalizer under which dependents are deleted before it goes.
const FOREGROUND: &str = "foregroundDeletion";

/// How something is to be deleted: `meta/v1 DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    pub propagation_policy: Option<String>,
    /// The old form of the propagation policy.
    pub orphan_dependents: Option<bool>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What a deletion led to.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The last state, or the state in which it waits for its end.
    pub object: Arc<Object>,
    /// It is gone, not merely asked to go.
    pub gone: bool,
    /// A completed deletion answers with the object instead of a Status.
    pub answers_with_object: bool,
}

/// What is done to the object.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    /// It stays in this form, until its grace period and finalizers are done.
    Store(Value),
    /// It is terminating already, and nothing about that changes.
    Keep,
}

impl Registry {
    /// Asks for an object's deletion.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when a precondition does not hold, `Forbidden`, or a failure of the store.
    pub async fn delete(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        request: &DeleteRequest,
    ) -> Result<Deleted, Status> {
        if !target.def.has_verb(Verb::Delete) {
            return Err(not_supported(target.def, "delete"));
        }
        check_request(request)?;
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
            match self.delete_once(context, target, object, request, is_newest).await {
                Ok(Some(deleted)) => return Ok(deleted),
                Ok(None) => (current, is_newest) = (self.read(target).await?, true),
                Err(_) if !is_newest => (current, is_newest) = (self.read(target).await?, true),
                Err(status) => return Err(status),
            }
        }
        Err(Status::modified(target.def.group, target.def.resource, target.name))
    }

    /// `None`: somebody else changed it.
    async fn delete_once(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        current: &Arc<Object>,
        request: &DeleteRequest,
        is_newest: bool,
    ) -> Result<Option<Deleted>, Status> {
        let def = target.def;
        let strategy = strategy(def);
        check_preconditions(target, current, request)?;
        if let Some(admission) = self.admission() {
            let old = convert::value_from_storage(def, current.value().as_ref().clone());
            let attributes = attributes(context, target, target.name, Operation::Delete);
            admission.validate(attributes, None, Some(&old)).await?;
        }
        let deleted = |object: Arc<Object>, gone: bool| -> Result<Option<Deleted>, Status> {
            let object = convert::from_storage(def, object)?;
            Ok(Some(Deleted { object, gone, answers_with_object: strategy.returns_deleted_object() }))
        };
        let condition = Condition { key: target.key(), mod_revision: current.revision() };
        let (transaction, value) = match decide(strategy, current.value(), request) {
            Step::Keep if is_newest => return deleted(Arc::clone(current), false),
            Step::Keep => return Ok(None),
            _ if context.dry_run => return deleted(Arc::clone(current), true),
            Step::Store(object) => {
                let value = codec::encode_stored(&object);
                let write = Write::Put { key: target.key(), value: value.clone() };
                (Transaction { conditions: vec![condition], writes: vec![write] }, Some(value))
            }
            Step::Remove => {
                let mut transaction =
                    Transaction { conditions: vec![condition], writes: vec![Write::Delete { key: target.key() }] };
                self.release_claims(def, current.value(), &mut transaction);
                (transaction, None)
            }
        };
        match self.storage().transact(transaction, context.fence).await {
            Ok(revision) => match value {
                Some(value) => {
                    deleted(Arc::new(Object::from_stored(&value, revision).map_err(Status::internal)?), false)
                }
                None => {
                    let last = Object::from_value(current.value(), revision).map_err(Status::internal)?;
                    deleted(Arc::new(last), true)
                }
            },
            Err(StorageError::Conflict { .. }) => Ok(None),
            Err(error) => Err(of_storage(&error)),
        }
    }

    /// Deletes everything that `query` selects, and returns what that was.
    ///
    /// # Errors
    /// The first failure; what was deleted before it stays deleted.
    pub async fn delete_collection(
        &self,
        context: &RequestContext,
        def: &'static ResourceDef,
        namespace: &str,
        query: &ListQuery,
        request: &DeleteRequest,
    ) -> Result<Listed, Status> {
        if !def.has_verb(Verb::DeleteCollection) {
            return Err(not_supported(def, "deletecollection"));
        }
        let mut listed = self.list(def, namespace, query).await?;
        let items = std::mem::take(&mut listed.items);
        let deletions = items.into_iter().map(|object| async move {
            let meta = object.meta();
            let target = Target { def, namespace: &meta.namespace, name: &meta.name, subresource: "" };
            match self.delete(context, target, request).await {
                Ok(deleted) => Ok(Some(deleted.object)),
                Err(status) if status.is_not_found() => Ok(None),
                Err(status) => Err(status),
            }
        });
        let mut deletions = futures::stream::iter(deletions).buffered(COLLECTION_WORKERS);
        while let Some(deleted) = deletions.next().await {
            listed.items.extend(deleted?);
        }
        drop(deletions);
        Ok(listed)
    }
}

fn check_request(request: &DeleteRequest) -> Result<(), Status> {
    let invalid = |field: &str, reason: &str, message: String| {
        let cause = quorate_proto::status::StatusCause { reason: reason.to_owned(), message, field: field.to_owned() };
        Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]))
    };
    match request.propagation_policy.as_deref() {
        Some(_) if request.orphan_dependents.is_some() => invalid(
            "propagationPolicy",
            "FieldValueInvalid",
            format!(
                "Invalid value: {:?}: orphanDependents and deletionPropagation cannot be both set",
                request.propagation_policy.as_deref().unwrap_or_default()
            ),
        ),
        None | Some("" | "Background" | "Foreground" | "Orphan") => Ok(()),
        Some(other) => invalid(
            "propagationPolicy",
            "FieldValueNotSupported",
            format!("Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\", nil"),
        ),
    }
}

fn check_preconditions(target: Target<'_>, current: &Object, request: &DeleteRequest) -> Result<(), Status> {
    let conflict = |why: String| Err(Status::conflict(target.def.group, target.def.resource, target.name, &why));
    let uid = &current.meta().uid;
    if let Some(wanted) = request.uid.as_deref().filter(|wanted| *wanted != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    let version = current.revision().to_string();
    if let Some(wanted) = request.resource_version.as_deref().filter(|wanted| *wanted != version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

/// What becomes of `old` when its deletion is asked for.
fn decide(strategy: &dyn Strategy, old: &Value, request: &DeleteRequest) -> Step {
    let mut object = old.clone();
    set_propagation(&mut object, request);
    let terminating = !old["metadata"]["deletionTimestamp"].is_null();
    let grace = strategy.grace_period_seconds(old, request.grace_period_seconds).max(0);
    let remaining = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if terminating && (grace >= remaining && remaining > 0) {
        return if object == *old { Step::Keep } else { Step::Store(object) };
    }
    if !terminating {
        strategy.prepare_for_delete(&mut object);
    }
    let metadata = &object["metadata"];
    let held =
        metadata["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) || strategy.is_held(&object);
    if grace == 0 && !held {
        return Step::Remove;
    }
    let metadata = child(&mut object, "metadata");
    if !terminating || grace < remaining {
        set(metadata, "deletionTimestamp", after(grace));
        set(metadata, "deletionGracePeriodSeconds", grace);
    }
    if !terminating && let Some(generation) = metadata["generation"].as_i64().filter(|generation| *generation > 0) {
        set(metadata, "generation", generation + 1);
    }
    if object == *old { Step::Keep } else { Step::Store(object) }
}

/// Writes down, as finalizers, what is to happen to dependents.
fn set_propagation(object: &mut Value, request: &DeleteRequest) {
    let policy = match (request.propagation_policy.as_deref(), request.orphan_dependents) {
        (Some(policy), _) if !policy.is_empty() => policy,
        (_, Some(true)) => "Orphan",
        (_, Some(false)) => "Background",
        _ => return,
    };
    let wanted = match policy {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        _ => None,
    };
    let metadata = child(object, "metadata");
    let before = metadata["finalizers"].as_array().cloned().unwrap_or_default();
    let mut finalizers: Vec<Value> =
        before.iter().filter(|name| **name != ORPHAN && **name != FOREGROUND).cloned().collect();
    if let Some(wanted) = wanted {
        finalizers.push(json!(wanted));
    }
    if finalizers != before {
        set(metadata, "finalizers", finalizers);
    }
}

/// The Status that answers a completed deletion.
pub(crate) fn success(def: &ResourceDef, object: &Object) -> Status {
    let details = quorate_proto::status::StatusDetails {
        name: object.meta().name.clone(),
        group: def.group.to_owned(),
        kind: def.resource.to_owned(),
        uid: text(&object.value()["metadata"], "uid").to_owned(),
        ..quorate_proto::status::StatusDetails::default()
    };
    Status::success().with_details(details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::resource;

    fn decide_for(name: &str, old: Value, request: DeleteRequest) -> Step {
        decide(strategy(resource("", "v1", name).unwrap()), &old, &request)
    }

    #[test]
    fn what_nobody_holds_is_removed() {
        let old = json!({"metadata": {"name": "a"}});
        assert_eq!(decide_for("configmaps", old, DeleteRequest::default()), Step::Remove);
    }

    #[test]
    fn finalizers_keep_an_object() {
        let old = json!({"metadata": {"name": "a", "finalizers": ["x/y"], "generation": 3}});
        let Step::Store(first) = decide_for("configmaps", old, DeleteRequest::default()) else { panic!("it stays") };
        assert!(first["metadata"]["deletionTimestamp"].is_string());
        assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(first["metadata"]["generation"], 4);
        assert_eq!(decide_for("configmaps", first, DeleteRequest::default()), Step::Keep);
    }

    #[test]
    fn propagation_is_a_finalizer() {
        let request =
            |policy: &str| DeleteRequest { propagation_policy: Some(policy.to_owned()), ..DeleteRequest::default() };
        let old = json!({"metadata": {"name": "a"}});
        let Step::Store(foreground) = decide_for("configmaps", old.clone(), request("Foreground")) else {
            panic!("it stays")
        };
        assert_eq!(foreground["metadata"]["finalizers"], json!([FOREGROUND]));
        let Step::Store(orphan) = decide_for("configmaps", foreground.clone(), request("Orphan")) else {
            panic!("it stays")
        };
        assert_eq!(orphan["metadata"]["finalizers"], json!([ORPHAN]));
        assert_eq!(decide_for("configmaps", foreground, request("Background")), Step::Remove);
    }

    #[test]
    fn a_running_pod_gets_its_grace_period() {
        let grace = |seconds| DeleteRequest { grace_period_seconds: Some(seconds), ..DeleteRequest::default() };
        let running =
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let Step::Store(dying) = decide_for("pods", running.clone(), DeleteRequest::default()) else {
            panic!("it stays")
        };
        assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(decide_for("pods", dying.clone(), DeleteRequest::default()), Step::Keep);
        let Step::Store(sooner) = decide_for("pods", dying.clone(), grace(5)) else { panic!("it stays") };
        assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
        assert_eq!(decide_for("pods", dying, grace(0)), Step::Remove);
        let unscheduled = json!({"metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 30}});
        assert_eq!(decide_for("pods", unscheduled, DeleteRequest::default()), Step::Remove);
    }
}
