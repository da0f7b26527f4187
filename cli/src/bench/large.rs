//! The rows of the table that write gigabytes: only made when their size is asked for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_proto::etcd::RangeRequest;
use tokio_util::sync::CancellationToken;

use super::cluster::OwnCluster;
use super::keys::Keys;
use super::pace::Plan;
use super::recorder::millis;
use super::report::{Figure, median};
use super::rows::{Row, puts};
use super::run;
use super::table::Line;
use super::work::Work;

/// Memory: values of so many bytes, and what of etcd's memory is enough.
const MEMORY_VALUE_BYTES: usize = 1_000;
const MEMORY_TARGET: f64 = 0.35;

/// The other rows: what one key holds.
const VALUE_BYTES: usize = 10_000;

/// Lists: who reads at once, and by how much a server may grow.
const LIST_CLIENTS: usize = 10;
const LIST_GROWTH_MIB: f64 = 64.0;

/// How long a cluster may take to serve after its start.
const RESTART_TARGET: Duration = Duration::from_secs(2);

/// What is on disk before it grows, and by how much puts may become slower.
const SMALL_BYTES: u64 = 1 << 30;
const GROWTH_TARGET: f64 = 1.2;

const MEBIBYTE: f64 = (1 << 20) as f64;

/// Rows tell their keys apart by the size of these.
const MEMORY_KEY_BYTES: usize = 16;
const LIST_KEY_BYTES: usize = 20;
const RESTART_KEY_BYTES: usize = 24;
const SMALL_KEY_BYTES: usize = 28;
const LARGE_KEY_BYTES: usize = 32;

#[derive(clap::Args, Debug)]
pub(crate) struct Sizes {
    /// Also write so many keys of 1 KB, and compare the memory of the leaders.
    #[arg(long, value_name = "N")]
    memory_keys: Option<u64>,
    /// Also have 10 clients list so much at once, and compare by how much the servers grow.
    #[arg(long, value_name = "BYTES", value_parser = crate::store::parse_size)]
    list_bytes: Option<u64>,
    /// Also write so much, restart the clusters, and compare how soon they serve.
    #[arg(long, value_name = "BYTES", value_parser = crate::store::parse_size)]
    restart_bytes: Option<u64>,
    /// Also write so much, more than 1 GiB, and compare the p99 of puts with that at 1 GiB.
    #[arg(long, value_name = "BYTES", value_parser = above_small)]
    disk_bytes: Option<u64>,
}

fn above_small(text: &str) -> Result<u64, String> {
    match crate::store::parse_size(text) {
        Ok(bytes) if bytes > SMALL_BYTES => Ok(bytes),
        Ok(_) => Err(format!("{text} is not more than 1GiB")),
        Err(error) => Err(format!("{error:#}")),
    }
}

impl Sizes {
    pub(crate) fn any(&self) -> bool {
        self.memory_keys.is_some()
            || self.list_bytes.is_some()
            || self.restart_bytes.is_some()
            || self.disk_bytes.is_some()
    }

    /// The rows that were asked for, of Quorate's cluster and etcd's.
    ///
    /// # Errors
    /// When a cluster does not take what is written.
    pub(crate) async fn lines(
        &self,
        clusters: &mut [OwnCluster; 2],
        turn: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        if let Some(number) = self.memory_keys {
            let mut held = [0.0; 2];
            for (cluster, held) in clusters.iter().zip(&mut held) {
                *held = memory(cluster, number).await?;
            }
            let line = Line::of(&format!("{number} keys of 1 KB"), "memory of the leader, MiB", held);
            let met = line.ratio <= MEMORY_TARGET;
            lines.push(line.with_target(format!("≤ {MEMORY_TARGET}×"), met));
        }
        if let Some(bytes) = self.list_bytes {
            let mut grown = [0.0; 2];
            for (cluster, grown) in clusters.iter().zip(&mut grown) {
                *grown = lists(cluster, bytes, stop).await?;
            }
            let row = format!("{LIST_CLIENTS} clients list {:.0} MiB at once", mebibytes(bytes));
            let line = Line::of(&row, "growth of the largest server, MiB", grown);
            lines.push(line.with_target("≤ 64 MiB".to_owned(), grown[0] <= LIST_GROWTH_MIB));
        }
        if let Some(bytes) = self.restart_bytes {
            let mut took = [0.0; 2];
            for (cluster, took) in clusters.iter_mut().zip(&mut took) {
                *took = restart(cluster, bytes).await?;
            }
            let line = Line::of(&format!("restart with {:.0} MiB", mebibytes(bytes)), "ms until all serve", took);
            lines.push(line.with_target("≤ 2000 ms".to_owned(), took[0] <= millis(RESTART_TARGET)));
        }
        if let Some(bytes) = self.disk_bytes {
            let mut slower = [0.0; 2];
            for (cluster, slower) in clusters.iter().zip(&mut slower) {
                *slower = growth(cluster, bytes, turn, stop).await?;
            }
            let row = format!("put p99 at {:.0} MiB, of that at 1 GiB", mebibytes(bytes));
            let line = Line::of(&row, "p99 divided by p99", slower);
            lines.push(line.with_target(format!("≤ {GROWTH_TARGET}"), slower[0] <= GROWTH_TARGET));
        }
        Ok(lines)
    }
}

/// So many bytes in values of one size.
fn keys(size: usize, bytes: u64) -> Result<Keys> {
    Keys::new(size, (bytes / VALUE_BYTES as u64).max(1), true)
}

/// What the leader holds, in MiB, after so many keys.
async fn memory(cluster: &OwnCluster, number: u64) -> Result<f64> {
    let target = cluster.target(LIST_CLIENTS).await?;
    eprintln!("Writing {number} keys of 1 KB: {}", target.name());
    target.fill(&Keys::new(MEMORY_KEY_BYTES, number, true)?, MEMORY_VALUE_BYTES).await?;
    let held = run::cost_now(&target).await.leader_memory_bytes;
    held.map(|bytes| bytes / MEBIBYTE).context("the leader does not tell its memory")
}

/// By how many MiB the largest server grows while lists of so many bytes are read.
async fn lists(cluster: &OwnCluster, bytes: u64, stop: &CancellationToken) -> Result<f64> {
    let keys = keys(LIST_KEY_BYTES, bytes)?;
    let request = RangeRequest { key: keys.key(0), range_end: keys.end(), ..RangeRequest::default() };
    let work = Arc::new(Work::List { keys, value_size: VALUE_BYTES, request });
    let target = cluster.target(LIST_CLIENTS).await?;
    eprintln!("Writing {:.0} MiB to be listed: {}", mebibytes(bytes), target.name());
    work.prepare(&target).await?;
    cluster.forget_peaks()?;
    let before = cluster.memory_peak_bytes();
    let plan = Plan { total: Some(LIST_CLIENTS as u64), duration: None, rate: None };
    let told = format!("lists, {}", target.name());
    run::run(&target, &work, plan, LIST_CLIENTS, &told, stop).await?;
    let growth = cluster.memory_peak_bytes().zip(before).map(|(after, before)| (after - before) / MEBIBYTE);
    growth.context("the kernel does not tell the peak of a process's memory")
}

/// After how many milliseconds every member serves again.
async fn restart(cluster: &mut OwnCluster, bytes: u64) -> Result<f64> {
    let target = cluster.target(LIST_CLIENTS).await?;
    eprintln!("Writing {:.0} MiB before a restart: {}", mebibytes(bytes), target.name());
    target.fill(&keys(RESTART_KEY_BYTES, bytes)?, VALUE_BYTES).await?;
    drop(target);
    cluster.restart().await.map(millis)
}

/// How much slower the p99 of puts is with so many bytes on disk than with 1 GiB.
async fn growth(cluster: &OwnCluster, bytes: u64, turn: Duration, stop: &CancellationToken) -> Result<f64> {
    let target = cluster.target(puts(&[])?.connections).await?;
    eprintln!("Writing 1 GiB, and then {:.0} MiB: {}", mebibytes(bytes), target.name());
    target.fill(&keys(SMALL_KEY_BYTES, SMALL_BYTES)?, VALUE_BYTES).await?;
    let small = put_p99(cluster, turn, stop).await?;
    target.fill(&keys(LARGE_KEY_BYTES, bytes - SMALL_BYTES)?, VALUE_BYTES).await?;
    Ok(put_p99(cluster, turn, stop).await? / small)
}

async fn put_p99(cluster: &OwnCluster, turn: Duration, stop: &CancellationToken) -> Result<f64> {
    /// One turn after such a write is disturbed by what the store still has to sort.
    const TURNS: usize = 5;
    let Row { connections, clients, work, .. } = puts(&[])?;
    let (work, plan) = (Arc::new(work), Plan { total: None, duration: Some(turn), rate: None });
    let target = cluster.target(connections).await?;
    let mut found = Vec::with_capacity(TURNS);
    for number in 1..=TURNS {
        let told = format!("puts, {}, {number} of {TURNS}", target.name());
        let run = run::run(&target, &work, plan, clients, &told, stop).await?;
        found.extend(Figure::P99.of(&run));
    }
    median(&found).context("no put was measured")
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MEBIBYTE
}
