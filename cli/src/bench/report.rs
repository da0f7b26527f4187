//! What a benchmark says at its end, for people and for programs.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::environment::Environment;
use super::run::Run;
use super::soak::Drift;
use super::target::Server;
use crate::output;

/// The version of the JSON.
const SCHEMA: &str = "quorate-bench/1";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    schema: String,
    /// When the report was made.
    time: String,
    pub(crate) workload: String,
    /// The flags of the workload.
    pub(crate) settings: Map<String, Value>,
    pub(crate) environment: Environment,
    /// One, or the two that were compared.
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) runs: Vec<Run>,
    /// The first cluster's figures divided by the second's, pair by pair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ratios: Vec<Ratio>,
    /// What a search for a rate found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) search: Option<Found>,
    /// What a soak found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drift: Option<Drift>,
    /// Somebody stopped it before its end.
    pub(crate) interrupted: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) servers: Vec<Server>,
}

/// The highest rate that kept a promise, if any did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) p99_ms: f64,
    pub(crate) rate: Option<f64>,
}

/// How two clusters compare in one figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) figure: Figure,
    pub(crate) pairs: Vec<f64>,
    pub(crate) median: f64,
}

/// A figure of a run that runs are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Figure {
    #[serde(rename = "rate")]
    Rate,
    #[serde(rename = "p50")]
    P50,
    #[serde(rename = "p99")]
    P99,
    #[serde(rename = "server CPU per operation")]
    ServerCpu,
    #[serde(rename = "disk bytes per operation")]
    DiskBytes,
    #[serde(rename = "syncs per operation")]
    Syncs,
    #[serde(rename = "memory of the largest server")]
    Memory,
}

impl Figure {
    pub(crate) const ALL: [Self; 7] =
        [Self::Rate, Self::P50, Self::P99, Self::ServerCpu, Self::DiskBytes, Self::Syncs, Self::Memory];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::ServerCpu => "server CPU per operation",
            Self::DiskBytes => "disk bytes per operation",
            Self::Syncs => "syncs per operation",
            Self::Memory => "memory of the largest server",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        self == Self::Rate
    }

    /// Nothing where a server does not tell.
    pub(crate) fn of(self, run: &Run) -> Option<f64> {
        let latency = run.measured.main().map(|kind| kind.latency_ms);
        match self {
            Self::Rate => Some(run.measured.rate),
            Self::P50 => latency.map(|latency| latency.p50),
            Self::P99 => latency.map(|latency| latency.p99),
            Self::ServerCpu => run.servers.cpu_micros,
            Self::DiskBytes => run.servers.disk_bytes,
            Self::Syncs => run.servers.syncs,
            Self::Memory => run.servers.memory_bytes,
        }
    }
}

impl Report {
    pub(crate) fn new(
        workload: &str,
        settings: Map<String, Value>,
        environment: Environment,
        clusters: Vec<Cluster>,
        runs: Vec<Run>,
        interrupted: bool,
    ) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            time: jiff::Timestamp::now().to_string(),
            workload: workload.to_owned(),
            settings,
            environment,
            ratios: ratios(&runs),
            search: None,
            drift: None,
            clusters,
            runs,
            interrupted,
        }
    }

    /// # Errors
    /// When `text` is no report of this program.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(text).context("this is no report that --out wrote")?;
        ensure!(report.schema == SCHEMA, "the report is of the form {:?}, and {SCHEMA} is known", report.schema);
        ensure!(report.runs.iter().all(|run| run.cluster < report.clusters.len()), "a run names no cluster");
        Ok(report)
    }

    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let clusters = self.clusters.iter().map(|cluster| {
            let versions = cluster.servers.iter().map(|server| server.version.as_str());
            let versions: std::collections::BTreeSet<&str> = versions.collect();
            format!("{} (etcd v3 contract {})", cluster.name, versions.into_iter().collect::<Vec<_>>().join(", "))
        });
        let _ = writeln!(out, "{}: {}", self.workload, clusters.collect::<Vec<_>>().join(" against "));
        let header = ["CLUSTER", "KIND", "COUNT", "DUE/S", "RATE/S", "P50", "P90", "P99", "P99.9", "MAX", "ERRORS"];
        let rows = self.runs.iter().flat_map(|run| {
            run.measured.kinds.iter().enumerate().map(|(place, kind)| {
                let latency = kind.latency_ms;
                let times = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max].map(milliseconds);
                let mut row = vec![
                    self.clusters[run.cluster].name.clone(),
                    kind.name.clone(),
                    kind.count.to_string(),
                    run.rate_due.map_or_else(|| "-".to_owned(), |due| format!("{due:.0}")),
                    format!("{:.0}", kind.rate),
                ];
                row.extend(times);
                row.push(if place == 0 { run.measured.failed().to_string() } else { String::new() });
                row
            })
        });
        out.push_str(&output::columns(&header, rows));
        out.push('\n');
        let header = ["CLUSTER", "CPU/OP", "DISK BYTES/OP", "SYNCS/OP", "MEMORY", "CLIENT CPU/OP"];
        let rows = self.runs.iter().map(|run| {
            let micros = |value: Option<f64>| known(value, |micros| format!("{micros:.1} µs"));
            vec![
                self.clusters[run.cluster].name.clone(),
                micros(run.servers.cpu_micros),
                known(run.servers.disk_bytes, |bytes| format!("{bytes:.0} B")),
                known(run.servers.syncs, |syncs| format!("{syncs:.4}")),
                known(run.servers.memory_bytes, |bytes| format!("{:.1} MiB", bytes / f64::from(1 << 20))),
                micros(run.client_cpu_micros),
            ]
        });
        out.push_str(&output::columns(&header, rows));
        for run in &self.runs {
            for (error, count) in &run.measured.errors {
                let _ = writeln!(out, "{}: {count} × {error}", self.clusters[run.cluster].name);
            }
        }
        if let [first, second] = self.clusters.as_slice() {
            let _ = writeln!(out, "\n{} divided by {}, pair by pair", first.name, second.name);
            let rows = self.ratios.iter().map(|ratio| {
                let pairs: Vec<String> = ratio.pairs.iter().map(|pair| format!("{pair:.2}")).collect();
                vec![ratio.figure.name().to_owned(), format!("{:.2}×", ratio.median), pairs.join(" ")]
            });
            out.push_str(&output::columns(&["FIGURE", "MEDIAN", "PAIRS"], rows));
        }
        match self.search {
            Some(Found { p99_ms, rate: Some(rate) }) => {
                let _ = writeln!(out, "Up to {rate:.0}/s, 99 % take no longer than {}.", milliseconds(p99_ms));
            }
            Some(Found { p99_ms, rate: None }) => {
                let _ = writeln!(out, "At no rate do 99 % take no longer than {}.", milliseconds(p99_ms));
            }
            None => {}
        }
        if let Some(drift) = &self.drift {
            out.push_str(&drift.text());
        }
        if self.interrupted {
            out.push_str("Stopped before its end: the figures are of what ran until then.\n");
        }
        let _ = writeln!(out, "{}", self.environment.line());
        out
    }
}

/// A time with as many digits as mean something.
pub(crate) fn milliseconds(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2} ms"),
        value if value < 100.0 => format!("{value:.1} ms"),
        value => format!("{value:.0} ms"),
    }
}

pub(crate) fn known(value: Option<f64>, text: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "not known".to_owned(), text)
}

/// The figures of cluster 0 divided by those of cluster 1 in the same pair; figures that are
/// not known of both in every pair are left out.
fn ratios(runs: &[Run]) -> Vec<Ratio> {
    let of = |cluster: usize| runs.iter().filter(move |run| run.cluster == cluster);
    let ratio = |figure: Figure| {
        let pairs = of(0).filter_map(|first| Some((first, of(1).find(|second| second.pair == first.pair)?)));
        let pairs = pairs.map(|(first, second)| {
            let (first, second) = (figure.of(first)?, figure.of(second)?);
            (first.is_finite() && second > 0.0).then(|| first / second)
        });
        let pairs = pairs.collect::<Option<Vec<f64>>>().filter(|pairs| !pairs.is_empty())?;
        Some(Ratio { figure, median: median(&pairs)?, pairs })
    };
    Figure::ALL.into_iter().filter_map(ratio).collect()
}

/// The value in the middle; of two, their mean.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorder::Measured;
    use super::super::servers::Cost;
    use super::*;

    fn run(cluster: usize, pair: usize, rate: f64, cpu: Option<f64>) -> Run {
        Run {
            cluster,
            pair,
            measured: Measured { rate, ..Measured::default() },
            servers: Cost { cpu_micros: cpu, ..Cost::default() },
            ..Run::default()
        }
    }

    #[test]
    fn ratios_are_of_the_same_pair_and_of_what_both_tell() {
        let runs = [
            run(0, 0, 200.0, Some(1.0)),
            run(1, 0, 100.0, Some(4.0)),
            run(1, 1, 100.0, None),
            run(0, 1, 400.0, Some(1.0)),
            run(0, 2, 300.0, Some(1.0)),
            run(1, 2, 100.0, Some(4.0)),
            // Its partner did not run any more.
            run(0, 3, 900.0, Some(1.0)),
        ];
        let expected = Ratio { figure: Figure::Rate, pairs: vec![2.0, 4.0, 3.0], median: 3.0 };
        assert_eq!(ratios(&runs), [expected]);
        assert_eq!(ratios(&runs[..1]), []);
    }

    #[test]
    fn a_report_is_read_again_unless_it_is_none() {
        let clusters = vec![Cluster { name: "quorate".to_owned(), servers: Vec::new() }];
        let environment = Environment::of_this_machine(None);
        let report = Report::new("put", Map::new(), environment, clusters, vec![run(0, 0, 5.0, None)], false);
        let text = serde_json::to_string(&report).unwrap();
        let read = Report::parse(&text).unwrap();
        assert_eq!((read.workload.as_str(), read.runs[0].measured.rate), ("put", 5.0));
        assert!(Report::parse("{}").is_err());
        assert!(Report::parse(&text.replace(SCHEMA, "quorate-bench/0")).is_err());
        assert!(Report::parse(&text.replace("\"cluster\":0", "\"cluster\":1")).is_err());
    }

    #[test]
    fn medians() {
        for (values, expected) in
            [(&[][..], None), (&[3.0], Some(3.0)), (&[4.0, 1.0], Some(2.5)), (&[9.0, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(values), expected);
        }
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!([0.123, 12.34, 1234.5].map(milliseconds), ["0.12 ms", "12.3 ms", "1234 ms"]);
        assert_eq!(known(None, |value| value.to_string()), "not known");
    }
}
