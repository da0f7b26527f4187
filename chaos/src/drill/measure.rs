//! What samples mean: figures of the budget, gaps, and checks of what must hold whatever the
//! times are.

use std::collections::BTreeMap;

use super::report::{Check, Gap};
use super::sample::{Outcome, Probe, Sample};

/// A stretch without an answer that people should see in a picture.
const NOTABLE_GAP_MS: f64 = 100.0;

/// The fault as the samples' clock saw it.
#[derive(Clone, Debug)]
pub(crate) struct Window<'a> {
    /// Empty when there is not one victim.
    pub(crate) victim: &'a str,
    pub(crate) fault_ms: f64,
    /// When the last sample that counts was asked.
    pub(crate) end_ms: f64,
    pub(crate) term_before: u64,
}

impl Window<'_> {
    fn holds(&self, sample: &Sample) -> bool {
        (self.fault_ms..=self.end_ms).contains(&sample.at_ms)
    }
}

fn seconds(ms: f64) -> f64 {
    ms / 1e3
}

fn least(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.min_by(f64::total_cmp)
}

fn most(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.max_by(f64::total_cmp)
}

/// F1, F2: from the fault to the first write that was asked for after it and that a later
/// term acknowledged, whoever was asked.
pub(crate) fn first_write(samples: &[Sample], window: &Window<'_>) -> Option<f64> {
    let writes = samples.iter().filter(|sample| sample.probe == Probe::Write && sample.is_ok() && window.holds(sample));
    let later = writes.filter(|sample| sample.term > Some(window.term_before));
    least(later.map(|sample| seconds(sample.end_ms() - window.fault_ms)))
}

/// F3: the slowest write in flight, if all were acknowledged.
pub(crate) fn in_flight(samples: &[Sample]) -> Option<f64> {
    let writes = || samples.iter().filter(|sample| sample.probe == Probe::InFlight);
    if writes().any(|sample| !sample.is_ok()) {
        return None;
    }
    most(writes().map(|sample| seconds(sample.took_ms)))
}

/// F5, F6: from the fault to the first of those asked for after it that came to its end.
pub(crate) fn next(samples: &[Sample], probe: Probe, window: &Window<'_>) -> Option<f64> {
    let done = samples.iter().filter(|sample| sample.probe == probe && sample.is_ok() && window.holds(sample));
    least(done.map(|sample| seconds(sample.end_ms() - window.fault_ms)))
}

/// F7: the longest that any of those asked for since the fault took; none if one came to nothing.
pub(crate) fn slowest(samples: &[Sample], probe: Probe, window: &Window<'_>) -> Option<f64> {
    let asked = || samples.iter().filter(|sample| sample.probe == probe && window.holds(sample));
    if asked().any(|sample| !sample.is_ok()) {
        return None;
    }
    most(asked().map(|sample| seconds(sample.took_ms)))
}

/// F8: from the fault until the watch that the victim served was opened on another master.
pub(crate) fn watch_resumed(samples: &[Sample], window: &Window<'_>) -> Option<f64> {
    let opened = samples.iter().filter(|sample| sample.probe == Probe::Watch && sample.via != window.victim);
    let resumed = opened.filter(|sample| sample.is_ok() && window.fault_ms <= sample.end_ms());
    least(resumed.map(|sample| seconds(sample.end_ms() - window.fault_ms)))
}

/// F8 herd: from the fault until the last of so many watches was opened on another master.
pub(crate) fn herd_resumed(samples: &[Sample], window: &Window<'_>, watches: usize) -> Option<f64> {
    let opened = samples.iter().filter(|sample| sample.probe == Probe::Herd && sample.is_ok());
    let resumed: Vec<f64> = opened
        .filter(|sample| sample.via != window.victim && window.fault_ms <= sample.end_ms())
        .map(|sample| seconds(sample.end_ms() - window.fault_ms))
        .collect();
    // Some may have moved once more.
    (resumed.len() >= watches).then(|| most(resumed.into_iter()))?
}

/// F4: the longest stretch since the fault in which no write was acknowledged through any master.
pub(crate) fn longest_gap(samples: &[Sample], window: &Window<'_>) -> Option<f64> {
    let writes = samples.iter().filter(|sample| sample.probe == Probe::Write && sample.is_ok());
    let mut ends: Vec<f64> = writes.map(Sample::end_ms).filter(|end| *end <= window.end_ms).collect();
    ends.sort_by(f64::total_cmp);
    let pairs = ends.windows(2).filter(|pair| pair[1] >= window.fault_ms);
    most(pairs.map(|pair| seconds(pair[1] - pair[0])))
}

/// F4: how many requests failed since the fault, of those to whom the fault should not have
/// mattered: all but those to a victim that nobody listened at.
pub(crate) fn failed<'a>(samples: &'a [Sample], window: &Window<'_>) -> Vec<&'a Sample> {
    let asked = |sample: &&Sample| sample.end_ms() >= window.fault_ms && sample.at_ms <= window.end_ms;
    let request = |sample: &&Sample| matches!(sample.probe, Probe::Write | Probe::Read | Probe::Client);
    let matters = |sample: &&Sample| match sample.outcome {
        Outcome::Ok => false,
        Outcome::Failed => true,
        Outcome::Unreachable => sample.via == "endpoint",
    };
    samples.iter().filter(asked).filter(request).filter(matters).collect()
}

/// F18: how many objects of the client by the endpoint were not there after one retry.
pub(crate) fn failed_after_one_retry(samples: &[Sample], window: &Window<'_>) -> usize {
    let attempts = || samples.iter().filter(|sample| sample.probe == Probe::Client);
    let mut count = 0;
    let mut earlier_failed = false;
    let mut retries = 0;
    for sample in attempts() {
        retries = if sample.retry { retries + 1 } else { 0 };
        if retries == 1 && earlier_failed && !sample.is_ok() && sample.end_ms() >= window.fault_ms {
            count += 1;
        }
        earlier_failed = !sample.is_ok();
    }
    count
}

/// Requests to the store through one of `masters` that were asked for and acknowledged while links
/// were cut.
fn acknowledged<'a>(samples: &'a [Sample], masters: &'a [&str], cut: (f64, f64)) -> impl Iterator<Item = &'a Sample> {
    samples
        .iter()
        .filter(|sample| matches!(sample.probe, Probe::Write | Probe::Read) && sample.is_ok())
        .filter(move |sample| masters.contains(&sample.via.as_str()))
        .filter(move |sample| cut.0 <= sample.at_ms && sample.end_ms() <= cut.1)
}

/// Whether a minority acknowledged nothing, not even reads, while it was cut off.
pub(crate) fn minority_is_silent(samples: &[Sample], minority: &[&str], cut: (f64, f64)) -> Check {
    let (writes, reads): (Vec<&Sample>, Vec<&Sample>) =
        acknowledged(samples, minority, cut).partition(|sample| sample.probe == Probe::Write);
    Check {
        name: "masters cut off: acknowledge nothing".to_owned(),
        passed: writes.is_empty() && reads.is_empty(),
        detail: format!("{} writes and {} reads through {}", writes.len(), reads.len(), minority.join(", ")),
    }
}

/// Whether writes through each of the other masters went on meanwhile.
pub(crate) fn majority_goes_on(samples: &[Sample], majority: &[&str], cut: (f64, f64)) -> Check {
    let mut counts: BTreeMap<&str, usize> = majority.iter().map(|name| (*name, 0)).collect();
    for sample in acknowledged(samples, majority, cut).filter(|sample| sample.probe == Probe::Write) {
        *counts.entry(&sample.via).or_default() += 1;
    }
    let told: Vec<String> = counts.iter().map(|(name, count)| format!("{count} through {name}")).collect();
    Check {
        name: "other masters: writes go on".to_owned(),
        passed: counts.values().all(|count| *count > 0),
        detail: told.join(", "),
    }
}

/// Stretches, of each master's writes and of the client by the endpoint, in which no answer
/// came although one was asked for.
pub(crate) fn gaps(samples: &[Sample], from_ms: f64, to_ms: f64) -> Vec<Gap> {
    let mut ends: BTreeMap<(&str, Probe), Vec<f64>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| matches!(sample.probe, Probe::Write | Probe::Client)) {
        let ends = ends.entry((&sample.via, sample.probe)).or_default();
        if sample.is_ok() {
            ends.push(sample.end_ms());
        }
    }
    let mut gaps = Vec::new();
    for ((via, probe), mut ends) in ends {
        ends.extend([from_ms, to_ms]);
        ends.retain(|end| (from_ms..=to_ms).contains(end));
        ends.sort_by(f64::total_cmp);
        for pair in ends.windows(2).filter(|pair| pair[1] - pair[0] >= NOTABLE_GAP_MS) {
            gaps.push(Gap { via: via.to_owned(), probe, from_ms: pair[0], to_ms: pair[1] });
        }
    }
    gaps
}

/// Whether each watcher was told of every acknowledged object once, in order.
pub(crate) fn watches_are_whole(
    told: &BTreeMap<String, Vec<(String, u64)>>,
    acknowledged: &[String],
    relists: usize,
) -> Check {
    let name = "watches: everything, once, in order".to_owned();
    let mut wrong = Vec::new();
    if relists > 0 {
        wrong.push(format!("{relists} times a version was too old to go on from"));
    }
    for (watcher, events) in told {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, _) in events {
            *counts.entry(name).or_default() += 1;
        }
        let missing: Vec<&str> =
            acknowledged.iter().map(String::as_str).filter(|name| !counts.contains_key(name)).collect();
        let lost = missing.len();
        let twice = counts.values().filter(|count| **count > 1).count();
        let back = events.windows(2).filter(|pair| pair[1].1 <= pair[0].1).count();
        if lost + twice + back > 0 {
            let first = missing.first().map(|name| format!(" (first {name})")).unwrap_or_default();
            wrong.push(format!(
                "the watch that began at {watcher}: {lost} lost{first}, {twice} twice, {back} out of order"
            ));
        }
    }
    let detail = if wrong.is_empty() {
        format!("{} watches were told of all {} objects", told.len(), acknowledged.len())
    } else {
        wrong.join("; ")
    };
    Check { name, passed: wrong.is_empty(), detail }
}

/// Whether each write in flight took effect once: `found` are their keys and versions.
pub(crate) fn once(sent: &[&Sample], found: &[i64]) -> Check {
    let acknowledged = sent.iter().filter(|sample| sample.is_ok()).count();
    let twice = found.iter().filter(|version| **version > 1).count();
    let lost = acknowledged.saturating_sub(found.len());
    Check {
        name: "writes in flight: once".to_owned(),
        passed: twice == 0 && lost == 0,
        detail: format!("{} sent, {acknowledged} acknowledged, {lost} lost, {twice} applied twice", sent.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(probe: Probe, via: &str, at_ms: f64, took_ms: f64, outcome: Outcome, term: u64) -> Sample {
        Sample { probe, via: via.into(), at_ms, took_ms, outcome, term: Some(term), retry: false, error: None }
    }

    fn window() -> Window<'static> {
        Window { victim: "m1", fault_ms: 1000.0, end_ms: 4000.0, term_before: 2 }
    }

    #[track_caller]
    fn near(seen: Option<f64>, expected: f64) {
        assert!(seen.is_some_and(|seen| (seen - expected).abs() < 1e-9), "{seen:?} is not {expected}");
    }

    #[test]
    fn the_first_write_is_of_a_later_term_and_was_asked_for_after_the_fault() {
        let samples = [
            sample(Probe::Write, "m2", 999.0, 200.0, Outcome::Ok, 3),
            // Answered by the leader that was killed, while the signal was on its way.
            sample(Probe::Write, "m2", 1000.0, 0.3, Outcome::Ok, 2),
            sample(Probe::Write, "m2", 1010.0, 30.0, Outcome::Failed, 3),
            sample(Probe::Write, "m3", 1020.0, 80.0, Outcome::Ok, 3),
            sample(Probe::Write, "m2", 1030.0, 90.0, Outcome::Ok, 3),
        ];
        near(first_write(&samples, &window()), 0.1);
        assert_eq!(first_write(&samples[..3], &window()), None);
    }

    #[test]
    fn writes_in_flight_count_when_all_were_acknowledged() {
        let mut samples = vec![
            sample(Probe::InFlight, "m2", 999.0, 90.0, Outcome::Ok, 3),
            sample(Probe::InFlight, "m3", 999.0, 120.0, Outcome::Ok, 3),
        ];
        near(in_flight(&samples), 0.12);
        let sent: Vec<&Sample> = samples.iter().collect();
        assert!(once(&sent, &[1, 1]).passed);
        assert!(!once(&sent, &[1, 2]).passed, "applied twice");
        assert!(!once(&sent, &[1]).passed, "acknowledged and lost");
        samples.push(sample(Probe::InFlight, "m3", 999.0, 5000.0, Outcome::Failed, 0));
        assert_eq!(in_flight(&samples), None);
        let sent: Vec<&Sample> = samples.iter().collect();
        assert!(once(&sent, &[1, 1]).passed, "what was not acknowledged may be missing");
    }

    #[test]
    fn pods_count_from_the_fault_or_from_their_creation() {
        let mut samples = vec![
            sample(Probe::Pod, "endpoint", 950.0, 900.0, Outcome::Ok, 0),
            sample(Probe::Pod, "endpoint", 1050.0, 300.0, Outcome::Ok, 0),
            sample(Probe::Pod, "endpoint", 1150.0, 210.0, Outcome::Ok, 0),
        ];
        near(next(&samples, Probe::Pod, &window()), 0.35);
        near(slowest(&samples, Probe::Pod, &window()), 0.3);
        samples.push(sample(Probe::Pod, "endpoint", 1200.0, 210.0, Outcome::Failed, 0));
        assert_eq!(slowest(&samples, Probe::Pod, &window()), None);
    }

    #[test]
    fn a_herd_has_moved_when_its_last_has() {
        let mut samples = vec![
            sample(Probe::Herd, "m1", 500.0, 10.0, Outcome::Ok, 0),
            sample(Probe::Herd, "m1", 500.0, 20.0, Outcome::Ok, 0),
            sample(Probe::Herd, "m2", 1001.0, 40.0, Outcome::Ok, 0),
        ];
        assert_eq!(herd_resumed(&samples, &window(), 2), None, "one is still missing");
        samples.push(sample(Probe::Herd, "m3", 1001.0, 299.0, Outcome::Ok, 0));
        near(herd_resumed(&samples, &window(), 2), 0.3);
        assert_eq!(failed(&samples, &window()).len(), 0);
    }

    #[test]
    fn a_gap_is_between_two_acknowledged_writes() {
        let samples = [
            sample(Probe::Write, "m2", 900.0, 10.0, Outcome::Ok, 2),
            sample(Probe::Write, "m3", 995.0, 3.0, Outcome::Ok, 2),
            sample(Probe::Write, "m1", 1000.0, 40.0, Outcome::Failed, 2),
            sample(Probe::Write, "m2", 1000.0, 150.0, Outcome::Ok, 3),
            sample(Probe::Write, "m3", 1150.0, 20.0, Outcome::Ok, 3),
        ];
        near(longest_gap(&samples, &window()), 0.152);
        let seen = gaps(&samples, 900.0, 1170.0);
        let of = |via: &str| {
            let gaps = seen.iter().filter(|gap| gap.via == via);
            gaps.map(|gap| (gap.from_ms, gap.to_ms)).collect::<Vec<_>>()
        };
        assert_eq!(of("m1"), [(900.0, 1170.0)], "it never answered");
        assert_eq!(of("m2"), [(910.0, 1150.0)]);
        assert_eq!(of("m3"), [(998.0, 1170.0)]);
    }

    #[test]
    fn a_request_fails_when_it_was_sent_or_went_to_the_endpoint() {
        let samples = [
            sample(Probe::Write, "m1", 990.0, 20.0, Outcome::Failed, 0),
            sample(Probe::Write, "m1", 1100.0, 1.0, Outcome::Unreachable, 0),
            sample(Probe::Client, "endpoint", 1100.0, 1.0, Outcome::Unreachable, 0),
            sample(Probe::Read, "m2", 1100.0, 1.0, Outcome::Ok, 0),
            sample(Probe::Read, "m2", 100.0, 1.0, Outcome::Failed, 0),
            sample(Probe::Watch, "m2", 1100.0, 1.0, Outcome::Failed, 0),
        ];
        assert_eq!(failed(&samples, &window()).len(), 2);
    }

    #[test]
    fn a_majority_goes_on_and_a_minority_is_silent() {
        let mut samples = vec![
            sample(Probe::Write, "m1", 990.0, 20.0, Outcome::Ok, 2),
            sample(Probe::Write, "m1", 1010.0, 5000.0, Outcome::Failed, 0),
            // Carried out once the link was whole again.
            sample(Probe::Write, "m1", 3900.0, 200.0, Outcome::Ok, 3),
            sample(Probe::Write, "m2", 1010.0, 600.0, Outcome::Ok, 3),
        ];
        let cut = (1000.0, 4000.0);
        assert!(minority_is_silent(&samples, &["m1"], cut).passed);
        let others = majority_goes_on(&samples, &["m2", "m3"], cut);
        assert!(!others.passed, "{}", others.detail);
        samples.push(sample(Probe::Write, "m3", 2000.0, 3.0, Outcome::Ok, 3));
        assert!(majority_goes_on(&samples, &["m2", "m3"], cut).passed);
        samples.push(sample(Probe::Read, "m1", 2000.0, 3.0, Outcome::Ok, 2));
        let silent = minority_is_silent(&samples, &["m1"], cut);
        assert_eq!((silent.passed, silent.detail.as_str()), (false, "0 writes and 1 reads through m1"));
    }

    #[test]
    fn one_retry_is_allowed() {
        let attempt = |at: f64, outcome: Outcome, retry: bool| Sample {
            retry,
            ..sample(Probe::Client, "endpoint", at, 1.0, outcome, 0)
        };
        let samples = [
            attempt(1000.0, Outcome::Failed, false),
            attempt(1002.0, Outcome::Ok, true),
            attempt(1010.0, Outcome::Ok, false),
            attempt(1020.0, Outcome::Failed, false),
            attempt(1030.0, Outcome::Failed, true),
            attempt(1040.0, Outcome::Failed, true),
            attempt(1050.0, Outcome::Ok, true),
        ];
        assert_eq!(failed_after_one_retry(&samples, &window()), 1);
    }

    #[test]
    fn a_watch_is_whole_when_nothing_is_lost_twice_or_out_of_order() {
        let check = |events: &[(&str, u64)], relists: usize, passed: bool| {
            let events = events.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect();
            let told = BTreeMap::from([("m1".to_owned(), events)]);
            let check = watches_are_whole(&told, &["a".to_owned(), "b".to_owned()], relists);
            assert_eq!(check.passed, passed, "{}", check.detail);
        };
        check(&[("a", 5), ("b", 7)], 0, true);
        // Created, although nobody was told so.
        check(&[("a", 5), ("b", 7), ("c", 9)], 0, true);
        check(&[("a", 5)], 0, false);
        check(&[("a", 5), ("b", 7), ("b", 7)], 0, false);
        check(&[("b", 7), ("a", 5)], 0, false);
        check(&[("a", 5), ("b", 7)], 1, false);
    }
}
