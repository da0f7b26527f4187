//! Keys with their history, in RocksDB with its own log off.
//!
//! One write batch per applied batch holds rows, leases, membership and the applied
//! index together; what RocksDB has not flushed, the Raft log replays. Always: a reader
//! sees a whole revision or nothing of it, and what `flushed_applied` names is on disk.

mod alarms;
mod collect;
mod counts;
mod db;
mod engine;
#[cfg(test)]
mod etcd_tests;
#[cfg(test)]
mod fuzz_tests;
mod hash;
mod latest;
mod listing;
mod load;
#[cfg(test)]
mod model;
mod pending;
mod picture;
mod range;
mod rows;
mod space;
#[cfg(test)]
mod tests;
mod txn;
mod view;

use std::path::PathBuf;

use bytes::Bytes;

use crate::command::ApplyError;
use crate::wal::EntryId;

pub use engine::Engine;
pub use hash::HashKv;
pub use space::Space;
pub use txn::{check, is_read_only};

pub(crate) use alarms::Alarms;
pub(crate) use collect::Collector;
pub(crate) use engine::{History, Page};
pub(crate) use latest::Latest;
pub(crate) use listing::{Listing, Rest};
pub(crate) use load::{Loaded, Loader};
pub(crate) use pending::{Change, Pending};
pub(crate) use picture::AuthRow;
pub(crate) use range::{is_plain, successor};
pub(crate) use rows::{Request, Revision, Row};
pub(crate) use txn::execute;
pub(crate) use view::KeyRange;

/// How the state machine is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds everything of the state machine and nothing else.
    pub directory: PathBuf,
    /// The cap of cached blocks, indexes and filters.
    pub block_cache_bytes: usize,
    /// The size of a memtable; there may be two.
    pub write_buffer_bytes: usize,
    /// How many bytes of recent events watchers find in memory.
    pub history_bytes: usize,
    /// How many bytes of the keys written last are at hand when they are written again.
    pub latest_bytes: usize,
}

impl Config {
    /// The defaults for a small machine.
    pub fn new(directory: PathBuf) -> Config {
        Config {
            directory,
            block_cache_bytes: 64 << 20,
            write_buffer_bytes: 16 << 20,
            history_bytes: 16 << 20,
            latest_bytes: 8 << 20,
        }
    }
}

/// The state machine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file could not be read, made or renamed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// RocksDB refused.
    #[error(
        "the state machine in {} cannot {action}; if its files are damaged, remove this member's data \
         directory and let it join again, to be re-seeded from its peers",
        path.display()
    )]
    Database {
        /// What was tried.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// A row is not what was written.
    #[error(
        "the state machine in {} is damaged: {reason}; remove this member's data directory and let it join \
         again, to be re-seeded from its peers",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry does not follow the one applied last.
    #[error("entry {got} cannot be applied after entry {applied}")]
    OutOfOrder {
        /// The entry applied last.
        applied: u64,
        /// The entry given.
        got: u64,
    },
}

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The request cannot be answered; the client is told.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The state machine is broken; a person is told.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A lease as it is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its id.
    pub id: i64,
    /// The seconds it was granted.
    pub ttl: i64,
    /// The seconds left at the last checkpoint; 0 when there was none.
    pub remaining: i64,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The entry applied last.
    pub applied: Option<EntryId>,
    /// The membership applied last.
    pub membership: Option<Bytes>,
    /// The store's revision.
    pub revision: i64,
}
