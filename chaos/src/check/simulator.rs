//! Histories of a store that is right, or wrong in one known way: what checkers are tried on.
//!
//! One seed, one history. Clients ask at the same time, answers get lost, and what nobody was
//! told takes effect later or never.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::history::{
    Answer, Client, History, KeyValue, Member, Operation, OperationId, Outcome, Read, Reply, Request, Revision,
};

const CLIENTS: usize = 5;

/// How many keys there are, and which part of the requests gets no answer.
struct Shape {
    keys: usize,
    lost: f64,
}

/// Few keys and many lost answers: what is hard to order.
const SHORT: Shape = Shape { keys: 3, lost: 0.1 };

/// As runs on real clusters have them: 2 in 1,000 under every fault.
const LONG: Shape = Shape { keys: 12, lost: 0.003 };

/// What the store does wrong, now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// A linearizable read is answered by what was there some changes ago.
    StaleRead,
    /// A put is acknowledged and never there.
    LostWrite,
    /// A transaction is carried out although its comparison does not hold.
    BlindSwap,
    /// What nobody was told takes effect a second time.
    Twice,
    /// A request that was refused takes effect.
    FailedWrites,
}

/// The store at one revision.
#[derive(Clone, Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<String, KeyValue>,
}

impl Store {
    fn reply(&self, answer: Answer) -> Reply {
        Reply { revision: Some(Revision(self.revision)), term: None, answer }
    }

    fn put(&mut self, key: &str, value: &str) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let (created, version) = self.keys.get(key).map_or((revision, 0), |kv| (kv.create_revision, kv.version));
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.to_owned(),
            create_revision: created,
            mod_revision: revision,
            version: version + 1,
            lease: 0,
        };
        self.keys.insert(key.to_owned(), kv);
    }

    fn delete(&mut self, key: &str) -> bool {
        let there = self.keys.remove(key).is_some();
        self.revision += i64::from(there);
        there
    }

    /// Carries out a request. A blind one does not compare.
    fn run(&mut self, request: &Request, blind: bool) -> Reply {
        let answer = match request {
            Request::Get { key, .. } => Answer::Found(self.keys.get(key).cloned()),
            Request::Put { key, value, .. } => {
                self.put(key, value);
                Answer::Done
            }
            Request::Delete { key } => Answer::Deleted(self.delete(key)),
            Request::CompareAndSwap { key, expected, value } => {
                let found = self.keys.get(key).cloned();
                let modified = found.as_ref().map_or(Revision(0), |kv| kv.mod_revision);
                match value {
                    _ if modified != *expected && !blind => Answer::Refused(found),
                    Some(value) => {
                        self.put(key, value);
                        Answer::Done
                    }
                    None => {
                        self.delete(key);
                        Answer::Done
                    }
                }
            }
            Request::PutAll { puts } => {
                let before = self.revision;
                for (key, value) in puts {
                    self.revision = before;
                    self.put(key, value);
                }
                Answer::Done
            }
            other => unreachable!("no client of the simulator asks {other:?}"),
        };
        self.reply(answer)
    }
}

/// Where a client is with its request.
enum Stage {
    Idle,
    Asked(usize),
    Done(usize, Reply),
}

/// The history of `seed`, and how often the bug was let loose.
pub(super) fn history(seed: u64, bug: Option<Bug>) -> (History, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let steps = random.random_range(60..200);
    simulate(random, steps, &SHORT, bug)
}

/// A history of about so many operations.
pub(super) fn long_history(seed: u64, operations: usize, bug: Option<Bug>) -> (History, usize) {
    simulate(StdRng::seed_from_u64(seed), operations * 3, &LONG, bug)
}

fn simulate(mut random: StdRng, steps: usize, shape: &Shape, bug: Option<Bug>) -> (History, usize) {
    let mut stores = vec![Store { revision: 1, keys: BTreeMap::new() }];
    let mut operations: Vec<Operation> = Vec::new();
    let mut clients: Vec<Stage> = (0..CLIENTS).map(|_| Stage::Idle).collect();
    // What may take effect although nobody will be told.
    let mut limbo: Vec<Request> = Vec::new();
    let (mut now, mut planted) = (0, 0);
    for _ in 0..steps {
        now += random.random_range(1..50);
        if !limbo.is_empty() && random.random_bool(0.1) {
            let request = limbo.swap_remove(random.random_range(0..limbo.len()));
            let mut store = stores[stores.len() - 1].clone();
            store.run(&request, false);
            if bug == Some(Bug::Twice) && matches!(request, Request::Put { .. }) {
                // Read in between, so that it can be told.
                limbo.push(request);
                planted += 1;
            }
            stores.push(store);
        }
        let client = random.random_range(0..CLIENTS);
        clients[client] = match std::mem::replace(&mut clients[client], Stage::Idle) {
            Stage::Idle => {
                let id = OperationId(operations.len() as u64);
                let request = request(&mut random, &stores[stores.len() - 1], shape, id);
                let (client, member) = (Client(client as u32), Member(client as u16 % 3));
                let outcome = Outcome::Unknown { error: None };
                operations.push(Operation { id, client, member, request, invoked_nanos: now, outcome });
                Stage::Asked(operations.len() - 1)
            }
            Stage::Asked(place) => {
                let request = operations[place].request.clone();
                let wrong = bug.is_some() && random.random_bool(0.3);
                let (last, mut store) = (stores.len() - 1, stores[stores.len() - 1].clone());
                match (bug, &request) {
                    _ if random.random_bool(shape.lost) => {
                        if random.random_bool(0.5) {
                            limbo.push(request);
                        }
                        Stage::Idle
                    }
                    _ if random.random_bool(0.05) => {
                        let error = "etcdserver: too many requests".to_owned();
                        operations[place].outcome = Outcome::Fail { at_nanos: now, error };
                        if wrong && bug == Some(Bug::FailedWrites) {
                            store.run(&request, false);
                            planted += usize::from(store.revision != stores[last].revision);
                            stores.push(store);
                        }
                        Stage::Idle
                    }
                    (Some(Bug::StaleRead), Request::Get { .. }) if wrong && last > 12 => {
                        planted += 1;
                        Stage::Done(place, stores[last - 12].clone().run(&request, false))
                    }
                    (Some(Bug::LostWrite), Request::Put { .. }) if wrong => {
                        planted += 1;
                        let reply = store.run(&request, false);
                        // Its revision is somebody else's from here on.
                        Stage::Done(place, reply)
                    }
                    (bug, _) => {
                        let blind = wrong && bug == Some(Bug::BlindSwap);
                        let compared = store.clone().run(&request, false);
                        let reply = store.run(&request, blind);
                        planted += usize::from(reply != compared);
                        stores.push(store);
                        Stage::Done(place, reply)
                    }
                }
            }
            Stage::Done(place, reply) => {
                operations[place].outcome = Outcome::Ok { at_nanos: now, reply };
                Stage::Idle
            }
        };
    }
    (History { operations, ..History::default() }, planted)
}

/// What a client asks next. Values are unique; what is expected may be true or not.
fn request(random: &mut StdRng, store: &Store, shape: &Shape, id: OperationId) -> Request {
    let name = |number: usize| format!("k{number}");
    let key = name(random.random_range(0..shape.keys));
    let value = format!("v{}", id.0);
    match random.random_range(0..10) {
        0..4 => Request::Get { key, read: Read::Linearizable },
        4..6 => Request::Put { key, value, lease: 0 },
        6 => Request::Delete { key },
        7 => Request::PutAll { puts: (0..2).map(|number| (name(number), format!("{value}-{number}"))).collect() },
        _ => {
            let known = store.keys.get(&key).map_or(Revision(0), |kv| kv.mod_revision);
            let expected = if random.random_bool(0.7) { known } else { Revision(known.0 - known.0.min(1)) };
            Request::CompareAndSwap { key, expected, value: random.random_bool(0.8).then_some(value) }
        }
    }
}
