//! A steady load for a long time, and whether the servers became slower in it.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::compare::{Change, Verdict, change};
use super::recorder::Sample;
use super::report::{Figure, Report};

/// The end is compared with the beginning: so large a part each. The first seconds, in which
/// caches fill, count too: they make the beginning slow and hide nothing.
const PART: usize = 4;

/// By how many percent the end may be worse.
const THRESHOLD_PERCENT: f64 = 20.0;

/// What a soak found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// The last quarter of the time beside the first.
    changes: Vec<Change>,
    errors: u64,
    pub(crate) steady: bool,
}

/// How the end of the report's run compares with its beginning.
pub(crate) fn drift(report: &Report) -> Drift {
    let run = report.runs.first();
    let timeline = run.map(|run| run.measured.timeline.as_slice()).unwrap_or_default();
    let length = timeline.len() / PART;
    let (first, last) = (&timeline[..length], &timeline[timeline.len() - length..]);
    let of = |figure: Figure, samples: &[Sample]| -> Vec<f64> {
        match figure {
            Figure::Rate => samples.iter().map(|sample| sample.rate).collect(),
            _ => samples.iter().filter_map(|sample| sample.p99_ms).collect(),
        }
    };
    let figures = [Figure::Rate, Figure::P99].into_iter();
    let changes: Vec<Change> =
        figures.filter_map(|figure| change(figure, &of(figure, first), &of(figure, last), THRESHOLD_PERCENT)).collect();
    let errors = run.map_or(0, |run| run.measured.failed());
    let steady = errors == 0 && changes.iter().all(|change| change.verdict != Verdict::Worse);
    Drift { changes, errors, steady }
}

impl Drift {
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for change in &self.changes {
            let Change { figure, before, after, noise_percent, .. } = change;
            let _ = writeln!(
                out,
                "{}: {before:.2} in the first quarter, {after:.2} in the last (noise ±{noise_percent:.1} %)",
                figure.name()
            );
        }
        match (self.steady, self.errors, self.changes.is_empty()) {
            (_, _, true) => out.push_str("Too short to say whether it stays as it is.\n"),
            (true, ..) => out.push_str("Steady: the end is as fast as the beginning.\n"),
            (false, 0, _) => out.push_str("Not steady: the end is slower than the beginning.\n"),
            (false, errors, _) => {
                let _ = writeln!(out, "Not steady: {errors} operations failed.");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Map;

    use super::super::environment::Environment;
    use super::super::recorder::Measured;
    use super::super::run::Run;
    use super::*;

    fn found(p99s: &[f64], errors: u64) -> (bool, String) {
        let sample = |(second, p99): (u32, &f64)| Sample {
            second: f64::from(second),
            rate: 100.0,
            p99_ms: Some(*p99),
            errors: 0,
        };
        let timeline = (1..).zip(p99s).map(sample).collect();
        let errors = if errors == 0 { BTreeMap::new() } else { BTreeMap::from([("gone".to_owned(), errors)]) };
        let run = Run { measured: Measured { timeline, errors, ..Measured::default() }, ..Run::default() };
        let environment = Environment::of_this_machine(None);
        let drift = drift(&Report::new("soak", Map::new(), environment, Vec::new(), vec![run], false));
        (drift.steady, drift.text())
    }

    #[test]
    fn the_end_is_compared_with_the_beginning() {
        let steady = [1.0, 1.1, 0.9, 1.0].repeat(10);
        assert!(found(&steady, 0).0);
        assert!(!found(&steady, 3).0 && found(&steady, 3).1.contains("3 operations failed"));
        let slower: Vec<f64> =
            steady.iter().enumerate().map(|(at, p99)| if at >= 30 { p99 * 2.0 } else { *p99 }).collect();
        assert!(!found(&slower, 0).0 && found(&slower, 0).1.contains("slower"));
        assert!(found(&[1.0, 9.0], 0).1.contains("Too short"));
    }
}
