//! A file that etcd, or `snapshot save`, has written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::bolt::{BoltError, Cursor, Item, Reader};
use super::etcd_log::{self, Tail};
use super::schema::{self, KEY, MEMBERS, META};
use super::{CHECKSUM_BYTES, Progress, SnapshotError, file_error};

/// Where etcd's backend lies in its data directory, or in a part of it.
const IN_DATA_DIRECTORY: [&str; 3] = ["member/snap/db", "snap/db", "db"];

const READ_BYTES: usize = 1 << 20;

/// Progress is told once in so many items.
const ITEMS_PER_REPORT: u64 = 1 << 14;

/// What a snapshot holds. Equal hashes mean equal contents; they are those of `etcdctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// CRC-32C over all buckets, keys and values.
    pub hash: u32,
    /// The last revision in it.
    pub revision: i64,
    /// The keys of all buckets: each revision of a key is one.
    pub total_key: u64,
    /// The bytes of its pages.
    pub total_size: u64,
}

/// Reads all of a snapshot: whatever is wrong with it is said.
///
/// # Errors
/// Names the file and what is wrong.
pub fn summarize(path: &Path, skip_hash_check: bool, progress: Progress<'_>) -> Result<Summary, SnapshotError> {
    let source = Source::open(path, skip_hash_check, progress)?;
    let (mut hash, mut revision, mut total_key) = (0, 0, 0);
    source.walk(progress, |bucket, item| {
        let Some(item) = item else {
            hash = crc32c::crc32c_append(hash, bucket);
            return Ok(());
        };
        hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &item.key), &item.value);
        total_key += 1;
        if bucket == KEY.as_bytes() {
            let (found, _) = schema::parse_revision_key(&item.key).map_err(|reason| source.content(KEY, reason))?;
            revision = found.main;
        }
        Ok(())
    })?;
    Ok(Summary { hash, revision, total_key, total_size: source.reader.size_bytes() })
}

/// An opened snapshot, its checksum compared if it has one.
pub(super) struct Source {
    path: PathBuf,
    reader: Reader,
    /// The directory of an etcd that has stopped: nothing came after it.
    pub(super) is_data_directory: bool,
}

/// Where etcd's log lies, seen from its backend.
const LOG_FROM_BACKEND: &str = "../wal";

impl Source {
    pub(super) fn open(path: &Path, skip_hash_check: bool, progress: Progress<'_>) -> Result<Source, SnapshotError> {
        let is_data_directory = path.is_dir();
        let path = match is_data_directory {
            true => IN_DATA_DIRECTORY.iter().map(|place| path.join(place)).find(|place| place.is_file()),
            false => Some(path.to_owned()),
        };
        let Some(path) = path else {
            return Err(SnapshotError::Option(
                "the directory holds no data of etcd: there is no member/snap/db".into(),
            ));
        };
        let mut file = File::open(&path).map_err(file_error("open", &path))?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(SnapshotError::InUse { path }),
            Err(std::fs::TryLockError::Error(source)) => return Err(file_error("lock", &path)(source)),
        }
        let mut length = file.metadata().map_err(file_error("read", &path))?.len();
        if length % 512 == CHECKSUM_BYTES as u64 {
            length -= CHECKSUM_BYTES as u64;
            if !skip_hash_check {
                compare_checksum(&path, &mut file, length, progress)?;
            }
        } else if !skip_hash_check && !is_data_directory {
            return Err(SnapshotError::NoChecksum { path });
        }
        let reader =
            Reader::new(file, length).map_err(|source| SnapshotError::Format { path: path.clone(), source })?;
        Ok(Source { path, reader, is_data_directory })
    }

    /// What an etcd that was killed had no time to write into its backend.
    pub(super) fn tail(&self) -> Result<Tail, SnapshotError> {
        let log = self.path.parent().map(|parent| parent.join(LOG_FROM_BACKEND));
        let Some(log) = log.filter(|log| self.is_data_directory && log.is_dir()) else {
            return Ok(Tail::default());
        };
        let (mut applied, mut members) = (0, 0);
        self.walk_bucket(META, &mut |_, _| {}, |item| {
            if item.key == schema::CONSISTENT_INDEX {
                applied = schema::parse_number(&item.value).map_err(|reason| self.content(META, reason))?;
            }
            Ok(())
        })?;
        self.walk_bucket(MEMBERS, &mut |_, _| {}, |_| {
            members += 1;
            Ok(())
        })?;
        etcd_log::read(&log, applied, members == 1)
    }

    pub(super) fn format(&self, source: BoltError) -> SnapshotError {
        SnapshotError::Format { path: self.path.clone(), source }
    }

    pub(super) fn content(&self, bucket: &'static str, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::Content { path: self.path.clone(), bucket, reason: reason.into() }
    }

    /// Calls `visit` with every bucket, and then with every key of it.
    fn walk(
        &self,
        progress: Progress<'_>,
        mut visit: impl FnMut(&Bytes, Option<&Item>) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut buckets = self.reader.buckets().map_err(|error| self.format(error))?;
        let mut done = 0;
        while let Some(bucket) = buckets.next().map_err(|error| self.format(error))? {
            visit(&bucket.key, None)?;
            let mut cursor = self.enter(&bucket)?;
            self.each(&mut cursor, &mut |pages| progress(done + pages, self.reader.pages()), |item| {
                visit(&bucket.key, Some(&item))
            })?;
            done += cursor.visited();
        }
        Ok(())
    }

    /// Calls `visit` with every key of one bucket; there may be no such bucket.
    pub(super) fn walk_bucket(
        &self,
        name: &str,
        progress: Progress<'_>,
        visit: impl FnMut(Item) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut buckets = self.reader.buckets().map_err(|error| self.format(error))?;
        while let Some(bucket) = buckets.next().map_err(|error| self.format(error))? {
            if bucket.key == name.as_bytes() {
                let mut cursor = self.enter(&bucket)?;
                return self.each(&mut cursor, &mut |pages| progress(pages, self.reader.pages()), visit);
            }
        }
        Ok(())
    }

    fn enter(&self, bucket: &Item) -> Result<Cursor<'_>, SnapshotError> {
        if !bucket.is_bucket {
            return Err(self.format(BoltError::Format("it has a key beside its buckets")));
        }
        self.reader.bucket(&bucket.value).map_err(|error| self.format(error))
    }

    fn each(
        &self,
        cursor: &mut Cursor<'_>,
        report: &mut dyn FnMut(u64),
        mut visit: impl FnMut(Item) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut count = 0u64;
        while let Some(item) = cursor.next().map_err(|error| self.format(error))? {
            if item.is_bucket {
                return Err(self.format(BoltError::Format("it has a bucket within a bucket")));
            }
            visit(item)?;
            count += 1;
            if count.is_multiple_of(ITEMS_PER_REPORT) {
                report(cursor.visited());
            }
        }
        Ok(())
    }
}

/// Compares the checksum behind the first `length` bytes with one of theirs.
fn compare_checksum(path: &Path, file: &mut File, length: u64, progress: Progress<'_>) -> Result<(), SnapshotError> {
    let found = checksum(file, length, progress).map_err(file_error("read", path))?;
    let mut expected = [0; CHECKSUM_BYTES];
    file.read_exact(&mut expected).map_err(file_error("read", path))?;
    if found != expected {
        let (expected, found) = (hex(&expected), hex(&found));
        return Err(SnapshotError::Checksum { path: path.to_owned(), expected, found });
    }
    Ok(())
}

/// The SHA-256 of the first `length` bytes; the file is left behind them.
pub(super) fn checksum(file: &mut File, length: u64, progress: Progress<'_>) -> std::io::Result<[u8; CHECKSUM_BYTES]> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    while done < length {
        let count = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..count])?;
        hash.update(&buffer[..count]);
        done += count as u64;
        progress(done, length);
    }
    Ok(hash.finalize().into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
