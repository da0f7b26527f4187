//! The search for an order of the operations on one key.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{Action, State, Value};
use crate::history::Revision;

/// How many steps pass between two looks at the clock.
const STEPS_PER_LOOK: u32 = 1024;

/// One operation, as far as one key is concerned.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Its place in the history; the end of a lease that deletes the key has none.
    pub(super) operation: Option<usize>,
    pub(super) action: Action,
    pub(super) invoked_nanos: u64,
    /// None for those that may happen at any time, or never.
    pub(super) returned_nanos: Option<u64>,
}

/// What there is to order.
pub(super) struct Plan<'a> {
    /// Those that happened. First come the ranked ones: their revisions fix their order.
    certain: Vec<Certain<'a>>,
    ranked: usize,
    /// Those that may have happened. Of one kind, nobody can tell which did, so that the
    /// one that was invoked first stands for all.
    kinds: Vec<Vec<&'a Step>>,
    /// Revisions of certain writes.
    written: FxHashSet<Revision>,
    /// Revisions of writes that are left out: there, the key becomes anything.
    blanks: &'a [Revision],
}

struct Certain<'a> {
    step: &'a Step,
    action: Action,
    needs: Needs,
}

/// What must have happened before, by rank.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    One(usize),
    AllBefore(usize),
}

impl<'a> Plan<'a> {
    pub(super) fn new(steps: &'a [Step], blanks: &'a [Revision]) -> Self {
        let mut writers: FxHashMap<Value, usize> = FxHashMap::default();
        let mut shown: FxHashMap<Value, Revision> = FxHashMap::default();
        for step in steps {
            match step.action {
                Action::Write { value: Some(value), .. } => *writers.entry(value).or_default() += 1,
                Action::Read { seen: Some(seen), .. } => {
                    shown.entry(seen.value).or_insert(seen.modified);
                }
                _ => {}
            }
        }
        let mut certain: Vec<(Option<(Revision, bool)>, &Step, Action)> = Vec::new();
        let mut kinds: BTreeMap<(bool, Option<Value>, Option<Revision>), Vec<&Step>> = BTreeMap::new();
        for step in steps {
            let action = match (step.returned_nanos, step.action) {
                (None, Action::Write { value, expected, .. }) => {
                    let seen = value.and_then(|value| shown.get(&value).copied());
                    match (value, seen) {
                        // Its value was seen, and nobody else wrote that: it happened, and then.
                        (Some(value), Some(_)) if writers[&value] == 1 => {
                            Action::Write { value: Some(value), at: seen, expected }
                        }
                        _ => {
                            let kind = (value.is_some(), value.filter(|_| seen.is_some()), expected);
                            kinds.entry(kind).or_default().push(step);
                            continue;
                        }
                    }
                }
                (_, action) => action,
            };
            certain.push((rank(&action), step, action));
        }
        // Those without a rank come last; the sort keeps the order of invocation.
        certain.sort_by_key(|(rank, ..)| (rank.is_none(), *rank));
        let ranked = certain.iter().take_while(|(rank, ..)| rank.is_some()).count();
        let mut last_write = None;
        let certain = certain.into_iter().enumerate().map(|(position, (rank, step, action))| {
            let needs = match (rank, last_write) {
                (Some((_, false)), _) => {
                    last_write = Some(position);
                    Needs::AllBefore(position)
                }
                (Some((_, true)), Some(write)) => Needs::One(write),
                _ => Needs::Nothing,
            };
            Certain { step, action, needs }
        });
        let certain: Vec<Certain<'_>> = certain.collect();
        let written = certain.iter().filter_map(|certain| written_at(&certain.action)).collect();
        Self { certain, ranked, kinds: kinds.into_values().collect(), written, blanks }
    }

    /// The state after `action`. Where writes are left out, more is possible than was.
    fn apply(&self, state: State, action: &Action) -> Option<State> {
        // A revision that is open is none of those that are known.
        if let Action::Write { expected: Some(expected), at: None, .. } = action
            && state.is_open()
            && self.written.contains(expected)
        {
            return None;
        }
        let next = self.blanks.partition_point(|blank| *blank <= state.floor());
        if next == self.blanks.len() {
            return state.step(action);
        }
        match rank(action) {
            Some((point, _)) => {
                let passed = self.blanks.partition_point(|blank| *blank <= point);
                // A write at a blank's own revision would be a second one there.
                match self.blanks[..passed].last() {
                    Some(last) if passed > next => state.after_anything(*last).step(action),
                    _ => state.step(action),
                }
            }
            None => state.after_anything(state.floor()).step(action),
        }
    }
}

/// Where an action stands among those of known revision: writes come before the reads that
/// see them. The model allows no other order.
fn rank(action: &Action) -> Option<(Revision, bool)> {
    match *action {
        Action::Write { at, .. } => at.map(|at| (at, false)),
        Action::Read { at, seen, .. } => at.or(seen.map(|seen| seen.modified)).map(|at| (at, true)),
    }
}

fn written_at(action: &Action) -> Option<Revision> {
    match *action {
        Action::Write { at, .. } => at,
        Action::Read { .. } => None,
    }
}

pub(super) enum Found {
    Order,
    NoOrder,
    NoTime,
}

/// Numbers from 0; those that begin it without a gap take no room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct BitSet {
    /// How many words of ones come before `words`.
    full: usize,
    /// Begins with a word that is not full, ends with one that is not empty.
    words: Vec<u64>,
}

impl BitSet {
    fn contains(&self, number: usize) -> bool {
        match (number / 64).checked_sub(self.full) {
            None => true,
            Some(word) => self.words.get(word).is_some_and(|word| word & bit(number) != 0),
        }
    }

    fn contains_all_below(&self, end: usize) -> bool {
        let complete = self.full * 64 + self.words.first().map_or(0, |word| word.trailing_ones() as usize);
        // Only the first word can go on from what is full.
        complete >= end
    }

    fn insert(&mut self, number: usize) {
        let word = number / 64 - self.full;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit(number);
        while self.words.first() == Some(&u64::MAX) {
            self.words.remove(0);
            self.full += 1;
        }
    }

    fn remove(&mut self, number: usize) {
        while number / 64 < self.full {
            self.full -= 1;
            self.words.insert(0, u64::MAX);
        }
        self.words[number / 64 - self.full] &= !bit(number);
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

fn bit(number: usize) -> u64 {
    1 << (number % 64)
}

/// Calls and returns by time, as a list from which operations are lifted and put back. Node
/// 0 is the head and the end; then come, for each operation, its call and its return.
struct Timeline {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Timeline {
    fn new(certain: &[Certain<'_>]) -> Self {
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(certain.len() * 2);
        for (position, Certain { step, .. }) in certain.iter().enumerate() {
            events.push((step.invoked_nanos, false, Self::call(position)));
            if let Some(returned) = step.returned_nanos {
                events.push((returned, true, Self::call(position) + 1));
            }
        }
        // Of the same instant, calls come first: those operations overlap.
        events.sort_unstable();
        let nodes = certain.len() * 2 + 1;
        let mut timeline = Self { next: (0..nodes).collect(), previous: (0..nodes).collect() };
        for (.., node) in events {
            let last = timeline.previous[0];
            timeline.link(last, node, 0);
        }
        timeline
    }

    fn call(position: usize) -> usize {
        position * 2 + 1
    }

    /// The operation whose call `node` is; none for returns and the end.
    fn called(node: usize) -> Option<usize> {
        (node % 2 == 1).then_some(node / 2)
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn link(&mut self, before: usize, node: usize, after: usize) {
        (self.next[before], self.previous[node]) = (node, before);
        (self.next[node], self.previous[after]) = (after, node);
    }

    fn lift(&mut self, position: usize) {
        for node in [Self::call(position), Self::call(position) + 1] {
            let (before, after) = (self.previous[node], self.next[node]);
            // A node that was never linked points at itself.
            (self.next[before], self.previous[after]) = (after, before);
        }
    }

    fn put_back(&mut self, position: usize) {
        for node in [Self::call(position) + 1, Self::call(position)] {
            let (before, after) = (self.previous[node], self.next[node]);
            self.link(before, node, after);
        }
    }
}

/// How many of each kind were chosen, and a sum that stands for that: kinds may be thousands,
/// and 128 bits do not meet by chance.
struct Taken {
    counts: Vec<usize>,
    sum: u128,
}

impl Taken {
    fn new(kinds: usize) -> Self {
        Self { counts: vec![0; kinds], sum: 0 }
    }

    fn take(&mut self, kind: usize) {
        self.counts[kind] += 1;
        self.sum = self.sum.wrapping_add(Self::weight(kind));
    }

    fn put_back(&mut self, kind: usize) {
        self.counts[kind] -= 1;
        self.sum = self.sum.wrapping_sub(Self::weight(kind));
    }

    /// Random, and the same for the same kind: splitmix64, twice.
    fn weight(kind: usize) -> u128 {
        let mix = |seed: u64| {
            let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^ (bits >> 31)
        };
        let number = kind as u64 * 2;
        u128::from(mix(number + 1)) << 64 | u128::from(mix(number + 2))
    }
}

/// What was chosen, and where to go on when it leads nowhere.
enum Choice {
    Certain(usize),
    Kind(usize),
}

/// Where the search looks for the next choice: first at what happened, then at what may have.
#[derive(Clone, Copy)]
enum Cursor {
    Node(usize),
    Kind { next: usize, until_nanos: u64 },
}

/// Looks for an order, until it is `late`.
pub(super) fn search(plan: &Plan<'_>, late: &dyn Fn() -> bool) -> Found {
    let mut timeline = Timeline::new(&plan.certain);
    let mut ranked = BitSet::default();
    let mut others = BitSet::default();
    let mut taken = Taken::new(plan.kinds.len());
    let mut tried = FxHashSet::default();
    let mut trail: Vec<(Choice, State, Cursor)> = Vec::new();
    let mut left = plan.certain.len();
    let mut state = State::EMPTY;
    let mut cursor = Cursor::Node(timeline.first());
    let mut steps = 0_u32;
    while left > 0 {
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(STEPS_PER_LOOK) && late() {
            return Found::NoTime;
        }
        let (choice, action, go_on) = match cursor {
            Cursor::Node(node) => match Timeline::called(node) {
                Some(position) => {
                    let Certain { action, needs, .. } = &plan.certain[position];
                    let go_on = Cursor::Node(timeline.next[node]);
                    let ready = match *needs {
                        Needs::Nothing => true,
                        Needs::One(write) => ranked.contains(write),
                        Needs::AllBefore(end) => ranked.contains_all_below(end),
                    };
                    if !ready {
                        cursor = go_on;
                        continue;
                    }
                    (Choice::Certain(position), action, go_on)
                }
                // Whatever was invoked later cannot come before what has returned here.
                None => {
                    let returned = node.checked_sub(1).and_then(|call| plan.certain[call / 2].step.returned_nanos);
                    cursor = Cursor::Kind { next: 0, until_nanos: returned.unwrap_or(u64::MAX) };
                    continue;
                }
            },
            Cursor::Kind { next, until_nanos } if next < plan.kinds.len() => {
                let go_on = Cursor::Kind { next: next + 1, until_nanos };
                match plan.kinds[next].get(taken.counts[next]) {
                    Some(step) if step.invoked_nanos <= until_nanos => (Choice::Kind(next), &step.action, go_on),
                    _ => {
                        cursor = go_on;
                        continue;
                    }
                }
            }
            Cursor::Kind { .. } => {
                let Some((choice, before, go_on)) = trail.pop() else { return Found::NoOrder };
                match choice {
                    Choice::Certain(position) => {
                        timeline.put_back(position);
                        let (set, number) = place(plan, &mut ranked, &mut others, position);
                        set.remove(number);
                        left += 1;
                    }
                    Choice::Kind(kind) => taken.put_back(kind),
                }
                (state, cursor) = (before, go_on);
                continue;
            }
        };
        cursor = go_on;
        let Some(after) = plan.apply(state, action) else { continue };
        match choice {
            Choice::Certain(position) => {
                let (set, number) = place(plan, &mut ranked, &mut others, position);
                set.insert(number);
            }
            Choice::Kind(kind) => taken.take(kind),
        }
        if tried.insert((ranked.clone(), others.clone(), taken.sum, after)) {
            if let Choice::Certain(position) = choice {
                timeline.lift(position);
                left -= 1;
            }
            trail.push((choice, state, go_on));
            state = after;
            cursor = Cursor::Node(timeline.first());
        } else {
            match choice {
                Choice::Certain(position) => {
                    let (set, number) = place(plan, &mut ranked, &mut others, position);
                    set.remove(number);
                }
                Choice::Kind(kind) => taken.put_back(kind),
            }
        }
    }
    Found::Order
}

/// The set that remembers a certain operation, and its number there.
fn place<'a>(
    plan: &Plan<'_>,
    ranked: &'a mut BitSet,
    others: &'a mut BitSet,
    position: usize,
) -> (&'a mut BitSet, usize) {
    match position.checked_sub(plan.ranked) {
        None => (ranked, position),
        Some(number) => (others, number),
    }
}
