//! `quorate bench`: how fast a store is, and what that costs its servers. Any store that
//! speaks etcd v3 can be measured, and two of them in turns.

mod cluster;
mod compare;
mod disk;
mod environment;
mod etcd_format;
mod flags;
mod histogram;
mod keys;
mod lease;
mod pace;
mod recorder;
mod report;
mod rows;
mod run;
mod servers;
mod table;
mod target;
mod watch;
mod work;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use self::environment::Environment;
use self::flags::{Load, Workload};
use self::report::{Cluster, Report};
use self::run::Run;
use self::target::Target;
use crate::output;
use crate::supervise;

/// The exit code when the benchmark ran and its verdict is bad: scripts can tell it from a
/// failure to run.
const VERDICT: u8 = 2;

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
    Put(flags::Put),
    /// Read one key, or a range.
    Range(flags::Range),
    /// Write several keys in a transaction.
    Txn(flags::Txn),
    /// Transactions that read beside transactions that write.
    Mixed(flags::Mixed),
    /// Keep leases alive.
    Lease(flags::Lease),
    /// Write as fast as answers come, and measure until watchers hear of it.
    Watch(flags::Watch),
    /// Write at a steady rate, and measure until watchers hear of it.
    WatchLatency(flags::WatchLatency),
    /// Read a whole key space at a time.
    List(flags::List),
    /// Start clusters of Quorate and of etcd here, and print how they compare, row by row.
    Table(table::Arguments),
    /// Say whether a report is worse than an earlier one, noise aside.
    Compare(compare::Arguments),
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    let stop = stop_on_signal();
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
        Command::Table(arguments) => table::run(arguments, stop).await,
        Command::Compare(arguments) => compare::run(&arguments),
    }
}

/// Cancelled at the first Ctrl-C: what was measured until then is reported.
fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    tokio::spawn(async move {
        if supervise::shutdown_signal(false).await.is_ok() {
            cancel.cancel();
        }
    });
    stop
}

async fn measure<W: Workload>(workload: &W, stop: &CancellationToken) -> Result<u8> {
    let load = workload.load();
    load.check()?;
    let work = Arc::new(workload.work()?);
    let plan = workload.plan();
    let targets = targets(load).await?;
    let turns = if targets.len() == 1 { 1 } else { load.pairs };
    let mut runs = Vec::new();
    for (pair, (cluster, target)) in (0..turns).flat_map(|pair| targets.iter().enumerate().map(move |at| (pair, at))) {
        let told = match turns {
            1 => W::NAME.to_owned(),
            _ => format!("{} {} of {turns}, {}", W::NAME, pair + 1, target.name()),
        };
        let run = run::run(target, &work, plan, load.clients, &told, stop).await?;
        runs.push(Run { cluster, pair, ..run });
        if stop.is_cancelled() {
            break;
        }
    }
    let clusters = targets.iter().map(|target| Cluster { name: target.name(), servers: target.servers.clone() });
    let environment = Environment::of_this_machine(None);
    let interrupted = stop.is_cancelled();
    let report = Report::new(W::NAME, workload.settings(), environment, clusters.collect(), runs, interrupted);
    deliver(&report, load, workload.heading())
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
    match report.runs.first() {
        Some(run) if load.etcd_compat => print!("{heading}{}", etcd_format::print(&report.workload, &run.measured)),
        _ => output::print(load.output, report, Report::table)?,
    }
    let failed = report.runs.iter().any(|run| run.measured.failed() > 0);
    Ok(if failed || report.interrupted { VERDICT } else { 0 })
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
