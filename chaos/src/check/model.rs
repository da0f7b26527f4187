//! What one key of etcd's KV does, as far as workloads use it: a register with a revision.
//!
//! The model knows less than the store: the revision of a write without an answer is open
//! until somebody sees it. What is not known matches everything.

use crate::history::{Answer, KeyValue, Operation, Read, Request, Revision};

/// A value of one key; equal numbers stand for equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Value(pub(crate) u32);

/// A key between two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// No operation from here on happens before this revision of the store; every write
    /// happens after it.
    floor: Revision,
    held: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Held {
    /// Nothing is known.
    Anything,
    Absent,
    Present(Present),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Present {
    value: Value,
    modified: Option<Revision>,
    created: Option<Revision>,
    version: Option<i64>,
}

/// A key value that was shown to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) value: Value,
    pub(crate) modified: Revision,
    pub(crate) created: Revision,
    pub(crate) version: i64,
}

/// What one operation does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Shows the key at the revision `at` of the store, if that is known. A transaction that
    /// was refused reads too; it wanted another modification than `unlike`.
    Read { seen: Option<Seen>, at: Option<Revision>, unlike: Option<Revision> },
    /// Puts a value, or deletes for lack of one, at `at`. A transaction wants the key as it
    /// was modified at `expected`; 0 stands for a key that does not exist.
    Write { value: Option<Value>, at: Option<Revision>, expected: Option<Revision> },
}

impl State {
    /// The key in an empty store.
    pub(crate) const EMPTY: Self = Self { floor: Revision(0), held: Held::Absent };

    /// The key after changes nobody looks at, the last at `floor`.
    pub(crate) fn after_anything(self, floor: Revision) -> Self {
        Self { floor: self.floor.max(floor), held: Held::Anything }
    }

    /// Whether the key was written at a revision that is not known yet.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.held, Held::Present(Present { modified: None, .. }))
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// The state after `action`, or nothing when it could not have happened here.
    pub(crate) fn step(self, action: &Action) -> Option<Self> {
        match *action {
            Action::Read { seen, at, unlike } => self.read(seen, at, unlike),
            Action::Write { value, at, expected } => self.write(value, at, expected),
        }
    }

    fn read(self, seen: Option<Seen>, at: Option<Revision>, unlike: Option<Revision>) -> Option<Self> {
        if at.is_some_and(|at| at < self.floor) {
            return None;
        }
        let modified = seen.map_or(Revision(0), |seen| seen.modified);
        if unlike == Some(modified) || at.is_some_and(|at| at < modified) {
            return None;
        }
        let held = match (self.held, seen) {
            (Held::Anything | Held::Absent, None) => Held::Absent,
            (Held::Anything, Some(seen)) => Held::Present(seen.into()),
            (Held::Present(present), Some(seen)) if present.may_be(seen, self.floor) => Held::Present(seen.into()),
            _ => return None,
        };
        Some(Self { floor: self.floor.max(at.unwrap_or(modified)), held })
    }

    fn write(self, value: Option<Value>, at: Option<Revision>, expected: Option<Revision>) -> Option<Self> {
        if at.is_some_and(|at| at <= self.floor) {
            return None;
        }
        let held = match expected {
            Some(expected) => self.expecting(expected)?,
            None => self.held,
        };
        // Deleting nothing changes nothing: that is a read.
        if value.is_none() && held == Held::Absent {
            return None;
        }
        // Without a known revision it is still a revision of its own.
        let floor = at.unwrap_or(Revision(self.floor.0 + 1));
        let held = match (value, held) {
            (None, _) => Held::Absent,
            (Some(value), Held::Absent) => {
                Held::Present(Present { value, modified: at, created: at, version: Some(1) })
            }
            (Some(value), Held::Present(Present { created, version, .. })) => {
                Held::Present(Present { value, modified: at, created, version: version.map(|version| version + 1) })
            }
            (Some(value), Held::Anything) => {
                Held::Present(Present { value, modified: at, created: None, version: None })
            }
        };
        Some(Self { floor, held })
    }

    /// What is held, given that it was last modified at `expected`.
    fn expecting(self, expected: Revision) -> Option<Held> {
        match self.held {
            Held::Anything | Held::Absent if expected == Revision(0) => Some(Held::Absent),
            Held::Absent => None,
            Held::Anything => Some(Held::Anything),
            Held::Present(present) => present.is_modified_at(expected, self.floor).then_some(self.held),
        }
    }
}

impl Present {
    fn is_modified_at(&self, revision: Revision, floor: Revision) -> bool {
        // A revision that is open is the floor, which counts each such write once, or later.
        self.modified.map_or(revision >= floor, |modified| modified == revision)
    }

    fn may_be(&self, seen: Seen, floor: Revision) -> bool {
        self.value == seen.value
            && self.is_modified_at(seen.modified, floor)
            && self.created.is_none_or(|created| created == seen.created)
            && self.version.is_none_or(|version| version == seen.version)
    }
}

impl From<Seen> for Present {
    fn from(seen: Seen) -> Self {
        Self {
            value: seen.value,
            modified: Some(seen.modified),
            created: Some(seen.created),
            version: Some(seen.version),
        }
    }
}

/// What `operation` does, or would do, to each of its keys. Nothing when it failed, when it
/// reads a member's own state, or when it read and nobody knows what.
pub(crate) fn actions<'a>(
    operation: &'a Operation,
    mut number: impl FnMut(&'a str, &'a str) -> Value,
) -> Vec<(&'a str, Action)> {
    let reply = match operation.reply() {
        Some(reply) => reply,
        None if operation.failed() => return Vec::new(),
        None => {
            let expected = match operation.request {
                Request::CompareAndSwap { expected, .. } => Some(expected),
                _ => None,
            };
            let writes = operation.writes().into_iter();
            return writes
                .map(|(key, value)| (key, value.map(|value| number(key, value))))
                .map(|(key, value)| (key, Action::Write { value, at: None, expected }))
                .collect();
        }
    };
    let at = reply.revision;
    let mut read = |key: &'a str, kv: &'a Option<KeyValue>, unlike| {
        let seen = kv.as_ref().map(|kv| Seen {
            value: number(key, &kv.value),
            modified: kv.mod_revision,
            created: kv.create_revision,
            version: kv.version,
        });
        vec![(key, Action::Read { seen, at, unlike })]
    };
    match (&operation.request, &reply.answer) {
        (Request::Get { key, read: Read::Linearizable }, Answer::Found(found)) => read(key, found, None),
        (Request::CompareAndSwap { key, expected, .. }, Answer::Refused(found)) => read(key, found, Some(*expected)),
        (Request::CompareAndSwap { key, .. }, _) if operation.deletes_nothing() => read(key, &None, None),
        (Request::CompareAndSwap { key, expected, value }, _) => {
            let value = value.as_ref().map(|value| number(key, value));
            vec![(key, Action::Write { value, at, expected: Some(*expected) })]
        }
        (Request::Delete { key }, Answer::Deleted(false)) => read(key, &None, None),
        _ => operation
            .writes()
            .into_iter()
            .map(|(key, value)| (key, value.map(|value| number(key, value))))
            .map(|(key, value)| (key, Action::Write { value, at, expected: None }))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Value = Value(0);
    const B: Value = Value(1);

    fn put(value: Value, at: impl Into<Option<i64>>) -> Action {
        Action::Write { value: Some(value), at: at.into().map(Revision), expected: None }
    }

    fn swap(expected: i64, value: Value, at: impl Into<Option<i64>>) -> Action {
        Action::Write { value: Some(value), at: at.into().map(Revision), expected: Some(Revision(expected)) }
    }

    fn delete(at: impl Into<Option<i64>>) -> Action {
        Action::Write { value: None, at: at.into().map(Revision), expected: None }
    }

    fn seen(value: Value, created: i64, modified: i64, version: i64) -> Option<Seen> {
        Some(Seen { value, created: Revision(created), modified: Revision(modified), version })
    }

    fn get(seen: Option<Seen>, at: impl Into<Option<i64>>) -> Action {
        Action::Read { seen, at: at.into().map(Revision), unlike: None }
    }

    fn refused(unlike: i64, seen: Option<Seen>, at: i64) -> Action {
        Action::Read { seen, at: Some(Revision(at)), unlike: Some(Revision(unlike)) }
    }

    fn check(what: &str, from: State, actions: &[Action], expected: bool) {
        let end = actions.iter().try_fold(from, |state, action| state.step(action));
        assert_eq!(end.is_some(), expected, "{what}");
    }

    #[test]
    fn a_key_does_what_etcd_says() {
        let empty = State::EMPTY;
        check("nothing is there", empty, &[get(None, 1)], true);
        check("something is there", empty, &[get(seen(A, 2, 2, 1), 2)], false);
        check("a put is seen", empty, &[put(A, 2), get(seen(A, 2, 2, 1), 2)], true);
        check("another value is seen", empty, &[put(A, 2), get(seen(B, 2, 2, 1), 2)], false);
        check("a put is not seen", empty, &[put(A, 2), get(None, 2)], false);
        check("a put over a put", empty, &[put(A, 2), put(B, 4), get(seen(B, 2, 4, 2), 5)], true);
        check("the version stays", empty, &[put(A, 2), put(B, 4), get(seen(B, 2, 4, 1), 5)], false);
        check("it was created anew", empty, &[put(A, 2), put(B, 4), get(seen(B, 4, 4, 2), 5)], false);
        check("another revision", empty, &[put(A, 2), get(seen(A, 2, 3, 1), 3)], false);
        check("writes go back in time", empty, &[put(A, 3), put(B, 2)], false);
        check("two writes at one revision", empty, &[put(A, 2), put(B, 2)], false);
        check("a read goes back in time", empty, &[put(A, 3), get(None, 2)], false);
        check("a write before what was read", empty, &[get(None, 5), put(A, 4)], false);
        check("a value from the future", empty, &[put(A, 3), get(seen(A, 3, 3, 1), 2)], false);
        check("a deletion", empty, &[put(A, 2), delete(3), get(None, 3), put(B, 4), get(seen(B, 4, 4, 1), 4)], true);
        check("a deletion of nothing", empty, &[delete(2)], false);
        check("a deletion that is not seen", empty, &[put(A, 2), delete(3), get(seen(A, 2, 2, 1), 3)], false);
    }

    #[test]
    fn transactions_compare_the_revision() {
        let empty = State::EMPTY;
        check("create", empty, &[swap(0, A, 2), get(seen(A, 2, 2, 1), 2)], true);
        check("create twice", empty, &[swap(0, A, 2), swap(0, B, 3)], false);
        check("update", empty, &[put(A, 2), swap(2, B, 3), get(seen(B, 2, 3, 2), 3)], true);
        check("update of another", empty, &[put(A, 2), swap(3, B, 4)], false);
        check("update of nothing", empty, &[swap(2, B, 3)], false);
        check("rightly refused", empty, &[put(A, 2), refused(0, seen(A, 2, 2, 1), 2)], true);
        check("wrongly refused", empty, &[put(A, 2), refused(2, seen(A, 2, 2, 1), 2)], false);
        check("wrongly refused to create", empty, &[refused(0, None, 1)], false);
    }

    #[test]
    fn what_is_not_known_matches() {
        let empty = State::EMPTY;
        check("its revision shows later", empty, &[put(A, 2), put(B, None), get(seen(B, 2, 7, 2), 7)], true);
        check("it was before its floor", empty, &[put(A, 2), put(B, None), get(seen(B, 2, 2, 2), 7)], false);
        check("it is one version", empty, &[put(A, 2), put(B, None), put(A, 4), get(seen(A, 2, 4, 3), 4)], true);
        check("it needs a revision", empty, &[put(A, 2), put(B, None), put(A, 3)], false);
        check("its revision is expected", empty, &[put(A, None), swap(4, B, 5), get(seen(B, 4, 5, 2), 5)], true);
        let any = empty.after_anything(Revision(5));
        check("anything is seen", any, &[get(seen(A, 2, 4, 9), 5), put(B, 6), get(seen(B, 2, 6, 10), 6)], true);
        check("anything twice", any, &[get(seen(A, 2, 4, 9), 5), get(seen(B, 2, 4, 9), 5)], false);
        check("nothing is seen", any, &[get(None, 5)], true);
        check("too early", any, &[get(None, 4)], false);
    }
}
