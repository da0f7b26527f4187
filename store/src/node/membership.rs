//! Who is a member: decided on the leader, one change at a time.
//!
//! Always: a member that is added to vote is a learner until it has caught up, so that
//! adding one never costs the quorum; and a removed id never comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message;
use quorate_proto::etcd::Member;
use quorate_proto::raft as wire;
use quorate_proto::raft::change_members_request::Kind;
use tokio::time::Instant;

use super::leadership::{self, Seat};
use super::{Inner, Store};
use crate::command::{Attributes, Operation};
use crate::error::{MembersError, StoreError};
use crate::peer::{self, Known, Lane, Members};
use crate::raft::{self, ChangeError, Node, View};

/// A learner may vote when it holds this much of the leader's log, in percent: etcd's.
const READY_PERCENT: u64 = 90;

/// A member that waits to vote does so when it lacks no more entries than that: a moment
/// of a busy cluster.
const CAUGHT_UP_ENTRIES: u64 = 1000;

/// The pause before a change is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// How long an answer waits for the change to be applied on this member too.
const SEEN_TIMEOUT: Duration = Duration::from_secs(1);

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// To vote once it has caught up, or as a learner for good.
    Add { id: u64, addresses: String, learner: bool },
    /// Lets a learner vote.
    Promote { id: u64 },
    /// Lets a member vote that was added to vote, and has caught up.
    Settle { id: u64 },
    /// Moves it.
    Update { id: u64, addresses: String },
    /// For good.
    Remove { id: u64 },
}

/// What a decision is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    pub(super) view: &'a View,
    pub(super) members: &'a Members,
    pub(super) own: u64,
    pub(super) strict: bool,
    pub(super) max_learners: usize,
    /// Who has not answered for longer is not healthy.
    pub(super) patience: Duration,
    /// The same change was asked for before, and may have been made.
    pub(super) again: bool,
}

/// Who is a member, and whether it votes.
type Next = BTreeMap<u64, (Node, bool)>;

impl Situation<'_> {
    fn known(&self, id: u64) -> Option<Known> {
        known(self.view, self.members, id)
    }

    fn all(&self) -> impl Iterator<Item = (u64, Known)> {
        self.view.members.keys().filter_map(|id| Some((*id, self.known(*id)?)))
    }

    fn is_active(&self, id: u64) -> bool {
        id == self.own || self.view.heard.get(&id).is_some_and(|age| *age <= self.patience)
    }

    /// Whether its process has ever run; the leader's does, whatever it has said of itself yet.
    fn has_started(&self, id: u64, known: &Known) -> bool {
        id == self.own || known.said.is_some()
    }

    /// The members that `change` makes; none if nothing is left to do.
    pub(super) fn decide(&self, change: &Change) -> Result<Option<Next>, MembersError> {
        match change {
            Change::Add { id, addresses, learner } => self.add(*id, addresses, *learner),
            Change::Promote { id } => self.promote(*id),
            Change::Settle { id } => Ok(self.settle(*id)),
            Change::Update { id, addresses } => self.update(*id, addresses),
            Change::Remove { id } => self.remove(*id),
        }
    }

    fn add(&self, id: u64, addresses: &str, learner: bool) -> Result<Option<Next>, MembersError> {
        if let Some(known) = self.known(id) {
            let same = self.again && known.node.peer_address == addresses;
            return if same { Ok(None) } else { Err(MembersError::Exists) };
        }
        if self.members.removed.contains(&id) {
            return Err(MembersError::Exists);
        }
        if self.strict {
            // Whoever was added to vote counts, as it does for clients.
            let voters: Vec<(u64, Known)> = self.all().filter(|(_, known)| !known.is_learner()).collect();
            let started = voters.iter().filter(|(id, known)| self.has_started(*id, known)).count();
            let founding = started == 1 && voters.len() == 1;
            if !learner && !founding && started < quorum(voters.len() + 1) {
                return Err(MembersError::NotEnoughStarted);
            }
            if voters.iter().any(|(id, _)| !self.is_active(*id)) {
                return Err(MembersError::Unhealthy);
            }
        }
        self.check_addresses(id, addresses)?;
        let learners = self.all().filter(|(_, known)| known.is_learner()).count();
        if learner && learners >= self.max_learners {
            return Err(MembersError::TooManyLearners);
        }
        let mut next = self.view.members.clone();
        let node = Node { peer_address: addresses.to_owned(), wants_vote: !learner, ..Node::default() };
        next.insert(id, (node, false));
        Ok(Some(next))
    }

    fn promote(&self, id: u64) -> Result<Option<Next>, MembersError> {
        let known = self.known(id).ok_or(MembersError::NotFound)?;
        if !known.is_learner() {
            return if self.again { Ok(None) } else { Err(MembersError::NotLearner) };
        }
        let matched = self.view.matched.get(&id).copied().unwrap_or(0);
        let ready = matched.saturating_mul(100) >= self.view.last_index.saturating_mul(READY_PERCENT);
        if !ready || matched == 0 || known.said.is_none() {
            return Err(MembersError::LearnerNotReady);
        }
        if self.strict {
            let voters: Vec<(u64, Known)> = self.all().filter(|(_, known)| known.votes).collect();
            let started = 1 + voters.iter().filter(|(id, known)| self.has_started(*id, known)).count();
            if started < quorum(voters.len() + 1) {
                return Err(MembersError::NotEnoughStarted);
            }
        }
        Ok(Some(self.with_vote(id)))
    }

    fn settle(&self, id: u64) -> Option<Next> {
        self.waits_to_vote(id).then(|| self.with_vote(id))
    }

    /// Whether a member that was added to vote has caught up.
    pub(super) fn waits_to_vote(&self, id: u64) -> bool {
        let Some(known) = self.known(id) else { return false };
        let matched = self.view.matched.get(&id).copied().unwrap_or(0);
        let caught_up = matched > 0 && self.view.last_index.saturating_sub(matched) <= CAUGHT_UP_ENTRIES;
        known.node.wants_vote && !known.votes && known.said.is_some() && caught_up && self.is_active(id)
    }

    fn with_vote(&self, id: u64) -> Next {
        let mut next = self.view.members.clone();
        if let Some((_, votes)) = next.get_mut(&id) {
            *votes = true;
        }
        next
    }

    fn update(&self, id: u64, addresses: &str) -> Result<Option<Next>, MembersError> {
        let known = self.known(id).ok_or(MembersError::NotFound)?;
        if known.node.peer_address == addresses {
            return Ok(None);
        }
        self.check_addresses(id, addresses)?;
        let mut next = self.view.members.clone();
        if let Some((node, _)) = next.get_mut(&id) {
            addresses.clone_into(&mut node.peer_address);
        }
        Ok(Some(next))
    }

    fn remove(&self, id: u64) -> Result<Option<Next>, MembersError> {
        let Some(known) = self.known(id) else {
            let gone = self.again && self.members.removed.contains(&id);
            return if gone { Ok(None) } else { Err(MembersError::NotFound) };
        };
        let mut next = self.view.members.clone();
        next.remove(&id);
        if known.votes && !next.values().any(|(_, votes)| *votes) {
            // Nobody would be left to decide anything.
            return Err(MembersError::NotEnoughStarted);
        }
        if self.strict && known.votes {
            let others: Vec<(u64, Known)> = self.all().filter(|(other, known)| *other != id && known.votes).collect();
            let started = others.iter().filter(|(id, known)| self.has_started(*id, known)).count();
            if started < quorum(others.len()) {
                return Err(MembersError::NotEnoughStarted);
            }
            // One that is down is no part of the quorum that is there.
            let active = others.iter().filter(|(other, _)| self.is_active(*other)).count();
            if self.is_active(id) && active < quorum(others.len()) {
                return Err(MembersError::Unhealthy);
            }
        }
        Ok(Some(next))
    }

    fn check_addresses(&self, id: u64, addresses: &str) -> Result<(), MembersError> {
        let wanted: BTreeSet<&str> = peer::split(addresses).collect();
        let taken = self.view.members.iter().filter(|(other, _)| **other != id);
        let taken = taken.flat_map(|(_, (node, _))| peer::split(&node.peer_address));
        if taken.into_iter().any(|address| wanted.contains(address)) {
            return Err(MembersError::PeerUrlsExist);
        }
        Ok(())
    }
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// The addresses in peer URLs, as members keep them: sorted, so that they compare.
fn peer_addresses(urls: &[String]) -> Result<String, MembersError> {
    let mut addresses = BTreeSet::new();
    for url in urls {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let address = rest.filter(|rest| {
            rest.rsplit_once(':').is_some_and(|(host, port)| {
                let plain = !host.contains(['/', '?', '#', '@', ',']) && !host.chars().any(char::is_whitespace);
                let bracketed = host.starts_with('[') && host.ends_with(']');
                !host.is_empty() && plain && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok()
            })
        });
        addresses.insert(address.ok_or(MembersError::BadPeerUrls)?);
    }
    if addresses.is_empty() {
        return Err(MembersError::BadPeerUrls);
    }
    Ok(Vec::from_iter(addresses).join(","))
}

impl Change {
    fn to_wire(&self, origin: wire::Origin, again: bool) -> wire::ChangeMembersRequest {
        let (kind, member, addresses) = match self {
            Self::Add { id, addresses, learner: false } => (Kind::Add, *id, addresses.as_str()),
            Self::Add { id, addresses, learner: true } => (Kind::AddLearner, *id, addresses.as_str()),
            Self::Promote { id } | Self::Settle { id } => (Kind::Promote, *id, ""),
            Self::Update { id, addresses } => (Kind::Update, *id, addresses.as_str()),
            Self::Remove { id } => (Kind::Remove, *id, ""),
        };
        wire::ChangeMembersRequest {
            origin: Some(origin),
            kind: kind.into(),
            member,
            peer_addresses: peer::split(addresses).map(str::to_owned).collect(),
            again,
        }
    }

    fn from_wire(request: &wire::ChangeMembersRequest) -> Result<Self, MembersError> {
        let id = request.member;
        let addresses = request.peer_addresses.join(",");
        let kind = request.kind();
        if matches!(kind, Kind::Add | Kind::AddLearner | Kind::Update) && addresses.is_empty() {
            return Err(MembersError::BadPeerUrls);
        }
        Ok(match kind {
            Kind::Add | Kind::AddLearner => Self::Add { id, addresses, learner: kind == Kind::AddLearner },
            Kind::Promote => Self::Promote { id },
            Kind::Update => Self::Update { id, addresses },
            Kind::Remove => Self::Remove { id },
        })
    }
}

impl Store {
    /// Adds a member that will run at `peer_urls`: to vote once it has caught up, or as a
    /// learner. Returns it, and all members.
    ///
    /// # Errors
    /// `Members` as etcd refuses; `NoLeader` or `Timeout` when nobody decides.
    pub async fn member_add(&self, peer_urls: &[String], learner: bool) -> Result<(Member, Vec<Member>), StoreError> {
        let addresses = peer_addresses(peer_urls)?;
        // Drawn, so that an id is never used again.
        let id = rand::random::<u64>().max(1);
        let members = self.change(Change::Add { id, addresses, learner }).await?;
        let added = members.iter().find(|member| member.id == id).cloned();
        Ok((added.unwrap_or(Member { id, is_learner: learner, ..Member::default() }), members))
    }

    /// Lets a learner vote. Returns all members.
    ///
    /// # Errors
    /// As [`Store::member_add`].
    pub async fn member_promote(&self, id: u64) -> Result<Vec<Member>, StoreError> {
        self.change(Change::Promote { id }).await
    }

    /// Says that a member is at `peer_urls` from now on. Returns all members.
    ///
    /// # Errors
    /// As [`Store::member_add`].
    pub async fn member_update(&self, id: u64, peer_urls: &[String]) -> Result<Vec<Member>, StoreError> {
        let addresses = peer_addresses(peer_urls)?;
        self.change(Change::Update { id, addresses }).await
    }

    /// Takes a member out, for good. Returns all members that are left.
    ///
    /// # Errors
    /// As [`Store::member_add`].
    pub async fn member_remove(&self, id: u64) -> Result<Vec<Member>, StoreError> {
        self.change(Change::Remove { id }).await
    }

    /// Ties a member to the data directory of its process.
    pub(crate) async fn tie(&self, member: u64, attributes: &Attributes) -> Result<(), StoreError> {
        let operation = Operation::MemberAttributes { member, attributes: attributes.encode() };
        self.inner.proposer.propose(operation, None).await.map(|_| ())
    }

    /// Answers a peer that was asked for a change.
    pub(crate) async fn answer_change(
        &self,
        request: wire::ChangeMembersRequest,
    ) -> Result<wire::ChangeMembersResponse, tonic::Status> {
        let change = match Change::from_wire(&request) {
            Ok(change) => change,
            Err(refused) => return Ok(refusal(refused)),
        };
        match self.inner.change_here(&change, request.again).await {
            Ok(index) => {
                let members = self.members().iter().map(|member| member.encode_to_vec().into()).collect();
                Ok(wire::ChangeMembersResponse { refusal: 0, index, members })
            }
            Err(StoreError::Members(refused)) => Ok(refusal(refused)),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a change through whoever leads, once, over changes of leadership. Returns the
    /// members then.
    pub(super) async fn change(&self, change: Change) -> Result<Vec<Member>, StoreError> {
        let inner = &self.inner;
        let deadline = Instant::now() + inner.config.request_timeout;
        let mut again = false;
        let ask = |seat: Seat| {
            let (change, again) = (&change, std::mem::replace(&mut again, true));
            async move {
                let Some((id, address)) = seat else { return inner.change_here(change, again).await.map(|_| None) };
                let request = change.to_wire(inner.peers.origin(id), again);
                let answer = inner.peers.client(id, &address, Lane::Forward).change_members(request).await;
                answer.map(|answer| Some(answer.into_inner())).map_err(|_| StoreError::Timeout)
            }
        };
        match leadership::ask_leader(&inner.leaders, deadline, ask).await? {
            Some(answer) => self.seen(answer).await,
            None => Ok(self.members()),
        }
    }

    /// Waits a moment until this member, too, has seen a change that the leader made.
    async fn seen(&self, answer: wire::ChangeMembersResponse) -> Result<Vec<Member>, StoreError> {
        if answer.refusal != 0 {
            let refused = MembersError::of_number(answer.refusal);
            return Err(refused.map_or(StoreError::Unsupported("this change of the members"), StoreError::Members));
        }
        let mut applied = self.inner.applied.clone();
        // A member that was removed by it never sees it.
        let _ = tokio::time::timeout(SEEN_TIMEOUT, raft::applied_at_least(&mut applied, answer.index)).await;
        Ok(answer.members.into_iter().filter_map(|bytes| Member::decode(bytes).ok()).collect())
    }
}

fn refusal(refused: MembersError) -> wire::ChangeMembersResponse {
    wire::ChangeMembersResponse { refusal: refused.number(), ..Default::default() }
}

impl Inner {
    fn situation<'a>(&self, view: &'a View, members: &'a Members, again: bool) -> Situation<'a> {
        Situation {
            view,
            members,
            own: self.identity.member_id,
            strict: self.config.strict_reconfig_check,
            max_learners: self.config.max_learners,
            patience: self.config.election_timeout_max * 2,
            again,
        }
    }

    /// Makes a change on the leader, after those that are under way. Returns the entry that
    /// says so, applied here.
    pub(super) async fn change_here(&self, change: &Change, again: bool) -> Result<u64, StoreError> {
        let deadline = Instant::now() + self.config.request_timeout;
        // Who has just become leader has not heard of anybody yet.
        let healthy_by = Instant::now() + self.config.election_timeout_max * 2;
        let _turn = self.changing.lock().await;
        loop {
            let view = self.raft.view();
            if !view.reign.leads() {
                return Err(StoreError::NotLeader);
            }
            let mut applied = self.applied.clone();
            let settled = raft::applied_at_least(&mut applied, view.reign.members_at.index);
            match tokio::time::timeout_at(deadline, settled).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(StoreError::Stopped),
                Err(_) => return Err(StoreError::Timeout),
            }
            let members = self.peers.members();
            let next = match self.situation(&view, &members, again).decide(change) {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(view.reign.members_at.index),
                Err(MembersError::Unhealthy) if Instant::now() < healthy_by => {
                    tokio::time::sleep(RETRY_WAIT).await;
                    continue;
                }
                Err(refused) => return Err(refused.into()),
            };
            if *change == (Change::Remove { id: self.identity.member_id }) && self.hand_over_first(&view).await {
                return Err(StoreError::NotLeader);
            }
            match self.raft.change_members(next, view.reign.members_at).await {
                Ok(index) => {
                    tracing::info!(?change, index, "the members have changed");
                    return Ok(index);
                }
                Err(ChangeError::NotLeader) => return Err(StoreError::NotLeader),
                Err(ChangeError::Stopped(_)) => return Err(StoreError::Stopped),
                Err(error @ ChangeError::Refused(_)) => {
                    tracing::error!(%error, ?change, "the members were not changed");
                    return Err(StoreError::Timeout);
                }
                Err(ChangeError::Busy) if Instant::now() < deadline => tokio::time::sleep(RETRY_WAIT).await,
                Err(ChangeError::Busy) => return Err(StoreError::Timeout),
            }
        }
    }

    /// A leader that is to be removed lets another one do it, so that no election is needed.
    async fn hand_over_first(&self, view: &View) -> bool {
        match leadership::heir(view, self.identity.member_id) {
            Some(heir) => self.hand_over(heir).await.is_ok(),
            None => false,
        }
    }
}

/// What the leader remembers of members that have not come yet.
#[derive(Debug, Default)]
pub(super) struct Arrivals(BTreeMap<u64, Instant>);

impl Arrivals {
    /// What is due on the leader: members that may vote now, and members that never came.
    pub(super) fn due(&mut self, situation: &Situation<'_>, now: Instant, expiry: Duration) -> Vec<Change> {
        let waiting: Vec<(u64, Known)> = situation.all().filter(|(_, known)| !known.votes).collect();
        self.0.retain(|id, _| waiting.iter().any(|(waits, known)| waits == id && known.said.is_none()));
        let mut due = Vec::new();
        for (id, known) in waiting {
            if situation.waits_to_vote(id) {
                due.push(Change::Settle { id });
            } else if known.said.is_none() && now >= *self.0.entry(id).or_insert(now) + expiry {
                due.push(Change::Remove { id });
            }
        }
        due
    }

    pub(super) async fn tend(&mut self, inner: &Inner) {
        let view = inner.raft.view();
        if !view.reign.leads() {
            self.0.clear();
            return;
        }
        let members = inner.peers.members();
        let situation = inner.situation(&view, &members, false);
        for change in self.due(&situation, Instant::now(), inner.config.learner_expiry) {
            match inner.change_here(&change, false).await {
                Ok(_) => {
                    if let Change::Remove { id } = change {
                        tracing::warn!(member = format!("{id:x}"), "removed a member whose process never came");
                    }
                }
                Err(error) => tracing::info!(%error, ?change, "the members were not changed yet"),
            }
        }
    }
}

/// What consensus and the state machine know of a member.
fn known(view: &View, members: &Members, id: u64) -> Option<Known> {
    let (node, votes) = view.members.get(&id)?;
    let said = members.known.get(&id).and_then(|known| known.said.clone());
    Some(Known { node: node.clone(), votes: *votes, said })
}

/// The members as clients see them.
pub(super) fn list(
    view: &View,
    members: &Members,
    peer_scheme: &str,
    address: impl Fn(u64, &str) -> String,
) -> Vec<Member> {
    view.members
        .keys()
        .filter_map(|id| {
            let known = known(view, members, *id)?;
            let at = address(*id, &known.node.peer_address);
            Some(Member {
                id: *id,
                name: known.name().to_owned(),
                peer_ur_ls: peer::split(&at).map(|address| format!("{peer_scheme}://{address}")).collect(),
                client_ur_ls: known.said.iter().flat_map(|said| said.client_urls.clone()).collect(),
                is_learner: known.is_learner(),
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
