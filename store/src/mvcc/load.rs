//! Fills a state machine that is not running yet, row by row.

use bytes::Bytes;
use rocksdb::WriteBatch;

use super::db::Instance;
use super::picture::AuthRow;
use super::rows::{self, KEYS, Row, State};
use super::{Config, EngineError, LeaseRecord, engine, hash};
use crate::wal::EntryId;

/// A batch is written when it is this large.
const BATCH_BYTES: usize = 1 << 20;

/// What the state machine says of itself once it is filled.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) generation: u64,
    /// Counts as applied.
    pub(crate) applied: EntryId,
    pub(crate) membership: Bytes,
    /// Everybody in it.
    pub(crate) member_ids: Vec<u64>,
}

/// Nothing is there for anybody before [`Loader::finish`].
pub(crate) struct Loader {
    instance: Instance,
    batch: WriteBatch,
    /// The sum of the rows' hashes.
    hash: u64,
    row_key: Vec<u8>,
    row: Vec<u8>,
}

impl Loader {
    /// Begins an empty state machine in `config.directory`, which is made.
    pub(crate) fn new(config: &Config) -> Result<Loader, EngineError> {
        let instance = engine::create(config)?;
        Ok(Loader { instance, batch: WriteBatch::default(), hash: 0, row_key: Vec::new(), row: Vec::new() })
    }

    /// Adds a version of a key, in any order. `logged` says whether watchers may ask for it;
    /// a deletion is noted in any case, so that it is cleared away once it is compacted.
    pub(crate) fn version(&mut self, key: &[u8], row: &Row, logged: bool) -> Result<(), EngineError> {
        rows::put_key_prefix(&mut self.row_key, key);
        rows::put_version(&mut self.row_key, row.revision);
        rows::put_row(&mut self.row, row);
        self.batch.put(&self.row_key, &self.row);
        self.hash = self.hash.wrapping_add(hash::row_hash(&self.row_key, &self.row));
        if logged || row.tombstone {
            rows::put_change(&mut self.row, key, row.tombstone);
            self.batch.put(rows::change_key(row.revision), &self.row);
        }
        self.write_full()
    }

    pub(crate) fn lease(&mut self, lease: LeaseRecord) -> Result<(), EngineError> {
        self.batch.put(rows::lease_key(lease.id), rows::lease_row(lease.ttl, lease.remaining));
        self.write_full()
    }

    /// Says whether users count. The secret that signs tokens is for the members to make anew.
    pub(crate) fn auth(&mut self, enabled: bool, revision: u64) -> Result<(), EngineError> {
        self.put(&rows::auth_key(rows::AUTH_WHOLE, ""), &rows::auth_whole(enabled, revision, &[]))
    }

    /// Adds a user or a role, which the caller has read.
    pub(crate) fn auth_row(&mut self, kind: AuthRow, name: &str, row: &[u8]) -> Result<(), EngineError> {
        self.put(&rows::auth_key(kind.code(), name), row)
    }

    fn put(&mut self, row_key: &[u8], row: &[u8]) -> Result<(), EngineError> {
        self.batch.put(row_key, row);
        self.hash = self.hash.wrapping_add(hash::row_hash(row_key, row));
        self.write_full()
    }

    /// The sum over what was added so far, leases aside; the same whatever the order.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Gives leases their keys, writes the state of the whole, and makes all of it durable.
    pub(crate) fn finish(mut self, loaded: Loaded) -> Result<(), EngineError> {
        self.attach()?;
        self.batch.put(rows::MEMBERSHIP, &loaded.membership);
        self.put(rows::MEMBER_IDS, &rows::member_ids_row(&loaded.member_ids))?;
        let state = State {
            applied: Some(loaded.applied),
            revision: loaded.revision,
            compact_revision: loaded.compact_revision,
            generation: loaded.generation,
            hash: self.hash,
            ..State::EMPTY
        };
        self.batch.put(rows::STATE, state.encode());
        self.instance.write(self.batch)?;
        self.instance.flush()
    }

    /// The newest version of a key says which lease it belongs to; one whose lease is gone
    /// belongs to none.
    fn attach(&mut self) -> Result<(), EngineError> {
        self.instance.write(std::mem::take(&mut self.batch))?;
        let instance = &self.instance;
        let mut batch = WriteBatch::default();
        let mut prefix: Vec<u8> = Vec::new();
        let mut iterator = instance.range_iterator(&[KEYS], &[KEYS + 1]);
        iterator.seek([KEYS]);
        while let Some((row_key, row)) = iterator.item() {
            let damaged = |bad| instance.damaged(bad);
            let (found, revision) = rows::split_version(row_key).map_err(damaged)?;
            if prefix != found {
                prefix.clear();
                prefix.extend_from_slice(found);
                let lease = rows::parse_row(row, revision, false).map_err(damaged)?.lease;
                if lease != 0 && instance.get(&rows::lease_key(lease))?.is_some() {
                    batch.put(rows::attachment_key(lease, &rows::unescape(found).map_err(damaged)?), []);
                }
                if batch.size_in_bytes() >= BATCH_BYTES {
                    instance.write(std::mem::take(&mut batch))?;
                }
            }
            iterator.next();
        }
        iterator.status().map_err(instance.failed("be read"))?;
        instance.write(batch)
    }

    fn write_full(&mut self) -> Result<(), EngineError> {
        if self.batch.size_in_bytes() < BATCH_BYTES {
            return Ok(());
        }
        self.instance.write(std::mem::take(&mut self.batch))
    }
}
