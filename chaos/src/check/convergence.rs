//! C9: members that have applied the same hold the same.

use std::collections::BTreeMap;

use super::{Broken, Findings};
use crate::history::{HashReport, History, Member, Revision};

/// Compares hashes of the same revision wherever as much was compacted, and wants one
/// revision at which all of `members` were asked.
pub fn check(history: &History, members: &[Member]) -> Vec<Broken> {
    let mut findings = Findings::default();
    let mut groups: BTreeMap<(Revision, Revision), Vec<&HashReport>> = BTreeMap::new();
    for report in &history.hashes {
        groups.entry((report.revision, report.compact_revision)).or_default().push(report);
    }
    for ((revision, compacted), reports) in &groups {
        let first = reports[0];
        if let Some(other) = reports.iter().find(|report| report.hash != first.hash) {
            findings.add("C9", || {
                format!(
                    "at revision {revision}, compacted at {compacted}, {} has hash {:08x} and {} {:08x}",
                    first.member, first.hash, other.member, other.hash
                )
            });
        }
    }
    let complete =
        |reports: &[&HashReport]| members.iter().all(|member| reports.iter().any(|report| report.member == *member));
    if !groups.values().any(|reports| complete(reports)) {
        findings.add("C9", || format!("not all of the {} members came to one revision", members.len()));
    }
    findings.0
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{self, Bug};

    #[test]
    fn members_that_differ_are_noticed() {
        scenario::catches(Bug::OtherHash, "C9");
        scenario::catches(Bug::MissingMember, "C9");
    }
}
