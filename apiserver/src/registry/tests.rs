//! The verbs over a real store, in process.

use std::time::Duration;

use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::testing::{World, def, target};
use super::{Config, DeleteRequest, ListQuery, PatchBody, Target, WatchQuery};
use crate::watch_cache::Seen;

impl World {
    async fn create(&self, group: &str, name: &str, mut object: Value) -> Result<Value, Status> {
        let def = def(group, name);
        object["kind"] = def.kind.into();
        object["apiVersion"] = def.api_version().into();
        let created = self.registry.create(&self.context, target(def, ""), object).await?;
        Ok(created.value().as_ref().clone())
    }

    async fn get(&self, group: &str, resource: &str, name: &str) -> Result<Value, Status> {
        let object = self.registry.get(target(def(group, resource), name), "").await?;
        Ok(object.value().as_ref().clone())
    }

    async fn update(&self, target: Target<'_>, object: Value) -> Result<Value, Status> {
        let written = self.registry.update(&self.context, target, object).await?;
        Ok(written.object.value().as_ref().clone())
    }

    async fn delete(&self, target: Target<'_>) -> Result<bool, Status> {
        Ok(self.registry.delete(&self.context, target, &DeleteRequest::default()).await?.gone)
    }
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_live_and_die() {
    let world = World::start().await;
    let created =
        world.create("", "configmaps", json!({"metadata": {"generateName": "c-"}, "data": {"a": "1"}})).await.unwrap();
    let name = created["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(name.len(), 7);
    assert!(created["metadata"]["uid"].is_string());
    let maps = def("", "configmaps");

    let mut changed = created.clone();
    changed["data"]["a"] = "2".into();
    let updated = world.update(target(maps, &name), changed.clone()).await.unwrap();
    let stale = world.update(target(maps, &name), changed).await.unwrap_err();
    assert_eq!(
        stale.message,
        format!(
            "Operation cannot be fulfilled on configmaps {name:?}: the object has been modified; please apply your changes to the latest version and try again"
        )
    );
    let again = world.update(target(maps, &name), updated.clone()).await.unwrap();
    assert_eq!(again["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"], "nothing changed");

    let patch = PatchBody::Merge(json!({"data": {"b": "3"}}));
    let patched = world.registry.patch(&world.context, target(maps, &name), &patch).await.unwrap();
    assert_eq!(patched.object.value()["data"], json!({"a": "2", "b": "3"}));

    assert!(world.delete(target(maps, &name)).await.unwrap());
    let gone = world.get("", "configmaps", &name).await.unwrap_err();
    assert_eq!(gone.message, format!("configmaps {name:?} not found"));
    assert_eq!(world.delete(target(maps, &name)).await.unwrap_err().code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_objects_are_refused_in_upstreams_words() {
    let world = World::start().await;
    let refused = world.create("", "pods", json!({"metadata": {"name": "Bad"}, "spec": {}})).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert!(refused.message.starts_with(
        "Pod \"Bad\" is invalid: [metadata.name: Invalid value: \"Bad\": a lowercase RFC 1123 subdomain must consist of"
    ));
    assert!(refused.message.ends_with("spec.containers: Required value]"), "{}", refused.message);

    let pods = def("", "pods");
    let elsewhere = Target { namespace: "nowhere", ..target(pods, "") };
    let mut object = pod("a");
    object["kind"] = "Pod".into();
    object["apiVersion"] = "v1".into();
    let missing = world.registry.create(&world.context, elsewhere, object).await.unwrap_err();
    assert_eq!(missing.message, "namespaces \"nowhere\" not found");

    world.create("", "pods", pod("a")).await.unwrap();
    let twice = world.create("", "pods", pod("a")).await.unwrap_err();
    assert_eq!(twice.message, "pods \"a\" already exists");
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let mut created = world.create("apps", "deployments", deployment).await.unwrap();
    assert_eq!(created["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": "25%", "maxUnavailable": "25%"}));
    assert_eq!(created["metadata"]["generation"], 1);
    created["spec"]["selector"]["matchLabels"] = json!({"app": "e"});
    created["spec"]["template"]["metadata"]["labels"] = json!({"app": "e"});
    let fixed = world.update(target(def("apps", "deployments"), "d"), created).await.unwrap_err();
    assert_eq!(
        fixed.message,
        "Deployment.apps \"d\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"e\"}}: field is immutable"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_spec_are_written_apart() {
    let world = World::start().await;
    let created = world.create("", "pods", pod("p")).await.unwrap();
    assert_eq!(created["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    let pods = def("", "pods");
    let mut changed = created.clone();
    changed["status"]["phase"] = "Running".into();
    changed["spec"]["nodeName"] = "ignored".into();
    let status = Target { subresource: "status", ..target(pods, "p") };
    let written = world.update(status, changed).await.unwrap();
    assert_eq!(written["status"]["phase"], "Running");
    assert!(written["spec"].get("nodeName").is_none());
    assert_eq!(written["metadata"]["generation"], created["metadata"]["generation"]);

    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let bind = Target { subresource: "binding", ..target(pods, "p") };
    world.registry.create_subresource(&world.context, bind, binding.clone()).await.unwrap();
    assert_eq!(world.get("", "pods", "p").await.unwrap()["spec"]["nodeName"], "n1");
    let twice = world.registry.create_subresource(&world.context, bind, binding).await.unwrap_err();
    assert_eq!(
        twice.message,
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );

    // A running pod ends when its node says so.
    assert!(!world.delete(target(pods, "p")).await.unwrap());
    let now = DeleteRequest { grace_period_seconds: Some(0), ..DeleteRequest::default() };
    assert!(world.registry.delete(&world.context, target(pods, "p"), &now).await.unwrap().gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_hold_objects_and_namespaces() {
    let world = World::start().await;
    let maps = def("", "configmaps");
    world.create("", "configmaps", json!({"metadata": {"name": "held", "finalizers": ["x/y"]}})).await.unwrap();
    assert!(!world.delete(target(maps, "held")).await.unwrap());
    let patch = PatchBody::Merge(json!({"metadata": {"finalizers": null}}));
    world.registry.patch(&world.context, target(maps, "held"), &patch).await.unwrap();
    assert_eq!(world.get("", "configmaps", "held").await.unwrap_err().code, 404);

    let namespaces = def("", "namespaces");
    world.delete(target(namespaces, "default")).await.unwrap();
    let terminating = world.get("", "namespaces", "default").await.unwrap();
    assert_eq!(terminating["status"]["phase"], "Terminating");
    let refused = world.create("", "pods", pod("late")).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"late\" is forbidden: unable to create new content in namespace default because it is being terminated"
    );
    let finalize = Target { subresource: "finalize", ..target(namespaces, "default") };
    let mut done = terminating;
    done["spec"]["finalizers"] = json!([]);
    world.update(finalize, done).await.unwrap();
    assert_eq!(world.get("", "namespaces", "default").await.unwrap_err().code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_never_share_addresses() {
    let world = World::start().await;
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 80}]);
    let first = world.create("", "services", service("a", json!({"ports": ports, "type": "NodePort"}))).await.unwrap();
    let address = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(Config::default().service_cidr.contains(&address.parse::<std::net::Ipv4Addr>().unwrap()));
    let port = first["spec"]["ports"][0]["nodePort"].clone();
    assert!(port.as_i64().is_some_and(|port| (30000..=32767).contains(&port)));
    let taken =
        world.create("", "services", service("b", json!({"ports": ports, "clusterIP": address}))).await.unwrap_err();
    assert_eq!(
        taken.message,
        format!(
            "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [{address:?}]: failed to allocate IP {address}: provided IP is already allocated"
        )
    );
    let asked = json!([{"port": 80, "nodePort": port}]);
    let taken =
        world.create("", "services", service("b", json!({"ports": asked, "type": "NodePort"}))).await.unwrap_err();
    assert!(taken.message.ends_with("provided port is already allocated"), "{}", taken.message);
    world.delete(target(def("", "services"), "a")).await.unwrap();
    world
        .create("", "services", service("b", json!({"ports": asked, "type": "NodePort", "clusterIP": address})))
        .await
        .unwrap();
    let mut kept = world.get("", "services", "b").await.unwrap();
    kept["spec"]["clusterIP"] = "10.96.7.7".into();
    kept["spec"]["clusterIPs"] = json!(["10.96.7.7"]);
    let fixed = world.update(target(def("", "services"), "b"), kept).await.unwrap_err();
    assert!(
        fixed.message.contains("spec.clusterIPs[0]: Invalid value: \"10.96.7.7\": may not change once set"),
        "{}",
        fixed.message
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_list_are_of_one_revision() {
    let world = World::start().await;
    for name in ["a", "b", "c", "d"] {
        world.create("", "configmaps", json!({"metadata": {"name": name}})).await.unwrap();
    }
    let maps = def("", "configmaps");
    let names = |listed: &super::Listed| listed.items.iter().map(|item| item.meta().name.clone()).collect::<Vec<_>>();
    let query = ListQuery { limit: 2, ..ListQuery::default() };
    let first = world.registry.list(maps, "default", &query).await.unwrap();
    assert_eq!((names(&first), first.remaining), (vec!["a".to_owned(), "b".to_owned()], Some(2)));
    world.delete(target(maps, "c")).await.unwrap();
    world.create("", "configmaps", json!({"metadata": {"name": "bb"}})).await.unwrap();
    let query = ListQuery { limit: 2, continue_token: first.continue_token.clone(), ..ListQuery::default() };
    let second = world.registry.list(maps, "default", &query).await.unwrap();
    assert_eq!(names(&second), ["c", "d"], "as it was when the list began");
    assert_eq!((second.revision, second.continue_token.as_str()), (first.revision, ""));
    let now = world.registry.list(maps, "default", &ListQuery::default()).await.unwrap();
    assert_eq!(names(&now), ["a", "b", "bb", "d"]);
    let exact = ListQuery {
        resource_version: first.revision.to_string(),
        resource_version_match: "Exact".to_owned(),
        ..ListQuery::default()
    };
    assert_eq!(names(&world.registry.list(maps, "default", &exact).await.unwrap()), ["a", "b", "c", "d"]);
    let future = ListQuery { resource_version: "999999999".to_owned(), ..ListQuery::default() };
    let early = world.registry.list(maps, "default", &future).await.unwrap_err();
    assert_eq!((early.code, early.details.unwrap().causes[0].reason.as_str()), (504, "ResourceVersionTooLarge"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selector_shows_objects_come_and_go() {
    let world = World::start().await;
    let maps = def("", "configmaps");
    world
        .create("", "configmaps", json!({"metadata": {"name": "in", "labels": {"x": "1"}}, "data": {"a": "1"}}))
        .await
        .unwrap();
    let query = WatchQuery {
        labels: "x=1".to_owned(),
        send_initial_events: Some(true),
        resource_version_match: "NotOlderThan".to_owned(),
        ..WatchQuery::default()
    };
    let mut watching = world.registry.watch(maps, "default", &query).await.unwrap();
    assert_eq!(watching.initial.len(), 1);
    assert!(watching.initial_end.is_some());
    world.create("", "configmaps", json!({"metadata": {"name": "out"}})).await.unwrap();
    let left = PatchBody::Merge(json!({"metadata": {"labels": {"x": "2"}}, "data": {"a": "2"}}));
    let written = world.registry.patch(&world.context, target(maps, "in"), &left).await.unwrap();
    let back = PatchBody::Merge(json!({"metadata": {"labels": {"x": "1"}}}));
    world.registry.patch(&world.context, target(maps, "in"), &back).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(tokio::time::timeout(Duration::from_secs(5), watching.watcher.next()).await.unwrap().unwrap());
    }
    let Seen::Deleted(last) = &seen[0] else { panic!("it left the selector: {:?}", seen[0]) };
    assert_eq!(last.value()["data"]["a"], "1", "the last state that was visible");
    assert_eq!(last.revision(), written.object.revision(), "at the revision of the change");
    assert!(matches!(&seen[1], Seen::Added(object) if object.value()["data"]["a"] == "2"));
    let old = WatchQuery { resource_version: "1".to_owned(), ..WatchQuery::default() };
    let expired = world.registry.watch(maps, "default", &old).await.unwrap_err();
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    assert!(expired.message.starts_with("too old resource version: 1 ("));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_server() {
    let world = World::start().await;
    let maps = def("", "configmaps");
    let created = world.create("", "configmaps", json!({"metadata": {"name": "a"}, "data": {"n": "1"}})).await.unwrap();
    let patch = PatchBody::Merge(json!({"data": {"n": "2"}}));
    world.registry.patch(&world.context, target(maps, "a"), &patch).await.unwrap();
    world.delete(target(maps, "a")).await.unwrap();

    // This one starts after everything has happened.
    let other = world.another_server().await;
    let from = created["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let query = WatchQuery { resource_version: from, ..WatchQuery::default() };
    let mut watching = other.watch(maps, "default", &query).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(tokio::time::timeout(Duration::from_secs(5), watching.watcher.next()).await.unwrap().unwrap());
    }
    assert!(matches!(&seen[0], Seen::Modified(object) if object.value()["data"]["n"] == "2"), "{:?}", seen[0]);
    assert!(matches!(&seen[1], Seen::Deleted(object) if object.value()["data"]["n"] == "2"), "{:?}", seen[1]);
}
