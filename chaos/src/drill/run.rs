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
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::budget::quantile;
use super::converge;
use super::disk;
use super::measure::{self, Window};
use super::nodes;
use super::preflight;
use super::probe::{self, Apis, Lab, Seen};
use super::report::{Check, FaultSpan, Figure, Run, Steady, Usual};
use super::sample::{Probe, Role, Sample};
use super::scenario::{self, Disk, Fault, Link, Scenario, Signal, Victim};
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
pub(super) const ANSWER: Duration = Duration::from_secs(2);

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

/// How many faults a combination has, and the longest pause between two.
const COMBO_STEPS: usize = 4;
const COMBO_PAUSE: Duration = Duration::from_secs(2);

/// How long the search for an order of all operations may take.
const CHECK_TIME: Duration = Duration::from_secs(10);

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
    checks.extend(judge(scenario, &seen, &driven, &masters, before.term, term_after, has_api));
    let at = settings.history.clone();
    let order = tokio::task::spawn_blocking(move || order(&at)).await.context("the check of the history panicked")?;
    checks.push(order?);
    let window = driven.window(before.term);
    let figures = figures(
        scenario,
        &seen.samples,
        &window,
        driven.acts.iter().find_map(|act| act.nodes.as_ref()),
        term_after,
        has_api,
        &mut not_measured,
    );
    let steady = usual(&seen.samples, driven.steady_ms, window.fault_ms);
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

/// What happened, on the clock of the run.
struct Driven {
    steady_ms: f64,
    acts: Vec<Act>,
    end_ms: f64,
}

/// One fault, done and undone.
pub(super) struct Act {
    scenario: &'static Scenario,
    /// By victim.
    pub(super) spans: Vec<FaultSpan>,
    /// From when to when links were not whole, at the least.
    cut: Option<(f64, f64)>,
    /// What became of lost nodes.
    pub(super) nodes: Option<nodes::Observed>,
    /// What was seen of the fault itself.
    checks: Vec<Check>,
}

impl Act {
    fn new(scenario: &'static Scenario) -> Self {
        Self { scenario, spans: Vec::new(), cut: None, nodes: None, checks: Vec::new() }
    }

    fn begin_ms(&self) -> Option<f64> {
        self.spans.first().map(|span| span.from_ms)
    }

    /// The time up to `end_ms`, when the next fault begins or the run ends.
    fn window(&self, end_ms: f64, term_before: u64) -> Window<'_> {
        let victim = match self.spans.as_slice() {
            [span] => span.victim.as_str(),
            _ => "",
        };
        Window { victim, fault_ms: self.begin_ms().unwrap_or(end_ms), end_ms, term_before }
    }
}

impl Driven {
    fn spans(&self) -> impl Iterator<Item = &FaultSpan> {
        self.acts.iter().flat_map(|act| &act.spans)
    }

    /// From the first fault to the end of the run.
    fn window(&self, term_before: u64) -> Window<'_> {
        match self.acts.as_slice() {
            [act] => act.window(self.end_ms, term_before),
            acts => {
                let fault_ms = acts.first().and_then(Act::begin_ms).unwrap_or(self.end_ms);
                Window { victim: "", fault_ms, end_ms: self.end_ms, term_before }
            }
        }
    }

    /// Every fault, with the time until the next.
    fn acts(&self) -> impl Iterator<Item = (&Act, f64)> {
        let ends = self.acts.iter().skip(1).map(|act| act.begin_ms().unwrap_or(self.end_ms));
        self.acts.iter().zip(ends.chain(std::iter::once(self.end_ms)))
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
                acts.push(act(Stage { scenario: step, ..stage }, victims(step, target, &before)).await?);
            }
        }
        Fault::Silence => {
            let arranged = arranged.as_ref().context("nothing was arranged on nodes")?;
            let mut act = Act::new(scenario);
            nodes::lose(stage, arranged, &mut act).await?;
            acts.push(act);
        }
        _ => acts.push(act(stage, victims(scenario, target, before)).await?),
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

/// Does the fault of `stage` to victims, undoes it, and returns once all answer again.
async fn act(stage: Stage<'_>, victims: Vec<String>) -> Result<Act, RunError> {
    let scenario = stage.scenario;
    let mut act = Act::new(scenario);
    match scenario.fault {
        Fault::Signal(signal) => {
            for victim in &victims {
                act.spans.push(strike(stage, signal, victim).await?);
            }
        }
        Fault::Link(link) => part(stage, link, &victims, &mut act).await?,
        Fault::Disk(fault) => {
            for victim in &victims {
                let (span, check) = disk::strike(stage, fault, victim).await?;
                act.spans.push(span);
                act.checks.extend(check);
            }
        }
        // These are no faults of one victim after another.
        Fault::Silence | Fault::Combo => {}
    }
    Ok(act)
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
    let to_ms = back(stage, victim, ended).await?;
    say(&format!("{victim} answers again, {:.1} s after the fault", (to_ms - from_ms) / 1e3));
    Ok(FaultSpan { victim: victim.to_owned(), what: scenario.fault.name().to_owned(), from_ms, to_ms })
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

/// When the victim answers again, in another process if one has ended, and has caught up.
pub(super) async fn back(stage: Stage<'_>, victim: &str, ended: Option<Identity>) -> Result<f64, RunError> {
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
