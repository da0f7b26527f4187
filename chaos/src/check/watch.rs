//! W1 to W10: what each watch promises, one promise at a time.

use rustc_hash::FxHashSet;

use super::log::{Change, Log, covered, covered_by_any};
use super::{Broken, Findings};
use crate::history::{Client, EventKind, History, Request, Response, Revision, Watch, WatchEvent};

/// Looks at every watch by itself, and at what none of them was told.
pub fn check(history: &History, log: &Log<'_>) -> Vec<Broken> {
    let mut findings = Findings::default();
    let mut watchers: FxHashSet<Client> = FxHashSet::default();
    for watch in &history.watches {
        // Below a start of its own, or back in time after another member.
        let early = if watchers.insert(watch.watcher) { "W8" } else { "W10" };
        Told::default().check(watch, early, &mut findings);
        reliable(watch, log, &mut findings);
        if watch.request.prev_kv {
            previous(history, watch, log, &mut findings);
        }
    }
    for (from, to) in covered_by_any(history) {
        // The store begins at revision 1, which nothing changes.
        let missing = (from.0.max(2)..=to.0).map(Revision).find(|revision| !log.knows(*revision));
        if let Some(missing) = missing {
            findings.add("W5", || format!("watches of all keys passed revision {missing} and none was told of it"));
        }
    }
    findings.0
}

/// What one watch was told so far.
#[derive(Default)]
struct Told<'a> {
    last: Revision,
    /// Keys of the last revision.
    keys: FxHashSet<&'a str>,
    progress: Revision,
    /// The last response with events ended within its last revision.
    open: bool,
}

impl<'a> Told<'a> {
    fn check(mut self, watch: &'a Watch, early: &'static str, findings: &mut Findings) {
        for (_, response) in &watch.responses {
            if response.is_progress() {
                self.progress(watch, response, early, findings);
            }
            if response.canceled && response.compact_revision > Revision(0) {
                let next = watch.request.start_revision.max(Revision(self.last.0 + 1));
                if watch.request.start_revision > Revision(0) && next >= response.compact_revision {
                    let compacted = response.compact_revision;
                    findings.add("W6", || {
                        format!("{watch} goes on at {next} and was ended because {compacted} is compacted")
                    });
                }
            }
            for (place, event) in response.events.iter().enumerate() {
                self.event(watch, event, place == 0, early, findings);
            }
            if let Some(last) = response.events.last() {
                if response.revision < last.kv.mod_revision {
                    let header = response.revision;
                    findings.add("K5", || format!("{watch} was told {last} under a header of revision {header}"));
                }
                self.open = response.fragment;
            }
        }
    }

    fn progress(&mut self, watch: &Watch, response: &Response, early: &'static str, findings: &mut Findings) {
        let (revision, last, before) = (response.revision, self.last, self.progress);
        if revision < watch.request.start_revision {
            findings.add(early, || format!("{watch} was told of progress to {revision}"));
        }
        if revision < last {
            findings.add("W7", || format!("{watch} was told of progress to {revision} after revision {last}"));
        }
        if revision < before {
            findings.add("W7", || format!("{watch} was told of progress to {before} and then to {revision}"));
        }
        self.progress = before.max(revision);
    }

    fn event(
        &mut self,
        watch: &Watch,
        event: &'a WatchEvent,
        begins: bool,
        early: &'static str,
        findings: &mut Findings,
    ) {
        let (revision, last) = (event.kv.mod_revision, self.last);
        if !watch.request.matches(&event.kv.key, event.kind) {
            findings.add("W1", || format!("{watch} does not ask for {event}"));
        }
        if revision < watch.request.start_revision {
            findings.add(early, || format!("{watch} was told {event}"));
        }
        if revision <= self.progress {
            let progress = self.progress;
            findings.add("W7", || format!("{watch} was told of progress to {progress} and then {event}"));
        }
        if revision < last {
            findings.add("W2", || format!("{watch} was told of revision {last} and then {event}"));
            return;
        }
        if revision > last {
            self.last = revision;
            self.keys.clear();
        } else if begins && !self.open {
            findings.add("W4", || format!("{watch} was told revision {revision} in two messages; the second: {event}"));
        }
        if !self.keys.insert(&event.kv.key) {
            findings.add("W3", || format!("{watch} was told twice: {event}"));
        }
    }
}

/// Between its first and its last revision a watch is told all that happened.
fn reliable(watch: &Watch, log: &Log<'_>, findings: &mut Findings) {
    let Some((from, to)) = covered(watch) else { return };
    let events = watch.responses.iter().flat_map(|(_, response)| &response.events);
    let told: FxHashSet<(Revision, &str)> =
        events.map(|event| (event.kv.mod_revision, event.kv.key.as_str())).collect();
    let first = told.iter().map(|(revision, _)| *revision).min();
    for (revision, changes) in log.range(from, to) {
        let kind = |value: Option<&str>| value.map_or(EventKind::Delete, |_| EventKind::Put);
        let wanted = changes.iter().filter(|change| watch.request.matches(change.key, kind(change.value)));
        let (seen, missed): (Vec<&Change<'_>>, Vec<&Change<'_>>) =
            wanted.partition(|change| told.contains(&(revision, change.key)));
        let Some(missed) = missed.first() else { continue };
        let promise = match first {
            _ if !seen.is_empty() => "W4",
            Some(first) if revision > first => "W5",
            _ => "W6",
        };
        findings.add(promise, || {
            let (key, value) = (missed.key, missed.value.unwrap_or("nothing"));
            let known = match (missed.told, missed.writer) {
                (Some((_, other, _)), _) => other.to_string(),
                (None, Some(writer)) => writer.to_string(),
                (None, None) => "nobody".to_owned(),
            };
            format!("{watch} was told up to {to}, but not of {key}={value} at {revision}, known from\n  {known}")
        });
    }
}

/// W9: what was there before is shown, unless it is compacted.
fn previous(history: &History, watch: &Watch, log: &Log<'_>, findings: &mut Findings) {
    for (at_nanos, response) in &watch.responses {
        for event in &response.events {
            let Some(before) = log.before(&event.kv.key, event.kv.mod_revision) else { continue };
            let right = match (before, &event.prev) {
                (Some(before), Some(shown)) => before.is(shown),
                (None, None) => true,
                (None, Some(_)) => false,
                (Some(_), None) => compacted(history, event.kv.mod_revision, *at_nanos),
            };
            if !right {
                findings.add("W9", || format!("{watch} was told {event}, where before there was {before:?}"));
            }
        }
    }
}

/// Whether what was there before `revision` may have been compacted by then.
fn compacted(history: &History, revision: Revision, at_nanos: u64) -> bool {
    history.operations.iter().any(|operation| {
        let Request::Compact { revision: upto } = operation.request else { return false };
        upto >= revision && operation.invoked_nanos < at_nanos && !operation.failed()
    })
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{self, Bug};

    #[test]
    fn each_guarantee_is_watched_over() {
        for (bug, promise) in [
            (Bug::Unasked, "W1"),
            (Bug::Swapped, "W2"),
            (Bug::Twice, "W3"),
            (Bug::Torn, "W4"),
            (Bug::Skipped, "W5"),
            (Bug::SkippedAtStart, "W6"),
            (Bug::EarlyProgress, "W7"),
            (Bug::BelowStart, "W8"),
            (Bug::WrongPrevious, "W9"),
            (Bug::BackInTime, "W10"),
        ] {
            scenario::catches(bug, promise);
        }
    }
}
