//! What the API server needs of a store: ordered keys, revisions, transactions, watches.
//!
//! Two implementations answer to the same tests: [`local`] is the store in the same
//! process, [`etcd`] is any etcd v3 endpoint. Always: a revision given out here is the
//! store's own, so that it means the same on every API server.

pub mod continue_token;
#[cfg(test)]
mod contract;
pub mod etcd;
pub mod local;
mod messages;
#[cfg(test)]
pub(crate) mod testing;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_proto::fence::Fence;

/// What a storage call returns.
pub type Result<T> = std::result::Result<T, StorageError>;

/// Why a storage call failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A condition of the transaction did not hold; the values found instead, in the
    /// order of the conditions.
    #[error("the object was changed in the meantime")]
    Conflict { found: Vec<Option<KeyValue>> },
    /// The revision asked for is gone; `compacted` is the oldest that is left.
    #[error("the revision was compacted; the oldest left is {compacted}")]
    Compacted { compacted: u64 },
    /// The revision asked for is not there yet.
    #[error("the revision lies in the future")]
    FutureRevision,
    /// The write was fenced, and another leader reigns now.
    #[error("the fence is no longer current")]
    Fenced,
    /// This store cannot do what was asked.
    #[error("the storage backend does not support {0}")]
    NotSupported(&'static str),
    /// The value or the transaction exceeds the store's limit.
    #[error("the request is larger than the store accepts")]
    TooLarge,
    /// No quorum, no connection, or too slow; a write may have taken effect.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Anything else the store said.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    /// Where the key was changed last.
    pub mod_revision: u64,
}

/// One answer of [`Storage::get`].
#[derive(Clone, Debug)]
pub struct Got {
    pub value: Option<KeyValue>,
    /// The revision at which the store answered.
    pub revision: u64,
}

/// Which keys to list: `start <= key < end`.
#[derive(Clone, Debug)]
pub struct ListRequest {
    pub start: String,
    pub end: String,
    /// `None` is the newest, linearizable; `Some` is that very revision.
    pub revision: Option<u64>,
    /// 0 is no limit.
    pub limit: usize,
}

/// A part of the keys asked for, in order.
#[derive(Clone, Debug)]
pub struct ListPage {
    pub items: Vec<KeyValue>,
    /// The revision at which the items are true.
    pub revision: u64,
    /// How many keys the request matches, whatever the limit.
    pub count: u64,
    /// Whether the limit cut the list off.
    pub more: bool,
}

/// What must hold for a transaction to take effect.
#[derive(Clone, Debug)]
pub struct Condition {
    pub key: String,
    /// 0: the key does not exist.
    pub mod_revision: u64,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub enum Write {
    Put { key: String, value: Bytes },
    Delete { key: String },
}

/// All of `writes` take effect, at one revision, if all of `conditions` hold.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub conditions: Vec<Condition>,
    pub writes: Vec<Write>,
}

/// One step of a watch.
#[derive(Clone, Debug)]
pub enum WatchMessage {
    /// Changes in the order of revisions; a revision is never split over two messages.
    Events(Vec<Event>),
    /// Everything up to this revision has been delivered.
    Progress(u64),
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    pub key: String,
    pub revision: u64,
    /// `None`: the key was deleted.
    pub value: Option<Bytes>,
    /// What stood there before: when asked for, and as far as history goes.
    pub previous: Option<KeyValue>,
    /// The key did not exist before.
    pub is_creation: bool,
}

/// A running watch.
pub trait WatchStream: Send + 'static {
    /// The next message. `Compacted` means: list again. After an error the watch is over.
    ///
    /// Cancel-safe: nothing is lost when the future is dropped.
    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage>>;

    /// Asks for a [`WatchMessage::Progress`] as soon as everything known now is delivered.
    fn request_progress(&mut self) -> BoxFuture<'_, Result<()>>;
}

/// An etcd-like store.
pub trait Storage: Send + Sync + 'static {
    /// Reads one key, linearizable.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Got>>;

    /// Lists keys in order.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision` when the revision asked for cannot be read.
    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ListPage>>;

    /// Commits, and returns the revision of the commit.
    ///
    /// # Errors
    /// `Conflict` when a condition does not hold, `Fenced` when `fence` no longer reigns.
    fn transact(&self, transaction: Transaction, fence: Option<Fence>) -> BoxFuture<'_, Result<u64>>;

    /// Watches all keys that begin with `prefix`, from revision `from` on (inclusive);
    /// with `previous`, events also carry what stood there before.
    fn watch<'a>(&'a self, prefix: &'a str, from: u64, previous: bool) -> BoxFuture<'a, Result<Box<dyn WatchStream>>>;

    /// A revision that holds every write that was acknowledged before this call.
    fn read_index(&self) -> BoxFuture<'_, Result<u64>>;

    /// Drops history before `revision`.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>>;

    /// How long the disk beneath has kept a write waiting; zero where nobody can tell.
    fn stalled_for(&self) -> Duration {
        Duration::ZERO
    }

    /// Creates `key`, which must not exist.
    fn create<'a>(&'a self, key: &'a str, value: Bytes, fence: Option<Fence>) -> BoxFuture<'a, Result<u64>> {
        self.update(key, value, 0, fence)
    }

    /// Replaces `key` if it still is at `mod_revision`.
    fn update<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        mod_revision: u64,
        fence: Option<Fence>,
    ) -> BoxFuture<'a, Result<u64>> {
        self.transact(
            Transaction {
                conditions: vec![Condition { key: key.to_owned(), mod_revision }],
                writes: vec![Write::Put { key: key.to_owned(), value }],
            },
            fence,
        )
    }

    /// Deletes `key` if it still is at `mod_revision`.
    fn delete<'a>(&'a self, key: &'a str, mod_revision: u64, fence: Option<Fence>) -> BoxFuture<'a, Result<u64>> {
        self.transact(
            Transaction {
                conditions: vec![Condition { key: key.to_owned(), mod_revision }],
                writes: vec![Write::Delete { key: key.to_owned() }],
            },
            fence,
        )
    }
}

/// The first key after every key that begins with `prefix`.
pub fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        // Our prefixes are ASCII: the successor is too, and stays UTF-8.
        if last < 0x7f {
            end.push(last + 1);
            return String::from_utf8(end).unwrap_or_default();
        }
    }
    String::new()
}
