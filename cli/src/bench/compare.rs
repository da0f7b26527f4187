//! Whether a report is worse than an earlier one by more than the noise.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::report::{Figure, Report, median};
use crate::output::{self, Format};

/// Below that, no two runs on one machine tell anything apart.
const LEAST_THRESHOLD_PERCENT: f64 = 1.0;

/// Fewer runs than that tell nothing about the noise between them.
const FEWEST_RUNS: usize = 3;

/// A change counts if it exceeds the noise by that factor: two standard deviations.
const NOISE_FACTOR: f64 = 2.0;

/// The median distance from the median is so much smaller than a standard deviation, where
/// values are normally distributed.
const DEVIATIONS_PER_MEDIAN_DISTANCE: f64 = 1.4826;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate bench put --seconds 30 --out before.json
  quorate bench put --seconds 30 --out after.json
  quorate bench compare before.json after.json --threshold 5
Reports of two clusters are compared by their ratios, which the machine's noise does not
reach: made with --versus-endpoints, they tell smaller changes apart.
Exit codes: 0 nothing is worse; 2 a figure is worse; 1 the reports cannot be compared.")]
pub(crate) struct Arguments {
    /// The earlier report.
    #[arg(value_name = "A.json")]
    before: PathBuf,
    /// The report in question.
    #[arg(value_name = "B.json")]
    after: PathBuf,
    /// How many percent worse a figure may be.
    #[arg(long, default_value_t = 10.0, value_name = "PERCENT", value_parser = percent)]
    threshold: f64,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (LEAST_THRESHOLD_PERCENT..=1_000.0).contains(&percent) => Ok(percent),
        _ => Err(format!("{text:?} is not a number of percent between {LEAST_THRESHOLD_PERCENT} and 1000")),
    }
}

/// One figure of both reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) figure: Figure,
    pub(crate) before: f64,
    pub(crate) after: f64,
    /// How many values each median is of.
    samples: [usize; 2],
    /// Positive is worse.
    worse_percent: f64,
    /// What the medians vary by themselves.
    pub(crate) noise_percent: f64,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Better,
    Same,
    Worse,
}

#[derive(Debug, Serialize)]
struct Comparison {
    workload: String,
    /// What the changes are of: runs, ratios of pairs, or seconds of one run.
    compared: &'static str,
    threshold_percent: f64,
    /// Settings and machines that differ, because of which figures may.
    differences: Vec<String>,
    changes: Vec<Change>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    let comparison = compare(&before, &after, arguments.threshold)?;
    output::print(arguments.output, &comparison, table)?;
    let worse = comparison.changes.iter().any(|change| change.verdict == Verdict::Worse);
    Ok(if worse { super::VERDICT } else { 0 })
}

fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Report::parse(&text).with_context(|| format!("{} is not usable", path.display()))
}

fn compare(before: &Report, after: &Report, threshold: f64) -> Result<Comparison> {
    let workload = before.workload.clone();
    ensure!(workload == after.workload, "{workload} cannot be compared with {}", after.workload);
    let ways: [(&str, fn(&Report, Figure) -> Vec<f64>); 3] =
        [("ratios of pairs", ratios), ("runs", runs), ("seconds of one run", seconds)];
    let enough = |samples: &Vec<f64>| samples.len() >= FEWEST_RUNS;
    let found = ways.iter().find(|(_, of)| enough(&of(before, Figure::Rate)) && enough(&of(after, Figure::Rate)));
    let (compared, of) = found.with_context(|| {
        format!("a report is of less than {FEWEST_RUNS} runs and seconds: repeat it with a longer --seconds")
    })?;
    let change = |figure| change(figure, &of(before, figure), &of(after, figure), threshold);
    Ok(Comparison {
        workload,
        compared,
        threshold_percent: threshold,
        differences: differences(before, after),
        changes: Figure::ALL.into_iter().filter_map(change).collect(),
    })
}

fn ratios(report: &Report, figure: Figure) -> Vec<f64> {
    report.ratios.iter().find(|ratio| ratio.figure == figure).map(|ratio| ratio.pairs.clone()).unwrap_or_default()
}

fn runs(report: &Report, figure: Figure) -> Vec<f64> {
    report.runs.iter().filter(|run| run.cluster == 0).filter_map(|run| figure.of(run)).collect()
}

/// Only rate and p99 are known by the second; the median of the others is that of the run.
fn seconds(report: &Report, figure: Figure) -> Vec<f64> {
    let Some(run) = report.runs.iter().find(|run| run.cluster == 0) else { return Vec::new() };
    match figure {
        Figure::Rate => run.measured.timeline.iter().map(|sample| sample.rate).collect(),
        Figure::P99 => run.measured.timeline.iter().filter_map(|sample| sample.p99_ms).collect(),
        _ => figure.of(run).into_iter().collect(),
    }
}

/// How a figure changed, if both reports tell it. A change counts if it is larger than the
/// threshold and stands out of the noise.
pub(crate) fn change(figure: Figure, before: &[f64], after: &[f64], threshold_percent: f64) -> Option<Change> {
    let (from, to) = (median(before)?, median(after)?);
    if from <= 0.0 || to <= 0.0 {
        return None;
    }
    let worse = if figure.more_is_better() { from / to } else { to / from };
    let worse_percent = (worse - 1.0) * 100.0;
    // Seen from the other side, so that halving and doubling weigh the same.
    let better_percent = (1.0 / worse - 1.0) * 100.0;
    let noise_percent = deviation_percent(before, from).max(deviation_percent(after, to));
    let needed = threshold_percent.max(NOISE_FACTOR * noise_percent);
    let verdict = match () {
        () if worse_percent > needed => Verdict::Worse,
        () if better_percent > needed => Verdict::Better,
        () => Verdict::Same,
    };
    let samples = [before.len(), after.len()];
    Some(Change { figure, before: from, after: to, samples, worse_percent, noise_percent, verdict })
}

/// The standard deviation of the median of `values`, in percent of it; one run that a busy
/// machine spoiled does not make it larger.
fn deviation_percent(values: &[f64], middle: f64) -> f64 {
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    #[expect(clippy::cast_precision_loss, reason = "as many as runs or seconds")]
    let number = values.len().max(1) as f64;
    let deviation = median(&distances).unwrap_or_default() * DEVIATIONS_PER_MEDIAN_DISTANCE;
    deviation / middle * 100.0 / number.sqrt()
}

fn differences(before: &Report, after: &Report) -> Vec<String> {
    let mut found = Vec::new();
    let names = before.settings.keys().chain(after.settings.keys().filter(|name| !before.settings.contains_key(*name)));
    for name in names {
        let (was, is) = (before.settings.get(name), after.settings.get(name));
        if was != is {
            let text =
                |value: Option<&serde_json::Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
            found.push(format!("{name}: {} and {}", text(was), text(is)));
        }
    }
    let (was, is) = (before.environment.machine(), after.environment.machine());
    if was != is {
        found.push(format!("machine: {was} and {is}"));
    }
    found
}

fn table(comparison: &Comparison) -> String {
    let mut out = String::new();
    let Comparison { workload, compared, threshold_percent, differences, changes } = comparison;
    let _ = writeln!(
        out,
        "{workload}: medians of {compared}; worse is more than {threshold_percent} %, and twice the noise"
    );
    for difference in differences {
        let _ = writeln!(out, "The reports differ in {difference}");
    }
    let rows = changes.iter().map(|change| {
        let verdict = match change.verdict {
            Verdict::Better => "better",
            Verdict::Same => "same",
            Verdict::Worse => "WORSE",
        };
        vec![
            change.figure.name().to_owned(),
            format!("{:.3}", change.before),
            format!("{:.3}", change.after),
            format!("{:+.1} %", (change.after / change.before - 1.0) * 100.0),
            format!("±{:.1} %", change.noise_percent),
            format!("{} and {}", change.samples[0], change.samples[1]),
            verdict.to_owned(),
        ]
    });
    out + &output::columns(&["FIGURE", "BEFORE", "AFTER", "CHANGE", "NOISE", "SAMPLES", "VERDICT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(figure: Figure, before: &[f64], after: &[f64], expected: Verdict) {
        let change = change(figure, before, after, 10.0).unwrap();
        assert_eq!(change.verdict, expected, "{change:?}");
    }

    #[test]
    fn a_change_counts_beyond_threshold_and_noise() {
        let steady = [100.0, 101.0, 99.0];
        check(Figure::Rate, &steady, &[95.0, 96.0, 94.0], Verdict::Same);
        check(Figure::Rate, &steady, &[80.0, 81.0, 79.0], Verdict::Worse);
        check(Figure::Rate, &steady, &[130.0, 131.0, 129.0], Verdict::Better);
        check(Figure::P99, &steady, &[130.0, 131.0, 129.0], Verdict::Worse);
        check(Figure::P99, &steady, &[80.0, 81.0, 79.0], Verdict::Better);
        // As much worse, but the runs vary by more than that.
        check(Figure::Rate, &[100.0, 160.0, 40.0], &[80.0, 140.0, 20.0], Verdict::Same);
        // One run that something else disturbed says nothing of the others.
        check(Figure::Rate, &steady, &[100.0, 99.0, 5.0, 101.0], Verdict::Same);
        // Of one value nothing is known but itself.
        check(Figure::Syncs, &[0.1], &[0.2], Verdict::Worse);
    }

    #[test]
    fn what_a_report_does_not_tell_is_not_compared() {
        assert_eq!(change(Figure::DiskBytes, &[], &[1.0], 10.0), None);
        assert_eq!(change(Figure::Syncs, &[0.0], &[0.0], 10.0), None);
    }

    #[test]
    fn the_noise_of_a_median_shrinks_with_the_values() {
        let few = deviation_percent(&[90.0, 100.0, 110.0], 100.0);
        let many = deviation_percent(&[90.0, 100.0, 110.0].repeat(100), 100.0);
        assert!((few - 8.56).abs() < 0.01, "{few}");
        assert!((many - few / 10.0).abs() < 0.01, "{many}");
    }
}
