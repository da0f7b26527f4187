//! Deployments: rollouts from one pod template to the next, by way of ReplicaSets.

mod revision;
mod rollout;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use quorate_proto::object::Object;
use quorate_proto::selector::LabelSelector;
use quorate_proto::status::Status;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{DeleteOptions, Patch, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::{Change, Lister};
use quorate_runtime::manager::Manager;
use quorate_runtime::owner::{self, Claim, claim, controller_reference, namespace};
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::{Value, json};

use crate::Config;
use crate::objects::{is_namespace_terminating, typed, unless_gone, update_status};
use crate::pods;
use crate::time::now;
use revision::{
    DESIRED_REPLICAS, MAX_REPLICAS, REVISION, TEMPLATE_HASH_LABEL, new_set_annotations, revision_of, same_template,
    template_hash,
};
use rollout::{Goal, Resize, Size};
use status::Progress;

/// Upstream's `--concurrent-deployment-syncs`.
const WORKERS: usize = 5;
/// What the API's defaults say.
const DEFAULT_HISTORY_LIMIT: i32 = 10;

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let deployments = manager.informers().informer(&resources::deployments());
    let sets = manager.informers().informer(&resources::replica_sets());
    let pods = manager.informers().informer(&resources::pods());
    let queue = WorkQueue::new("deployment");
    let reconciler = Arc::new(Deployments {
        deployments: deployments.lister(),
        sets: sets.lister(),
        pods: pods.lister(),
        queue: queue.clone(),
    });
    let adds = queue.clone();
    deployments.on_change(move |change| adds.add(change.key()));
    let handler = Arc::clone(&reconciler);
    sets.on_change(move |change| handler.set_changed(change));
    let handler = Arc::clone(&reconciler);
    pods.on_change(move |change| handler.pod_changed(change));
    manager.add(Controller::new("deployment-controller", queue, WORKERS, reconciler, vec![deployments, sets, pods]));
}

struct Deployments {
    deployments: Lister,
    sets: Lister,
    pods: Lister,
    queue: WorkQueue<String>,
}

impl Reconciler for Deployments {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            match self.deployments.get(key) {
                Some(deployment) => self.sync(reign, deployment).await,
                None => Ok(Requeue::Never),
            }
        })
    }

    fn keys(&self) -> Vec<String> {
        self.deployments.keys()
    }
}

/// One ReplicaSet of the Deployment.
#[derive(Clone)]
struct Set {
    object: Arc<Object>,
    view: Arc<ReplicaSet>,
}

/// One reconcile: the Deployment, its ReplicaSets, and what is to be reported.
struct Rollout<'a> {
    reign: &'a Reign,
    deployment: Arc<Object>,
    view: Arc<Deployment>,
    /// The oldest first.
    sets: Vec<Set>,
    conditions: Vec<DeploymentCondition>,
    at: Timestamp,
}

impl Deployments {
    fn set_changed(&self, change: &Change) {
        let set = change.object();
        for version in [Some(set), change.old()].into_iter().flatten() {
            if let Some(controller) = version.meta().controller().filter(|controller| controller.kind == "Deployment") {
                self.queue.add(format!("{}/{}", set.meta().namespace, controller.name));
            }
        }
        if !change.is_deletion() && set.meta().controller().is_none() {
            for deployment in self.deployments.in_namespace(&set.meta().namespace) {
                if selector_of(&deployment).is_some_and(|selector| selector.matches(&set.meta().labels)) {
                    self.queue.add(deployment.meta().key());
                }
            }
        }
    }

    /// A recreation waits until the last old pod is gone.
    fn pod_changed(&self, change: &Change) {
        let meta = change.object().meta();
        let Some(controller) = meta.controller().filter(|controller| controller.kind == "ReplicaSet") else { return };
        let is_over = typed::<Pod>(change.object()).is_ok_and(|pod| pods::is_finished(&pod));
        if !change.is_deletion() && !is_over {
            return;
        }
        let set = self.sets.get(&format!("{}/{}", meta.namespace, controller.name));
        if let Some(deployment) = set.as_ref().and_then(|set| set.meta().controller()) {
            self.queue.add(format!("{}/{}", meta.namespace, deployment.name));
        }
    }

    async fn sync(&self, reign: &Reign, deployment: Arc<Object>) -> Result<Requeue> {
        let view = typed::<Deployment>(&deployment)?;
        let Some(selector) = selector_of(&deployment) else {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            reign.events.warning(&deployment, "SelectingAll", message);
            return Ok(Requeue::Never);
        };
        let sets = self.claim_sets(reign, &deployment, &selector).await?;
        let conditions = view.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let mut rollout = Rollout { reign, deployment, view, sets, conditions, at: now() };
        if rollout.deployment.meta().is_terminating() {
            let new = rollout.find_new();
            return rollout.report(new.as_ref(), false).await;
        }
        status::note_pause(&rollout.view, &mut rollout.conditions, rollout.at);
        if rollout.is_paused() || rollout.is_resized() {
            return rollout.resize_all().await;
        }
        if rollout.is_recreated() { rollout.recreate(&self.pods).await } else { rollout.roll().await }
    }

    async fn claim_sets(&self, reign: &Reign, deployment: &Arc<Object>, selector: &LabelSelector) -> Result<Vec<Set>> {
        let (resource, own) = (resources::replica_sets(), resources::deployments());
        let client = reign.client.as_ref();
        let mut candidates = self.sets.owned_by(&deployment.meta().uid);
        candidates.extend(self.sets.orphans_in(&deployment.meta().namespace));
        let mut sets = Vec::new();
        for object in candidates {
            match claim(deployment.meta(), selector, object.meta()) {
                Claim::Keep => {}
                Claim::Adopt => match owner::adopt(client, &own, deployment, &resource, object.meta()).await {
                    Ok(()) => {}
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                },
                Claim::Release => {
                    owner::release(client, deployment.meta(), &resource, object.meta()).await?;
                    continue;
                }
                Claim::Ignore => continue,
            }
            sets.push(Set::of(object)?);
        }
        sets.sort_by(|a, b| (a.created(), &a.object.meta().name).cmp(&(b.created(), &b.object.meta().name)));
        Ok(sets)
    }
}

impl Rollout<'_> {
    fn is_paused(&self) -> bool {
        self.view.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
    }

    fn is_recreated(&self) -> bool {
        let strategy = self.view.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
    }

    /// Whether the Deployment was resized since its ReplicaSets were: then that comes
    /// first, and the rollout goes on afterwards.
    fn is_resized(&self) -> bool {
        let wanted = Goal::of(&self.view).replicas.to_string();
        let annotations = |set: &Set| set.object.meta().annotations.get(DESIRED_REPLICAS).cloned();
        self.sets.iter().filter(|set| set.replicas() > 0).filter_map(annotations).any(|desired| desired != wanted)
    }

    fn template(&self) -> Result<&PodTemplateSpec> {
        let spec = self.view.spec.as_ref().ok_or_else(|| Status::internal("the Deployment has no spec"))?;
        Ok(&spec.template)
    }

    /// The ReplicaSet of the present template; the oldest, should there be several.
    fn find_new(&self) -> Option<Set> {
        let template = self.template().ok()?;
        self.sets.iter().find(|set| set.template().is_some_and(|other| same_template(template, other))).cloned()
    }

    fn old_sets(&self, new: Option<&Set>) -> Vec<Set> {
        let is_old = |set: &&Set| new.is_none_or(|new| new.object.meta().uid != set.object.meta().uid);
        self.sets.iter().filter(is_old).cloned().collect()
    }

    fn replace(&mut self, set: &Set) {
        match self.sets.iter_mut().find(|old| old.object.meta().uid == set.object.meta().uid) {
            Some(old) => *old = set.clone(),
            None => self.sets.push(set.clone()),
        }
    }

    async fn resize_all(mut self) -> Result<Requeue> {
        let new = match self.find_new() {
            Some(new) => Some(self.renew(new).await?),
            None => None,
        };
        let sizes = |sets: &[Set]| sets.iter().map(Set::size).collect::<Vec<Size>>();
        let old = self.old_sets(new.as_ref());
        let new_size = new.as_ref().map(Set::size);
        let resizes = rollout::scale(Goal::of(&self.view), new_size.as_ref(), &sizes(&old), !self.is_recreated());
        self.resize(resizes).await?;
        if self.is_paused() {
            self.clean_up(&old).await?;
        }
        let new = self.find_new();
        self.report(new.as_ref(), false).await
    }

    async fn roll(mut self) -> Result<Requeue> {
        let new = self.new_set().await?;
        let old = self.old_sets(Some(&new));
        let sizes: Vec<Size> = old.iter().map(Set::size).collect();
        let resizes = rollout::rolling_step(Goal::of(&self.view), &new.size(), &sizes);
        if self.resize(resizes).await? == 0 && self.is_complete() {
            self.clean_up(&old).await?;
        }
        let new = self.find_new();
        self.report(new.as_ref(), true).await
    }

    async fn recreate(mut self, pods: &Lister) -> Result<Requeue> {
        let found = self.find_new();
        let old = self.old_sets(found.as_ref());
        let emptied = old.iter().filter(|set| set.replicas() > 0).map(|set| (set.object.meta().name.clone(), 0));
        if self.resize(emptied.collect()).await? > 0 || old.iter().any(|set| has_running_pods(pods, set)) {
            return self.report(found.as_ref(), true).await;
        }
        let new = self.new_set().await?;
        let replicas = Goal::of(&self.view).replicas;
        self.resize(vec![(new.object.meta().name.clone(), replicas)]).await?;
        if self.is_complete() {
            self.clean_up(&old).await?;
        }
        let new = self.find_new();
        self.report(new.as_ref(), true).await
    }

    /// The ReplicaSet of the present template, brought up to date or made.
    async fn new_set(&mut self) -> Result<Set> {
        if let Some(found) = self.find_new() {
            let set = self.renew(found).await?;
            if status::deadline(&self.view).is_some() && status::find(&self.conditions, "Progressing").is_none() {
                let message = format!("Found new replica set {:?}", set.object.meta().name);
                status::set(&mut self.conditions, "Progressing", "True", "FoundNewReplicaSet", &message, self.at);
            }
            return Ok(set);
        }
        let goal = Goal::of(&self.view);
        let revision = self.next_revision(None);
        let total = self.sets.iter().map(Set::replicas).sum();
        let replicas = if self.is_recreated() { goal.replicas } else { rollout::new_size(goal, 0, total) };
        let collisions = self.view.status.as_ref().and_then(|status| status.collision_count);
        let hash = template_hash(self.template()?, collisions);
        let name = format!("{}-{hash}", self.deployment.meta().name);
        let wanted = self.new_set_value(&name, &hash, replicas, revision);
        let created = self
            .reign
            .client
            .create(
                &resources::replica_sets(),
                namespace(self.deployment.meta()),
                None,
                wanted,
                WriteOptions::default(),
            )
            .await;
        match created {
            Ok(object) => {
                let set = Set::of(object)?;
                self.replace(&set);
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.reign.events.normal(&self.deployment, "ScalingReplicaSet", message);
                }
                if status::deadline(&self.view).is_some() {
                    let message = format!("Created new replica set {name:?}");
                    status::set(&mut self.conditions, "Progressing", "True", "NewReplicaSetCreated", &message, self.at);
                }
                self.note_revision(revision).await?;
                Ok(set)
            }
            Err(error) if error.is_already_exists() => self.resolve_collision(&name, error).await,
            Err(error) if is_namespace_terminating(&error) => Err(error),
            Err(error) => {
                if status::deadline(&self.view).is_some() {
                    let message = format!("Failed to create new replica set {name:?}: {}", error.message);
                    let conditions = &mut self.conditions;
                    status::set(conditions, "Progressing", "False", "ReplicaSetCreateError", &message, self.at);
                    self.report(None, false).await?;
                }
                Err(error)
            }
        }
    }

    /// The name is taken: by our own ReplicaSet that the cache lacks yet, or by another
    /// template with the same hash. Then the next try takes another hash.
    async fn resolve_collision(&mut self, name: &str, error: Status) -> Result<Set> {
        let resource = resources::replica_sets();
        let live = self.reign.client.get(&resource, namespace(self.deployment.meta()), name).await?;
        let set = Set::of(live)?;
        let is_ours =
            set.object.meta().controller().is_some_and(|controller| controller.uid == self.deployment.meta().uid);
        let template = self.template()?;
        if is_ours && set.template().is_some_and(|other| same_template(template, other)) {
            self.replace(&set);
            return self.renew(set).await;
        }
        let mut status = self.view.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        update_status(self.reign.client.as_ref(), &resources::deployments(), &self.deployment, &status).await?;
        Err(error)
    }

    fn new_set_value(&self, name: &str, hash: &str, replicas: i32, revision: i64) -> Value {
        let meta = self.deployment.meta();
        let spec = &self.deployment.value()["spec"];
        let mut template = spec["template"].clone();
        // Also where a template says `labels: null`.
        if !template["metadata"]["labels"].is_object() {
            template["metadata"]["labels"] = json!({});
        }
        template["metadata"]["labels"][TEMPLATE_HASH_LABEL] = json!(hash);
        let mut selector = spec["selector"].clone();
        if !selector["matchLabels"].is_object() {
            selector["matchLabels"] = json!({});
        }
        selector["matchLabels"][TEMPLATE_HASH_LABEL] = json!(hash);
        let mut annotations = new_set_annotations(&meta.annotations, &BTreeMap::new(), revision);
        annotations.extend(size_annotations(Goal::of(&self.view)));
        json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": meta.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [controller_reference(&self.deployment)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": spec.get("minReadySeconds").and_then(Value::as_i64).unwrap_or(0),
                "selector": selector,
                "template": template,
            },
        })
    }

    fn next_revision(&self, new: Option<&Set>) -> i64 {
        let old = self.old_sets(new);
        old.iter().map(|set| revision_of(&set.object.meta().annotations)).max().unwrap_or(0) + 1
    }

    /// Makes an existing ReplicaSet the newest revision, in its annotations and ours.
    async fn renew(&mut self, set: Set) -> Result<Set> {
        let revision = self.next_revision(Some(&set));
        let meta = set.object.meta();
        let annotations = new_set_annotations(&self.deployment.meta().annotations, &meta.annotations, revision);
        let min_ready = self.view.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let has_min_ready = set.view.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let set = if annotations != meta.annotations || min_ready != has_min_ready {
            let mut value = Value::clone(set.object.value());
            value["metadata"]["annotations"] = json!(annotations);
            value["spec"]["minReadySeconds"] = json!(min_ready);
            let set = self.update_set(&set, value).await?;
            self.replace(&set);
            set
        } else {
            set
        };
        self.note_revision(revision_of(&set.object.meta().annotations)).await?;
        Ok(set)
    }

    /// The Deployment shows the revision of its newest ReplicaSet.
    async fn note_revision(&mut self, revision: i64) -> Result<()> {
        if revision_of(&self.deployment.meta().annotations) == revision {
            return Ok(());
        }
        let meta = self.deployment.meta();
        let patch = json!({"metadata": {"uid": meta.uid, "annotations": {REVISION: revision.to_string()}}});
        let patched = self
            .reign
            .client
            .patch(
                &resources::deployments(),
                namespace(meta),
                &meta.name,
                None,
                Patch::Merge(patch),
                WriteOptions::default(),
            )
            .await?;
        // What was decided so far rests on the spec that was read: another one starts over.
        if patched.meta().generation != meta.generation {
            let (group, resource) = ("apps", "deployments");
            return Err(Status::modified(group, resource, &meta.name));
        }
        self.view = typed(&patched)?;
        self.deployment = patched;
        Ok(())
    }

    /// Resizes the named sets; how many were not of their size already.
    async fn resize(&mut self, resizes: Vec<Resize>) -> Result<usize> {
        let mut resized = 0;
        let annotations = size_annotations(Goal::of(&self.view));
        for (name, to) in resizes {
            let Some(set) = self.sets.iter().find(|set| set.object.meta().name == name).cloned() else { continue };
            let from = set.replicas();
            let is_noted = annotations.iter().all(|(key, value)| set.object.meta().annotations.get(key) == Some(value));
            if from == to && is_noted {
                continue;
            }
            let mut value = Value::clone(set.object.value());
            value["spec"]["replicas"] = json!(to);
            if !value["metadata"]["annotations"].is_object() {
                value["metadata"]["annotations"] = json!({});
            }
            for (key, wanted) in &annotations {
                value["metadata"]["annotations"][key] = json!(wanted);
            }
            let set = self.update_set(&set, value).await?;
            self.replace(&set);
            if from != to {
                resized += 1;
                let direction = if from < to { "up" } else { "down" };
                let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
                self.reign.events.normal(&self.deployment, "ScalingReplicaSet", message);
            }
        }
        Ok(resized)
    }

    async fn update_set(&self, set: &Set, value: Value) -> Result<Set> {
        let meta = set.object.meta();
        let resource = resources::replica_sets();
        let client = &self.reign.client;
        Set::of(client.update(&resource, namespace(meta), &meta.name, None, value, WriteOptions::default()).await?)
    }

    fn is_complete(&self) -> bool {
        let counted = self.counts(self.find_new().as_ref());
        status::is_complete(&self.view, &counted)
    }

    /// Deletes the oldest empty revisions beyond the history limit.
    async fn clean_up(&self, old: &[Set]) -> Result<()> {
        let limit = self.view.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let limit = usize::try_from(limit.unwrap_or(DEFAULT_HISTORY_LIMIT)).unwrap_or(usize::MAX);
        let mut idle: Vec<&Set> = old.iter().filter(|set| set.is_idle()).collect();
        idle.sort_by_key(|set| (revision_of(&set.object.meta().annotations), set.created()));
        for set in &idle[..idle.len().saturating_sub(limit)] {
            let meta = set.object.meta();
            let options = DeleteOptions {
                uid: Some(meta.uid.clone()),
                propagation_policy: Some("Background".to_owned()),
                ..DeleteOptions::default()
            };
            let resource = resources::replica_sets();
            unless_gone(self.reign.client.delete(&resource, namespace(meta), &meta.name, options).await)?;
        }
        Ok(())
    }

    fn counts(&self, new: Option<&Set>) -> k8s_openapi::api::apps::v1::DeploymentStatus {
        let all: Vec<&ReplicaSet> = self.sets.iter().map(|set| set.view.as_ref()).collect();
        let new = new.map(|new| new.view.as_ref());
        status::counts(&self.view, Progress { conditions: self.conditions.clone(), new }, &all, self.at)
    }

    async fn report(&self, new: Option<&Set>, judges_progress: bool) -> Result<Requeue> {
        let mut status = self.counts(new);
        if judges_progress {
            // The new set's failures first: they say why nothing moves.
            let old = self.old_sets(new);
            let failures: Vec<&ReplicaSet> = new.into_iter().chain(&old).map(|set| set.view.as_ref()).collect();
            status::judge(&self.view, &mut status, new.map(|new| new.view.as_ref()), &failures, self.at);
        }
        update_status(self.reign.client.as_ref(), &resources::deployments(), &self.deployment, &status).await?;
        Ok(status::deadline_in(&self.view, &status, self.at).map_or(Requeue::Never, Requeue::After))
    }
}

impl Set {
    fn of(object: Arc<Object>) -> Result<Self> {
        let view = typed::<ReplicaSet>(&object)?;
        Ok(Self { object, view })
    }

    fn replicas(&self) -> i32 {
        self.view.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.view.spec.as_ref()?.template.as_ref()
    }

    fn created(&self) -> Timestamp {
        self.view.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0)
    }

    fn size(&self) -> Size {
        let status = self.view.status.as_ref();
        Size {
            name: self.object.meta().name.clone(),
            created: self.created(),
            replicas: self.replicas(),
            available: status.and_then(|status| status.available_replicas).unwrap_or(0),
            max_replicas: self.object.meta().annotations.get(MAX_REPLICAS).and_then(|max| max.parse().ok()),
        }
    }

    /// Has no pods, wants none, and its controller has seen that it wants none.
    fn is_idle(&self) -> bool {
        let status = self.view.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation).unwrap_or(0);
        self.replicas() == 0
            && status.is_none_or(|status| status.replicas == 0)
            && self.object.meta().generation <= observed
            && !self.object.meta().is_terminating()
    }
}

fn size_annotations(goal: Goal) -> [(String, String); 2] {
    [
        (DESIRED_REPLICAS.to_owned(), goal.replicas.to_string()),
        (MAX_REPLICAS.to_owned(), goal.max_replicas().to_string()),
    ]
}

fn has_running_pods(pods: &Lister, set: &Set) -> bool {
    let pods = pods.owned_by(&set.object.meta().uid);
    pods.iter().any(|pod| typed::<Pod>(pod).is_ok_and(|pod| !pods::is_finished(&pod)))
}

/// `None` for a selector that selects everything or does not parse.
fn selector_of(deployment: &Object) -> Option<LabelSelector> {
    LabelSelector::from_object(&deployment.value()["spec"]["selector"]).ok().filter(|selector| !selector.is_empty())
}
