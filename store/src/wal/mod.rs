//! The Raft log on disk: one stream of records in segments, one writer thread.
//!
//! Entries, votes, truncations and purges share the stream, so their order on disk
//! is the order in which they were asked for. Always:
//!
//! - what is in memory is at least what is on disk, and has no holes;
//! - `done` fires only for what survives a power loss;
//! - after a failed write or sync nothing is written again: what the disk holds is
//!   unknown, and the process has to end.

#[cfg(test)]
mod fuzz_tests;
mod reader;
mod record;
mod segment;
mod state;
#[cfg(test)]
mod stepped;
mod sync_times;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::fs::Disk;
#[cfg(test)]
pub(crate) use stepped::Steps;
use writer::Shared;

/// Names an entry for ever: no two entries share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term in which a leader made it.
    pub term: u64,
    /// The member that led.
    pub node: u64,
    /// Its place in the log.
    pub index: u64,
}

/// An entry; what it says is not the log's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its name.
    pub id: EntryId,
    /// Its content.
    pub payload: Bytes,
}

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that was purged.
    pub purged: Option<EntryId>,
    /// The last entry; that of `purged` while there is none after it.
    pub last: Option<EntryId>,
}

/// What was found on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Where the log begins and ends.
    pub state: LogState,
    /// The vote last saved.
    pub vote: Option<Bytes>,
    /// The commit mark last saved; a hint, it may be old.
    pub committed: Option<EntryId>,
    /// Whether a record that a crash left unfinished was cut off.
    pub truncated_tail: bool,
    /// Drawn when the log began; no other log has it.
    pub log_id: u64,
}

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds the segments and nothing else.
    pub directory: PathBuf,
    /// The size of a segment. Larger ones are made when one record needs it.
    pub segment_size_bytes: u64,
    /// How much of the newest entries stays in memory.
    pub ring_size_bytes: usize,
}

impl Config {
    /// The defaults for a production member: segments of 64 MiB, 16 MiB in memory.
    pub fn new(directory: PathBuf) -> Config {
        Config { directory, segment_size_bytes: 64 << 20, ring_size_bytes: 16 << 20 }
    }
}

/// Why the log did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// A file could not be read, made, renamed or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes on disk are not what was written, and it was no crash.
    #[error(
        "{} is damaged at byte {offset}: {reason}; later records are intact, so this is not a torn \
         write. Remove this member's data directory and let it join again, to be re-seeded from its peers",
        path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A write or sync failed before; the log takes no more.
    #[error("the log stopped after a failed write: {0}")]
    Poisoned(String),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// An append that does not continue the log.
    #[error("an entry with index {got} cannot follow, the log continues at {expected}")]
    Hole {
        /// The index that would continue the log.
        expected: u64,
        /// The index that was given.
        got: u64,
    },
    /// A read of entries that were purged.
    #[error("entries up to {last} were purged, {wanted} was asked for")]
    Purged {
        /// The first index asked for.
        wanted: u64,
        /// The last index that is gone.
        last: u64,
    },
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> io::Error {
        let kind = match &error {
            WalError::File { source, .. } => source.kind(),
            WalError::Damaged { .. } => io::ErrorKind::InvalidData,
            WalError::Hole { .. } | WalError::Purged { .. } => io::ErrorKind::InvalidInput,
            WalError::Poisoned(_) | WalError::Closed => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, error)
    }
}

/// What an append calls once it is durable, or once that has failed.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The log. Clones share it; the last one to go closes it.
#[derive(Clone)]
pub struct Wal(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        close(&self.shared, &self.threads);
    }
}

fn close(shared: &Shared, threads: &Mutex<Vec<JoinHandle<()>>>) {
    shared.close();
    let threads = std::mem::take(&mut *threads.lock().unwrap_or_else(|e| e.into_inner()));
    for thread in threads {
        // The last clone may be dropped by a `done`, on the writer's own thread.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("a thread of the log panicked");
        }
    }
}

impl Wal {
    /// Opens the log in `config.directory`, or begins a new one there.
    ///
    /// A record that a crash left unfinished at the very end is cut off.
    ///
    /// # Errors
    /// `Damaged` when a record is bad though later ones are whole, or when a segment's
    /// header is bad: the member has to be re-seeded. `File` when the disk refuses.
    pub fn open(config: Config, disk: Arc<dyn Disk>) -> Result<(Wal, Recovered), WalError> {
        let (shared, recovered, threads) = writer::start(config, disk)?;
        Ok((Wal(Arc::new(Handle { shared, threads: Mutex::new(threads) })), recovered))
    }

    /// Appends `entries`, whose indexes must continue the log.
    ///
    /// They are readable when this returns; `done` runs on the writer thread once they
    /// are durable, in the order of the appends. How much may wait for the disk is the
    /// caller's to bound. An empty append is done when everything before it is.
    ///
    /// # Errors
    /// `Hole`, `Poisoned`, `Closed`; `done` is dropped then.
    pub fn append(
        &self,
        entries: Vec<LogEntry>,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> Result<(), WalError> {
        self.0.shared.append(entries, Box::new(done))
    }

    /// Saves the vote; returns once it is durable, after everything asked for before.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`. A vote not confirmed may still be there after a restart.
    pub async fn save_vote(&self, vote: Bytes) -> Result<(), WalError> {
        let (done, saved) = oneshot::channel();
        self.0.shared.save_vote(vote, Box::new(move |result| drop(done.send(result))))?;
        match saved.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(WalError::Poisoned(error.to_string())),
            Err(_) => Err(WalError::Closed),
        }
    }

    /// The vote last given to `save_vote`.
    pub fn vote(&self) -> Option<Bytes> {
        self.0.shared.log().vote.clone()
    }

    /// Marks what is committed. Not awaited: it is durable with the next batch.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`.
    pub fn save_committed(&self, id: Option<EntryId>) -> Result<(), WalError> {
        self.0.shared.save_committed(id)
    }

    /// The mark last given to `save_committed`.
    pub fn committed(&self) -> Option<EntryId> {
        self.0.shared.log().committed
    }

    /// Removes every entry after `last`; all of them when it is `None`.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`.
    pub fn truncate_after(&self, last: Option<EntryId>) -> Result<(), WalError> {
        self.0.shared.truncate_after(last)
    }

    /// Removes every entry up to and including `upto`, which may lie beyond the end: then
    /// the log is empty and continues after it. Segments are recycled once the mark is durable.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`.
    pub fn purge(&self, upto: EntryId) -> Result<(), WalError> {
        self.0.shared.purge(upto)
    }

    /// The entries in `range` that there are, at least one of them and then as many as fit
    /// `max_bytes`. Recent ones come from memory, older ones from the segments (blocking).
    ///
    /// # Errors
    /// `Purged` when the start of the range is gone; `Damaged` or `File` from the disk.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<LogEntry>, WalError> {
        self.0.shared.read(range, max_bytes)
    }

    /// Where the log begins and ends, what waits for the disk included.
    pub fn state(&self) -> LogState {
        self.0.shared.log().state()
    }

    /// What `share` of the syncs of the last minute did not exceed; `None` if there were none.
    pub(crate) fn sync_quantile(&self, share: f64) -> Option<Duration> {
        self.0.shared.sync_quantile(share)
    }

    /// How long the write or sync in progress has been going on; zero when there is none.
    pub fn stalled_for(&self) -> Duration {
        self.0.shared.stalled_for()
    }

    /// Turns to the reason after a failed write or sync. The process has to end then.
    pub fn poisoned(&self) -> watch::Receiver<Option<String>> {
        self.0.shared.poisoned()
    }

    /// Writes what is queued, makes it durable and ends the threads. Blocks.
    pub fn close(&self) {
        close(&self.0.shared, &self.0.threads);
    }
}
