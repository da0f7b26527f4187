//! What is promised for each event, what peers do, and whether what was measured keeps it.

use serde::{Deserialize, Serialize};

use crate::report::nearest_rank;

/// One promise.
#[derive(Debug)]
pub struct Line {
    pub id: &'static str,
    pub event: &'static str,
    pub unit: Unit,
    /// Half of all runs do no worse, and 99 of 100.
    pub p50: f64,
    pub p99: f64,
    /// What etcd 3.4.23 and Kubernetes 1.20.2 did with their defaults: three stacked masters
    /// on loopback, two shared cores. What is not of that measurement says where it is from.
    pub peers: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Seconds,
    Count,
}

impl Unit {
    pub fn print(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.3} s"),
            Self::Count => format!("{value:.0}"),
        }
    }
}

const fn seconds(id: &'static str, event: &'static str, p50: f64, p99: f64, peers: &'static str) -> Line {
    Line { id, event, unit: Unit::Seconds, p50, p99, peers }
}

const fn count(id: &'static str, event: &'static str, most: f64, peers: &'static str) -> Line {
    Line { id, event, unit: Unit::Count, p50: most, p99: most, peers }
}

pub static LINES: [Line; 21] = [
    seconds("F1", "leader killed: first write through any endpoint", 0.15, 0.5, "median 1.32 s, max 2.11 s (20 kills)"),
    seconds("F2", "leader hangs or is cut off: first write", 0.5, 0.9, "median 1.15 s, max 2.08 s (10 runs)"),
    seconds("F2 flap", "leader's link comes and goes: longest gap between writes", 0.5, 0.9, "not measured"),
    seconds(
        "F3",
        "leader killed: slowest write in flight completes, once",
        1.0,
        1.0,
        "hangs 7.01 s, then fails (20 of 20)",
    ),
    seconds(
        "F4",
        "leader stopped as planned: longest gap between writes",
        0.05,
        0.05,
        "median 0.006 s, max 0.014 s (15 runs)",
    ),
    count("F4 failed", "leader stopped as planned: failed requests", 0.0, "1 of 15 runs lost its write in flight"),
    seconds("F5", "leader killed: next pod bound", 0.6, 1.2, "median 16.4 s, max 18.3 s (6 kills)"),
    seconds("F6", "leader killed: next controller action", 0.6, 1.2, "median 17.4 s, max 18.7 s (6 kills)"),
    seconds("F7 pods", "leader stopped as planned: slowest pod bound", 0.2, 0.2, "median 16.3 s, max 18.2 s (4 runs)"),
    seconds(
        "F7 controllers",
        "leader stopped as planned: slowest controller action",
        0.2,
        0.2,
        "median 19.2 s, max 20.6 s (4 runs)",
    ),
    seconds("F8", "leader killed: its watch resumed on another master, no relist", 1.0, 1.0, "not measured"),
    seconds("F8 herd", "leader killed: the last of its 300 watches resumed", 1.0, 1.0, "not measured"),
    seconds(
        "F9",
        "node silent: not ready, and no Service sends to it",
        4.0,
        6.0,
        "36.6 s NotReady, taint 41.7 s (1 run)",
    ),
    seconds("F10", "node silent: its pods, tolerating 2 s, replaced and ready elsewhere", 8.0, 15.0, "341.9 s (1 run)"),
    seconds("F12 alarm", "more than a third of the nodes silent: operators told", 10.0, 10.0, "not measured"),
    count("F12 evicted", "more than a third of the nodes silent: pods evicted", 0.0, "not measured"),
    seconds("F14", "leader's disk stalls: first write", 1.0, 1.0, "often never, as users report"),
    seconds("F14 full", "leader's disk is full: first write", 1.0, 1.0, "not measured"),
    seconds("F14 fsync", "leader's fsync fails: first write", 1.0, 1.0, "not measured"),
    count(
        "F18 failed",
        "rolling restart: failed requests with one client retry",
        0.0,
        "gaps of 5 to 8 s, as users report",
    ),
    count("F18 terms", "rolling restart: new terms", 3.0, "not measured"),
];

pub fn line(id: &str) -> Option<&'static Line> {
    LINES.iter().find(|line| line.id == id)
}

/// The smallest value that at least `part` of `values` do not exceed; nearest rank.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    nearest_rank(sorted.len(), part).map(|position| sorted[position])
}

/// All runs' values of one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub id: String,
    pub event: String,
    pub unit: Unit,
    pub n: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    pub budget_p50: f64,
    pub budget_p99: f64,
    pub peers: String,
    pub kept: bool,
}

impl Row {
    /// `None` without values. A budget is kept `slack` times over.
    pub fn of(line: &Line, values: &[f64], slack: f64) -> Option<Self> {
        let (p50, p99, max) = (quantile(values, 0.5)?, quantile(values, 0.99)?, quantile(values, 1.0)?);
        let slack = if line.unit == Unit::Seconds { slack } else { 1.0 };
        let (budget_p50, budget_p99) = (line.p50 * slack, line.p99 * slack);
        // One run tells nothing of a median: it keeps the budget when it is no worse than 99 of 100.
        let kept = p99 <= budget_p99 && (p50 <= budget_p50 || values.len() == 1);
        Some(Self {
            id: line.id.to_owned(),
            event: line.event.to_owned(),
            unit: line.unit,
            n: values.len(),
            p50,
            p99,
            max,
            budget_p50,
            budget_p99,
            peers: line.peers.to_owned(),
            kept,
        })
    }

    /// `p50 / p99`, as the budget is written.
    pub fn measured(&self) -> String {
        pair(self.unit, self.p50, self.p99)
    }

    pub fn budget(&self) -> String {
        pair(self.unit, self.budget_p50, self.budget_p99)
    }
}

fn pair(unit: Unit, p50: f64, p99: f64) -> String {
    match unit {
        Unit::Seconds => format!("{p50:.3} / {p99:.3} s"),
        Unit::Count => format!("{p50:.0} / {p99:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_nearest_rank() {
        assert_eq!(quantile(&[], 0.5), None);
        for (part, expected) in [(0.0, 1.0), (0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)] {
            assert_eq!(quantile(&[3.0, 1.0, 4.0, 2.0], part), Some(expected), "{part}");
        }
    }

    #[test]
    fn a_budget_is_kept_by_half_and_by_99_of_100() {
        let check = |values: &[f64], slack: f64, kept: bool| {
            let row = Row::of(line("F1").unwrap(), values, slack).unwrap();
            assert_eq!(row.kept, kept, "{values:?} {slack}");
        };
        check(&[0.1, 0.1, 0.4], 1.0, true);
        check(&[0.2, 0.2, 0.1], 1.0, false);
        check(&[0.2, 0.2, 0.1], 2.0, true);
        check(&[0.1, 0.1, 0.6], 1.0, false);
        check(&[0.4], 1.0, true);
        let failed = line("F4 failed").unwrap();
        assert!(!Row::of(failed, &[0.0, 0.0, 1.0], 2.0).unwrap().kept, "slack is for times");
        assert_eq!(Row::of(failed, &[], 1.0), None);
    }
}
