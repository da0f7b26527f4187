//! Whole runs of a store that is right, or wrong in one known way: writes and leases one
//! after another, and watches, roles and hashes that tell of them. What clients do at the
//! same time is the business of [`super::simulator`].

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::log::Log;
use super::{Broken, convergence, durability, leader, lease, reads, watch};
use crate::history::{
    Answer, Client, EventKind, HashReport, History, Hold, KeyValue, Keys, Member, Operation, OperationId, Outcome,
    Read, Reply, Request, Response, Revision, Role, RoleReport, Term, Watch, WatchEvent, WatchId, WatchRequest,
};

const KEYS: usize = 5;
const MEMBERS: [Member; 3] = [Member(0), Member(1), Member(2)];
const SECOND: u64 = 1_000_000_000;
const TTL_SECONDS: i64 = 3;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// A watch is told what it does not ask for.
    Unasked,
    /// Two revisions change places.
    Swapped,
    /// An event comes twice.
    Twice,
    /// One revision comes in two messages.
    Torn,
    /// An event does not come.
    Skipped,
    /// The first event after a resumption does not come.
    SkippedAtStart,
    /// Progress is told that was not made yet.
    EarlyProgress,
    /// The first watch of a watcher is told what is older than its start.
    BelowStart,
    WrongPrevious,
    /// A resumed watch is told what its watcher knows.
    BackInTime,
    LostWrite,
    /// The last acknowledged write is nowhere, and no watch comes to it.
    LostTail,
    /// A read shows the key as it was at another revision.
    TornRead,
    MemberGoesBack,
    TwoLeaders,
    TwoOwners,
    TermGoesBack,
    OtherHash,
    MissingMember,
    EndsEarly,
    NeverEnds,
    EndsInParts,
    RenewedAfterEnd,
    Unattached,
}

/// Nearly all histories with the bug are reported for the promise; none without it is.
pub(super) fn catches(bug: Bug, promise: &str) {
    let (mut planted, mut found) = (0, 0);
    for seed in 0..250 {
        let correct = verdicts(&history(seed, None).0);
        assert!(correct.is_empty(), "seed {seed} is accused of {}", correct[0]);
        let (history, count) = history(seed, Some(bug));
        if count > 0 {
            planted += 1;
            found += usize::from(verdicts(&history).iter().any(|broken| broken.promise == promise));
        }
    }
    assert!(planted >= 50, "{bug:?} was hardly ever let loose: {planted}");
    assert!(found * 100 >= planted * 85, "{bug:?}: {found} of {planted} were reported as {promise}");
}

fn verdicts(history: &History) -> Vec<Broken> {
    let (log, mut broken) = Log::of(history);
    broken.extend(watch::check(history, &log));
    broken.extend(durability::check(history, &log));
    broken.extend(reads::check(history, &log));
    broken.extend(leader::check(history));
    broken.extend(convergence::check(history, &MEMBERS));
    broken.extend(lease::check(history, &log));
    broken
}

/// All changes of one revision, and when they were made.
struct Commit {
    at_nanos: u64,
    events: Vec<WatchEvent>,
}

struct Lease {
    id: i64,
    /// When it ends.
    until_nanos: u64,
}

struct Run {
    random: StdRng,
    bug: Option<Bug>,
    planted: usize,
    now: u64,
    /// Clients are gone; what leases left stays.
    ending: bool,
    history: History,
    /// The first has revision 2.
    commits: Vec<Commit>,
    state: BTreeMap<String, KeyValue>,
    leases: Vec<Lease>,
    next_lease: i64,
}

/// The history of `seed`, and how often the bug was let loose.
pub(super) fn history(seed: u64, bug: Option<Bug>) -> (History, usize) {
    let mut run = Run {
        random: StdRng::seed_from_u64(seed),
        bug,
        planted: 0,
        now: SECOND,
        ending: false,
        history: History::default(),
        commits: Vec::new(),
        state: BTreeMap::new(),
        leases: Vec::new(),
        next_lease: 1,
    };
    for _ in 0..80 {
        run.now += run.random.random_range(SECOND / 100..SECOND / 2);
        run.expire();
        run.operate();
    }
    // Until every lease has ended, as the checker of L2 wants to see it.
    run.ending = true;
    for _ in 0..2 {
        run.now += 20 * SECOND;
        run.expire();
    }
    run.roles();
    run.hashes();
    for watcher in 0..5 {
        run.watch(Client(100 + watcher));
    }
    (run.history, run.planted)
}

impl Run {
    fn revision(&self) -> Revision {
        Revision(self.commits.len() as i64 + 1)
    }

    /// Whether the bug is let loose here.
    fn strikes(&mut self, bug: Bug, chance: f64) -> bool {
        let strikes = self.bug == Some(bug) && self.random.random_bool(chance);
        self.planted += usize::from(strikes);
        strikes
    }

    fn put(&mut self, key: &str, value: &str, lease: i64, revision: Revision) -> WatchEvent {
        let prev = self.state.get(key).cloned();
        let (create_revision, version) = prev.as_ref().map_or((revision, 0), |kv| (kv.create_revision, kv.version));
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.to_owned(),
            create_revision,
            mod_revision: revision,
            version: version + 1,
            lease,
        };
        self.state.insert(key.to_owned(), kv.clone());
        WatchEvent { kind: EventKind::Put, kv, prev }
    }

    fn delete(&mut self, key: &str, revision: Revision) -> Option<WatchEvent> {
        let prev = self.state.remove(key)?;
        let kv = KeyValue { key: key.to_owned(), mod_revision: revision, ..KeyValue::default() };
        Some(WatchEvent { kind: EventKind::Delete, kv, prev: Some(prev) })
    }

    fn commit(&mut self, events: Vec<WatchEvent>) {
        if !events.is_empty() {
            self.commits.push(Commit { at_nanos: self.now, events });
        }
    }

    /// Leases whose time has come take their keys along.
    fn expire(&mut self) {
        let mut kept = Vec::new();
        for lease in std::mem::take(&mut self.leases) {
            let keys: Vec<String> =
                self.state.values().filter(|kv| kv.lease == lease.id).map(|kv| kv.key.clone()).collect();
            let early = self.now + SECOND < lease.until_nanos && !keys.is_empty() && self.strikes(Bug::EndsEarly, 0.2);
            if self.now < lease.until_nanos && !early {
                kept.push(lease);
                continue;
            }
            if self.ending && !keys.is_empty() && self.strikes(Bug::NeverEnds, 1.0) {
                continue;
            }
            let apart = keys.len() > 1 && self.strikes(Bug::EndsInParts, 0.5);
            let mut events = Vec::new();
            for key in keys {
                events.extend(self.delete(&key, Revision(self.revision().0 + 1)));
                if apart {
                    self.commit(std::mem::take(&mut events));
                }
            }
            let ended = !events.is_empty();
            self.commit(events);
            if ended && self.strikes(Bug::RenewedAfterEnd, 0.5) {
                self.now += SECOND;
                self.answer(Request::KeepAlive { lease: lease.id }, Answer::Ttl(TTL_SECONDS));
            }
        }
        self.leases = kept;
    }

    /// Records an operation that has just been carried out.
    fn answer(&mut self, request: Request, answer: Answer) {
        let reply = Reply { revision: Some(self.revision()), term: None, answer };
        self.record(request, Some(reply));
    }

    fn record(&mut self, request: Request, reply: Option<Reply>) {
        let id = OperationId(self.history.operations.len() as u64);
        let member = MEMBERS[self.random.random_range(0..MEMBERS.len())];
        let client = Client(member.0.into());
        let outcome = match reply {
            Some(reply) => Outcome::Ok { at_nanos: self.now + 2_000, reply },
            None => Outcome::Unknown { error: None },
        };
        let invoked_nanos = self.now - 2_000;
        self.history.operations.push(Operation { id, client, member, request, invoked_nanos, outcome });
    }

    /// One operation of a client.
    fn operate(&mut self) {
        let key = format!("k{}", self.random.random_range(0..KEYS));
        let value = format!("v{}", self.history.operations.len());
        let next = Revision(self.revision().0 + 1);
        match self.random.random_range(0..12) {
            0..3 => {
                if self.strikes(Bug::LostWrite, 0.2) {
                    // Its revision will be somebody else's.
                    let reply = Reply { revision: Some(next), term: None, answer: Answer::Done };
                    self.record(Request::Put { key, value, lease: 0 }, Some(reply));
                    return;
                }
                let event = self.put(&key, &value, 0, next);
                self.commit(vec![event]);
                self.answer(Request::Put { key, value, lease: 0 }, Answer::Done);
            }
            3 => {
                let event = self.put(&key, &value, 0, next);
                if self.random.random_bool(0.5) {
                    self.commit(vec![event]);
                } else {
                    // It never happened.
                    match event.prev {
                        Some(prev) => self.state.insert(key.clone(), prev),
                        None => self.state.remove(&key),
                    };
                }
                self.record(Request::Put { key, value, lease: 0 }, None);
            }
            4 => {
                let event = self.delete(&key, next);
                let answer = Answer::Deleted(event.is_some());
                self.commit(event.into_iter().collect());
                self.answer(Request::Delete { key }, answer);
            }
            5 => {
                let puts: Vec<(String, String)> =
                    (0..3).map(|number| (format!("k{number}"), format!("{value}-{number}"))).collect();
                let events = puts.iter().map(|(key, value)| self.put(key, value, 0, next)).collect();
                self.commit(events);
                self.answer(Request::PutAll { puts }, Answer::Done);
            }
            6 => {
                let lease = self.next_lease;
                self.next_lease += 1;
                self.leases.push(Lease { id: lease, until_nanos: self.now + TTL_SECONDS as u64 * SECOND });
                self.answer(Request::Grant { lease, ttl_seconds: TTL_SECONDS }, Answer::Ttl(TTL_SECONDS));
            }
            7..9 => {
                let Some(lease) = self.leases.last().map(|lease| lease.id) else { return };
                for number in 0..2 {
                    let (key, value) = (format!("k{number}"), format!("{value}-{number}"));
                    let shown = if self.strikes(Bug::Unattached, 0.3) { 0 } else { lease };
                    let revision = Revision(self.revision().0 + 1);
                    let event = self.put(&key, &value, shown, revision);
                    self.commit(vec![event]);
                    self.answer(Request::Put { key, value, lease }, Answer::Done);
                }
            }
            9 => {
                let end = self.now + TTL_SECONDS as u64 * SECOND;
                let Some(lease) = self.leases.first_mut() else { return };
                lease.until_nanos = end;
                let lease = lease.id;
                self.answer(Request::KeepAlive { lease }, Answer::Ttl(TTL_SECONDS));
            }
            _ => {
                let mut found = self.state.get(&key).cloned();
                if found.is_some() && self.strikes(Bug::TornRead, 0.2) {
                    found = None;
                }
                self.answer(Request::Get { key, read: Read::Serializable }, Answer::Found(found));
                if self.revision() > Revision(6) && self.strikes(Bug::MemberGoesBack, 0.3) {
                    let last = self.history.operations.len() - 1;
                    let mut earlier = self.history.operations[last].clone();
                    earlier.invoked_nanos += 5_000;
                    if let Outcome::Ok { at_nanos, reply } = &mut earlier.outcome {
                        (*at_nanos, reply.revision) = (*at_nanos + 5_000, Some(Revision(self.revision().0 - 3)));
                    }
                    self.history.operations.push(earlier);
                }
            }
        }
        if self.history.operations.len() > 60 && self.planted == 0 && self.strikes(Bug::LostTail, 0.2) {
            let reply = Reply { revision: Some(Revision(100_000)), term: None, answer: Answer::Done };
            let (key, value) = ("tail".to_owned(), "lost".to_owned());
            self.record(Request::Put { key, value, lease: 0 }, Some(reply));
        }
    }

    fn roles(&mut self) {
        let mut at_nanos = 0;
        for number in 1..8 {
            let (term, leader) = (Term(number), self.random.random_range(0..MEMBERS.len()));
            let two = self.strikes(Bug::TwoLeaders, 0.3);
            for (place, member) in MEMBERS.into_iter().enumerate() {
                // Before anything else happens, so that no lease may live the longer for it.
                at_nanos += 1_000;
                let leads = place == leader || two && place == (leader + 1) % MEMBERS.len();
                let role = if leads { Role::Leader } else { Role::Follower };
                self.history.roles.push(RoleReport { at_nanos, member, term, role });
            }
            if number > 1 && self.strikes(Bug::TermGoesBack, 0.2) {
                let report = RoleReport { at_nanos, member: MEMBERS[0], term: Term(number - 1), role: Role::Follower };
                self.history.roles.push(report);
            }
            // The last has nobody to be in the way of.
            let (from_nanos, overlap) = (number * SECOND, number < 7 && self.strikes(Bug::TwoOwners, 0.3));
            self.history.holds.push(Hold {
                resource: "lock".to_owned(),
                holder: format!("h{number}"),
                from_nanos,
                until_nanos: from_nanos + if overlap { SECOND + 1 } else { SECOND },
            });
        }
    }

    fn hashes(&mut self) {
        let revision = self.revision();
        for (place, member) in MEMBERS.into_iter().enumerate() {
            if place == 2 && self.strikes(Bug::MissingMember, 1.0) {
                continue;
            }
            let hash = if place == 1 && self.strikes(Bug::OtherHash, 1.0) { 8 } else { 7 };
            let at_nanos = self.now;
            self.history.hashes.push(HashReport { at_nanos, member, revision, compact_revision: Revision(0), hash });
        }
    }

    /// One watcher, which goes on on another member whenever its watch ends.
    fn watch(&mut self, watcher: Client) {
        let keys = match watcher.0 {
            100 | 102 => Keys::All,
            103 => Keys::One("k1".to_owned()),
            _ => Keys::Prefix("k".to_owned()),
        };
        let start_revision = match watcher.0 {
            102 => Revision(0),
            104 => Revision(self.random.random_range(2..8)),
            _ => Revision(1),
        };
        let no_delete = watcher.0 == 101;
        let mut request = WatchRequest { keys, start_revision, prev_kv: true, no_put: false, no_delete };
        // One that asks for the present begins where the store is then.
        let mut next = match start_revision {
            Revision(0) => self.random.random_range(2..8),
            start => start.0.max(2),
        };
        let end = self.revision().0;
        let mut created = Revision(next - 1);
        let mut first = true;
        while next <= end || first {
            let last = (next + self.random.random_range(5..40)).min(end);
            let responses = self.segment(&request, created, Revision(next), Revision(last), first);
            let id = WatchId(self.history.watches.len() as u64 + 1000);
            let member = MEMBERS[self.random.random_range(0..MEMBERS.len())];
            self.history.watches.push(Watch {
                id,
                watcher,
                member,
                request: request.clone(),
                opened_nanos: 0,
                responses,
            });
            (next, first) = (last + 1, false);
            request.start_revision = Revision(next);
            created = Revision(last);
        }
    }

    /// All that one watch is told, from one revision to another.
    fn segment(
        &mut self,
        request: &WatchRequest,
        created: Revision,
        from: Revision,
        to: Revision,
        first: bool,
    ) -> Vec<(u64, Response)> {
        let mut nanos = 0;
        let created = Response { revision: created, created: true, ..Response::default() };
        let mut responses = vec![(nanos, created)];
        let mut next = from.0;
        while next <= to.0 {
            let last = (next + self.random.random_range(0..4)).min(to.0);
            let mut events: Vec<WatchEvent> = Vec::new();
            for revision in next..=last {
                let commit = &self.commits[revision as usize - 2];
                nanos = nanos.max(commit.at_nanos) + 1_000;
                events.extend(commit.events.iter().filter(|event| request.matches(&event.kv.key, event.kind)).cloned());
            }
            self.spoil(request, &mut events, Revision(next), first);
            let between = events.windows(2).position(|pair| pair[0].kv.mod_revision == pair[1].kv.mod_revision);
            let response = |events| Response { revision: Revision(last), events, ..Response::default() };
            match between {
                Some(between) if self.random.random_bool(0.5) || self.bug == Some(Bug::Torn) => {
                    let rest = events.split_off(between + 1);
                    let fragment = !self.strikes(Bug::Torn, 0.5);
                    responses.push((nanos, Response { fragment, ..response(events) }));
                    responses.push((nanos, response(rest)));
                }
                _ if events.is_empty() => {}
                _ => responses.push((nanos, response(events))),
            }
            next = last + 1;
            if next > to.0 || self.random.random_bool(0.3) {
                let more = next <= to.0
                    && self.commits[next as usize - 2]
                        .events
                        .iter()
                        .any(|event| request.matches(&event.kv.key, event.kind));
                let early = more && self.strikes(Bug::EarlyProgress, 0.5);
                responses
                    .push((nanos, Response { revision: Revision(last + i64::from(early)), ..Response::default() }));
            }
        }
        // Long after everything, as the end of a run asks for it.
        if to == self.revision() {
            responses.push((self.now + SECOND, Response { revision: to, ..Response::default() }));
        }
        responses
    }

    /// Does what the bug does to one message.
    fn spoil(&mut self, request: &WatchRequest, events: &mut Vec<WatchEvent>, from: Revision, first: bool) {
        let begins = request.start_revision == from;
        let before = (from > Revision(2)).then(|| self.commits[from.0 as usize - 3].events.clone());
        let older = before
            .filter(|_| begins)
            .and_then(|events| events.into_iter().find(|event| request.matches(&event.kv.key, event.kind)));
        if let Some(older) = older {
            let bug = if first { Bug::BelowStart } else { Bug::BackInTime };
            if self.strikes(bug, 0.8) {
                events.insert(0, older);
            }
        }
        let distinct = events.windows(2).position(|pair| pair[0].kv.mod_revision != pair[1].kv.mod_revision);
        if let Some(place) = distinct
            && self.strikes(Bug::Swapped, 0.2)
        {
            events.swap(place, place + 1);
        }
        let alone = events.iter().filter(|event| event.kv.mod_revision == from).count() == 1;
        let first_is_first = events.first().is_some_and(|event| event.kv.mod_revision == from);
        if begins && !first && alone && first_is_first && self.strikes(Bug::SkippedAtStart, 0.8) {
            events.remove(0);
            return;
        }
        // In the middle, where it is the only one of its revision.
        let lonely = (1..events.len().saturating_sub(1)).find(|place| {
            let revision = |place: usize| events[place].kv.mod_revision;
            revision(*place) != revision(place - 1) && revision(*place) != revision(place + 1)
        });
        if let Some(place) = lonely
            && self.strikes(Bug::Skipped, 0.3)
        {
            events.remove(place);
        }
        if let Some(last) = events.last().cloned() {
            if self.strikes(Bug::Twice, 0.2) {
                events.push(last);
            } else if last.prev.is_some() && self.strikes(Bug::WrongPrevious, 0.2) {
                let place = events.len() - 1;
                events[place].prev = None;
            }
        }
        if request.keys != Keys::All && self.strikes(Bug::Unasked, 0.2) {
            let kv = KeyValue { key: "other".into(), value: "x".into(), mod_revision: from, ..KeyValue::default() };
            events.insert(0, WatchEvent { kind: EventKind::Put, kv, prev: None });
        }
    }
}
