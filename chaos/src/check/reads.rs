//! K4 and K5: reads of a member's own state show what was there at their revision, and no
//! client sees a member go back.
//!
//! A member that was started again may show its own state before it knows how much of its log
//! is committed, as etcd does: that is older than what it showed, until it hears a leader.

use rustc_hash::FxHashMap;

use super::log::Log;
use super::{Broken, Findings};
use crate::history::{Answer, Client, History, Member, Operation, Outcome, Read, Request, Revision};

/// Looks at every answer that shows a key at a known revision.
pub fn check(history: &History, log: &Log<'_>) -> Vec<Broken> {
    let mut findings = Findings::default();
    let mut newest: FxHashMap<(Client, Member), (Revision, &Operation)> = FxHashMap::default();
    for operation in &history.operations {
        let Some(reply) = operation.reply() else { continue };
        let Some(revision) = reply.revision else { continue };
        let known = newest.entry((operation.client, operation.member)).or_insert((revision, operation));
        if revision < known.0 && !(reads_own_state(operation) && disturbed(history, known.1, operation)) {
            let earlier = known.1;
            findings.add("K5", || format!("a member went back\n  {earlier}\n  {operation}"));
        } else {
            *known = (revision, operation);
        }
        let (Request::Get { key, read }, Answer::Found(found)) = (&operation.request, &reply.answer) else { continue };
        let at = match read {
            Read::At(revision) => *revision,
            Read::Linearizable | Read::Serializable => revision,
        };
        let Some(there) = log.at(key, at) else { continue };
        let right = match (there, found) {
            (Some(there), Some(found)) => there.is(found),
            (there, found) => there.is_none() && found.is_none(),
        };
        if !right {
            findings.add("K4", || format!("at revision {at} there was {there:?}\n  {operation}"));
        }
    }
    findings.0
}

fn reads_own_state(operation: &Operation) -> bool {
    matches!(operation.request, Request::Get { read: Read::Serializable | Read::At(_), .. })
}

/// Whether there was a fault between two operations, which may have ended the member.
fn disturbed(history: &History, earlier: &Operation, later: &Operation) -> bool {
    let Outcome::Ok { at_nanos, .. } = later.outcome else { return false };
    history.faults.iter().any(|fault| earlier.invoked_nanos < fault.until_nanos && fault.from_nanos < at_nanos)
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{self, Bug};

    #[test]
    fn a_read_of_another_revision_is_noticed() {
        scenario::catches(Bug::TornRead, "K4");
        scenario::catches(Bug::MemberGoesBack, "K5");
    }
}
