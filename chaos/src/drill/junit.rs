//! A report as JUnit XML, for what runs tests and shows them.

use std::fmt::Write;

use super::budget;
use super::html::escaped;
use super::report::{Report, Run};

/// One suite for each run; a case for each line of the budget and each check.
pub fn xml(report: &Report) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"quorate drill\">\n");
    for run in &report.runs {
        suite(&mut out, run, report.slack);
    }
    out.push_str("</testsuites>\n");
    out
}

fn suite(out: &mut String, run: &Run, slack: f64) {
    let (missed, broken) = (run.missed(slack), run.broken());
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "  <testsuite name=\"{} {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">",
        escaped(&run.scenario),
        run.number,
        run.figures.len() + run.checks.len() + run.not_measured.len(),
        missed.len() + broken.len(),
        run.not_measured.len(),
        run.end_ms / 1e3,
    );
    let mut case = |name: &str, inside: &str| {
        let (suite, name) = (escaped(&run.scenario), escaped(name));
        let _ = writeln!(out, "    <testcase classname=\"{suite}\" name=\"{name}\">{inside}</testcase>");
    };
    for figure in &run.figures {
        let Some(line) = budget::line(&figure.id) else { continue };
        let value = figure.value.map_or_else(|| "never".to_owned(), |value| line.unit.print(value));
        let inside = match missed.contains(&figure) {
            true => format!("<failure message=\"{value}, budget {}\"/>", line.unit.print(line.p99 * slack)),
            false => format!("<system-out>{value}</system-out>"),
        };
        case(&format!("{}: {}", figure.id, line.event), &inside);
    }
    for check in &run.checks {
        let detail = escaped(&check.detail);
        match check.passed {
            true => case(&check.name, &format!("<system-out>{detail}</system-out>")),
            false => case(&check.name, &format!("<failure message=\"{detail}\"/>")),
        }
    }
    for what in &run.not_measured {
        case(what, "<skipped/>");
    }
    out.push_str("  </testsuite>\n");
}

#[cfg(test)]
mod tests {
    use super::super::report::{Check, Environment, Figure};
    use super::*;

    #[test]
    fn every_figure_and_check_is_a_case() {
        let figure = |id: &str, value| Figure { id: id.into(), value };
        let run = Run {
            scenario: "leader-kill".into(),
            number: 3,
            figures: vec![figure("F1", Some(0.1)), figure("F3", None)],
            checks: vec![Check { name: "hashes".into(), passed: false, detail: "m1 < m2".into() }],
            not_measured: vec!["F5".into()],
            ..Run::default()
        };
        let xml = xml(&Report::new(Environment::default(), 1.0, vec![run]));
        for part in [
            "<testsuite name=\"leader-kill 3\" tests=\"4\" failures=\"2\" skipped=\"1\"",
            "<system-out>0.100 s</system-out>",
            "<failure message=\"never, budget 1.000 s\"/>",
            "<failure message=\"m1 &lt; m2\"/>",
            "<skipped/>",
        ] {
            assert!(xml.contains(part), "{part} is not in {xml}");
        }
    }
}
