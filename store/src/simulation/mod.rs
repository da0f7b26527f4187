//! Whole clusters in one process, on disks in memory, in a time that only moves when nothing
//! else can: a second of a cluster takes milliseconds. Faults, delays, crashes and what clients
//! ask are the seed's; in which order tokio wakes tasks that wait for the same is not, so a seed
//! that fails may have to run several times until it fails again.
//!
//! What runs is what members run: consensus with its log, the write-ahead log, the state
//! machine. Simulated are the network, the disk under the log, and the clock. A member that
//! crashes loses what was not synced, sector by sector as the seed says.
//!
//! `QUORATE_SIMULATED_SEEDS=10000 cargo test -p quorate-store simulation` runs so many;
//! `QUORATE_SEED=17` runs that one alone.

mod check;
mod client;
mod cluster;
mod controller;
mod faults;
mod member;

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::check::History;
use self::cluster::{Cluster, MEMBERS};
use self::faults::Faults;
use crate::raft::simulated::seeded;

/// How long clients and faults go on, in the cluster's time.
const DURATION: Duration = Duration::from_secs(6);

/// How long a healed cluster may take until it agrees.
const RECOVERY: Duration = Duration::from_secs(20);

const CLIENTS: u64 = 4;

/// What is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Planted {
    #[default]
    Nothing,
    /// The log tells of an entry before the disk has it.
    AcknowledgedBeforeSync,
    /// A leader that comes back leads on in its old term (openraft's `enable_leader_restore`).
    LeaderRestore,
    /// A member that leads answers reads without asking a quorum.
    ReadsOfAnyLeader,
    /// A write whose outcome is not known is proposed again as a new one.
    NoRequestIds,
    /// What controllers write is not bound to the term in which they decided on it.
    NoFences,
}

/// What a run came to.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    operations: usize,
    /// Of controllers.
    acts: usize,
    messages: u64,
    reigns: usize,
    faults: Faults,
    /// Of all that was applied.
    hash: u64,
}

/// A run that went wrong.
#[derive(Debug)]
struct Failure {
    seed: u64,
    reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.reason)
    }
}

/// Runs one cluster under `seed`.
fn run(seed: u64, planted: Planted) -> Result<Summary, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads or sockets");
    let outcome = runtime.block_on(seeded(seed, simulate(seed, planted)));
    // Members that crashed may have left tasks that wait for ever.
    runtime.shutdown_background();
    outcome.map_err(|reason| Failure { seed, reason })
}

async fn simulate(seed: u64, planted: Planted) -> Result<Summary, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(random.random(), planted).await?;
    let history = History::default();
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|client| {
            let (cluster, history, seed) = (cluster.clone(), history.clone(), random.random());
            tokio::spawn(seeded(seed, client::run(client, cluster, history, planted, seed)))
        })
        .collect();
    let controllers: Vec<_> = (1..=MEMBERS)
        .map(|member| {
            let (cluster, seed) = (cluster.clone(), random.random());
            tokio::spawn(seeded(seed, controller::run(member, cluster, planted, seed)))
        })
        .collect();
    let faults = faults::run(&cluster, random.random(), DURATION).await?;
    cluster.stop_clients();
    for client in clients.into_iter().chain(controllers) {
        client.await.map_err(|error| format!("a client ended badly: {error}"))?;
    }
    let hash = tokio::time::timeout(RECOVERY, cluster.agree()).await.map_err(|_| cluster.describe())??;
    let violation = cluster.network.violation();
    violation.map_or(Ok(()), Err)?;
    let engine = cluster.engine()?;
    let operations = history.check(&engine)?;
    let acts = controller::check(&engine)?;
    let (messages, reigns) = (cluster.network.messages(), cluster.network.reigns());
    cluster.end().await;
    Ok(Summary { operations, acts, messages, reigns, faults, hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quick look; more by the environment.
    const SEEDS: u64 = 60;

    fn number(variable: &str) -> Option<u64> {
        std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
    }

    #[test]
    fn no_seed_breaks_a_promise() {
        if let Some(seed) = number("QUORATE_SEED") {
            println!("{:?}", run(seed, Planted::Nothing).unwrap_or_else(|failure| panic!("{failure}")));
            return;
        }
        let seeds = number("QUORATE_SIMULATED_SEEDS").unwrap_or(SEEDS);
        let (mut operations, mut acts, mut reigns, mut faults) = (0, 0, 0, Faults::default());
        for seed in 1..=seeds {
            let summary = run(seed, Planted::Nothing).unwrap_or_else(|failure| panic!("{failure}"));
            operations += summary.operations;
            acts += summary.acts;
            reigns += summary.reigns;
            faults += summary.faults;
        }
        println!("{seeds} seeds, {operations} operations, {acts} acts of controllers, {reigns} reigns, {faults:?}");
        // A simulation in which nothing happens shows nothing.
        let busy = operations as u64 > 50 * seeds && acts as u64 > 20 * seeds;
        assert!(busy && reigns as u64 > seeds, "too little happened");
        assert!(faults.all_kinds(), "not every fault came: {faults:?}");
    }

    /// Within so many seeds each planted bug is noticed.
    const PLANTED_SEEDS: u64 = 200;

    #[test]
    fn planted_bugs_are_caught() {
        let mut missed: Vec<Planted> = Vec::new();
        for (planted, named) in [
            // openraft panics where a follower's log goes back, and its leader goes no further.
            (Planted::AcknowledgedBeforeSync, ["lost", "two leaders", "differ", "stopped", "no progress"].as_slice()),
            (Planted::LeaderRestore, &["stale", "lost", "two leaders", "differ", "stopped"]),
            (Planted::ReadsOfAnyLeader, &["stale"]),
            (Planted::NoRequestIds, &["twice"]),
            (Planted::NoFences, &["acted in term"]),
        ] {
            let caught = (1..=PLANTED_SEEDS).find_map(|seed| run(seed, planted).err());
            println!("{planted:?}: {}", caught.as_ref().map_or_else(|| "not noticed".to_owned(), Failure::to_string));
            let by_name = caught.is_some_and(|caught| named.iter().any(|name| caught.reason.contains(name)));
            missed.extend((!by_name).then_some(planted));
        }
        assert_eq!(missed, [], "not noticed, or not for what they are");
    }
}
