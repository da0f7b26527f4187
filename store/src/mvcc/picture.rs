//! The whole state at one moment, row by row, for files that other programs read.

use bytes::Bytes;
use rocksdb::{DBRawIterator, ReadOptions};

use super::db::Instance;
use super::rows::{self, BadRow, KEYS, Row, State};
use super::{EngineError, LeaseRecord};

/// Sees what was applied when it was made and nothing after it. It keeps files that are
/// replaced meanwhile on disk: not for long.
pub(crate) struct Picture<'a> {
    instance: &'a Instance,
    iterator: DBRawIterator<'a>,
    state: State,
}

/// Which kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthRow {
    User,
    Role,
}

impl AuthRow {
    pub(super) fn code(self) -> u8 {
        match self {
            AuthRow::User => rows::AUTH_USER,
            AuthRow::Role => rows::AUTH_ROLE,
        }
    }
}

impl Instance {
    /// What is here now.
    pub(crate) fn picture(&self) -> Result<Picture<'_>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.fill_cache(false);
        // One iterator for everything: two would see two moments, and unlike a snapshot it
        // also keeps what a compaction is removing.
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(rows::STATE);
        let state = match iterator.item() {
            Some((key, row)) if key == rows::STATE => State::decode(row).map_err(|bad| self.damaged(bad))?,
            _ => State::EMPTY,
        };
        iterator.status().map_err(self.failed("be read"))?;
        Ok(Picture { instance: self, iterator, state })
    }
}

impl Picture<'_> {
    pub(crate) fn revision(&self) -> i64 {
        self.state.revision
    }

    pub(crate) fn compact_revision(&self) -> i64 {
        self.state.compact_revision
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.generation
    }

    pub(crate) fn applied(&self) -> crate::wal::EntryId {
        self.state.applied.unwrap_or_default()
    }

    /// Every version that some revision shows which was not compacted, by key and from new to
    /// old. A deletion at the compacted revision itself is among them: a watch may begin there.
    pub(crate) fn versions<E: From<EngineError>>(
        &mut self,
        mut visit: impl FnMut(Bytes, Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let compacted = self.state.compact_revision;
        let mut prefix: Vec<u8> = Vec::new();
        let mut key = Bytes::new();
        let mut hidden = false;
        self.walk(&[KEYS], &[KEYS + 1], |row_key, row| {
            let (found, revision) = rows::split_version(row_key)?;
            if prefix != found {
                prefix.clear();
                prefix.extend_from_slice(found);
                key = rows::unescape(found)?;
                hidden = false;
            }
            if hidden {
                return Ok(Ok(()));
            }
            let row = rows::parse_row(row, revision, true)?;
            hidden = revision.main <= compacted;
            if row.tombstone && revision.main < compacted {
                return Ok(Ok(()));
            }
            Ok(visit(key.clone(), row))
        })
    }

    /// Every lease, by id.
    pub(crate) fn leases<E: From<EngineError>>(
        &mut self,
        mut visit: impl FnMut(LeaseRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let (from, to) = rows::lease_bounds();
        self.walk(&from, &to, |key, row| {
            let id = rows::parse_number(key)? as i64;
            let (ttl, remaining) = rows::parse_lease_row(row)?;
            Ok(visit(LeaseRecord { id, ttl, remaining }))
        })
    }

    /// Whether users count, and how often they changed; none when they never did.
    pub(crate) fn auth(&mut self) -> Result<Option<(bool, u64)>, EngineError> {
        let instance = self.instance;
        let key = rows::auth_key(rows::AUTH_WHOLE, "");
        self.iterator.seek(&key);
        let found = match self.iterator.item() {
            Some((found, row)) if found == key => {
                Some(rows::parse_auth_whole(row).map_err(|bad| instance.damaged(bad))?)
            }
            _ => None,
        };
        self.iterator.status().map_err(instance.failed("be read"))?;
        // The secret that signs tokens stays here: a copy of the state must not make any.
        Ok(found.map(|(enabled, revision, _)| (enabled, revision)))
    }

    /// Every user, or role, by name; as etcd keeps it.
    pub(crate) fn auth_rows<E: From<EngineError>>(
        &mut self,
        kind: AuthRow,
        mut visit: impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let kind = kind.code();
        let (from, mut to) = (rows::auth_key(kind, ""), rows::auth_key(kind, ""));
        to[1] += 1;
        self.walk(&from, &to, |key, row| {
            let (_, name) = rows::parse_auth_key(key)?;
            Ok(visit(&name, row))
        })
    }

    fn walk<E: From<EngineError>>(
        &mut self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<Result<(), E>, BadRow>,
    ) -> Result<(), E> {
        let instance = self.instance;
        self.iterator.seek(from);
        while let Some((key, row)) = self.iterator.item()
            && key < to
        {
            visit(key, row).map_err(|bad| instance.damaged(bad))??;
            self.iterator.next();
        }
        Ok(self.iterator.status().map_err(instance.failed("be read"))?)
    }
}
