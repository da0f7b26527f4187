//! From the state machine to a file of etcd's backend.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::bolt::{BoltError, Writer};
use super::schema::{
    self, ALARM, AUTH, AUTH_ROLES, AUTH_USERS, CLUSTER, KEY, LEASE, MEMBERS, MEMBERS_REMOVED, META, QUORATE,
};
use super::sort::Sorter;
use super::{CHECKSUM_BYTES, Progress, SnapshotError, file_error, source};
use crate::mvcc::{AuthRow, Engine, Revision};
use crate::node::identity;
use crate::{apply, fs as disk, mvcc, raft, wal};

/// Progress is told once in so many versions.
const VERSIONS_PER_REPORT: u64 = 1 << 13;

/// A snapshot in a file without a name, which goes when this is dropped.
#[derive(Debug)]
pub struct Export {
    /// Its pages, without the checksum.
    pub file: File,
    /// The bytes of its pages.
    pub size_bytes: u64,
    /// What belongs behind them.
    pub checksum: [u8; CHECKSUM_BYTES],
    /// The revision it was made at.
    pub revision: i64,
}

/// Writes what `engine` holds now into a file in `directory`. Blocks; needs room there for
/// about twice the size of the state, and little memory.
pub(crate) fn export(engine: &Engine, directory: &Path) -> Result<Export, SnapshotError> {
    let output = unnamed(directory)?;
    let (mut file, size_bytes, revision) = write(engine, directory, output, &mut |_, _| {})?;
    let checksum = source::checksum(&mut file, size_bytes, &mut |_, _| {}).map_err(file_error("read", directory))?;
    Ok(Export { file, size_bytes, checksum, revision })
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// The last revision in it.
    pub revision: i64,
    /// The bytes of the file.
    pub size_bytes: u64,
}

/// Writes what the member of `data_dir`, which is not running, holds into the file `target`:
/// everything that it knows to be committed. The file appears whole or not at all.
///
/// # Errors
/// When the directory belongs to a running member or is damaged, or the disk refuses.
pub fn export_directory(data_dir: &Path, target: &Path, progress: Progress<'_>) -> Result<Exported, SnapshotError> {
    if !data_dir.join("member.json").is_file() {
        let text = format!("{} is no data directory of a member: it has no member.json", data_dir.display());
        return Err(SnapshotError::Option(text));
    }
    let _lock = identity::lock(data_dir).map_err(|error| SnapshotError::Option(error.to_string()))?;
    let engine = recover(data_dir)?;
    let beside = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let part = part_of(target);
    let output = File::options().read(true).write(true).create(true).truncate(true).open(&part);
    let output = output.map_err(file_error("create", &part))?;
    let (mut file, size_bytes, revision) = write(&engine, beside, output, progress)?;
    let checksum = source::checksum(&mut file, size_bytes, progress).map_err(file_error("read", &part))?;
    file.write_all(&checksum).and_then(|()| file.sync_all()).map_err(file_error("write", &part))?;
    fs::rename(&part, target).map_err(file_error("rename to", target))?;
    File::open(beside).and_then(|directory| directory.sync_all()).map_err(file_error("sync", beside))?;
    Ok(Exported { revision, size_bytes: size_bytes + CHECKSUM_BYTES as u64 })
}

/// Where a file is written before it gets its name.
pub(crate) fn part_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Opens a state machine and applies what the log has on top of it.
fn recover(data_dir: &Path) -> Result<std::sync::Arc<Engine>, SnapshotError> {
    let mut machine = apply::StateMachine::open(mvcc::Config::new(data_dir.join("db")))?;
    let (log, _) = wal::Wal::open(wal::Config::new(data_dir.join("wal")), disk::real())?;
    raft::replay(&log, &mut machine).map_err(file_error("replay", &data_dir.join("wal")))?;
    log.close();
    Ok(machine.engine())
}

/// A file that no crash leaves behind.
fn unnamed(directory: &Path) -> Result<File, SnapshotError> {
    let path = directory.join(format!("export-{:016x}", rand::random::<u64>()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(file_error("create", &path))?;
    fs::remove_file(&path).map_err(file_error("remove", &path))?;
    Ok(file)
}

/// What stops a walk through the state machine.
enum Stop {
    Engine(mvcc::EngineError),
    File(BoltError),
}

impl From<mvcc::EngineError> for Stop {
    fn from(error: mvcc::EngineError) -> Stop {
        Stop::Engine(error)
    }
}

impl From<BoltError> for Stop {
    fn from(error: BoltError) -> Stop {
        Stop::File(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::File(error.into())
    }
}

fn write(
    engine: &Engine,
    directory: &Path,
    output: File,
    progress: Progress<'_>,
) -> Result<(File, u64, i64), SnapshotError> {
    let sorter = Sorter::new(unnamed(directory)?);
    write_buckets(engine, sorter, output, progress).map_err(|stop| match stop {
        Stop::Engine(error) => error.into(),
        Stop::File(BoltError::Io(source)) => file_error("write a snapshot in", directory)(source),
        Stop::File(source) => SnapshotError::Format { path: directory.to_owned(), source },
    })
}

fn write_buckets(
    engine: &Engine,
    mut sorter: Sorter,
    output: File,
    progress: Progress<'_>,
) -> Result<(File, u64, i64), Stop> {
    let instance = engine.live();
    let mut picture = instance.picture()?;
    let (revision, compacted) = (picture.revision(), picture.compact_revision());
    let expected = engine.size_in_use_bytes();
    let (mut count, mut bytes) = (0u64, 0);
    let mut last = compacted.max(1);
    // The versions are by key here, and by revision there.
    picture.versions::<Stop>(|key, row| {
        let at = schema::revision_key(row.revision, row.tombstone);
        last = last.max(row.revision.main);
        bytes += (key.len() + row.value.len()) as u64;
        sorter.push(&at, &schema::version_value(key, &row))?;
        count += 1;
        if count.is_multiple_of(VERSIONS_PER_REPORT) {
            progress(bytes.min(expected), expected);
        }
        Ok(())
    })?;

    let mut writer = Writer::new(output)?;
    // Alarms are about members, who stay behind.
    writer.bucket(ALARM.as_bytes())?;
    writer.bucket(AUTH.as_bytes())?;
    if let Some((enabled, revision)) = picture.auth()? {
        writer.put(schema::AUTH_ENABLED, &[u8::from(enabled)])?;
        writer.put(schema::AUTH_REVISION, &schema::number(revision))?;
    }
    for (bucket, kind) in [(AUTH_ROLES, AuthRow::Role), (AUTH_USERS, AuthRow::User)] {
        writer.bucket(bucket.as_bytes())?;
        picture.auth_rows::<Stop>(kind, |name, row| Ok(writer.put(name.as_bytes(), row)?))?;
    }
    writer.bucket(CLUSTER.as_bytes())?;
    writer.bucket(KEY.as_bytes())?;
    sorter.finish::<Stop>(|key, value| Ok(writer.put(key, value)?))?;
    if last < revision {
        // etcd takes the last one it finds for the current revision. A deletion of no key
        // stands for one that has left nothing: etcd passes over it.
        let at = schema::revision_key(Revision { main: revision, sub: 0 }, true);
        writer.put(&at, &[])?;
    }
    writer.bucket(LEASE.as_bytes())?;
    picture.leases::<Stop>(|lease| Ok(writer.put(&schema::number(lease.id as u64), &schema::lease_value(&lease))?))?;
    // Whoever restores names the new members. (etcd 3.4 would also delete the user's keys
    // that are called like an old one.)
    writer.bucket(MEMBERS.as_bytes())?;
    writer.bucket(MEMBERS_REMOVED.as_bytes())?;

    let applied = picture.applied();
    writer.bucket(META.as_bytes())?;
    writer.put(schema::CONSISTENT_INDEX, &schema::number(applied.index))?;
    // Everything that was compacted is left out.
    let compaction = (compacted > 0).then(|| schema::revision_key(Revision { main: compacted, sub: 0 }, false));
    if let Some(compaction) = &compaction {
        writer.put(schema::FINISHED_COMPACTION, compaction)?;
        writer.put(schema::SCHEDULED_COMPACTION, compaction)?;
    }
    writer.put(schema::TERM, &schema::number(applied.term))?;
    writer.bucket(QUORATE.as_bytes())?;
    writer.put(schema::GENERATION, &schema::number(picture.generation()))?;
    let (file, size) = writer.finish()?;
    Ok((file, size, revision))
}
