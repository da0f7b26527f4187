//! `quorate drill`: what a cluster loses when one of its parts fails, measured on the cluster
//! itself and compared with what was promised.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use quorate_chaos::cluster::{Cluster, Options};
use quorate_chaos::drill::budget::{self, Row};
use quorate_chaos::drill::compare::{self, Change, Verdict};
use quorate_chaos::drill::report::{self, Report, Run};
use quorate_chaos::drill::run::{RunError, Settings};
use quorate_chaos::drill::scenario::{self, Scenario};
use quorate_chaos::drill::target::{Identity, Master, Processes, Target};
use quorate_chaos::drill::watchdog::{self, Armed, Undo};
use quorate_chaos::drill::{html, junit, run as engine};
use serde::Serialize;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::bench::environment::Environment;
use crate::layout::{self, ClusterState};
use crate::output::{self, Format};
use crate::pki::Pki;
use crate::supervise;
use crate::up::MOST_NODES;

/// The exit code when drills ran and the budget was not kept or a check broke, and when the
/// cluster could not bear a drill: scripts can tell them from a failure.
const VERDICT: u8 = 2;
const REFUSED: u8 = 3;

/// Where `quorate up` keeps its cluster when nothing is said.
const DEFAULT_DATA_DIR: &str = "quorate-data";

/// A cluster that was drilled a moment ago may take so long until it can bear the next.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const SETTLE_LOOK: Duration = Duration::from_millis(250);

/// A state that is not steady is measured again so often: the machine may have been busy.
const STEADY_ATTEMPTS: usize = 3;

/// A cluster of the drill's own is ended after that, should the drill hang.
const OWN_CLUSTER_PATIENCE: Duration = Duration::from_secs(4 * 3600);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate drill list                        what can be drilled, and what not
  quorate drill plan leader-kill            what it would do to the cluster in ./quorate-data
  quorate drill run leader-kill --runs 10   do it, ten times
  quorate drill all --runs 30               every drill, on a cluster started for it
  quorate drill all --only partition-half --masters 5
  quorate drill all --only node-loss,mass-node-loss --nodes 3 --images DIR
  quorate drill run combo --runs 20 --seed 7  other faults in each run, and the same next time
  quorate drill compare old/report.json new/report.json
Exit codes: 0 the budget was kept; 2 it was not, or a check broke; 3 the cluster cannot bear
a drill now; 1 something else went wrong. Ctrl-C undoes the fault and removes what was made.
Drills of links need root and the program nft, drills of disks `quorate up --faults`, drills of
nodes what `quorate up --nodes` needs.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the drills, and those that are not supported with the reason.
    List {
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Say what a drill would do to the cluster, and whether it can bear it; do nothing.
    Plan(PlanArguments),
    /// Drill the cluster that `quorate up` runs.
    Run(RunArguments),
    /// Do every drill, on a cluster that is started for it and ended afterwards.
    All(AllArguments),
    /// Write the page and the JUnit file of a report anew, and print its table.
    Report(ReportArguments),
    /// Say whether a report is worse than an earlier one.
    Compare(CompareArguments),
    /// The dead man's switch; drills start it themselves.
    #[command(hide = true)]
    Watchdog(WatchdogArguments),
}

#[derive(clap::Args, Debug)]
struct PlanArguments {
    #[arg(value_name = "DRILL", value_parser = scenario::find)]
    scenario: &'static Scenario,
    /// The cluster that `quorate up` keeps there.
    #[arg(long, default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
    data_dir: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(clap::Args, Debug)]
struct RunArguments {
    #[arg(value_name = "DRILL", required = true, value_parser = scenario::find)]
    scenarios: Vec<&'static Scenario>,
    /// The cluster that `quorate up` keeps there.
    #[arg(long, default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args, Debug)]
struct AllArguments {
    /// Only these drills.
    #[arg(long, value_delimiter = ',', value_name = "DRILL,...", value_parser = scenario::find)]
    only: Vec<&'static Scenario>,
    /// Drill the cluster that `quorate up` keeps there, instead of one that is started for it.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Masters of the cluster that is started.
    #[arg(long, default_value_t = 3, value_parser = parse_masters, conflicts_with = "data_dir")]
    masters: u8,
    /// Nodes of the cluster that is started, for drills of nodes. Any but 0 needs root.
    #[arg(long, default_value_t = 0, conflicts_with = "data_dir")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=MOST_NODES))]
    nodes: u8,
    /// Image archives for its nodes: drills of nodes run what `./x images` makes.
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    images: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

fn parse_masters(text: &str) -> Result<u8, String> {
    match text {
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("choose 3 or 5: fewer can lose none".to_owned()),
    }
}

#[derive(clap::Args, Debug)]
struct How {
    /// How often each drill is done: a 99th percentile means something from 30 on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// How many seconds the steady state is measured before each fault.
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    steady: u64,
    /// What `combo` draws its faults from, and a number more with each run: the same again
    /// with the same drills [default: a new one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The budget's times are multiplied by that, for a machine that is busy with other things.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = slack)]
    slack: f64,
    /// Where reports and histories are written; made if absent [default: quorate-drills/TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

fn slack(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=100.0).contains(&factor) => Ok(factor),
        _ => Err(format!("{text:?} is not a number between 1 and 100")),
    }
}

#[derive(clap::Args, Debug)]
struct ReportArguments {
    /// The report.json of a drill.
    #[arg(value_name = "REPORT.json")]
    report: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit codes: 0 nothing is worse; 2 a line is worse, or a check broke; 1 the reports cannot be read."
)]
struct CompareArguments {
    /// The earlier report.
    #[arg(value_name = "A.json")]
    before: PathBuf,
    /// The report in question.
    #[arg(value_name = "B.json")]
    after: PathBuf,
    /// How many percent worse a median may be.
    #[arg(long, default_value_t = 25, value_name = "PERCENT", value_parser = clap::value_parser!(u16).range(1..=1000))]
    threshold: u16,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(clap::Args, Debug)]
struct WatchdogArguments {
    #[arg(value_name = "WHAT")]
    undo: Undo,
    /// Act after so many seconds, at the latest.
    #[arg(long, value_name = "SECONDS")]
    after: f64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    match arguments.command {
        Command::List { output } => list(output),
        Command::Plan(arguments) => plan(&arguments).await,
        Command::Run(arguments) => {
            let _lock = lock(&arguments.data_dir)?;
            let target = target(&arguments.data_dir)?;
            drill(&arguments.scenarios, &target, &arguments.how, false, &supervise::stop_on_signal()?).await
        }
        Command::All(arguments) => all(&arguments).await,
        Command::Report(arguments) => rerender(&arguments),
        Command::Compare(arguments) => compare_reports(&arguments),
        Command::Watchdog(WatchdogArguments { undo, after }) => {
            let patience = Duration::try_from_secs_f64(after).context("--after is no time")?;
            tokio::task::spawn_blocking(move || watchdog::watch(undo, patience)).await.context("it panicked")??;
            Ok(0)
        }
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    supported: bool,
    /// What it does, or why it is not supported.
    about: &'static str,
    budget: &'static [&'static str],
}

fn list(format: Format) -> Result<u8> {
    let supported = scenario::ALL.iter().map(|scenario| Listed {
        name: scenario.name,
        supported: true,
        about: scenario.about,
        budget: scenario.budget,
    });
    let unsupported =
        scenario::UNSUPPORTED.iter().map(|&(name, why)| Listed { name, supported: false, about: why, budget: &[] });
    let drills: Vec<Listed> = supported.chain(unsupported).collect();
    output::print(format, &drills, |drills| {
        output::columns(
            &["DRILL", "MEASURES", "ABOUT"],
            drills.iter().map(|drill| {
                let about =
                    if drill.supported { drill.about.to_owned() } else { format!("not supported: {}", drill.about) };
                vec![drill.name.to_owned(), measures(drill.budget), about]
            }),
        )
    })?;
    Ok(0)
}

fn measures(budget: &[&str]) -> String {
    if budget.is_empty() { "-".to_owned() } else { budget.join(", ") }
}

#[derive(Debug, Serialize)]
struct Plan {
    drill: &'static str,
    about: &'static str,
    /// Whom it would hit now; none when the cluster cannot bear it.
    victims: Vec<String>,
    fault: &'static str,
    watched_seconds: f64,
    undone_by: &'static str,
    budget: Vec<Promise>,
    /// Why the cluster should not be drilled now.
    refused: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Promise {
    id: &'static str,
    event: &'static str,
    p50: String,
    p99: String,
}

async fn plan(arguments: &PlanArguments) -> Result<u8> {
    let scenario = arguments.scenario;
    let target = target(&arguments.data_dir)?;
    let (victims, refused) = match engine::preflight(scenario, &target).await? {
        Ok(victims) => (victims, Vec::new()),
        Err(reasons) => (Vec::new(), reasons),
    };
    let lines = scenario.budget.iter().filter_map(|id| budget::line(id));
    let plan = Plan {
        drill: scenario.name,
        about: scenario.about,
        victims,
        fault: scenario.fault.name(),
        watched_seconds: scenario.observe.as_secs_f64(),
        undone_by: scenario.fault.undone_by(),
        budget: lines
            .map(|line| Promise {
                id: line.id,
                event: line.event,
                p50: line.unit.print(line.p50),
                p99: line.unit.print(line.p99),
            })
            .collect(),
        refused,
    };
    output::print(arguments.output, &plan, |plan| {
        let mut text = format!(
            "{}: {}\n\nFault     {} to {}, watched for {:.1} s\nUndone    {}\n",
            plan.drill,
            plan.about,
            plan.fault,
            if plan.victims.is_empty() { "nobody now".to_owned() } else { plan.victims.join(", ") },
            plan.watched_seconds,
            plan.undone_by
        );
        text.push_str("Probes    writes and reads through every master; a client, pods and Deployments by the endpoint; watches\n");
        text.push_str("Leaves    nothing: its keys, its namespace and its node are removed\n");
        for promise in &plan.budget {
            text.push_str(&format!(
                "Budget    {}: {}, p50 {}, p99 {}\n",
                promise.id, promise.event, promise.p50, promise.p99
            ));
        }
        match plan.refused.is_empty() {
            true => text.push_str(&format!("\nThe cluster can bear it: quorate drill run {}\n", plan.drill)),
            false => text.push_str(&format!("\nNot now:\n  {}\n", plan.refused.join("\n  "))),
        }
        text
    })?;
    Ok(if plan.refused.is_empty() { 0 } else { REFUSED })
}

/// One drill at a time.
fn lock(data_dir: &Path) -> Result<Flock<std::fs::File>> {
    let path = data_dir.join("drill.lock");
    let file = std::fs::File::create(&path).with_context(|| {
        format!("no cluster was started in {}: run `quorate up`, or name its --data-dir", data_dir.display())
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow::anyhow!("another drill runs on the cluster in {}: wait for its end", data_dir.display()))
}

/// What a drill needs to know of the cluster in `data_dir`.
fn target(data_dir: &Path) -> Result<Target> {
    let missing =
        || format!("no cluster was started in {}: run `quorate up`, or name its --data-dir", data_dir.display());
    let state = ClusterState::read(data_dir)?.with_context(missing)?;
    let folder = data_dir.to_owned();
    let mut disks = BTreeMap::new();
    if state.faults {
        let data_dir = data_dir.canonicalize().context("the data directory has no absolute path")?;
        let names = state.masters.iter().map(|master| &master.place.name);
        disks = names.map(|name| (name.clone(), layout::disk(&data_dir, name))).collect();
    }
    Ok(Target {
        masters: state
            .masters
            .iter()
            .map(|master| Master {
                name: master.place.name.clone(),
                api: master.place.api,
                client: master.place.client,
                peer: master.place.peer,
            })
            .collect(),
        nodes: state.nodes.iter().map(|node| node.place.name.clone()).collect(),
        endpoint: state.endpoint,
        kubeconfig: data_dir.join("admin.kubeconfig"),
        store_tls: Pki::at(&data_dir.join("pki")).store_client(),
        processes: Arc::new(move || processes(&folder)),
        disks,
    })
}

fn processes(data_dir: &Path) -> Result<Processes> {
    let state = ClusterState::read(data_dir)?.context("the cluster's state file is gone")?;
    let masters: BTreeMap<String, u32> =
        state.masters.into_iter().filter_map(|master| Some((master.place.name, master.pid?))).collect();
    let nodes: BTreeMap<String, u32> =
        state.nodes.into_iter().filter_map(|node| Some((node.place.name, node.pid?))).collect();
    // A supervisor that was killed does not take its id back.
    let supervisor = state.pid.filter(|pid| Identity::of(*pid).is_some());
    Ok(Processes { supervisor, masters, nodes })
}

async fn all(arguments: &AllArguments) -> Result<u8> {
    let stop = supervise::stop_on_signal()?;
    if let Some(data_dir) = &arguments.data_dir {
        let _lock = lock(data_dir)?;
        let target = target(data_dir)?;
        return drill(&chosen(&arguments.only, &target), &target, &arguments.how, false, &stop).await;
    }
    let folder = tempfile::Builder::new().prefix("quorate-drill-").tempdir().context("no temporary folder")?;
    let options = Options {
        binary: std::env::current_exe().context("cannot find this program's own file")?,
        data_dir: folder.path().join("data"),
        masters: arguments.masters,
        nodes: arguments.nodes,
        images: arguments.images.clone(),
        faults: true,
        detached: true,
    };
    eprintln!("starting {} masters and {} nodes in {}", arguments.masters, arguments.nodes, folder.path().display());
    let (cluster, armed) = tokio::task::spawn_blocking(move || own_cluster(options)).await.context("it panicked")??;
    let result = match target(cluster.data_dir()) {
        // Its nodes may still import images.
        Ok(target) => drill(&chosen(&arguments.only, &target), &target, &arguments.how, true, &stop).await,
        Err(error) => Err(error),
    };
    eprintln!("ending the cluster");
    tokio::task::spawn_blocking(move || end(cluster, armed)).await.context("it panicked")??;
    result
}

/// Those that were asked for; all that can be done here when none was.
fn chosen(only: &[&'static Scenario], target: &Target) -> Vec<&'static Scenario> {
    if !only.is_empty() {
        return only.to_vec();
    }
    let possible = |scenario: &&'static Scenario| {
        let obstacles = engine::obstacles(scenario, target);
        if !obstacles.is_empty() {
            eprintln!("left out: {}: {}", scenario.name, obstacles.join("; "));
        }
        obstacles.is_empty()
    };
    scenario::ALL.iter().filter(possible).collect()
}

/// A cluster that ends with this process, however that ends.
fn own_cluster(options: Options) -> Result<(Cluster, Armed)> {
    let binary = options.binary.clone();
    let cluster = Cluster::start(options)?;
    let identity = cluster.pid().and_then(Identity::of).context("`quorate up` has just ended")?;
    let armed = Armed::arm(&binary, Undo::End(identity), OWN_CLUSTER_PATIENCE)?;
    Ok((cluster, armed))
}

fn end(mut cluster: Cluster, mut armed: Armed) -> Result<()> {
    cluster.stop()?;
    armed.disarm()
}

/// Does the drills in turns, so that each meets the cluster as the others leave it. The first
/// meets it as it is, unless it `has_just_started`.
async fn drill(
    scenarios: &[&'static Scenario],
    target: &Target,
    how: &How,
    has_just_started: bool,
    stop: &CancellationToken,
) -> Result<u8> {
    // Before anything is done: waiting would not help.
    let obstacles = scenarios.iter().flat_map(|scenario| {
        engine::obstacles(scenario, target).into_iter().map(move |reason| format!("{}: {reason}", scenario.name))
    });
    let obstacles: Vec<String> = obstacles.collect();
    if !obstacles.is_empty() {
        eprintln!("error: {}", RunError::Refused(obstacles));
        return Ok(REFUSED);
    }
    let out = match &how.out {
        Some(out) => out.clone(),
        None => Path::new("quorate-drills").join(Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()),
    };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let environment = report::Environment {
        started: Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine: Environment::of_this_machine(None).line(),
    };
    let alone = scenarios.len() == 1 && how.runs == 1;
    let mut runs: Vec<Run> = Vec::new();
    let mut ended = None;
    'runs: for number in 1..=usize::from(how.runs) {
        for scenario in scenarios {
            let folder = match alone {
                true => out.clone(),
                false => out.join(report::folder(scenario.name, number)),
            };
            let patiently = has_just_started || !runs.is_empty();
            match once(scenario, number, target, how, &folder, patiently, stop).await {
                Ok(run) => {
                    eprintln!("{}", run.sentence(how.slack));
                    let single = Report::new(environment.clone(), how.slack, vec![run]);
                    write(&single, &folder)?;
                    runs.extend(if alone { single.runs } else { Report::summary(&single.runs) });
                }
                Err(error) => {
                    ended = Some(error);
                    break 'runs;
                }
            }
        }
    }
    if runs.is_empty() {
        // Nothing was done; an empty folder would say otherwise.
        let _ = std::fs::remove_dir(&out);
        return match ended {
            Some(RunError::Refused(reasons)) => {
                eprintln!("error: {}", RunError::Refused(reasons));
                Ok(REFUSED)
            }
            Some(error) => Err(error.into()),
            None => bail!("no drill was asked for"),
        };
    }
    let report = Report::new(environment, how.slack, runs);
    write(&report, &out)?;
    output::print(how.output, &report, table)?;
    eprintln!("report: {}", out.join("report.html").display());
    match ended {
        Some(error) => Err(error.into()),
        None => Ok(if report.passed() { 0 } else { VERDICT }),
    }
}

/// One run; `patiently`, it waits until the cluster has settled.
async fn once(
    scenario: &'static Scenario,
    number: usize,
    target: &Target,
    how: &How,
    folder: &Path,
    patiently: bool,
    stop: &CancellationToken,
) -> Result<Run, RunError> {
    let say = |what: &str| eprintln!("{} {number} of {}: {what}", scenario.name, how.runs);
    if patiently {
        settle(scenario, target, stop).await?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut attempt = 1;
    loop {
        let settings = Settings {
            binary: std::env::current_exe().context("cannot find this program's own file")?,
            steady: Duration::from_secs(how.steady),
            seed: how.seed.unwrap_or_else(|| Timestamp::now().as_millisecond().unsigned_abs()) + number as u64 - 1,
            number,
            name: format!("{:x}-{attempt}", Timestamp::now().as_millisecond()),
            history: folder.join("history.jsonl"),
        };
        match engine::run(scenario, target, &settings, stop, &say).await {
            Err(RunError::Refused(reasons)) if patiently && attempt < STEADY_ATTEMPTS => {
                say(&format!("again, because {}", reasons.join("; ")));
                attempt += 1;
                settle(scenario, target, stop).await?;
            }
            ended => return ended,
        }
    }
}

/// Returns once the cluster can bear the next drill, or had its time.
async fn settle(scenario: &Scenario, target: &Target, stop: &CancellationToken) -> Result<(), RunError> {
    let deadline = time::Instant::now() + SETTLE_PATIENCE;
    while engine::preflight(scenario, target).await?.is_err() && time::Instant::now() < deadline {
        if time::timeout(SETTLE_LOOK, stop.cancelled()).await.is_ok() {
            return Err(RunError::Interrupted);
        }
    }
    Ok(())
}

/// The report in every form, into `folder`.
fn write(report: &Report, folder: &Path) -> Result<()> {
    let json = serde_json::to_string(report).context("cannot write JSON")?;
    for (name, text) in [("report.json", json), ("report.html", html::page(report)), ("junit.xml", junit::xml(report))]
    {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    if !report.rows.is_empty() {
        let row = |row: &Row| {
            let kept = if row.kept { "kept" } else { "OVER" };
            vec![
                row.id.clone(),
                row.event.clone(),
                row.measured(),
                row.budget(),
                kept.to_owned(),
                row.n.to_string(),
                row.peers.clone(),
            ]
        };
        text = output::columns(
            &["", "EVENT", "MEASURED p50/p99", "BUDGET p50/p99", "", "RUNS", "ETCD 3.4 AND KUBERNETES 1.20"],
            report.rows.iter().map(row),
        );
        text.push('\n');
    }
    text.push_str(&report.sentence());
    text.push('\n');
    for run in &report.runs {
        for check in run.broken() {
            text.push_str(&format!("BROKEN in {}: {}: {}\n", run.folder(), check.name, check.detail));
        }
    }
    let mut not_measured: Vec<&str> =
        report.runs.iter().flat_map(|run| &run.not_measured).map(String::as_str).collect();
    not_measured.sort_unstable();
    not_measured.dedup();
    if !not_measured.is_empty() {
        text.push_str(&format!("Not measured: {}\n", not_measured.join(", ")));
    }
    text
}

fn rerender(arguments: &ReportArguments) -> Result<u8> {
    let report = Report::read(&arguments.report)?;
    let folder = arguments.report.parent().unwrap_or(Path::new("."));
    write(&report, folder)?;
    output::print(arguments.output, &report, table)?;
    eprintln!("report: {}", folder.join("report.html").display());
    Ok(if report.passed() { 0 } else { VERDICT })
}

fn compare_reports(arguments: &CompareArguments) -> Result<u8> {
    let (before, after) = (Report::read(&arguments.before)?, Report::read(&arguments.after)?);
    let changes = compare::compare(&before, &after, f64::from(arguments.threshold) / 100.0);
    output::print(arguments.output, &changes, |changes| {
        let word = |change: &Change| match change.verdict {
            Verdict::Better => "better",
            Verdict::Same => "same",
            Verdict::Worse => "WORSE",
            Verdict::Unknown => "only in one report",
        };
        let row = |change: &Change| {
            vec![change.id.clone(), change.before.clone(), change.after.clone(), word(change).to_owned()]
        };
        output::columns(&["", "BEFORE", "AFTER", ""], changes.iter().map(row))
    })?;
    Ok(if changes.iter().any(|change| change.verdict == Verdict::Worse) { VERDICT } else { 0 })
}
