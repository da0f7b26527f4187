//! How a member shares out the memory it may use.

/// What does not follow the limit: code and stacks, buffers of connections and compactions,
/// the places of the log's entries, free pages that allocators keep, and the numbers of
/// recent requests (which have to be the same on every member; their results are on disk).
/// As measured with ten million keys and a burst of writes.
const FIXED_BYTES: u64 = 144 << 20;

/// With less, blocks would be thrown out before they are used.
pub(crate) const MIN_LIMIT_BYTES: u64 = FIXED_BYTES + (32 << 20);

/// What memtables hold is applied again after a crash: two of this size in about half a
/// second, and larger ones do not make writes cheaper.
const MAX_MEMTABLE_BYTES: usize = 16 << 20;

/// Writes under way are no more than this with any limit: a hundred and seventy of the largest
/// requests keep every disk busy.
const MAX_PROPOSED_BYTES: usize = 256 << 20;

/// What each part may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Blocks, indexes, filters and memtables together.
    pub(crate) cache_bytes: usize,
    /// One memtable; there may be two, and the cache gives way to them.
    pub(crate) memtable_bytes: usize,
    /// Recent events, for watches.
    pub(crate) history_bytes: usize,
    /// Recent entries, for peers.
    pub(crate) log_bytes: usize,
    /// The newest versions of the keys written last.
    pub(crate) latest_bytes: usize,
    /// Writes under way, until the disk has them; recent entries are the same bytes.
    pub(crate) proposed_bytes: usize,
}

/// Half of what can be shared out is for the database, an eighth each for events and for
/// the newest versions, half of that for entries, which peers that lag read from the disk.
/// A quarter is for writes under way, a burst at a time: mostly it is free for compactions
/// and for what the allocator keeps.
pub(crate) fn budget(limit_bytes: u64) -> Budget {
    let shared = limit_bytes.saturating_sub(FIXED_BYTES);
    let part = |sixteenths: u64| usize::try_from(shared / 16 * sixteenths).unwrap_or(usize::MAX);
    let cache_bytes = part(8);
    Budget {
        cache_bytes,
        memtable_bytes: (cache_bytes / 4).min(MAX_MEMTABLE_BYTES),
        history_bytes: part(2),
        log_bytes: part(1),
        latest_bytes: part(2),
        proposed_bytes: part(4).min(MAX_PROPOSED_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stay_below_the_limit() {
        for limit in [0, 1, MIN_LIMIT_BYTES, 256 << 20, 64 << 30, u64::MAX] {
            let Budget { cache_bytes, memtable_bytes, history_bytes, log_bytes, latest_bytes, proposed_bytes } =
                budget(limit);
            let parts = [cache_bytes, history_bytes, log_bytes.max(proposed_bytes), latest_bytes];
            let all = parts.iter().map(|bytes| *bytes as u64).sum::<u64>();
            assert!(all <= limit.saturating_sub(FIXED_BYTES), "{limit}");
            assert!(proposed_bytes <= MAX_PROPOSED_BYTES, "{limit}");
            assert!(2 * memtable_bytes <= cache_bytes, "{limit}");
        }
        assert!(budget(MIN_LIMIT_BYTES).memtable_bytes >= 4 << 20);
    }
}
