//! A view of one resource that request filters read without waiting.
//!
//! Authorization and admission look at roles, bindings, pods and classes on every
//! request; they may lag the store by the delay of a watch, never by more.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use quorate_proto::object::Object;
use quorate_runtime::informer::{Change, Informer};

/// The objects of one resource, each parsed into a `T` once per change.
pub struct Mirror<T> {
    entries: RwLock<HashMap<String, Arc<T>>>,
}

impl<T: Send + Sync + 'static> Mirror<T> {
    /// An empty mirror; [`Mirror::follow`] fills it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { entries: RwLock::default() })
    }

    /// Takes over what `informer` knows and learns. Objects for which `view` has no
    /// answer are left out.
    pub fn follow(
        self: &Arc<Self>,
        informer: &Informer,
        view: impl Fn(&Arc<Object>) -> Option<T> + Send + Sync + 'static,
    ) {
        let mirror = Arc::clone(self);
        informer.on_change(move |change| mirror.apply(change, &view));
    }

    /// The object under `namespace/name`, or `name` when cluster-scoped.
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.read().get(key).cloned()
    }

    /// Everything, in no order.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().values().cloned().collect()
    }

    pub(crate) fn apply(&self, change: &Change, view: &impl Fn(&Arc<Object>) -> Option<T>) {
        let view = if change.is_deletion() { None } else { view(change.object()) };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match view {
            Some(view) => entries.insert(change.key(), Arc::new(view)),
            None => entries.remove(&change.key()),
        };
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Arc<T>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}
