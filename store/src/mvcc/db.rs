//! One opened RocksDB and what is known of it without reading.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use quorate_proto::authpb::{Role, User};
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, Options, ReadOptions,
    ReadTier, SliceTransform, WriteBatch, WriteBufferManager, WriteOptions,
};

use super::alarms::Alarms;
use super::counts::Counts;
use super::rows::{self, BadRow, KEYS, State, VERSION_SUFFIX_LEN};
use super::{Config, EngineError, LeaseRecord};
use crate::auth;

/// One opened database. Readers hold it while a snapshot replaces it.
pub(crate) struct Instance {
    pub(super) db: DB,
    path: PathBuf,
    write_options: WriteOptions,
    /// Removes superseded versions up to this revision; never above what is flushed, or a
    /// crash could lose versions that the replayed log still needs.
    pub(super) floor: Arc<AtomicI64>,
    revision: AtomicI64,
    compact_revision: AtomicI64,
    state: Mutex<State>,
    pub(super) leases: RwLock<BTreeMap<i64, LeaseRecord>>,
    alarms: RwLock<Alarms>,
    downgrade: RwLock<Option<String>>,
    auth: ArcSwap<auth::State>,
    pub(super) counts: Counts,
}

/// Strips the version from the row key of a key's version, so that one Bloom filter
/// entry serves all versions of a key.
fn key_prefix(row_key: &[u8]) -> &[u8] {
    &row_key[..row_key.len().saturating_sub(VERSION_SUFFIX_LEN)]
}

fn has_key_prefix(row_key: &[u8]) -> bool {
    row_key.first() == Some(&KEYS) && row_key.len() > VERSION_SUFFIX_LEN + 2
}

/// Removes versions that a newer one hides from every revision that can still be read.
///
/// Only versions behind another in the same run: what hides them is then certainly there.
/// Tombstones stay, because older versions may lie in files outside the run, even at the
/// bottommost level (row keys of one key may straddle two files); `collect` removes a
/// tombstone together with everything it hides.
struct Superseded {
    floor: i64,
    prefix: Vec<u8>,
    hidden: bool,
}

impl CompactionFilter for Superseded {
    fn filter(&mut self, _level: u32, key: &[u8], _value: &[u8]) -> Decision {
        if !has_key_prefix(key) {
            return Decision::Keep;
        }
        let Ok((prefix, revision)) = rows::split_version(key) else { return Decision::Keep };
        if self.prefix != prefix {
            self.prefix.clear();
            self.prefix.extend_from_slice(prefix);
            self.hidden = false;
        }
        if revision.main > self.floor {
            return Decision::Keep;
        }
        if self.hidden {
            return Decision::Remove;
        }
        self.hidden = true;
        Decision::Keep
    }

    fn name(&self) -> &CStr {
        c"quorate.superseded"
    }
}

struct SupersededFactory(Arc<AtomicI64>);

impl CompactionFilterFactory for SupersededFactory {
    type Filter = Superseded;

    fn create(&mut self, _context: CompactionFilterContext) -> Superseded {
        Superseded { floor: self.0.load(Ordering::Acquire), prefix: Vec::new(), hidden: false }
    }

    fn name(&self) -> &CStr {
        c"quorate.superseded"
    }
}

/// Cold data is compacted, and so rid of hidden versions, at least this often.
const PERIODIC_COMPACTION_SECONDS: u64 = 24 * 60 * 60;

/// What a reader of everything reads at once.
const BULK_READAHEAD_BYTES: usize = 256 << 10;

/// What a compaction reads at once, of each of its files.
const COMPACTION_READAHEAD_BYTES: usize = 512 << 10;

/// The most that flushes and compactions write in a second. It tunes itself, down to a
/// twentieth while they keep up, so that they leave disk and processor to others.
const MAX_BACKGROUND_BYTES_PER_SECOND: i64 = 1 << 30;
/// It gives as much more or less as it is wrong, a twentieth after every hundred of these
/// periods: a second. With ten seconds, what was right in quiet times held writers up for
/// minutes, and stopped them in the end.
const RATE_PERIOD_MICROS: i64 = 10_000;
/// Of ten turns, one goes to compactions although flushes wait: RocksDB's own.
const RATE_FAIRNESS: i32 = 10;

fn options(config: &Config, floor: Arc<AtomicI64>) -> Options {
    let cache = Cache::new_lru_cache(config.block_cache_bytes);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_block_size(8 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Of indexes and filters only the parts in use are in memory.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4 << 10);
    table.set_bloom_filter(10.0, false);
    // Point reads look for a key whose newest version is not known: by prefix.
    table.set_whole_key_filtering(false);
    table.set_format_version(5);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_prefix_extractor(SliceTransform::create("quorate.key", key_prefix, Some(has_key_prefix)));
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_compaction_filter_factory(SupersededFactory(floor));
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(config.write_buffer_bytes);
    options.set_max_write_buffer_number(2);
    // Charged to the cache: one cap for both.
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        2 * config.write_buffer_bytes,
        false,
        cache,
    ));
    // One flush and one compaction: the machine has work of its own.
    options.set_max_background_jobs(2);
    options.set_auto_tuned_ratelimiter(MAX_BACKGROUND_BYTES_PER_SECOND, RATE_PERIOD_MICROS, RATE_FAIRNESS);
    options.set_compaction_readahead_size(COMPACTION_READAHEAD_BYTES);
    options.set_max_open_files(512);
    options.set_bytes_per_sync(1 << 20);
    options.set_periodic_compaction_seconds(PERIODIC_COMPACTION_SECONDS);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_avoid_unnecessary_blocking_io(true);
    options
}

impl Instance {
    /// Opens the database at `path`, or makes an empty one.
    pub(super) fn open(path: &Path, config: &Config) -> Result<Instance, EngineError> {
        let floor = Arc::new(AtomicI64::new(-1));
        let db = DB::open(&options(config, floor.clone()), path).map_err(|source| EngineError::Database {
            action: "be opened",
            path: path.to_owned(),
            source,
        })?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        let mut instance = Instance {
            db,
            path: path.to_owned(),
            write_options,
            floor,
            revision: AtomicI64::new(0),
            compact_revision: AtomicI64::new(0),
            state: Mutex::new(State::EMPTY),
            leases: RwLock::default(),
            alarms: RwLock::default(),
            downgrade: RwLock::default(),
            auth: ArcSwap::default(),
            counts: Counts::default(),
        };
        let state = match instance.get(rows::STATE)? {
            Some(row) => State::decode(&row).map_err(|bad| instance.damaged(bad))?,
            None => State::EMPTY,
        };
        // Everything in a database just opened is flushed.
        instance.floor.store(state.compact_revision, Ordering::Release);
        instance.publish(state);
        instance.counts = Counts::new(state.revision);
        instance.leases = RwLock::new(instance.read_leases()?);
        instance.alarms = RwLock::new(instance.read_alarms()?);
        let downgrade = instance.get(rows::DOWNGRADE)?.map(|row| String::from_utf8_lossy(&row).into_owned());
        instance.downgrade = RwLock::new(downgrade);
        instance.auth = ArcSwap::from_pointee(instance.read_auth()?);
        Ok(instance)
    }

    fn read_auth(&self) -> Result<auth::State, EngineError> {
        let mut whole = None;
        let (mut users, mut roles) = (Vec::new(), Vec::new());
        let (from, to) = rows::auth_bounds();
        self.scan(&from, &to, |key, row| {
            let (kind, name) = rows::parse_auth_key(key)?;
            match kind {
                rows::AUTH_WHOLE => whole = Some(rows::parse_auth_whole(row)?),
                rows::AUTH_USER => users.push((name, User::decode(row).map_err(|_| BadRow("a user is not one"))?)),
                rows::AUTH_ROLE => roles.push((name, Role::decode(row).map_err(|_| BadRow("a role is not one"))?)),
                _ => return Err(BadRow("a row of users and roles is of an unknown kind")),
            }
            Ok(true)
        })?;
        Ok(match whole {
            Some(whole) => auth::State::from_rows(whole, users, roles),
            None => auth::State::default(),
        })
    }

    /// Users and roles, as applied.
    pub(crate) fn auth(&self) -> Arc<auth::State> {
        self.auth.load_full()
    }

    pub(super) fn publish_auth(&self, auth: Arc<auth::State>) {
        self.auth.store(auth);
    }

    fn read_leases(&self) -> Result<BTreeMap<i64, LeaseRecord>, EngineError> {
        let mut leases = BTreeMap::new();
        let (from, to) = rows::lease_bounds();
        self.scan(&from, &to, |key, row| {
            let id = rows::parse_number(key)? as i64;
            let (ttl, remaining) = rows::parse_lease_row(row)?;
            leases.insert(id, LeaseRecord { id, ttl, remaining });
            Ok(true)
        })?;
        Ok(leases)
    }

    fn read_alarms(&self) -> Result<Alarms, EngineError> {
        let mut alarms = Alarms::default();
        let (from, to) = rows::alarm_bounds();
        self.scan(&from, &to, |key, row| {
            let (member, alarm) = rows::parse_alarm_key(key)?;
            alarms.insert(member, alarm, row == [1]);
            Ok(true)
        })?;
        Ok(alarms)
    }

    pub(crate) fn alarms(&self) -> RwLockReadGuard<'_, Alarms> {
        self.alarms.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alarms_mut(&self) -> RwLockWriteGuard<'_, Alarms> {
        self.alarms.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn downgrade(&self) -> Option<String> {
        self.downgrade.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_downgrade(&self, target: Option<String>) {
        *self.downgrade.write().unwrap_or_else(PoisonError::into_inner) = target;
    }

    pub(super) fn failed(&self, action: &'static str) -> impl Fn(rocksdb::Error) -> EngineError + '_ {
        move |source| EngineError::Database { action, path: self.path.clone(), source }
    }

    pub(super) fn damaged(&self, bad: BadRow) -> EngineError {
        EngineError::Damaged { path: self.path.clone(), reason: bad.0 }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let row = self.db.get_pinned(key).map_err(self.failed("be read"))?;
        Ok(row.map(|row| Bytes::copy_from_slice(&row)))
    }

    /// An iterator that looks for the versions of one key at a time; may be sought again.
    /// It sees the database as it is now.
    pub(super) fn key_iterator(&self) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_prefix_same_as_start(true);
        self.db.raw_iterator_opt(options)
    }

    /// An iterator over the rows from `from` up to `to`, as they are now.
    pub(super) fn range_iterator(&self, from: &[u8], to: &[u8]) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        self.db.raw_iterator_opt(options)
    }

    /// As `range_iterator`, for reading very much once: it does not push out what others
    /// need again.
    pub(super) fn bulk_iterator(&self, from: &[u8], to: &[u8]) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(false);
        options.set_readahead_size(BULK_READAHEAD_BYTES);
        self.db.raw_iterator_opt(options)
    }

    /// About how many bytes of files the rows from `from` up to `to` take.
    pub(super) fn file_bytes(&self, from: &[u8], to: &[u8]) -> u64 {
        if from >= to {
            return 0;
        }
        self.db.get_approximate_sizes(&[rocksdb::Range::new(from, to)]).first().copied().unwrap_or(0)
    }

    /// Calls `visit` for each row from `from` up to `to` until it returns false.
    pub(super) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, BadRow>,
    ) -> Result<(), EngineError> {
        let mut iterator = self.range_iterator(from, to);
        iterator.seek(from);
        while let Some((key, row)) = iterator.item() {
            if !visit(key, row).map_err(|bad| self.damaged(bad))? {
                break;
            }
            iterator.next();
        }
        iterator.status().map_err(self.failed("be read"))
    }

    /// Writes a batch; it is durable once flushed.
    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let writing = Instant::now();
        self.db.write_opt(batch, &self.write_options).map_err(self.failed("be written"))?;
        metrics::histogram!("etcd_disk_backend_commit_duration_seconds").record(writing.elapsed().as_secs_f64());
        Ok(())
    }

    /// Lets readers see `state`, whose rows have been written.
    pub(super) fn publish(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.compact_revision.store(state.compact_revision, Ordering::Release);
        self.revision.store(state.revision, Ordering::Release);
    }

    pub(super) fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(crate) fn compact_revision(&self) -> i64 {
        self.compact_revision.load(Ordering::Acquire)
    }

    /// The state that a restart now would find.
    pub(super) fn flushed_state(&self) -> Result<State, EngineError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let row = self.db.get_opt(rows::STATE, &options).map_err(self.failed("be read"))?;
        match row {
            Some(row) => State::decode(&row).map_err(|bad| self.damaged(bad)),
            None => Ok(State::EMPTY),
        }
    }

    pub(super) fn flush(&self) -> Result<(), EngineError> {
        self.db.flush().map_err(self.failed("be flushed"))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.property(c"rocksdb.live-sst-files-size") + self.property(c"rocksdb.cur-size-all-mem-tables")
    }

    pub(super) fn property(&self, name: &CStr) -> u64 {
        self.db.property_int_value(name).ok().flatten().unwrap_or(0)
    }
}
