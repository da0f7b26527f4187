//! ReplicaSets: as many pods of one template as asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use quorate_proto::meta::ObjectMeta;
use quorate_proto::object::Object;
use quorate_proto::selector::LabelSelector;
use quorate_proto::status::Status;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{DeleteOptions, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::expectations::Expectations;
use quorate_runtime::informer::{Change, Lister};
use quorate_runtime::manager::Manager;
use quorate_runtime::owner::{self, Claim, claim, controller_reference};
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::{Map, Value, json};

use crate::Config;
use crate::objects::{is_namespace_terminating, typed, update_status};
use crate::pods::{self, Ranked};
use crate::time::{later, now};

/// Upstream's `--concurrent-replicaset-syncs`.
const WORKERS: usize = 5;
/// More pods than that are not made or deleted at once.
const BURST: usize = 500;

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let sets = manager.informers().informer(&resources::replica_sets());
    let pods = manager.informers().informer(&resources::pods());
    let queue = WorkQueue::new("replicaset");
    let reconciler = Arc::new(ReplicaSets {
        sets: sets.lister(),
        pods: pods.lister(),
        expectations: Expectations::default(),
        queue: queue.clone(),
    });
    let handler = Arc::clone(&reconciler);
    sets.on_change(move |change| {
        if change.is_deletion() {
            handler.expectations.forget(&change.object().meta().uid);
        }
        handler.queue.add(change.key());
    });
    let handler = Arc::clone(&reconciler);
    pods.on_change(move |change| handler.pod_changed(change));
    manager.add(Controller::new("replicaset-controller", queue, WORKERS, reconciler, vec![sets, pods]));
}

struct ReplicaSets {
    sets: Lister,
    pods: Lister,
    /// By the uid of the ReplicaSet; deletions by the uid of the pod.
    expectations: Expectations,
    queue: WorkQueue<String>,
}

impl Reconciler for ReplicaSets {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            match self.sets.get(key) {
                Some(set) => self.sync(reign, &set).await,
                None => Ok(Requeue::Never),
            }
        })
    }

    fn keys(&self) -> Vec<String> {
        self.sets.keys()
    }

    fn begin(&self) {
        self.expectations.clear();
    }
}

impl ReplicaSets {
    fn pod_changed(&self, change: &Change) {
        let pod = change.object();
        let is_gone = change.is_deletion() || pod.meta().is_terminating();
        if let Some(controller) = set_of(pod.meta()) {
            match change {
                _ if is_gone => self.expectations.deletion_observed(&controller.uid, &pod.meta().uid),
                Change::Added(_) => self.expectations.creation_observed(&controller.uid),
                _ => {}
            }
            self.queue.add(format!("{}/{}", pod.meta().namespace, controller.name));
        } else if !is_gone && pod.meta().controller().is_none() {
            for set in self.sets.in_namespace(&pod.meta().namespace) {
                if selector_of(&set).is_some_and(|selector| selector.matches(&pod.meta().labels)) {
                    self.queue.add(set.meta().key());
                }
            }
        }
        // A pod that changed hands is missed by the one that lost it.
        if let Some(lost) = change.old().and_then(|old| set_of(old.meta())) {
            self.queue.add(format!("{}/{}", pod.meta().namespace, lost.name));
        }
    }

    async fn sync(&self, reign: &Reign, set: &Arc<Object>) -> Result<Requeue> {
        let view = typed::<ReplicaSet>(set)?;
        let Some(selector) = selector_of(set) else {
            return Ok(Requeue::Never);
        };
        let may_act = self.expectations.are_satisfied(&set.meta().uid);
        let mine = self.claim_pods(reign, set, &selector).await?;
        let at = now();
        let mut acted = Ok(());
        if may_act && !set.meta().is_terminating() {
            let wanted = usize::try_from(wanted_replicas(&view)).unwrap_or(0);
            acted = match plan(wanted, &mine) {
                Plan::Nothing => Ok(()),
                Plan::Create(count) => self.create(reign, set, &view, count).await,
                Plan::Delete(count) => self.delete(reign, set, &mine, count, at).await,
            };
        }
        let status = status(&view, &mine, acted.as_ref().err(), at);
        let min_ready = min_ready(&view);
        update_status(reign.client.as_ref(), &resources::replica_sets(), set, &status).await?;
        acted?;
        Ok(next_available(&mine, min_ready, at).map_or(Requeue::Never, Requeue::After))
    }

    /// The pods that this set controls, after taking and giving up what its selector says.
    async fn claim_pods(&self, reign: &Reign, set: &Arc<Object>, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>> {
        let (resource, set_resource) = (resources::pods(), resources::replica_sets());
        let mut candidates = self.pods.owned_by(&set.meta().uid);
        candidates.extend(self.pods.orphans_in(&set.meta().namespace));
        let mut mine = Vec::new();
        for pod in candidates {
            match claim(set.meta(), selector, pod.meta()) {
                Claim::Keep => mine.push(typed::<Pod>(&pod)?),
                Claim::Adopt if !pods::is_active(typed::<Pod>(&pod)?.as_ref()) => {}
                Claim::Adopt => {
                    let adopted = owner::adopt(reign.client.as_ref(), &set_resource, set, &resource, pod.meta()).await;
                    match adopted {
                        Ok(()) => mine.push(typed::<Pod>(&pod)?),
                        Err(error) if error.is_not_found() => {}
                        Err(error) => return Err(error),
                    }
                }
                Claim::Release => owner::release(reign.client.as_ref(), set.meta(), &resource, pod.meta()).await?,
                Claim::Ignore => {}
            }
        }
        Ok(mine)
    }

    /// Makes pods in batches that double while they succeed: a set whose pods are refused
    /// (by a quota, say) does not send hundreds of vain requests.
    async fn create(&self, reign: &Reign, set: &Arc<Object>, view: &ReplicaSet, count: usize) -> Result<()> {
        let uid = &set.meta().uid;
        self.expectations.expect_creations(uid, count);
        let pod = pod_from_template(set, view)?;
        let (mut made, mut batch) = (0, 1);
        while made < count {
            let size = batch.min(count - made);
            let outcomes = join_all((0..size).map(|_| self.create_one(reign, set, &pod))).await;
            let failed: Vec<Status> = outcomes.into_iter().filter_map(Result::err).collect();
            made += size;
            if let Some(error) = failed.into_iter().next() {
                self.expectations.creations_skipped(uid, count - made);
                return if is_namespace_terminating(&error) { Ok(()) } else { Err(error) };
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, reign: &Reign, set: &Arc<Object>, pod: &Value) -> Result<()> {
        let namespace = owner::namespace(set.meta());
        let created =
            reign.client.create(&resources::pods(), namespace, None, pod.clone(), WriteOptions::default()).await;
        match created {
            Ok(pod) => {
                reign.events.normal(set, "SuccessfulCreate", format!("Created pod: {}", pod.meta().name));
                Ok(())
            }
            Err(error) => {
                // Nothing will be seen of a pod that was not made.
                self.expectations.creation_observed(&set.meta().uid);
                if !is_namespace_terminating(&error) {
                    reign.events.warning(set, "FailedCreate", format!("Error creating: {}", error.message));
                }
                Err(error)
            }
        }
    }

    async fn delete(
        &self,
        reign: &Reign,
        set: &Arc<Object>,
        mine: &[Arc<Pod>],
        count: usize,
        at: Timestamp,
    ) -> Result<()> {
        let crowd = self.crowd(set);
        let mut ranked: Vec<Ranked> = mine
            .iter()
            .filter(|pod| pods::is_active(pod))
            .map(|pod| Ranked {
                related_on_node: node_of(pod).and_then(|node| crowd.get(node).copied()).unwrap_or(0),
                pod: Arc::clone(pod),
            })
            .collect();
        if count < ranked.len() {
            pods::sort_for_deletion(&mut ranked, at);
        }
        ranked.truncate(count);
        let uid = &set.meta().uid;
        let uids = ranked.iter().filter_map(|ranked| ranked.pod.metadata.uid.clone());
        self.expectations.expect_deletions(uid, uids);
        let outcomes = join_all(ranked.iter().map(|ranked| self.delete_one(reign, set, &ranked.pod))).await;
        outcomes.into_iter().collect()
    }

    async fn delete_one(&self, reign: &Reign, set: &Arc<Object>, pod: &Pod) -> Result<()> {
        let (name, uid) = (pod.metadata.name.as_deref().unwrap_or_default(), pod.metadata.uid.clone());
        let options = DeleteOptions { uid: uid.clone(), ..DeleteOptions::default() };
        let deleted = reign.client.delete(&resources::pods(), owner::namespace(set.meta()), name, options).await;
        match deleted {
            Ok(()) => {
                reign.events.normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.expectations.deletion_observed(&set.meta().uid, uid.as_deref().unwrap_or_default());
                // Gone, or a new pod under the old name: either way this one is deleted.
                if error.is_not_found() || error.is_conflict() {
                    return Ok(());
                }
                reign.events.warning(set, "FailedDelete", format!("Error deleting: {}", error.message));
                Err(error)
            }
        }
    }

    /// How many active pods each node runs of all sets with the same controller: of one
    /// Deployment, say, in the middle of a rollout.
    fn crowd(&self, set: &Arc<Object>) -> HashMap<String, usize> {
        let mut related = vec![set.meta().uid.clone()];
        if let Some(controller) = set.meta().controller() {
            related.extend(self.sets.owned_by(&controller.uid).iter().map(|set| set.meta().uid.clone()));
            related.sort_unstable();
            related.dedup();
        }
        let mut crowd = HashMap::new();
        for pod in related.iter().flat_map(|uid| self.pods.owned_by(uid)) {
            if let Ok(pod) = typed::<Pod>(&pod)
                && let Some(node) = node_of(&pod).filter(|_| pods::is_active(&pod))
            {
                *crowd.entry(node.to_owned()).or_insert(0) += 1;
            }
        }
        crowd
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Create(usize),
    Delete(usize),
}

/// How many pods to make or delete now.
fn plan(wanted: usize, mine: &[Arc<Pod>]) -> Plan {
    let active = mine.iter().filter(|pod| pods::is_active(pod)).count();
    match active.cmp(&wanted) {
        std::cmp::Ordering::Less => Plan::Create((wanted - active).min(BURST)),
        std::cmp::Ordering::Equal => Plan::Nothing,
        std::cmp::Ordering::Greater => Plan::Delete((active - wanted).min(BURST)),
    }
}

/// The status that the set deserves, given the pods it controls and what went wrong.
fn status(view: &ReplicaSet, mine: &[Arc<Pod>], failure: Option<&Status>, at: Timestamp) -> ReplicaSetStatus {
    let template_labels = view
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref())
        .and_then(|template| template.metadata.as_ref())
        .and_then(|metadata| metadata.labels.clone())
        .unwrap_or_default();
    let min_ready = min_ready(view);
    let active: Vec<&Arc<Pod>> = mine.iter().filter(|pod| pods::is_active(pod)).collect();
    let count = |counts: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| counts(pod)).count() as i32;
    let fully_labeled = count(&|pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    });
    let terminating = mine.iter().filter(|pod| pods::is_terminating(pod) && !pods::is_finished(pod)).count() as i32;
    let old = view.status.as_ref();
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: nonzero(fully_labeled),
        ready_replicas: nonzero(count(&pods::is_ready)),
        available_replicas: nonzero(count(&|pod| pods::is_available(pod, min_ready, at))),
        terminating_replicas: Some(terminating),
        observed_generation: view.metadata.generation,
        conditions: conditions(old.and_then(|status| status.conditions.as_ref()), view, active.len(), failure, at),
    }
}

fn conditions(
    old: Option<&Vec<ReplicaSetCondition>>,
    view: &ReplicaSet,
    active: usize,
    failure: Option<&Status>,
    at: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.cloned().unwrap_or_default();
    let standing = conditions.iter().position(|condition| condition.type_ == "ReplicaFailure");
    match (failure, standing) {
        (Some(error), None) => {
            let lacks = i64::from(wanted_replicas(view)) > active as i64;
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(if lacks { "FailedCreate" } else { "FailedDelete" }.to_owned()),
                message: Some(error.message.clone()),
                last_transition_time: Some(Time(at)),
            });
        }
        (None, Some(index)) => {
            conditions.remove(index);
        }
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// When the next ready pod becomes available, if one is on its way.
fn next_available(mine: &[Arc<Pod>], min_ready: Duration, at: Timestamp) -> Option<Duration> {
    mine.iter()
        .filter(|pod| pods::is_active(pod))
        .filter_map(|pod| pods::available_in(pod, min_ready, at))
        .filter(|wait| !wait.is_zero())
        .min()
        .map(later)
}

fn pod_from_template(set: &Object, view: &ReplicaSet) -> Result<Value> {
    let template = &set.value()["spec"]["template"];
    if view.spec.as_ref().and_then(|spec| spec.template.as_ref()).is_none() {
        return Err(Status::internal("the ReplicaSet has no template"));
    }
    let mut metadata = Map::new();
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|value| !value.is_null()) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    metadata.insert("generateName".to_owned(), json!(format!("{}-", set.meta().name)));
    metadata.insert("namespace".to_owned(), json!(set.meta().namespace));
    metadata.insert("ownerReferences".to_owned(), json!([controller_reference(set)]));
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}))
}

fn set_of(meta: &ObjectMeta) -> Option<&quorate_proto::meta::OwnerReference> {
    meta.controller()
        .filter(|controller| controller.kind == "ReplicaSet" && controller.api_version.starts_with("apps/"))
}

/// `None` for a selector that selects everything or does not parse: the server refuses both.
fn selector_of(set: &Object) -> Option<LabelSelector> {
    LabelSelector::from_object(&set.value()["spec"]["selector"]).ok().filter(|selector| !selector.is_empty())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn wanted_replicas(view: &ReplicaSet) -> i32 {
    view.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn min_ready(view: &ReplicaSet) -> Duration {
    let seconds = view.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Zero counts are left out, as upstream does.
fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, ready: bool, terminating: bool) -> Arc<Pod> {
        let deleted = terminating.then_some("2026-01-01T00:00:00Z");
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"labels": {"app": "web"}, "deletionTimestamp": deleted},
                "spec": {"containers": []},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap(),
        )
    }

    fn set(replicas: i32, status: Value) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": 30, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn pods_are_made_and_deleted_to_the_count() {
        let mine = [pod("Running", true, false), pod("Running", true, true), pod("Failed", false, false)];
        assert_eq!(plan(1, &mine), Plan::Nothing);
        assert_eq!(plan(3, &mine), Plan::Create(2));
        assert_eq!(plan(0, &mine), Plan::Delete(1));
        assert_eq!(plan(10_000, &mine), Plan::Create(BURST));
    }

    #[test]
    fn the_status_counts_what_is_there() {
        let mine = [pod("Running", true, false), pod("Pending", false, false), pod("Running", true, true)];
        let early: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let view = set(2, json!({"replicas": 0}));
        let early_status = status(&view, &mine, None, early);
        let value = serde_json::to_value(&early_status).unwrap();
        assert_eq!(
            value,
            json!({"replicas": 2, "fullyLabeledReplicas": 2, "readyReplicas": 1, "terminatingReplicas": 1,
                   "observedGeneration": 3})
        );
        assert_eq!(next_available(&mine, min_ready(&view), early), Some(Duration::from_secs(21)));
        let late: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        assert_eq!(status(&view, &mine, None, late).available_replicas, Some(1));
        assert_eq!(next_available(&mine, min_ready(&view), late), None);
    }

    #[test]
    fn a_failure_stands_in_the_conditions_until_it_passes() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let error = Status::forbidden("", "pods", "web", "exceeded quota");
        let failed = status(&set(2, json!({"replicas": 0})), &[], Some(&error), at);
        let condition = &failed.conditions.as_ref().unwrap()[0];
        assert_eq!((condition.type_.as_str(), condition.reason.as_deref()), ("ReplicaFailure", Some("FailedCreate")));
        let view = set(2, serde_json::to_value(&failed).unwrap());
        assert_eq!(status(&view, &[], None, at).conditions, None);
    }
}
