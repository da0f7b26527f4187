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

use super::model::{self, Action, Value};
use super::search::{Found, Plan, Step, search};
use crate::history::{History, Operation, Read, Request, Revision};

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
