//! Snapshots that outlive the cluster: the file of etcd's backend, with a checksum behind it.
//!
//! `etcdctl snapshot save` receives one from any member, and etcd starts from it; what etcd
//! saved becomes the data of new members here. Files are walked front to back: memory does
//! not grow with them.

mod bolt;
mod etcd_log;
mod export;
mod restore;
mod schema;
mod sort;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use bolt::BoltError;
pub(crate) use export::export;
pub use export::{Export, Exported, export_directory};
pub use restore::{Restore, Restored, restore};
pub use source::{Summary, summarize};

use crate::mvcc::EngineError;

/// The bytes of the checksum behind a snapshot's pages. etcd knows by the size of a file
/// whether one is there, as pages come in multiples of 512 bytes.
pub const CHECKSUM_BYTES: usize = 32;

/// Called now and then with how much is done and of how much.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why a snapshot could not be written, read or restored. Display names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("cannot read {} as a snapshot of etcd", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: BoltError,
    },
    /// The pages are sound, and what they say is not.
    #[error("the snapshot {} is damaged: in its bucket {bucket:?}, {reason}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        bucket: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file was written by something else than `snapshot save`.
    #[error(
        "{} has no checksum at its end, so damage would not be noticed; if it was copied from a data \
         directory, say --skip-hash-check",
        path.display()
    )]
    NoChecksum {
        /// Which file.
        path: PathBuf,
    },
    /// The file changed since it was saved.
    #[error("{} is damaged: its sha256 is {found} and should be {expected}", path.display())]
    Checksum {
        /// Which file.
        path: PathBuf,
        /// What it ends with.
        expected: String,
        /// What its pages give.
        found: String,
    },
    /// The log beside the backend of an etcd that was killed.
    #[error("cannot take over the log of etcd in {}: {reason}", path.display())]
    Log {
        /// The directory, or the file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another process writes the file.
    #[error(
        "{} is in use by another process; stop it, or save a snapshot from it",
        path.display()
    )]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// Nothing is overwritten.
    #[error("the data directory {} is not empty; remove it, or name another one", path.display())]
    NotEmpty {
        /// Which directory.
        path: PathBuf,
    },
    /// What was asked for does not fit together.
    #[error("{0}")]
    Option(String),
    /// The state machine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log of the new member.
    #[error(transparent)]
    Wal(#[from] crate::wal::WalError),
}

fn file_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SnapshotError + 'a {
    move |source| SnapshotError::File { action, path: path.to_owned(), source }
}
