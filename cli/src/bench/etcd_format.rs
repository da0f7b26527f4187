//! Results as etcd's `benchmark` prints them, so that programs that read those read these.

use std::fmt::Write;

use super::recorder::{Kind, Measured};

/// The bars of the histogram: how many, and how long the longest.
const BARS: usize = 10;
const LONGEST_BAR: u64 = 40;
const BAR: &str = "∎";

const PERCENTILES: [f64; 8] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

/// The whole output for a workload of that name.
pub(crate) fn print(workload: &str, measured: &Measured) -> String {
    let mut out = String::new();
    for kind in &measured.kinds {
        // Writing to a string does not fail.
        let _ = match (workload, kind.name.as_str()) {
            ("mixed", "read") => write!(out, "Total Read Ops: {}\nDetails:", kind.count),
            ("mixed", "write") => write!(out, "Total Write Ops: {}\nDetails:", kind.count),
            (_, "event") => out.write_str("\nWatch events summary:\n"),
            ("watch" | "watch-latency", "put") => out.write_str("\nPut summary:\n"),
            _ => Ok(()),
        };
        out.push_str(&summary(kind, measured.seconds));
        out.push('\n');
    }
    if !measured.errors.is_empty() {
        out.push_str("\nError distribution:\n");
        for (error, count) in &measured.errors {
            let _ = writeln!(out, "  [{count}]\t{error}");
        }
    }
    out
}

fn summary(kind: &Kind, seconds: f64) -> String {
    if kind.count == 0 {
        return String::new();
    }
    let latency = kind.latency_ms;
    let mut out = String::from("\nSummary:\n");
    for (name, value) in [
        ("Total", seconds),
        ("Slowest", latency.max / 1e3),
        ("Fastest", latency.min / 1e3),
        ("Average", latency.mean / 1e3),
        ("Stddev", latency.stddev / 1e3),
    ] {
        let _ = writeln!(out, "  {name}:\t{value:.4} secs.");
    }
    let _ = writeln!(out, "  Requests/sec:\t{:.4}", kind.rate);
    out.push_str("\nResponse time histogram:\n");
    let bars = bars(kind);
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    for (end, count) in &bars {
        let length = usize::try_from(count * LONGEST_BAR / most).unwrap_or(0);
        let _ = writeln!(out, "  {:.4} [{count}]\t|{}", end / 1e3, BAR.repeat(length));
    }
    out.push_str("\nLatency distribution:\n");
    for percent in PERCENTILES {
        if let Some(value) = at(kind, percent) {
            let _ = writeln!(out, "  {percent}% in {:.4} secs.", value / 1e3);
        }
    }
    out
}

/// The upper ends of the bars from the fastest to the slowest, in milliseconds, and how many
/// answers each stands for.
#[expect(clippy::cast_precision_loss, reason = "eleven bars")]
fn bars(kind: &Kind) -> Vec<(f64, u64)> {
    let (fastest, slowest) = (kind.latency_ms.min, kind.latency_ms.max);
    let width = (slowest - fastest) / BARS as f64;
    let mut bars: Vec<(f64, u64)> = (0..BARS).map(|bar| (fastest + width * bar as f64, 0)).collect();
    bars.push((slowest, 0));
    let last = bars.len() - 1;
    for (place, (value, count)) in kind.histogram.iter().enumerate() {
        // The fastest is in the first bar, although its bucket ends behind that.
        let bar = if place == 0 { 0 } else { bars.iter().position(|(end, _)| value <= end).unwrap_or(last) };
        bars[bar].1 += count;
    }
    bars
}

/// What so many percent of all answers took at most.
fn at(kind: &Kind, percent: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let wanted = kind.count as f64 * percent / 100.0;
    let mut seen = 0;
    kind.histogram.iter().find_map(|(value, count)| {
        seen += count;
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let reached = seen as f64 >= wanted;
        reached.then_some(*value)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::recorder::Latency;
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind {
            name: name.to_owned(),
            count: 100,
            rate: 50.0,
            latency_ms: Latency { min: 1.0, max: 11.0, mean: 2.0, stddev: 0.5, ..Latency::default() },
            histogram: vec![(1.005, 60), (2.0, 30), (5.5, 9), (11.0, 1)],
        }
    }

    #[test]
    fn the_format_is_that_of_etcds_benchmark() {
        let measured = Measured { seconds: 2.0, kinds: vec![kind("put")], ..Measured::default() };
        let expected = "
Summary:
  Total:\t2.0000 secs.
  Slowest:\t0.0110 secs.
  Fastest:\t0.0010 secs.
  Average:\t0.0020 secs.
  Stddev:\t0.0005 secs.
  Requests/sec:\t50.0000

Response time histogram:
  0.0010 [60]\t|∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
  0.0020 [30]\t|∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
  0.0030 [0]\t|
  0.0040 [0]\t|
  0.0050 [0]\t|
  0.0060 [9]\t|∎∎∎∎∎∎
  0.0070 [0]\t|
  0.0080 [0]\t|
  0.0090 [0]\t|
  0.0100 [0]\t|
  0.0110 [1]\t|

Latency distribution:
  10% in 0.0010 secs.
  25% in 0.0010 secs.
  50% in 0.0010 secs.
  75% in 0.0020 secs.
  90% in 0.0020 secs.
  95% in 0.0055 secs.
  99% in 0.0055 secs.
  99.9% in 0.0110 secs.

";
        assert_eq!(print("put", &measured), expected);
    }

    #[test]
    fn errors_and_kinds_are_told_apart() {
        let measured = Measured {
            seconds: 2.0,
            kinds: vec![kind("read"), Kind { name: "write".to_owned(), ..Kind::default() }],
            errors: BTreeMap::from([("Unavailable: gone".to_owned(), 3)]),
            ..Measured::default()
        };
        let text = print("mixed", &measured);
        assert!(text.starts_with("Total Read Ops: 100\nDetails:\nSummary:\n"), "{text}");
        assert!(
            text.ends_with("Total Write Ops: 0\nDetails:\n\nError distribution:\n  [3]\tUnavailable: gone\n"),
            "{text}"
        );
    }
}
