//! A report as one page that needs nothing else: tables, and plots as SVG.

use std::fmt::Write;

use super::report::{Report, known, milliseconds};
use super::run::Run;

/// A plot's size and margins, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 15.0;

/// One for each cluster; told apart also without colours, by the dashes.
const COLOURS: [&str; 2] = ["#1f6feb", "#d1570a"];
const DASHES: [&str; 2] = ["", "6 4"];

/// The parts of all answers that are marked below the plot of latencies.
const MARKS: [(f64, &str); 6] =
    [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];

/// What is beyond the last mark is drawn at it.
const LAST_PART: f64 = 0.9999;

/// Points of a line that more would not change to the eye.
const MOST_POINTS: usize = 1_000;

pub(crate) fn page(report: &Report) -> String {
    let title = escaped(&format!("quorate bench {}", report.workload));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\
         :root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
         padding:0 1rem}}table{{border-collapse:collapse;margin:1rem 0}}td,th{{padding:.2rem .8rem;text-align:right;\
         border-bottom:1px solid #8884}}td:first-child,th:first-child{{text-align:left}}svg{{width:100%;height:auto}}\
         svg text{{fill:currentColor;font-size:12px}}pre{{overflow-x:auto}}</style></head><body>\n<h1>{title}</h1>\n"
    );
    // Writing to a string does not fail.
    let _ = writeln!(out, "<p>{}</p>", escaped(&report.environment.line()));
    legend(&mut out, report);
    table(&mut out, report);
    out.push_str("<h2>Latency distribution</h2>\n");
    latencies(&mut out, report);
    out.push_str("<h2>Rate over time</h2>\n");
    rates(&mut out, report);
    let settings = serde_json::to_string_pretty(&report.settings).unwrap_or_default();
    let _ = writeln!(out, "<h2>Settings</h2>\n<pre>{}</pre>\n</body></html>", escaped(&settings));
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn legend(out: &mut String, report: &Report) {
    out.push_str("<ul>\n");
    for (cluster, colour) in report.clusters.iter().zip(COLOURS) {
        let servers = cluster.servers.iter().map(|server| {
            let role = if server.leader { ", leader" } else { "" };
            format!("{} ({} {}{role})", server.url, server.program.name(), server.version)
        });
        let servers = escaped(&servers.collect::<Vec<_>>().join(", "));
        let _ = writeln!(out, "<li><b style=\"color:{colour}\">{}</b>: {servers}</li>", escaped(&cluster.name));
    }
    out.push_str("</ul>\n");
}

fn table(out: &mut String, report: &Report) {
    out.push_str("<table><tr>");
    for name in ["Cluster", "Kind", "Count", "Rate/s", "p50", "p90", "p99", "p99.9", "Max", "Errors", "Server CPU/op"] {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr>\n");
    for run in &report.runs {
        for kind in &run.measured.kinds {
            let latency = kind.latency_ms;
            let times = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max].map(milliseconds);
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.0}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escaped(&report.clusters[run.cluster].name),
                escaped(&kind.name),
                kind.count,
                kind.rate,
                times.join("</td><td>"),
                run.measured.failed(),
                known(run.servers.cpu_micros, |micros| format!("{micros:.1} µs")),
            );
        }
    }
    out.push_str("</table>\n");
    for ratio in &report.ratios {
        let pairs: Vec<String> = ratio.pairs.iter().map(|pair| format!("{pair:.2}")).collect();
        let _ = writeln!(
            out,
            "<p>Ratio of the {}: median <b>{:.2}×</b> of {}</p>",
            ratio.figure.name(),
            ratio.median,
            pairs.join(", ")
        );
    }
}

/// Where a part of all answers is drawn: each nine takes the same room.
fn place_of_part(part: f64) -> f64 {
    let nines = |part: f64| -(1.0 - part.min(LAST_PART)).log10();
    LEFT + (WIDTH - LEFT) * nines(part) / nines(LAST_PART)
}

/// From the least to the most, upwards.
#[derive(Clone, Copy)]
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        let part = if self.most > self.least { (value - self.least) / (self.most - self.least) } else { 0.5 };
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * part
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn latencies(out: &mut String, report: &Report) {
    let shown: Vec<(&Run, Vec<(f64, f64)>)> = report
        .runs
        .iter()
        .filter_map(|run| {
            let kind = run.measured.main().filter(|kind| kind.count > 0)?;
            let mut seen = 0;
            let points = kind.histogram.iter().map(|(value, count)| {
                seen += count;
                (seen as f64 / kind.count as f64, value.max(1e-3).log10())
            });
            Some((run, points.collect()))
        })
        .collect();
    let values = || shown.iter().flat_map(|(_, points)| points.iter().map(|(_, value)| *value));
    let (least, most) = values().fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)));
    if least > most {
        return;
    }
    // Whole powers of ten.
    let scale = Scale { least: least.floor(), most: most.ceil().max(least.floor() + 1.0) };
    open(out, "latency in milliseconds by part of all answers");
    #[expect(clippy::cast_possible_truncation, reason = "a few powers of ten")]
    for power in scale.least as i32..=scale.most as i32 {
        line(out, scale.place(f64::from(power)), &format!("{} ms", 10_f64.powi(power)));
    }
    for (part, name) in MARKS {
        mark(out, place_of_part(part), name);
    }
    for (run, points) in shown {
        let places = points.into_iter().map(|(part, value)| (place_of_part(part), scale.place(value)));
        draw(out, run.cluster, places);
    }
    out.push_str("</svg>\n");
}

fn rates(out: &mut String, report: &Report) {
    let samples = || report.runs.iter().flat_map(|run| &run.measured.timeline);
    let longest = samples().map(|sample| sample.second).fold(0.0, f64::max);
    let most = samples().map(|sample| sample.rate).fold(0.0, f64::max);
    if longest <= 0.0 || most <= 0.0 {
        out.push_str("<p>No run took a second.</p>\n");
        return;
    }
    const STEPS: u8 = 4;
    let scale = Scale { least: 0.0, most };
    let place = |second: f64| LEFT + (WIDTH - LEFT) * second / longest;
    open(out, "operations a second by time");
    for step in 0..=STEPS {
        let part = f64::from(step) / f64::from(STEPS);
        line(out, scale.place(most * part), &format!("{:.0}/s", most * part));
        mark(out, place(longest * part), &format!("{:.0} s", longest * part));
    }
    for run in &report.runs {
        let every = run.measured.timeline.len().div_ceil(MOST_POINTS).max(1);
        let points = run.measured.timeline.iter().step_by(every);
        draw(out, run.cluster, points.map(|sample| (place(sample.second), scale.place(sample.rate))));
    }
    out.push_str("</svg>\n");
}

fn open(out: &mut String, label: &str) {
    let _ = writeln!(out, "<svg viewBox=\"0 0 {} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">", WIDTH + 30.0);
}

/// A horizontal line with its value.
fn line(out: &mut String, y: f64, name: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#8884\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
        LEFT - 6.0,
        y + 4.0
    );
}

fn mark(out: &mut String, x: f64, name: &str) {
    let y = HEIGHT - BOTTOM + 20.0;
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{name}</text>");
}

fn draw(out: &mut String, cluster: usize, points: impl Iterator<Item = (f64, f64)>) {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let (colour, dashes) = (COLOURS[cluster % COLOURS.len()], DASHES[cluster % DASHES.len()]);
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-dasharray=\"{dashes}\"/>",
        points.join(" ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_takes_the_same_room() {
        let places = [0.0, 0.9, 0.99, 0.999, 0.9999].map(place_of_part);
        assert!((places[0] - LEFT).abs() < 1e-9 && (places[4] - WIDTH).abs() < 1e-6, "{places:?}");
        let gaps: Vec<f64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (gap - gaps[0]).abs() < 1e-6), "{gaps:?}");
        assert!((place_of_part(1.0) - WIDTH).abs() < 1e-6);
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
