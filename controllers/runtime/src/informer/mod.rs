//! A local copy of one resource, kept up to date by a list and a watch.
//!
//! Always: handlers hear of every change after the copy shows it, in the order in which
//! the changes happened to each object. A relist is told as the changes that it reveals.

mod indexer;
mod reflector;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Client, ListOptions};
use crate::vital::vital;
use indexer::Indexer;

/// What happened to one object.
#[derive(Clone, Debug)]
pub enum Change {
    Added(Arc<Object>),
    Updated {
        old: Arc<Object>,
        new: Arc<Object>,
    },
    /// The last known state.
    Deleted(Arc<Object>),
}

impl Change {
    /// The newest state, also of what is gone.
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Added(object) | Self::Deleted(object) => object,
            Self::Updated { new, .. } => new,
        }
    }

    /// The state before, if there was one.
    pub fn old(&self) -> Option<&Arc<Object>> {
        match self {
            Self::Added(_) => None,
            Self::Deleted(object) => Some(object),
            Self::Updated { old, .. } => Some(old),
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        self.object().meta().key()
    }

    pub fn is_deletion(&self) -> bool {
        matches!(self, Self::Deleted(_))
    }
}

type Handler = Box<dyn Fn(&Change) + Send + Sync>;

/// One resource as this process sees it. Cheap to clone.
#[derive(Clone)]
pub struct Informer {
    shared: Arc<Shared>,
}

struct Shared {
    client: Arc<dyn Client>,
    resource: GroupVersionResource,
    /// Which objects; over all namespaces when `namespace` is `None`.
    namespace: Option<String>,
    options: ListOptions,
    index: Arc<RwLock<Indexer>>,
    handlers: Mutex<Vec<Handler>>,
    /// How many refreshes were asked for. The list that every informer begins with is the first.
    asked: watch::Sender<u64>,
    /// Up to which of them the copy is at least as new as the question.
    done: watch::Sender<u64>,
}

impl Informer {
    /// An informer of all objects of a resource that `options` selects. It knows nothing
    /// until [`Informer::run`] runs.
    pub fn new(
        client: Arc<dyn Client>,
        resource: GroupVersionResource,
        namespace: Option<String>,
        options: ListOptions,
    ) -> Self {
        let by_node = resource == crate::resources::pods();
        Self {
            shared: Arc::new(Shared {
                client,
                resource,
                namespace,
                options,
                index: Arc::new(RwLock::new(Indexer::new(by_node))),
                handlers: Mutex::new(Vec::new()),
                asked: watch::Sender::new(1),
                done: watch::Sender::new(0),
            }),
        }
    }

    pub fn resource(&self) -> &GroupVersionResource {
        &self.shared.resource
    }

    pub fn lister(&self) -> Lister {
        Lister { index: Arc::clone(&self.shared.index) }
    }

    /// Calls `handler` with every change from now on, and first with an addition for each
    /// object already known. It runs in the informer's task: it must not block, and it
    /// must not register further handlers.
    pub fn on_change(&self, handler: impl Fn(&Change) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for object in self.lister().list() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Whether the first list has arrived.
    pub fn is_synced(&self) -> bool {
        *self.shared.done.borrow() > 0
    }

    /// Waits for the first list. Cancel-safe.
    pub async fn synced(&self) {
        self.wait_for(1).await;
    }

    /// Asks for a list as new as this call, without waiting for it.
    ///
    /// A master that begins to lead calls it, because its copy may lack what its
    /// predecessor wrote last, and what lacks would be created twice.
    pub fn refresh(&self) {
        self.shared.asked.send_modify(|asked| *asked += 1);
    }

    /// Waits until the copy is as new as the last [`Informer::refresh`]. Cancel-safe.
    pub async fn refreshed(&self) {
        let asked = *self.shared.asked.borrow();
        self.wait_for(asked).await;
    }

    async fn wait_for(&self, refresh: u64) {
        let mut done = self.shared.done.subscribe();
        // The sender lives as long as `self`.
        let _ = done.wait_for(|done| *done >= refresh).await;
    }

    /// Lists and watches until `cancel` is cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = reflector::run(&self.shared) => {}
        }
    }
}

impl Shared {
    /// Lets `change_index` change the copy and tells the handlers what changed. The
    /// handlers' lock is held throughout, so that one who registers misses nothing.
    fn apply(&self, change_index: impl FnOnce(&mut Indexer) -> Vec<Change>) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            change_index(&mut index)
        };
        for change in &changes {
            for handler in handlers.iter() {
                handler(change);
            }
        }
    }
}

/// Reads an informer's copy. Cheap to clone; answers come from memory.
#[derive(Clone)]
pub struct Lister {
    index: Arc<RwLock<Indexer>>,
}

impl Lister {
    /// The object under `namespace/name`, or `name` when the resource is cluster-scoped.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read(|index| index.get(key))
    }

    /// All objects, in the order of their keys.
    pub fn list(&self) -> Vec<Arc<Object>> {
        self.read(Indexer::list)
    }

    /// The keys of all objects, in order.
    pub fn keys(&self) -> Vec<String> {
        self.read(Indexer::keys)
    }

    /// The objects of one namespace, in the order of their names.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.read(|index| index.in_namespace(namespace))
    }

    /// The objects that name `uid` among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<Object>> {
        self.read(|index| index.owned_by(uid))
    }

    /// The objects of one namespace that no controller claims.
    pub fn orphans_in(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.read(|index| index.orphans_in(namespace))
    }

    /// The pods bound to `node`. Empty for every other resource.
    pub fn on_node(&self, node: &str) -> Vec<Arc<Object>> {
        self.read(|index| index.on_node(node))
    }

    pub fn len(&self) -> usize {
        self.read(Indexer::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read<T>(&self, look: impl FnOnce(&Indexer) -> T) -> T {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The informers of one process: one per resource, shared by everybody who asks.
#[derive(Clone)]
pub struct Informers {
    client: Arc<dyn Client>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    known: Arc<Mutex<HashMap<GroupVersionResource, Informer>>>,
}

impl Informers {
    /// Informers run as tasks of `tasks` until `cancel` is cancelled.
    pub fn new(client: Arc<dyn Client>, tasks: TaskTracker, cancel: CancellationToken) -> Self {
        Self { client, tasks, cancel, known: Arc::default() }
    }

    /// The informer of a resource over all namespaces; starts it at the first call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn informer(&self, resource: &GroupVersionResource) -> Informer {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(informer) = known.get(resource) {
            return informer.clone();
        }
        let informer = Informer::new(Arc::clone(&self.client), resource.clone(), None, ListOptions::default());
        known.insert(resource.clone(), informer.clone());
        let (running, cancel) = (informer.clone(), self.cancel.clone());
        self.tasks.spawn(vital("informer", async move { running.run(cancel).await }));
        informer
    }

    /// Asks every informer for a list as new as this call.
    pub fn refresh(&self) {
        for informer in self.known.lock().unwrap_or_else(PoisonError::into_inner).values() {
            informer.refresh();
        }
    }
}
