//! The members as this member has applied them: where they are, what they say of
//! themselves, and who is a member no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_proto::raft as wire;
use tokio::sync::watch;

use crate::command::Attributes;
use crate::mvcc::{Engine, EngineError};
use crate::raft::{self, Node};

/// Members at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    pub(crate) known: BTreeMap<u64, Known>,
    pub(crate) removed: BTreeSet<u64>,
}

/// One member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) node: Node,
    pub(crate) votes: bool,
    /// None before its process has ever run.
    pub(crate) said: Option<Attributes>,
}

impl Known {
    pub(crate) fn name(&self) -> &str {
        self.said.as_ref().map_or(&self.node.name, |said| &said.name)
    }

    /// A member that clients see as a learner; one that only waits to vote is none to them.
    pub(crate) fn is_learner(&self) -> bool {
        !self.votes && !self.node.wants_vote
    }

    fn directory(&self) -> u64 {
        self.said.as_ref().map_or(0, |said| said.directory)
    }
}

impl Members {
    /// The data directory that `member` is tied to; 0 if it is not yet.
    pub(crate) fn directory(&self, member: u64) -> u64 {
        self.known.get(&member).map_or(0, Known::directory)
    }

    fn read(engine: &Engine) -> Result<Self, EngineError> {
        let mut said: BTreeMap<u64, Bytes> = engine.member_attributes()?.into_iter().collect();
        let membership = match raft::decode_members(engine.membership()?) {
            Ok(members) => members,
            Err(error) => {
                tracing::error!(%error, "the membership that was applied does not decode");
                BTreeMap::new()
            }
        };
        let known = membership.into_iter().map(|(id, (node, votes))| {
            let said = said.remove(&id).and_then(|row| Attributes::decode(&row).ok());
            (id, Known { node, votes, said })
        });
        Ok(Self { known: known.collect(), removed: engine.removed_members()?.into_iter().collect() })
    }

    /// What a process is told that does not know its cluster yet.
    pub(crate) fn describe(&self) -> Vec<wire::KnownMember> {
        let describe = |(id, known): (&u64, &Known)| wire::KnownMember {
            id: *id,
            name: known.name().to_owned(),
            peer_addresses: super::split(&known.node.peer_address).map(str::to_owned).collect(),
            directory: known.directory(),
        };
        self.known.iter().map(describe).collect()
    }
}

/// Follows the state machine.
pub(crate) struct Roster {
    engine: Arc<Engine>,
    current: ArcSwap<Members>,
    changed: watch::Sender<()>,
}

impl Roster {
    /// # Errors
    /// When the state machine cannot be read.
    pub(crate) fn new(engine: Arc<Engine>) -> Result<Arc<Self>, EngineError> {
        let current = ArcSwap::from_pointee(Members::read(&engine)?);
        Ok(Arc::new(Self { engine, current, changed: watch::Sender::new(()) }))
    }

    pub(crate) fn members(&self) -> Arc<Members> {
        self.current.load_full()
    }

    /// Reads again; called when something about members was applied.
    ///
    /// # Errors
    /// When the state machine cannot be read.
    pub(crate) fn refresh(&self) -> Result<(), EngineError> {
        self.current.store(Arc::new(Members::read(&self.engine)?));
        self.changed.send_replace(());
        Ok(())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
