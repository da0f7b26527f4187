//! What a run says: what had to hold, and how long everything took.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::act::{Act, Driven};
use super::budget::quantile;
use super::measure::{self, Window};
use super::nodes;
use super::probe::{self, Seen};
use super::report::{Check, Figure, Steady, Usual};
use super::sample::{Probe, Sample};
use super::scenario::{Disk, Fault, Link, Scenario, Victim};
use crate::check::linearizable;
use crate::history::History;

/// How long the search for an order of all operations may take.
const CHECK_TIME: Duration = Duration::from_secs(10);

pub(super) fn judge(
    scenario: &Scenario,
    seen: &Seen,
    driven: &Driven,
    masters: &[String],
    term_before: u64,
    term_after: u64,
    has_api: bool,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let terms = term_after.saturating_sub(term_before);
    let most: u64 = driven.acts.iter().map(|act| act.scenario.most_terms).sum();
    checks.push(Check {
        name: "terms: no more than needed".to_owned(),
        passed: terms <= most,
        detail: format!("{terms} new, at most {most}"),
    });
    if has_api {
        checks.push(measure::watches_are_whole(&seen.told, &seen.acknowledged, seen.relists));
    }
    for (act, end_ms) in driven.acts() {
        let of_act = judge_act(act, end_ms, &seen.samples, masters, term_before);
        checks.extend(of_act.into_iter().chain(act.checks.iter().cloned()).map(|check| match scenario.fault {
            Fault::Combo => Check { name: format!("{}: {}", act.scenario.name, check.name), ..check },
            _ => check,
        }));
    }
    checks
}

/// What has to be true of one fault, up to `end_ms`.
fn judge_act(act: &Act, end_ms: f64, samples: &[Sample], masters: &[String], term_before: u64) -> Vec<Check> {
    let mut checks = Vec::new();
    let window = act.window(end_ms, term_before);
    if let (Fault::Link(link), Some(cut)) = (act.scenario.fault, act.cut) {
        let (victims, others): (Vec<&str>, Vec<&str>) =
            masters.iter().map(String::as_str).partition(|name| act.spans.iter().any(|span| span.victim == *name));
        match link {
            Link::Cut | Link::Mute => checks.push(measure::minority_is_silent(samples, &victims, cut)),
            // What comes in between may be acknowledged.
            Link::Flap(_) => {}
        }
        checks.push(measure::majority_goes_on(samples, &others, cut));
    }
    checks.extend(act.nodes.as_ref().map(nodes::Observed::check));
    if act.scenario.fault == Fault::Disk(Disk::Clock) {
        let failed = measure::failed(samples, &window).len();
        let detail = format!("{failed} requests failed");
        checks.push(Check { name: "nobody notices".to_owned(), passed: failed == 0, detail });
    }
    if act.scenario.victim == Victim::Follower {
        let others = measure::failed(samples, &window);
        let others = others.iter().filter(|sample| sample.via != window.victim && sample.via != "endpoint").count();
        let retried = measure::failed_after_one_retry(samples, &window);
        checks.push(Check {
            name: "clients of the others do not notice".to_owned(),
            passed: others == 0 && retried == 0,
            detail: format!("{others} requests through other masters failed, {retried} by the endpoint after a retry"),
        });
    }
    checks
}

/// Whether there is an order of all requests to the store that explains every answer.
pub(super) fn order(path: &Path) -> Result<Check> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let history = History::read(BufReader::new(file))?;
    let name = "store: linearizable".to_owned();
    if let Err(stale) = linearizable::revisions_follow_time(&history) {
        return Ok(Check { name, passed: false, detail: stale.to_string() });
    }
    let number = history.operations.len();
    Ok(match linearizable::check(&history, CHECK_TIME) {
        linearizable::Verdict::Linearizable => Check { name, passed: true, detail: format!("{number} operations") },
        linearizable::Verdict::Violated(violation) => {
            let operations: Vec<String> = violation.operations.iter().map(ToString::to_string).collect();
            let detail = format!("no order explains these of key {}: {}", violation.key, operations.join("; "));
            Check { name, passed: false, detail }
        }
        // Nothing is known to be wrong; the history is kept.
        linearizable::Verdict::Unknown { .. } => Check {
            name: "store: linearizable, as far as was searched".to_owned(),
            passed: true,
            detail: format!("{number} operations; {} s did not suffice to search all", CHECK_TIME.as_secs()),
        },
    })
}

pub(super) fn figures(
    scenario: &Scenario,
    samples: &[Sample],
    window: &Window<'_>,
    nodes: Option<&nodes::Observed>,
    term_after: u64,
    has_api: bool,
    not_measured: &mut Vec<String>,
) -> Vec<Figure> {
    let mut figures = Vec::new();
    for id in scenario.budget {
        let needs_api = matches!(*id, "F5" | "F6" | "F7 pods" | "F7 controllers" | "F8" | "F8 herd" | "F18 failed");
        if needs_api && !has_api {
            not_measured.push((*id).to_owned());
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let value = match *id {
            "F1" | "F2" | "F14" | "F14 full" | "F14 fsync" => measure::first_write(samples, window),
            "F3" => measure::in_flight(samples),
            "F2 flap" | "F4" => measure::longest_gap(samples, window),
            "F4 failed" => Some(measure::failed(samples, window).len() as f64),
            "F5" => measure::next(samples, Probe::Pod, window),
            "F6" => measure::next(samples, Probe::Controller, window),
            "F7 pods" => measure::slowest(samples, Probe::Pod, window),
            "F7 controllers" => measure::slowest(samples, Probe::Controller, window),
            "F8" => measure::watch_resumed(samples, window),
            "F8 herd" => measure::herd_resumed(samples, window, probe::HERD),
            "F9" | "F10" | "F12 alarm" | "F12 evicted" => nodes.and_then(|observed| observed.figure(id)),
            "F18 failed" => Some(measure::failed_after_one_retry(samples, window) as f64),
            "F18 terms" => Some(term_after.saturating_sub(window.term_before) as f64),
            _ => unreachable!("{id} is measured by no drill"),
        };
        figures.push(Figure { id: (*id).to_owned(), value });
    }
    figures
}

pub(super) fn usual(samples: &[Sample], from_ms: f64, to_ms: f64) -> Steady {
    let mut probes = Vec::new();
    for probe in Probe::ALL {
        let took: Vec<f64> = samples
            .iter()
            .filter(|sample| sample.probe == probe && sample.is_ok())
            .filter(|sample| sample.at_ms >= from_ms && sample.end_ms() <= to_ms)
            .map(|sample| sample.took_ms)
            .collect();
        if let (Some(p50_ms), Some(p99_ms)) = (quantile(&took, 0.5), quantile(&took, 0.99)) {
            probes.push(Usual { probe, n: took.len(), p50_ms, p99_ms });
        }
    }
    Steady { from_ms, to_ms, probes }
}
