//! Namespaces that are being deleted: everything in them goes first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Client, DeleteOptions, ListOptions, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Lister;
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::Value;

use crate::objects::{typed, unless_gone};
use crate::time::now;
use crate::{Config, unique_resources};

/// Upstream's `--concurrent-namespace-syncs`.
const WORKERS: usize = 10;
/// The finalizer that stands for the content of a namespace.
const FINALIZER: &str = "kubernetes";
/// Pods end within their grace period; nobody tells us, so we look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What deletes itself at once is gone after the first look.
const PASSES: usize = 2;

pub(crate) fn register(manager: &mut Manager, config: &Config) {
    let namespaces = manager.informers().informer(&resources::namespaces());
    let queue = WorkQueue::new("namespace");
    let adds = queue.clone();
    namespaces.on_change(move |change| {
        if change.object().meta().is_terminating() && !change.is_deletion() {
            adds.add(change.key());
        }
    });
    let reconciler = Namespaces {
        namespaces: namespaces.lister(),
        contents: unique_resources(config).filter(|one| one.is_namespaced).map(|one| one.resource.clone()).collect(),
    };
    manager.add(Controller::new("namespace-controller", queue, WORKERS, Arc::new(reconciler), vec![namespaces]));
}

struct Namespaces {
    namespaces: Lister,
    contents: Vec<GroupVersionResource>,
}

impl Reconciler for Namespaces {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            let Some(namespace) = self.namespaces.get(key) else { return Ok(Requeue::Never) };
            let view = typed::<Namespace>(&namespace)?;
            let finalizers = view.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
            if !namespace.meta().is_terminating() || !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                return Ok(Requeue::Never);
            }
            let mut outcome = Outcome::default();
            for _ in 0..PASSES {
                outcome = self.delete_contents(reign.client.as_ref(), key).await;
                if outcome.is_empty() {
                    break;
                }
            }
            self.report(reign.client.as_ref(), key, &outcome).await?;
            if outcome.is_empty() { finalize(reign.client.as_ref(), key).await } else { Ok(Requeue::After(LOOK_AGAIN)) }
        })
    }

    fn keys(&self) -> Vec<String> {
        let terminating = self.namespaces.list().into_iter().filter(|namespace| namespace.meta().is_terminating());
        terminating.map(|namespace| namespace.meta().key()).collect()
    }
}

/// What a look into the namespace found.
#[derive(Debug, Default)]
struct Outcome {
    /// How many objects of each resource are there yet.
    remaining: BTreeMap<String, usize>,
    /// How many objects carry each finalizer.
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
}

impl Outcome {
    fn is_empty(&self) -> bool {
        self.remaining.is_empty() && self.errors.is_empty()
    }
}

impl Namespaces {
    /// Asks for the deletion of everything; what was there at the look is in the outcome,
    /// unless the deletion was complete at once.
    async fn delete_contents(&self, client: &dyn Client, namespace: &str) -> Outcome {
        let mut outcome = Outcome::default();
        for resource in &self.contents {
            if let Err(error) = delete_all(client, resource, namespace, &mut outcome).await {
                outcome.errors.push(format!("{}: {}", resource.group_resource(), error.message));
            }
        }
        outcome
    }

    async fn report(&self, client: &dyn Client, name: &str, outcome: &Outcome) -> Result<()> {
        let resource = resources::namespaces();
        // The cache may lag behind our own last report.
        let live = client.get(&resource, None, name).await?;
        let view = typed::<Namespace>(&live)?;
        let status = NamespaceStatus {
            phase: Some("Terminating".to_owned()),
            conditions: Some(conditions(&view, outcome, now())),
        };
        crate::objects::update_status(client, &resource, &live, &status).await
    }
}

/// Deletes all objects of one resource and counts those that stay for now.
async fn delete_all(
    client: &dyn Client,
    resource: &GroupVersionResource,
    namespace: &str,
    outcome: &mut Outcome,
) -> Result<()> {
    let list = client.list(resource, Some(namespace), ListOptions::default()).await?;
    let mut deleted = false;
    for object in &list.items {
        if !object.meta().is_terminating() {
            deleted = true;
            let options = DeleteOptions {
                propagation_policy: Some("Background".to_owned()),
                uid: Some(object.meta().uid.clone()),
                ..DeleteOptions::default()
            };
            unless_gone(client.delete(resource, Some(namespace), &object.meta().name, options).await)?;
        }
    }
    let remaining =
        if deleted { client.list(resource, Some(namespace), ListOptions::default()).await?.items } else { list.items };
    if !remaining.is_empty() {
        outcome.remaining.insert(resource.group_resource(), remaining.len());
        for finalizer in remaining.iter().flat_map(|object| &object.meta().finalizers) {
            *outcome.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
    }
    Ok(())
}

/// Takes our finalizer away; the server removes a namespace that has none left.
async fn finalize(client: &dyn Client, name: &str) -> Result<Requeue> {
    let resource = resources::namespaces();
    let live: Arc<Object> = match client.get(&resource, None, name).await {
        Ok(live) => live,
        Err(error) if error.is_not_found() => return Ok(Requeue::Never),
        Err(error) => return Err(error),
    };
    let mut value = Value::clone(live.value());
    if let Some(Value::Array(finalizers)) = value["spec"].get_mut("finalizers") {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let finalized = client.update(&resource, None, name, Some("finalize"), value, WriteOptions::default()).await;
    unless_gone(finalized.map(drop))?;
    Ok(Requeue::Never)
}

fn conditions(view: &Namespace, outcome: &Outcome, at: Timestamp) -> Vec<NamespaceCondition> {
    let counted = |counts: &BTreeMap<String, usize>, template: &dyn Fn(&str, usize) -> String| {
        counts.iter().map(|(name, count)| template(name, *count)).collect::<Vec<_>>().join(", ")
    };
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if outcome.errors.is_empty() {
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            )
        } else {
            let errors = outcome.errors.join(", ");
            (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, {} remaining: {errors}", outcome.errors.len()),
            )
        },
        if outcome.remaining.is_empty() {
            ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned())
        } else {
            let list = counted(&outcome.remaining, &|name, count| format!("{name} has {count} resource instances"));
            ("NamespaceContentRemaining", true, "SomeResourcesRemain", format!("Some resources are remaining: {list}"))
        },
        if outcome.finalizers.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            let list = counted(&outcome.finalizers, &|name, count| format!("{name} in {count} resource instances"));
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {list}"),
            )
        },
    ];
    let standing = view.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    wanted
        .into_iter()
        .map(|(condition_type, is_true, reason, message)| {
            let status = if is_true { "True" } else { "False" };
            let since = standing
                .iter()
                .find(|old| old.type_ == condition_type && old.status == status)
                .and_then(|old| old.last_transition_time.clone());
            NamespaceCondition {
                type_: condition_type.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(since.unwrap_or(Time(at))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_holds_a_namespace_back() {
        let outcome = Outcome {
            remaining: BTreeMap::from([("pods".to_owned(), 2)]),
            finalizers: BTreeMap::from([("example.com/hold".to_owned(), 1)]),
            errors: Vec::new(),
        };
        let early: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let first = conditions(&Namespace::default(), &outcome, early);
        let texts: Vec<(&str, &str, &str)> = first
            .iter()
            .map(|condition| {
                (condition.type_.as_str(), condition.status.as_str(), condition.message.as_deref().unwrap())
            })
            .collect();
        assert_eq!(
            texts[3],
            ("NamespaceContentRemaining", "True", "Some resources are remaining: pods has 2 resource instances")
        );
        assert_eq!(
            texts[4].2,
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );

        // A condition keeps its time while its status stands.
        let view = Namespace {
            status: Some(NamespaceStatus { conditions: Some(first), ..NamespaceStatus::default() }),
            ..Namespace::default()
        };
        let later = conditions(&view, &Outcome::default(), "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(later[0].last_transition_time, Some(Time(early)));
        assert_ne!(later[3].last_transition_time, Some(Time(early)));
    }
}
