//! A disk that fails on purpose, at one chosen operation.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Disk, File};

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails, later ones work.
    Error(io::ErrorKind),
    /// Half of a write arrives, then it fails. Other operations fail whole.
    ShortWrite,
    /// The process is dead from here on: this and every later operation fails.
    Stop,
}

struct Plan {
    fault: Fault,
    at: u64,
    operations: AtomicU64,
}

impl Plan {
    /// Counts one changing operation and says what is wrong with it.
    fn next(&self) -> Option<Fault> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::Stop => (number >= self.at).then_some(Fault::Stop),
            fault => (number == self.at).then_some(fault),
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.next() {
            None => Ok(()),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::ShortWrite) => Err(io::ErrorKind::WriteZero.into()),
            Some(Fault::Stop) => Err(io::Error::other("the process is dead")),
        }
    }
}

/// A disk in front of `inner` that fails at its operation number `at` (from 0);
/// only operations that change something are counted.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Disk>,
    plan: Arc<Plan>,
}

impl Faulty {
    /// Fails once, at operation `at`.
    pub fn new(inner: Arc<dyn Disk>, at: u64, fault: Fault) -> Faulty {
        Faulty { inner, plan: Arc::new(Plan { fault, at, operations: AtomicU64::new(0) }) }
    }

    /// How many operations there have been.
    pub fn operations(&self) -> u64 {
        self.plan.operations.load(Ordering::SeqCst)
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    plan: Arc<Plan>,
}

impl Disk for Faulty {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.plan.check()?;
        self.inner.create_dir_all(directory)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.plan.check()?;
        Ok(Arc::new(FaultyFile { inner: self.inner.create(path)?, plan: self.plan.clone() }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FaultyFile { inner: self.inner.open(path)?, plan: self.plan.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.check()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.plan.check()?;
        self.inner.remove(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        self.plan.check()?;
        self.inner.sync_dir(directory)
    }
}

impl File for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.plan.next() {
            None => self.inner.write_all_at(bytes, offset),
            Some(Fault::ShortWrite) => {
                self.inner.write_all_at(&bytes[..bytes.len() / 2], offset)?;
                Err(io::ErrorKind::WriteZero.into())
            }
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Stop) => Err(io::Error::other("the process is dead")),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.plan.check()?;
        self.inner.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
}
