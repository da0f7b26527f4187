//! The runtime's Client in process: the registry's verbs, the cache's very objects, no JSON.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::{
    Client, DeleteOptions, ListOptions, ObjectList, Patch, Result, WatchEvent, WriteOptions,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::authn::User;
use crate::registry::context::RequestContext;
use crate::registry::convert;
use crate::registry::{DeleteRequest, ListQuery, PatchBody, Registry, Target, WatchQuery};
use crate::schema::{FieldValidation, ResourceDef, decode, decode_kind, resource};
use crate::watch_cache::{Seen, Watcher};

/// How often a watch that sees nothing says how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);

struct InProcess {
    registry: Registry,
    user: User,
}

impl Registry {
    /// A client for parts of this very process: it may do everything.
    pub fn client(&self) -> Arc<dyn Client> {
        self.client_as(User::system("system:apiserver"))
    }

    /// A client whose writes admission sees as `user`'s; nothing is authorized again.
    pub fn client_as(&self, user: User) -> Arc<dyn Client> {
        Arc::new(InProcess { registry: self.clone(), user })
    }
}

impl InProcess {
    fn context(&self, options: WriteOptions) -> RequestContext {
        RequestContext {
            user: self.user.clone(),
            fence: options.fence,
            field_manager: options.field_manager,
            field_validation: FieldValidation::Ignore,
            ..RequestContext::default()
        }
    }
}

fn def_of(resource_name: &GroupVersionResource) -> Result<&'static ResourceDef> {
    resource(&resource_name.group, &resource_name.version, &resource_name.resource)
        .ok_or_else(|| Status::failure(404, "NotFound", "the server could not find the requested resource"))
}

fn target<'a>(
    def: &'static ResourceDef,
    namespace: Option<&'a str>,
    name: &'a str,
    subresource: Option<&'a str>,
) -> Target<'a> {
    Target { def, namespace: namespace.unwrap_or_default(), name, subresource: subresource.unwrap_or_default() }
}

/// Brings an object that was built in this process into the form that bodies have.
fn canonical(def: &ResourceDef, subresource: Option<&str>, object: &mut Value) -> Result<()> {
    if !object.is_object() {
        return Err(Status::bad_request("the object is not a JSON object"));
    }
    match subresource.and_then(|name| def.subresource(name)) {
        Some(sub) if sub.kind != def.kind => {
            decode_kind(sub.group, sub.version, sub.kind, object, &[], FieldValidation::Ignore).map(drop)
        }
        _ => {
            object["apiVersion"] = def.api_version().into();
            object["kind"] = def.kind.into();
            decode(def, object, FieldValidation::Ignore).map(drop)
        }
    }
}

impl Client for InProcess {
    fn get<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move { self.registry.get(target(def_of(resource)?, namespace, name, None), "").await })
    }

    fn list<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
    ) -> BoxFuture<'a, Result<ObjectList>> {
        Box::pin(async move {
            let query = ListQuery {
                labels: options.label_selector,
                fields: options.field_selector,
                limit: options.limit,
                continue_token: options.continue_token,
                ..ListQuery::default()
            };
            let listed = self.registry.list(def_of(resource)?, namespace.unwrap_or_default(), &query).await?;
            Ok(ObjectList { items: listed.items, revision: listed.revision, continue_token: listed.continue_token })
        })
    }

    fn watch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
        revision: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchEvent>>>> {
        Box::pin(async move {
            let def = def_of(resource)?;
            let query = WatchQuery {
                labels: options.label_selector,
                fields: options.field_selector,
                resource_version: revision.to_string(),
                send_initial_events: None,
                ..WatchQuery::default()
            };
            let watching = self.registry.watch(def, namespace.unwrap_or_default(), &query).await?;
            let pending = watching.initial.into_iter().map(WatchEvent::Added).collect();
            let ending = self.registry.ending().clone();
            let stream = Stream { def, watcher: watching.watcher, pending, ending };
            Ok(Box::pin(futures::stream::unfold(Some(stream), Stream::step)) as BoxStream<'static, _>)
        })
    }

    fn create<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        subresource: Option<(&'a str, &'a str)>,
        mut object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move {
            let def = def_of(resource)?;
            let context = self.context(options);
            canonical(def, subresource.map(|(_, name)| name), &mut object)?;
            match subresource {
                None => self.registry.create(&context, target(def, namespace, "", None), object).await,
                Some((name, subresource)) => {
                    let target = target(def, namespace, name, Some(subresource));
                    let answer = self.registry.create_subresource(&context, target, object).await?;
                    Object::from_value(&answer, 0).map(Arc::new).map_err(Status::internal)
                }
            }
        })
    }

    fn update<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        mut object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move {
            let def = def_of(resource)?;
            canonical(def, subresource, &mut object)?;
            let target = target(def, namespace, name, subresource);
            Ok(self.registry.update(&self.context(options), target, object).await?.object)
        })
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
        Box::pin(async move {
            let patch = match patch {
                Patch::Json(patch) => PatchBody::Json(patch),
                Patch::Merge(patch) => PatchBody::Merge(patch),
                Patch::Strategic(patch) => PatchBody::Strategic(patch),
            };
            let target = target(def_of(resource)?, namespace, name, subresource);
            Ok(self.registry.patch(&self.context(options), target, &patch).await?.object)
        })
    }

    fn delete<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        options: DeleteOptions,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let request = DeleteRequest {
                grace_period_seconds: options.grace_period_seconds,
                propagation_policy: options.propagation_policy,
                orphan_dependents: None,
                uid: options.uid,
                resource_version: options.resource_version,
            };
            let target = target(def_of(resource)?, namespace, name, None);
            self.registry.delete(&self.context(options.write), target, &request).await.map(drop)
        })
    }
}

/// A watch as a stream of single events.
struct Stream {
    def: &'static ResourceDef,
    watcher: Watcher,
    pending: VecDeque<WatchEvent>,
    ending: CancellationToken,
}

impl Stream {
    async fn step(stream: Option<Self>) -> Option<(Result<WatchEvent>, Option<Self>)> {
        let mut stream = stream?;
        loop {
            if let Some(event) = stream.pending.pop_front() {
                return Some((Ok(event), Some(stream)));
            }
            let seen = tokio::select! {
                seen = stream.watcher.next() => seen,
                () = tokio::time::sleep(BOOKMARK_INTERVAL) => {
                    let bookmark = WatchEvent::Bookmark(stream.watcher.delivered());
                    return Some((Ok(bookmark), Some(stream)));
                }
                () = stream.ending.cancelled() => return None,
            };
            match seen.and_then(|seen| seen.into_iter().map(|seen| event(stream.def, seen)).collect::<Result<Vec<_>>>())
            {
                Ok(events) => stream.pending.extend(events),
                Err(status) => return Some((Err(status), None)),
            }
        }
    }
}

fn event(def: &'static ResourceDef, seen: Seen) -> Result<WatchEvent> {
    Ok(match seen {
        Seen::Added(object) => WatchEvent::Added(convert::from_storage(def, object)?),
        Seen::Modified(object) => WatchEvent::Modified(convert::from_storage(def, object)?),
        Seen::Deleted(object) => WatchEvent::Deleted(convert::from_storage(def, object)?),
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use serde_json::json;

    use super::*;
    use crate::registry::testing::World;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn components_share_the_caches_objects() {
        let world = World::start().await;
        let client = world.registry.client();
        let pods = GroupVersionResource::new("", "v1", "pods");
        let namespace = Some("default");
        let object = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let list = client.list(&pods, namespace, ListOptions::default()).await.unwrap();
        assert!(list.items.is_empty());
        let mut watch = client.watch(&pods, namespace, ListOptions::default(), list.revision).await.unwrap();
        client.create(&pods, namespace, None, object, WriteOptions::default()).await.unwrap();
        let Some(Ok(WatchEvent::Added(seen))) = watch.next().await else { panic!("the pod appears") };
        let got = client.get(&pods, namespace, "p").await.unwrap();
        assert!(Arc::ptr_eq(&seen, &got), "one object for everybody");

        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
        client.create(&pods, namespace, Some(("p", "binding")), binding, WriteOptions::default()).await.unwrap();
        let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
        client.patch(&pods, namespace, "p", Some("status"), status, WriteOptions::default()).await.unwrap();
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        client.delete(&pods, namespace, "p", options).await.unwrap();
        let mut last = None;
        while let Some(Ok(event)) = watch.next().await {
            if let WatchEvent::Deleted(object) = event {
                last = Some(object);
                break;
            }
        }
        let last = last.expect("the pod goes");
        assert_eq!(
            (&last.value()["spec"]["nodeName"], &last.value()["status"]["phase"]),
            (&json!("n"), &json!("Running"))
        );

        let over = quorate_proto::fence::Fence { generation: 9, term: 9 };
        let fenced = WriteOptions { fence: Some(over), ..WriteOptions::default() };
        let maps = GroupVersionResource::new("", "v1", "configmaps");
        let refused =
            client.create(&maps, namespace, None, json!({"metadata": {"name": "m"}}), fenced).await.unwrap_err();
        assert_eq!(refused.message, "quorate: fence is no longer current");
    }
}
