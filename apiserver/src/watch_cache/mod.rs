//! Every stored object in memory, kept up to date by one watch on the store.
//!
//! One feed watches everything below `/registry/` and fills one cache per resource, so
//! that "how far are we" is one number: a cache of a quiet resource is as new as that of
//! a busy one. Always: once `position` is at a revision, every cache shows it.

mod cache;
mod feed;
mod selection;
mod watcher;
mod window;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::status::{Status, StatusCause, StatusDetails};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::schema::{ResourceDef, resources};
use crate::storage::Storage;

pub use cache::{Cache, Part};
pub use selection::Selection;
pub use watcher::{Seen, Watcher};

/// How long a read waits for the cache to catch up. Upstream waits as long.
const CATCH_UP: Duration = Duration::from_secs(3);

/// How long after asking the store it is asked again for its progress. In a busy store
/// events say how far it is; a quiet one must be asked.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The caches of all stored resources.
#[derive(Clone)]
pub struct WatchCache {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    /// By storage prefix.
    caches: HashMap<&'static str, Arc<Cache>>,
    /// Everything up to here is in the caches; 0 before they are filled.
    position: watch::Sender<u64>,
    /// Somebody waits for `position` to move.
    wanted: Notify,
}

impl WatchCache {
    /// Empty caches for every resource that is stored; [`WatchCache::run`] fills them.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        let caches = resources()
            .iter()
            .filter(|def| !def.storage_prefix.is_empty())
            .map(|def| (def.storage_prefix, Arc::new(Cache::default())))
            .collect();
        Self { inner: Arc::new(Inner { storage, caches, position: watch::Sender::new(0), wanted: Notify::new() }) }
    }

    /// Fills the caches and keeps them up to date until `cancel`.
    pub async fn run(&self, cancel: CancellationToken) {
        feed::run(&self.inner, cancel).await;
    }

    /// Whether the caches have been filled.
    pub fn is_ready(&self) -> bool {
        self.position() > 0
    }

    /// Returns once the caches have been filled.
    pub async fn ready(&self) {
        let mut position = self.inner.position.subscribe();
        // The sender lives as long as `self`.
        let _ = position.wait_for(|position| *position > 0).await;
    }

    /// The revision up to which every cache is complete.
    pub fn position(&self) -> u64 {
        *self.inner.position.borrow()
    }

    /// The cache of a resource.
    ///
    /// # Errors
    /// `MethodNotAllowed` for resources that are never stored.
    pub fn of(&self, def: &ResourceDef) -> Result<&Arc<Cache>, Status> {
        self.inner
            .caches
            .get(def.storage_prefix)
            .ok_or_else(|| Status::failure(405, "MethodNotAllowed", format!("{} are not stored", def.group_resource())))
    }

    /// Waits until the caches hold every write that was acknowledged before the call.
    ///
    /// # Errors
    /// When the store has no quorum, or the caches do not catch up in time.
    pub async fn catch_up(&self) -> Result<u64, Status> {
        let revision =
            self.inner.storage.read_index().await.map_err(|error| crate::registry::status::of_storage(&error))?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// Waits until the caches are complete up to `revision`.
    ///
    /// # Errors
    /// 504 with upstream's cause when that does not happen in time.
    pub async fn wait_for(&self, revision: u64) -> Result<(), Status> {
        if self.position() >= revision && self.is_ready() {
            return Ok(());
        }
        let mut position = self.inner.position.subscribe();
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        loop {
            let reached = position.wait_for(|position| *position >= revision && *position > 0);
            match tokio::time::timeout(ASK_AGAIN, reached).await {
                Ok(_) => return Ok(()),
                Err(_) if tokio::time::Instant::now() >= deadline => {
                    return Err(too_large(revision, self.position()));
                }
                Err(_) => self.inner.wanted.notify_one(),
            }
        }
    }

    /// Watches from `revision` (exclusive) on.
    ///
    /// # Errors
    /// `Expired` when changes after `revision` are no longer known.
    pub fn watch(&self, def: &ResourceDef, selection: Selection, revision: u64) -> Result<Watcher, Status> {
        let cache = Arc::clone(self.of(def)?);
        let cursor = cache.seek(revision).map_err(|out| watcher::too_old(revision, out))?;
        Ok(Watcher::new(cache, selection, cursor, self.inner.position.subscribe(), revision))
    }

    /// The selected objects as they are now, and a watch that goes on from there.
    ///
    /// # Errors
    /// For resources that are never stored.
    pub fn snapshot_and_watch(&self, def: &ResourceDef, selection: Selection) -> Result<(Part, u64, Watcher), Status> {
        let cache = Arc::clone(self.of(def)?);
        let position = self.position();
        let part = cache.list(&selection, "", 0);
        let revision = position.max(part.last_change);
        let watcher = Watcher::new(cache, selection, part.cursor, self.inner.position.subscribe(), revision);
        Ok((part, revision, watcher))
    }
}

fn too_large(revision: u64, current: u64) -> Status {
    let details = StatusDetails {
        retry_after_seconds: 1,
        causes: vec![StatusCause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        }],
        ..StatusDetails::default()
    };
    Status::failure(504, "Timeout", format!("Too large resource version: {revision}, current: {current}"))
        .with_details(details)
}
