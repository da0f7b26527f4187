//! `quorate bench`: how fast a store is, and what that costs its servers. Any store that
//! speaks etcd v3 can be measured, and two of them in turns.

mod cluster;
mod compare;
mod disk;
pub(crate) mod environment;
mod etcd_format;
mod flags;
mod histogram;
mod html;
mod keys;
mod large;
mod lease;
mod pace;
mod recorder;
mod report;
mod rows;
mod run;
mod search;
mod servers;
mod soak;
mod table;
mod target;
mod watch;
mod wire;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use self::environment::Environment;
use self::flags::{Load, Loaded, Workload};
use self::pace::Plan;
use self::recorder::millis;
use self::report::{Cluster, Found, Report};
use self::run::Run;
use self::search::Search;
use self::target::Target;
use self::work::Work;
use crate::output;
use crate::supervise;

/// The exit code when the benchmark ran and its verdict is bad: scripts can tell it from a
/// failure to run.
const VERDICT: u8 = 2;

/// Where a search for a rate begins, and how long it stays at one when nothing is said.
const FIRST_RATE: f64 = 1_000.0;
const SEARCH_STEP: Duration = Duration::from_secs(5);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate bench disk /var/lib/quorate
  quorate bench put --conns 100 --clients 1000 --val-size 256 --seconds 10
  quorate bench range --clients 100 --seconds 10 --versus-endpoints 192.0.2.2:2379
  quorate bench table                  beside etcd on this machine, row by row
Any store that speaks etcd v3 can be measured, also a real etcd. What a load writes stays:
keys that begin with b0.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// How long the disk takes to make a write durable.
    Disk(disk::Arguments),
    /// Write keys.
    Put(Loaded<flags::Put>),
    /// Read one key, or a range.
    Range(Loaded<flags::Range>),
    /// Write several keys in a transaction.
    Txn(Loaded<flags::Txn>),
    /// Transactions that read beside transactions that write.
    Mixed(Loaded<flags::Mixed>),
    /// Keep leases alive.
    Lease(Loaded<flags::Lease>),
    /// Write as fast as answers come, and measure until watchers hear of it.
    Watch(Loaded<flags::Watch>),
    /// Write at a steady rate, and measure until watchers hear of it.
    WatchLatency(Loaded<flags::WatchLatency>),
    /// Read a whole key space at a time.
    List(Loaded<flags::List>),
    /// Read and write at a steady rate for a long time, and say whether the store slows down.
    Soak(Loaded<flags::Soak>),
    /// Start clusters of Quorate and of etcd here, and print how they compare, row by row.
    Table(table::Arguments),
    /// Say whether a report is worse than an earlier one, noise aside.
    Compare(compare::Arguments),
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    let stop = supervise::stop_on_signal()?;
    match arguments.command {
        Command::Disk(arguments) => disk::run(arguments, stop).await,
        Command::Put(workload) => measure(&workload, &stop).await,
        Command::Range(workload) => measure(&workload, &stop).await,
        Command::Txn(workload) => measure(&workload, &stop).await,
        Command::Mixed(workload) => measure(&workload, &stop).await,
        Command::Lease(workload) => measure(&workload, &stop).await,
        Command::Watch(workload) => measure(&workload, &stop).await,
        Command::WatchLatency(workload) => measure(&workload, &stop).await,
        Command::List(workload) => measure(&workload, &stop).await,
        Command::Soak(workload) => measure(&workload, &stop).await,
        Command::Table(arguments) => table::run(arguments, stop).await,
        Command::Compare(arguments) => compare::run(&arguments),
    }
}

async fn measure<W: Workload>(loaded: &Loaded<W>, stop: &CancellationToken) -> Result<u8> {
    let Loaded { workload, load } = loaded;
    load.check()?;
    let work = Arc::new(workload.work()?);
    let targets = targets(load).await?;
    let (runs, search) = match (load.find_rate, targets.as_slice()) {
        (Some(p99), [target, ..]) => {
            let (runs, found) = find_rate(W::NAME, target, &work, load, p99.0, stop).await?;
            (runs, Some(found))
        }
        _ => (take_turns(W::NAME, &targets, &work, workload.plan(load), load, stop).await?, None),
    };
    let clusters = targets.iter().map(|target| Cluster { name: target.name(), servers: target.servers.clone() });
    let environment = Environment::of_this_machine(None);
    let interrupted = stop.is_cancelled();
    let mut report = Report::new(W::NAME, loaded.settings(), environment, clusters.collect(), runs, interrupted);
    report.search = search;
    report.drift = (W::NAME == flags::Soak::NAME).then(|| soak::drift(&report));
    deliver(&report, load, workload.heading())
}

/// Runs the load against each cluster in turn, as often as was asked for.
async fn take_turns(
    name: &str,
    targets: &[Target],
    work: &Arc<Work>,
    plan: Plan,
    load: &Load,
    stop: &CancellationToken,
) -> Result<Vec<Run>> {
    let turns = if targets.len() == 1 { 1 } else { load.pairs };
    let mut runs = Vec::new();
    for (pair, (cluster, target)) in (0..turns).flat_map(|pair| targets.iter().enumerate().map(move |at| (pair, at))) {
        let told = match turns {
            1 => name.to_owned(),
            _ => format!("{name} {} of {turns}, {}", pair + 1, target.name()),
        };
        let run = run::run(target, work, plan, load.clients, &told, stop).await?;
        runs.push(Run { cluster, pair, ..run });
        if stop.is_cancelled() {
            break;
        }
    }
    Ok(runs)
}

/// Looks for the highest rate at which no more than 1 % take longer than `p99`.
async fn find_rate(
    name: &str,
    target: &Target,
    work: &Arc<Work>,
    load: &Load,
    p99: Duration,
    stop: &CancellationToken,
) -> Result<(Vec<Run>, Found)> {
    let step = load.seconds.map_or(SEARCH_STEP, Duration::from_secs);
    let mut search = Search::from(FIRST_RATE);
    let mut runs = Vec::new();
    while let Some(rate) = search.rate() {
        let plan = Plan { total: None, duration: Some(step), rate: Some(rate) };
        let run = run::run(target, work, plan, load.clients, &format!("{name} at {rate:.0}/s"), stop).await?;
        if stop.is_cancelled() {
            break;
        }
        search.tried(run.keeps(p99));
        runs.push(Run { pair: runs.len(), ..run });
    }
    Ok((runs, Found { p99_ms: millis(p99), rate: search.found() }))
}

/// The cluster under test, and the one it is compared with.
async fn targets(load: &Load) -> Result<Vec<Target>> {
    let (endpoints, _) = load.endpoints.resolved()?;
    let mut targets = vec![Target::connect(&endpoints, load.conns, load.target_leader).await?];
    if !load.versus_endpoints.is_empty() {
        let other = endpoints.at(load.versus_endpoints.clone());
        targets.push(Target::connect(&other, load.conns, load.target_leader).await?);
    }
    Ok(targets)
}

/// Prints the report and writes it where it was asked for.
fn deliver(report: &Report, load: &Load, heading: &str) -> Result<u8> {
    if let Some(path) = &load.out {
        write(path, &serde_json::to_string_pretty(report).context("cannot write JSON")?)?;
    }
    if let Some(path) = &load.html {
        write(path, &html::page(report))?;
    }
    match report.runs.first() {
        Some(run) if load.etcd_compat => print!("{heading}{}", etcd_format::print(&report.workload, &run.measured)),
        _ => output::print(load.output, report, Report::table)?,
    }
    let failed = report.runs.iter().any(|run| run.measured.failed() > 0);
    let slower = report.drift.as_ref().is_some_and(|drift| !drift.steady);
    let none_found = report.search.is_some_and(|found| found.rate.is_none());
    // A search goes where operations fail on purpose.
    let failed = failed && report.search.is_none();
    Ok(if failed || slower || none_found || report.interrupted { VERDICT } else { 0 })
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// Carries [`Arguments`] as `quorate` does.
    #[derive(clap::Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        _arguments: super::Arguments,
    }

    #[test]
    fn no_two_flags_clash() {
        Cli::command().debug_assert();
    }
}
