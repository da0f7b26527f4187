//! One fault: done to its victims, and undone.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::future::join_all;
use tokio::time;

use super::disk;
use super::measure::Window;
use super::nodes;
use super::probe::{self, Lab};
use super::report::{Check, FaultSpan};
use super::run::{ANSWER, BACK_PATIENCE, LOOK, RunError, Stage, WATCHDOG_SLACK};
use super::scenario::{Fault, Link, Scenario, Signal};
use super::target::{Identity, Master};
use super::watchdog::{Armed, Undo};
use crate::fault::link::{Table, Way};
use crate::fault::process;

/// Writes in flight are on their way for that long before the fault.
const IN_FLIGHT_LEAD: Duration = Duration::from_micros(300);

/// One fault, done and undone.
pub(super) struct Act {
    pub(super) scenario: &'static Scenario,
    /// By victim.
    pub(super) spans: Vec<FaultSpan>,
    /// From when to when links were not whole, at the least.
    pub(super) cut: Option<(f64, f64)>,
    /// What became of lost nodes.
    pub(super) nodes: Option<nodes::Observed>,
    /// What was seen of the fault itself.
    pub(super) checks: Vec<Check>,
}

impl Act {
    pub(super) fn new(scenario: &'static Scenario) -> Self {
        Self { scenario, spans: Vec::new(), cut: None, nodes: None, checks: Vec::new() }
    }

    pub(super) fn begin_ms(&self) -> Option<f64> {
        self.spans.first().map(|span| span.from_ms)
    }

    /// The time up to `end_ms`, when the next fault begins or the run ends.
    pub(super) fn window(&self, end_ms: f64, term_before: u64) -> Window<'_> {
        let victim = match self.spans.as_slice() {
            [span] => span.victim.as_str(),
            _ => "",
        };
        Window { victim, fault_ms: self.begin_ms().unwrap_or(end_ms), end_ms, term_before }
    }
}

/// What happened, on the clock of the run.
pub(super) struct Driven {
    pub(super) steady_ms: f64,
    pub(super) acts: Vec<Act>,
    pub(super) end_ms: f64,
}

impl Driven {
    pub(super) fn spans(&self) -> impl Iterator<Item = &FaultSpan> {
        self.acts.iter().flat_map(|act| &act.spans)
    }

    /// From the first fault to the end of the run.
    pub(super) fn window(&self, term_before: u64) -> Window<'_> {
        match self.acts.as_slice() {
            [act] => act.window(self.end_ms, term_before),
            acts => {
                let fault_ms = acts.first().and_then(Act::begin_ms).unwrap_or(self.end_ms);
                Window { victim: "", fault_ms, end_ms: self.end_ms, term_before }
            }
        }
    }

    /// Every fault, with the time until the next.
    pub(super) fn acts(&self) -> impl Iterator<Item = (&Act, f64)> {
        let ends = self.acts.iter().skip(1).map(|act| act.begin_ms().unwrap_or(self.end_ms));
        self.acts.iter().zip(ends.chain(std::iter::once(self.end_ms)))
    }
}

/// Does the fault of `stage` to `victims`, or to the nodes that were arranged for it; undoes it,
/// and returns once all answer again.
pub(super) async fn act(
    stage: Stage<'_>,
    victims: &[String],
    arranged: Option<&nodes::Arranged>,
) -> Result<Act, RunError> {
    let scenario = stage.scenario;
    let mut act = Act::new(scenario);
    match scenario.fault {
        Fault::Signal(signal) => {
            for victim in victims {
                act.spans.push(strike(stage, signal, victim).await?);
            }
        }
        Fault::Link(link) => part(stage, link, victims, &mut act).await?,
        Fault::Disk(fault) => {
            for victim in victims {
                let (span, check) = disk::strike(stage, fault, victim).await?;
                act.spans.push(span);
                act.checks.extend(check);
            }
        }
        Fault::Silence => {
            let arranged = arranged.context("nothing was arranged on nodes")?;
            nodes::lose(stage, arranged, &mut act).await?;
        }
        // It consists of others.
        Fault::Combo => {}
    }
    Ok(act)
}

/// Sends a signal to one victim, and returns once that answers again.
async fn strike(stage: Stage<'_>, signal: Signal, victim: &str) -> Result<FaultSpan, RunError> {
    let Stage { scenario, target, settings, lab, say, .. } = stage;
    let identity = target.master_process(victim)?;
    let armed = match signal {
        Signal::Stop => {
            let patience = scenario.observe + WATCHDOG_SLACK;
            Some(Armed::arm(&settings.binary, Undo::Resume(identity), patience)?)
        }
        Signal::Kill | Signal::Terminate => None,
    };
    if scenario.budget.contains(&"F3") {
        probe::send_in_flight(lab, victim);
        let began = time::Instant::now();
        while began.elapsed() < IN_FLIGHT_LEAD {
            tokio::task::yield_now().await;
        }
    }
    let from_ms = lab.clock.now_ms();
    match signal {
        Signal::Kill => process::kill(identity.pid)?,
        Signal::Stop => process::stop(identity.pid)?,
        Signal::Terminate => process::terminate(identity.pid)?,
    }
    say(&format!("{} to {victim} (process {})", scenario.fault.name(), identity.pid));
    stage.pause(scenario.observe).await?;
    if let Some(armed) = armed {
        armed.undo()?;
        say(&format!("{victim} goes on"));
    }
    let ended = match signal {
        Signal::Kill | Signal::Terminate => Some(identity),
        Signal::Stop => None,
    };
    recovered(stage, victim, ended, from_ms).await
}

/// Cuts the links between all victims and the other masters, and returns once they answer again.
async fn part(stage: Stage<'_>, link: Link, victims: &[String], act: &mut Act) -> Result<(), RunError> {
    let Stage { scenario, target, settings, lab, say, .. } = stage;
    let (at_victims, at_others): (Vec<_>, Vec<_>) =
        target.masters.iter().partition(|master| victims.contains(&master.name));
    let peers = |masters: Vec<&Master>| masters.into_iter().map(|master| master.peer).collect::<Vec<_>>();
    let ways = link.ways(&peers(at_victims), &peers(at_others));
    let table = Table::of_this_process();
    let armed = Armed::arm(&settings.binary, Undo::Mend(table), scenario.observe + WATCHDOG_SLACK)?;
    table.make()?;
    let begins_ms = lab.clock.now_ms();
    lose(table, ways.clone()).await?;
    let cut_ms = lab.clock.now_ms();
    let what = scenario.fault.name();
    say(&format!("{what} to {}", victims.join(", ")));
    let end = time::Instant::now() + scenario.observe;
    match link {
        Link::Cut | Link::Mute => stage.pause(scenario.observe).await?,
        Link::Flap(lasts) => {
            let mut lost = true;
            loop {
                let left = end.saturating_duration_since(time::Instant::now());
                stage.pause(left.min(lasts)).await?;
                if left <= lasts {
                    break;
                }
                lost = !lost;
                lose(table, if lost { ways.clone() } else { Vec::new() }).await?;
            }
        }
    }
    let mended_ms = lab.clock.now_ms();
    armed.undo()?;
    say("links are whole again");
    for victim in victims {
        let to_ms = back(stage, victim, None).await?;
        act.spans.push(FaultSpan { victim: victim.clone(), what: what.to_owned(), from_ms: begins_ms, to_ms });
    }
    say(&format!("all follow one leader again, {:.1} s after the fault", (lab.clock.now_ms() - begins_ms) / 1e3));
    act.cut = Some((cut_ms, mended_ms));
    Ok(())
}

/// Probes do not wait for the program that does it.
async fn lose(table: Table, ways: Vec<Way>) -> Result<()> {
    tokio::task::spawn_blocking(move || table.lose(&ways)).await.context("nft panicked")?
}

/// Waits until a victim answers again, in another process if one has ended; the span of its fault,
/// which began at `from_ms`.
///
/// # Errors
/// When it does not; `Interrupted` as soon as the run is stopped.
pub(super) async fn recovered(
    stage: Stage<'_>,
    victim: &str,
    ended: Option<Identity>,
    from_ms: f64,
) -> Result<FaultSpan, RunError> {
    let to_ms = back(stage, victim, ended).await?;
    (stage.say)(&format!("{victim} answers again, {:.1} s after the fault", (to_ms - from_ms) / 1e3));
    let what = stage.scenario.fault.name().to_owned();
    Ok(FaultSpan { victim: victim.to_owned(), what, from_ms, to_ms })
}

/// When the victim answers again, in another process if one has ended, and has caught up.
async fn back(stage: Stage<'_>, victim: &str, ended: Option<Identity>) -> Result<f64, RunError> {
    let Stage { target, lab, .. } = stage;
    let deadline = time::Instant::now() + BACK_PATIENCE;
    loop {
        let runs = target.master_process(victim).is_ok_and(|identity| Some(identity) != ended);
        if runs && answers(lab, victim).await {
            return Ok(lab.clock.now_ms());
        }
        if time::Instant::now() > deadline {
            let seconds = BACK_PATIENCE.as_secs();
            return Err(anyhow!("{victim} did not answer again within {seconds} s: look at its log").into());
        }
        stage.pause(LOOK).await?;
    }
}

/// Whether everybody follows the same leader, and the victim's API serves.
async fn answers(lab: &Lab, victim: &str) -> bool {
    let statuses = join_all(lab.stores.iter().map(|store| store.status(ANSWER))).await;
    let terms: Vec<u64> = statuses
        .iter()
        .filter_map(|status| status.as_ref().ok().filter(|status| status.leader != 0).map(|status| status.raft_term))
        .collect();
    let agreed = terms.len() == lab.stores.len() && terms.windows(2).all(|pair| pair[0] == pair[1]);
    let api = lab.apis.as_ref().and_then(|apis| apis.masters.iter().find(|(name, _)| name == victim));
    match api {
        Some((_, api)) if agreed => api.get("/api/v1/namespaces/default", ANSWER).await.is_ok(),
        _ => agreed,
    }
}
