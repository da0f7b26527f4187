//! Faults of a victim's disk and clock, done and undone.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time;

use super::act::recovered;
use super::probe::Lab;
use super::report::{Check, FaultSpan};
use super::run::{ANSWER, LOOK, RunError, Stage, WATCHDOG_SLACK};
use super::scenario::Disk as Fault;
use super::target::{Identity, Target};
use super::watchdog::{Armed, Undo};
use crate::fault::disk::{Behaviour, Bit, Loss};
use crate::fault::process;

/// How far a clock jumps.
const JUMP: Duration = Duration::from_hours(24);

/// Where a master keeps its store, on its disk.
const STORE: &str = "store";

/// How long a killed process may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Does it to one victim, and returns once that answers again, with what has to be true of it.
///
/// # Errors
/// `Interrupted` by `stop`; `Failed` when the fault cannot be done or undone.
pub(super) async fn strike(
    stage: Stage<'_>,
    fault: Fault,
    victim: &str,
) -> Result<(FaultSpan, Option<Check>), RunError> {
    let Stage { scenario, target, settings, lab, say, .. } = stage;
    let identity = target.master_process(victim)?;
    let disk = target.disks.get(victim).with_context(|| format!("{victim} is on a plain disk"))?.clone();
    let what = scenario.fault.name();
    let patience = scenario.observe + WATCHDOG_SLACK;
    let told = |more: &str| say(&format!("{what} of {victim} (process {}){more}", identity.pid));
    let (from_ms, ended, check) = match fault {
        Fault::Stall | Fault::Full | Fault::Clock | Fault::SyncError => {
            let armed = Armed::arm(&settings.binary, Undo::Heal(disk.control()), patience)?;
            let from_ms = lab.clock.now_ms();
            disk.behave(behaviour(fault))?;
            told("");
            let ended = match fault {
                Fault::SyncError => gone(stage, identity, scenario.observe).await?,
                _ => {
                    stage.pause(scenario.observe).await?;
                    false
                }
            };
            armed.undo()?;
            let check = (fault == Fault::SyncError).then(|| ends_by_itself(identity, ended));
            (from_ms, ended.then_some(identity), check)
        }
        Fault::PowerLoss | Fault::Torn => {
            let from_ms = lab.clock.now_ms();
            kill(stage, identity).await?;
            let loss = match fault {
                Fault::Torn => Loss::Torn { seed: rand::random() },
                _ => Loss::Unsynced,
            };
            let changed = change(target, victim, move || disk.lose(loss)).await?;
            told(&format!(", {loss:?}: {changed} files and names changed"));
            stage.pause(scenario.observe).await?;
            (from_ms, Some(identity), None)
        }
        Fault::BitFlip => {
            let from_ms = lab.clock.now_ms();
            kill(stage, identity).await?;
            let store = disk.root().join(STORE);
            let bit = change(target, victim, move || Bit::flip_in_log(&store, rand::random())).await?;
            let armed = Armed::arm(&settings.binary, Undo::Restore(bit.clone()), patience)?;
            told(&format!(": byte {} of {}", bit.at, bit.file.display()));
            stage.pause(scenario.observe).await?;
            let refuses = is_silent(lab, victim).await;
            armed.undo()?;
            let detail = match refuses {
                true => format!("{victim} does not start with it; its log says why"),
                false => format!("{victim} serves although byte {} of {} is wrong", bit.at, bit.file.display()),
            };
            let name = "a damaged log is refused".to_owned();
            (from_ms, Some(identity), Some(Check { name, passed: refuses, detail }))
        }
    };
    Ok((recovered(stage, victim, ended, from_ms).await?, check))
}

fn ends_by_itself(identity: Identity, ended: bool) -> Check {
    let detail = match ended {
        true => format!("process {} ended", identity.pid),
        false => format!("process {} goes on, and nobody knows what its disk holds", identity.pid),
    };
    Check { name: "the process ends by itself".to_owned(), passed: ended, detail }
}

fn behaviour(fault: Fault) -> Behaviour {
    let mut behaviour = Behaviour::default();
    match fault {
        Fault::Stall => behaviour.stalled = true,
        Fault::Full => behaviour.full = true,
        Fault::SyncError => behaviour.sync_fails = true,
        Fault::Clock => behaviour.clock_ahead_millis = JUMP.as_millis() as i64,
        Fault::PowerLoss | Fault::Torn | Fault::BitFlip => {}
    }
    behaviour
}

/// Returns once the process is gone: until then its files may change.
async fn kill(stage: Stage<'_>, identity: Identity) -> Result<(), RunError> {
    process::kill(identity.pid)?;
    match gone(stage, identity, END_PATIENCE).await? {
        true => Ok(()),
        false => Err(anyhow::anyhow!("process {} does not go although it was killed", identity.pid).into()),
    }
}

/// Whether the process goes within that time.
async fn gone(stage: Stage<'_>, identity: Identity, patience: Duration) -> Result<bool, RunError> {
    let deadline = time::Instant::now() + patience;
    while identity.is_there() {
        if time::Instant::now() > deadline {
            return Ok(false);
        }
        stage.pause(LOOK).await?;
    }
    Ok(true)
}

/// Changes the disk of a victim that has ended.
///
/// # Errors
/// When it was started again meanwhile: what it then read is not known.
async fn change<T: Send + 'static>(
    target: &Target,
    victim: &str,
    change: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let changed = tokio::task::spawn_blocking(change).await.context("the change of a disk panicked")??;
    let started = target.master_process(victim).is_ok();
    ensure!(
        !started,
        "{victim} was started again before its disk was changed: give `quorate up` a longer --restart-delay-ms"
    );
    Ok(changed)
}

async fn is_silent(lab: &Lab, victim: &str) -> bool {
    match lab.stores.iter().find(|store| store.name == victim) {
        Some(store) => store.status(ANSWER).await.is_err(),
        None => true,
    }
}
