//! An API server in memory, as small as the controllers allow: it stamps metadata, refuses
//! stale versions and deposed leaders, keeps finalizers, and tells watchers. It knows no
//! kinds but Namespace and Pod; contracts with the real server are tested in `tests/`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use quorate_proto::fence::Fence;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::{
    Client, DeleteOptions, ListOptions, ObjectList, Patch, Result, WatchEvent, WriteOptions,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

type Key = (GroupVersionResource, String, String);

/// Cheap to clone; clones are the same world.
#[derive(Clone)]
pub(crate) struct World {
    shared: Arc<Shared>,
    /// Of which resource watchers through this handle hear late, and how late.
    lag: Option<(GroupVersionResource, Duration)>,
}

struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    /// Whose writes are taken, of those that carry a fence.
    fence: Mutex<Option<Fence>>,
}

struct Entry {
    revision: u64,
    resource: GroupVersionResource,
    event: WatchEvent,
    at: Instant,
}

#[derive(Default)]
struct State {
    revision: u64,
    names: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<Entry>,
}

impl World {
    pub(crate) fn new() -> Self {
        let shared = Shared { state: Mutex::default(), revision: watch::Sender::new(0), fence: Mutex::new(None) };
        Self { shared: Arc::new(shared), lag: None }
    }

    /// The same world, whose watchers hear late of one resource.
    pub(crate) fn lagging(&self, resource: GroupVersionResource, lag: Duration) -> Self {
        Self { lag: Some((resource, lag)), ..self.clone() }
    }

    /// Whose writes are taken from now on, of those that carry a fence.
    pub(crate) fn crown(&self, fence: Option<Fence>) {
        *self.shared.fence.lock().unwrap() = fence;
    }

    /// All objects of a resource, in the order of their keys.
    pub(crate) fn all(&self, resource: &GroupVersionResource) -> Vec<Value> {
        let state = self.state();
        state.objects.iter().filter(|(key, _)| key.0 == *resource).map(|(_, value)| value.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    fn write<T>(&self, options: &WriteOptions, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        if options.fence.is_some() && options.fence != *self.shared.fence.lock().unwrap() {
            return Err(Status::failure(409, "Conflict", "quorate: fence is no longer current"));
        }
        let outcome = change(&mut state);
        self.shared.revision.send_replace(state.revision);
        outcome
    }
}

impl State {
    fn find(&self, key: &Key) -> Result<Value> {
        self.objects.get(key).cloned().ok_or_else(|| Status::not_found(&key.0.group, &key.0.resource, &key.2))
    }

    fn put(&mut self, key: Key, mut value: Value, is_new: bool) -> Arc<Object> {
        self.revision += 1;
        value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(Object::from_value(&value, self.revision).unwrap());
        // What waits for nothing any more is gone.
        let finalizers = |value: &Value| value["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let is_over = object.meta().is_terminating()
            && !finalizers(&value["metadata"])
            && !finalizers(&value["spec"])
            && value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0;
        let event = if is_over {
            self.objects.remove(&key);
            WatchEvent::Deleted(Arc::clone(&object))
        } else {
            self.objects.insert(key.clone(), value);
            if is_new { WatchEvent::Added(Arc::clone(&object)) } else { WatchEvent::Modified(Arc::clone(&object)) }
        };
        self.log.push(Entry { revision: self.revision, resource: key.0, event, at: Instant::now() });
        object
    }

    fn replace(&mut self, key: Key, new: Value, subresource: Option<&str>) -> Result<Arc<Object>> {
        let old = self.find(&key)?;
        for field in ["resourceVersion", "uid"] {
            let asked = &new["metadata"][field];
            if !asked.is_null() && *asked != old["metadata"][field] {
                return Err(Status::modified(&key.0.group, &key.0.resource, &key.2));
            }
        }
        let mut value = match subresource {
            Some("status") => {
                let mut value = old.clone();
                value["status"] = new["status"].clone();
                value
            }
            Some("finalize") => {
                let mut value = old.clone();
                value["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
                value
            }
            _ => {
                let mut value = new;
                if let Some(status) = old.get("status") {
                    value["status"] = status.clone();
                }
                value
            }
        };
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
        for field in ["uid", "creationTimestamp"] {
            value["metadata"][field] = old["metadata"][field].clone();
        }
        value["metadata"]["generation"] = json!(generation + i64::from(value["spec"] != old["spec"]));
        Ok(self.put(key, value, false))
    }
}

fn key(resource: &GroupVersionResource, namespace: Option<&str>, name: &str) -> Key {
    (resource.clone(), namespace.unwrap_or_default().to_owned(), name.to_owned())
}

fn now() -> Value {
    json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn parse(value: &Value) -> Arc<Object> {
    let revision = value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap();
    Arc::new(Object::from_value(value, revision).unwrap())
}

/// RFC 7386, and of the strategic kind the one list that controllers patch by key.
fn merge(target: &mut Value, patch: &Value, is_strategic: bool) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else if is_strategic && name == "ownerReferences" {
            let mut owners = target[name].as_array().cloned().unwrap_or_default();
            for item in value.as_array().unwrap() {
                owners.retain(|owner| owner["uid"] != item["uid"]);
                if item["$patch"] != "delete" {
                    owners.push(item.clone());
                }
            }
            target[name] = json!(owners);
        } else {
            merge(&mut target[name], value, is_strategic);
        }
    }
}

impl Client for World {
    fn get<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        let found = self.state().find(&key(resource, namespace, name)).map(|value| parse(&value));
        Box::pin(async move { found })
    }

    fn list<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        _options: ListOptions,
    ) -> BoxFuture<'a, Result<ObjectList>> {
        let state = self.state();
        let is_asked = |key: &Key| key.0 == *resource && namespace.is_none_or(|namespace| key.1 == namespace);
        let items = state.objects.iter().filter(|(key, _)| is_asked(key)).map(|(_, value)| parse(value)).collect();
        let list = ObjectList { items, revision: state.revision, continue_token: String::new() };
        Box::pin(async move { Ok(list) })
    }

    fn watch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        _namespace: Option<&'a str>,
        _options: ListOptions,
        revision: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchEvent>>>> {
        let (world, resource) = (self.clone(), resource.clone());
        let lag = self.lag.as_ref().filter(|(late, _)| *late == resource).map_or(Duration::ZERO, |(_, lag)| *lag);
        let start = (self.shared.revision.subscribe(), revision);
        let events = stream::unfold(start, move |(mut signal, seen)| {
            let (world, resource) = (world.clone(), resource.clone());
            async move {
                loop {
                    signal.borrow_and_update();
                    let is_next = |entry: &&Entry| entry.revision > seen && entry.resource == resource;
                    let next = world
                        .state()
                        .log
                        .iter()
                        .find(is_next)
                        .map(|entry| (entry.revision, entry.event.clone(), entry.at));
                    if let Some((revision, event, at)) = next {
                        tokio::time::sleep_until(at + lag).await;
                        return Some((Ok(event), (signal, revision)));
                    }
                    signal.changed().await.ok()?;
                }
            }
        });
        Box::pin(async move { Ok(events.boxed()) })
    }

    fn create<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        subresource: Option<(&'a str, &'a str)>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        assert!(subresource.is_none(), "not supported");
        let created = self.write(&options, |state| {
            let mut value = object;
            state.names += 1;
            let serial = state.names;
            if value["metadata"]["name"].is_null() {
                let prefix = value["metadata"]["generateName"].as_str().unwrap().to_owned();
                value["metadata"]["name"] = json!(format!("{prefix}{serial:05}"));
            }
            let name = value["metadata"]["name"].as_str().unwrap().to_owned();
            let key = key(resource, namespace, &name);
            if state.objects.contains_key(&key) {
                return Err(Status::already_exists(&resource.group, &resource.resource, &name));
            }
            value["metadata"]["uid"] = json!(format!("uid-{serial}"));
            value["metadata"]["generation"] = json!(1);
            value["metadata"]["creationTimestamp"] = now();
            if resource.resource == "namespaces" {
                value["spec"]["finalizers"] = json!(["kubernetes"]);
            }
            Ok(state.put(key, value, true))
        });
        Box::pin(async move { created })
    }

    fn update<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        let updated = self.write(&options, |state| state.replace(key(resource, namespace, name), object, subresource));
        Box::pin(async move { updated })
    }

    fn patch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        patch: Patch,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        let patched = self.write(&options, |state| {
            let key = key(resource, namespace, name);
            let mut value = state.find(&key)?;
            match &patch {
                Patch::Merge(patch) => merge(&mut value, patch, false),
                Patch::Strategic(patch) => merge(&mut value, patch, true),
                Patch::Json(_) => panic!("not supported"),
            }
            state.replace(key, value, subresource)
        });
        Box::pin(async move { patched })
    }

    fn delete<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        options: DeleteOptions,
    ) -> BoxFuture<'a, Result<()>> {
        let deleted = self.write(&options.write, |state| {
            let key = key(resource, namespace, name);
            let mut value = state.find(&key)?;
            let meta = &mut value["metadata"];
            let differs = |asked: &Option<String>, has: &Value| asked.as_ref().is_some_and(|asked| *has != **asked);
            if differs(&options.uid, &meta["uid"]) || differs(&options.resource_version, &meta["resourceVersion"]) {
                return Err(Status::conflict(&resource.group, &resource.resource, name, "precondition failed"));
            }
            let finalizer = match options.propagation_policy.as_deref() {
                Some("Orphan") => Some("orphan"),
                Some("Foreground") => Some("foregroundDeletion"),
                _ => None,
            };
            if let Some(finalizer) = finalizer {
                let mut finalizers = meta["finalizers"].as_array().cloned().unwrap_or_default();
                finalizers.push(json!(finalizer));
                meta["finalizers"] = json!(finalizers);
            }
            // The agent of a pod's node says when it is over, by a deletion without grace.
            let has_agent = resource.resource == "pods" && value["spec"]["nodeName"].is_string();
            let grace = options.grace_period_seconds.unwrap_or(if has_agent { 30 } else { 0 });
            value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            if value["metadata"]["deletionTimestamp"].is_null() {
                value["metadata"]["deletionTimestamp"] = now();
            }
            state.put(key, value, false);
            Ok(())
        });
        Box::pin(async move { deleted })
    }
}
