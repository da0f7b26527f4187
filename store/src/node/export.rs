//! Snapshots for clients.

use std::sync::Arc;

use super::Store;
use crate::error::StoreError;
use crate::snapshot::{self, Export};

impl Store {
    /// Writes what this member has applied as a file of etcd's backend, in its data directory.
    ///
    /// # Errors
    /// `TooManyRequests` while as many are being written as are let in; `Snapshot` when the
    /// disk refuses.
    pub async fn export(&self) -> Result<Export, StoreError> {
        let Ok(_permit) = self.inner.exports.try_acquire() else { return Err(StoreError::TooManyRequests) };
        let (engine, directory) = (Arc::clone(&self.inner.engine), self.inner.config.data_dir.clone());
        let written = tokio::task::spawn_blocking(move || snapshot::export(&engine, &directory)).await;
        Ok(written.map_err(|_| StoreError::Stopped)??)
    }
}
