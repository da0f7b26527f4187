//! From a snapshot to the data directory of a member of a new cluster.
//!
//! Every member of `initial_cluster` restores the same file with the same settings. They
//! then hold the same state at the same place of an empty log and know each other, and
//! nobody else: cluster and members have new ids, drawn from what was restored.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::etcd_log::Tail;
use super::schema::{self, AUTH, AUTH_ROLES, AUTH_USERS, KEY, LEASE, META, QUORATE};
use super::source::Source;
use super::{Progress, SnapshotError, file_error};
use crate::apply::{self, Entry, Payload};
use crate::config::Config;
use crate::mvcc::{self, AuthRow, Loaded, Loader};
use crate::node::identity;
use crate::wal::EntryId;
use crate::{fs as disk, raft, wal};

/// What a restore raises the revision by unless told otherwise: more than any cluster writes
/// between a snapshot and its loss, so that no client has seen a revision as high.
const DEFAULT_BUMP: u64 = 1_000_000_000;

/// So many of the commands in etcd's log become one write.
const COMMANDS_AT_ONCE: usize = 512;

/// What to make of a snapshot.
#[derive(Clone, Debug)]
pub struct Restore {
    /// A file that `snapshot save` of etcd or Quorate has written, or the data directory of
    /// an etcd that has stopped.
    pub source: PathBuf,
    /// Takes a file that has no checksum, and does not compare the one it has.
    pub skip_hash_check: bool,
    /// Raises the revision by so much. None is a billion, and 0 for a data directory, after
    /// which nothing was written.
    pub bump_revision: Option<u64>,
    /// Counts everything before the new revision as compacted, so that a watch that was at
    /// work learns that it missed something. None: when the revision is raised.
    pub mark_compacted: Option<bool>,
    /// Who the member is: its name, data directory, token and initial cluster.
    pub member: Config,
}

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// The last revision of the snapshot, or of the backend.
    pub saved_revision: i64,
    /// The revision the new cluster begins with.
    pub revision: i64,
    /// Earlier ones are compacted; -1 when none is.
    pub compact_revision: i64,
    /// The versions of keys.
    pub versions: u64,
    /// The leases.
    pub leases: u64,
    /// What was taken from etcd's log, because etcd was killed before it was in its backend.
    pub from_log: u64,
    /// The new cluster.
    pub cluster_id: u64,
    /// The new member.
    pub member_id: u64,
}

/// Makes the data directory that `restore.member` starts from. It appears whole or not at
/// all. Blocks.
///
/// # Errors
/// Names what is wrong with the snapshot, the settings or the directory; nothing is there then.
pub fn restore(restore: &Restore, progress: Progress<'_>) -> Result<Restored, SnapshotError> {
    let member = &restore.member;
    member.validate().map_err(|error| SnapshotError::Option(error.to_string()))?;
    if restore.bump_revision == Some(0) && restore.mark_compacted == Some(true) {
        let text = "--mark-compacted needs a revision that is raised: give --bump-revision as well";
        return Err(SnapshotError::Option(text.to_owned()));
    }
    let target = &member.data_dir;
    if fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(SnapshotError::NotEmpty { path: target.clone() });
    }
    let source = Source::open(&restore.source, restore.skip_hash_check, progress)?;

    let unfinished = Unfinished::create(target)?;
    let restored = fill(restore, &source, &unfinished.0, progress)?;
    if target.exists() {
        fs::remove_dir(target).map_err(file_error("replace", target))?;
    }
    fs::rename(&unfinished.0, target).map_err(file_error("rename to", target))?;
    sync(parent(target))?;
    Ok(restored)
}

/// The directory while it is not complete; removed with everything in it when that fails.
struct Unfinished(PathBuf);

impl Unfinished {
    fn create(target: &Path) -> Result<Unfinished, SnapshotError> {
        let mut name = target.file_name().unwrap_or(target.as_os_str()).to_owned();
        name.push(".restoring");
        let path = parent(target).join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(file_error("remove", &path))?;
        }
        fs::create_dir_all(&path).map_err(file_error("create", &path))?;
        Ok(Unfinished(path))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "an unfinished restore was left behind");
            }
            _ => {}
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync(path: &Path) -> Result<(), SnapshotError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(file_error("sync", path))
}

/// What the snapshot says of the whole.
#[derive(Default)]
struct Meta {
    /// 0 when nothing was compacted.
    compacted: i64,
    generation: u64,
}

fn read_meta(source: &Source) -> Result<Meta, SnapshotError> {
    let mut meta = Meta::default();
    source.walk_bucket(META, &mut |_, _| {}, |item| {
        // What is scheduled is no longer readable; etcd finishes it when it starts.
        if item.key == schema::FINISHED_COMPACTION || item.key == schema::SCHEDULED_COMPACTION {
            let parsed = schema::parse_revision_key(&item.value);
            let (revision, _) = parsed.map_err(|reason| source.content(META, reason))?;
            meta.compacted = meta.compacted.max(revision.main);
        }
        Ok(())
    })?;
    source.walk_bucket(QUORATE, &mut |_, _| {}, |item| {
        if item.key == schema::GENERATION {
            meta.generation = schema::parse_number(&item.value).map_err(|reason| source.content(QUORATE, reason))?;
        }
        Ok(())
    })?;
    Ok(meta)
}

fn fill(
    restore: &Restore,
    source: &Source,
    directory: &Path,
    progress: Progress<'_>,
) -> Result<Restored, SnapshotError> {
    let bump = restore.bump_revision.unwrap_or(if source.is_data_directory { 0 } else { DEFAULT_BUMP });
    let mark_compacted = restore.mark_compacted.unwrap_or(bump > 0);
    let meta = read_meta(source)?;

    let mut loader = Loader::new(&mvcc::Config::new(directory.join("db")))?;
    // etcd's: an empty store is at revision 1.
    let mut saved_revision = meta.compacted.max(1);
    let mut versions = 0;
    source.walk_bucket(KEY, progress, |item| {
        let bad = |reason: &str| source.content(KEY, reason);
        let (revision, tombstone) = schema::parse_revision_key(&item.key).map_err(bad)?;
        saved_revision = saved_revision.max(revision.main);
        if let Some((key, row)) = schema::parse_version(revision, tombstone, item.value).map_err(bad)? {
            versions += 1;
            loader.version(&key, &row, !mark_compacted && revision.main >= meta.compacted)?;
        }
        Ok(())
    })?;
    let mut leases = 0;
    source.walk_bucket(LEASE, progress, |item| {
        let lease = schema::parse_lease(&item.key, &item.value).map_err(|reason| source.content(LEASE, reason))?;
        leases += 1;
        Ok(loader.lease(lease)?)
    })?;

    load_auth(source, &mut loader)?;

    let bumped = i64::try_from(bump).ok().and_then(|bump| saved_revision.checked_add(bump));
    let Some(revision) = bumped.filter(|revision| *revision < i64::MAX / 2) else {
        return Err(SnapshotError::Option(format!("the revision {saved_revision} cannot be raised by {bump}")));
    };
    let compact_revision = match (mark_compacted, meta.compacted) {
        (true, _) => revision,
        (false, 0) => -1,
        (false, compacted) => compacted,
    };

    let tail = source.tail()?;
    let mut lineage = format!("{:016x}-{saved_revision:x}-{bump:x}", loader.hash());
    if !tail.commands.is_empty() {
        // One entry of one log: the same commands wherever it is read.
        lineage += &format!("-{:x}", tail.last);
    }
    let identity = identity::restored(&restore.member, lineage);
    let members = restore.member.founders(&own_address(&restore.member), &identity.lineage);
    let start = raft::founded(&members);
    let generation = meta.generation + 1;
    let membership: Bytes = start.membership;
    let member_ids = members.into_keys().collect();
    loader.finish(Loaded { revision, compact_revision, generation, applied: start.applied, membership, member_ids })?;
    let from_log = tail.commands.len() as u64;
    let after = apply_tail(&directory.join("db"), tail, start.applied)?;

    let log = directory.join("wal");
    let (wal, _) = wal::Wal::open(wal::Config::new(log), disk::real())?;
    futures::executor::block_on(wal.save_vote(start.vote.clone()))?;
    wal.purge(after.applied)?;
    // Returns once the mark of the purge is on disk too.
    futures::executor::block_on(wal.save_vote(start.vote))?;
    wal.close();
    sync(&directory.join("db"))?;
    identity::write_to(directory, &identity).map_err(file_error("write the identity in", directory))?;
    Ok(Restored {
        saved_revision,
        revision: after.revision,
        compact_revision: after.compact_revision,
        versions,
        leases,
        from_log,
        cluster_id: identity.cluster_id,
        member_id: identity.member_id,
    })
}

/// The state machine with everything in it.
struct After {
    applied: EntryId,
    revision: i64,
    compact_revision: i64,
}

/// Applies what came after the backend, as entries that follow `applied`.
fn apply_tail(database: &Path, tail: Tail, mut applied: EntryId) -> Result<After, SnapshotError> {
    let mut machine = apply::StateMachine::open(mvcc::Config::new(database.to_owned()))?;
    let mut commands = tail.commands.into_iter();
    loop {
        let batch = commands.by_ref().take(COMMANDS_AT_ONCE).map(|command| {
            applied.index += 1;
            Entry { id: applied, payload: Payload::Command(command) }
        });
        let batch: Vec<Entry> = batch.collect();
        if batch.is_empty() {
            break;
        }
        // What was refused here was refused there.
        machine.apply(batch)?;
    }
    let engine = machine.engine();
    engine.flush()?;
    Ok(After { applied, revision: engine.revision(), compact_revision: engine.compact_revision() })
}

fn load_auth(source: &Source, loader: &mut Loader) -> Result<(), SnapshotError> {
    let (mut enabled, mut revision) = (false, None);
    source.walk_bucket(AUTH, &mut |_, _| {}, |item| {
        if item.key == schema::AUTH_ENABLED {
            enabled = item.value[..] == [1];
        } else if item.key == schema::AUTH_REVISION {
            let parsed = schema::parse_number(&item.value).map_err(|reason| source.content(AUTH, reason))?;
            revision = Some(parsed);
        }
        Ok(())
    })?;
    if enabled || revision.is_some() {
        // etcd's first revision is 1.
        loader.auth(enabled, revision.unwrap_or(0).max(1))?;
    }
    for (bucket, kind) in [(AUTH_ROLES, AuthRow::Role), (AUTH_USERS, AuthRow::User)] {
        source.walk_bucket(bucket, &mut |_, _| {}, |item| {
            let parsed = schema::parse_auth_row(kind, &item.key, &item.value);
            let name = parsed.map_err(|reason| source.content(bucket, reason))?;
            Ok(loader.auth_row(kind, name, &item.value)?)
        })?;
    }
    Ok(())
}

/// Of a cluster of one that names no address; the member says where it is when it starts.
fn own_address(member: &Config) -> String {
    member.advertise_peer.clone().unwrap_or_else(|| member.listen_peer.to_string())
}
