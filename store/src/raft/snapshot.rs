//! A snapshot: the files of a checkpoint, sent as one stream with a checksum
//! per file, and written beside the data until all of it has arrived.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorate_proto::raft as wire;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Bytes of one message of the stream.
const CHUNK_BYTES: usize = 256 << 10;

/// More files than any checkpoint has; a header that names more is refused.
const MAX_FILES: usize = 100_000;

/// Where what has arrived of a snapshot waits for the rest, also over a restart.
const INCOMING: &str = "incoming";

/// Directories of unfinished or sent snapshots.
pub(crate) struct Area {
    root: PathBuf,
    next: AtomicU64,
    /// One snapshot is received at a time.
    receiving: Arc<Mutex<()>>,
    /// Bytes on disk of the snapshot that is being received.
    received: Arc<AtomicU64>,
}

impl Area {
    /// Makes `root`, or empties it but for what has arrived of a snapshot.
    ///
    /// # Errors
    /// When the directory can be neither emptied nor made.
    pub(crate) fn open(root: PathBuf) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&root)?;
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_name() != INCOMING {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Arc::new(Self { root, next: AtomicU64::new(0), receiving: Arc::default(), received: Arc::default() }))
    }

    /// A path that does not exist yet, for one snapshot.
    pub(crate) fn reserve(&self) -> Directory {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Directory(Arc::new(Reserved(self.root.join(number.to_string()))))
    }

    /// Bytes on disk of a snapshot that has not arrived as a whole.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Taken by whoever receives a snapshot; none while somebody else does.
    pub(crate) fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.receiving).try_lock_owned().ok()
    }

    /// Which of `files` have not arrived yet. Whatever else is there goes; what seems to
    /// have arrived is read and checked.
    ///
    /// # Errors
    /// When a name is not plain, or the disk refuses.
    pub(crate) fn missing(&self, files: &[wire::SnapshotFile]) -> Result<Vec<u32>, ReceiveError> {
        check_names(files)?;
        let incoming = self.root.join(INCOMING);
        fs::create_dir_all(&incoming).map_err(|source| write_error(&incoming, source))?;
        let mut complete = HashSet::new();
        let mut bytes = 0;
        for entry in fs::read_dir(&incoming).map_err(|source| write_error(&incoming, source))? {
            let path = entry.map_err(|source| write_error(&incoming, source))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let wanted = files.iter().find(|file| file.name == name);
            let size = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
            let same = wanted.is_some_and(|file| {
                size == file.size_bytes && checksum(&path).is_ok_and(|found| found == (file.size_bytes, file.crc32c))
            });
            if same {
                complete.insert(name.to_owned());
                bytes += size;
            } else {
                fs::remove_file(&path).map_err(|source| write_error(&path, source))?;
            }
        }
        self.received.store(bytes, Ordering::Relaxed);
        let missing = files.iter().enumerate().filter(|(_, file)| !complete.contains(&file.name));
        Ok(missing.map(|(number, _)| u32::try_from(number).unwrap_or(u32::MAX)).collect())
    }
}

/// One snapshot on disk; its files go when the last clone goes.
#[derive(Clone, Debug)]
pub(crate) struct Directory(Arc<Reserved>);

#[derive(Debug)]
struct Reserved(PathBuf);

impl Drop for Reserved {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "left the files of a snapshot behind");
            }
            _ => {}
        }
    }
}

impl Directory {
    pub(crate) fn path(&self) -> &Path {
        &self.0.0
    }
}

/// Names, sizes and checksums of the files in `directory`. Reads all of them.
///
/// # Errors
/// When a file cannot be read, or its name is not UTF-8.
pub(crate) fn describe(directory: &Path) -> io::Result<Vec<wire::SnapshotFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| io::Error::new(io::ErrorKind::InvalidData, format!("the file name {name:?}")))?;
        let (size_bytes, crc32c) = checksum(&entry.path())?;
        files.push(wire::SnapshotFile { name, size_bytes, crc32c });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Size and checksum of a file.
fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut size_bytes, mut crc) = (0, 0);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((size_bytes, crc));
        }
        crc = crc32c::crc32c_append(crc, &buffer[..count]);
        size_bytes += count as u64;
    }
}

/// The files whose bytes follow a header, in their order.
///
/// # Errors
/// When the header names too many files, a file twice, or one it does not describe.
pub(crate) fn following(header: &wire::SnapshotHeader) -> Result<Vec<wire::SnapshotFile>, ReceiveError> {
    check_names(&header.files)?;
    let mut seen = HashSet::new();
    let mut files = Vec::with_capacity(header.following.len().min(MAX_FILES));
    for number in &header.following {
        let file = usize::try_from(*number).ok().and_then(|number| header.files.get(number));
        match file.filter(|_| seen.insert(*number)) {
            Some(file) => files.push(file.clone()),
            None => return Err(ReceiveError::Number(*number)),
        }
    }
    Ok(files)
}

fn check_names(files: &[wire::SnapshotFile]) -> Result<(), ReceiveError> {
    if files.len() > MAX_FILES {
        return Err(ReceiveError::TooManyFiles(files.len()));
    }
    match files.iter().find(|file| !is_plain(&file.name)) {
        Some(file) => Err(ReceiveError::Name(file.name.clone())),
        None => Ok(()),
    }
}

/// Calls `send` with the files' bytes, in the order of `files`, until it says no.
///
/// # Errors
/// When a file cannot be read, or is shorter than described.
pub(crate) fn read_files(
    directory: &Path,
    files: &[wire::SnapshotFile],
    mut send: impl FnMut(Bytes) -> bool,
) -> io::Result<()> {
    for description in files {
        let mut file = File::open(directory.join(&description.name))?;
        let mut left = description.size_bytes;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let mut buffer = vec![0; length];
            file.read_exact(&mut buffer)?;
            left -= length as u64;
            if !send(Bytes::from(buffer)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Why a received snapshot is refused. Display names the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("a snapshot names {0} files")]
    TooManyFiles(usize),
    #[error("a snapshot names the file {0:?}, which is no plain name")]
    Name(String),
    #[error("a snapshot announces the file number {0}, which it does not describe, or not once")]
    Number(u32),
    #[error("the file {0} of a snapshot is not here, and does not follow")]
    Lacking(String),
    #[error("a snapshot's file {name} has checksum {got:08x}, not {want:08x}: it was damaged on the way")]
    Checksum { name: String, got: u32, want: u32 },
    #[error("a snapshot has {0} bytes more than its files")]
    TooLong(usize),
    #[error("a snapshot ended in the middle of {0}")]
    TooShort(String),
    #[error("cannot write the received file {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes the stream of bytes into the files its header named.
pub(crate) struct Receiver {
    incoming: PathBuf,
    target: Directory,
    received: Arc<AtomicU64>,
    files: std::vec::IntoIter<wire::SnapshotFile>,
    current: Option<Current>,
}

struct Current {
    description: wire::SnapshotFile,
    path: PathBuf,
    file: File,
    left: u64,
    crc: u32,
}

impl Receiver {
    /// Begins with what [`Area::missing`] found to be there.
    pub(crate) fn new(area: &Area, header: &wire::SnapshotHeader) -> Result<Self, ReceiveError> {
        let files = following(header)?;
        let incoming = area.root.join(INCOMING);
        fs::create_dir_all(&incoming).map_err(|source| write_error(&incoming, source))?;
        remove_others(&incoming, &header.files)?;
        for file in header.files.iter().filter(|file| !files.iter().any(|follows| follows.name == file.name)) {
            let size = fs::metadata(incoming.join(&file.name)).map(|metadata| metadata.len()).ok();
            if size != Some(file.size_bytes) {
                return Err(ReceiveError::Lacking(file.name.clone()));
            }
        }
        let received = Arc::clone(&area.received);
        let mut receiver = Self { incoming, target: area.reserve(), received, files: files.into_iter(), current: None };
        receiver.advance()?;
        Ok(receiver)
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<(), ReceiveError> {
        while !data.is_empty() {
            let Some(current) = &mut self.current else { return Err(ReceiveError::TooLong(data.len())) };
            let length = usize::try_from(current.left).unwrap_or(usize::MAX).min(data.len());
            let (now, later) = data.split_at(length);
            current.file.write_all(now).map_err(|source| write_error(&current.path, source))?;
            current.crc = crc32c::crc32c_append(current.crc, now);
            current.left -= length as u64;
            self.received.fetch_add(length as u64, Ordering::Relaxed);
            data = later;
            self.advance()?;
        }
        Ok(())
    }

    /// The directory, once every file is complete and on disk.
    pub(crate) fn finish(self) -> Result<Directory, ReceiveError> {
        if let Some(current) = self.current {
            return Err(ReceiveError::TooShort(current.description.name));
        }
        let sync = |path: &Path| {
            let synced = File::open(path).and_then(|directory| directory.sync_all());
            synced.map_err(|source| write_error(path, source))
        };
        sync(&self.incoming)?;
        fs::rename(&self.incoming, self.target.path()).map_err(|source| write_error(&self.incoming, source))?;
        self.received.store(0, Ordering::Relaxed);
        Ok(self.target)
    }

    /// Closes files that are complete and opens the next one that is not.
    fn advance(&mut self) -> Result<(), ReceiveError> {
        loop {
            match self.current.take() {
                Some(current) if current.left > 0 => {
                    self.current = Some(current);
                    return Ok(());
                }
                Some(current) => current.close()?,
                None => {}
            }
            let Some(description) = self.files.next() else { return Ok(()) };
            let path = self.incoming.join(&description.name);
            let file = File::create(&path).map_err(|source| write_error(&path, source))?;
            self.current = Some(Current { left: description.size_bytes, crc: 0, description, path, file });
        }
    }
}

impl Current {
    fn close(self) -> Result<(), ReceiveError> {
        if self.crc != self.description.crc32c {
            let wire::SnapshotFile { name, crc32c, .. } = self.description;
            return Err(ReceiveError::Checksum { name, got: self.crc, want: crc32c });
        }
        self.file.sync_all().map_err(|source| write_error(&self.path, source))
    }
}

/// Removes what no file of a snapshot is called.
fn remove_others(incoming: &Path, files: &[wire::SnapshotFile]) -> Result<(), ReceiveError> {
    for entry in fs::read_dir(incoming).map_err(|source| write_error(incoming, source))? {
        let entry = entry.map_err(|source| write_error(incoming, source))?;
        if !files.iter().any(|file| entry.file_name() == file.name.as_str()) {
            fs::remove_file(entry.path()).map_err(|source| write_error(&entry.path(), source))?;
        }
    }
    Ok(())
}

fn write_error(path: &Path, source: io::Error) -> ReceiveError {
    ReceiveError::Write { path: path.to_owned(), source }
}

/// A peer must not reach outside the directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(root: &Path) -> (PathBuf, Vec<wire::SnapshotFile>, Vec<u8>) {
        let source = root.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("a"), vec![7; CHUNK_BYTES + 3]).unwrap();
        fs::write(source.join("b"), b"").unwrap();
        fs::write(source.join("c"), b"tail").unwrap();
        let files = describe(&source).unwrap();
        let mut bytes = Vec::new();
        read_files(&source, &files, |chunk| {
            bytes.extend_from_slice(&chunk);
            true
        })
        .unwrap();
        (source, files, bytes)
    }

    fn header(files: &[wire::SnapshotFile], following: Vec<u32>) -> wire::SnapshotHeader {
        wire::SnapshotHeader { files: files.to_vec(), following, ..Default::default() }
    }

    #[test]
    fn files_arrive_as_they_were_and_go_with_the_last_handle() {
        let root = tempfile::tempdir().unwrap();
        let (source, files, bytes) = sample(root.path());
        let area = Area::open(root.path().join("area")).unwrap();
        let missing = area.missing(&files).unwrap();
        assert_eq!(missing, [0, 1, 2]);
        let mut receiver = Receiver::new(&area, &header(&files, missing)).unwrap();
        for piece in bytes.chunks(1000) {
            receiver.write(piece).unwrap();
        }
        let directory = receiver.finish().unwrap();
        assert_eq!(describe(directory.path()).unwrap(), files);
        assert_eq!(fs::read(directory.path().join("c")).unwrap(), fs::read(source.join("c")).unwrap());
        let path = directory.path().to_owned();
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_has_arrived_is_not_sent_again() {
        let root = tempfile::tempdir().unwrap();
        let (source, files, bytes) = sample(root.path());
        let area = root.path().join("area");
        let first = Area::open(area.clone()).unwrap();
        let mut receiver = Receiver::new(&first, &header(&files, first.missing(&files).unwrap())).unwrap();
        // "a" and "b" as a whole, and the beginning of "c".
        receiver.write(&bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(first.received_bytes(), bytes.len() as u64 - 1);
        drop((receiver, first));

        let second = Area::open(area).unwrap();
        let missing = second.missing(&files).unwrap();
        assert_eq!(missing, [2], "after a restart, too");
        assert_eq!(second.received_bytes(), (CHUNK_BYTES + 3) as u64);
        let mut receiver = Receiver::new(&second, &header(&files, missing)).unwrap();
        receiver.write(b"tail").unwrap();
        let directory = receiver.finish().unwrap();
        assert_eq!(describe(directory.path()).unwrap(), describe(&source).unwrap());
    }

    #[test]
    fn what_has_arrived_of_another_snapshot_goes() {
        let root = tempfile::tempdir().unwrap();
        let (_, files, bytes) = sample(root.path());
        let area = Area::open(root.path().join("area")).unwrap();
        let mut receiver = Receiver::new(&area, &header(&files, area.missing(&files).unwrap())).unwrap();
        receiver.write(&bytes[..bytes.len() - 1]).unwrap();
        drop(receiver);
        let mut others = files[..2].to_vec();
        others[0].crc32c ^= 1;
        assert_eq!(area.missing(&others).unwrap(), [0], "the same name and size, other bytes");
        assert!(!area.root.join(INCOMING).join("c").exists());
        let lacking = Receiver::new(&area, &header(&others, vec![1]));
        assert!(matches!(lacking, Err(ReceiveError::Lacking(name)) if name == "a"));
    }

    #[test]
    fn damage_and_wrong_lengths_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let (_, files, bytes) = sample(root.path());
        let area = Area::open(root.path().join("area")).unwrap();
        let receive = |files: &[wire::SnapshotFile]| Receiver::new(&area, &header(files, vec![0, 1, 2]));

        let mut flipped = bytes.clone();
        flipped[5] ^= 1;
        let refused = receive(&files).unwrap().write(&flipped);
        assert!(matches!(refused, Err(ReceiveError::Checksum { name, .. }) if name == "a"));

        let mut short = receive(&files).unwrap();
        short.write(&bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(short.finish(), Err(ReceiveError::TooShort(name)) if name == "c"));

        let mut long = receive(&files).unwrap();
        long.write(&bytes).unwrap();
        assert!(matches!(long.write(b"x"), Err(ReceiveError::TooLong(1))));

        for name in ["../x", "", "..", "a/b"] {
            let file = wire::SnapshotFile { name: name.into(), size_bytes: 0, crc32c: 0 };
            let refused = Receiver::new(&area, &header(std::slice::from_ref(&file), vec![0]));
            assert!(matches!(refused, Err(ReceiveError::Name(_))), "{name:?}");
            assert!(matches!(area.missing(&[file]), Err(ReceiveError::Name(_))), "{name:?}");
        }
        for numbers in [vec![3], vec![0, 0]] {
            let refused = Receiver::new(&area, &header(&files, numbers));
            assert!(matches!(refused, Err(ReceiveError::Number(_))));
        }
    }
}
