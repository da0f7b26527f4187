//! The controllers together, in a world in memory: what comes of a user's wish, and what
//! of a deposed leader's. Time is paused, so that waiting costs nothing.

mod world;

use std::sync::Arc;
use std::time::Duration;

use quorate_controllers::{ApiResource, Config};
use quorate_proto::fence::Fence;
use quorate_proto::gvk::GroupVersionResource;
use quorate_runtime::client::{Client, DeleteOptions, Patch, WriteOptions};
use quorate_runtime::resources;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use world::World;

/// In the world's own time.
const DEADLINE: Duration = Duration::from_secs(60);

struct Cluster {
    world: World,
    /// The role of the first master.
    role: watch::Sender<Option<Fence>>,
    cancel: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Cluster {
    /// A master whose controllers wait to lead, and a node that runs every pod.
    async fn start() -> Self {
        let cluster = Self { world: World::new(), role: watch::Sender::new(None), cancel: CancellationToken::new() };
        cluster.start_master(cluster.world.clone(), &cluster.role);
        tokio::spawn(run_pods(cluster.world.clone()));
        cluster
            .create(
                resources::namespaces(),
                None,
                json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "a"}}),
            )
            .await;
        cluster
    }

    fn start_master(&self, world: World, role: &watch::Sender<Option<Fence>>) {
        let served = [
            (resources::config_maps(), "ConfigMap"),
            (resources::endpoint_slices(), "EndpointSlice"),
            (resources::endpoints(), "Endpoints"),
            (resources::pods(), "Pod"),
            (resources::service_accounts(), "ServiceAccount"),
            (resources::services(), "Service"),
            (resources::replica_sets(), "ReplicaSet"),
            (resources::deployments(), "Deployment"),
        ];
        let served =
            served.map(|(resource, kind)| ApiResource { resource, kind: kind.to_owned(), is_namespaced: true });
        let config =
            Config { identity: "m1".to_owned(), root_ca_pem: "the authority".to_owned(), resources: served.to_vec() };
        tokio::spawn(quorate_controllers::run(Arc::new(world), role.subscribe(), config, self.cancel.clone()));
    }

    fn lead(&self, term: Option<u64>) {
        let fence = term.map(|term| Fence { generation: 1, term });
        self.world.crown(fence);
        self.role.send_replace(fence);
    }

    async fn create(&self, resource: GroupVersionResource, namespace: Option<&str>, object: Value) {
        self.world.create(&resource, namespace, None, object, WriteOptions::default()).await.unwrap();
    }

    async fn patch_web(&self, patch: Value) {
        let resource = resources::deployments();
        let patch = Patch::Merge(patch);
        self.world.patch(&resource, Some("a"), "web", None, patch, WriteOptions::default()).await.unwrap();
    }

    async fn delete_web(&self, policy: &str) {
        let options = DeleteOptions { propagation_policy: Some(policy.to_owned()), ..DeleteOptions::default() };
        self.world.delete(&resources::deployments(), Some("a"), "web", options).await.unwrap();
    }

    /// Waits until `look` finds something.
    #[track_caller]
    fn until<T>(&self, what: &'static str, look: impl Fn(&World) -> Option<T>) -> impl Future<Output = T> {
        let caller = std::panic::Location::caller();
        async move {
            let start = tokio::time::Instant::now();
            loop {
                if let Some(found) = look(&self.world) {
                    return found;
                }
                let world = |resource| serde_json::to_string_pretty(&self.world.all(&resource)).unwrap();
                assert!(
                    start.elapsed() < DEADLINE,
                    "{caller}: not {what}:\n{}\n{}\n{}",
                    world(resources::deployments()),
                    world(resources::replica_sets()),
                    world(resources::events()),
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn until_rolled_out(&self, replicas: u64) -> Value {
        let is_rolled_out = move |web: &Value| {
            let status = &web["status"];
            let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            status["observedGeneration"] == web["metadata"]["generation"]
                && counts.iter().all(|count| status[count].as_u64().unwrap_or(0) == replicas)
                && conditions.iter().any(|one| one["reason"] == "NewReplicaSetAvailable")
        };
        self.until("rolled out", move |world| world.all(&resources::deployments()).into_iter().find(is_rolled_out))
            .await
    }

    fn messages(&self, reason: &str) -> Vec<String> {
        let mut events = self.world.all(&resources::events());
        events.retain(|event| event["reason"] == reason);
        events.sort_by_key(|event| event["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap());
        events.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }
}

fn web(image: &str, replicas: u32) -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web", "namespace": "a"},
           "spec": {"replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
                    "selector": {"matchLabels": {"app": "web"}},
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                    "template": {"metadata": {"labels": {"app": "web"}},
                                 "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn image_patch(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}

/// A scheduler and an agent in one: binds and starts what is new, ends what is deleted.
async fn run_pods(world: World) {
    let resource = resources::pods();
    let write = WriteOptions::default;
    loop {
        for (serial, pod) in world.all(&resource).into_iter().enumerate() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let namespace = pod["metadata"]["namespace"].as_str();
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
                let _ = world.delete(&resource, namespace, name, options).await;
            } else if pod["spec"]["nodeName"].is_null() && pod["spec"]["containers"][0]["image"] != "broken" {
                let bind = Patch::Merge(json!({"spec": {"nodeName": "n1"}}));
                let _ = world.patch(&resource, namespace, name, None, bind, write()).await;
                let started = json!({"status": {"phase": "Running", "podIP": format!("10.0.0.{}", serial + 1),
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                let _ = world.patch(&resource, namespace, name, Some("status"), Patch::Merge(started), write()).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_scales_and_rolls_back() {
    let cluster = Cluster::start().await;
    cluster.lead(Some(1));
    cluster.create(resources::deployments(), Some("a"), web("one", 3)).await;
    let first = cluster.until_rolled_out(3).await;
    assert_eq!(first["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let set = cluster.world.all(&resources::replica_sets()).remove(0);
    let set = set["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(cluster.messages("ScalingReplicaSet"), [format!("Scaled up replica set {set} from 0 to 3")]);

    cluster.patch_web(json!({"spec": {"replicas": 5}})).await;
    cluster.until_rolled_out(5).await;
    assert_eq!(cluster.messages("ScalingReplicaSet")[1], format!("Scaled up replica set {set} from 3 to 5"));

    cluster.patch_web(image_patch("two")).await;
    let second = cluster.until_rolled_out(5).await;
    assert_eq!(second["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    let mut pods = cluster.world.all(&resources::pods());
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "two"));

    // As `kubectl rollout undo` does: the old template again.
    cluster.patch_web(image_patch("one")).await;
    let third = cluster.until_rolled_out(5).await;
    assert_eq!(third["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    let sets = cluster.world.all(&resources::replica_sets());
    let again = sets.iter().find(|one| one["metadata"]["name"] == set.as_str()).unwrap();
    assert_eq!(again["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!((sets.len(), again["spec"]["replicas"].as_i64()), (2, Some(5)));
}

#[tokio::test(start_paused = true)]
async fn a_broken_rollout_keeps_the_old_pods() {
    let cluster = Cluster::start().await;
    cluster.lead(Some(1));
    cluster.create(resources::deployments(), Some("a"), web("one", 4)).await;
    cluster.until_rolled_out(4).await;
    cluster.patch_web(image_patch("broken")).await;
    tokio::time::sleep(DEADLINE).await;
    let pods = cluster.world.all(&resources::pods());
    let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
    assert_eq!((running, pods.len()), (3, 5));
}

#[tokio::test(start_paused = true)]
async fn a_recreation_never_mixes_revisions() {
    let cluster = Cluster::start().await;
    cluster.lead(Some(1));
    let mut deployment = web("one", 3);
    deployment["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create(resources::deployments(), Some("a"), deployment).await;
    cluster.until_rolled_out(3).await;
    cluster.patch_web(image_patch("two")).await;
    let is_done = |world: &World| {
        let pods = world.all(&resources::pods());
        let images: std::collections::BTreeSet<String> =
            pods.iter().map(|pod| pod["spec"]["containers"][0]["image"].to_string()).collect();
        assert!(images.len() <= 1, "{images:?}");
        (pods.len() == 3 && images.contains("\"two\"")).then_some(())
    };
    cluster.until("recreated", is_done).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_owned_goes_as_the_deletion_asked() {
    for (policy, sets_left, pods_left) in [("Background", 0, 0), ("Foreground", 0, 0), ("Orphan", 1, 2)] {
        let cluster = Cluster::start().await;
        cluster.lead(Some(1));
        cluster.create(resources::deployments(), Some("a"), web("one", 2)).await;
        cluster.until_rolled_out(2).await;
        cluster.delete_web(policy).await;
        cluster.until("deleted", |world| world.all(&resources::deployments()).is_empty().then_some(())).await;
        cluster
            .until("collected", |world| {
                let left = (world.all(&resources::replica_sets()).len(), world.all(&resources::pods()).len());
                (left == (sets_left, pods_left)).then_some(())
            })
            .await;
        let sets = cluster.world.all(&resources::replica_sets());
        let owned =
            |set: &Value| set["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
        assert!(!sets.iter().any(owned), "{policy}");
        // The same Deployment again finds what was left.
        if policy == "Orphan" {
            cluster.create(resources::deployments(), Some("a"), web("one", 2)).await;
            cluster.until_rolled_out(2).await;
            assert_eq!(cluster.world.all(&resources::pods()).len(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_finds_its_pods_and_a_namespace_takes_everything_with_it() {
    let cluster = Cluster::start().await;
    cluster.lead(Some(1));
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "a"},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.create(resources::services(), Some("a"), service).await;
    cluster.create(resources::deployments(), Some("a"), web("one", 2)).await;
    cluster.until_rolled_out(2).await;
    cluster
        .until("published", |world| {
            let endpoints = world.all(&resources::endpoints());
            let addresses = endpoints.first()?["subsets"][0]["addresses"].as_array()?.len();
            let slices = world.all(&resources::endpoint_slices());
            let in_slices: usize = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).map(Vec::len).sum();
            (addresses == 2 && in_slices == 2 && slices.len() == 1).then_some(())
        })
        .await;
    cluster
        .until("furnished", |world| {
            let map = world.all(&resources::config_maps()).into_iter().next()?;
            assert_eq!(map["data"]["ca.crt"], "the authority");
            world.all(&resources::service_accounts()).into_iter().next()
        })
        .await;

    cluster.world.delete(&resources::namespaces(), None, "a", DeleteOptions::default()).await.unwrap();
    cluster.until("gone", |world| world.all(&resources::namespaces()).is_empty().then_some(())).await;
    for resource in [resources::pods(), resources::services(), resources::config_maps(), resources::endpoint_slices()] {
        let left = cluster.world.all(&resource);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn loops_follow_leadership_and_pods_are_made_once() {
    let cluster = Cluster::start().await;
    cluster.create(resources::deployments(), Some("a"), web("one", 20)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.world.all(&resources::replica_sets()).is_empty(), "nobody leads");
    // Reigns that end in the middle of the work.
    for term in 1..=10 {
        cluster.lead(Some(term));
        tokio::time::sleep(Duration::from_millis(1)).await;
        cluster.lead(None);
        tokio::time::sleep(Duration::from_millis(term)).await;
    }
    cluster.lead(Some(11));
    cluster.until_rolled_out(20).await;
    let created = cluster.messages("SuccessfulCreate").len();
    assert_eq!(cluster.world.all(&resources::pods()).len(), 20, "{created} were made");
    assert!(cluster.messages("SuccessfulDelete").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_successor_knows_what_its_predecessor_wrote_last() {
    let cluster = Cluster::start().await;
    let successor = watch::Sender::new(None);
    cluster.start_master(cluster.world.lagging(resources::pods(), Duration::from_secs(5)), &successor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.create(resources::deployments(), Some("a"), web("one", 20)).await;
    cluster.lead(Some(1));
    cluster.until("made", |world| (world.all(&resources::pods()).len() == 20).then_some(())).await;

    // The first one is deposed without being told: its writes are refused all the same.
    let fence = Some(Fence { generation: 1, term: 2 });
    cluster.world.crown(fence);
    successor.send_replace(fence);
    cluster.until_rolled_out(20).await;
    assert_eq!(cluster.world.all(&resources::pods()).len(), 20);
    assert!(cluster.messages("SuccessfulDelete").is_empty());
}
