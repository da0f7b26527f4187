//! The disk as the log sees it: files written at offsets, made durable on request.
//!
//! Three of them: the real one, one in memory that loses what was not synced when
//! it crashes, and one that fails on purpose. What the log may assume is what all
//! three promise: nothing survives without `sync_data` (contents) and `sync_dir`
//! (names).

mod faulty;
mod memory;
mod real;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use faulty::{Fault, Faulty};
pub use memory::Memory;

/// A file open for reading and writing at offsets.
pub trait File: Send + Sync {
    /// Fills the start of `buffer` from `offset`; returns how many bytes there were.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, growing the file when needed.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes every byte written so far durable.
    fn sync_data(&self) -> io::Result<()>;
    /// The length in bytes.
    fn size(&self) -> io::Result<u64>;
}

/// A tree of files.
pub trait Disk: Send + Sync {
    /// The file names in `directory`, sorted.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Makes `directory` and its parents.
    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;
    /// A new, empty file; what stood there before is gone.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// As `create`, with so many bytes of zeros that are really there: writing over them does
    /// not change what the file system notes of the file. Not durable before `sync_data`.
    fn create_zeroed(&self, path: &Path, size: u64) -> io::Result<Arc<dyn File>> {
        let file = self.create(path)?;
        fill(&*file, 0, size)?;
        Ok(file)
    }
    /// An existing file.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Gives a file another name in the same directory, replacing what stood there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `directory` durable.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;
}

/// Zeros, so aligned that they can go to the disk directly.
#[repr(align(4096))]
struct Zeros([u8; 1 << 20]);

static ZEROS: Zeros = Zeros([0; 1 << 20]);

/// Writes zeros from `offset` up to `size`.
fn fill(file: &dyn File, mut offset: u64, size: u64) -> io::Result<()> {
    while offset < size {
        let count = (size - offset).min(ZEROS.0.len() as u64);
        file.write_all_at(&ZEROS.0[..count as usize], offset)?;
        offset += count;
    }
    Ok(())
}

/// The machine's own disk.
pub fn real() -> Arc<dyn Disk> {
    Arc::new(real::Real)
}
