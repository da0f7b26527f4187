//! Who leads, as the rest of the process is told.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::fence::Fence;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::raft::View;

/// The pause before a leader that did not answer is asked again.
const RETRY_WAIT: Duration = Duration::from_millis(20);

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
    /// See [`Reign::known_leader`].
    ///
    /// [`Reign::known_leader`]: crate::raft::Reign::known_leader
    pub(super) fn of(view: &View, patience: Duration) -> Self {
        let leader = view.reign.known_leader(view.quorum_age, patience);
        let member = leader.and_then(|id| Some((id, view.node(id)?.peer_address.clone())));
        Self { term: view.reign.term, local: view.reign.leads() && leader.is_some(), member }
    }
}

/// Where the leader is asked: by id and peer address; none if it is this member.
pub(super) type Seat = Option<(u64, String)>;

/// A receiver of the leader's whereabouts.
pub(crate) type Leaders = watch::Receiver<Arc<Leader>>;

/// Asks whoever leads until that settles it: again after a failure, and at once when
/// another leads. What `ask` returns may be dropped between any two of its steps, with what it
/// asked for done or not.
///
/// # Errors
/// `NoLeader` or `Timeout` at the deadline, `Stopped` when the store is closing; and what
/// `ask` fails with, unless it is one of the first two or `NotLeader`: those may pass.
pub(super) async fn ask_leader<T, A>(
    leaders: &Leaders,
    deadline: Instant,
    mut ask: impl FnMut(Seat) -> A,
) -> Result<T, StoreError>
where
    A: Future<Output = Result<T, StoreError>>,
{
    let mut changes = leaders.clone();
    let asking = async {
        loop {
            let known = changes.wait_for(|leader| leader.local || leader.member.is_some()).await;
            let Ok(leader) = known.map(|leader| Arc::clone(&leader)) else { return Err(StoreError::Stopped) };
            let answer = ask(leader.member.clone().filter(|_| !leader.local));
            let attempt = async {
                match answer.await {
                    Err(StoreError::NoLeader | StoreError::NotLeader | StoreError::Timeout) => {
                        tokio::time::sleep(RETRY_WAIT).await;
                        None
                    }
                    settled => Some(settled),
                }
            };
            let answer = tokio::select! {
                biased;
                answer = attempt => answer,
                // When nobody tells of changes any more, whoever was asked may still answer.
                Ok(_) = changes.wait_for(|now| *now != leader) => continue,
            };
            match answer {
                Some(settled) => return settled,
                None if changes.has_changed().is_err() => return Err(StoreError::Stopped),
                None => {}
            }
        }
    };
    tokio::time::timeout_at(deadline, asking).await.unwrap_or_else(|_| Err(unanswered(leaders)))
}

/// Why nobody answered in time.
pub(super) fn unanswered(leaders: &Leaders) -> StoreError {
    match leaders.borrow().member {
        Some(_) => StoreError::Timeout,
        None => StoreError::NoLeader,
    }
}

/// The fence under which this member may act, if it may; see [`Reign::may_act`].
///
/// [`Reign::may_act`]: crate::raft::Reign::may_act
pub(super) fn fence(view: &View, generation: u64, patience: Duration) -> Option<Fence> {
    view.reign.may_act(view.quorum_age, patience).then_some(Fence { generation, term: view.reign.term })
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
    use crate::raft::{Node, Reign};

    fn leading() -> View {
        View {
            reign: Reign::sample(4),
            last_index: 9,
            committed: 9,
            applied: 9,
            snapshot: 0,
            purged: 0,
            quorum_age: Some(Duration::from_millis(10)),
            members: (1..=3).map(|id| (id, (Node::default(), true))).collect(),
            heard: Default::default(),
            matched: [(2, 5), (3, 8)].into(),
        }
    }

    fn follows(id: u64, term: u64) -> Arc<Leader> {
        Arc::new(Leader { term, member: Some((id, format!("m{id}"))), local: false })
    }

    #[tokio::test]
    async fn a_leader_that_does_not_answer_is_left_for_the_next_one() {
        let (sender, leaders) = watch::channel(follows(1, 1));
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut asked = Vec::new();
        let answered = ask_leader(&leaders, deadline, |seat| {
            asked.push(seat.clone());
            async move {
                match seat {
                    Some((1, _)) => std::future::pending().await,
                    Some(_) => Err(StoreError::Timeout),
                    None => Ok(7),
                }
            }
        });
        let elections = async {
            for next in [Arc::default(), follows(2, 2), Arc::new(Leader { local: true, ..(*follows(3, 3)).clone() })] {
                tokio::time::sleep(Duration::from_millis(50)).await;
                sender.send_replace(next);
            }
        };
        let (answer, ()) = tokio::join!(answered, elections);
        assert_eq!(answer.unwrap(), 7);
        assert!(Instant::now() < deadline);
        asked.dedup();
        assert_eq!(asked, [Some((1, "m1".to_owned())), Some((2, "m2".to_owned())), None]);
    }

    #[tokio::test]
    async fn who_asks_the_leader_is_told_why_nobody_answered() {
        let check = async |leader: Arc<Leader>, ask: fn() -> Result<(), StoreError>, expected: &str| {
            let (sender, leaders) = watch::channel(leader);
            let deadline = Instant::now() + Duration::from_millis(50);
            let asking = ask_leader(&leaders, deadline, |_| std::future::ready(ask()));
            assert_eq!(asking.await.unwrap_err().to_string(), expected);
            drop(sender);
            let asking = ask_leader(&leaders, deadline + Duration::from_secs(30), |_| std::future::ready(ask()));
            let closing = if expected == "request is too large" { expected } else { "server stopped" };
            assert_eq!(asking.await.unwrap_err().to_string(), closing);
        };
        check(Arc::default(), || Ok(()), "no leader").await;
        check(follows(1, 1), || Err(StoreError::NotLeader), "request timed out").await;
        check(follows(1, 1), || Err(StoreError::TooLarge), "request is too large").await;
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
