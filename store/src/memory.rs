//! How a member shares out the memory it may use.

/// What does not follow the limit: code and stacks, the newest versions of keys written
/// last and the table of requests (which has to be the same on every member), buffers of
/// connections.
const FIXED_BYTES: u64 = 80 << 20;

/// With less, blocks would be thrown out before they are used.
pub(crate) const MIN_LIMIT_BYTES: u64 = FIXED_BYTES + (32 << 20);

/// A larger memtable makes flushes rare and long without making writes cheaper.
const MAX_MEMTABLE_BYTES: usize = 64 << 20;

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
}

/// Half of what can be shared out is for the database, an eighth each for events and
/// entries; a quarter stays free for compactions and for what the allocator keeps.
pub(crate) fn budget(limit_bytes: u64) -> Budget {
    let shared = limit_bytes.saturating_sub(FIXED_BYTES);
    let part = |eighths: u64| usize::try_from(shared / 8 * eighths).unwrap_or(usize::MAX);
    let cache_bytes = part(4);
    Budget {
        cache_bytes,
        memtable_bytes: (cache_bytes / 4).min(MAX_MEMTABLE_BYTES),
        history_bytes: part(1),
        log_bytes: part(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stay_below_the_limit() {
        for limit in [0, 1, MIN_LIMIT_BYTES, 256 << 20, 64 << 30, u64::MAX] {
            let Budget { cache_bytes, memtable_bytes, history_bytes, log_bytes } = budget(limit);
            let all = [cache_bytes, history_bytes, log_bytes].iter().map(|bytes| *bytes as u64).sum::<u64>();
            assert!(all <= limit.saturating_sub(FIXED_BYTES) / 4 * 3, "{limit}");
            assert!(2 * memtable_bytes <= cache_bytes, "{limit}");
        }
        assert!(budget(MIN_LIMIT_BYTES).memtable_bytes >= 4 << 20);
    }
}
