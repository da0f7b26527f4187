//! What a batch in progress has changed and no reader may see yet.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcd::AlarmType;
use rocksdb::WriteBatch;

use super::db::Instance;
use super::latest::Latest;
use super::rows::{self, BadRow, Revision, Row, State};
use super::view::{KeyRange, Keys, Lookup, Scan};
use super::{EngineError, LeaseRecord, ReadError, hash};
use crate::auth::{self, AuthChange};
use crate::command::{ApplyError, Attributes, Operation};

/// The versions a batch gave one key, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Versions(Vec<Row>);

impl Versions {
    /// The version that is current at revision `at`.
    pub(super) fn at(&self, at: i64) -> Option<&Row> {
        self.0.iter().rev().find(|row| row.revision.main <= at)
    }

    fn newest(&self) -> Option<&Row> {
        self.0.last()
    }
}

/// One change of one key, for watchers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) row: Row,
    /// The version before, when the key was alive.
    pub(crate) previous: Option<Row>,
}

/// A batch in progress. Nothing is visible before `commit`.
pub(crate) struct Pending<'a> {
    instance: &'a Instance,
    batch: WriteBatch,
    keys: BTreeMap<Bytes, Versions>,
    attachments: BTreeMap<i64, BTreeMap<Bytes, bool>>,
    /// Rows about members that this batch has written, removed ones as none.
    members: BTreeMap<Vec<u8>, Option<Bytes>>,
    lookup: RefCell<Lookup<'a>>,
    latest: &'a mut Latest,
    /// The row of the requests that took effect in this batch.
    requests: Vec<u8>,
    pub(super) state: State,
    auth: Arc<auth::State>,
    changes: Vec<Change>,
    row_key: Vec<u8>,
    row: Vec<u8>,
}

impl<'a> Pending<'a> {
    pub(crate) fn new(instance: &'a Arc<Instance>, latest: &'a mut Latest) -> Pending<'a> {
        Pending {
            instance,
            batch: WriteBatch::default(),
            keys: BTreeMap::new(),
            attachments: BTreeMap::new(),
            members: BTreeMap::new(),
            lookup: RefCell::new(Lookup::new(instance)),
            latest,
            requests: Vec::new(),
            state: instance.state(),
            auth: instance.auth(),
            changes: Vec::new(),
            row_key: Vec::new(),
            row: Vec::new(),
        }
    }

    /// The newest version of `key`, unless it is a tombstone.
    pub(super) fn get(&self, key: &Bytes) -> Result<Option<Row>, EngineError> {
        let pending = self.keys.get(key).and_then(Versions::newest);
        let row = match pending.or_else(|| self.latest.get(key)) {
            Some(row) => Some(row.clone()),
            None => self.lookup.borrow_mut().get(key, self.state.revision, true)?,
        };
        Ok(row.filter(|row| !row.tombstone))
    }

    /// The keys that are alive at revision `at`, by what this batch has changed too.
    pub(super) fn keys(&self, range: KeyRange<'_>, at: i64, with_values: bool) -> Result<Keys<'_>, EngineError> {
        if let KeyRange::One(key) = range
            && at >= self.state.revision
        {
            let row = self.get(key)?;
            // A transaction may ask for the revision before its own writes.
            if row.as_ref().is_some_and(|row| row.revision.main <= at) || !self.keys.contains_key(key) {
                return Ok(Keys::One(row.map(|row| (key.clone(), row))));
            }
        }
        Ok(Keys::Many(Scan::new(self.instance, Some(&self.keys), range, at, with_values)?))
    }

    /// Gives `key` a version; `previous` is the one alive before.
    pub(super) fn write(&mut self, key: &[u8], row: Row, previous: Option<Row>) {
        // Copied once: what is kept for writers and watchers must not hold on to the buffers
        // that entries arrived in.
        let key = Bytes::copy_from_slice(key);
        let row = Row { value: Bytes::copy_from_slice(&row.value), ..row };
        rows::put_key_prefix(&mut self.row_key, &key);
        rows::put_version(&mut self.row_key, row.revision);
        rows::put_row(&mut self.row, &row);
        self.batch.put(&self.row_key, &self.row);
        self.state.hash = self.state.hash.wrapping_add(hash::row_hash(&self.row_key, &self.row));
        rows::put_change(&mut self.row, &key, row.tombstone);
        self.batch.put(rows::change_key(row.revision), &self.row);
        let before = previous.as_ref().map_or(0, |row| row.lease);
        if before != row.lease {
            self.attach(before, &key, false);
            self.attach(row.lease, &key, true);
        }
        self.keys.entry(key.clone()).or_default().0.push(row.clone());
        self.changes.push(Change { key, row, previous });
    }

    fn attach(&mut self, lease: i64, key: &Bytes, attached: bool) {
        if lease == 0 {
            return;
        }
        let row_key = rows::attachment_key(lease, key);
        if attached {
            self.batch.put(row_key, []);
        } else {
            self.batch.delete(row_key);
        }
        self.attachments.entry(lease).or_default().insert(key.clone(), attached);
    }

    /// The keys of a lease, sorted.
    pub(super) fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, EngineError> {
        let mut keys = self.instance.lease_keys(lease)?;
        if let Some(changed) = self.attachments.get(&lease) {
            keys.retain(|key| changed.get(key) != Some(&false));
            keys.extend(changed.iter().filter(|(_, attached)| **attached).map(|(key, _)| key.clone()));
            keys.sort();
            keys.dedup();
        }
        Ok(keys)
    }

    pub(super) fn lease(&self, id: i64) -> Option<LeaseRecord> {
        self.instance.lease(id)
    }

    /// Leases are not versioned: a reader may see one a moment before its batch is written,
    /// which is harmless, as nothing about it has been confirmed to anybody.
    pub(super) fn put_lease(&mut self, lease: LeaseRecord) {
        self.batch.put(rows::lease_key(lease.id), rows::lease_row(lease.ttl, lease.remaining));
        self.instance.leases_mut().insert(lease.id, lease);
    }

    pub(super) fn remove_lease(&mut self, id: i64) {
        self.batch.delete(rows::lease_key(id));
        self.instance.leases_mut().remove(&id);
    }

    pub(super) fn alarm(&self, member: u64, alarm: i32) -> Option<bool> {
        let kind = AlarmType::try_from(alarm).ok()?;
        self.instance.alarms().get(member, kind)
    }

    /// Why an operation must not be applied now.
    pub(super) fn refusal(&self, operation: &Operation) -> Option<ApplyError> {
        self.instance.alarms().refusal(operation)
    }

    /// As leases, alarms may be seen a moment before their batch is written.
    pub(super) fn put_alarm(&mut self, member: u64, alarm: i32, automatic: bool) {
        self.put_state(&rows::alarm_key(member, alarm), Some(&[u8::from(automatic)]));
        self.instance.alarms_mut().insert(member, alarm, automatic);
    }

    pub(super) fn remove_alarm(&mut self, member: u64, alarm: i32) {
        self.put_state(&rows::alarm_key(member, alarm), None);
        self.instance.alarms_mut().remove(member, alarm);
    }

    pub(super) fn downgrade(&self) -> Option<String> {
        self.instance.downgrade()
    }

    pub(super) fn set_downgrade(&mut self, target: Option<&str>) {
        self.put_state(rows::DOWNGRADE, target.map(str::as_bytes));
        self.instance.set_downgrade(target.map(str::to_owned));
    }

    /// Writes or removes a row that has no versions; either shows in the hash.
    fn put_state(&mut self, row_key: &[u8], row: Option<&[u8]>) {
        match row {
            Some(row) => self.batch.put(row_key, row),
            None => self.batch.delete(row_key),
        }
        let written = row.unwrap_or(b"removed");
        self.state.hash = self.state.hash.wrapping_add(hash::row_hash(row_key, written));
    }

    /// Notes who is a member from here on; whoever was one before is removed for good.
    pub(crate) fn set_membership(&mut self, membership: &[u8], ids: &[u64]) -> Result<(), EngineError> {
        let before = match self.member_row(rows::MEMBER_IDS)? {
            Some(row) => rows::parse_member_ids(&row).map_err(|bad| self.instance.damaged(bad))?,
            None => Vec::new(),
        };
        for gone in before.into_iter().filter(|id| !ids.contains(id)) {
            self.put_member_row(rows::removed_key(gone), Some(Bytes::new()));
            self.put_member_row(rows::attributes_key(gone), None);
        }
        self.put_member_row(rows::MEMBER_IDS.to_vec(), Some(rows::member_ids_row(ids).into()));
        self.batch.put(rows::MEMBERSHIP, membership);
        Ok(())
    }

    /// What a member says of itself, from the data directory that said something first.
    pub(super) fn set_attributes(&mut self, member: u64, encoded: &Bytes) -> Result<(), ReadError> {
        let attributes =
            Attributes::decode(encoded).map_err(|error| ApplyError::Undecodable(format!("attributes: {error}")))?;
        if self.member_row(&rows::removed_key(member))?.is_some() {
            return Err(ApplyError::MemberRemoved.into());
        }
        let row_key = rows::attributes_key(member);
        let known = self.member_row(&row_key)?.and_then(|row| Attributes::decode(&row).ok());
        if known.is_some_and(|known| known.directory != attributes.directory) {
            return Err(ApplyError::OtherDirectory.into());
        }
        self.put_member_row(row_key, Some(encoded.clone()));
        Ok(())
    }

    fn member_row(&self, row_key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self.members.get(row_key) {
            Some(row) => Ok(row.clone()),
            None => self.instance.get(row_key),
        }
    }

    fn put_member_row(&mut self, row_key: Vec<u8>, row: Option<Bytes>) {
        self.put_state(&row_key, row.as_deref());
        self.members.insert(row_key, row);
    }

    /// Users and roles as this batch has made them.
    pub(crate) fn auth(&self) -> Arc<auth::State> {
        Arc::clone(&self.auth)
    }

    /// Changes users and roles.
    pub(super) fn change_auth(&mut self, change: &AuthChange) -> Result<(), ApplyError> {
        let mut next = auth::State::clone(&self.auth);
        for touched in next.apply(change)? {
            let (row_key, row) = match &touched {
                auth::Row::Whole => {
                    let row = rows::auth_whole(next.enabled(), next.revision(), next.secret());
                    (rows::auth_key(rows::AUTH_WHOLE, ""), Some(row))
                }
                auth::Row::User(name) => {
                    (rows::auth_key(rows::AUTH_USER, name), next.user(name).map(Message::encode_to_vec))
                }
                auth::Row::Role(name) => {
                    (rows::auth_key(rows::AUTH_ROLE, name), next.role(name).map(Message::encode_to_vec))
                }
            };
            match &row {
                Some(row) => self.batch.put(&row_key, row),
                None => self.batch.delete(&row_key),
            }
            let row = row.unwrap_or_default();
            self.state.hash = self.state.hash.wrapping_add(hash::row_hash(&row_key, &row));
        }
        self.auth = Arc::new(next);
        Ok(())
    }

    /// Notes a request that took effect.
    pub(crate) fn put_request(&mut self, request: rows::Request<'_>) {
        rows::put_request(&mut self.requests, request);
    }

    /// The result of a request that took effect and is not forgotten: in the row of that
    /// number, or in this batch.
    pub(crate) fn request(&self, row: u64, client: u64, sequence: u64) -> Result<Bytes, EngineError> {
        let find = |mut row: &[u8]| {
            while let Some(request) = rows::take_request(&mut row)? {
                if (request.client, request.sequence) == (client, sequence) {
                    return Ok(Some(Bytes::copy_from_slice(request.result)));
                }
            }
            Ok(None)
        };
        let damaged = |bad| self.instance.damaged(bad);
        let mut found = find(&self.requests).map_err(damaged)?;
        if found.is_none() {
            let written = self.instance.get(&rows::request_key(row))?;
            found = find(written.as_deref().unwrap_or_default()).map_err(damaged)?;
        }
        found.ok_or_else(|| damaged(BadRow("the result of a request is missing")))
    }

    /// Forgets the results of requests up to a log index.
    pub(crate) fn forget_requests(&mut self, upto: u64) {
        self.batch.delete_range(rows::request_key(0), rows::request_key(upto + 1));
        self.state.forgotten = upto;
    }

    pub(crate) fn forgotten(&self) -> u64 {
        self.state.forgotten
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Of everything up to here.
    pub(crate) fn hash(&self) -> u64 {
        self.state.hash
    }

    pub(crate) fn revision(&self) -> i64 {
        self.state.revision
    }

    /// Where the next change stands when it is the `sub`th of its command.
    pub(super) fn next_revision(&self, sub: u32) -> Revision {
        Revision { main: self.state.revision + 1, sub }
    }

    /// Writes everything and lets readers see it; returns what watchers have to know.
    pub(crate) fn commit(mut self, applied: crate::wal::EntryId) -> Result<Vec<Change>, EngineError> {
        self.state.applied = Some(applied);
        if !self.requests.is_empty() {
            self.batch.put(rows::request_key(applied.index), &self.requests);
        }
        self.batch.put(rows::STATE, self.state.encode());
        self.instance.write(self.batch)?;
        self.instance.counts.note(&self.changes, self.state.compact_revision);
        self.instance.publish(self.state);
        self.instance.publish_auth(self.auth);
        self.changes.iter().for_each(|change| self.latest.note(change));
        Ok(self.changes)
    }
}

impl auth::check::LeaseKeys for Pending<'_> {
    fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, EngineError> {
        Pending::lease_keys(self, lease)
    }
}
