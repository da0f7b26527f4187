//! What the store did, revision by revision, put together from what watches told and from
//! what was acknowledged: the replayed history that every other answer is held against.
//!
//! Expects a store that was empty at first and that nobody else writes to.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{Broken, Findings};
use crate::history::{EventKind, History, KeyValue, Keys, Operation, Request, Revision, Watch, WatchEvent};

/// The revision of a store without any change.
const EMPTY: Revision = Revision(1);

/// A key between two changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held<'a> {
    pub(super) value: &'a str,
    pub(super) created: Revision,
    pub(super) modified: Revision,
    pub(super) version: i64,
    pub(super) lease: i64,
}

impl Held<'_> {
    pub(super) fn is(&self, kv: &KeyValue) -> bool {
        self.value == kv.value
            && self.created == kv.create_revision
            && self.modified == kv.mod_revision
            && self.version == kv.version
            && self.lease == kv.lease
    }
}

/// One change of one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    /// None for a deletion.
    pub(super) value: Option<&'a str>,
    pub(super) lease: i64,
    /// The first watch that told it, with when and what.
    pub(super) told: Option<(u64, &'a Watch, &'a WatchEvent)>,
    /// Whose answer told its revision.
    pub(super) writer: Option<&'a Operation>,
}

/// See the module.
pub struct Log<'a> {
    changes: BTreeMap<Revision, Vec<Change<'a>>>,
    /// What each key held from a revision on.
    keys: FxHashMap<&'a str, Vec<(Revision, Option<Held<'a>>)>>,
    /// Up to here nothing is missing, so that what keys held is known.
    replayed: Revision,
}

impl<'a> Log<'a> {
    /// The log, and where its sources contradict each other.
    pub fn of(history: &'a History) -> (Self, Vec<Broken>) {
        let mut findings = Findings::default();
        let mut log = Self { changes: BTreeMap::new(), keys: FxHashMap::default(), replayed: EMPTY };
        for watch in &history.watches {
            for (at_nanos, response) in &watch.responses {
                for event in &response.events {
                    log.told(*at_nanos, watch, event, &mut findings);
                }
            }
        }
        for operation in &history.operations {
            if let Some(revision) = operation.written_at() {
                log.acknowledged(revision, operation, &mut findings);
            }
        }
        log.replay(&mut findings);
        (log, findings.0)
    }

    fn told(&mut self, at_nanos: u64, watch: &'a Watch, event: &'a WatchEvent, findings: &mut Findings) {
        let changes = self.changes.entry(event.kv.mod_revision).or_default();
        let told = Some((at_nanos, watch, event));
        let Some(known) = changes.iter_mut().find(|change| change.key == event.kv.key) else {
            let value = (event.kind == EventKind::Put).then_some(event.kv.value.as_str());
            changes.push(Change { key: &event.kv.key, value, lease: event.kv.lease, told, writer: None });
            return;
        };
        let Some((first_nanos, other, first)) = known.told else { return };
        if (first.kind, &first.kv) != (event.kind, &event.kv) {
            findings.add("C9", || format!("{other} was told {first}, and {watch} was told {event}"));
        }
        if at_nanos < first_nanos {
            known.told = told;
        }
    }

    fn acknowledged(&mut self, revision: Revision, operation: &'a Operation, findings: &mut Findings) {
        let changes = self.changes.entry(revision).or_default();
        if let Some(other) = changes.iter().find_map(|change| change.writer) {
            findings.add("K6", || format!("two writes have one revision\n  {other}\n  {operation}"));
            return;
        }
        let lease = match operation.request {
            Request::Put { lease, .. } => lease,
            _ => 0,
        };
        for (key, value) in operation.writes() {
            match changes.iter_mut().find(|change| change.key == key) {
                Some(change) => change.writer = Some(operation),
                None => changes.push(Change { key, value, lease, told: None, writer: Some(operation) }),
            }
        }
    }

    /// Carries out every change up to the first revision that nobody knows.
    fn replay(&mut self, findings: &mut Findings) {
        for (revision, changes) in &self.changes {
            if revision.0 != self.replayed.0 + 1 {
                // What is older than the empty store is nobody's change.
                if *revision <= self.replayed {
                    continue;
                }
                break;
            }
            self.replayed = *revision;
            for change in changes {
                let held = self.keys.entry(change.key).or_default();
                let before = held.last().and_then(|(_, held)| *held);
                let after = change.value.map(|value| Held {
                    value,
                    created: before.map_or(*revision, |before| before.created),
                    modified: *revision,
                    version: before.map_or(0, |before| before.version) + 1,
                    lease: change.lease,
                });
                if before.is_none() && after.is_none() {
                    findings.add("K6", || format!("revision {revision} deletes {}, which is not there", change.key));
                }
                if let (Some(after), Some((_, watch, event))) = (after, change.told)
                    && !after.is(&event.kv)
                {
                    findings.add("K6", || {
                        let Held { created, version, .. } = after;
                        format!("{watch} was told {event}; its create is {created} and its version {version}")
                    });
                }
                held.push((*revision, after));
            }
        }
    }

    /// What `key` held at `revision`; the outer none when that is not known.
    pub(super) fn at(&self, key: &str, revision: Revision) -> Option<Option<Held<'a>>> {
        if revision > self.replayed {
            return None;
        }
        let Some(held) = self.keys.get(key) else { return Some(None) };
        let next = held.partition_point(|(from, _)| *from <= revision);
        Some(next.checked_sub(1).and_then(|last| held[last].1))
    }

    /// What was there just before `revision`.
    pub(super) fn before(&self, key: &str, revision: Revision) -> Option<Option<Held<'a>>> {
        self.at(key, Revision(revision.0 - 1))
    }

    /// Every change within revisions, in order.
    pub(super) fn range(&self, from: Revision, to: Revision) -> impl Iterator<Item = (Revision, &[Change<'a>])> {
        // An empty range is no range of a map.
        let to = to.max(from);
        self.changes.range(from..=to).map(|(revision, changes)| (*revision, changes.as_slice()))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Revision, &[Change<'a>])> {
        self.changes.iter().map(|(revision, changes)| (*revision, changes.as_slice()))
    }

    pub(super) fn change(&self, revision: Revision, key: &str) -> Option<&Change<'a>> {
        self.changes.get(&revision)?.iter().find(|change| change.key == key)
    }

    pub(super) fn knows(&self, revision: Revision) -> bool {
        self.changes.contains_key(&revision)
    }

    /// The last revision up to which nothing is missing.
    pub(super) fn replayed(&self) -> Revision {
        self.replayed
    }

    /// What keys hold at the last revision up to which nothing is missing.
    pub(super) fn end(&self) -> impl Iterator<Item = (&'a str, Held<'a>)> {
        self.keys.iter().filter_map(|(key, held)| Some((*key, held.last()?.1?)))
    }
}

/// Revisions of which a watch said everything that it was asked for, if any.
pub(super) fn covered(watch: &Watch) -> Option<(Revision, Revision)> {
    let start = watch.request.start_revision;
    let from = match start {
        Revision(0) => {
            let created = watch.responses.iter().find(|(_, response)| response.created)?;
            Revision(created.1.revision.0 + 1)
        }
        start => start,
    };
    let mut to = None;
    for (_, response) in &watch.responses {
        let last = response.events.iter().map(|event| event.kv.mod_revision).max();
        // Of a revision that comes in pieces, the last piece may be missing.
        let last = last.map(|last| if response.fragment { Revision(last.0 - 1) } else { last });
        to = to.max(last).max(response.is_progress().then_some(response.revision));
    }
    to.filter(|to| *to >= from).map(|to| (from, to))
}

/// Whether a watch tells every change there is.
pub(super) fn tells_all(watch: &Watch) -> bool {
    watch.request.keys == Keys::All && !watch.request.no_put && !watch.request.no_delete
}

/// Revisions of which at least one watch told everything: spans in order, apart.
pub(super) fn covered_by_any(history: &History) -> Vec<(Revision, Revision)> {
    let mut spans: Vec<_> = history.watches.iter().filter(|watch| tells_all(watch)).filter_map(covered).collect();
    spans.sort_unstable();
    let mut merged: Vec<(Revision, Revision)> = Vec::new();
    for (from, to) in spans {
        match merged.last_mut() {
            Some(last) if from.0 <= last.1.0 + 1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}
