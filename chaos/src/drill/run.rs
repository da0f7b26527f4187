//! One run of a drill: preflight, steady state, fault, probes, revert, convergence, verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures::future::join_all;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::budget::quantile;
use super::converge;
use super::measure::{self, Window};
use super::nodes;
use super::preflight;
use super::probe::{self, Apis, Lab, Seen};
use super::report::{Check, FaultSpan, Figure, Run, Steady, Usual};
use super::sample::{Probe, Role, Sample};
use super::scenario::{Fault, Link, Scenario, Signal, Victim};
use super::store::Store;
use super::target::{Identity, Master, Target};
use super::watchdog::{Armed, Undo};
use crate::check::linearizable;
use crate::fault::link::{self, Table, Way};
use crate::fault::process;
use crate::history::History;

/// What comes before the steady state: first connections and caches.
const WARM_UP: Duration = Duration::from_millis(700);

/// How long a request of the preflight waits for its answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a victim may take to answer again once its fault is undone.
const BACK_PATIENCE: Duration = Duration::from_secs(90);

/// Once everybody answers again, clients are watched for that long.
const AFTERMATH: Duration = Duration::from_millis(700);

/// How long pods, controllers and watches may take to finish what was asked for.
const FINISH_PATIENCE: Duration = Duration::from_secs(10);

/// A watchdog undoes a fault that was not undone so long after it should have been.
pub(super) const WATCHDOG_SLACK: Duration = Duration::from_secs(10);

/// Writes in flight are on their way for that long before the fault.
const IN_FLIGHT_LEAD: Duration = Duration::from_micros(300);

/// How long the search for an order of all operations may take.
const CHECK_TIME: Duration = Duration::from_secs(10);

const LOOK: Duration = Duration::from_millis(20);

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `quorate`, which is also its own watchdog.
    pub binary: PathBuf,
    /// How long the steady state is measured.
    pub steady: Duration,
    pub number: usize,
    /// Tells this run's keys and objects from others'.
    pub name: String,
    /// Where the history is written.
    pub history: PathBuf,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the cluster should not be drilled now:\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
    #[error("the drill was interrupted; what it did is undone")]
    Interrupted,
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// What is known of the cluster before the fault.
struct Before {
    leader: String,
    followers: Vec<String>,
    term: u64,
}

/// Every reason why the cluster should not be drilled now, and the victims of `scenario` if
/// there is none.
///
/// # Errors
/// When the certificates cannot be used.
pub async fn preflight(scenario: &Scenario, target: &Target) -> Result<Result<Vec<String>, Vec<String>>> {
    let stores = Store::of(target)?;
    Ok(bears(scenario, target, &stores).await.map(|before| victims(scenario, target, &before)))
}

/// Every reason why `scenario` cannot be done to this cluster on this machine, however well it is.
pub fn obstacles(scenario: &Scenario, target: &Target) -> Vec<String> {
    let peers: Vec<SocketAddr> = target.masters.iter().map(|master| master.peer).collect();
    let mut reasons = preflight::obstacles(scenario, &peers, link::left_behind);
    reasons.extend(nodes::obstacle(scenario, target.nodes.len()));
    reasons
}

/// Runs `scenario` once. Whatever happens, the fault is undone and nothing is left behind.
///
/// # Errors
/// `Refused` by the preflight, or when the state before the fault was not steady;
/// `Interrupted` by `stop`; `Failed` when something else got in the way.
pub async fn run(
    scenario: &Scenario,
    target: &Target,
    settings: &Settings,
    stop: &CancellationToken,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Run, RunError> {
    let stores = Store::of(target)?;
    let before = bears(scenario, target, &stores).await.map_err(RunError::Refused)?;
    let mut not_measured = Vec::new();
    let apis = match connect(target).await {
        Ok(apis) => Some(apis),
        Err(error) => {
            not_measured.push(format!("API, pods, controllers and watches: {error:#}"));
            None
        }
    };
    let history =
        File::create(&settings.history).with_context(|| format!("cannot write {}", settings.history.display()))?;
    let lab = Arc::new(Lab::new(&settings.name, stores, apis, history));
    let roles_stop = CancellationToken::new();
    let roles = probe::follow_roles(&lab, &roles_stop);

    let driven = drive(scenario, target, settings, &lab, &before, stop, say).await;

    lab.stop.cancel();
    let finished = finish(&lab, driven.is_ok()).await;
    let mut checks = match &driven {
        Ok(_) => inspect(&lab).await,
        Err(_) => Vec::new(),
    };
    let swept = sweep(&lab).await;
    let same = match driven {
        Ok(_) => Some(converge::check(&lab.stores).await),
        Err(_) => None,
    };
    let after = look(target, &lab.stores).await;
    roles_stop.cancel();
    roles.wait().await;
    let driven = driven?;
    finished?;
    let lab = Arc::into_inner(lab).context("a probe is still there")?;
    let masters: Vec<String> = lab.stores.iter().map(|store| store.name.clone()).collect();
    let has_api = lab.apis.is_some();
    let mut seen = lab.finish()?;
    checks.extend(same);
    checks.push(swept);

    let term_after = after.as_ref().map_or(before.term, |after| after.term);
    seen.settle(driven.end_ms);
    checks.extend(judge(scenario, &seen, &driven, &masters, before.term, term_after, has_api));
    let at = settings.history.clone();
    let order = tokio::task::spawn_blocking(move || order(&at)).await.context("the check of the history panicked")?;
    checks.push(order?);
    let window = driven.window(before.term);
    let figures =
        figures(scenario, &seen.samples, &window, driven.nodes.as_ref(), term_after, has_api, &mut not_measured);
    let steady = usual(&seen.samples, driven.steady_ms, window.fault_ms);
    let gaps = measure::gaps(&seen.samples, driven.steady_ms, driven.end_ms);
    Ok(Run {
        scenario: scenario.name.to_owned(),
        about: scenario.about.to_owned(),
        number: settings.number,
        masters,
        faults: driven.faults.clone(),
        steady,
        end_ms: driven.end_ms,
        term_before: before.term,
        term_after,
        figures,
        checks,
        not_measured,
        gaps,
        roles: seen.roles,
        samples: seen.samples,
    })
}

/// What happened, on the clock of the run.
struct Driven {
    steady_ms: f64,
    faults: Vec<FaultSpan>,
    /// From when to when links were not whole, at the least.
    cut: Option<(f64, f64)>,
    /// What became of lost nodes.
    nodes: Option<nodes::Observed>,
    end_ms: f64,
}

impl Driven {
    fn window(&self, term_before: u64) -> Window<'_> {
        let victim = match self.faults.as_slice() {
            [fault] => fault.victim.as_str(),
            _ => "",
        };
        let fault_ms = self.faults.first().map_or(self.end_ms, |fault| fault.from_ms);
        Window { victim, fault_ms, end_ms: self.end_ms, term_before }
    }
}

/// What is known of a cluster that can bear `scenario`, or why it should not be drilled now.
async fn bears(scenario: &Scenario, target: &Target, stores: &[Store]) -> Result<Before, Vec<String>> {
    let mut reasons = obstacles(scenario, target);
    reasons.extend(nodes::reasons(scenario, target).await);
    match look(target, stores).await {
        Ok(before) if reasons.is_empty() => return Ok(before),
        Ok(_) => {}
        Err(more) => reasons.extend(more),
    }
    Err(reasons)
}

async fn look(target: &Target, stores: &[Store]) -> Result<Before, Vec<String>> {
    let statuses = join_all(stores.iter().map(|store| store.status(ANSWER))).await;
    let furthest = statuses.iter().flatten().map(|status| status.raft_applied_index).max().unwrap_or(0);
    let masters: Vec<preflight::Seen> = stores
        .iter()
        .zip(&statuses)
        .map(|(store, status)| {
            let (role, term) = probe::role(status.as_ref().ok());
            let lag = status.as_ref().map_or(0, |status| furthest - status.raft_applied_index);
            let process = target.master_process(&store.name).map(drop).map_err(|error| format!("{error:#}"));
            preflight::Seen { name: store.name.clone(), role, term, lag, process }
        })
        .collect();
    let supervised = (target.processes)().is_ok_and(|processes| processes.supervisor.is_some());
    let mut alarms = 0;
    if let Some((store, _)) = stores.iter().zip(&statuses).find(|(_, status)| status.is_ok()) {
        alarms = store.alarms(ANSWER).await.unwrap_or(0);
    }
    let reasons = preflight::reasons(&masters, supervised, alarms);
    let (leaders, followers): (Vec<_>, Vec<_>) = masters.into_iter().partition(|master| master.role == Role::Leader);
    match leaders.into_iter().next() {
        Some(leader) if reasons.is_empty() => Ok(Before {
            leader: leader.name,
            followers: followers.into_iter().map(|master| master.name).collect(),
            term: leader.term,
        }),
        _ => Err(reasons),
    }
}

fn victims(scenario: &Scenario, target: &Target, before: &Before) -> Vec<String> {
    match scenario.victim {
        Victim::Leader => vec![before.leader.clone()],
        Victim::Follower => before.followers.first().cloned().into_iter().collect(),
        Victim::Minority => {
            let others = before.followers.iter().take(((target.masters.len() - 1) / 2).saturating_sub(1));
            std::iter::once(&before.leader).chain(others).cloned().collect()
        }
        Victim::EveryMaster => target.masters.iter().map(|master| master.name.clone()).collect(),
        Victim::Node | Victim::ManyNodes => nodes::victims(scenario.victim, &target.nodes, &BTreeMap::new()),
    }
}

async fn connect(target: &Target) -> Result<Apis> {
    let mut masters = Vec::new();
    for master in &target.masters {
        masters.push((master.name.clone(), Api::connect(&target.kubeconfig, master.api).await?));
    }
    let endpoint = Api::connect(&target.kubeconfig, target.endpoint).await?;
    endpoint.get("/api/v1/namespaces/default", ANSWER).await.context("the API does not answer")?;
    Ok(Apis { masters, endpoint })
}

/// Everything from the first probe to the last.
async fn drive(
    scenario: &Scenario,
    target: &Target,
    settings: &Settings,
    lab: &Arc<Lab>,
    before: &Before,
    stop: &CancellationToken,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Driven, RunError> {
    probe::prepare(lab).await?;
    let stage = match scenario.fault {
        Fault::Silence => Some(nodes::arrange(scenario, target, lab, stop, say).await?),
        Fault::Signal(_) | Fault::Link(_) => None,
    };
    probe::start(lab);
    pause(WARM_UP, stop).await?;
    let steady_ms = lab.clock.now_ms();
    say(&format!("steady state for {:.0} s", settings.steady.as_secs_f64()));
    pause(settings.steady, stop).await?;
    check_steady(lab, steady_ms).map_err(|reason| RunError::Refused(vec![reason]))?;

    let mut faults = Vec::new();
    let mut cut = None;
    let mut observed = None;
    let victims = victims(scenario, target, before);
    match scenario.fault {
        Fault::Signal(signal) => {
            for victim in &victims {
                faults.push(strike(signal, scenario, target, settings, lab, victim, stop, say).await?);
            }
        }
        Fault::Link(link) => {
            let parted = part(link, scenario, target, settings, lab, &victims, stop, say).await?;
            faults.extend(parted.faults);
            cut = Some(parted.cut);
        }
        Fault::Silence => {
            let stage = stage.as_ref().context("nothing was arranged on nodes")?;
            let lost = nodes::lose(scenario, target, settings, lab, stage, stop, say).await?;
            faults.extend(lost.faults);
            observed = Some(lost.observed);
        }
    }
    pause(AFTERMATH, stop).await?;
    Ok(Driven { steady_ms, faults, cut, nodes: observed, end_ms: lab.clock.now_ms() })
}

/// # Errors
/// `Interrupted` as soon as `stop` is cancelled.
pub(super) async fn pause(duration: Duration, stop: &CancellationToken) -> Result<(), RunError> {
    match time::timeout(duration, stop.cancelled()).await {
        Ok(()) => Err(RunError::Interrupted),
        Err(_) => Ok(()),
    }
}

/// Says what is wrong before anything was done.
fn check_steady(lab: &Lab, from_ms: f64) -> Result<(), String> {
    let seen = lab.lock();
    let recent = || seen.samples.iter().filter(|sample| sample.end_ms() >= from_ms);
    if let Some(sample) = recent().find(|sample| !sample.is_ok()) {
        let error = sample.error.as_deref().unwrap_or("no answer");
        return Err(format!("before any fault, a {} through {} failed: {error}", sample.probe.name(), sample.via));
    }
    for store in &lab.stores {
        if !recent().any(|sample| sample.probe == Probe::Write && sample.via == store.name) {
            return Err(format!("before any fault, no write through {} was acknowledged", store.name));
        }
    }
    if lab.apis.is_some() && !seen.pods_and_controllers_act() {
        return Err("before any fault, no pod was bound or no controller acted".to_owned());
    }
    Ok(())
}

/// Sends a signal to one victim, and returns once that answers again.
async fn strike(
    signal: Signal,
    scenario: &Scenario,
    target: &Target,
    settings: &Settings,
    lab: &Arc<Lab>,
    victim: &str,
    stop: &CancellationToken,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<FaultSpan, RunError> {
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
    pause(scenario.observe, stop).await?;
    if let Some(armed) = armed {
        armed.undo()?;
        say(&format!("{victim} goes on"));
    }
    let ended = match signal {
        Signal::Kill | Signal::Terminate => Some(identity),
        Signal::Stop => None,
    };
    let to_ms = back(target, lab, victim, ended, stop).await?;
    say(&format!("{victim} answers again, {:.1} s after the fault", (to_ms - from_ms) / 1e3));
    Ok(FaultSpan { victim: victim.to_owned(), what: scenario.fault.name().to_owned(), from_ms, to_ms })
}

/// What became of links.
struct Parted {
    faults: Vec<FaultSpan>,
    /// See [`Driven::cut`].
    cut: (f64, f64),
}

/// Cuts the links between all victims and the other masters, and returns once they answer again.
async fn part(
    link: Link,
    scenario: &Scenario,
    target: &Target,
    settings: &Settings,
    lab: &Arc<Lab>,
    victims: &[String],
    stop: &CancellationToken,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Parted, RunError> {
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
        Link::Cut | Link::Mute => pause(scenario.observe, stop).await?,
        Link::Flap(lasts) => {
            let mut lost = true;
            loop {
                let left = end.saturating_duration_since(time::Instant::now());
                pause(left.min(lasts), stop).await?;
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
    let mut faults = Vec::new();
    for victim in victims {
        let to_ms = back(target, lab, victim, None, stop).await?;
        faults.push(FaultSpan { victim: victim.clone(), what: what.to_owned(), from_ms: begins_ms, to_ms });
    }
    say(&format!("all follow one leader again, {:.1} s after the fault", (lab.clock.now_ms() - begins_ms) / 1e3));
    Ok(Parted { faults, cut: (cut_ms, mended_ms) })
}

/// Probes do not wait for the program that does it.
async fn lose(table: Table, ways: Vec<Way>) -> Result<()> {
    tokio::task::spawn_blocking(move || table.lose(&ways)).await.context("nft panicked")?
}

/// When the victim answers again, in another process if one has ended, and has caught up.
async fn back(
    target: &Target,
    lab: &Lab,
    victim: &str,
    ended: Option<Identity>,
    stop: &CancellationToken,
) -> Result<f64, RunError> {
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
        pause(LOOK, stop).await?;
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

/// Waits for what was asked for, then ends the watches.
async fn finish(lab: &Arc<Lab>, patiently: bool) -> Result<()> {
    lab.asking.close();
    // Requests end by themselves. Only then is it known what watchers have to be told.
    if time::timeout(probe::PATIENCE * 2, lab.asking.wait()).await.is_err() {
        bail!("a probe did not end");
    }
    let deadline = time::Instant::now() + FINISH_PATIENCE;
    while patiently && time::Instant::now() < deadline && !lab.lock().is_settled() {
        time::sleep(LOOK).await;
    }
    lab.watching.cancel();
    lab.watchers.close();
    lab.watchers.wait().await;
    Ok(())
}

/// What can only be asked before everything is removed.
async fn inspect(lab: &Lab) -> Vec<Check> {
    let mut checks = Vec::new();
    let sent: Vec<Sample> =
        lab.lock().samples.iter().filter(|sample| sample.probe == Probe::InFlight).cloned().collect();
    if !sent.is_empty() {
        let found = first(&lab.stores, async |store| store.list(&lab.in_flight(), ANSWER).await).await;
        let versions: Vec<i64> = found.unwrap_or_default().iter().map(|kv| kv.version).collect();
        checks.push(measure::once(&sent.iter().collect::<Vec<_>>(), &versions));
    }
    if let Some(apis) = &lab.apis {
        let list = apis.endpoint.get(&lab.config_maps(), probe::PATIENCE).await;
        let acknowledged = lab.lock().acknowledged.clone();
        checks.push(match list {
            Ok(list) => {
                let items = list["items"].as_array().map_or(&[] as &[_], Vec::as_slice);
                let names: std::collections::BTreeSet<&str> =
                    items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
                let lost = acknowledged.iter().filter(|name| !names.contains(name.as_str())).count();
                let detail = format!("{} acknowledged, {lost} lost", acknowledged.len());
                Check { name: "acknowledged objects: there".to_owned(), passed: lost == 0, detail }
            }
            Err(refusal) => {
                Check { name: "acknowledged objects: there".to_owned(), passed: false, detail: refusal.to_string() }
            }
        });
    }
    checks
}

/// What the first store answers that does.
async fn first<T>(stores: &[Store], ask: impl AsyncFn(&Store) -> Result<T, tonic::Status>) -> Result<T, tonic::Status> {
    let mut last = tonic::Status::unavailable("there is no master");
    for store in stores {
        match ask(store).await {
            Ok(answer) => return Ok(answer),
            Err(status) => last = status,
        }
    }
    Err(last)
}

async fn sweep(lab: &Lab) -> Check {
    let name = "nothing is left behind".to_owned();
    let keys = first(&lab.stores, async |store| store.delete_all(&lab.prefix, ANSWER).await).await;
    let objects = match &lab.apis {
        Some(apis) => probe::sweep(&apis.endpoint).await,
        None => Ok(()),
    };
    let error = match (keys, objects) {
        (Ok(()), Ok(())) => {
            return Check { name, passed: true, detail: "keys, namespace and node of the drill are gone".to_owned() };
        }
        (Err(status), _) => format!("keys: {}", status.message()),
        (_, Err(error)) => format!("objects: {error:#}"),
    };
    Check { name, passed: false, detail: error }
}

/// Whether there is an order of all requests to the store that explains every answer.
fn order(path: &Path) -> Result<Check> {
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

fn judge(
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
    checks.push(Check {
        name: "terms: no more than needed".to_owned(),
        passed: terms <= scenario.most_terms,
        detail: format!("{terms} new, at most {}", scenario.most_terms),
    });
    if has_api {
        checks.push(measure::watches_are_whole(&seen.told, &seen.acknowledged, seen.relists));
    }
    if let (Fault::Link(link), Some(cut)) = (scenario.fault, driven.cut) {
        let (victims, others): (Vec<&str>, Vec<&str>) = masters
            .iter()
            .map(String::as_str)
            .partition(|name| driven.faults.iter().any(|fault| fault.victim == *name));
        match link {
            Link::Cut | Link::Mute => checks.push(measure::minority_is_silent(&seen.samples, &victims, cut)),
            // What comes in between may be acknowledged.
            Link::Flap(_) => {}
        }
        checks.push(measure::majority_goes_on(&seen.samples, &others, cut));
    }
    checks.extend(driven.nodes.as_ref().map(nodes::Observed::check));
    if scenario.victim == Victim::Follower {
        let window = driven.window(term_before);
        let others = measure::failed(&seen.samples, &window);
        let others = others.iter().filter(|sample| sample.via != window.victim && sample.via != "endpoint").count();
        let retried = measure::failed_after_one_retry(&seen.samples, &window);
        checks.push(Check {
            name: "clients of the others do not notice".to_owned(),
            passed: others == 0 && retried == 0,
            detail: format!("{others} requests through other masters failed, {retried} by the endpoint after a retry"),
        });
    }
    checks
}

fn figures(
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
        let needs_api = matches!(*id, "F5" | "F6" | "F7 pods" | "F7 controllers" | "F8" | "F18 failed");
        if needs_api && !has_api {
            not_measured.push((*id).to_owned());
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let value = match *id {
            "F1" | "F2" => measure::first_write(samples, window),
            "F3" => measure::in_flight(samples),
            "F2 flap" | "F4" => measure::longest_gap(samples, window),
            "F4 failed" => Some(measure::failed(samples, window).len() as f64),
            "F5" => measure::next(samples, Probe::Pod, window),
            "F6" => measure::next(samples, Probe::Controller, window),
            "F7 pods" => measure::slowest(samples, Probe::Pod, window),
            "F7 controllers" => measure::slowest(samples, Probe::Controller, window),
            "F8" => measure::watch_resumed(samples, window),
            "F9" | "F10" | "F12 alarm" | "F12 evicted" => nodes.and_then(|observed| observed.figure(id)),
            "F18 failed" => Some(measure::failed_after_one_retry(samples, window) as f64),
            "F18 terms" => Some(term_after.saturating_sub(window.term_before) as f64),
            _ => unreachable!("{id} is measured by no drill"),
        };
        figures.push(Figure { id: (*id).to_owned(), value });
    }
    figures
}

fn usual(samples: &[Sample], from_ms: f64, to_ms: f64) -> Steady {
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
