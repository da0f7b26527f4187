//! Chaos for as long as wanted, one cluster and one seed after another:
//! `cargo run -p quorate-chaos --example soak -- BINARY SECONDS [SEED]`. Run it as root for
//! faults of the network. Ends at the first broken promise, and says where the history is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_chaos::members;
use quorate_chaos::run::{Options, run};

/// How long one cluster lives: short enough for its history to be checked in memory.
const ROUND: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "say: soak BINARY SECONDS [SEED]";
    let binary = std::path::absolute(arguments.next().context(usage)?)?;
    let lasts = Duration::from_secs(arguments.next().context(usage)?.parse().context(usage)?);
    let first: u64 = arguments.next().map_or(Ok(1), |seed| seed.parse()).context(usage)?;
    let until = Instant::now() + lasts;
    let (mut operations, mut faults) = (0, 0);
    for seed in first.. {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let folder: PathBuf = std::env::temp_dir().join(format!("quorate-soak-{}-{seed}", std::process::id()));
        let members = members::Options { binary: binary.clone(), folder: folder.clone(), members: 3, disks: true };
        let network = nix::unistd::geteuid().is_root();
        let summary = run(&Options { members, seed, lasts: left.min(ROUND), network })
            .with_context(|| format!("seed {seed} could not be run; see {}", folder.display()))?;
        println!("{summary}");
        if !summary.passed() {
            bail!("see {}", folder.display());
        }
        std::fs::remove_dir_all(&folder)?;
        operations += summary.acknowledged + summary.failed + summary.unknown;
        faults += summary.faults.values().sum::<usize>();
    }
    println!("{faults} faults survived, {operations} operations checked, no promise was broken");
    Ok(())
}
