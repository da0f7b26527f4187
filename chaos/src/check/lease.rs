//! L1 to L6: what leases promise to those that hold them, and to those that wait for their end.

use std::collections::BTreeMap;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::log::{Change, Log, tells_all};
use super::{Broken, Findings};
use crate::history::{Answer, History, Operation, Outcome, Read, Request, Revision, Role, Term};

/// How long after its end a lease may still be there, on a machine that does other things too.
const GRACE: Duration = Duration::from_secs(5);

/// What clients know of one lease.
#[derive(Default)]
struct Life<'a> {
    /// Grants and renewals that succeeded.
    renewals: Vec<Renewal<'a>>,
    /// A grant or a renewal may have happened at any time.
    unclear: bool,
    /// Asked for, whatever came of it.
    revocations: Vec<&'a Operation>,
    /// Deletions of its keys that no client explains, by when they were known.
    ends: Vec<(u64, Revision)>,
}

struct Renewal<'a> {
    operation: &'a Operation,
    invoked_nanos: u64,
    acknowledged_nanos: u64,
    ttl_nanos: u64,
}

impl Renewal<'_> {
    /// Until when the lease holds at least.
    fn holds_until(&self) -> u64 {
        self.invoked_nanos + self.ttl_nanos
    }
}

/// Looks at the life of every lease.
pub fn check(history: &History, log: &Log<'_>) -> Vec<Broken> {
    let mut findings = Findings::default();
    let mut lives = lives(history);
    let deletions = deletions(history);
    attached(history, log, &mut findings);
    for (revision, changes) in log.all() {
        ended(revision, changes, log, &deletions, &mut lives, &mut findings);
    }
    let disturbances = disturbances(history);
    for (lease, life) in &lives {
        not_early(history, *lease, life, &mut findings);
        not_after_its_end(*lease, life, &mut findings);
        if let Some(deadline) = deadline(life, &disturbances) {
            not_for_ever(history, log, *lease, deadline, &mut findings);
        }
    }
    findings.0
}

fn lives(history: &History) -> BTreeMap<i64, Life<'_>> {
    let mut lives: BTreeMap<i64, Life<'_>> = BTreeMap::new();
    for operation in &history.operations {
        let (Request::Grant { lease, .. } | Request::KeepAlive { lease } | Request::Revoke { lease }) =
            operation.request
        else {
            continue;
        };
        let life = lives.entry(lease).or_default();
        if let Request::Revoke { .. } = operation.request {
            if !operation.failed() {
                life.revocations.push(operation);
            }
            continue;
        }
        match &operation.outcome {
            Outcome::Ok { at_nanos, reply } => {
                if let Answer::Ttl(seconds @ 1..) = reply.answer {
                    life.renewals.push(Renewal {
                        operation,
                        invoked_nanos: operation.invoked_nanos,
                        acknowledged_nanos: *at_nanos,
                        ttl_nanos: seconds.unsigned_abs() * 1_000_000_000,
                    });
                }
            }
            Outcome::Unknown { .. } => life.unclear = true,
            Outcome::Fail { .. } => {}
        }
    }
    lives
}

/// When clients may have deleted a key themselves: asked for, and its revision if known.
type Deletions<'a> = FxHashMap<&'a str, Vec<(u64, Option<Revision>)>>;

fn deletions(history: &History) -> Deletions<'_> {
    let mut deletions: Deletions<'_> = FxHashMap::default();
    for operation in history.operations.iter().filter(|operation| !operation.failed()) {
        let known = operation.written_at();
        if known.is_none() && operation.reply().is_some() {
            continue;
        }
        for (key, value) in operation.writes() {
            if value.is_none() {
                deletions.entry(key).or_default().push((operation.invoked_nanos, known));
            }
        }
    }
    deletions
}

/// L3: what a lease takes along goes at once. Notes when leases ended.
fn ended<'a>(
    revision: Revision,
    changes: &[Change<'_>],
    log: &Log<'a>,
    deletions: &Deletions<'_>,
    lives: &mut BTreeMap<i64, Life<'_>>,
    findings: &mut Findings,
) {
    for change in changes.iter().filter(|change| change.value.is_none()) {
        let Some(Some(before)) = log.before(change.key, revision) else { continue };
        let Some((told_nanos, ..)) = change.told else { continue };
        let explained = deletions.get(change.key).is_some_and(|asked| {
            asked.iter().any(|(nanos, at)| *nanos < told_nanos && at.is_none_or(|at| at == revision))
        });
        if before.lease == 0 || explained {
            continue;
        }
        let lease = before.lease;
        let life = lives.entry(lease).or_default();
        if let Some((_, other)) = life.ends.first().filter(|(_, other)| *other != revision) {
            let key = change.key;
            findings.add("L3", || format!("lease {lease} ended at revision {other}, and took {key} at {revision}"));
        }
        life.ends.push((told_nanos, revision));
    }
}

/// L6: wherever a value is seen, its lease is seen with it.
fn attached(history: &History, log: &Log<'_>, findings: &mut Findings) {
    let mut leases: FxHashMap<(&str, &str), i64> = FxHashMap::default();
    for operation in &history.operations {
        let lease = match operation.request {
            Request::Put { lease, .. } => lease,
            _ => 0,
        };
        for (key, value) in operation.writes() {
            if let Some(value) = value {
                leases.insert((key, value), lease);
            }
        }
    }
    for kv in history.operations.iter().filter_map(Operation::seen) {
        if leases.get(&(kv.key.as_str(), kv.value.as_str())).is_some_and(|lease| *lease != kv.lease) {
            findings.add("L6", || format!("a read shows {kv}, which was put with another lease"));
        }
    }
    for change in log.all().flat_map(|(_, changes)| changes) {
        let (Some(value), Some((_, watch, event))) = (change.value, change.told) else { continue };
        if leases.get(&(change.key, value)).is_some_and(|lease| *lease != event.kv.lease) {
            findings.add("L6", || format!("{watch} was told {event}, which was put with another lease"));
        }
    }
}

/// L1 and L5: nobody ends a lease before its time, least of all a leader of the past.
fn not_early(history: &History, lease: i64, life: &Life<'_>, findings: &mut Findings) {
    let revoked = |before: u64| life.revocations.iter().any(|operation| operation.invoked_nanos < before);
    let early = |known_nanos: u64| {
        let renewals = life.renewals.iter().filter(|renewal| renewal.acknowledged_nanos < known_nanos);
        renewals.max_by_key(|renewal| renewal.holds_until()).filter(|renewal| known_nanos < renewal.holds_until())
    };
    for (told_nanos, revision) in &life.ends {
        if let Some(renewal) = early(*told_nanos).filter(|_| !revoked(*told_nanos)) {
            let (seconds, operation) = (*told_nanos as f64 / 1e9, renewal.operation);
            findings.add("L1", || {
                format!("lease {lease} ended at revision {revision}, by {seconds:.6} s, too early after\n  {operation}")
            });
        }
    }
    for operation in &history.operations {
        let Outcome::Ok { at_nanos, reply } = &operation.outcome else { continue };
        if !matches!(operation.request, Request::KeepAlive { lease: asked } if asked == lease) {
            continue;
        }
        if reply.answer == Answer::Ttl(0)
            && let Some(renewal) = early(*at_nanos).filter(|_| !revoked(*at_nanos))
        {
            let earlier = renewal.operation;
            findings.add("L1", || format!("lease {lease} is gone too early\n  {earlier}\n  {operation}"));
        }
    }
}

/// L4: what has ended is not renewed.
fn not_after_its_end(lease: i64, life: &Life<'_>, findings: &mut Findings) {
    let ended = life.ends.iter().map(|(told_nanos, _)| *told_nanos);
    let revoked = life.revocations.iter().filter_map(|operation| operation.acknowledged_nanos());
    let Some(end) = ended.chain(revoked).min() else { return };
    for renewal in life.renewals.iter().filter(|renewal| renewal.invoked_nanos > end) {
        let (seconds, operation) = (end as f64 / 1e9, renewal.operation);
        findings.add("L4", || format!("lease {lease} had ended by {seconds:.6} s\n  {operation}"));
    }
}

/// Spans that give every lease its whole time again: faults, and changes of the leader.
fn disturbances(history: &History) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = history.faults.iter().map(|fault| (fault.from_nanos, fault.until_nanos)).collect();
    let mut newest = Term(0);
    let mut last_nanos = 0;
    for report in &history.roles {
        if report.role == Role::Leader && report.term > newest {
            newest = report.term;
            spans.push((last_nanos, report.at_nanos));
        }
        last_nanos = report.at_nanos;
    }
    spans.sort_unstable();
    spans
}

/// When the lease has ended, if that can be known.
fn deadline(life: &Life<'_>, disturbances: &[(u64, u64)]) -> Option<u64> {
    if life.unclear {
        return None;
    }
    let last = life.renewals.iter().max_by_key(|renewal| renewal.acknowledged_nanos)?;
    let whole = last.ttl_nanos + u64::try_from(GRACE.as_nanos()).unwrap_or(u64::MAX);
    let mut deadline = last.acknowledged_nanos + whole;
    for (from, until) in disturbances {
        if *from < deadline && *until > last.invoked_nanos {
            deadline = deadline.max(until + whole);
        }
    }
    Some(deadline)
}

/// L2: once there is a leader, leases end.
fn not_for_ever(history: &History, log: &Log<'_>, lease: i64, deadline: u64, findings: &mut Findings) {
    let seconds = deadline as f64 / 1e9;
    for operation in history.operations.iter().filter(|operation| operation.invoked_nanos > deadline) {
        let linearizable = matches!(operation.request, Request::Get { read: Read::Linearizable, .. });
        if linearizable && operation.seen().is_some_and(|kv| kv.lease == lease) {
            findings.add("L2", || format!("lease {lease} had to end by {seconds:.6} s\n  {operation}"));
        }
    }
    // A watch that heard something later, and of no end.
    let heard = history.watches.iter().filter(|watch| tells_all(watch)).flat_map(|watch| watch.responses.last());
    let last = heard.filter(|(_, response)| response.revision <= log.replayed()).map(|(nanos, _)| *nanos).max();
    if last.is_some_and(|last| last > deadline)
        && let Some((key, _)) = log.end().find(|(_, held)| held.lease == lease)
    {
        findings.add("L2", || format!("lease {lease} had to end by {seconds:.6} s, and {key} is still there"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{self, Bug};

    #[test]
    fn each_promise_of_a_lease_is_watched_over() {
        for (bug, promise) in [
            (Bug::EndsEarly, "L1"),
            (Bug::NeverEnds, "L2"),
            (Bug::EndsInParts, "L3"),
            (Bug::RenewedAfterEnd, "L4"),
            (Bug::Unattached, "L6"),
        ] {
            scenario::catches(bug, promise);
        }
    }
}
