//! As much of the API as one agent needs, in memory: the agent's other side in these tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::{
    Client, DeleteOptions, ListOptions, ObjectList, Patch, Result, WatchEvent, WriteOptions,
};
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Key = (String, String, String);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Arc<Object>>,
}

/// Objects by resource, namespace and name. Selectors are not evaluated: all pods here
/// belong to the one node.
pub(crate) struct MemoryApi {
    state: Mutex<State>,
    events: broadcast::Sender<(String, WatchEvent)>,
}

fn key(resource: &GroupVersionResource, namespace: Option<&str>, name: &str) -> Key {
    (resource.resource.clone(), namespace.unwrap_or_default().to_owned(), name.to_owned())
}

fn missing(key: &Key) -> Status {
    Status::not_found("", &key.0, &key.2)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().unwrap();
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

impl MemoryApi {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), events: broadcast::channel(4096).0 })
    }

    /// Stores what `change` makes of the object; `None` deletes it.
    fn write(&self, key: Key, change: impl FnOnce(Option<&Value>) -> Result<Option<Value>>) -> Result<Arc<Object>> {
        let mut state = self.state.lock().unwrap();
        let old = state.objects.get(&key).cloned();
        let new = change(old.as_ref().map(|object| &**object.value()))?;
        state.revision += 1;
        let revision = state.revision;
        let value = new.clone().or_else(|| old.as_ref().map(|object| (**object.value()).clone())).unwrap();
        let object = Arc::new(Object::from_value(&value, revision).map_err(Status::internal)?);
        let event = match (&old, &new) {
            (_, None) => {
                state.objects.remove(&key);
                WatchEvent::Deleted(Arc::clone(&object))
            }
            (None, Some(_)) => {
                state.objects.insert(key.clone(), Arc::clone(&object));
                WatchEvent::Added(Arc::clone(&object))
            }
            (Some(_), Some(_)) => {
                state.objects.insert(key.clone(), Arc::clone(&object));
                WatchEvent::Modified(Arc::clone(&object))
            }
        };
        let _ = self.events.send((key.0, event));
        Ok(object)
    }

    /// What `kubectl delete` does to a pod that runs.
    pub(crate) fn ask_to_delete(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        name: &str,
        grace_seconds: i64,
    ) {
        let change = |old: Option<&Value>| {
            let mut value = old.unwrap().clone();
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            value["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
            Ok(Some(value))
        };
        self.write(key(resource, Some(namespace), name), change).unwrap();
    }

    pub(crate) fn read(&self, resource: &GroupVersionResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let state = self.state.lock().unwrap();
        state.objects.get(&key(resource, Some(namespace), name)).map(|object| Arc::clone(object.value()))
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Arc<Value>> {
        let state = self.state.lock().unwrap();
        state
            .objects
            .iter()
            .filter(|(key, _)| key.0 == resource)
            .map(|(_, object)| Arc::clone(object.value()))
            .collect()
    }
}

impl Client for MemoryApi {
    fn get<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        async move {
            let key = key(resource, namespace, name);
            self.state.lock().unwrap().objects.get(&key).cloned().ok_or_else(|| missing(&key))
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        _: ListOptions,
    ) -> BoxFuture<'a, Result<ObjectList>> {
        async move {
            let state = self.state.lock().unwrap();
            let of_resource = state.objects.iter().filter(|((kind, place, _), _)| {
                *kind == resource.resource && namespace.is_none_or(|namespace| namespace == place)
            });
            let items = of_resource.map(|(_, object)| Arc::clone(object)).collect();
            Ok(ObjectList { items, revision: state.revision, continue_token: String::new() })
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        _: Option<&'a str>,
        _: ListOptions,
        revision: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchEvent>>>> {
        async move {
            let events = self.events.subscribe();
            if self.state.lock().unwrap().revision != revision {
                return Err(Status::expired("the list is old"));
            }
            let resource = resource.resource.clone();
            let stream = futures::stream::unfold((events, resource), |(mut events, resource)| async move {
                loop {
                    match events.recv().await {
                        Ok((of, event)) if of == resource => return Some((Ok(event), (events, resource))),
                        Ok(_) => {}
                        Err(_) => return None,
                    }
                }
            });
            Ok(stream.boxed())
        }
        .boxed()
    }

    fn create<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        subresource: Option<(&'a str, &'a str)>,
        object: Value,
        _: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        async move {
            if let Some((name, "token")) = subresource {
                let mut answer = object;
                answer["metadata"]["name"] = json!(name);
                answer["status"] = json!({"token": "a-token", "expirationTimestamp": "2099-01-01T00:00:00Z"});
                return Ok(Arc::new(Object::from_value(&answer, 1).map_err(Status::internal)?));
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.write(key(resource, namespace, &name), |old| match old {
                Some(_) => Err(Status::already_exists("", &resource.resource, &name)),
                None => {
                    let mut object = object;
                    if object["metadata"]["uid"].is_null() {
                        object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
                    }
                    Ok(Some(object))
                }
            })
        }
        .boxed()
    }

    fn update<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        _: Option<&'a str>,
        object: Value,
        _: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        async move { self.write(key(resource, namespace, name), |_| Ok(Some(object))) }.boxed()
    }

    fn patch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        _: Option<&'a str>,
        patch: Patch,
        _: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        async move {
            let key = key(resource, namespace, name);
            let lost = missing(&key);
            self.write(key, |old| {
                let mut value = old.ok_or(lost)?.clone();
                match &patch {
                    Patch::Merge(change) | Patch::Strategic(change) => merge(&mut value, change),
                    Patch::Json(_) => return Err(Status::bad_request("not supported")),
                }
                Ok(Some(value))
            })
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        _: DeleteOptions,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let key = key(resource, namespace, name);
            let lost = missing(&key);
            self.write(key, |old| if old.is_some() { Ok(None) } else { Err(lost) }).map(drop)
        }
        .boxed()
    }
}
