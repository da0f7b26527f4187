//! One run of a drill: preflight, steady state, fault, probes, revert, convergence, verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::act::{self, Driven};
use super::api::Api;
use super::converge;
use super::measure;
use super::nodes;
use super::preflight;
use super::probe::{self, Apis, Lab};
use super::report::{Check, Run};
use super::sample::{Probe, Role, Sample};
use super::scenario::{self, Fault, Scenario, Victim};
use super::store::Store;
use super::target::Target;
use super::verdict;
use crate::fault::link;

/// What comes before the steady state: first connections and caches.
const WARM_UP: Duration = Duration::from_millis(700);

/// How long a request of the preflight waits for its answer.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// How long a victim may take to answer again once its fault is undone.
pub(super) const BACK_PATIENCE: Duration = Duration::from_secs(90);

/// Once everybody answers again, clients are watched for that long.
const AFTERMATH: Duration = Duration::from_millis(700);

/// How long pods, controllers and watches may take to finish what was asked for.
const FINISH_PATIENCE: Duration = Duration::from_secs(10);

/// A watchdog undoes a fault that was not undone so long after it should have been.
pub(super) const WATCHDOG_SLACK: Duration = Duration::from_secs(10);

/// How many faults a combination has, and the longest pause between two.
const COMBO_STEPS: usize = 4;
const COMBO_PAUSE: Duration = Duration::from_secs(2);

pub(super) const LOOK: Duration = Duration::from_millis(20);

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `quorate`, which is also its own watchdog.
    pub binary: PathBuf,
    /// How long the steady state is measured.
    pub steady: Duration,
    /// What a combination is drawn from.
    pub seed: u64,
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

/// What a fault is done with.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub(super) scenario: &'static Scenario,
    pub(super) target: &'a Target,
    pub(super) settings: &'a Settings,
    pub(super) lab: &'a Arc<Lab>,
    /// Interrupts the run.
    pub(super) stop: &'a CancellationToken,
    pub(super) say: &'a (dyn Fn(&str) + Send + Sync),
}

impl Stage<'_> {
    /// # Errors
    /// `Interrupted` as soon as the run is stopped.
    pub(super) async fn pause(&self, duration: Duration) -> Result<(), RunError> {
        match time::timeout(duration, self.stop.cancelled()).await {
            Ok(()) => Err(RunError::Interrupted),
            Err(_) => Ok(()),
        }
    }
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
    let disks = target.masters.iter().all(|master| target.disks.contains_key(&master.name));
    let mut reasons = preflight::obstacles(scenario, &peers, disks, link::left_behind);
    reasons.extend(nodes::obstacle(scenario, target.nodes.len()));
    reasons
}

/// Runs `scenario` once. Whatever happens, the fault is undone and nothing is left behind.
///
/// # Errors
/// `Refused` by the preflight, or when the state before the fault was not steady;
/// `Interrupted` by `stop`; `Failed` when something else got in the way.
pub async fn run(
    scenario: &'static Scenario,
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

    let stage = Stage { scenario, target, settings, lab: &lab, stop, say };
    let driven = drive(stage, &before).await;

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
    checks.extend(verdict::judge(scenario, &seen, &driven, &masters, before.term, term_after, has_api));
    let at = settings.history.clone();
    let order =
        tokio::task::spawn_blocking(move || verdict::order(&at)).await.context("the check of the history panicked")?;
    checks.push(order?);
    let window = driven.window(before.term);
    let figures = verdict::figures(
        scenario,
        &seen.samples,
        &window,
        driven.acts.iter().find_map(|act| act.nodes.as_ref()),
        term_after,
        has_api,
        &mut not_measured,
    );
    let steady = verdict::usual(&seen.samples, driven.steady_ms, window.fault_ms);
    let gaps = measure::gaps(&seen.samples, driven.steady_ms, driven.end_ms);
    Ok(Run {
        scenario: scenario.name.to_owned(),
        about: match scenario.fault {
            Fault::Combo => format!("{} Seed {}.", scenario.about, settings.seed),
            _ => scenario.about.to_owned(),
        },
        number: settings.number,
        masters,
        faults: driven.spans().cloned().collect(),
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
async fn drive(stage: Stage<'_>, before: &Before) -> Result<Driven, RunError> {
    let Stage { scenario, target, settings, lab, .. } = stage;
    probe::prepare(lab).await?;
    let arranged = match scenario.fault {
        Fault::Silence => Some(nodes::arrange(stage).await?),
        Fault::Signal(_) | Fault::Link(_) | Fault::Disk(_) | Fault::Combo => None,
    };
    probe::start(lab);
    if scenario.budget.contains(&"F8 herd") {
        (stage.say)(&format!("opening {} watches on {}", probe::HERD, before.leader));
        probe::herd(lab, &before.leader).await?;
    }
    stage.pause(WARM_UP).await?;
    let steady_ms = lab.clock.now_ms();
    (stage.say)(&format!("steady state for {:.0} s", settings.steady.as_secs_f64()));
    stage.pause(settings.steady).await?;
    check_steady(lab, steady_ms).map_err(|reason| RunError::Refused(vec![reason]))?;

    let mut acts = Vec::new();
    match scenario.fault {
        Fault::Combo => {
            let mut random = StdRng::seed_from_u64(settings.seed);
            for step in combo(&mut random, target) {
                stage.pause(COMBO_PAUSE.mul_f64(random.random_range(0.2..1.0))).await?;
                let before = settled(stage, step).await?;
                acts.push(act::act(Stage { scenario: step, ..stage }, &victims(step, target, &before), None).await?);
            }
        }
        _ => acts.push(act::act(stage, &victims(scenario, target, before), arranged.as_ref()).await?),
    }
    stage.pause(AFTERMATH).await?;
    Ok(Driven { steady_ms, acts, end_ms: lab.clock.now_ms() })
}

/// What a combination consists of: each drill at most once, and none that restarts everybody.
fn combo(random: &mut StdRng, target: &Target) -> Vec<&'static Scenario> {
    let fit = |scenario: &&Scenario| {
        !matches!(scenario.fault, Fault::Combo | Fault::Silence)
            && scenario.victim != Victim::EveryMaster
            && obstacles(scenario, target).is_empty()
    };
    let mut steps: Vec<&Scenario> = scenario::ALL.iter().filter(fit).collect();
    steps.shuffle(random);
    steps.truncate(COMBO_STEPS);
    steps
}

/// Waits until the cluster can bear the next fault.
async fn settled(stage: Stage<'_>, step: &Scenario) -> Result<Before, RunError> {
    let deadline = time::Instant::now() + BACK_PATIENCE;
    loop {
        match bears(step, stage.target, &stage.lab.stores).await {
            Ok(before) => return Ok(before),
            Err(reasons) if time::Instant::now() > deadline => return Err(RunError::Refused(reasons)),
            Err(_) => stage.pause(LOOK).await?,
        }
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
