//! A report as one page that needs nothing else: the verdict, the budget, and a timeline
//! with a lane for each master.

use std::fmt::Write;

use super::report::{Report, Run};
use super::sample::{Outcome, Probe, Role, Sample};

/// A timeline's size and margins, in its own units.
const WIDTH: f64 = 1180.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 30.0;

/// A master's lane: its role, and above it how long answers took.
const ROLE_HEIGHT: f64 = 18.0;
const DOTS_HEIGHT: f64 = 62.0;
const LANE_GAP: f64 = 14.0;

/// Answers' times are drawn between these, each power of ten in the same room.
const LEAST_MS: f64 = 0.3;
const MOST_MS: f64 = 5_000.0;

/// What is shown of the time around the fault.
const BEFORE_MS: f64 = 300.0;
const AFTER_MS: f64 = 1_500.0;

/// A leader's colour tells its term; later terms begin anew.
const TERM_COLOURS: [&str; 5] = ["#2563eb", "#c2410c", "#7c3aed", "#0f766e", "#be185d"];

const STYLE: &str = ":root{color-scheme:light}body{font:15px/1.5 system-ui,sans-serif;color:#1f2328;\
max-width:78rem;margin:1.5rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.1rem;\
margin:1.6rem 0 .4rem}.verdict{padding:.7rem 1rem;border-left:6px solid;border-radius:4px;font-size:1.05rem}\
.kept{background:#e9f7ee;border-color:#1a7f37}.missed{background:#fdecec;border-color:#cf222e}table\
{border-collapse:collapse;margin:.4rem 0}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #d0d7de;\
vertical-align:top}.yes{color:#1a7f37;font-weight:600}.no{color:#cf222e;font-weight:600}svg{width:100%;height:auto;\
display:block}svg text{font:12px system-ui,sans-serif;fill:#1f2328}.note,svg .note{color:#59636e;fill:#59636e;\
font-size:12px}.key{display:inline-block;margin-right:1.2rem;white-space:nowrap}.key svg{display:inline;width:14px;\
height:14px;vertical-align:-2px;margin-right:.3rem}";

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page of a report.
pub fn page(report: &Report) -> String {
    let title = match report.runs.as_slice() {
        [run] => format!("Drill {}", run.scenario),
        runs => format!("{} drills", runs.len()),
    };
    let title = escaped(&title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    let class = if report.passed() { "kept" } else { "missed" };
    // Writing to a string does not fail.
    let _ = writeln!(out, "<p class=\"verdict {class}\">{}</p>", escaped(&report.sentence()));
    if let [run] = report.runs.as_slice() {
        let _ = writeln!(out, "<p>{}</p>", escaped(&run.about));
    }
    budget(&mut out, report);
    match report.runs.as_slice() {
        [run] => one(&mut out, run),
        runs => list(&mut out, runs, report.slack),
    }
    let environment = &report.environment;
    let _ = writeln!(
        out,
        "<h2>Where and how</h2>\n<p>{}<br>{}<br><code>{}</code></p>\n</body></html>",
        escaped(&environment.started),
        escaped(&environment.machine),
        escaped(&environment.command)
    );
    out
}

fn budget(out: &mut String, report: &Report) {
    if report.rows.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Budget</h2>\n<table><tr><th></th><th>Event</th><th>Measured p50 / p99</th><th>Budget p50 / p99</th>\
                  <th></th><th>Runs</th><th>etcd 3.4 and Kubernetes 1.20, defaults, same kind of machine</th></tr>\n",
    );
    for row in &report.rows {
        let (class, word) = if row.kept { ("yes", "kept") } else { ("no", "OVER") };
        let _ = writeln!(
            out,
            "<tr><td><b>{}</b></td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{word}</td><td>{}</td>\
             <td>{}</td></tr>",
            escaped(&row.id),
            escaped(&row.event),
            row.measured(),
            row.budget(),
            row.n,
            escaped(&row.peers)
        );
    }
    out.push_str("</table>\n");
    if (report.slack - 1.0).abs() > f64::EPSILON {
        let _ = writeln!(out, "<p class=\"note\">The budget's times are multiplied by {}.</p>", report.slack);
    }
}

fn one(out: &mut String, run: &Run) {
    if let (Some(fault), false) = (run.faults.first(), run.samples.is_empty()) {
        legend(out);
        let near = Range {
            from: (fault.from_ms - BEFORE_MS).max(run.steady.from_ms),
            to: (fault.from_ms + AFTER_MS).min(run.end_ms),
        };
        out.push_str("<h2>Around the fault</h2>\n");
        timeline(out, run, near);
        out.push_str("<h2>The whole run</h2>\n");
        timeline(out, run, Range { from: run.steady.from_ms, to: run.end_ms });
    }
    out.push_str("<h2>What must hold whatever the times are</h2>\n<table>\n");
    for check in &run.checks {
        let (class, word) = if check.passed { ("yes", "holds") } else { ("no", "BROKEN") };
        let _ = writeln!(
            out,
            "<tr><td class=\"{class}\">{word}</td><td>{}</td><td>{}</td></tr>",
            escaped(&check.name),
            escaped(&check.detail)
        );
    }
    out.push_str("</table>\n");
    for what in &run.not_measured {
        let _ = writeln!(out, "<p>Not measured: {}</p>", escaped(what));
    }
    out.push_str(
        "<h2>Steady state before the fault</h2>\n<table><tr><th>Probe</th><th>Answers</th><th>p50</th>\
                  <th>p99</th></tr>\n",
    );
    for usual in &run.steady.probes {
        let name = usual.probe.name();
        let _ = writeln!(
            out,
            "<tr><td>{name}</td><td>{}</td><td>{:.1} ms</td><td>{:.1} ms</td></tr>",
            usual.n, usual.p50_ms, usual.p99_ms
        );
    }
    out.push_str("</table>\n");
}

fn list(out: &mut String, runs: &[Run], slack: f64) {
    out.push_str("<h2>Runs</h2>\n<table>\n");
    for run in runs {
        let (class, word) = if run.passed(slack) { ("yes", "kept") } else { ("no", "missed") };
        let folder = escaped(&run.folder());
        let _ = writeln!(
            out,
            "<tr><td class=\"{class}\">{word}</td><td><a href=\"{folder}/report.html\">{folder}</a></td><td>{}</td></tr>",
            escaped(&run.sentence(slack))
        );
    }
    out.push_str("</table>\n");
}

fn legend(out: &mut String) {
    let dot =
        |shape: &str, says: &str| format!("<span class=\"key\"><svg viewBox=\"0 0 14 14\">{shape}</svg>{says}</span>");
    let square = |colour: &str| format!("<rect width=\"14\" height=\"14\" fill=\"{colour}\"/>");
    let _ = writeln!(
        out,
        "<h2>How to read the timeline</h2>\n<p>{}{}{}{}{}{}{}{}<br><span class=\"note\">Each dot is one request, at \
         the moment it was answered; its height is how long that took, each power of ten in the same room. Hover to \
         read it. A leader's colour is its term's.</span></p>",
        dot(&square(TERM_COLOURS[0]), "leader"),
        dot(&square("#cfd8e3"), "follower"),
        dot(&square("#f2b84b"), "knows no leader"),
        dot(&square("#57606a"), "silent"),
        dot(&circle(7.0, 7.0, colour(Probe::Write)), "write"),
        dot(&circle(7.0, 7.0, colour(Probe::Read)), "read"),
        dot(&circle(7.0, 7.0, colour(Probe::InFlight)), "write in flight at the fault"),
        dot(&cross(7.0, 7.0), "failed"),
    );
}

/// The part of a run's time that is shown.
#[derive(Clone, Copy)]
struct Range {
    from: f64,
    to: f64,
}

impl Range {
    fn place(self, ms: f64) -> f64 {
        let part = (ms - self.from) / (self.to - self.from).max(1.0);
        LEFT + (WIDTH - LEFT - RIGHT) * part.clamp(0.0, 1.0)
    }

    fn holds(self, ms: f64) -> bool {
        (self.from..=self.to).contains(&ms)
    }
}

/// How far above the bottom of its room an answer is drawn.
fn height(took_ms: f64) -> f64 {
    let part = (took_ms.clamp(LEAST_MS, MOST_MS) / LEAST_MS).log10() / (MOST_MS / LEAST_MS).log10();
    part * (DOTS_HEIGHT - 8.0) + 4.0
}

fn colour(probe: Probe) -> &'static str {
    match probe {
        Probe::Write => "#0969da",
        Probe::Read => "#8c959f",
        Probe::InFlight => "#bf3989",
        Probe::Client => "#0969da",
        Probe::Pod => "#1a7f37",
        Probe::Controller => "#8250df",
        Probe::Watch | Probe::Herd => "#9a6700",
    }
}

fn circle(x: f64, y: f64, colour: &str) -> String {
    format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"{colour}\" fill-opacity=\".75\"/>")
}

fn cross(x: f64, y: f64) -> String {
    let (left, right, top, bottom) = (x - 3.5, x + 3.5, y - 3.5, y + 3.5);
    format!(
        "<path d=\"M{left:.1} {top:.1}L{right:.1} {bottom:.1}M{left:.1} {bottom:.1}L{right:.1} {top:.1}\" \
         stroke=\"#cf222e\" stroke-width=\"1.8\"/>"
    )
}

/// A lane: what it is called, and which samples are in it.
struct Lane<'a> {
    name: &'a str,
    note: &'a str,
    master: bool,
    holds: Box<dyn Fn(&Sample) -> bool + 'a>,
}

fn lanes(run: &Run) -> Vec<Lane<'_>> {
    let of_store = |probe: Probe| matches!(probe, Probe::Write | Probe::Read | Probe::InFlight);
    let mut lanes: Vec<Lane<'_>> = run
        .masters
        .iter()
        .map(|master| Lane {
            name: master,
            note: "store, asked directly",
            master: true,
            holds: Box::new(move |sample| sample.via == *master && of_store(sample.probe)),
        })
        .collect();
    for (probe, name, note) in [
        (Probe::Client, "client", "by the endpoint"),
        (Probe::Pod, "pods", "created to bound"),
        (Probe::Controller, "controllers", "Deployment to ReplicaSet"),
        (Probe::Watch, "watches", "opened anew"),
        (Probe::Herd, "many watches", "each opened anew"),
    ] {
        if run.samples.iter().any(|sample| sample.probe == probe) {
            lanes.push(Lane { name, note, master: false, holds: Box::new(move |sample| sample.probe == probe) });
        }
    }
    lanes
}

fn timeline(out: &mut String, run: &Run, range: Range) {
    let lanes = lanes(run);
    let lane_height = |lane: &Lane<'_>| DOTS_HEIGHT + LANE_GAP + if lane.master { ROLE_HEIGHT } else { 0.0 };
    let total = TOP + lanes.iter().map(lane_height).sum::<f64>() + BOTTOM;
    let _ = writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {total}\" role=\"img\" aria-label=\"timeline\">");
    faults(out, run, range, total);
    axis(out, run, range, total);
    let mut top = TOP;
    for lane in &lanes {
        scale(out, top);
        let _ = writeln!(
            out,
            "<text x=\"4\" y=\"{:.1}\" font-weight=\"600\">{}</text><text class=\"note\" x=\"4\" y=\"{:.1}\">{}</text>",
            top + 20.0,
            escaped(lane.name),
            top + 36.0,
            lane.note
        );
        gaps(out, run, lane, range, top);
        for sample in run.samples.iter().filter(|sample| range.holds(sample.end_ms()) && (lane.holds)(sample)) {
            dot(out, sample, range, top);
        }
        if lane.master {
            roles(out, run, lane.name, range, top + DOTS_HEIGHT);
        }
        top += lane_height(lane);
    }
    out.push_str("</svg>\n");
}

fn faults(out: &mut String, run: &Run, range: Range, total: f64) {
    let mut label_end = 0.0;
    let mut row = 0.0;
    for fault in &run.faults {
        if fault.to_ms < range.from || fault.from_ms > range.to {
            continue;
        }
        let (from, to) = (range.place(fault.from_ms), range.place(fault.to_ms));
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#cf222e\" fill-opacity=\".07\"/>\
             <line x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#cf222e\"/>",
            to - from,
            total - TOP - BOTTOM,
            TOP - 8.0,
            total - BOTTOM
        );
        // Labels that would overlap take turns in two rows.
        row = if from < label_end { 1.0 - row } else { 0.0 };
        let label = format!("{} to {}", fault.what, fault.victim);
        #[expect(clippy::cast_precision_loss, reason = "a short text")]
        let width = label.len() as f64 * 6.6;
        label_end = from + width;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#cf222e\" style=\"fill:#cf222e;font-weight:600\">{}</text>",
            from + 3.0,
            14.0 + row * 14.0,
            escaped(&label)
        );
        if range.holds(fault.to_ms) {
            let _ = writeln!(
                out,
                "<line x1=\"{to:.1}\" x2=\"{to:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#cf222e\" \
                 stroke-dasharray=\"3 3\"/><text class=\"note\" x=\"{:.1}\" y=\"{:.1}\">{} answers again</text>",
                total - BOTTOM,
                to + 3.0,
                TOP - 3.0,
                escaped(&fault.victim)
            );
        }
    }
}

/// Times are told from the first fault.
fn axis(out: &mut String, run: &Run, range: Range, total: f64) {
    const MOST_MARKS: f64 = 14.0;
    let zero = run.faults.first().map_or(range.from, |fault| fault.from_ms);
    let length = range.to - range.from;
    let steps = [50.0, 100.0, 250.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 30_000.0];
    let step = steps.into_iter().find(|step| length / step <= MOST_MARKS).unwrap_or(60_000.0);
    let mut at = ((range.from - zero) / step).ceil() * step;
    while zero + at <= range.to {
        let x = range.place(zero + at);
        let label = if step < 1_000.0 { format!("{at:+.0} ms") } else { format!("{:+.0} s", at / 1e3) };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#8c959f\" stroke-opacity=\".25\"/>\
             <text class=\"note\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            total - BOTTOM,
            total - BOTTOM + 16.0
        );
        at += step;
    }
}

fn scale(out: &mut String, top: f64) {
    let bottom = top + DOTS_HEIGHT;
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{DOTS_HEIGHT}\" fill=\"none\" stroke=\"#d0d7de\"/>",
        WIDTH - LEFT - RIGHT
    );
    for (ms, name) in [(1.0, "1 ms"), (100.0, "0.1 s"), (1_000.0, "1 s")] {
        let y = bottom - height(ms);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#8c959f\" stroke-opacity=\".3\" \
             stroke-dasharray=\"2 4\"/><text class=\"note\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
             style=\"font-size:9px\">{name}</text>",
            WIDTH - RIGHT,
            LEFT - 4.0,
            y + 3.0
        );
    }
}

fn gaps(out: &mut String, run: &Run, lane: &Lane<'_>, range: Range, top: f64) {
    let of_lane = |via: &str, probe: Probe| match lane.master {
        true => via == lane.name && probe == Probe::Write,
        false => lane.name == "client" && probe == Probe::Client,
    };
    for gap in run.gaps.iter().filter(|gap| of_lane(&gap.via, gap.probe)) {
        let (from, to) = (gap.from_ms.max(range.from), gap.to_ms.min(range.to));
        if from >= to {
            continue;
        }
        let (x, width) = (range.place(from), range.place(to) - range.place(from));
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#cf222e\" \
             fill-opacity=\".16\"><title>no answer for {:.0} ms</title></rect>",
            top + 1.0,
            DOTS_HEIGHT - 2.0,
            gap.to_ms - gap.from_ms
        );
        if width > 70.0 {
            let _ = writeln!(
                out,
                "<text class=\"note\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">no answer {:.0} ms</text>",
                x + width / 2.0,
                top + 12.0,
                gap.to_ms - gap.from_ms
            );
        }
    }
}

fn dot(out: &mut String, sample: &Sample, range: Range, top: f64) {
    let (x, y) = (range.place(sample.end_ms()), top + DOTS_HEIGHT - height(sample.took_ms));
    let shape = match sample.outcome {
        Outcome::Ok => circle(x, y, colour(sample.probe)),
        Outcome::Failed => cross(x, y),
        // A master that is down refuses so often that crosses would cover everything.
        Outcome::Unreachable => circle(x, top + DOTS_HEIGHT - 3.0, "#cf222e"),
    };
    let outcome = match (&sample.error, sample.outcome) {
        (Some(error), _) => error.as_str(),
        (None, Outcome::Ok) => "ok",
        (None, _) => "failed",
    };
    let term = sample.term.map_or_else(String::new, |term| format!(", term {term}"));
    let name = sample.probe.name();
    let _ = writeln!(
        out,
        "<g><title>{name} via {}: {:.1} ms{term}: {}</title>{shape}</g>",
        escaped(&sample.via),
        sample.took_ms,
        escaped(outcome)
    );
}

fn roles(out: &mut String, run: &Run, master: &str, range: Range, top: f64) {
    for span in run.roles.iter().filter(|span| span.master == master) {
        let (from, to) = (span.from_ms.max(range.from), span.to_ms.min(range.to));
        if from >= to {
            continue;
        }
        let (fill, ink, word) = match span.role {
            Role::Leader => (term_colour(span.term), "#fff", format!("leads term {}", span.term)),
            Role::Follower => ("#cfd8e3", "#1f2328", format!("follows in term {}", span.term)),
            Role::Leaderless => ("#f2b84b", "#1f2328", "knows no leader".to_owned()),
            Role::Silent => ("#57606a", "#fff", "silent".to_owned()),
        };
        let (x, width) = (range.place(from), range.place(to) - range.place(from));
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{ROLE_HEIGHT}\" fill=\"{fill}\">\
             <title>{master}: {word}</title></rect>"
        );
        #[expect(clippy::cast_precision_loss, reason = "a short text")]
        if width > word.len() as f64 * 6.8 {
            let _ =
                writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:{ink}\">{word}</text>", x + 4.0, top + 13.0);
        }
    }
}

fn term_colour(term: u64) -> &'static str {
    let number = usize::try_from(term).unwrap_or_default();
    TERM_COLOURS[number % TERM_COLOURS.len()]
}

#[cfg(test)]
mod tests {
    use super::super::report::{Check, Environment, FaultSpan, Figure, Gap};
    use super::super::sample::RoleSpan;
    use super::*;

    fn run() -> Run {
        let span = |master: &str, role: Role, term: u64, from_ms: f64, to_ms: f64| RoleSpan {
            master: master.into(),
            role,
            term,
            from_ms,
            to_ms,
        };
        let sample = |via: &str, at_ms: f64, outcome: Outcome| Sample {
            probe: Probe::Write,
            via: via.into(),
            at_ms,
            took_ms: 2.0,
            outcome,
            term: Some(3),
            retry: false,
            error: (outcome != Outcome::Ok).then(|| "lost <it>".to_owned()),
        };
        Run {
            scenario: "leader-kill".into(),
            number: 1,
            masters: vec!["m1".into(), "m2".into()],
            faults: vec![FaultSpan { victim: "m1".into(), what: "SIGKILL".into(), from_ms: 1000.0, to_ms: 2000.0 }],
            end_ms: 3000.0,
            figures: vec![Figure { id: "F1".into(), value: Some(0.1) }],
            checks: vec![Check { name: "hashes".into(), passed: true, detail: "all the same".into() }],
            gaps: vec![Gap { via: "m1".into(), probe: Probe::Write, from_ms: 990.0, to_ms: 1990.0 }],
            roles: vec![
                span("m1", Role::Leader, 2, 0.0, 1000.0),
                span("m1", Role::Silent, 0, 1000.0, 2000.0),
                span("m2", Role::Follower, 2, 0.0, 1050.0),
                span("m2", Role::Leader, 3, 1050.0, 3000.0),
            ],
            samples: vec![sample("m2", 900.0, Outcome::Ok), sample("m1", 995.0, Outcome::Failed)],
            ..Run::default()
        }
    }

    #[test]
    fn the_page_of_a_run_tells_its_story() {
        let page = page(&Report::new(Environment::default(), 1.0, vec![run()]));
        for part in [
            "the budget was kept",
            "SIGKILL to m1",
            "m1 answers again",
            "leads term 2",
            "leads term 3",
            "no answer for 1000 ms",
            "store write via m1: 2.0 ms, term 3: lost &lt;it&gt;",
            "0.150 / 0.500 s",
            "median 1.32 s, max 2.11 s",
            "all the same",
        ] {
            assert!(page.contains(part), "{part:?} is not in the page");
        }
        assert_eq!(page.matches("<svg viewBox=\"0 0 1180").count(), 2);
        for outside in ["http://", "https://", "<script", "<link"] {
            assert!(!page.contains(outside), "the page needs nothing else");
        }
    }

    #[test]
    fn the_page_of_many_runs_leads_to_theirs() {
        let page = page(&Report::new(Environment::default(), 1.0, vec![run(), Run { number: 2, ..run() }]));
        assert!(page.contains("href=\"leader-kill-002/report.html\""));
        assert!(!page.contains("aria-label=\"timeline\""));
    }

    #[test]
    fn each_power_of_ten_takes_the_same_room() {
        let heights = [1.0, 10.0, 100.0, 1_000.0].map(height);
        let steps: Vec<f64> = heights.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| (step - steps[0]).abs() < 1e-9), "{steps:?}");
        assert!((height(0.0) - height(LEAST_MS)).abs() < 1e-9);
    }
}
