//! Whether a report is worse than an earlier one.

use serde::Serialize;

use super::budget::{Row, Unit};
use super::report::Report;

/// Below that, two runs on one machine tell nothing apart: timers, and the drill's own pace.
const LEAST_SECONDS: f64 = 0.02;

/// One line of the budget in both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub id: String,
    pub before: String,
    pub after: String,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Better,
    Same,
    Worse,
    /// Only one of the reports has it.
    Unknown,
}

/// Compares medians; `threshold` is how much worse they may be, as a part of the earlier.
/// A check that broke only in `after` is worse whatever the times are.
pub fn compare(before: &Report, after: &Report, threshold: f64) -> Vec<Change> {
    let mut changes: Vec<Change> = after
        .rows
        .iter()
        .map(|row| match before.rows.iter().find(|earlier| earlier.id == row.id) {
            Some(earlier) => Change {
                id: row.id.clone(),
                before: earlier.measured(),
                after: row.measured(),
                verdict: verdict(earlier, row, threshold),
            },
            None => change(&row.id, "", &row.measured(), Verdict::Unknown),
        })
        .collect();
    for row in before.rows.iter().filter(|row| !after.rows.iter().any(|new| new.id == row.id)) {
        changes.push(change(&row.id, &row.measured(), "", Verdict::Unknown));
    }
    let broken = |report: &Report| report.runs.iter().map(|run| run.broken().len()).sum::<usize>();
    let (earlier, now) = (broken(before), broken(after));
    let verdict = match now.cmp(&earlier) {
        std::cmp::Ordering::Less => Verdict::Better,
        std::cmp::Ordering::Equal => Verdict::Same,
        std::cmp::Ordering::Greater => Verdict::Worse,
    };
    changes.push(change("broken checks", &earlier.to_string(), &now.to_string(), verdict));
    changes
}

fn change(id: &str, before: &str, after: &str, verdict: Verdict) -> Change {
    Change { id: id.to_owned(), before: before.to_owned(), after: after.to_owned(), verdict }
}

fn verdict(before: &Row, after: &Row, threshold: f64) -> Verdict {
    let least = if before.unit == Unit::Seconds { LEAST_SECONDS } else { 0.0 };
    let allowed = |earlier: f64| (earlier * threshold).max(least);
    let worse = |earlier: f64, now: f64| now - earlier > allowed(earlier);
    if worse(before.p50, after.p50) || (before.kept && !after.kept) {
        Verdict::Worse
    } else if worse(after.p50, before.p50) {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Check, Environment, Figure, Run};
    use super::*;

    fn report(f1: &[f64], passed: bool) -> Report {
        let run = |value: &f64| Run {
            figures: vec![Figure { id: "F1".into(), value: Some(*value) }],
            checks: vec![Check { name: "hashes".into(), passed, detail: String::new() }],
            ..Run::default()
        };
        Report::new(Environment::default(), 1.0, f1.iter().map(run).collect())
    }

    #[test]
    fn worse_is_what_exceeds_the_threshold_or_breaks() {
        let check = |before: &Report, after: &Report, expected: [Verdict; 2]| {
            let changes = compare(before, after, 0.25);
            assert_eq!(changes.iter().map(|change| change.verdict).collect::<Vec<_>>(), expected, "{changes:?}");
        };
        let earlier = report(&[0.10, 0.12, 0.11], true);
        check(&earlier, &report(&[0.12, 0.12, 0.12], true), [Verdict::Same, Verdict::Same]);
        check(&earlier, &report(&[0.14, 0.15, 0.14], true), [Verdict::Worse, Verdict::Same]);
        check(&earlier, &report(&[0.06, 0.05, 0.06], true), [Verdict::Better, Verdict::Same]);
        check(&earlier, &report(&[0.10, 0.12, 0.9], true), [Verdict::Worse, Verdict::Same]);
        check(&earlier, &report(&[0.11, 0.11, 0.11], false), [Verdict::Same, Verdict::Worse]);
        // What timers alone may do.
        check(&report(&[0.001], true), &report(&[0.015], true), [Verdict::Same, Verdict::Same]);
    }

    #[test]
    fn what_only_one_report_has_is_not_known() {
        let without = Report::new(Environment::default(), 1.0, Vec::new());
        for (before, after) in [(report(&[0.1], true), without.clone()), (without, report(&[0.1], true))] {
            let changes = compare(&before, &after, 0.25);
            assert_eq!((changes[0].id.as_str(), changes[0].verdict), ("F1", Verdict::Unknown));
        }
    }
}
