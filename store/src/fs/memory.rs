//! A disk in memory that can lose power.
//!
//! Every file has the bytes that were synced and a list of writes that were not.
//! At a crash each 512-byte sector of an unsynced write survives or not, as the
//! random source says; so does each unsynced change of a name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, File};

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

#[derive(Default)]
struct Contents {
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Default)]
struct MemoryFile(Mutex<Contents>);

#[derive(Default)]
struct Names {
    current: BTreeMap<PathBuf, Arc<MemoryFile>>,
    durable: BTreeMap<PathBuf, Arc<MemoryFile>>,
}

/// A disk in memory; clones share it.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Names>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn overwrite(target: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

impl Memory {
    /// An empty disk.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// The disk as it is after a power loss now: a new one, the old one goes on unharmed.
    /// What survives of the unsynced writes is decided by `seed`; 0 means nothing does.
    pub fn crash(&self, seed: u64) -> Memory {
        let mut random = StdRng::seed_from_u64(seed);
        let mut keep = || seed != 0 && random.random_bool(0.5);
        let names = locked(&self.0);
        let mut survivors = names.durable.clone();
        if names.current.len() != names.durable.len() || keep() {
            for (path, file) in &names.current {
                if !survivors.contains_key(path) && keep() {
                    survivors.insert(path.clone(), file.clone());
                }
            }
        }
        let mut after = BTreeMap::new();
        for (path, file) in survivors {
            let contents = locked(&file.0);
            let mut bytes = contents.durable.clone();
            for (offset, write) in &contents.unsynced {
                for (number, sector) in write.chunks(SECTOR).enumerate() {
                    if keep() {
                        overwrite(&mut bytes, sector, *offset as usize + number * SECTOR);
                    }
                }
            }
            let survived = Contents { current: bytes.clone(), durable: bytes, unsynced: Vec::new() };
            after.insert(path, Arc::new(MemoryFile(Mutex::new(survived))));
        }
        Memory(Arc::new(Mutex::new(Names { current: after.clone(), durable: after })))
    }

    /// Flips one bit of a file, durably: what a decaying disk does.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let names = locked(&self.0);
        let file = names.current.get(path).ok_or_else(not_found)?;
        let mut contents = locked(&file.0);
        let offset = offset as usize;
        if offset >= contents.current.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        contents.current[offset] ^= 1 << (bit % 8);
        if let Some(byte) = contents.durable.get_mut(offset) {
            *byte ^= 1 << (bit % 8);
        }
        Ok(())
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Memory {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let names = locked(&self.0);
        let inside = names.current.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir_all(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = Arc::new(MemoryFile::default());
        locked(&self.0).current.insert(path.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let names = locked(&self.0);
        let file = names.current.get(path).ok_or_else(not_found)?;
        Ok(file.clone())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = locked(&self.0);
        let file = names.current.remove(from).ok_or_else(not_found)?;
        names.current.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        locked(&self.0).current.remove(path).map(|_| ()).ok_or_else(not_found)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        let mut names = locked(&self.0);
        let Names { current, durable } = &mut *names;
        durable.retain(|path, _| path.parent() != Some(directory));
        for (path, file) in current.iter().filter(|(path, _)| path.parent() == Some(directory)) {
            durable.insert(path.clone(), file.clone());
        }
        Ok(())
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let contents = locked(&self.0);
        let rest = contents.current.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut contents = locked(&self.0);
        overwrite(&mut contents.current, bytes, offset as usize);
        contents.unsynced.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut contents = locked(&self.0);
        let Contents { durable, unsynced, .. } = &mut *contents;
        for (offset, bytes) in unsynced.drain(..) {
            overwrite(durable, &bytes, offset as usize);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(locked(&self.0).current.len() as u64)
    }
}
