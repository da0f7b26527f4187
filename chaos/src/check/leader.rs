//! C1 and C6: one leader in a term, terms that only grow, and one owner at a time.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{Broken, Findings};
use crate::history::{History, Hold, Member, Role, Term};

/// Looks at what members said of their roles, and at who acted as an owner.
pub fn check(history: &History) -> Vec<Broken> {
    let mut findings = Findings::default();
    let mut leaders: FxHashMap<Term, Member> = FxHashMap::default();
    let mut terms: FxHashMap<Member, Term> = FxHashMap::default();
    for report in &history.roles {
        let seconds = report.at_nanos as f64 / 1e9;
        let (member, term) = (report.member, report.term);
        let last = terms.entry(member).or_insert(term);
        if term < *last {
            let last = *last;
            findings.add("C6", || format!("{member} was in term {last}, and in term {term} at {seconds:.6} s"));
        }
        *last = term.max(*last);
        if report.role == Role::Leader {
            let leader = *leaders.entry(term).or_insert(member);
            if leader != member {
                findings.add("C1", || format!("{leader} and, at {seconds:.6} s, {member} lead in term {term}"));
            }
        }
    }
    let mut resources: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    for hold in &history.holds {
        resources.entry(&hold.resource).or_default().push(hold);
    }
    for (resource, mut holds) in resources {
        holds.sort_by_key(|hold| hold.from_nanos);
        // The one that lasts longest of those that began before.
        let mut longest: Option<&Hold> = None;
        for hold in holds {
            if let Some(other) = longest
                && other.holder != hold.holder
                && hold.from_nanos < other.until_nanos
            {
                findings.add("C1", || format!("{} and {} both own {resource}", other.holder, hold.holder));
            }
            if longest.is_none_or(|longest| longest.until_nanos < hold.until_nanos) {
                longest = Some(hold);
            }
        }
    }
    findings.0
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{self, Bug};

    #[test]
    fn two_that_act_are_noticed() {
        scenario::catches(Bug::TwoLeaders, "C1");
        scenario::catches(Bug::TwoOwners, "C1");
        scenario::catches(Bug::TermGoesBack, "C6");
    }
}
