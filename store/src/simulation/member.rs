//! One member: the parts that a real one has, without peers, ports and timers of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Planted;
use crate::fs::Memory;
use crate::mvcc::Engine;
use crate::node::leases::Leases;
use crate::peer::Roster;
use crate::raft::simulated::{Life, Network, copy, seeded};
use crate::raft::snapshot::Area;
use crate::raft::{self, Applied, Flushed, Raft, StateMachine, Timing, Waiters};
use crate::wal::{self, Steps, Wal};
use crate::{apply, mvcc};

pub(super) const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(50),
    election_min: Duration::from_millis(300),
    election_max: Duration::from_millis(500),
    kept_entries: 16,
};

/// Small, so that segments are changed and given back in every run.
const SEGMENT_BYTES: u64 = 16 << 10;

/// Nothing is flushed by itself: when it happens is for the seed to say.
const MEMTABLE_BYTES: usize = 8 << 20;
const CACHE_BYTES: usize = 1 << 20;

/// How long the disk needs for a sync, in microseconds.
const SYNC_MICROS: std::ops::Range<u64> = 100..1_500;

/// While consensus ends, how often it is looked whether it waits for the disk.
const LOOK: Duration = Duration::from_millis(1);

/// How often the files of a database are copied while it may be at work on them.
const COPIES: usize = 10;

pub(super) struct Member {
    pub(super) life: Life,
    pub(super) raft: Raft,
    pub(super) waiters: Arc<Waiters>,
    pub(super) applied: watch::Receiver<Applied>,
    pub(super) engine: Arc<Engine>,
    /// Cancelled when this life ends.
    pub(super) dead: CancellationToken,
    wal: Wal,
    disk: Memory,
    folder: PathBuf,
    writing: JoinHandle<Steps>,
    /// The disk does nothing for so many microseconds.
    stall: Arc<AtomicU64>,
}

/// What a life leaves behind.
pub(super) struct Remains {
    pub(super) disk: Memory,
    /// Holds the database.
    pub(super) folder: PathBuf,
}

impl Member {
    /// # Errors
    /// When what is on the disk cannot be read, which no crash may cause.
    pub(super) async fn start(
        life: Life,
        remains: Remains,
        network: &Network,
        seed: u64,
        planted: Planted,
    ) -> Result<Self, String> {
        let Remains { disk, folder } = remains;
        let text = |error: &dyn std::error::Error| format!("member {} does not start: {error}", life.member);
        let mut config = wal::Config::new(PathBuf::from("wal"));
        config.segment_size_bytes = SEGMENT_BYTES;
        config.ring_size_bytes = SEGMENT_BYTES as usize;
        let (wal, recovered, steps) =
            Wal::open_stepped(config, Arc::new(disk.clone())).map_err(|error| text(&error))?;
        let mut machine = apply::StateMachine::open(mvcc::Config {
            directory: folder.join("db"),
            block_cache_bytes: CACHE_BYTES,
            write_buffer_bytes: MEMTABLE_BYTES,
            history_bytes: CACHE_BYTES,
            latest_bytes: CACHE_BYTES,
        })
        .map_err(|error| text(&error))?;
        let purged = recovered.state.purged.is_some();
        let opened = purged.then(|| Flushed { applied: machine.applied(), membership: machine.membership() });
        raft::replay(&wal, &mut machine).map_err(|error| text(&error))?;
        let engine = machine.engine();
        let roster = Roster::new(Arc::clone(&engine)).map_err(|error| text(&error))?;
        let waiters = Arc::new(Waiters::default());
        let leases = Leases::new(Arc::clone(&engine));
        let area = Area::open(folder.join("transfer")).map_err(|error| text(&error))?;
        let machine = StateMachine::new(machine, opened, Arc::clone(&area), Arc::clone(&waiters), leases, roster)
            .map_err(|error| text(&error))?;
        let applied = machine.watch_applied();
        // The log has to go on while consensus starts.
        let (dead, stall) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let early = planted == Planted::AcknowledgedBeforeSync;
        let writing = tokio::spawn(seeded(seed, write(steps, seed, early, dead.clone(), Arc::clone(&stall))));
        let restores = planted == Planted::LeaderRestore;
        let raft = Raft::start_simulated(life, TIMING, network.clone(), wal.clone(), machine, restores)
            .await
            .map_err(|error| text(&error))?;
        network.join(life, &raft, &area);
        Ok(Self { life, raft, waiters, applied, engine, dead, wal, disk, folder, writing, stall })
    }

    /// What the log holds there.
    pub(super) fn entry(&self, index: u64) -> String {
        format!("{:?}", self.wal.read(index..index + 1, usize::MAX))
    }

    pub(super) fn stall(&self, time: Duration) {
        self.stall.store(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Makes what is applied durable and lets the log go, as a member does from time to time.
    pub(super) async fn snapshot(&self) -> Result<(), String> {
        self.engine.flush().map_err(|error| error.to_string())?;
        let flushed = self.engine.flushed_applied().map_err(|error| error.to_string())?;
        self.raft.make_snapshot().await;
        self.raft.purge_log(flushed.saturating_sub(TIMING.kept_entries)).await;
        Ok(())
    }

    /// Ends as at a loss of power: of what was not synced, `seed` says what remains.
    pub(super) async fn crash(self, network: &Network, into: PathBuf, seed: u64) -> Result<Remains, String> {
        network.leave(self.life);
        self.dead.cancel();
        let steps = self.writing.await.map_err(|error| format!("the log's writer ended badly: {error}"))?;
        let disk = self.disk.crash(seed);
        let copied = (0..COPIES).find(|_| copy(&self.folder.join("db"), &into.join("db")).is_ok());
        copied.ok_or("the files of a database do not hold still")?;
        stop(&self.raft, steps).await;
        Ok(Remains { disk, folder: into })
    }

    pub(super) async fn end(self) {
        self.dead.cancel();
        if let Ok(steps) = self.writing.await {
            stop(&self.raft, steps).await;
        }
    }
}

/// Ends consensus of a life that is over: nobody hears of it, and its disk is another one.
async fn stop(raft: &Raft, mut steps: Steps) {
    let mut ending = std::pin::pin!(raft.shutdown());
    while tokio::time::timeout(LOOK, &mut ending).await.is_err() {
        // It may wait for what it has given to the disk.
        steps.step();
    }
}

/// Gives what waits to the disk, batch by batch.
async fn write(mut steps: Steps, seed: u64, early: bool, dead: CancellationToken, stall: Arc<AtomicU64>) -> Steps {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let stalled = Duration::from_micros(stall.swap(0, Ordering::Relaxed));
        let wait = Duration::from_micros(random.random_range(SYNC_MICROS)) + stalled;
        if dead.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            // What was handed to the disk and is not synced may be there or not.
            if random.random() {
                steps.tear();
            }
            return steps;
        }
        if early {
            steps.step_early();
        } else if steps.is_due() {
            steps.step();
        }
    }
}
