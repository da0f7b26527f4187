//! Storage in the same process: the store's own handle, no socket between.

use std::time::Duration;

use futures::future::BoxFuture;
use quorate_proto::etcd::CompactionRequest;
use quorate_proto::fence::Fence;
use quorate_store::command::ApplyError;
use quorate_store::{Store, StoreError, Watcher};

use super::messages;
use super::{Got, ListPage, ListRequest, Result, Storage, StorageError, Transaction, WatchMessage, WatchStream};

/// The store's member in this process.
#[derive(Clone)]
pub struct LocalStorage {
    store: Store,
}

impl LocalStorage {
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

fn error(error: StoreError) -> StorageError {
    match error {
        StoreError::Refused(ApplyError::Compacted) => StorageError::Compacted { compacted: 0 },
        StoreError::Refused(ApplyError::FutureRevision) => StorageError::FutureRevision,
        StoreError::Refused(ApplyError::FenceNotCurrent) => StorageError::Fenced,
        StoreError::TooLarge => StorageError::TooLarge,
        StoreError::NoLeader
        | StoreError::NotLeader
        | StoreError::Timeout
        | StoreError::LeaderFailed
        | StoreError::Stopped
        | StoreError::TooManyRequests => StorageError::Unavailable(error.to_string()),
        other => StorageError::Failed(other.to_string()),
    }
}

impl Storage for LocalStorage {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Got>> {
        Box::pin(async move { messages::got(self.store.range(messages::get(key)).await.map_err(error)?) })
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ListPage>> {
        Box::pin(async move { messages::page(self.store.range(messages::list(&request)).await.map_err(error)?) })
    }

    fn transact(&self, transaction: Transaction, fence: Option<Fence>) -> BoxFuture<'_, Result<u64>> {
        Box::pin(
            async move { messages::committed(self.store.txn(messages::txn(transaction), fence).await.map_err(error)?) },
        )
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64, previous: bool) -> BoxFuture<'a, Result<Box<dyn WatchStream>>> {
        let watcher = self.store.watch(messages::watch(prefix, from, previous)).map_err(error);
        Box::pin(std::future::ready(watcher.map(|watcher| Box::new(LocalWatch { watcher }) as Box<dyn WatchStream>)))
    }

    fn read_index(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.store.read_index().await.map(messages::from_wire).map_err(error) })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        let request = CompactionRequest { revision: messages::to_wire(revision), physical: false };
        Box::pin(async move { self.store.compact(request).await.map(drop).map_err(error) })
    }

    fn stalled_for(&self) -> Duration {
        self.store.stalled_for()
    }
}

struct LocalWatch {
    watcher: Watcher,
}

impl WatchStream for LocalWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage>> {
        Box::pin(async move {
            loop {
                let response = self.watcher.next().await;
                let response = response.ok_or_else(|| StorageError::Unavailable("the store is closing".to_owned()))?;
                if let Some(message) = messages::watched(response)? {
                    return Ok(message);
                }
            }
        })
    }

    fn request_progress(&mut self) -> BoxFuture<'_, Result<()>> {
        self.watcher.request_progress();
        Box::pin(std::future::ready(Ok(())))
    }
}
