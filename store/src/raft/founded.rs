//! What consensus needs of a data directory that no member has started from yet, and what
//! can be read from one without starting a member.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::alias::VoteOf;
use openraft::{EntryPayload, Membership};

use super::types::{self, Node, Types};
use crate::apply::{self, Payload};
use crate::command::Command;
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
/// When an entry cannot be read or applied.
pub(crate) fn replay(wal: &Wal, machine: &mut apply::StateMachine) -> io::Result<u64> {
    let (Some(committed), Some(last)) = (wal.committed(), wal.state().last) else { return Ok(0) };
    let committed = committed.index.min(last.index);
    let mut next = machine.applied().map_or(0, |id| id.index + 1);
    // The first entry of a log has the index 0 or 1.
    next = next.max(wal.state().purged.map_or(0, |id| id.index + 1));
    let first = next;
    while next <= committed {
        let piece = wal.read(next..committed + 1, REPLAY_BYTES)?;
        let Some(last) = piece.last() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("the log lacks entry {next}")));
        };
        next = last.id.index + 1;
        let mut entries = Vec::with_capacity(piece.len());
        for entry in piece {
            let entry = types::entry_from_log(entry)?;
            let payload = match entry.payload {
                EntryPayload::Blank => Payload::Blank,
                EntryPayload::Membership(membership) => {
                    let ids = membership.nodes().map(|(id, _)| *id).collect();
                    Payload::Membership { stored: types::encode_stored(entry.log_id, &membership), ids }
                }
                EntryPayload::Normal(proposal) => {
                    Payload::Command(Command::decode(proposal.command()).map_err(io::Error::other)?)
                }
            };
            entries.push(apply::Entry { id: types::entry_id(&entry.log_id), payload });
        }
        machine.apply(entries).map_err(io::Error::other)?;
    }
    Ok(next - first)
}
