//! Which changes of the members are made, as tables.

use super::*;
use crate::raft::Reign;

/// Voters 1 to 3 at a:1 to a:3, all started and healthy; 1 leads.
struct Sample {
    view: View,
    members: Members,
}

impl Sample {
    fn new(voters: u64) -> Self {
        let view = View {
            reign: Reign::sample(1),
            last_index: 1000,
            committed: 1000,
            applied: 1000,
            snapshot: 0,
            purged: 0,
            quorum_age: None,
            members: BTreeMap::new(),
            heard: BTreeMap::new(),
            matched: BTreeMap::new(),
        };
        let mut sample = Self { view, members: Members::default() };
        for id in 1..=voters {
            sample.member(id, true, false);
            sample.start(id, 1000);
        }
        sample
    }

    fn member(&mut self, id: u64, votes: bool, wants_vote: bool) {
        let node = Node { peer_address: format!("a:{id}"), wants_vote, ..Node::default() };
        self.view.members.insert(id, (node.clone(), votes));
        self.members.known.insert(id, Known { node, votes, said: None });
    }

    fn start(&mut self, id: u64, matched: u64) {
        let said = Attributes { directory: id, name: format!("m{id}"), client_urls: Vec::new() };
        self.members.known.get_mut(&id).unwrap().said = Some(said);
        self.view.heard.insert(id, Duration::from_millis(10));
        self.view.matched.insert(id, matched);
    }

    fn silence(&mut self, id: u64) {
        self.view.heard.insert(id, Duration::from_secs(9));
    }

    fn situation(&self) -> Situation<'_> {
        let patience = Duration::from_secs(1);
        let (view, members) = (&self.view, &self.members);
        Situation { view, members, own: 1, strict: true, max_learners: 1, patience, again: false }
    }

    /// Who votes after the change, and who does not.
    fn decide(&self, change: &Change) -> Result<(Vec<u64>, Vec<u64>), MembersError> {
        let next = self.situation().decide(change)?.expect("something to do");
        let ids = |votes| next.iter().filter(|(_, member)| member.1 == votes).map(|(id, _)| *id).collect();
        Ok((ids(true), ids(false)))
    }
}

fn add(id: u64, learner: bool) -> Change {
    Change::Add { id, addresses: format!("a:{id}"), learner }
}

#[track_caller]
fn refused(sample: &Sample, change: &Change, expected: MembersError) {
    assert_eq!(sample.situation().decide(change).unwrap_err(), expected);
}

#[test]
fn an_added_member_does_not_vote_at_once() {
    let sample = Sample::new(3);
    assert_eq!(sample.decide(&add(4, false)), Ok((vec![1, 2, 3], vec![4])));
    assert_eq!(sample.decide(&add(4, true)), Ok((vec![1, 2, 3], vec![4])));
    assert_eq!(Sample::new(1).decide(&add(2, false)), Ok((vec![1], vec![2])));
}

#[test]
fn additions_are_refused_as_etcd_refuses_them() {
    let mut sample = Sample::new(3);
    refused(&sample, &add(2, false), MembersError::Exists);
    let taken = Change::Add { id: 9, addresses: "b:1,a:2".into(), learner: false };
    refused(&sample, &taken, MembersError::PeerUrlsExist);
    sample.members.removed.insert(7);
    refused(&sample, &add(7, false), MembersError::Exists);
    sample.member(4, false, false);
    refused(&sample, &add(5, true), MembersError::TooManyLearners);
    sample.silence(3);
    refused(&sample, &add(5, false), MembersError::Unhealthy);
    let lax = Situation { strict: false, ..sample.situation() };
    assert!(lax.decide(&add(5, false)).is_ok());

    let mut growing = Sample::new(1);
    growing.member(2, false, true);
    refused(&growing, &add(3, false), MembersError::NotEnoughStarted);
    growing.start(2, 1000);
    assert!(growing.decide(&add(3, false)).is_ok());
}

#[test]
fn a_change_that_was_made_is_not_made_again() {
    let mut sample = Sample::new(3);
    sample.members.removed.insert(9);
    let again = Situation { again: true, ..sample.situation() };
    for done in [add(2, false), Change::Promote { id: 2 }, Change::Remove { id: 9 }] {
        assert_eq!(again.decide(&done), Ok(None), "{done:?}");
    }
    let other = Change::Add { id: 2, addresses: "b:1".into(), learner: false };
    assert_eq!(again.decide(&other), Err(MembersError::Exists));
}

#[test]
fn only_learners_in_sync_are_promoted() {
    let mut sample = Sample::new(3);
    refused(&sample, &Change::Promote { id: 9 }, MembersError::NotFound);
    refused(&sample, &Change::Promote { id: 2 }, MembersError::NotLearner);
    sample.member(4, false, false);
    refused(&sample, &Change::Promote { id: 4 }, MembersError::LearnerNotReady);
    sample.start(4, 899);
    refused(&sample, &Change::Promote { id: 4 }, MembersError::LearnerNotReady);
    sample.start(4, 900);
    assert_eq!(sample.decide(&Change::Promote { id: 4 }), Ok((vec![1, 2, 3, 4], vec![])));
}

#[test]
fn removals_keep_a_quorum() {
    let mut sample = Sample::new(3);
    refused(&sample, &Change::Remove { id: 9 }, MembersError::NotFound);
    assert_eq!(sample.decide(&Change::Remove { id: 2 }), Ok((vec![1, 3], vec![])));
    sample.silence(3);
    assert_eq!(sample.decide(&Change::Remove { id: 3 }), Ok((vec![1, 2], vec![])), "the one that is down");
    refused(&sample, &Change::Remove { id: 2 }, MembersError::Unhealthy);
    refused(&Sample::new(1), &Change::Remove { id: 1 }, MembersError::NotEnoughStarted);
    sample.member(4, false, false);
    assert_eq!(sample.decide(&Change::Remove { id: 4 }), Ok((vec![1, 2, 3], vec![])));
}

#[test]
fn addresses_move_but_never_onto_another_member() {
    let sample = Sample::new(3);
    let update = |id, addresses: &str| Change::Update { id, addresses: addresses.into() };
    let next = sample.situation().decide(&update(2, "b:2")).unwrap().unwrap();
    assert_eq!(next[&2].0.peer_address, "b:2");
    assert_eq!(sample.situation().decide(&update(2, "a:2")), Ok(None));
    refused(&sample, &update(2, "a:3"), MembersError::PeerUrlsExist);
    refused(&sample, &update(9, "b:9"), MembersError::NotFound);
}

#[test]
fn members_vote_once_they_have_caught_up_and_go_if_they_never_come() {
    let mut sample = Sample::new(3);
    sample.view.last_index = 50_000;
    sample.member(4, false, true);
    sample.member(5, false, false);
    let (mut arrivals, expiry) = (Arrivals::default(), Duration::from_secs(60));
    let began = Instant::now();
    let mut due =
        |sample: &Sample, after| arrivals.due(&sample.situation(), began + Duration::from_secs(after), expiry);
    assert_eq!(due(&sample, 0), []);
    sample.start(4, 40_000);
    assert_eq!(due(&sample, 1), [], "it has not caught up");
    sample.start(4, 49_500);
    assert_eq!(due(&sample, 2), [Change::Settle { id: 4 }]);
    assert_eq!(due(&sample, 61), [Change::Settle { id: 4 }, Change::Remove { id: 5 }]);
    sample.start(5, 0);
    assert_eq!(due(&sample, 62), [Change::Settle { id: 4 }], "a learner that came stays one");
}

#[test]
fn peer_urls_are_checked() {
    let check = |urls: &[&str]| peer_addresses(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
    assert_eq!(check(&["http://b:1", "https://a:2"]).as_deref(), Ok("a:2,b:1"));
    assert_eq!(check(&["http://[::1]:2380"]).as_deref(), Ok("[::1]:2380"));
    for bad in ["", "a:1", "http://a", "http://:1", "http://a:b", "http://a:1/x", "ftp://a:1", "http://a,b:1"] {
        assert_eq!(check(&[bad]), Err(MembersError::BadPeerUrls), "{bad:?}");
    }
    assert_eq!(check(&[]), Err(MembersError::BadPeerUrls));
}

#[test]
fn changes_come_over_the_wire_as_they_were() {
    let changes = [
        add(4, false),
        add(4, true),
        Change::Promote { id: 4 },
        Change::Remove { id: 4 },
        Change::Update { id: 4, addresses: "a:1,b:1".into() },
    ];
    for change in changes {
        assert_eq!(Change::from_wire(&change.to_wire(wire::Origin::default(), false)), Ok(change));
    }
    let empty = wire::ChangeMembersRequest { kind: Kind::Add.into(), member: 4, ..Default::default() };
    assert_eq!(Change::from_wire(&empty), Err(MembersError::BadPeerUrls));
}
