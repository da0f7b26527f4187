//! The verbs of the API over any resource: what a request means for what is stored.
//!
//! One generic engine serves every kind: a [`ResourceDef`] says what the resource is, a
//! [`strategy::Strategy`] what its kind needs beyond that. Reads come from the watch
//! cache; writes are optimistic transactions on the store.

mod allocate;
mod apply;
mod apps;
mod batch;
mod compactor;
pub mod context;
pub(crate) mod convert;
mod core;
mod create;
pub(crate) mod delete;
pub mod hooks;
mod misc;
mod ownership;
mod read;
mod report;
pub(crate) mod status;
mod strategy;
mod subresources;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod update;
pub(crate) mod validation;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use ipnet::Ipv4Net;
use quorate_proto::fence::Fence;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::schema::ResourceDef;
use crate::storage::Storage;
use crate::watch_cache::WatchCache;
use hooks::VirtualResource;

pub use apply::Apply;
pub use delete::{DeleteRequest, Deleted};
pub use read::{ListQuery, Listed, WatchQuery, Watching};
pub use update::{PatchBody, Written};

/// What the cluster's administrator decides about objects.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where cluster IPs of Services come from.
    pub service_cidr: Ipv4Net,
    /// Where node ports of Services come from.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Config {
    /// The ranges that kubeadm and kube-apiserver take by default.
    fn default() -> Self {
        Self { service_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 12), node_ports: 30000..=32767 }
    }
}

/// The verbs. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    cache: WatchCache,
    config: Config,
    admission: OnceLock<Arc<dyn Admission>>,
    /// By group, resource and subresource.
    virtuals: RwLock<HashMap<(String, String, String), Arc<dyn VirtualResource>>>,
    ending: CancellationToken,
}

/// The object that a request is about.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub def: &'static ResourceDef,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
}

impl Target<'_> {
    /// The key below the resource's prefix.
    fn relative_key(&self) -> String {
        if self.namespace.is_empty() { self.name.to_owned() } else { format!("{}/{}", self.namespace, self.name) }
    }

    fn key(&self) -> String {
        format!("{}/{}", self.def.storage_prefix, self.relative_key())
    }
}

impl Registry {
    /// A registry over `storage`; [`Registry::run`] fills its caches.
    pub fn new(storage: Arc<dyn Storage>, config: Config) -> Self {
        let cache = WatchCache::new(Arc::clone(&storage));
        Self {
            inner: Arc::new(Inner {
                storage,
                cache,
                config,
                admission: OnceLock::new(),
                virtuals: RwLock::default(),
                ending: CancellationToken::new(),
            }),
        }
    }

    /// Keeps the caches up to date and, while this server leads, the store's history
    /// short, until `cancel`.
    pub async fn run(&self, leadership: watch::Receiver<Option<Fence>>, cancel: CancellationToken) {
        let upkeep = async {
            tokio::join!(compactor::run(self, leadership), report::run(self));
        };
        let until_cancelled = async {
            tokio::select! {
                () = upkeep => {}
                () = cancel.cancelled() => {}
            }
            self.inner.ending.cancel();
        };
        tokio::join!(self.inner.cache.run(cancel.clone()), until_cancelled);
    }

    /// Cancelled when the server is about to go: watches end in order.
    pub fn ending(&self) -> &CancellationToken {
        &self.inner.ending
    }

    /// Sets the admission chain, once and before the first request; without one, every
    /// write that is valid is admitted.
    pub fn set_admission(&self, admission: Arc<dyn Admission>) {
        if self.inner.admission.set(admission).is_err() {
            tracing::error!("The admission chain was set twice; the first one stays");
        }
    }

    /// Lets `handler` answer creations of a resource, or of a subresource, that stores nothing.
    pub fn add_virtual(&self, group: &str, resource: &str, subresource: &str, handler: Arc<dyn VirtualResource>) {
        let key = (group.to_owned(), resource.to_owned(), subresource.to_owned());
        self.inner.virtuals.write().unwrap_or_else(PoisonError::into_inner).insert(key, handler);
    }

    /// The objects in memory.
    pub fn cache(&self) -> &WatchCache {
        &self.inner.cache
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.inner.storage
    }

    fn admission(&self) -> Option<&Arc<dyn Admission>> {
        self.inner.admission.get()
    }

    fn virtual_resource(&self, def: &ResourceDef, subresource: &str) -> Option<Arc<dyn VirtualResource>> {
        let key = (def.group.to_owned(), def.resource.to_owned(), subresource.to_owned());
        self.inner.virtuals.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }
}
