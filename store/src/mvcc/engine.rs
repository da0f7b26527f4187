//! Reads of the state machine, from any task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::response_op::Response;
use quorate_proto::etcd::{
    AlarmType, RangeRequest, RangeResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use quorate_proto::mvccpb::KeyValue;
use rocksdb::checkpoint::Checkpoint as Links;
use tokio::sync::watch;

use super::counts::Counts;
use super::db::Instance;
use super::hash::{self, HashKv, Trail};
use super::rows::Revision;
use super::view::{KeyRange, Keys, Lookup, Scan};
use super::{
    Alarms, Checkpoint, Config, EngineError, LeaseRecord, Listing, ReadError, Space, is_read_only, range, rows, space,
    txn,
};
use crate::auth;
use crate::command::{ApplyError, Operation};
use crate::quota::Load;

/// So long a hash is worked on before others have their turn.
const HASH_SLICE: Duration = Duration::from_millis(5);

/// So many changes are looked at when those of some keys are asked for: what a read takes
/// is bounded even if nothing in it matches.
const MAX_CHANGES_PER_READ: usize = 20_000;

/// Names the directory of the live database; replaced by a rename.
const CURRENT: &str = "CURRENT";
/// The directory of the first database.
const FIRST: &str = "db-1";

/// The state machine for readers. A snapshot replaces the database under them: who has
/// begun to read finishes on the old one.
pub struct Engine {
    config: Config,
    live: ArcSwap<Instance>,
    collected: watch::Sender<i64>,
    tight: AtomicBool,
    trail: Trail,
}

impl Engine {
    pub(crate) fn open(config: Config) -> Result<Engine, EngineError> {
        let directory = &config.directory;
        std::fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let current = directory.join(CURRENT);
        let name = match std::fs::read_to_string(&current) {
            Ok(name) => name.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                set_current(directory, FIRST)?;
                FIRST.to_owned()
            }
            Err(error) => return Err(failed("read", &current)(error)),
        };
        remove_others(directory, &name)?;
        let instance = Instance::open(&directory.join(&name), &config)?;
        let (live, collected) = (ArcSwap::from_pointee(instance), watch::Sender::new(-1));
        let engine = Engine { config, live, collected, tight: AtomicBool::new(false), trail: Trail::default() };
        engine.restart_trail();
        Ok(engine)
    }

    /// Replaces the database by the checkpoint in `received`, which is moved away.
    /// A crash on the way leaves the old one or the new one.
    pub(crate) fn install(&self, received: &Path) -> Result<(), EngineError> {
        let directory = &self.config.directory;
        let old = self.live().path().to_owned();
        let number = old.file_name().and_then(|name| name.to_str()?.strip_prefix("db-")?.parse::<u64>().ok());
        let name = format!("db-{}", number.unwrap_or(0) + 1);
        let new = directory.join(&name);
        if new.exists() {
            std::fs::remove_dir_all(&new).map_err(failed("remove", &new))?;
        }
        sync_files(received)?;
        std::fs::rename(received, &new).map_err(failed("rename", received))?;
        sync(directory)?;
        // Opened before it becomes current: a checkpoint that is damaged changes nothing.
        let instance = Instance::open(&new, &self.config)?;
        set_current(directory, &name)?;
        let replaced = self.live.swap(Arc::new(instance));
        self.restart_trail();
        // Readers may still hold the old one; on Linux its open files live on without names.
        drop(replaced);
        std::fs::remove_dir_all(&old).map_err(failed("remove", &old))
    }

    pub(crate) fn live(&self) -> Arc<Instance> {
        self.live.load_full()
    }

    /// The revision that reads see.
    pub fn revision(&self) -> i64 {
        self.live.load().revision()
    }

    /// History before this is gone; -1 when all of it is there.
    pub fn compact_revision(&self) -> i64 {
        self.live.load().compact_revision()
    }

    /// The compacted revision whose history has been removed from the database too. What a
    /// compaction that asked to be physical waits for; its order is flushed by then.
    pub fn collected(&self) -> watch::Receiver<i64> {
        self.collected.subscribe()
    }

    pub(super) fn set_collected(&self, revision: i64) {
        self.collected.send_replace(revision);
    }

    /// Counts recoveries from lost quorum.
    pub fn generation(&self) -> u64 {
        self.live.load().state().generation
    }

    /// The index of the entry applied last; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.live.load().state().applied.map_or(0, |id| id.index)
    }

    /// The index up to which a crash loses nothing of the state machine: the log may be
    /// purged up to here and no further.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn flushed_applied(&self) -> Result<u64, EngineError> {
        Ok(self.live().flushed_state()?.applied.map_or(0, |id| id.index))
    }

    /// Makes everything applied durable. Blocks.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn flush(&self) -> Result<(), EngineError> {
        self.live().flush()
    }

    /// Answers a range from what is applied here: how fresh that must be is for the caller.
    ///
    /// # Errors
    /// `Apply` is for the client.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        range::check(request)?;
        let instance = self.live();
        loop {
            let current = instance.revision();
            let at = range::revision(request, current, instance.compact_revision())?;
            let response = txn::read_range(&*instance, request, at, current)?;
            // What was compacted meanwhile may have been removed under the scan.
            if instance.compact_revision() <= at {
                return Ok(response);
            }
        }
    }

    /// The first keys of a range in their order; see [`range::page`]. Counts nothing, so its
    /// cost is that of what it returns.
    ///
    /// # Errors
    /// `Apply` is for the client.
    pub(crate) fn page(&self, request: &RangeRequest, max_keys: usize, max_bytes: usize) -> Result<Page, ReadError> {
        range::check(request)?;
        let instance = self.live();
        let revision = instance.revision();
        let at = range::revision(request, revision, instance.compact_revision())?;
        let keys = txn::Source::keys(&*instance, range::key_range(request), at, range::needs_values(request))?;
        let (kvs, more) = range::page(request, keys, max_keys, max_bytes)?;
        // What was compacted meanwhile may have been removed under the scan.
        if instance.compact_revision() > at {
            return Err(ApplyError::Compacted.into());
        }
        Ok(Page { kvs, more, at, revision })
    }

    /// Answers a range as bytes; it has to be plain, see [`range::is_plain`].
    ///
    /// # Errors
    /// `Apply` is for the client.
    pub(crate) fn list(&self, request: &RangeRequest) -> Result<Listing, ReadError> {
        range::check(request)?;
        let instance = self.live();
        loop {
            let current = instance.revision();
            let at = range::revision(request, current, instance.compact_revision())?;
            let listing = Listing::new(Arc::clone(&instance), request, at, current)?;
            // What was compacted meanwhile may have been removed before the walk began.
            if instance.compact_revision() <= at {
                return Ok(listing);
            }
        }
    }

    /// Answers a transaction that only reads, all of it at one revision.
    ///
    /// # Errors
    /// `Apply` is for the client: `NotReadOnly` when it could write.
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, ReadError> {
        txn::check_txn(request, usize::MAX)?;
        if !is_read_only(request) {
            return Err(ApplyError::NotReadOnly.into());
        }
        let instance = self.live();
        loop {
            let current = instance.revision();
            let (response, oldest) = read_txn(&instance, request, current)?;
            if instance.compact_revision() <= oldest {
                return Ok(response);
            }
        }
    }

    /// Checks that need no state; see [`super::check`].
    ///
    /// # Errors
    /// What the client is told.
    pub fn check(operation: &Operation, max_txn_ops: usize) -> Result<(), ApplyError> {
        super::check(operation, max_txn_ops)
    }

    /// The checks of a read that need no state.
    ///
    /// # Errors
    /// What the client is told.
    pub fn check_range(request: &RangeRequest) -> Result<(), ApplyError> {
        range::check(request)
    }

    /// Whether a transaction can only read.
    pub fn is_read_only(request: &TxnRequest) -> bool {
        is_read_only(request)
    }

    /// The hash of what can be read at `revision`, the current one when it is 0. Reads
    /// everything: for operators, not for every second.
    ///
    /// # Errors
    /// `Apply` is for the client.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        hash::hash_kv(&self.live(), revision, || {})
    }

    /// As [`Engine::hash_kv`], working half of the time at most.
    ///
    /// # Errors
    /// As [`Engine::hash_kv`].
    pub(crate) fn hash_kv_slowly(&self, revision: i64) -> Result<HashKv, ReadError> {
        let mut began = Instant::now();
        hash::hash_kv(&self.live(), revision, || {
            let worked = began.elapsed();
            if worked >= HASH_SLICE {
                // Nobody unparks it, and a wait that is too short does no harm.
                std::thread::park_timeout(worked);
                began = Instant::now();
            }
        })
    }

    /// The hash of all history up to an entry that was applied not long ago.
    pub(crate) fn hash_after(&self, index: u64) -> Option<u64> {
        self.trail.at(index)
    }

    pub(crate) fn trail(&self) -> &Trail {
        &self.trail
    }

    fn restart_trail(&self) {
        let (index, hash) = self.applied_hash();
        self.trail.restart(index, hash);
    }

    /// The index applied last and the hash of all history up to it, kept with every batch:
    /// equal on members at the same index, or one of them is corrupt.
    pub fn applied_hash(&self) -> (u64, u64) {
        let state = self.live.load().state();
        (state.applied.map_or(0, |id| id.index), state.hash)
    }

    /// The alarms that are raised.
    pub(crate) fn alarms(&self) -> Alarms {
        self.live.load().alarms().clone()
    }

    /// Whether an alarm is raised, and if so whether it clears itself.
    pub(crate) fn alarm(&self, member: u64, alarm: AlarmType) -> Option<bool> {
        self.live.load().alarms().get(member, alarm)
    }

    /// The version that the members are to be downgraded to.
    pub fn downgrade(&self) -> Option<String> {
        self.live.load().downgrade()
    }

    /// All leases, by id.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        let instance = self.live();
        let leases = instance.leases.read().unwrap_or_else(PoisonError::into_inner);
        leases.values().copied().collect()
    }

    /// One lease.
    pub fn lease(&self, id: i64) -> Option<LeaseRecord> {
        self.live().lease(id)
    }

    /// The keys of a lease, sorted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        self.live().lease_keys(id)
    }

    /// Users and roles, as applied.
    pub fn auth(&self) -> Arc<auth::State> {
        self.live.load().auth()
    }

    /// The membership applied last.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn membership(&self) -> Result<Option<Bytes>, EngineError> {
        self.live().get(rows::MEMBERSHIP)
    }

    /// What members say of themselves.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn member_attributes(&self) -> Result<Vec<(u64, Bytes)>, EngineError> {
        let mut found = Vec::new();
        let (from, to) = rows::attributes_bounds();
        self.live().scan(&from, &to, |key, row| {
            found.push((rows::parse_member(key)?, Bytes::copy_from_slice(row)));
            Ok(true)
        })?;
        Ok(found)
    }

    /// The ids of all members that were ever removed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn removed_members(&self) -> Result<Vec<u64>, EngineError> {
        let mut found = Vec::new();
        let (from, to) = rows::removed_bounds();
        self.live().scan(&from, &to, |key, _| {
            found.push(rows::parse_member(key)?);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Writes the files of the state machine, as it is now, into `directory`, which must not
    /// exist; they are hard links where possible. The caller must not apply meanwhile.
    ///
    /// # Errors
    /// When the database or the disk refuses.
    pub fn checkpoint(&self, directory: &Path) -> Result<Checkpoint, EngineError> {
        let instance = self.live();
        // Without a log of its own, what is not flushed would not be in it.
        instance.flush()?;
        let links = Links::new(&instance.db).map_err(instance.failed("make a checkpoint"))?;
        links.create_checkpoint(directory).map_err(instance.failed("make a checkpoint"))?;
        let state = instance.flushed_state()?;
        let membership = instance.get(rows::MEMBERSHIP)?;
        Ok(Checkpoint { applied: state.applied, membership, revision: state.revision })
    }

    /// The bytes on disk and in memtables.
    pub fn size_bytes(&self) -> u64 {
        self.live.load().size_bytes()
    }

    /// How hard the database has to work, and what it holds.
    pub(crate) fn load(&self) -> Load {
        let instance = self.live();
        Load {
            used_bytes: instance.size_bytes(),
            level0_files: instance.property(c"rocksdb.num-files-at-level0"),
            backlog_bytes: instance.property(c"rocksdb.estimate-pending-compaction-bytes"),
            quota_bytes: 0,
        }
    }

    /// Says whether space is short: then it is given back after every compaction.
    pub(crate) fn set_tight(&self, tight: bool) {
        self.tight.store(tight, Ordering::Relaxed);
    }

    pub(super) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// An estimate of the bytes that hold live rows.
    pub fn size_in_use_bytes(&self) -> u64 {
        let instance = self.live();
        instance.property(c"rocksdb.estimate-live-data-size") + instance.property(c"rocksdb.cur-size-all-mem-tables")
    }

    /// Which parts of the keys take how much space: see [`Space`]. Blocks a little.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn space(&self, depth: usize) -> Result<Space, EngineError> {
        space::by_prefix(&self.live(), depth)
    }

    /// The changes of keys in `range` from `from` on, in order: whole revisions, up to
    /// `limit` of them, and no more than begin within `max_bytes`. Looks at a bounded
    /// piece of the change log. For watchers that fell behind.
    pub(crate) fn changes(
        &self,
        from: i64,
        range: KeyRange<'_>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<History, ReadError> {
        let instance = self.live();
        let current = instance.revision();
        let (found, mut upto) = match range {
            KeyRange::One(key) => versions(&instance, key, from, current, limit)?,
            _ => log_entries(&instance, range, from, current, limit)?,
        };
        let mut lookup = Lookup::new(&instance);
        let mut changes: Vec<super::Change> = Vec::with_capacity(found.len());
        let mut bytes = 0;
        for (revision, tombstone, key) in found {
            let before = changes.last().map(|change| change.row.revision.main);
            if bytes > max_bytes && before.is_some_and(|before| before < revision.main) {
                upto = revision.main - 1;
                break;
            }
            let row = lookup.get(&key, revision.main, true)?;
            let compacted = instance.compact_revision();
            if from < compacted {
                return Err(ApplyError::Compacted.into());
            }
            let Some(row) = row.filter(|row| row.revision == revision && row.tombstone == tombstone) else {
                return Err(instance.damaged(rows::BadRow("a change names a version that is not there")).into());
            };
            // Before the compacted revision versions may be gone, and which ones is chance.
            let previous = match revision.main > compacted {
                true => lookup.get(&key, revision.main - 1, true)?.filter(|row| !row.tombstone),
                false => None,
            };
            bytes += key.len() + row.value.len() + previous.as_ref().map_or(0, |row| row.value.len());
            changes.push(super::Change { key, row, previous });
        }
        if from < instance.compact_revision() {
            return Err(ApplyError::Compacted.into());
        }
        Ok(History { changes, upto })
    }
}

impl auth::check::LeaseKeys for Engine {
    fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, EngineError> {
        Engine::lease_keys(self, lease)
    }
}

/// Changes of keys (where, whether a deletion, which key), and the revision up to which
/// they are all of them.
type Found = (Vec<(Revision, bool, Bytes)>, i64);

/// From the change log.
fn log_entries(
    instance: &Instance,
    range: KeyRange<'_>,
    from: i64,
    current: i64,
    limit: usize,
) -> Result<Found, EngineError> {
    let mut found = Vec::new();
    let (mut revisions, mut last_found, mut last, mut seen) = (0, 0, 0, 0);
    let start = rows::change_key(Revision { main: from, sub: 0 });
    let end = rows::change_key(Revision { main: current + 1, sub: 0 });
    let mut upto = current;
    instance.scan(&start, &end, |key, row| {
        let revision = rows::parse_change_key(key)?;
        if revision.main != last && (revisions == limit || seen >= MAX_CHANGES_PER_READ) {
            upto = last;
            return Ok(false);
        }
        last = revision.main;
        seen += 1;
        let (tombstone, key) = rows::parse_change(row)?;
        if range.contains(key) {
            revisions += usize::from(revision.main != last_found);
            last_found = revision.main;
            found.push((revision, tombstone, Bytes::copy_from_slice(key)));
        }
        Ok(true)
    })?;
    Ok((found, upto))
}

/// From the versions of the one key, without what happened to others.
fn versions(instance: &Instance, key: &Bytes, from: i64, current: i64, limit: usize) -> Result<Found, EngineError> {
    let mut found: Vec<(Revision, bool, Bytes)> = Vec::new();
    let (first, end) = KeyRange::One(key).row_bounds();
    let mut oldest = Vec::new();
    rows::put_key_prefix(&mut oldest, key);
    rows::put_version(&mut oldest, Revision { main: from, sub: 0 });
    let mut iterator = instance.range_iterator(&first, &end);
    // The newest stand first.
    iterator.seek_for_prev(&oldest);
    while let Some((row_key, row)) = iterator.item() {
        let (_, revision) = rows::split_version(row_key).map_err(|bad| instance.damaged(bad))?;
        if revision.main > current {
            break;
        }
        if found.len() == limit {
            return Ok((found, revision.main - 1));
        }
        if revision.main >= from {
            let version = rows::parse_row(row, revision, false).map_err(|bad| instance.damaged(bad))?;
            found.push((revision, version.tombstone, key.clone()));
        }
        iterator.prev();
    }
    iterator.status().map_err(instance.failed("be read"))?;
    Ok((found, current))
}

/// A piece of a range.
pub(crate) struct Page {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) more: bool,
    /// The revision it was read at.
    pub(crate) at: i64,
    /// The store's revision then.
    pub(crate) revision: i64,
}

/// A piece of the change log.
pub(crate) struct History {
    pub(crate) changes: Vec<super::Change>,
    /// There is no other change up to this revision.
    pub(crate) upto: i64,
}

fn read_txn(instance: &Instance, request: &TxnRequest, current: i64) -> Result<(TxnResponse, i64), ReadError> {
    let succeeded = txn::compares_hold(instance, &request.compare, current)?;
    let header = ResponseHeader { revision: current, ..Default::default() };
    let mut response = TxnResponse { header: Some(header), succeeded, responses: Vec::new() };
    let mut oldest = current;
    for operation in txn::branch(request, succeeded) {
        let Some(Request::RequestRange(request)) = &operation.request else { continue };
        range::check_in_txn(request, current, instance.compact_revision())?;
        let at = if request.revision > 0 { request.revision } else { current };
        oldest = oldest.min(at);
        let range = txn::read_range(instance, request, at, current)?;
        response.responses.push(ResponseOp { response: Some(Response::ResponseRange(range)) });
    }
    Ok((response, oldest))
}

impl txn::Source for Instance {
    fn keys(&self, range: KeyRange<'_>, at: i64, with_values: bool) -> Result<Keys<'_>, EngineError> {
        if let KeyRange::One(key) = range {
            let row = Lookup::new(self).get(key, at, with_values)?;
            return Ok(Keys::One(row.filter(|row| !row.tombstone).map(|row| (key.clone(), row))));
        }
        Ok(Keys::Many(Scan::new(self, None, range, at, with_values)?))
    }

    fn counts(&self) -> Option<&Counts> {
        Some(&self.counts)
    }
}

impl Instance {
    pub(super) fn lease(&self, id: i64) -> Option<LeaseRecord> {
        self.leases.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    pub(super) fn leases_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<i64, LeaseRecord>> {
        self.leases.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, EngineError> {
        let from = rows::attachment_key(id, &[]);
        let mut to = from.clone();
        // The next lease; of the last one, the next kind of rows.
        if let Some(position) = to.iter().rposition(|byte| *byte < u8::MAX) {
            to[position] += 1;
            to.truncate(position + 1);
        }
        let mut keys = Vec::new();
        self.scan(&from, &to, |key, _| {
            keys.push(Bytes::copy_from_slice(key.get(from.len()..).unwrap_or_default()));
            Ok(true)
        })?;
        Ok(keys)
    }

    /// The requests that took effect and are not forgotten, in the order of the log, each
    /// with the number of its row.
    pub(crate) fn requests(&self, mut visit: impl FnMut(u64, rows::Request<'_>)) -> Result<(), EngineError> {
        let forgotten = self.state().forgotten;
        let (from, to) = rows::request_bounds();
        self.scan(&from, &to, |key, mut row| {
            let number = rows::parse_number(key)?;
            while let Some(request) = rows::take_request(&mut row)? {
                // Some of a row may be forgotten while others are not.
                if request.index > forgotten {
                    visit(number, request);
                }
            }
            Ok(true)
        })
    }

    pub(crate) fn applied(&self) -> Option<crate::wal::EntryId> {
        self.state().applied
    }
}

/// Makes the directory of a state machine that does not exist, and an empty database in it.
pub(super) fn create(config: &Config) -> Result<Instance, EngineError> {
    let directory = &config.directory;
    std::fs::create_dir(directory).map_err(failed("create", directory))?;
    set_current(directory, FIRST)?;
    Instance::open(&directory.join(FIRST), config)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> EngineError + 'a {
    move |source| EngineError::File { action, path: path.to_owned(), source }
}

fn sync(path: &Path) -> Result<(), EngineError> {
    let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(failed("sync", path))
}

/// Makes the files of a flat directory, and their names, durable.
fn sync_files(directory: &Path) -> Result<(), EngineError> {
    for path in entries(directory)? {
        sync(&path)?;
    }
    sync(directory)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let read = std::fs::read_dir(directory).map_err(failed("list", directory))?;
    read.map(|entry| Ok(entry.map_err(failed("list", directory))?.path())).collect()
}

fn set_current(directory: &Path, name: &str) -> Result<(), EngineError> {
    let temporary = directory.join("CURRENT.new");
    std::fs::write(&temporary, name).map_err(failed("write", &temporary))?;
    sync(&temporary)?;
    let current = directory.join(CURRENT);
    std::fs::rename(&temporary, &current).map_err(failed("rename to", &current))?;
    sync(directory)
}

/// What an install that did not finish, or the database before it, left behind.
fn remove_others(directory: &Path, live: &str) -> Result<(), EngineError> {
    for path in entries(directory)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("db-") && name != live {
            std::fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}
