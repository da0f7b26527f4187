//! A snapshot: the files of a checkpoint, sent as one stream with a checksum
//! per file, and written beside the data until all of it has arrived.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quorate_proto::raft as wire;

/// Bytes of one message of the stream.
const CHUNK_BYTES: usize = 256 << 10;

/// More files than any checkpoint has; a header that names more is refused.
const MAX_FILES: usize = 100_000;

/// Directories of unfinished or sent snapshots; emptied when the store starts.
pub(crate) struct Area {
    root: PathBuf,
    next: AtomicU64,
}

impl Area {
    /// Empties `root`, or makes it.
    ///
    /// # Errors
    /// When the directory can be neither emptied nor made.
    pub(crate) fn open(root: PathBuf) -> io::Result<Arc<Self>> {
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&root)?,
        }
        Ok(Arc::new(Self { root, next: AtomicU64::new(0) }))
    }

    /// A path that does not exist yet, for one snapshot.
    pub(crate) fn reserve(&self) -> Directory {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Directory(Arc::new(Reserved(self.root.join(number.to_string()))))
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
        let mut file = File::open(entry.path())?;
        let mut buffer = vec![0; CHUNK_BYTES];
        let (mut size_bytes, mut crc) = (0, 0);
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, &buffer[..count]);
            size_bytes += count as u64;
        }
        files.push(wire::SnapshotFile { name, size_bytes, crc32c: crc });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
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
    directory: Directory,
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
    pub(crate) fn new(directory: Directory, files: Vec<wire::SnapshotFile>) -> Result<Self, ReceiveError> {
        if files.len() > MAX_FILES {
            return Err(ReceiveError::TooManyFiles(files.len()));
        }
        if let Some(file) = files.iter().find(|file| !is_plain(&file.name)) {
            return Err(ReceiveError::Name(file.name.clone()));
        }
        let path = directory.path().to_owned();
        fs::create_dir(&path).map_err(|source| ReceiveError::Write { path, source })?;
        let mut receiver = Self { directory, files: files.into_iter(), current: None };
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
        let path = self.directory.path();
        File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| write_error(path, source))?;
        Ok(self.directory)
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
            let path = self.directory.path().join(&description.name);
            let file = File::create_new(&path).map_err(|source| write_error(&path, source))?;
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

    #[test]
    fn files_arrive_as_they_were_and_go_with_the_last_handle() {
        let root = tempfile::tempdir().unwrap();
        let (source, files, bytes) = sample(root.path());
        let area = Area::open(root.path().join("area")).unwrap();
        let mut receiver = Receiver::new(area.reserve(), files.clone()).unwrap();
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
    fn damage_and_wrong_lengths_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let (_, files, bytes) = sample(root.path());
        let area = Area::open(root.path().join("area")).unwrap();

        let mut flipped = bytes.clone();
        flipped[5] ^= 1;
        let refused = Receiver::new(area.reserve(), files.clone()).unwrap().write(&flipped);
        assert!(matches!(refused, Err(ReceiveError::Checksum { name, .. }) if name == "a"));

        let mut short = Receiver::new(area.reserve(), files.clone()).unwrap();
        short.write(&bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(short.finish(), Err(ReceiveError::TooShort(name)) if name == "c"));

        let mut long = Receiver::new(area.reserve(), files).unwrap();
        long.write(&bytes).unwrap();
        assert!(matches!(long.write(b"x"), Err(ReceiveError::TooLong(1))));

        for name in ["../x", "", "..", "a/b"] {
            let file = wire::SnapshotFile { name: name.into(), size_bytes: 0, crc32c: 0 };
            assert!(matches!(Receiver::new(area.reserve(), vec![file]), Err(ReceiveError::Name(_))), "{name:?}");
        }
    }
}
