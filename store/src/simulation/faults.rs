//! What goes wrong, and when.

use std::ops::AddAssign;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::cluster::{Cluster, MEMBERS};

/// The time from one fault to the next, in milliseconds.
const PAUSE_MILLIS: std::ops::Range<u64> = 50..500;
const STALL_MILLIS: std::ops::Range<u64> = 100..1_500;
const LATE_MILLIS: std::ops::Range<u64> = 5..200;
const LOST_PERCENT: std::ops::Range<u32> = 5..50;

#[derive(Clone, Copy, Debug)]
enum Fault {
    CutOneWay,
    Isolate,
    Lose,
    Delay,
    Heal,
    Crash,
    CrashLeader,
    CrashAll,
    Restart,
    StallDisk,
    HandOver,
    Snapshot,
}

const FAULTS: [Fault; 14] = [
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::Lose,
    Fault::Delay,
    Fault::Heal,
    Fault::Heal,
    Fault::Crash,
    Fault::CrashLeader,
    Fault::CrashAll,
    Fault::Restart,
    Fault::Restart,
    Fault::StallDisk,
    Fault::HandOver,
    Fault::Snapshot,
];

/// How often each came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    cuts: u32,
    losses: u32,
    delays: u32,
    crashes: u32,
    stalls: u32,
    hand_overs: u32,
    snapshots: u32,
}

impl Faults {
    pub(super) fn all_kinds(&self) -> bool {
        let Self { cuts, losses, delays, crashes, stalls, hand_overs, snapshots } = *self;
        [cuts, losses, delays, crashes, stalls, hand_overs, snapshots].iter().all(|count| *count > 0)
    }
}

impl AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.losses += other.losses;
        self.delays += other.delays;
        self.crashes += other.crashes;
        self.stalls += other.stalls;
        self.hand_overs += other.hand_overs;
        self.snapshots += other.snapshots;
    }
}

/// Does harm for so long, and then heals everything.
///
/// # Errors
/// When members differ meanwhile, or one does not come back.
pub(super) async fn run(cluster: &Cluster, seed: u64, duration: Duration) -> Result<Faults, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Faults::default();
    let end = Instant::now() + duration;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MILLIS))).await;
        cluster.compare()?;
        let fault = *FAULTS.choose(&mut random).ok_or("no faults")?;
        apply(cluster, fault, &mut random, &mut faults).await?;
    }
    cluster.network.heal();
    for id in 1..=MEMBERS {
        cluster.restart(id, random.random()).await?;
    }
    Ok(faults)
}

async fn apply(cluster: &Cluster, fault: Fault, random: &mut StdRng, faults: &mut Faults) -> Result<(), String> {
    let network = &cluster.network;
    let member = random.random_range(1..=MEMBERS);
    let other = (member + random.random_range(0..MEMBERS - 1)) % MEMBERS + 1;
    let millis = |random: &mut StdRng, range| Duration::from_millis(random.random_range(range));
    match fault {
        Fault::CutOneWay => {
            faults.cuts += 1;
            network.cut(member, other);
        }
        Fault::Isolate => {
            faults.cuts += 1;
            for peer in (1..=MEMBERS).filter(|peer| *peer != member) {
                network.cut(member, peer);
                network.cut(peer, member);
            }
        }
        Fault::Lose => {
            faults.losses += 1;
            network.lose(random.random_range(LOST_PERCENT));
        }
        Fault::Delay => {
            faults.delays += 1;
            network.slow(millis(random, LATE_MILLIS));
        }
        Fault::Heal => network.heal(),
        Fault::Crash => {
            faults.crashes += 1;
            cluster.crash(member, random.random()).await?;
        }
        Fault::CrashLeader => {
            if let Some(leader) = cluster.leader() {
                faults.crashes += 1;
                cluster.crash(leader, random.random()).await?;
                if random.random() {
                    cluster.restart(leader, random.random()).await?;
                }
            }
        }
        Fault::CrashAll => {
            for id in 1..=MEMBERS {
                faults.crashes += 1;
                cluster.crash(id, random.random()).await?;
            }
            for id in 1..=MEMBERS {
                cluster.restart(id, random.random()).await?;
            }
        }
        Fault::Restart => {
            for id in 1..=MEMBERS {
                cluster.restart(id, random.random()).await?;
            }
        }
        Fault::StallDisk => {
            faults.stalls += 1;
            cluster.stall(member, millis(random, STALL_MILLIS));
        }
        Fault::HandOver => {
            if let Some(leader) = cluster.leader().and_then(|leader| cluster.access(leader)) {
                faults.hand_overs += 1;
                leader.raft.transfer_leader(member).await;
            }
        }
        Fault::Snapshot => {
            faults.snapshots += 1;
            cluster.snapshot(member).await?;
        }
    }
    Ok(())
}
