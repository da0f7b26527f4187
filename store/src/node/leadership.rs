//! Who leads, as the rest of the process is told.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::fence::Fence;
use tokio::sync::watch;

use crate::raft::{Role, View};

/// Where requests for the leader go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) term: u64,
    /// Id and peer address; none while no leader is known.
    pub(crate) member: Option<(u64, String)>,
    /// This member leads.
    pub(crate) local: bool,
}

impl Leader {
    pub(super) fn of(view: &View) -> Self {
        let member = view.leader.and_then(|id| Some((id, view.node(id)?.peer_address.clone())));
        Self { term: view.term, local: view.role == Role::Leader, member }
    }
}

/// A receiver of the leader's whereabouts.
pub(crate) type Leaders = watch::Receiver<Arc<Leader>>;

/// The fence under which this member may act, if it may: it leads, it has applied an
/// entry of its own term (so it has seen all that was decided before), and a quorum
/// has answered within `patience`.
pub(super) fn fence(view: &View, generation: u64, patience: Duration) -> Option<Fence> {
    let leads = view.role == Role::Leader && view.applied.term == view.term;
    // A voter without others is a quorum; nobody sends it the answers that keep the age low.
    let alone = view.members.values().filter(|(_, votes)| *votes).count() <= 1;
    let heard = alone || view.quorum_age.is_none_or(|age| age <= patience);
    (leads && heard).then_some(Fence { generation, term: view.term })
}

/// The voter besides `own` that holds the most of the log.
pub(super) fn heir(view: &View, own: u64) -> Option<u64> {
    view.members
        .iter()
        .filter(|(id, (_, votes))| *votes && **id != own)
        .map(|(id, _)| (view.matched.get(id).copied().unwrap_or(0), *id))
        .max()
        .map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::{Applied, Node};

    fn leading() -> View {
        View {
            term: 4,
            role: Role::Leader,
            leader: Some(1),
            last_index: 9,
            committed: 9,
            applied: Applied { index: 9, term: 4 },
            snapshot: 0,
            purged: 0,
            quorum_age: Some(Duration::from_millis(10)),
            members: (1..=3).map(|id| (id, (Node::default(), true))).collect(),
            members_at: Applied::default(),
            heard: Default::default(),
            matched: [(2, 5), (3, 8)].into(),
            failed: None,
        }
    }

    #[test]
    fn only_a_leader_that_knows_the_past_and_has_a_quorum_may_act() {
        let check = |change: fn(&mut View), expected: Option<u64>| {
            let mut view = leading();
            change(&mut view);
            let fence = fence(&view, 2, Duration::from_millis(100));
            assert_eq!(fence, expected.map(|term| Fence { generation: 2, term }));
        };
        check(|_| {}, Some(4));
        check(|view| view.quorum_age = None, Some(4));
        check(|view| view.role = Role::Follower, None);
        check(|view| view.applied.term = 3, None);
        check(|view| view.quorum_age = Some(Duration::from_secs(1)), None);
        check(
            |view| {
                view.quorum_age = Some(Duration::from_secs(1));
                view.members.retain(|id, _| *id == 1);
            },
            Some(4),
        );
    }

    #[test]
    fn the_heir_holds_the_most_and_votes() {
        let mut view = leading();
        assert_eq!(heir(&view, 1), Some(3));
        view.members.get_mut(&3).unwrap().1 = false;
        assert_eq!(heir(&view, 1), Some(2));
        view.members.retain(|id, _| *id == 1);
        assert_eq!(heir(&view, 1), None);
    }
}
