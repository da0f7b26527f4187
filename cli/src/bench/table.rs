//! The table of a store's speed beside etcd's: clusters of both on this machine, loaded in
//! turns, row by row.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, json};
use tokio_util::sync::CancellationToken;

use super::cluster::OwnCluster;
use super::environment::Environment;
use super::large::Sizes;
use super::pace::Plan;
use super::report::{Cluster, Figure, Report, median};
use super::rows::{Row, rows};
use super::run::{self, Run};
use super::{disk, write};
use crate::output::{self, Format};

/// Clusters of more members do not become faster, and machines have few cores.
const MOST_MEMBERS: usize = 7;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate bench table
  quorate bench table --members 3 --pairs 7 --seconds 10 --data-dir /var/lib --out table.json
  quorate bench table --members 1 --only put --memory-keys 1000000 --list-bytes 1GiB
  quorate bench table --members 1 --only put --restart-bytes 10GiB --disk-bytes 100GiB --data-dir /var/lib
Each cell is the median of all turns, and RATIO the median of the ratios within the pairs.
Exit codes: 0 every target is met; 2 one is not; 1 the table could not be made.")]
pub(crate) struct Arguments {
    /// Sizes of the clusters.
    #[arg(long, default_value = "1,3", value_delimiter = ',', value_name = "N,...")]
    members: Vec<usize>,
    /// The etcd to compare with.
    #[arg(long, default_value = "etcd", value_name = "PROGRAM")]
    versus: String,
    /// How many turns each cluster has in a row.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    pairs: u8,
    /// How long a turn is.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Only rows whose name holds this, such as `range`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The clusters' data goes there, and is removed at the end [default: the folder for
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    sizes: Sizes,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Also write the table there, as JSON.
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Table {
    environment: Environment,
    lines: Vec<Line>,
    /// Every row with all its runs, as other benchmarks report them.
    reports: Vec<Report>,
    interrupted: bool,
}

/// One figure of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    members: usize,
    row: String,
    figure: &'static str,
    quorate: f64,
    etcd: f64,
    /// Quorate's divided by etcd's.
    pub(crate) ratio: f64,
    target: String,
    met: bool,
}

impl Line {
    /// A row's figure of both clusters, without a target yet.
    pub(crate) fn of(row: &str, figure: &'static str, [quorate, etcd]: [f64; 2]) -> Self {
        let (row, ratio) = (row.to_owned(), quorate / etcd);
        Self { members: 0, row, figure, quorate, etcd, ratio, target: String::new(), met: false }
    }

    pub(crate) fn with_target(self, target: String, met: bool) -> Self {
        Self { target, met, ..self }
    }
}

pub(crate) async fn run(arguments: Arguments, stop: CancellationToken) -> Result<u8> {
    for members in &arguments.members {
        ensure!((1..=MOST_MEMBERS).contains(members), "--members {members} is not between 1 and {MOST_MEMBERS}");
    }
    let parent = arguments.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let disk = disk::look(&parent, &stop).await.context("the disk of --data-dir cannot be measured")?;
    let mut table = Table {
        environment: Environment::of_this_machine(Some(disk)),
        lines: Vec::new(),
        reports: Vec::new(),
        interrupted: false,
    };
    for members in &arguments.members {
        // Whatever ends this also ends the clusters: they are dropped with it.
        let size = Size { members: *members, arguments: &arguments, parent: parent.clone() };
        size.measure(&mut table, &stop).await?;
        if stop.is_cancelled() {
            break;
        }
    }
    table.interrupted = stop.is_cancelled();
    ensure!(!table.lines.is_empty() || table.interrupted, "no row has a name that holds {:?}", arguments.only);
    if let Some(path) = &arguments.out {
        write(path, &serde_json::to_string_pretty(&table).context("cannot write JSON")?)?;
    }
    output::print(arguments.output, &table, text)?;
    let met = table.lines.iter().all(|line| line.met);
    Ok(if met && !table.interrupted { 0 } else { super::VERDICT })
}

/// The rows for clusters of one size.
struct Size<'a> {
    members: usize,
    arguments: &'a Arguments,
    parent: PathBuf,
}

impl Size<'_> {
    async fn measure(&self, table: &mut Table, stop: &CancellationToken) -> Result<()> {
        let wanted = |row: &Row| self.arguments.only.as_ref().is_none_or(|only| row.name.contains(only));
        let rows: Vec<Row> = rows(self.members)?.into_iter().filter(wanted).collect();
        if rows.is_empty() && !self.arguments.sizes.any() {
            return Ok(());
        }
        let mut clusters = tokio::select! {
            clusters = self.start() => clusters?,
            () = stop.cancelled() => return Ok(()),
        };
        for row in &rows {
            let seconds = self.arguments.seconds * 2 * u64::from(self.arguments.pairs);
            eprintln!("{} members: {}, {seconds} s", self.members, row.name);
            let report = self.row(row, &clusters, stop).await?;
            table.lines.extend(row.targets.iter().filter_map(|target| self.line(row, &report, *target)));
            table.reports.push(report);
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        let turn = Duration::from_secs(self.arguments.seconds);
        let large = tokio::select! {
            lines = self.arguments.sizes.lines(&mut clusters, turn, stop) => lines?,
            () = stop.cancelled() => Vec::new(),
        };
        table.lines.extend(large.into_iter().map(|line| Line { members: self.members, ..line }));
        Ok(())
    }

    /// Quorate's cluster and etcd's.
    async fn start(&self) -> Result<[OwnCluster; 2]> {
        eprintln!("Starting two clusters of {} in {}", self.members, self.parent.display());
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let own = vec![own.display().to_string(), "store".to_owned()];
        let quorate = OwnCluster::start(&own, self.members, &self.parent).await?;
        // As Quorate, without a limit for what is stored.
        let etcd = vec![self.arguments.versus.clone(), "--quota-backend-bytes=-1".to_owned()];
        let etcd = OwnCluster::start(&etcd, self.members, &self.parent).await?;
        Ok([quorate, etcd])
    }

    async fn row(&self, row: &Row, clusters: &[OwnCluster; 2], stop: &CancellationToken) -> Result<Report> {
        let work = Arc::new(row.work.clone());
        let plan = Plan { total: None, duration: Some(Duration::from_secs(self.arguments.seconds)), rate: row.rate };
        let pairs = usize::from(self.arguments.pairs);
        let (mut runs, mut named) = (Vec::new(), Vec::new());
        for (pair, cluster) in (0..pairs).flat_map(|pair| [(pair, 0), (pair, 1)]) {
            // Connections of its own for each turn: an idle cluster has none to look after.
            let target = clusters[cluster].target(row.connections).await?;
            let told = format!("{}, {}, {} of {pairs}", row.name, target.name(), pair + 1);
            let run = run::run(&target, &work, plan, row.clients, &told, stop).await.with_context(|| told.clone())?;
            runs.push(Run { cluster, pair, ..run });
            if named.len() <= cluster {
                named.push(Cluster { name: target.name(), servers: target.servers.clone() });
            }
            if stop.is_cancelled() {
                break;
            }
        }
        let settings = json!({
            "members": self.members, "conns": row.connections, "clients": row.clients, "rate": row.rate,
            "seconds": self.arguments.seconds, "pairs": pairs,
        });
        let settings = settings.as_object().cloned().unwrap_or_else(Map::new);
        let environment = Environment::of_this_machine(None);
        Ok(Report::new(row.name, settings, environment, named, runs, stop.is_cancelled()))
    }

    /// What a report says of a target, unless it was interrupted before it said anything.
    fn line(&self, row: &Row, report: &Report, (figure, bound): (Figure, f64)) -> Option<Line> {
        let middle = |cluster: usize| {
            let runs = report.runs.iter().filter(|run| run.cluster == cluster);
            median(&runs.filter_map(|run| figure.of(run)).collect::<Vec<_>>())
        };
        let ratio = report.ratios.iter().find(|ratio| ratio.figure == figure)?.median;
        let (sign, met) = if figure.more_is_better() { ('≥', ratio >= bound) } else { ('≤', ratio <= bound) };
        Some(Line {
            members: self.members,
            row: row.name.to_owned(),
            figure: figure.name(),
            quorate: middle(0)?,
            etcd: middle(1)?,
            ratio,
            target: format!("{sign} {bound}×"),
            met,
        })
    }
}

fn text(table: &Table) -> String {
    let rows = table.lines.iter().map(|line| {
        vec![
            line.members.to_string(),
            line.row.clone(),
            line.figure.to_owned(),
            cell(line.quorate),
            cell(line.etcd),
            format!("{:.2}×", line.ratio),
            line.target.clone(),
            if line.met { "yes" } else { "NO" }.to_owned(),
        ]
    });
    let header = ["MEMBERS", "ROW", "FIGURE", "QUORATE", "ETCD", "RATIO", "TARGET", "MET"];
    let mut out = output::columns(&header, rows);
    if table.interrupted {
        out.push_str("Stopped before its end: the last row may be of fewer pairs.\n");
    }
    let _ = writeln!(out, "Latencies in ms, CPU in µs. {}", table.environment.line());
    out
}

/// A figure with as many digits as mean something.
fn cell(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
