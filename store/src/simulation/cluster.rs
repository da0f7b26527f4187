//! Three members, of which some may be down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Planted;
use super::member::{Member, Remains};
use crate::fs::Memory;
use crate::mvcc::Engine;
use crate::raft::simulated::{Life, Network};
use crate::raft::{Applied, Node, Raft, Waiters};

pub(super) const MEMBERS: u64 = 3;

const LOOK: Duration = Duration::from_millis(20);

/// Fast and in memory on any Linux.
const FOLDERS: &str = "/dev/shm";

/// Clones are of the same cluster.
#[derive(Clone)]
pub(super) struct Cluster(Arc<Inner>);

pub(super) struct Inner {
    pub(super) network: Network,
    planted: Planted,
    members: Mutex<BTreeMap<u64, Member>>,
    remains: Mutex<BTreeMap<u64, Remains>>,
    folder: tempfile::TempDir,
    lives: AtomicU64,
    stop: CancellationToken,
}

impl std::ops::Deref for Cluster {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// What a client needs of a member.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) raft: Raft,
    pub(super) waiters: Arc<Waiters>,
    pub(super) applied: watch::Receiver<Applied>,
    pub(super) engine: Arc<Engine>,
    pub(super) dead: CancellationToken,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    pub(super) async fn start(seed: u64, planted: Planted) -> Result<Self, String> {
        let place = PathBuf::from(FOLDERS);
        let place = if place.is_dir() { place } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("quorate-simulation-").tempdir_in(place);
        let cluster = Self(Arc::new(Inner {
            network: Network::new(seed),
            planted,
            members: Mutex::default(),
            remains: Mutex::default(),
            folder: folder.map_err(|error| format!("no folder: {error}"))?,
            lives: AtomicU64::new(0),
            stop: CancellationToken::new(),
        }));
        let nodes: BTreeMap<u64, Node> = (1..=MEMBERS).map(|id| (id, Node::default())).collect();
        for id in 1..=MEMBERS {
            let remains = Remains { disk: Memory::new(), folder: cluster.new_folder() };
            cluster.start_member(id, remains, seed ^ id).await?;
            let raft = cluster.access(id).ok_or("a member is gone")?.raft;
            raft.initialize(nodes.clone()).await.map_err(|error| error.to_string())?;
        }
        Ok(cluster)
    }

    fn new_folder(&self) -> PathBuf {
        self.folder.path().join(self.lives.fetch_add(1, Ordering::Relaxed).to_string())
    }

    async fn start_member(&self, member: u64, remains: Remains, seed: u64) -> Result<(), String> {
        let life = Life { member, number: self.lives.fetch_add(1, Ordering::Relaxed) };
        let started = Member::start(life, remains, &self.network, seed, self.planted).await?;
        locked(&self.members).insert(member, started);
        Ok(())
    }

    /// The member, if it is up.
    pub(super) fn access(&self, id: u64) -> Option<Access> {
        locked(&self.members).get(&id).map(|member| Access {
            raft: member.raft.clone(),
            waiters: Arc::clone(&member.waiters),
            applied: member.applied.clone(),
            engine: Arc::clone(&member.engine),
            dead: member.dead.clone(),
        })
    }

    /// Who believes to lead, in the highest term.
    pub(super) fn leader(&self) -> Option<u64> {
        let members = locked(&self.members);
        let views = members.iter().map(|(id, member)| (member.raft.view(), *id));
        views.filter(|(view, _)| view.reign.leads()).max_by_key(|(view, _)| view.reign.term).map(|(_, id)| id)
    }

    pub(super) async fn crash(&self, id: u64, seed: u64) -> Result<(), String> {
        let Some(member) = locked(&self.members).remove(&id) else { return Ok(()) };
        let remains = member.crash(&self.network, self.new_folder(), seed).await?;
        locked(&self.remains).insert(id, remains);
        Ok(())
    }

    pub(super) async fn restart(&self, id: u64, seed: u64) -> Result<(), String> {
        let Some(remains) = locked(&self.remains).remove(&id) else { return Ok(()) };
        self.start_member(id, remains, seed).await
    }

    pub(super) fn stall(&self, id: u64, time: Duration) {
        if let Some(member) = locked(&self.members).get(&id) {
            member.stall(time);
        }
    }

    pub(super) async fn snapshot(&self, id: u64) -> Result<(), String> {
        let Some(member) = locked(&self.members).remove(&id) else { return Ok(()) };
        let made = member.snapshot().await;
        locked(&self.members).insert(id, member);
        made
    }

    pub(super) fn stop_clients(&self) {
        self.stop.cancel();
    }

    pub(super) fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits until all members have applied the same, and more than before; returns the hash.
    ///
    /// # Errors
    /// When members differ that have applied the same entries (C9), or one has stopped.
    pub(super) async fn agree(&self) -> Result<u64, String> {
        loop {
            self.compare()?;
            let views: Vec<_> = locked(&self.members).values().map(|member| member.raft.view()).collect();
            let led = views.iter().any(|view| view.reign.leads() && view.reign.applied_term == view.reign.term);
            let last = views.iter().map(|view| view.last_index).max().unwrap_or(0);
            if led && views.len() as u64 == MEMBERS && views.iter().all(|view| view.applied == last) {
                return Ok(self.engine()?.applied_hash().1);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Members that have applied the same entries hold the same.
    ///
    /// # Errors
    /// When they do not, or when consensus of one has stopped.
    pub(super) fn compare(&self) -> Result<(), String> {
        let members = locked(&self.members);
        for (id, member) in members.iter() {
            if let Some(failed) = member.raft.view().reign.failed {
                return Err(format!("consensus of member {id} has stopped: {failed}"));
            }
            let (index, hash) = member.engine.applied_hash();
            for peer in members.values().filter(|peer| peer.life != member.life) {
                if peer.engine.hash_after(index).is_some_and(|found| found != hash) {
                    return Err(difference(member, peer, index));
                }
            }
        }
        Ok(())
    }

    /// Any member's.
    pub(super) fn engine(&self) -> Result<Arc<Engine>, String> {
        let members = locked(&self.members);
        members.values().next().map(|member| Arc::clone(&member.engine)).ok_or_else(|| "no member is up".to_owned())
    }

    /// Why it does not agree.
    pub(super) fn describe(&self) -> String {
        let members = locked(&self.members);
        let told = members.iter().map(|(id, member)| {
            let view = member.raft.view();
            format!(
                "{id}: {:?} of term {}, last {}, applied {}",
                view.reign.role, view.reign.term, view.last_index, view.applied
            )
        });
        format!("no progress after everything was healed: {}", told.collect::<Vec<_>>().join("; "))
    }

    pub(super) async fn end(&self) {
        let members = std::mem::take(&mut *locked(&self.members));
        for member in members.into_values() {
            member.end().await;
        }
    }
}

/// Where two members begin to differ that do so after entry `index`.
fn difference(one: &Member, other: &Member, index: u64) -> String {
    let differs = |index: &u64| match (one.engine.hash_after(*index), other.engine.hash_after(*index)) {
        (Some(one), Some(other)) => one != other,
        _ => false,
    };
    let first = (0..=index).rev().take_while(differs).last().unwrap_or(index);
    let [a, b] = [one, other].map(|member| {
        let before = member.engine.hash_after(first.saturating_sub(1)).is_some();
        format!(
            "member {} (that {} the entry before) applied {}",
            member.life.member,
            if before { "knows" } else { "does not know" },
            member.entry(first)
        )
    });
    format!("members differ from entry {first} on: {a}; {b}")
}
