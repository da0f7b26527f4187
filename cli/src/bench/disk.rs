//! How long a disk takes to make a write durable, written as a log is: the floor under the
//! latency of every put.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::histogram::Histogram;
use super::recorder::{millis, per_second};
use crate::output::{self, Format};

/// What etcd's documentation has fio write and sync at a time: about an entry of its log.
const WRITE_BYTES: usize = 2_300;

/// The file is as long as a segment of a log, and zeroed before it is measured, because a
/// log's is: a write that grows a file takes longer.
const FILE_BYTES: u64 = 22 << 20;

/// Bounds of the flags.
const MOST_WRITE_BYTES: usize = 16 << 20;

/// etcd's documentation asks for less than that at p99.
const GOOD_P99: Duration = Duration::from_millis(10);

/// The syncs that tell what disk there is, before a load: as many as tell a p99.
const LOOK_SYNCS: u64 = 1_000;
const LOOK_TIME: Duration = Duration::from_secs(2);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate bench disk /var/lib/quorate
  quorate bench disk /var/lib/etcd --seconds 10 -o json | jq .p99_ms
Exit codes: 0 the disk is fast enough for a store; 2 it is not; 1 it could not be measured.")]
pub(crate) struct Arguments {
    /// The directory whose disk is measured; the file in it is removed again.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// How many bytes are written before each sync.
    #[arg(long, default_value_t = WRITE_BYTES, value_name = "BYTES")]
    write_size: usize,
    /// For how many seconds.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Milliseconds that one sync takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct DiskTimes {
    pub(crate) syncs: u64,
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    #[serde(rename = "p99.9_ms")]
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    directory: PathBuf,
    write_bytes: usize,
    #[serde(flatten)]
    times: DiskTimes,
    fast_enough: bool,
    environment: Environment,
}

pub(crate) async fn run(arguments: Arguments, stop: CancellationToken) -> Result<u8> {
    let Arguments { directory, write_size, seconds, output } = arguments;
    ensure!(
        (1..=MOST_WRITE_BYTES).contains(&write_size),
        "--write-size {write_size} is not between 1 and {MOST_WRITE_BYTES}"
    );
    let place = directory.clone();
    let work = move || measure(&place, write_size, u64::MAX, Duration::from_secs(seconds), &stop);
    let times = tokio::task::spawn_blocking(work).await.context("the measurement broke off")??;
    let fast_enough = times.p99_ms <= millis(GOOD_P99);
    let environment = Environment::of_this_machine(Some(times));
    let report = Report { directory, write_bytes: write_size, times, fast_enough, environment };
    output::print(output, &report, table)?;
    Ok(if fast_enough { 0 } else { super::VERDICT })
}

/// What disk there is at `directory`, in a second or two.
///
/// # Errors
/// When nothing can be written there.
pub(crate) async fn look(directory: &Path, stop: &CancellationToken) -> Result<DiskTimes> {
    let (directory, stop) = (directory.to_owned(), stop.clone());
    let work = move || measure(&directory, WRITE_BYTES, LOOK_SYNCS, LOOK_TIME, &stop);
    tokio::task::spawn_blocking(work).await.context("the measurement broke off")?
}

fn measure(
    directory: &Path,
    write_size: usize,
    syncs: u64,
    time: Duration,
    stop: &CancellationToken,
) -> Result<DiskTimes> {
    let cannot = || format!("cannot write in {}", directory.display());
    // It has no name any more, so that it goes however this ends.
    let file = tempfile::tempfile_in(directory).with_context(cannot)?;
    let length = FILE_BYTES.max(write_size as u64);
    fill(&file, length).with_context(cannot)?;
    let data = vec![0xa5; write_size];
    let histogram = Histogram::new();
    let (begin, mut place) = (Instant::now(), 0);
    for _ in 0..syncs {
        if begin.elapsed() >= time || stop.is_cancelled() {
            break;
        }
        if place + write_size as u64 > length {
            place = 0;
        }
        file.write_all_at(&data, place).with_context(cannot)?;
        place += write_size as u64;
        // The write goes into the kernel's memory; the sync is what takes time.
        let synced = Instant::now();
        file.sync_data().with_context(|| format!("a sync failed in {}", directory.display()))?;
        histogram.record(synced.elapsed());
    }
    let (counts, elapsed) = (histogram.counts(), begin.elapsed());
    let at = |part| counts.quantile(part).map(millis);
    let Some((p50_ms, p90_ms)) = at(0.5).zip(at(0.9)) else { bail!("not one sync was measured") };
    Ok(DiskTimes {
        syncs: counts.number(),
        rate: per_second(counts.number(), elapsed),
        p50_ms,
        p90_ms,
        p99_ms: at(0.99).unwrap_or_default(),
        p999_ms: at(0.999).unwrap_or_default(),
        max_ms: millis(counts.slowest()),
    })
}

fn fill(file: &File, length: u64) -> std::io::Result<()> {
    const PIECE: usize = 1 << 20;
    let zeros = vec![0; PIECE];
    let mut place = 0;
    while place < length {
        file.write_all_at(&zeros, place)?;
        place += PIECE as u64;
    }
    file.sync_all()
}

fn table(report: &Report) -> String {
    let times = &report.times;
    let cells = [times.p50_ms, times.p90_ms, times.p99_ms, times.p999_ms, times.max_ms];
    let row = cells.iter().map(|cell| format!("{cell:.3} ms")).chain([format!("{:.0}", times.rate)]).collect();
    let header = ["P50", "P90", "P99", "P99.9", "MAX", "SYNCS/S"];
    let verdict = match report.fast_enough {
        true => "p99 is below 10 ms: fast enough for a store.",
        false => "p99 is above 10 ms: a store on this disk will be slow, and may lose its leader.",
    };
    let said = format!("fdatasync of {} bytes in {}\n", report.write_bytes, report.directory.display());
    said + &output::columns(&header, std::iter::once(row)) + verdict + "\n" + &report.environment.line() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let times = measure(folder.path(), 512, 20, Duration::from_secs(60), &stop).unwrap();
        assert_eq!(times.syncs, 20);
        assert!(times.p50_ms > 0.0 && times.p50_ms <= times.p99_ms && times.p99_ms <= times.max_ms);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        stop.cancel();
        assert!(measure(folder.path(), 512, 20, Duration::from_secs(60), &stop).is_err());
        assert!(measure(&folder.path().join("nothing"), 512, 1, Duration::from_secs(1), &stop).is_err());
    }
}
