//! Removes what compaction made unreachable, in the background.
//!
//! The change log says what to do: each deletion in it, once compacted, takes with it
//! the tombstone and every older version of its key; then the compacted part of the log
//! goes in one piece. Versions that newer ones hide are left to the compaction filter.
//! When enough of them have gathered, or space is short, the files are rewritten without
//! them, a piece at a time.
//!
//! Always: writers never wait for it. It works half of the time at most.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rocksdb::{CompactOptions, WriteBatch};

use super::EngineError;
use super::db::Instance;
use super::engine::Engine;
use super::rows::{self, Revision};
use crate::thread;

/// So many rows are removed by one write: small beside the writes of clients.
const MAX_REMOVALS_PER_BATCH: usize = 1000;

/// So much of the change log is worked off before it is removed.
const CHANGES_PER_ROUND: usize = 50_000;

/// After this long at work, it is the others' turn.
const SLICE: Duration = Duration::from_millis(5);

/// The files are rewritten once one row of so many may be unreachable: each row is then
/// rewritten at most so many times as often as rows are written.
const GARBAGE_SHARE: u64 = 4;
/// Too little to be worth it.
const MIN_GARBAGE_ROWS: u64 = 10_000;

/// The thread that collects; it ends when this is dropped.
pub(crate) struct Collector {
    // Always `Some` until dropped.
    signal: Option<SyncSender<()>>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    pub(crate) fn start(engine: Arc<Engine>) -> std::io::Result<Collector> {
        let (signal, work) = sync_channel(1);
        let (stop, stopped) = sync_channel(1);
        let pace = Pace { stopped, began: Instant::now() };
        let run = move || run(&engine, &work, pace);
        let thread = thread::spawn("store-collect", run)?;
        Ok(Collector { signal: Some(signal), stop: Some(stop), thread: Some(thread) })
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
        self.stop = None;
        self.signal = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the collector panicked");
        }
    }
}

/// Lets others have their turn.
struct Pace {
    /// Nothing is ever sent: its other end goes when it is time to stop.
    stopped: Receiver<()>,
    began: Instant,
}

impl Pace {
    fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Waits as long as the work has taken since the last wait, once that is a slice.
    /// False: stop.
    fn rest(&mut self) -> bool {
        let worked = self.began.elapsed();
        if worked < SLICE {
            return true;
        }
        let goes_on = !matches!(self.stopped.recv_timeout(worked), Err(RecvTimeoutError::Disconnected));
        self.begin();
        goes_on
    }
}

fn run(engine: &Engine, work: &Receiver<()>, mut pace: Pace) {
    let mut garbage = 0;
    while work.recv().is_ok() {
        pace.begin();
        let instance = engine.live();
        match collect(&instance, || pace.rest()) {
            Ok(Some(collected)) => {
                garbage += collected.changes;
                engine.set_collected(collected.revision);
            }
            Ok(None) => return,
            // Nothing is lost: the next compaction finds the same work.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "collecting compacted history failed");
                continue;
            }
        }
        let rows = instance.property(c"rocksdb.estimate-num-keys");
        if is_worth_rewriting(garbage, rows, engine.is_tight()) {
            let before = instance.size_bytes();
            let began = Instant::now();
            if !rewrite(&instance, || pace.rest()) {
                return;
            }
            garbage = 0;
            let after = instance.size_bytes();
            tracing::info!(before, after, took = ?began.elapsed(), "gave back the space of compacted history");
        }
    }
}

/// Whether the files are to be rewritten without the unreachable rows, of which there are
/// at most `garbage`.
fn is_worth_rewriting(garbage: u64, rows: u64, tight: bool) -> bool {
    garbage > 0 && (tight || (garbage >= MIN_GARBAGE_ROWS && garbage >= rows / GARBAGE_SHARE))
}

/// What a collection did.
pub(super) struct Collected {
    /// The compaction whose rows are gone.
    pub(super) revision: i64,
    /// How much of the change log has gone; each change hid at most one version.
    pub(super) changes: u64,
}

/// Removes what is unreachable as of the flushed compaction. `rest` is called often, and
/// says whether to go on; `None` when it did not.
pub(super) fn collect(instance: &Instance, mut rest: impl FnMut() -> bool) -> Result<Option<Collected>, EngineError> {
    // Only what a restart would know of: the log that is replayed after a crash must find
    // everything that its entries could read then.
    instance.flush()?;
    let revision = instance.flushed_state()?.compact_revision;
    let mut changes = 0;
    if revision <= 0 {
        return Ok(Some(Collected { revision, changes }));
    }
    instance.floor.store(revision, Ordering::Release);
    let end = rows::change_key(Revision { main: revision, sub: 0 });
    loop {
        match collect_round(instance, &end, &mut rest)? {
            Round::Done(count) => return Ok(Some(Collected { revision, changes: changes + count })),
            Round::More(count) => changes += count,
            Round::Stopped => return Ok(None),
        }
    }
}

/// How one round ended, and how many changes it worked off.
enum Round {
    Done(u64),
    More(u64),
    Stopped,
}

/// Works off the beginning of the change log, up to `end`, and removes it.
fn collect_round(instance: &Instance, end: &[u8], rest: &mut impl FnMut() -> bool) -> Result<Round, EngineError> {
    let start = rows::change_key(Revision { main: 0, sub: 0 });
    let mut batch = WriteBatch::default();
    let mut row_key = Vec::new();
    let mut iterator = instance.range_iterator(&start, end);
    iterator.seek(start);
    let mut count = 0;
    let mut reached = None;
    while let Some((change_key, change)) = iterator.item() {
        if count as usize == CHANGES_PER_ROUND {
            reached = Some(change_key.to_vec());
            break;
        }
        count += 1;
        let damaged = |bad| instance.damaged(bad);
        let revision = rows::parse_change_key(change_key).map_err(damaged)?;
        let (deleted, key) = rows::parse_change(change).map_err(damaged)?;
        if deleted {
            bury(instance, &mut batch, &mut row_key, key, revision)?;
            if batch.len() >= MAX_REMOVALS_PER_BATCH {
                instance.write(std::mem::take(&mut batch))?;
            }
        }
        if !rest() {
            return Ok(Round::Stopped);
        }
        iterator.next();
    }
    iterator.status().map_err(instance.failed("be read"))?;
    drop(iterator);
    batch.delete_range(&start[..], reached.as_deref().unwrap_or(end));
    instance.write(batch)?;
    Ok(if reached.is_some() { Round::More(count) } else { Round::Done(count) })
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

/// Rewrites all files without what cannot be read any more, a piece of about one file at
/// a time, so that the compactions that writers need are not kept waiting. False when
/// `rest` said to stop.
pub(super) fn rewrite(instance: &Instance, mut rest: impl FnMut() -> bool) -> bool {
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    let mut from: Option<Vec<u8>> = None;
    for end in pieces(instance) {
        instance.db.compact_range_opt(from.as_deref(), Some(&end[..]), &options);
        from = Some(end);
        if !rest() {
            return false;
        }
    }
    instance.db.compact_range_opt(from.as_deref(), None::<&[u8]>, &options);
    rest()
}

/// The ends of the files of the lowest level, in order.
fn pieces(instance: &Instance) -> Vec<Vec<u8>> {
    // Without the list, one large piece does the same.
    let files = instance.db.live_files().unwrap_or_default();
    let lowest = files.iter().map(|file| file.level).max();
    let mut ends: Vec<Vec<u8>> =
        files.into_iter().filter(|file| Some(file.level) == lowest).filter_map(|file| file.end_key).collect();
    ends.sort();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rewritten_when_much_of_them_is_garbage() {
        let check = |garbage, rows, tight, expected| {
            assert_eq!(is_worth_rewriting(garbage, rows, tight), expected, "{garbage} of {rows}");
        };
        check(0, 0, true, false);
        check(1, 1_000_000, true, true);
        check(9_999, 100, false, false);
        check(10_000, 40_000, false, true);
        check(10_000, 50_000, false, false);
        check(1_000_000, 4_000_000, false, true);
    }
}
