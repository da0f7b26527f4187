//! The Raft library's log, kept by our write-ahead log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};

use futures::{Stream, TryStreamExt, stream};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::types::{self, Types};
use crate::wal::Wal;

/// Bytes one read hands to replication or apply: large enough to fill a batch,
/// small enough that a follower far behind does not fill the memory.
const READ_BYTES: usize = 4 << 20;

/// A handle on the log; clones read the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    wal: Wal,
}

impl LogStore {
    pub(crate) fn new(wal: Wal) -> Self {
        Self { wal }
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<EntryOf<Types>>, io::Error> {
        self.wal.read(range, max_bytes)?.into_iter().map(|entry| Ok(types::entry_from_log(entry)?)).collect()
    }
}

fn half_open(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for LogStore {
    /// In pieces of [`READ_BYTES`]: after a restart, apply may have far to go.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<EntryOf<Types>, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let pieces = stream::try_unfold(half_open(range), move |rest| {
            let log = log.clone();
            async move {
                if rest.is_empty() {
                    return Ok(None);
                }
                let piece = log.read(rest.clone(), READ_BYTES)?;
                let Some(last) = piece.last() else {
                    return Err(io::Error::new(io::ErrorKind::NotFound, format!("the log lacks entry {}", rest.start)));
                };
                let next = last.log_id.index + 1;
                Ok::<_, io::Error>(Some((stream::iter(piece.into_iter().map(Ok)), next..rest.end)))
            }
        });
        Box::pin(pieces.try_flatten())
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        self.read(half_open(range), usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<EntryOf<Types>>, io::Error> {
        self.read(start..end, READ_BYTES)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.wal.vote().map(types::decode_vote).transpose()?)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.wal.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(types::log_id_from_entry),
            last_log_id: state.last.map(types::log_id_from_entry),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        Ok(self.wal.save_vote(types::encode_vote(vote)).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        Ok(self.wal.save_committed(committed.as_ref().map(types::entry_id))?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<Types>>, io::Error> {
        Ok(self.wal.committed().map(types::log_id_from_entry))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| types::entry_to_log(&entry)).collect();
        Ok(self.wal.append(entries, move |result| callback.io_completed(result))?)
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        Ok(self.wal.truncate_after(last.as_ref().map(types::entry_id))?)
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> Result<(), io::Error> {
        Ok(self.wal.purge(types::entry_id(&upto))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_half_open() {
        assert_eq!(half_open(3..7), 3..7);
        assert_eq!(half_open(3..=7), 3..8);
        assert_eq!(half_open(..), 0..u64::MAX);
        assert_eq!(half_open(..=u64::MAX), 0..u64::MAX);
    }
}
