//! C7: what was acknowledged is there. Each acknowledged write shows in the log at its
//! revision; what became of it later is the log's and the model's business.
//!
//! A write past the end of every watch counts as lost, so that a run asks its watches for
//! their progress after its last write.

use super::log::{Log, covered_by_any};
use super::{Broken, Findings};
use crate::history::History;

/// Looks for each acknowledged write in what watches of all keys were told.
pub fn check(history: &History, log: &Log<'_>) -> Vec<Broken> {
    let mut findings = Findings::default();
    let spans = covered_by_any(history);
    for operation in &history.operations {
        let Some(revision) = operation.written_at() else { continue };
        let next = spans.partition_point(|(from, _)| *from <= revision);
        if next.checked_sub(1).is_none_or(|span| spans[span].1 < revision) {
            findings.add("C7", || format!("no watch came to revision {revision} of\n  {operation}"));
            continue;
        }
        for (key, value) in operation.writes() {
            let found = log.change(revision, key).filter(|change| change.told.is_some());
            match found {
                Some(change) if change.value == value => {}
                Some(change) => findings.add("C7", || {
                    let there = change.value.unwrap_or("a deletion");
                    format!("revision {revision} of {key} is {there}, and not what was acknowledged\n  {operation}")
                }),
                None => findings.add("C7", || format!("revision {revision} has no {key}\n  {operation}")),
            }
        }
    }
    findings.0
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{self, Bug};

    #[test]
    fn a_lost_write_is_missed() {
        scenario::catches(Bug::LostWrite, "C7");
        scenario::catches(Bug::LostTail, "C7");
    }
}
