//! K1 and K3: is there an order of all operations in which every answer is right, and which
//! keeps the order of those that did not overlap?
//!
//! The search of Wing and Gong with Lowe's memory of what was tried, one key at a time, as
//! in porcupine: an order exists for the store when one exists for each key. Answers carry
//! revisions, which nearly fix the order of what is known; what is searched for is where
//! writes with an unknown outcome went, if anywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{self, Action, State, Value};
use crate::history::{History, Operation, Read, Request, Revision};

/// How many steps pass between two looks at the clock.
const STEPS_PER_LOOK: u32 = 1024;

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violated(Violation),
    /// The time did not suffice for these keys; nothing is wrong with the others.
    Unknown {
        keys: Vec<String>,
    },
}

/// Operations of one key that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub key: String,
    /// As few as were found to be enough, by invocation.
    pub operations: Vec<Operation>,
    /// How many writes of unknown outcome were tried beside them, in vain.
    pub tried: usize,
}

/// An answer that is older than what somebody had seen before the question.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Stale {
    #[error("K3 stale read: revision {known} was known before it was asked for\n  {earlier}\n  {read}")]
    Read { known: Revision, earlier: Operation, read: Operation },
    #[error("K1 write back in time: revision {known} was known before it was asked for\n  {earlier}\n  {write}")]
    Write { known: Revision, earlier: Operation, write: Operation },
}

/// Searches for at most about `limit`, shared by all keys.
pub fn check(history: &History, limit: Duration) -> Verdict {
    let began = Instant::now();
    check_within(history, limit, &|| began.elapsed())
}

/// Whether every answer is at least as new as all that was known before its question,
/// whatever the keys. Serializable reads need not be.
///
/// # Errors
/// The first answer that is older.
pub fn revisions_follow_time(history: &History) -> Result<(), Stale> {
    let mut ends: Vec<(u64, Revision, &Operation)> = history
        .operations
        .iter()
        .filter_map(|operation| Some((operation.acknowledged_nanos()?, operation.reply()?.revision?, operation)))
        .collect();
    ends.sort_unstable_by_key(|(nanos, ..)| *nanos);
    let mut ended = ends.into_iter().peekable();
    let mut newest: Option<(Revision, &Operation)> = None;
    for operation in &history.operations {
        while let Some((_, revision, earlier)) = ended.next_if(|(nanos, ..)| *nanos < operation.invoked_nanos) {
            if newest.is_none_or(|(newest, _)| newest < revision) {
                newest = Some((revision, earlier));
            }
        }
        let (Some((known, earlier)), Some(revision)) = (newest, operation.reply().and_then(|reply| reply.revision))
        else {
            continue;
        };
        let (earlier, asked) = (earlier.clone(), operation.clone());
        if operation.written_at().is_some_and(|written| written <= known) {
            return Err(Stale::Write { known, earlier, write: asked });
        }
        let linearizable = match operation.request {
            Request::Get { read, .. } => read == Read::Linearizable,
            _ => !operation.writes().is_empty(),
        };
        if linearizable && revision < known {
            return Err(Stale::Read { known, earlier, read: asked });
        }
    }
    Ok(())
}

fn check_within(history: &History, limit: Duration, elapsed: &dyn Fn() -> Duration) -> Verdict {
    let keys = by_key(history);
    let mut late = Vec::new();
    let mut left = keys.len();
    for (key, steps) in keys {
        // What earlier keys did not need is shared by those that remain.
        let until = elapsed() + limit.saturating_sub(elapsed()) / u32::try_from(left).unwrap_or(u32::MAX).max(1);
        left -= 1;
        match search(&Plan::new(&steps, &[]), &|| elapsed() > until) {
            Found::Order => {}
            Found::NoOrder => return Verdict::Violated(explain(history, key, steps, &|| elapsed() > limit)),
            Found::NoTime => late.push(key.to_owned()),
        }
    }
    if late.is_empty() { Verdict::Linearizable } else { Verdict::Unknown { keys: late } }
}

/// One operation, as far as one key is concerned.
#[derive(Clone, Debug)]
struct Step {
    /// Its place in the history; the end of a lease that deletes the key has none.
    operation: Option<usize>,
    action: Action,
    invoked_nanos: u64,
    /// None for those that may happen at any time, or never.
    returned_nanos: Option<u64>,
}

/// The operations on each key, by invocation.
fn by_key(history: &History) -> BTreeMap<&str, Vec<Step>> {
    let mut keys: BTreeMap<&str, Vec<Step>> = BTreeMap::new();
    let mut numbers: FxHashMap<(&str, &str), u32> = FxHashMap::default();
    for (position, operation) in history.operations.iter().enumerate() {
        let actions = model::actions(operation, |key, value| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            Value(*numbers.entry((key, value)).or_insert(next))
        });
        let (invoked_nanos, returned_nanos) = (operation.invoked_nanos, operation.acknowledged_nanos());
        for (key, action) in actions {
            let steps = keys.entry(key).or_default();
            steps.push(Step { operation: Some(position), action, invoked_nanos, returned_nanos });
            if let Request::Put { lease: 1.., .. } = operation.request {
                let action = Action::Write { value: None, at: None, expected: None };
                steps.push(Step { operation: None, action, invoked_nanos, returned_nanos: None });
            }
        }
    }
    keys
}

/// What there is to order.
struct Plan<'a> {
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
    fn new(steps: &'a [Step], blanks: &'a [Revision]) -> Self {
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

enum Found {
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

fn search(plan: &Plan<'_>, late: &dyn Fn() -> bool) -> Found {
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

/// Leaves out what is not needed for there to be no order. A write that is left out becomes
/// a revision at which the key turns into anything, so that what remains is still wrong for
/// a reason that the whole history has. Stops early when it is late.
fn explain(history: &History, key: &str, mut steps: Vec<Step>, late: &dyn Fn() -> bool) -> Violation {
    let mut blanks: Vec<Revision> = Vec::new();
    let mut chunk = steps.len().div_ceil(2);
    while chunk > 0 && !late() {
        let mut end = steps.len();
        while end > 0 && !late() {
            let start = end.saturating_sub(chunk);
            let (fewer, more_blanks) = without(&steps, start..end, &blanks);
            if fewer.len() < steps.len() && matches!(search(&Plan::new(&fewer, &more_blanks), late), Found::NoOrder) {
                (steps, blanks) = (fewer, more_blanks);
            }
            end = start;
        }
        chunk /= 2;
    }
    let shown = shown_values(&steps);
    let (told, tried): (Vec<&Step>, Vec<&Step>) =
        steps.iter().partition(|step| step.returned_nanos.is_some() || writes_one_of(step, &shown));
    let operations = told.iter().filter_map(|step| Some(history.operations[step.operation?].clone())).collect();
    Violation { key: key.to_owned(), operations, tried: tried.len() }
}

/// `steps` without those of a range that can be left out, and the blanks that they leave.
fn without(steps: &[Step], range: std::ops::Range<usize>, blanks: &[Revision]) -> (Vec<Step>, Vec<Revision>) {
    let mut blanks = blanks.to_vec();
    let mut keeps = |position: usize, step: &Step| {
        let leave_out = range.contains(&position) && step.returned_nanos.is_some();
        match step.action {
            _ if !leave_out => true,
            Action::Read { .. } => false,
            Action::Write { at: Some(at), .. } => {
                blanks.push(at);
                false
            }
            Action::Write { at: None, .. } => true,
        }
    };
    let kept = steps.iter().enumerate().filter(|(position, step)| keeps(*position, step));
    let kept = kept.map(|(_, step)| step.clone()).collect();
    blanks.sort_unstable();
    (kept, blanks)
}

fn shown_values(steps: &[Step]) -> FxHashSet<Value> {
    let seen = steps.iter().filter_map(|step| match step.action {
        Action::Read { seen, .. } => seen,
        Action::Write { .. } => None,
    });
    seen.map(|seen| seen.value).collect()
}

fn writes_one_of(step: &Step, values: &FxHashSet<Value>) -> bool {
    matches!(step.action, Action::Write { value: Some(value), .. } if values.contains(&value))
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "K1 not linearizable: no order of these operations on {} explains every answer", self.key)?;
        if self.tried > 0 {
            write!(f, ", nor together with {} others whose outcome is unknown", self.tried)?;
        }
        self.operations.iter().try_for_each(|operation| write!(f, "\n  {operation}"))
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use super::super::simulator::{self, Bug};
    use super::*;
    use crate::history::{Answer, Client, KeyValue, Member, OperationId, Outcome, Reply};

    const LIMIT: Duration = Duration::from_secs(20);

    /// Seeds to try; one that fails is named, and `QUORATE_SEED` tries it alone.
    fn seeds(number: u64) -> std::ops::Range<u64> {
        match std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok()) {
            Some(seed) => seed..seed + 1,
            None => 0..number,
        }
    }

    #[test]
    fn a_correct_store_is_never_accused() {
        for seed in seeds(1_000) {
            let (history, _) = simulator::history(seed, None);
            let again = format!("QUORATE_SEED={seed} cargo test -p quorate-chaos a_correct_store_is_never_accused");
            if let Err(stale) = revisions_follow_time(&history) {
                panic!("{stale}\n{again}");
            }
            match check(&history, LIMIT) {
                Verdict::Linearizable => {}
                Verdict::Violated(violation) => panic!("{violation}\n{again}"),
                Verdict::Unknown { keys } => panic!("no time for {keys:?}\n{again}"),
            }
        }
    }

    #[test]
    fn a_long_history_takes_less_than_a_minute() {
        let (history, _) = simulator::long_history(1, 100_000, None);
        let began = Instant::now();
        assert_eq!(check(&history, Duration::from_secs(60)), Verdict::Linearizable);
        assert!(revisions_follow_time(&history).is_ok());
        println!("{} operations in {:.1} s", history.operations.len(), began.elapsed().as_secs_f64());
    }

    /// How many of the histories with this bug are not explained, in percent of those in
    /// which it was let loose.
    fn reported(bug: Bug) -> usize {
        let (mut planted, mut found) = (0, 0);
        for seed in 0..200 {
            let (history, count) = simulator::history(seed, Some(bug));
            if count == 0 {
                continue;
            }
            planted += 1;
            match check(&history, LIMIT) {
                Verdict::Violated(violation) => {
                    assert!(!violation.operations.is_empty(), "seed {seed}: {violation}");
                    assert!(violation.operations.len() < history.operations.len());
                    found += 1;
                }
                Verdict::Linearizable => found += usize::from(revisions_follow_time(&history).is_err()),
                Verdict::Unknown { keys } => panic!("seed {seed}: no time for {keys:?}"),
            }
        }
        assert!(planted >= 50, "{bug:?} was hardly ever let loose: {planted}");
        found * 100 / planted
    }

    /// Not every bug that is let loose can be seen: nobody may read what it did.
    #[test]
    fn planted_bugs_are_reported() {
        let check = |bug, percent| {
            let reported = reported(bug);
            assert!(reported >= percent, "{bug:?}: {reported} of 100");
        };
        check(Bug::StaleRead, 90);
        check(Bug::LostWrite, 90);
        check(Bug::BlindSwap, 90);
        check(Bug::Twice, 20);
        check(Bug::FailedWrites, 40);
    }

    fn operation(id: u64, request: Request, from: u64, outcome: Outcome) -> Operation {
        Operation {
            id: OperationId(id),
            client: Client(id as u32),
            member: Member(0),
            request,
            invoked_nanos: from,
            outcome,
        }
    }

    fn ok(at_nanos: u64, revision: i64, answer: Answer) -> Outcome {
        Outcome::Ok { at_nanos, reply: Reply { revision: Some(Revision(revision)), term: None, answer } }
    }

    fn put(id: u64, from: u64, outcome: Outcome) -> Operation {
        operation(id, Request::Put { key: "k".into(), value: format!("v{id}"), lease: 0 }, from, outcome)
    }

    fn get(id: u64, from: u64, until: u64, at: i64, seen: Option<(u64, i64)>) -> Operation {
        let found = seen.map(|(writer, modified)| KeyValue {
            key: "k".into(),
            value: format!("v{writer}"),
            create_revision: Revision(modified),
            mod_revision: Revision(modified),
            version: 1,
            lease: 0,
        });
        let request = Request::Get { key: "k".into(), read: Read::Linearizable };
        operation(id, request, from, ok(until, at, Answer::Found(found)))
    }

    fn verdict(operations: Vec<Operation>) -> Verdict {
        check(&History { operations, ..History::default() }, LIMIT)
    }

    #[test]
    fn a_violation_is_told_by_what_is_needed_for_it() {
        let unknown = || Outcome::Unknown { error: None };
        let mut operations = vec![put(0, 0, ok(10, 2, Answer::Done)), get(1, 20, 30, 2, None)];
        // Others that have nothing to do with it.
        for id in 2..40 {
            let at = id * 100;
            let request = Request::Put { key: "other".into(), value: format!("v{id}"), lease: 0 };
            operations.push(operation(id, request, at, ok(at + 10, id as i64 + 10, Answer::Done)));
        }
        let Verdict::Violated(violation) = verdict(operations.clone()) else { panic!("the put was not seen") };
        let told: Vec<u64> = violation.operations.iter().map(|operation| operation.id.0).collect();
        assert_eq!((violation.key.as_str(), told), ("k", vec![0, 1]));
        assert!(violation.to_string().starts_with("K1 not linearizable"));
        // A deletion whose outcome nobody knows explains it.
        operations.insert(1, operation(99, Request::Delete { key: "k".into() }, 12, unknown()));
        operations[2] = get(1, 20, 30, 3, None);
        assert_eq!(verdict(operations), Verdict::Linearizable);
    }

    #[test]
    fn what_is_unknown_happens_after_it_was_asked_or_never() {
        let unknown = |from| put(0, from, Outcome::Unknown { error: None });
        let check = |operations: Vec<Operation>, expected| {
            assert_eq!(verdict(operations.clone()) == Verdict::Linearizable, expected, "{operations:?}");
        };
        check(vec![unknown(0), get(1, 50, 60, 2, Some((0, 2)))], true);
        check(vec![unknown(0), get(1, 50, 60, 1, None), get(2, 70, 80, 2, Some((0, 2)))], true);
        check(vec![unknown(0), get(1, 50, 60, 1, None)], true);
        check(vec![get(1, 50, 60, 2, Some((0, 2))), unknown(70)], false);
        check(vec![unknown(0), get(1, 50, 60, 2, Some((0, 2))), get(2, 70, 80, 2, None)], false);
        let failed = put(0, 0, Outcome::Fail { at_nanos: 10, error: "no".into() });
        check(vec![failed, get(1, 50, 60, 2, Some((0, 2)))], false);
    }

    #[test]
    fn many_unknown_writes_of_a_key_take_no_longer_than_a_moment() {
        let mut operations: Vec<Operation> = (0..60).map(|id| put(id, id, Outcome::Unknown { error: None })).collect();
        operations.push(get(100, 1_000, 1_010, 40, Some((7, 40))));
        operations[60].outcome = match &operations[60].outcome {
            Outcome::Ok { at_nanos, reply } => {
                let mut reply = reply.clone();
                if let Answer::Found(Some(kv)) = &mut reply.answer {
                    (kv.create_revision, kv.version) = (Revision(2), 30);
                }
                Outcome::Ok { at_nanos: *at_nanos, reply }
            }
            other => other.clone(),
        };
        assert_eq!(verdict(operations), Verdict::Linearizable);
    }
}
