//! What a member does without being asked: it says who leads, ends leases that ran
//! out, lets old log go, and ends the process when its disk failed.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use quorate_proto::fence::Fence;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::auth::Caller;
use super::compare::Depth;
use super::leadership::{self, Leader};
use super::measure::measure_view;
use super::membership::{Arrivals, Change};
use super::{Inner, Store, compactor, compare, house, identity};
use crate::command::{ApplyError, Attributes, Operation};
use crate::error::StoreError;
use crate::peer::Verdict;

/// How often leadership is looked at when nothing changes: a quorum falls silent
/// without an event.
const LOOK: Duration = Duration::from_millis(50);

/// How often leases are looked at; their times are whole seconds.
const LEASE_TICK: Duration = Duration::from_millis(500);

/// How often the leader looks at members that are arriving.
const MEMBERS_TICK: Duration = Duration::from_millis(200);

/// Remaining times of leases are kept this often.
const CHECKPOINT_TICK: Duration = Duration::from_secs(1);

/// How often the length of the log is looked at.
const LOG_TICK: Duration = Duration::from_secs(5);

/// How often the space is looked at: what is written in between is reckoned.
const SPACE_TICK: Duration = Duration::from_millis(250);

/// A log of more segments than this goes down to what the state machine needs: a member
/// that lags is then sent files. All of the log is read at the start: half a second of it.
const MAX_SEGMENTS: u64 = 8;

/// After a hand-over because of a stalled disk or damaged data, before the next.
const STALL_PAUSE: Duration = Duration::from_secs(5);

/// Starts the tasks. They hold the member only while they run.
pub(super) fn spawn(inner: &Arc<Inner>, leaders: watch::Sender<Arc<Leader>>, fences: watch::Sender<Option<Fence>>) {
    inner.tasks.spawn(lead(Arc::clone(inner), leaders, fences));
    inner.tasks.spawn(guard(Arc::clone(inner)));
    if let Some(kept) = inner.config.auto_compaction {
        let inner = Arc::clone(inner);
        inner.tasks.clone().spawn(async move {
            let cancel = inner.cancel.clone();
            cancel.run_until_cancelled(compactor::run(&inner, kept)).await
        });
    }
    inner.tasks.spawn(retire(Arc::clone(inner)));
    for task in [
        Chore::Leases,
        Chore::Checkpoints,
        Chore::Log,
        Chore::Attributes,
        Chore::Space,
        Chore::Compare,
        Chore::Scrub,
        Chore::Members,
    ] {
        let inner = Arc::clone(inner);
        inner.tasks.clone().spawn(async move {
            let cancel = inner.cancel.clone();
            cancel.run_until_cancelled(task.run(&inner)).await
        });
    }
}

/// Publishes who leads.
async fn lead(inner: Arc<Inner>, leaders: watch::Sender<Arc<Leader>>, fences: watch::Sender<Option<Fence>>) {
    let patience = inner.config.election_timeout_max * 2;
    let mut changes = inner.raft.changes();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stalled_until = Instant::now();
    loop {
        let view = tokio::select! {
            () = inner.cancel.cancelled() => break,
            view = changes.next() => match view {
                Some(view) => view,
                None => break,
            },
            _ = tick.tick() => {
                let view = inner.raft.view();
                measure_view(&view, inner.config.quorum_patience());
                view
            }
        };
        if let Some(reason) = &view.reign.failed
            && !inner.cancel.is_cancelled()
            && inner.peers.verdict().borrow().is_none()
        {
            give_up(reason);
        }
        let before = Arc::clone(&leaders.borrow());
        let now = Leader::of(&view, inner.config.quorum_patience());
        if *before != now {
            if now.member.is_some() && before.member != now.member {
                counter!("etcd_server_leader_changes_seen_total").increment(1);
                let (leader, term) = (view.reign.leader.unwrap_or(0), view.reign.term);
                tracing::info!(leader = format!("{leader:x}"), term, "a leader is known");
            }
            leaders.send_replace(Arc::new(now));
        }
        let fence = leadership::fence(&view, inner.identity.generation, patience);
        let held = *fences.borrow();
        if held != fence {
            match fence {
                Some(fence) => {
                    inner.leases.promote(fence.term, inner.config.election_timeout_max);
                    tracing::info!(%fence, "leading");
                }
                None => {
                    inner.leases.demote();
                    tracing::info!("not leading any more");
                }
            }
            fences.send_replace(fence);
        }
        let aside = inner.is_aside();
        inner.raft.allow_elections(!aside);
        inner.hub.set_aside(aside);
        if aside && view.reign.leads() && Instant::now() >= stalled_until {
            stalled_until = Instant::now() + STALL_PAUSE;
            if let Some(heir) = leadership::heir(&view, inner.identity.member_id) {
                tracing::warn!("this member differs from the majority: handing leadership over");
                inner.raft.transfer_leader(heir).await;
            }
        }
        let stall = inner.wal.stalled_for();
        if view.reign.leads() && stall > inner.config.quorum_patience() && Instant::now() >= stalled_until {
            stalled_until = Instant::now() + STALL_PAUSE;
            if let Some(heir) = leadership::heir(&view, inner.identity.member_id) {
                tracing::warn!(?stall, "the disk has stalled: handing leadership over");
                inner.raft.transfer_leader(heir).await;
            }
        }
    }
    inner.leases.demote();
    fences.send_replace(None);
}

/// Ends the process when the log could not be written.
async fn guard(inner: Arc<Inner>) {
    let mut poisoned = inner.wal.poisoned();
    let reason = tokio::select! {
        () = inner.cancel.cancelled() => return,
        reason = poisoned.wait_for(Option::is_some) => match reason {
            Ok(reason) => reason.clone(),
            Err(_) => return,
        },
    };
    give_up(reason.as_deref().unwrap_or("the log was not written"));
}

/// What the disk holds is unknown: going on could acknowledge what is not there.
fn give_up(reason: &str) -> ! {
    tracing::error!(reason, "ending the process: the store cannot go on safely");
    std::process::abort();
}

#[derive(Clone, Copy)]
enum Chore {
    Leases,
    Checkpoints,
    Log,
    Attributes,
    Space,
    Compare,
    Scrub,
    Members,
}

impl Chore {
    async fn run(self, inner: &Arc<Inner>) {
        let period = match self {
            Chore::Leases => LEASE_TICK,
            Chore::Checkpoints => CHECKPOINT_TICK,
            Chore::Log => LOG_TICK,
            Chore::Space => SPACE_TICK,
            Chore::Compare => inner.config.compare_interval,
            Chore::Scrub => inner.config.scrub_interval,
            Chore::Members => MEMBERS_TICK,
            Chore::Attributes => {
                publish_attributes(inner).await;
                return publish_move(inner).await;
            }
        };
        if period.is_zero() {
            return;
        }
        let mut arrivals = Arrivals::default();
        let mut tick = interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self {
                Chore::Leases => revoke_expired(inner).await,
                Chore::Checkpoints => keep_checkpoints(inner).await,
                Chore::Log => shorten_log(inner).await,
                Chore::Space => house::watch_space(inner).await,
                Chore::Compare => compare::compare(inner, Depth::Hashes).await,
                Chore::Scrub => compare::compare(inner, Depth::Contents).await,
                Chore::Members => arrivals.tend(inner).await,
                Chore::Attributes => {}
            }
        }
    }
}

async fn revoke_expired(inner: &Inner) {
    let expired = inner.leases.expired();
    let Some(fence) = *inner.leadership.borrow() else { return };
    if expired.is_empty() {
        return;
    }
    // A leader that was cut off must not end leases that another one renews.
    if inner.raft.read_index().await.is_err() {
        return;
    }
    let revocations = expired.into_iter().map(|id| inner.proposer.propose(Operation::LeaseRevoke { id }, Some(fence)));
    for outcome in futures::future::join_all(revocations).await {
        match outcome {
            Ok(_) => counter!("etcd_debugging_server_lease_expired_total").increment(1),
            // Revoked by somebody else meanwhile, or offered again by the lessor.
            Err(StoreError::Refused(_)) => {}
            Err(error) => tracing::warn!(%error, "an expired lease was not revoked yet"),
        }
    }
}

async fn keep_checkpoints(inner: &Inner) {
    let _checkpointing = inner.leases.checkpointing().await;
    let checkpoints = inner.leases.checkpoints();
    let Some(fence) = *inner.leadership.borrow() else { return };
    if checkpoints.is_empty() {
        return;
    }
    if let Err(error) = inner.proposer.propose(Operation::LeaseCheckpoint(checkpoints), Some(fence)).await {
        tracing::warn!(%error, "the remaining times of leases were not kept");
    }
}

/// Moves the snapshot point when a restart would replay too much. The checkpoint
/// flushes the state machine first, so the log never goes beyond what is on disk.
async fn shorten_log(inner: &Inner) {
    inner.measure();
    let view = inner.raft.view();
    let large = log_bytes(inner) > MAX_SEGMENTS * inner.config.log_segment_bytes;
    let behind = view.applied.saturating_sub(view.snapshot);
    if behind >= inner.config.replay_entries || (large && behind > 0) {
        inner.raft.make_snapshot().await;
    }
    if large && view.snapshot > view.purged {
        inner.raft.purge_log(view.snapshot).await;
    }
}

fn log_bytes(inner: &Inner) -> u64 {
    let Ok(files) = std::fs::read_dir(inner.config.data_dir.join("wal")) else { return 0 };
    files.flatten().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Tells the cluster this member's name and where clients reach it, once somebody leads.
async fn publish_attributes(inner: &Inner) {
    let attributes = Attributes {
        directory: inner.identity.directory,
        name: inner.name.clone(),
        client_urls: inner.client_urls.clone(),
    };
    let member = inner.identity.member_id;
    loop {
        if inner.read_index.wait().await.is_ok() {
            let members = inner.peers.members();
            let known = members.known.get(&member).and_then(|known| known.said.as_ref());
            if known == Some(&attributes) {
                return;
            }
            let operation = Operation::MemberAttributes { member, attributes: attributes.encode() };
            match inner.proposer.propose(operation, None).await {
                Ok(_) => return,
                Err(StoreError::Refused(ApplyError::MemberRemoved)) => inner.peers.condemn(Verdict::Removed),
                Err(StoreError::Refused(ApplyError::OtherDirectory)) => inner.peers.condemn(Verdict::OtherDirectory),
                Err(_) => {}
            }
        }
        tokio::time::sleep(LEASE_TICK).await;
    }
}

/// Tells the cluster where peers reach this member, if the configuration has moved it.
async fn publish_move(inner: &Arc<Inner>) {
    let id = inner.identity.member_id;
    loop {
        let members = inner.peers.members();
        let known = members.known.get(&id).map(|known| known.node.peer_address.clone()).unwrap_or_default();
        if known.is_empty() || inner.peers.address(id, &known) == known {
            return;
        }
        let change = Change::Update { id, addresses: inner.advertised.clone() };
        match (Store { inner: Arc::clone(inner), caller: Caller::Internal }).change(change).await {
            Ok(_) => tracing::info!(address = inner.advertised, "the cluster knows where this member has moved"),
            Err(error) => tracing::info!(%error, "the cluster does not know yet where this member has moved"),
        }
        tokio::time::sleep(LEASE_TICK).await;
    }
}

/// Ends the member when its cluster says that it must not go on, and keeps its data
/// directory from ever being used again.
async fn retire(inner: Arc<Inner>) {
    let mut verdicts = inner.peers.verdict();
    let mut changes = inner.peers.roster_changes();
    let verdict = loop {
        if inner.peers.members().removed.contains(&inner.identity.member_id) {
            break Verdict::Removed;
        }
        if let Some(verdict) = *verdicts.borrow_and_update() {
            break verdict;
        }
        tokio::select! {
            () = inner.cancel.cancelled() => return,
            changed = verdicts.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
    };
    let reason = verdict.advice();
    tracing::error!(reason, "this member takes no part in its cluster any more");
    match identity::load(&inner.config) {
        Ok(Some(mut identity)) => {
            identity.ended = Some(reason.to_owned());
            if let Err(error) = identity.store(&inner.config.data_dir) {
                tracing::error!(%error, "the end was not noted in the data directory");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "the end was not noted in the data directory"),
    }
    // Raft that stops is no failure then.
    inner.peers.condemn(verdict);
    inner.raft.shutdown().await;
    inner.port.cancel();
    inner.port_tasks.close();
    // Whoever asked a member to remove itself still gets its answer.
    let _ = tokio::time::timeout(super::CLOSE_TIMEOUT, inner.port_tasks.wait()).await;
    inner.cancel.cancel();
    inner.ended.send_replace(Some(reason));
}
