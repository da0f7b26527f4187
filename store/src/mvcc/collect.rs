//! Removes what compaction made unreachable, in the background.
//!
//! The change log says what to do: each deletion in it, once compacted, takes with it
//! the tombstone and every older version of its key; then the compacted part of the log
//! goes in one piece. Versions that newer ones hide are left to the compaction filter.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rocksdb::WriteBatch;

use super::EngineError;
use super::db::Instance;
use super::engine::Engine;
use super::rows::{self, Revision};

/// So many rows are removed by one write: small beside the writes of clients.
const MAX_REMOVALS_PER_BATCH: usize = 1000;

/// The thread that collects; it ends when this is dropped.
pub(crate) struct Collector {
    // Always `Some` until dropped.
    signal: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    pub(crate) fn start(engine: Arc<Engine>) -> std::io::Result<Collector> {
        let (signal, work) = sync_channel(1);
        let thread = std::thread::Builder::new().name("store-collect".to_owned()).spawn(move || run(&engine, &work))?;
        Ok(Collector { signal: Some(signal), thread: Some(thread) })
    }

    /// Says "look again".
    pub(crate) fn notify(&self) {
        if let Some(Err(TrySendError::Disconnected(()))) = self.signal.as_ref().map(|signal| signal.try_send(())) {
            tracing::error!("the collector has ended");
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.signal = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the collector panicked");
        }
    }
}

fn run(engine: &Engine, work: &Receiver<()>) {
    while work.recv().is_ok() {
        match collect(&engine.live()) {
            Ok(compacted) => engine.set_collected(compacted),
            // Nothing is lost: the next compaction finds the same work.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "collecting compacted history failed");
            }
        }
    }
}

/// Removes what is unreachable as of the flushed compaction; returns its revision.
pub(super) fn collect(instance: &Instance) -> Result<i64, EngineError> {
    // Only what a restart would know of: the log that is replayed after a crash must find
    // everything that its entries could read then.
    instance.flush()?;
    let compacted = instance.flushed_state()?.compact_revision;
    if compacted <= 0 {
        return Ok(compacted);
    }
    instance.floor.store(compacted, Ordering::Release);
    let start = rows::change_key(Revision { main: 0, sub: 0 });
    let end = rows::change_key(Revision { main: compacted, sub: 0 });
    let mut batch = WriteBatch::default();
    let mut row_key = Vec::new();
    let mut iterator = instance.range_iterator(&start, &end);
    iterator.seek(start);
    while let Some((change_key, change)) = iterator.item() {
        let damaged = |bad| instance.damaged(bad);
        let revision = rows::parse_change_key(change_key).map_err(damaged)?;
        let (deleted, key) = rows::parse_change(change).map_err(damaged)?;
        if deleted {
            bury(instance, &mut batch, &mut row_key, key, revision)?;
            if batch.len() >= MAX_REMOVALS_PER_BATCH {
                instance.write(std::mem::take(&mut batch))?;
            }
        }
        iterator.next();
    }
    iterator.status().map_err(instance.failed("be read"))?;
    drop(iterator);
    batch.delete_range(start, end);
    instance.write(batch)?;
    Ok(compacted)
}

/// Removes the tombstone of `key` at `revision` and every older version, in one batch:
/// the tombstone alone would bring them back to life.
fn bury(
    instance: &Instance,
    batch: &mut WriteBatch,
    row_key: &mut Vec<u8>,
    key: &[u8],
    revision: Revision,
) -> Result<(), EngineError> {
    rows::put_key_prefix(row_key, key);
    let mut to = row_key.clone();
    rows::prefix_to_next_key(&mut to);
    rows::put_version(row_key, revision);
    instance.scan(row_key, &to, |row_key, _| {
        batch.delete(row_key);
        Ok(true)
    })
}
