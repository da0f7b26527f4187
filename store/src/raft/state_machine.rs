//! The Raft library's state machine, kept by [`crate::apply`].
//!
//! Entries are applied in batches, one write batch each. Whoever waits for a
//! command on this member, proposed here or forwarded, is told from here: the
//! outcome of a command is the same on every member.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::{oneshot, watch};

use super::Checkpoint;
use super::founded::replay_upto;
use super::snapshot::{Area, Directory};
use super::types::{self, DecodeError, Types};
use crate::apply::{self, Payload};
use crate::command::{CommandResult, Operation, RequestId};
use crate::node::leases::{LeaseChange, Leases};
use crate::peer::Roster;
use crate::wal::{EntryId, Wal};

/// Entries of one write batch: past a few hundred a larger batch gains nothing,
/// and readers wait for the whole of it.
const BATCH_ENTRIES: usize = 512;

/// Those who wait on this member for a command to be applied.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<HashMap<(u64, u64), oneshot::Sender<CommandResult>>>);

impl Waiters {
    /// Told once the command with this id is applied here. Forget it with [`Waiters::forget`].
    pub(crate) fn register(&self, id: &RequestId) -> oneshot::Receiver<CommandResult> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert((id.client, id.sequence), sender);
        receiver
    }

    pub(crate) fn forget(&self, id: &RequestId) {
        self.lock().remove(&(id.client, id.sequence));
    }

    fn answer(&self, results: impl IntoIterator<Item = ((u64, u64), CommandResult)>) {
        let mut waiting = self.lock();
        for (id, result) in results {
            if let Some(sender) = waiting.remove(&id) {
                // The receiver is gone when its request timed out.
                let _ = sender.send(result);
            }
        }
    }

    fn is_waiting(&self, id: &RequestId) -> bool {
        self.lock().contains_key(&(id.client, id.sequence))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u64), oneshot::Sender<CommandResult>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far this member has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

impl Applied {
    pub(super) fn of(id: Option<LogIdOf<Types>>) -> Self {
        id.map(|id| Self { index: id.index, term: id.leader_id.term }).unwrap_or_default()
    }
}

/// What of a state machine is on disk.
pub(crate) struct Flushed {
    pub(crate) applied: Option<EntryId>,
    pub(crate) membership: Option<Bytes>,
}

/// What is to be told, and to whom, once an entry is applied.
#[derive(Clone, Copy, Default)]
struct Note {
    request: Option<(u64, u64)>,
    lease: Option<LeaseChange>,
    members: bool,
}

/// The state machine as the Raft library drives it.
pub(crate) struct StateMachine {
    machine: apply::StateMachine,
    area: Arc<Area>,
    waiters: Arc<Waiters>,
    leases: Arc<Leases>,
    roster: Arc<Roster>,
    applied: watch::Sender<Applied>,
    /// A snapshot has been announced, so one can be asked for.
    announced: bool,
    /// What was on disk when the database was opened. The library's start has to hear of a
    /// snapshot if the log was purged, and does not read it: none is made for that.
    opened: Option<SnapshotMetaOf<Types>>,
}

impl StateMachine {
    /// `opened` is what was on disk when the database was opened, if the log was purged.
    pub(crate) fn new(
        machine: apply::StateMachine,
        opened: Option<Flushed>,
        area: Arc<Area>,
        waiters: Arc<Waiters>,
        leases: Arc<Leases>,
        roster: Arc<Roster>,
    ) -> Result<Self, DecodeError> {
        let applied = machine.applied().map(|id| Applied { index: id.index, term: id.term }).unwrap_or_default();
        let applied = watch::Sender::new(applied);
        let opened = opened.map(|flushed| meta(flushed.applied, flushed.membership)).transpose()?;
        Ok(Self { machine, area, waiters, leases, roster, applied, announced: false, opened })
    }

    pub(crate) fn watch_applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    pub(super) async fn checkpoint(&mut self) -> io::Result<SnapshotOf<Types, Directory>> {
        let (engine, directory) = (self.machine.engine(), self.area.reserve());
        let task = tokio::task::spawn_blocking(move || {
            engine.checkpoint(directory.path()).map(|checkpoint| (checkpoint, directory))
        });
        let (checkpoint, directory) = task.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let meta = meta(checkpoint.applied, checkpoint.membership)?;
        Ok(SnapshotOf::<Types, Directory> { meta, snapshot: directory })
    }

    /// See [`super::Raft::reseed`].
    pub(super) fn reseed(&mut self, checkpoint: &Checkpoint, wal: &Wal) -> io::Result<()> {
        let reached = self.machine.applied().map_or(0, |id| id.index);
        let purged = wal.state().purged.map_or(0, |id| id.index);
        if checkpoint.index > reached || checkpoint.index < purged {
            let message = format!(
                "a state of entry {} cannot replace one of entry {reached} with a log from {purged} on",
                checkpoint.index
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.machine.install(checkpoint.directory.path()).map_err(io::Error::other)?;
        // Nobody waits for what was applied before.
        replay_upto(wal, &mut self.machine, reached)?;
        self.roster.refresh().map_err(io::Error::other)?;
        // The log may go up to what was flushed before.
        self.machine.engine().flush().map_err(io::Error::other)
    }

    fn apply_batch(&mut self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        let last = last.log_id;
        let mut entries = Vec::with_capacity(batch.len());
        let mut notes = Vec::with_capacity(batch.len());
        let mut responders: Vec<ApplyResponder<Types>> = Vec::new();
        for (entry, responder) in batch {
            let entry = types::entry_to_apply(entry)?;
            notes.push(self.note(&entry.payload));
            entries.push(entry);
            responders.extend(responder);
        }
        let results = self.machine.apply(entries).map_err(io::Error::other)?;
        assert_eq!(results.len(), notes.len(), "one result per entry");
        let changes = notes.iter().zip(&results).filter_map(|(note, result)| match (note.lease?, result) {
            (LeaseChange::Granted { id, .. } | LeaseChange::Revoked { id }, CommandResult::Error(_)) => {
                Some(LeaseChange::Refused { id })
            }
            (change, _) => Some(change),
        });
        let leases: Vec<LeaseChange> = changes.collect();
        self.leases.applied(&leases);
        if notes.iter().any(|note| note.members) {
            self.roster.refresh().map_err(io::Error::other)?;
        }
        // The outcomes first: who sees the index and has none knows that a snapshot brought it.
        let told = notes.into_iter().zip(results).filter_map(|(note, result)| Some((note.request?, result)));
        self.waiters.answer(told);
        self.applied.send_replace(Applied::of(Some(last)));
        for responder in responders {
            responder.send(());
        }
        Ok(())
    }

    fn note(&self, payload: &Payload) -> Note {
        let command = match payload {
            Payload::Blank => return Note::default(),
            Payload::Membership { .. } => return Note { members: true, ..Note::default() },
            Payload::Command(command) => command,
        };
        let request = command.request.as_ref().filter(|id| self.waiters.is_waiting(id));
        Note {
            request: request.map(|id| (id.client, id.sequence)),
            lease: match &command.operation {
                Operation::LeaseGrant { id, ttl } => Some(LeaseChange::Granted { id: *id, ttl: *ttl }),
                Operation::LeaseRevoke { id } => Some(LeaseChange::Revoked { id: *id }),
                _ => None,
            },
            members: matches!(command.operation, Operation::MemberAttributes { .. }),
        }
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Directory;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let membership = types::decode_stored(self.machine.membership())?;
        Ok((self.machine.applied().map(types::log_id_from_entry), membership))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let batch = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
            self.apply_batch(batch)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.announced = true;
        let snapshot = match self.opened.take() {
            Some(meta) => Ok(SnapshotOf::<Types, Directory> { meta, snapshot: self.area.reserve() }),
            None => self.checkpoint().await,
        };
        SnapshotBuilder { snapshot: Some(snapshot) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, snapshot: Directory) -> Result<(), io::Error> {
        self.machine.install(snapshot.path()).map_err(io::Error::other)?;
        self.roster.refresh().map_err(io::Error::other)?;
        let applied = self.machine.applied().map(types::log_id_from_entry);
        if applied != meta.last_log_id {
            let message = format!("a snapshot said to end at {:?} ends at {applied:?}", meta.last_log_id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let now = Applied::of(applied);
        self.applied.send_replace(now);
        Ok(())
    }

    /// Always made anew: a follower gets the newest state, and no old checkpoint
    /// keeps deleted files on the disk.
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, Directory>>, io::Error> {
        if !self.announced {
            return Ok(None);
        }
        self.checkpoint().await.map(Some)
    }
}

fn meta(applied: Option<EntryId>, membership: Option<Bytes>) -> Result<SnapshotMetaOf<Types>, DecodeError> {
    Ok(SnapshotMetaOf::<Types> {
        last_log_id: applied.map(types::log_id_from_entry),
        last_membership: types::decode_stored(membership)?,
    })
}

/// Hands out the checkpoint that was made when it was asked for: between two batches,
/// so that the files are of one index.
pub(crate) struct SnapshotBuilder {
    snapshot: Option<io::Result<SnapshotOf<Types, Directory>>>,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Directory;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, Directory>, io::Error> {
        self.snapshot.take().unwrap_or_else(|| Err(io::Error::other("a snapshot was taken from its builder twice")))
    }
}
