//! Sorts more pairs than fit in memory: runs on disk, then one merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Pairs are sorted in memory in pieces of this size; a smaller set needs no disk.
const MEMORY_BYTES: usize = 32 << 20;
/// All runs together are read through this much.
const MERGE_BYTES: usize = 16 << 20;
/// But each through at least this much.
const MIN_RUN_BUFFER_BYTES: usize = 8 << 10;

/// The lengths of key and value before a pair.
const LENGTHS_BYTES: usize = 8;

/// Takes pairs in any order; no key may come twice.
pub(super) struct Sorter {
    file: BufWriter<File>,
    written: u64,
    runs: Vec<Range<u64>>,
    memory: Memory,
    limit_bytes: usize,
}

/// Pairs in one piece, and where each begins.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    pairs: Vec<u32>,
}

impl Memory {
    fn pair(&self, at: u32) -> (&[u8], &[u8]) {
        let rest = &self.bytes[at as usize..];
        let (key, value) = (length(rest), length(&rest[4..]));
        let rest = &rest[LENGTHS_BYTES..];
        (&rest[..key], &rest[key..key + value])
    }

    fn sort(&mut self) {
        let mut pairs = std::mem::take(&mut self.pairs);
        pairs.sort_unstable_by(|a, b| self.pair(*a).0.cmp(self.pair(*b).0));
        self.pairs = pairs;
    }
}

/// Of bytes that were written here.
fn length(bytes: &[u8]) -> usize {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
}

impl Sorter {
    /// `file` is empty and for the sorter alone.
    pub(super) fn new(file: File) -> Sorter {
        Self::with_limit(file, MEMORY_BYTES)
    }

    fn with_limit(file: File, limit_bytes: usize) -> Sorter {
        let file = BufWriter::with_capacity(1 << 20, file);
        Sorter { file, written: 0, runs: Vec::new(), memory: Memory::default(), limit_bytes }
    }

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let lengths = [u32::try_from(key.len()), u32::try_from(value.len())];
        let [Ok(key_length), Ok(value_length)] = lengths else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pair is too large to be sorted"));
        };
        let size = LENGTHS_BYTES + key.len() + value.len();
        if !self.memory.pairs.is_empty() && self.memory.bytes.len() + size > self.limit_bytes {
            self.spill()?;
        }
        self.memory.pairs.push(self.memory.bytes.len() as u32);
        self.memory.bytes.extend_from_slice(&key_length.to_le_bytes());
        self.memory.bytes.extend_from_slice(&value_length.to_le_bytes());
        self.memory.bytes.extend_from_slice(key);
        self.memory.bytes.extend_from_slice(value);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        self.memory.sort();
        let start = self.written;
        for at in &self.memory.pairs {
            let (key, value) = self.memory.pair(*at);
            let size = LENGTHS_BYTES + key.len() + value.len();
            self.file.write_all(&self.memory.bytes[*at as usize..][..size])?;
            self.written += size as u64;
        }
        self.runs.push(start..self.written);
        self.memory.bytes.clear();
        self.memory.pairs.clear();
        Ok(())
    }

    /// Hands out the pairs in the order of their keys, until `visit` refuses one.
    pub(super) fn finish<E: From<io::Error>>(
        mut self,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.runs.is_empty() {
            self.memory.sort();
            for at in &self.memory.pairs {
                let (key, value) = self.memory.pair(*at);
                visit(key, value)?;
            }
            return Ok(());
        }
        self.spill()?;
        self.memory = Memory::default();
        let file = Arc::new(self.file.into_inner().map_err(io::IntoInnerError::into_error)?);
        let buffer_bytes = (MERGE_BYTES / self.runs.len()).max(MIN_RUN_BUFFER_BYTES);
        let mut runs: Vec<Run> =
            self.runs.into_iter().map(|range| Run::new(Arc::clone(&file), range, buffer_bytes)).collect();
        let mut heads = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            if let Some(pair) = run.next()? {
                heads.push(Reverse((pair, number)));
            }
        }
        while let Some(Reverse(((key, value), number))) = heads.pop() {
            visit(&key, &value)?;
            if let Some(pair) = runs[number].next()? {
                heads.push(Reverse((pair, number)));
            }
        }
        Ok(())
    }
}

/// A sorted piece of the file.
struct Run {
    file: Arc<File>,
    rest: Range<u64>,
    buffer: Vec<u8>,
    at: usize,
    buffer_bytes: usize,
}

impl Run {
    fn new(file: Arc<File>, rest: Range<u64>, buffer_bytes: usize) -> Run {
        Run { file, rest, buffer: Vec::new(), at: 0, buffer_bytes }
    }

    fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        if !self.fill(LENGTHS_BYTES)? {
            return Ok(None);
        }
        let (key, value) = (length(&self.buffer[self.at..]), length(&self.buffer[self.at + 4..]));
        let size = LENGTHS_BYTES + key + value;
        if !self.fill(size)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let pair = &self.buffer[self.at + LENGTHS_BYTES..self.at + size];
        let pair = (pair[..key].to_vec(), pair[key..].to_vec());
        self.at += size;
        Ok(Some(pair))
    }

    /// Has `count` bytes ready, if the run has as many.
    fn fill(&mut self, count: usize) -> io::Result<bool> {
        let ready = self.buffer.len() - self.at;
        if ready >= count {
            return Ok(true);
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        let left = usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX);
        let more = (count - ready).max(self.buffer_bytes).min(left);
        self.buffer.resize(ready + more, 0);
        self.file.read_exact_at(&mut self.buffer[ready..], self.rest.start)?;
        self.rest.start += more as u64;
        Ok(self.buffer.len() >= count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn pairs_come_out_in_order() {
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut expected = std::collections::BTreeMap::new();
            for _ in 0..random.random_range(0..2000) {
                let largest = if random.random_bool(0.5) { 10 } else { 20_000 };
                let value = vec![7; random.random_range(0..largest)];
                expected.insert(random.random::<u64>().to_be_bytes().to_vec(), value);
            }
            let limit = [1, 100, 50_000, 100_000_000][random.random_range(0..4)];
            let mut sorter = Sorter::with_limit(tempfile::tempfile().unwrap(), limit);
            let mut shuffled: Vec<_> = expected.iter().collect();
            shuffled.sort_by_key(|(key, _)| crc32c::crc32c(key));
            for (key, value) in shuffled {
                sorter.push(key, value).unwrap();
            }
            let mut found = Vec::new();
            let done: io::Result<()> = sorter.finish(|key, value| {
                found.push((key.to_vec(), value.to_vec()));
                Ok(())
            });
            done.unwrap();
            assert!(found == expected.into_iter().collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
