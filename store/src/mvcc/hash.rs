//! Sums that tell whether members hold the same.
//!
//! The hash of a set of rows is the sum of the hashes of its rows: independent of the
//! order, so it can be kept up to date row by row.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ReadError;
use super::db::Instance;
use super::rows::{self, KEYS};
use crate::command::ApplyError;

/// The hash of what can be read at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// Equal on members that hold the same.
    pub hash: u32,
    /// At which revision.
    pub revision: i64,
    /// What was compacted then; hashes compare only when it is equal.
    pub compact_revision: i64,
}

/// After how many entries a member forgets what it held: more than a member lags that is
/// compared at all.
const TRAIL_ENTRIES: usize = 32 * 1024;

/// The hashes after each of the entries applied last, so that members are compared at an
/// entry that all of them have applied.
#[derive(Debug, Default)]
pub(crate) struct Trail(Mutex<VecDeque<(u64, u64)>>);

impl Trail {
    /// Begins anew: the state was opened or replaced.
    pub(super) fn restart(&self, index: u64, hash: u64) {
        let mut trail = self.lock();
        trail.clear();
        trail.push_back((index, hash));
    }

    /// Goes on, with indexes that grow.
    pub(crate) fn extend(&self, hashes: impl IntoIterator<Item = (u64, u64)>) {
        let mut trail = self.lock();
        trail.extend(hashes);
        let excess = trail.len().saturating_sub(TRAIL_ENTRIES);
        trail.drain(..excess);
    }

    pub(super) fn at(&self, index: u64) -> Option<u64> {
        let trail = self.lock();
        let position = trail.partition_point(|(known, _)| *known < index);
        trail.get(position).filter(|(known, _)| *known == index).map(|(_, hash)| *hash)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn row_hash(row_key: &[u8], row: &[u8]) -> u64 {
    let key = u64::from(crc32c::crc32c(row_key));
    let both = u64::from(crc32c::crc32c_append(key as u32, row));
    // The finisher of splitmix64: a checksum is linear, sums of it must not cancel.
    let mut mixed = (key << 32 | both).wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Sums the rows that a reader at a revision between the compacted one and `revision`
/// could see: whether hidden versions are still there or already removed does not count.
/// `rest` is called often, to make way for others.
pub(super) fn hash_kv(instance: &Instance, revision: i64, mut rest: impl FnMut()) -> Result<HashKv, ReadError> {
    let mut iterator = instance.bulk_iterator(&[KEYS], &[KEYS + 1]);
    iterator.seek([KEYS]);
    // Read after the iterator was made: what it sees was collected by this or less.
    let (current, compacted) = (instance.revision(), instance.compact_revision());
    let revision = if revision <= 0 { current } else { revision };
    if revision > current {
        return Err(ApplyError::FutureRevision.into());
    }
    if revision < compacted {
        return Err(ApplyError::Compacted.into());
    }
    let mut sum = 0u64;
    let mut prefix = Vec::new();
    let mut hidden = false;
    while let Some((row_key, row)) = iterator.item() {
        let (key, at) = rows::split_version(row_key).map_err(|bad| instance.damaged(bad))?;
        if prefix != key {
            prefix.clear();
            prefix.extend_from_slice(key);
            hidden = false;
        }
        if at.main <= revision && !hidden {
            let version = rows::parse_row(row, at, false).map_err(|bad| instance.damaged(bad))?;
            hidden = at.main <= compacted;
            if !(hidden && version.tombstone) {
                sum = sum.wrapping_add(row_hash(row_key, row));
            }
        }
        iterator.next();
        rest();
    }
    iterator.status().map_err(instance.failed("be read"))?;
    let hash = (sum ^ (sum >> 32)) as u32;
    Ok(HashKv { hash, revision, compact_revision: compacted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trail_knows_the_last_entries() {
        let trail = Trail::default();
        assert_eq!(trail.at(0), None);
        trail.restart(7, 70);
        trail.extend([(8, 80), (10, 100)]);
        let check = |index, expected| assert_eq!(trail.at(index), expected, "{index}");
        check(6, None);
        check(7, Some(70));
        check(8, Some(80));
        check(9, None);
        check(10, Some(100));
        check(11, None);
        let last = 10 + TRAIL_ENTRIES as u64;
        trail.extend((11..=last).map(|index| (index, index)));
        check(10, None);
        check(11, Some(11));
        check(last, Some(last));
        trail.restart(3, 30);
        check(last, None);
        check(3, Some(30));
    }
}
