//! A registry over a real store, for tests of everything above it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::context::RequestContext;
use super::{Config, Registry, Target};
use crate::schema::{ResourceDef, resource};
use crate::storage::Storage;
use crate::storage::local::LocalStorage;
use crate::storage::testing::{Member, local};

/// A registry with the namespace `default`; it ends with this value.
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) context: RequestContext,
    cancel: CancellationToken,
    member: Member,
}

impl Drop for World {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

pub(crate) fn def(group: &str, name: &str) -> &'static ResourceDef {
    resource(group, "v1", name).expect("the resource is served")
}

pub(crate) fn target<'a>(def: &'static ResourceDef, name: &'a str) -> Target<'a> {
    Target { def, namespace: if def.namespaced { "default" } else { "" }, name, subresource: "" }
}

impl World {
    pub(crate) async fn start() -> Self {
        let (member, storage) = local().await;
        // As in any store of some age, the oldest history is gone.
        for key in ["/registry/past/a", "/registry/past/b", "/registry/past/c"] {
            storage.create(key, "-".into(), None).await.expect("the store takes a key");
        }
        let revision = storage.read_index().await.expect("the store answers");
        storage.compact(revision).await.expect("history can be dropped");
        let cancel = CancellationToken::new();
        let registry = serve(storage, &cancel).await;
        let world = Self { registry, context: RequestContext::system("test"), cancel, member };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        let target = target(def("", "namespaces"), "");
        world.registry.create(&world.context, target, namespace).await.expect("the namespace is created");
        world
    }

    /// A second server over the same store.
    pub(crate) async fn another_server(&self) -> Registry {
        serve(LocalStorage::new(self.member.store.clone()), &self.cancel).await
    }
}

async fn serve(storage: LocalStorage, cancel: &CancellationToken) -> Registry {
    let registry = Registry::new(Arc::new(storage), Config::default());
    let (running, token) = (registry.clone(), cancel.clone());
    let (_, leadership) = watch::channel(None);
    tokio::spawn(async move { running.run(leadership, token).await });
    tokio::time::timeout(Duration::from_secs(10), registry.cache().ready()).await.expect("the cache fills");
    registry
}
