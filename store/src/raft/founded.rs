//! What consensus needs of a data directory that no member has started from yet, and what
//! can be read from one without starting a member.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::Membership;
use openraft::alias::VoteOf;

use super::types::{self, Node, Types};
use crate::apply;
use crate::wal::{EntryId, Wal};

/// Where the log of a restored cluster begins: the same on all of its members.
const TERM: u64 = 1;
const INDEX: u64 = 1;

/// Entries are read and applied in pieces of this size.
const REPLAY_BYTES: usize = 4 << 20;

/// The beginning of a cluster whose members hold a state and no log.
pub(crate) struct Founded {
    /// Counts as applied by all, and as purged from their logs.
    pub(crate) applied: EntryId,
    /// For the state machine.
    pub(crate) membership: Bytes,
    /// For the log: nobody was elected in the term, and nobody will be.
    pub(crate) vote: Bytes,
}

/// The beginning of a cluster of `members`, who all vote.
pub(crate) fn founded(members: &BTreeMap<u64, (String, String)>) -> Founded {
    let nodes: BTreeMap<u64, Node> = members
        .iter()
        .map(|(id, (name, address))| {
            (*id, Node { name: name.clone(), peer_address: address.clone(), ..Node::default() })
        })
        .collect();
    let voters = BTreeSet::from_iter(members.keys().copied());
    let membership = Membership::new(vec![voters], nodes).expect("there are voters, and each has a node");
    let id = types::log_id(TERM, INDEX);
    Founded {
        applied: types::entry_id(&id),
        membership: types::encode_stored(id, &membership),
        vote: types::encode_vote(&VoteOf::<Types>::new(TERM, 0)),
    }
}

/// Applies the entries that `wal` knows to be committed and `machine` lacks; returns how many.
///
/// # Errors
/// When an entry cannot be read or applied, or the log does not reach back to what `machine`
/// holds.
pub(crate) fn replay(wal: &Wal, machine: &mut apply::StateMachine) -> io::Result<u64> {
    let applied = machine.applied().map_or(0, |id| id.index);
    let purged = wal.state().purged.map_or(0, |id| id.index);
    if applied < purged {
        let message = format!(
            "the state machine ends at entry {applied} and the log begins after entry {purged}: its database is not \
             the one that was there. Remove this member's data directory and let it join again, to be re-seeded from \
             its peers"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let (Some(committed), Some(last)) = (wal.committed(), wal.state().last) else { return Ok(0) };
    let committed = committed.index.min(last.index);
    replay_upto(wal, machine, committed)
}

/// Applies the entries up to `upto` that `machine` lacks; returns how many.
///
/// # Errors
/// When an entry is not there, or cannot be read or applied.
pub(super) fn replay_upto(wal: &Wal, machine: &mut apply::StateMachine, upto: u64) -> io::Result<u64> {
    // The first entry of a log has the index 0 or 1.
    let first = machine.applied().map_or(0, |id| id.index + 1);
    let mut next = first;
    while next <= upto {
        let piece = wal.read(next..upto + 1, REPLAY_BYTES)?;
        let Some(last) = piece.last() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("the log lacks entry {next}")));
        };
        next = last.id.index + 1;
        let entries = piece.into_iter().map(|entry| types::entry_to_apply(types::entry_from_log(entry)?));
        machine.apply(entries.collect::<io::Result<_>>()?).map_err(io::Error::other)?;
    }
    Ok(next - first)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fs::Memory;
    use crate::{mvcc, wal};

    #[test]
    fn a_database_that_the_log_does_not_reach_back_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = apply::StateMachine::open(mvcc::Config::new(directory.path().join("db"))).unwrap();
        let config = wal::Config { segment_size_bytes: 4096, ..wal::Config::new("wal".into()) };
        let (wal, _) = Wal::open(config, Arc::new(Memory::new())).unwrap();
        assert_eq!(replay(&wal, &mut machine).unwrap(), 0, "both are new");
        wal.purge(EntryId { term: 1, node: 0, index: 5 }).unwrap();
        let error = replay(&wal, &mut machine).unwrap_err().to_string();
        assert!(error.contains("ends at entry 0 and the log begins after entry 5"), "{error}");
    }
}
