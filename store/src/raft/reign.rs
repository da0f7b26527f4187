//! Who leads, and whether this member may act as leader.

use std::time::Duration;

use openraft::{RaftMetrics, ServerState};

use super::state_machine::Applied;
use super::types::Types;

/// What a member does in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Learner,
    Follower,
    Candidate,
    Leader,
    Stopped,
}

impl From<ServerState> for Role {
    fn from(state: ServerState) -> Self {
        match state {
            ServerState::Learner => Self::Learner,
            ServerState::Follower => Self::Follower,
            ServerState::Candidate => Self::Candidate,
            ServerState::Leader => Self::Leader,
            ServerState::Shutdown => Self::Stopped,
        }
    }
}

/// What of consensus makes a difference to who may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reign {
    pub(crate) term: u64,
    pub(crate) role: Role,
    pub(crate) leader: Option<u64>,
    /// The entry that says who the members are; it may not be committed yet.
    pub(crate) members_at: Applied,
    /// No two members vote: the one that does is a quorum.
    pub(crate) alone: bool,
    /// The term of the last entry applied here.
    pub(crate) applied_term: u64,
    /// Consensus ended by an error, which it names.
    pub(crate) failed: Option<String>,
}

impl Reign {
    pub(super) fn of(metrics: &RaftMetrics<Types>) -> Self {
        let members = &metrics.membership_config;
        let mut voters = members.membership().get_joint_config().iter().flatten();
        let first = voters.next();
        Self {
            term: metrics.current_term,
            role: metrics.state.into(),
            leader: metrics.current_leader,
            members_at: Applied::of(*members.log_id()),
            alone: voters.all(|id| Some(id) == first),
            applied_term: metrics.last_applied.map_or(0, |id| id.leader_id.term),
            failed: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether this member may act as leader: it leads, it has applied an entry of its own
    /// term (so it has seen all that was decided before), and a quorum has answered within
    /// `patience`, the last time so long ago as `quorum_age` says.
    pub(crate) fn may_act(&self, quorum_age: Option<Duration>, patience: Duration) -> bool {
        self.leads() && self.applied_term == self.term && self.is_answered(quorum_age, patience)
    }

    /// Who leads, as far as this member can know: a leader that no quorum has answered within
    /// `patience` may have been replaced.
    pub(crate) fn known_leader(&self, quorum_age: Option<Duration>, patience: Duration) -> Option<u64> {
        self.leader.filter(|_| !self.leads() || self.is_answered(quorum_age, patience))
    }

    fn is_answered(&self, quorum_age: Option<Duration>, patience: Duration) -> bool {
        // Nobody sends a leader without others the answers that keep the age low.
        self.alone || quorum_age.is_none_or(|age| age <= patience)
    }
}

#[cfg(test)]
impl Reign {
    /// Of member 1, which leads two others or more.
    pub(crate) fn sample(term: u64) -> Self {
        let members_at = Applied::default();
        let (role, leader, failed) = (Role::Leader, Some(1), None);
        Self { term, role, leader, members_at, alone: false, applied_term: term, failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leader_that_knows_the_past_and_has_a_quorum_may_act() {
        let check = |change: fn(&mut Reign, &mut Option<Duration>), expected: bool| {
            let (mut reign, mut quorum_age) = (Reign::sample(4), Some(Duration::from_millis(10)));
            change(&mut reign, &mut quorum_age);
            assert_eq!(reign.may_act(quorum_age, Duration::from_millis(100)), expected, "{reign:?} {quorum_age:?}");
        };
        check(|_, _| {}, true);
        check(|_, age| *age = None, true);
        check(|reign, _| reign.role = Role::Follower, false);
        check(|reign, _| reign.applied_term = 3, false);
        check(|_, age| *age = Some(Duration::from_secs(1)), false);
        check(|reign, age| (reign.alone, *age) = (true, Some(Duration::from_secs(1))), true);
    }

    #[test]
    fn a_leader_without_a_quorum_does_not_know_who_leads() {
        let check = |change: fn(&mut Reign, &mut Option<Duration>), expected: Option<u64>| {
            let (mut reign, mut quorum_age) = (Reign::sample(4), Some(Duration::from_secs(1)));
            change(&mut reign, &mut quorum_age);
            let leader = reign.known_leader(quorum_age, Duration::from_millis(100));
            assert_eq!(leader, expected, "{reign:?} {quorum_age:?}");
        };
        check(|_, _| {}, None);
        check(|_, age| *age = Some(Duration::from_millis(10)), Some(1));
        check(|_, age| *age = None, Some(1));
        check(|reign, _| reign.alone = true, Some(1));
        // Whether the leader it follows has a quorum, a follower need not know.
        check(|reign, _| (reign.role, reign.leader) = (Role::Follower, Some(2)), Some(2));
        check(|reign, age| (reign.role, reign.leader, *age) = (Role::Candidate, None, None), None);
    }
}
