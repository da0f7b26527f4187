//! What a drill found, as JSON keeps it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::budget::{self, Row};
use super::sample::{Probe, RoleSpan, Sample};

/// The version of this format.
const VERSION: u32 = 1;

/// One or more runs, and how they compare with the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub environment: Environment,
    /// The budget's times were multiplied by that.
    pub slack: f64,
    pub rows: Vec<Row>,
    /// Of several runs, without their samples: these are in the runs' own reports.
    pub runs: Vec<Run>,
}

/// Where it ran: without that no figure means anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub started: String,
    /// The command that did it.
    pub command: String,
    /// Program and machine in a line.
    pub machine: String,
}

/// One drill, once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    pub about: String,
    pub number: usize,
    pub masters: Vec<String>,
    /// What was done to whom.
    pub faults: Vec<FaultSpan>,
    /// The end of the measured steady state is the first fault.
    pub steady: Steady,
    pub end_ms: f64,
    pub term_before: u64,
    pub term_after: u64,
    pub figures: Vec<Figure>,
    pub checks: Vec<Check>,
    /// What could not be measured on this cluster, and why.
    pub not_measured: Vec<String>,
    pub gaps: Vec<Gap>,
    pub roles: Vec<RoleSpan>,
    #[serde(default)]
    pub samples: Vec<Sample>,
}

/// A fault and its end, when the master answered again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultSpan {
    pub victim: String,
    pub what: String,
    pub from_ms: f64,
    pub to_ms: f64,
}

/// What was usual before the fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Steady {
    pub from_ms: f64,
    pub to_ms: f64,
    /// By probe: how many, and how long half of them and 99 of 100 took.
    pub probes: Vec<Usual>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    pub probe: Probe,
    pub n: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// A stretch without an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    pub via: String,
    pub probe: Probe,
    pub from_ms: f64,
    pub to_ms: f64,
}

/// One line of the budget, in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub id: String,
    /// None: it never happened.
    pub value: Option<f64>,
}

/// What must hold whatever the times are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub detail: String,
}

impl Run {
    /// The folder of its artifacts, beside those of the other runs.
    pub fn folder(&self) -> String {
        folder(&self.scenario, self.number)
    }

    /// Figures that the budget does not allow in 1 of 100 runs, or that never happened.
    pub fn missed(&self, slack: f64) -> Vec<&Figure> {
        let kept = |figure: &Figure| {
            let (Some(line), Some(value)) = (budget::line(&figure.id), figure.value) else { return false };
            Row::of(line, &[value], slack).is_some_and(|row| row.kept)
        };
        self.figures.iter().filter(|figure| !kept(figure)).collect()
    }

    pub fn broken(&self) -> Vec<&Check> {
        self.checks.iter().filter(|check| !check.passed).collect()
    }

    pub fn passed(&self, slack: f64) -> bool {
        self.missed(slack).is_empty() && self.broken().is_empty()
    }

    /// The verdict in a sentence.
    pub fn sentence(&self, slack: f64) -> String {
        let faults = self.faults.chunk_by(|one, next| one.what == next.what).map(|same| {
            let victims: Vec<&str> = same.iter().map(|fault| fault.victim.as_str()).collect();
            format!("{} to {}", same[0].what, victims.join(", "))
        });
        let mut sentence = format!("{}: {}", self.scenario, faults.collect::<Vec<_>>().join(", "));
        let told: Vec<String> = self
            .figures
            .iter()
            .filter_map(|figure| {
                let line = budget::line(&figure.id)?;
                let value = figure.value.map_or_else(|| "never".to_owned(), |value| line.unit.print(value));
                Some(format!("{} {value}", figure.id))
            })
            .collect();
        if !told.is_empty() {
            sentence.push_str(&format!("; {}", told.join(", ")));
        }
        let (missed, broken) = (self.missed(slack), self.broken());
        if missed.is_empty() && broken.is_empty() {
            sentence.push_str(if told.is_empty() { "; every check passed." } else { "; the budget was kept." });
            return sentence;
        }
        if !missed.is_empty() {
            let missed: Vec<&str> = missed.iter().map(|figure| figure.id.as_str()).collect();
            sentence.push_str(&format!("; OVER BUDGET: {}", missed.join(", ")));
        }
        for check in broken {
            sentence.push_str(&format!("; BROKEN: {} ({})", check.name, check.detail));
        }
        sentence.push('.');
        sentence
    }
}

/// See [`Run::folder`].
pub fn folder(scenario: &str, number: usize) -> String {
    format!("{scenario}-{number:03}")
}

impl Report {
    pub fn new(environment: Environment, slack: f64, runs: Vec<Run>) -> Self {
        let mut rows = Vec::new();
        for line in &budget::LINES {
            let figures = || runs.iter().flat_map(|run| &run.figures).filter(|figure| figure.id == line.id);
            let values: Vec<f64> = figures().filter_map(|figure| figure.value).collect();
            if let Some(mut row) = Row::of(line, &values, slack) {
                // What never happened keeps no budget.
                row.kept &= figures().all(|figure| figure.value.is_some());
                rows.push(row);
            }
        }
        Self { version: VERSION, environment, slack, rows, runs }
    }

    /// Whether every line of the budget and every check was kept.
    pub fn passed(&self) -> bool {
        let never = self.runs.iter().flat_map(|run| &run.figures).any(|figure| figure.value.is_none());
        !never && self.rows.iter().all(|row| row.kept) && self.runs.iter().all(|run| run.broken().is_empty())
    }

    /// In a sentence.
    pub fn sentence(&self) -> String {
        if let [run] = self.runs.as_slice() {
            return run.sentence(self.slack);
        }
        let broken = self.runs.iter().filter(|run| !run.broken().is_empty()).count();
        let over: Vec<&str> = self.rows.iter().filter(|row| !row.kept).map(|row| row.id.as_str()).collect();
        let runs = self.runs.len();
        match (over.is_empty(), broken) {
            (true, 0) => format!("{runs} drills: the budget was kept, and every check passed."),
            (false, 0) => format!("{runs} drills: OVER BUDGET in {}; every check passed.", over.join(", ")),
            (true, _) => format!("{runs} drills: {broken} with a BROKEN check; the budget was kept."),
            (false, _) => format!("{runs} drills: {broken} with a BROKEN check, OVER BUDGET in {}.", over.join(", ")),
        }
    }

    /// Without what makes a report large.
    pub fn summary(runs: &[Run]) -> Vec<Run> {
        let light = |run: &Run| Run { samples: Vec::new(), roles: Vec::new(), gaps: Vec::new(), ..run.clone() };
        runs.iter().map(light).collect()
    }

    /// # Errors
    /// When the file cannot be read, or is no report of this version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no report of a drill", path.display()))?;
        ensure!(report.version == VERSION, "{} is of format {}, not {VERSION}", path.display(), report.version);
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(figures: &[(&str, Option<f64>)], checks: &[bool]) -> Run {
        Run {
            scenario: "leader-kill".into(),
            faults: vec![FaultSpan { victim: "m1".into(), what: "SIGKILL".into(), from_ms: 0.0, to_ms: 1.0 }],
            figures: figures.iter().map(|(id, value)| Figure { id: (*id).to_owned(), value: *value }).collect(),
            checks: checks
                .iter()
                .map(|passed| Check { name: "hashes".into(), passed: *passed, detail: "they differ".into() })
                .collect(),
            ..Run::default()
        }
    }

    #[test]
    fn a_run_says_what_it_missed_and_what_broke() {
        let check = |run: &Run, passed: bool, says: &str| {
            assert_eq!(run.passed(1.0), passed);
            assert!(run.sentence(1.0).contains(says), "{}", run.sentence(1.0));
        };
        check(&run(&[("F1", Some(0.1))], &[true]), true, "SIGKILL to m1; F1 0.100 s; the budget was kept.");
        check(&run(&[("F1", Some(0.7))], &[]), false, "OVER BUDGET: F1");
        check(&run(&[("F1", None)], &[]), false, "F1 never");
        check(&run(&[("F1", Some(0.1))], &[false]), false, "BROKEN: hashes (they differ)");
        assert!(run(&[("F1", Some(0.7))], &[]).passed(2.0));
        let mut several = run(&[], &[]);
        let span = |victim: &str, what: &str| FaultSpan {
            victim: victim.to_owned(),
            what: what.to_owned(),
            from_ms: 1.0,
            to_ms: 2.0,
        };
        several.faults = vec![span("m1", "SIGTERM"), span("m2", "SIGTERM"), span("m1", "full disk")];
        check(&several, true, ": SIGTERM to m1, m2, full disk to m1; every check passed.");
    }

    #[test]
    fn a_report_judges_all_runs_together() {
        let report = |runs: Vec<Run>| Report::new(Environment::default(), 1.0, runs);
        let well = report(vec![run(&[("F1", Some(0.1))], &[true]), run(&[("F1", Some(0.12)), ("F3", Some(0.2))], &[])]);
        assert!(well.passed(), "{}", well.sentence());
        let lines: Vec<(&str, usize)> = well.rows.iter().map(|row| (row.id.as_str(), row.n)).collect();
        assert_eq!(lines, [("F1", 2), ("F3", 1)]);
        let never = report(vec![run(&[("F1", Some(0.1))], &[]), run(&[("F1", None)], &[])]);
        assert!(!never.passed() && never.sentence().contains("F1"), "{}", never.sentence());
        let nothing = report(vec![run(&[("F1", None)], &[])]);
        assert!(!nothing.passed());
        let broken = report(vec![run(&[("F1", Some(0.1))], &[false]), run(&[("F1", Some(0.1))], &[])]);
        assert!(!broken.passed() && broken.sentence().contains("BROKEN"), "{}", broken.sentence());
    }
}
