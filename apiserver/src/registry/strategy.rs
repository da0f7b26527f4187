//! What a kind needs beyond what the resource table says.

use serde_json::{Value, json};

use super::validation::{Errors, NameRule};
use super::{apps, batch, core, misc};
use crate::schema::ResourceDef;

/// The rules of one kind. Every method is pure; the default is what most kinds need.
///
/// Objects are in the version that the request names, already checked against the schema.
pub(crate) trait Strategy: Send + Sync {
    /// Sets what clients may leave out. Applying it twice changes nothing.
    fn default(&self, _object: &mut Value) {}

    /// Brings a new object into the state in which it is first stored.
    fn prepare_for_create(&self, _object: &mut Value) {}

    /// Carries over what clients cannot change.
    fn prepare_for_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, _object: &Value, _errors: &mut Errors) {}

    fn validate_update(&self, _object: &Value, _old: &Value, _errors: &mut Errors) {}

    /// What the client should hear although the object is valid.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// A PUT of an object that does not exist creates it.
    fn allows_create_on_update(&self) -> bool {
        false
    }

    /// A PUT without a resourceVersion replaces whatever is there.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// A write of the status may also change labels, annotations and the like.
    fn status_writes_metadata(&self) -> bool {
        false
    }

    /// How long the object lives on after deletion was asked for, so that somebody can
    /// end it in order. 0: it is gone at once.
    fn grace_period_seconds(&self, _object: &Value, _requested: Option<i64>) -> i64 {
        0
    }

    /// Whether finalizers outside metadata keep a terminating object.
    fn is_held(&self, _object: &Value) -> bool {
        false
    }

    /// Changes the object at the moment its deletion begins.
    fn prepare_for_delete(&self, _object: &mut Value) {}

    /// A completed deletion answers with the object instead of a Status.
    fn returns_deleted_object(&self) -> bool {
        false
    }
}

/// A kind without rules of its own.
struct Plain;

impl Strategy for Plain {}

/// The rules of `def`'s kind.
pub(crate) fn strategy(def: &ResourceDef) -> &'static dyn Strategy {
    match (def.group, def.resource) {
        ("", "pods") => &core::pod::PodStrategy,
        ("", "services") => &core::service::ServiceStrategy,
        ("", "namespaces") => &core::namespace::NamespaceStrategy,
        ("", "nodes") => &core::node::NodeStrategy,
        ("", "configmaps") => &core::config::ConfigMapStrategy,
        ("", "secrets") => &core::config::SecretStrategy,
        ("", "serviceaccounts") => &core::config::ServiceAccountStrategy,
        ("", "endpoints") => &core::endpoints::EndpointsStrategy,
        ("", "replicationcontrollers") => &apps::replica_set::ReplicationControllerStrategy,
        ("", "events") | ("events.k8s.io", "events") => &core::endpoints::EventStrategy,
        ("", "persistentvolumes") => &core::volume::PersistentVolumeStrategy,
        ("", "persistentvolumeclaims") => &core::volume::PersistentVolumeClaimStrategy,
        ("apps", "deployments") => &apps::deployment::DeploymentStrategy,
        ("apps", "replicasets") => &apps::replica_set::ReplicaSetStrategy,
        ("apps", "statefulsets") => &apps::stateful_set::StatefulSetStrategy,
        ("apps", "daemonsets") => &apps::daemon_set::DaemonSetStrategy,
        ("batch", "jobs") => &batch::job::JobStrategy,
        ("batch", "cronjobs") => &batch::cron_job::CronJobStrategy,
        ("discovery.k8s.io", "endpointslices") => &core::endpoints::EndpointSliceStrategy,
        ("coordination.k8s.io", "leases") => &misc::LeaseStrategy,
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => &misc::RoleStrategy,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &misc::RoleBindingStrategy,
        ("scheduling.k8s.io", "priorityclasses") => &misc::PriorityClassStrategy,
        ("storage.k8s.io", "storageclasses") => &misc::StorageClassStrategy,
        ("networking.k8s.io", "ingresses") => &misc::IngressStrategy,
        ("networking.k8s.io", "networkpolicies") => &misc::NetworkPolicyStrategy,
        ("autoscaling", _) => &misc::AutoscalerStrategy,
        ("policy", "poddisruptionbudgets") => &misc::DisruptionBudgetStrategy,
        ("apiextensions.k8s.io", "customresourcedefinitions") => &misc::CustomResourceDefinitionStrategy,
        _ => &Plain,
    }
}

/// Whether `metadata.generation` counts changes of what users want.
pub(crate) fn has_generation(def: &ResourceDef) -> bool {
    matches!(
        (def.group, def.resource),
        ("", "pods" | "replicationcontrollers")
            | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
            | ("batch", "jobs" | "cronjobs")
            | ("networking.k8s.io", "ingresses" | "ingressclasses" | "networkpolicies")
            | ("policy", "poddisruptionbudgets")
            | ("discovery.k8s.io", "endpointslices")
            | ("apiextensions.k8s.io", "customresourcedefinitions")
            | ("flowcontrol.apiserver.k8s.io", _)
            | ("admissionregistration.k8s.io", _)
    )
}

/// Sets `object[name]` unless it is there.
pub(crate) fn default_to(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        let field = fields.entry(name).or_insert(Value::Null);
        if field.is_null() {
            *field = value.into();
        }
    }
}

/// Sets `object[name]`, whatever was there; does nothing to what is no object.
pub(crate) fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Removes `object[name]`.
pub(crate) fn remove(object: &mut Value, name: &str) -> Option<Value> {
    object.as_object_mut()?.remove(name)
}

/// The object at `object[name]`, made empty when it is absent or no object.
pub(crate) fn child<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = json!({});
    }
    let field = &mut object[name];
    if !field.is_object() {
        *field = json!({});
    }
    field
}

/// The items of `object[name]`, which may be absent.
pub(crate) fn items_mut<'a>(object: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The items of `object[name]`, which may be absent.
pub(crate) fn items<'a>(object: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    object[name].as_array().into_iter().flatten()
}

/// `object[name]` as text; absent is empty.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}
