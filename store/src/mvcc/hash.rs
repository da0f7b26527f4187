//! Sums that tell whether members hold the same.
//!
//! The hash of a set of rows is the sum of the hashes of its rows: independent of the
//! order, so it can be kept up to date row by row.

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
pub(super) fn hash_kv(instance: &Instance, revision: i64) -> Result<HashKv, ReadError> {
    let mut iterator = instance.range_iterator(&[KEYS], &[KEYS + 1]);
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
    }
    iterator.status().map_err(instance.failed("be read"))?;
    let hash = (sum ^ (sum >> 32)) as u32;
    Ok(HashKv { hash, revision, compact_revision: compacted })
}
