//! Snapshots for clients.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::Store;
use crate::error::StoreError;
use crate::snapshot::{self, Export};

impl Store {
    /// Writes what this member has applied as a file of etcd's backend, in its data directory.
    ///
    /// # Errors
    /// `TooManyRequests` while as many are being written as are let in; `Snapshot` when the
    /// disk refuses. The file counts as being written until the permit is dropped.
    pub(crate) async fn export(&self) -> Result<(Export, OwnedSemaphorePermit), StoreError> {
        let exports = Arc::clone(&self.inner.exports);
        let permit = exports.try_acquire_owned().map_err(|_| StoreError::TooManyRequests)?;
        let (engine, directory) = (Arc::clone(&self.inner.engine), self.inner.config.data_dir.clone());
        let written = tokio::task::spawn_blocking(move || snapshot::export(&engine, &directory)).await;
        Ok((written.map_err(|_| StoreError::Stopped)??, permit))
    }
}
