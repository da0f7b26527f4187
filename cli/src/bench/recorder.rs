//! What clients tell of their operations while a load runs, and what becomes of it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{self, Instant};
use tonic::Status;

use super::histogram::{Counts, Histogram};

/// How often the rate is noted.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// How often progress is told where nobody watches it: each time is a line of a log.
const SAMPLES_PER_LINE: usize = 10;

/// More samples than a day has seconds are not kept.
const MOST_SAMPLES: usize = 100_000;

/// An error's text may hold what changes from one to the next: so many kinds are told apart.
const MOST_ERROR_KINDS: usize = 20;

/// Counts and latencies of a load under way, by kind of operation.
#[derive(Debug)]
pub(crate) struct Recorder {
    operations: Vec<(&'static str, Histogram)>,
    /// So many of the first kinds make the rate.
    counted: usize,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Recorder {
    /// `counted` are the kinds whose rate is asked about; `others` are measured beside them.
    pub(crate) fn new(counted: &[&'static str], others: &[&'static str]) -> Self {
        let operations = counted.iter().chain(others).map(|name| (*name, Histogram::new())).collect();
        Self { operations, counted: counted.len(), errors: Mutex::default() }
    }

    pub(crate) fn succeeded(&self, kind: usize, latency: Duration) {
        self.operations[kind].1.record(latency);
    }

    pub(crate) fn failed(&self, status: &Status) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kind = format!("{:?}: {}", status.code(), status.message());
        if errors.len() >= MOST_ERROR_KINDS && !errors.contains_key(&kind) {
            "others".clone_into(&mut kind);
        }
        *errors.entry(kind).or_default() += 1;
    }

    fn counts(&self) -> Vec<(&'static str, Counts)> {
        self.operations.iter().map(|(name, histogram)| (*name, histogram.counts())).collect()
    }

    fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was measured in `elapsed`.
    pub(crate) fn measured(&self, elapsed: Duration, timeline: Vec<Sample>) -> Measured {
        let counts = self.counts();
        let seconds = elapsed.as_secs_f64();
        let number: u64 = counts[..self.counted].iter().map(|(_, counts)| counts.number()).sum();
        Measured {
            seconds,
            operations: number,
            rate: per_second(number, elapsed),
            kinds: counts.iter().map(|(name, counts)| Kind::of(name, counts, elapsed)).collect(),
            errors: self.errors(),
            timeline,
        }
    }

    /// Notes the rate every second and tells it on standard error; never returns.
    pub(crate) async fn sample(&self, timeline: &Mutex<Vec<Sample>>, told: &str) {
        let begin = Instant::now();
        let mut last = (begin, self.counts());
        let mut interval = time::interval_at(begin + SAMPLE_INTERVAL, SAMPLE_INTERVAL);
        interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut progress = Progress::new();
        loop {
            let now = interval.tick().await;
            let counts = self.counts();
            let since = |kind: usize| counts[kind].1.since(&last.1[kind].1);
            let number: u64 = (0..self.counted).map(|kind| since(kind).number()).sum();
            let sample = Sample {
                second: (now - begin).as_secs_f64(),
                rate: per_second(number, now - last.0),
                p99_ms: (0..self.counted).filter_map(|kind| since(kind).quantile(0.99)).max().map(millis),
                errors: self.errors().values().sum(),
            };
            progress.tell(told, &sample);
            last = (now, counts);
            let mut timeline = timeline.lock().unwrap_or_else(PoisonError::into_inner);
            if timeline.len() < MOST_SAMPLES {
                timeline.push(sample);
            }
        }
    }
}

/// The line on standard error that says how far a load is.
struct Progress {
    terminal: bool,
    told: usize,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), told: 0 }
    }

    fn tell(&mut self, what: &str, sample: &Sample) {
        self.told += 1;
        let p99 = sample.p99_ms.map_or_else(String::new, |p99| format!(", p99 {p99:.2} ms"));
        let errors = if sample.errors == 0 { String::new() } else { format!(", {} errors", sample.errors) };
        let line = format!("{what}: {:.0} s, {:.0}/s{p99}{errors}", sample.second, sample.rate);
        let mut out = std::io::stderr().lock();
        // A closed terminal is no failure of the benchmark.
        let _ = match self.terminal {
            true => write!(out, "\r\x1b[K{line}").and_then(|()| out.flush()),
            false if self.told.is_multiple_of(SAMPLES_PER_LINE) => writeln!(out, "{line}"),
            false => Ok(()),
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.told > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// A load's outcome as its clients saw it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    /// Those that succeeded and whose rate is asked about.
    pub(crate) operations: u64,
    pub(crate) rate: f64,
    pub(crate) kinds: Vec<Kind>,
    /// How often each went wrong.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) timeline: Vec<Sample>,
}

/// One kind of operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) rate: f64,
    pub(crate) latency_ms: Latency,
    /// How many took that long, in milliseconds, and no longer: every latency to 1 %.
    pub(crate) histogram: Vec<(f64, u64)>,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    #[serde(rename = "p99.9")]
    pub(crate) p999: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
    pub(crate) stddev: f64,
}

/// The load in one second.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Its end, since the load began.
    pub(crate) second: f64,
    pub(crate) rate: f64,
    /// Nothing if nothing was answered.
    pub(crate) p99_ms: Option<f64>,
    /// All so far.
    pub(crate) errors: u64,
}

impl Kind {
    fn of(name: &str, counts: &Counts, elapsed: Duration) -> Self {
        let at = |part| counts.quantile(part).map_or(0.0, millis);
        Self {
            name: name.to_owned(),
            count: counts.number(),
            rate: per_second(counts.number(), elapsed),
            latency_ms: Latency {
                min: millis(counts.fastest()),
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: millis(counts.slowest()),
                mean: counts.mean_seconds() * 1e3,
                stddev: counts.deviation_seconds() * 1e3,
            },
            histogram: counts.filled().map(|(value, count)| (millis(value), count)).collect(),
        }
    }
}

impl Measured {
    /// The kind that the load is about.
    pub(crate) fn main(&self) -> Option<&Kind> {
        self.kinds.first()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(crate) fn per_second(number: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { number as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_what_is_asked_about() {
        let recorder = Recorder::new(&["read", "write"], &["fill"]);
        for kind in [0, 0, 1, 2] {
            recorder.succeeded(kind, Duration::from_millis(3));
        }
        recorder.failed(&Status::unavailable("gone"));
        let measured = recorder.measured(Duration::from_secs(2), Vec::new());
        assert_eq!((measured.operations, measured.rate, measured.failed()), (3, 1.5, 1));
        assert_eq!(measured.errors, BTreeMap::from([("Unavailable: gone".to_owned(), 1)]));
        assert_eq!(measured.main().map(|kind| (kind.name.as_str(), kind.count)), Some(("read", 2)));
        let latency = measured.kinds[0].latency_ms;
        assert_eq!((latency.min, latency.p50, latency.max), (3.0, 3.0, 3.0));
        assert_eq!(measured.kinds[0].histogram.iter().map(|(_, count)| count).sum::<u64>(), 2);
    }

    #[test]
    fn errors_of_too_many_kinds_are_others() {
        let recorder = Recorder::new(&["put"], &[]);
        for number in 0..100 {
            recorder.failed(&Status::internal(format!("request {number}")));
        }
        let errors = recorder.measured(Duration::from_secs(1), Vec::new()).errors;
        assert_eq!((errors.len(), errors["others"]), (MOST_ERROR_KINDS + 1, 80));
    }
}
