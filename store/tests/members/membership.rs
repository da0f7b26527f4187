//! Members that come, move and go, with writes running.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcd::{Member, PutRequest};
use quorate_store::{MembersError, StartError, Store, StoreError};
use quorate_transport::loopback::free_address;
use tokio::task::JoinHandle;

use crate::common::{Cluster, put, value_of, wait};

/// Writes one after the other through one member, until told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: JoinHandle<Result<(), StoreError>>,
}

impl Writer {
    fn start(cluster: &Cluster, member: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let store = cluster.store(member);
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let task = cluster.spawn(member, async move {
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let key = format!("w{member}-{number:06}").into();
                store.put(PutRequest { key, value: Bytes::from(vec![7; 256]), ..Default::default() }).await?;
            }
            Ok(())
        });
        Self { stop, done, task }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.done.load(Ordering::Relaxed) + count;
        wait("more writes", || (self.done.load(Ordering::Relaxed) >= wanted).then_some(()));
    }

    /// None of the writes may have failed.
    fn finish(self, cluster: &Cluster, member: usize) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        cluster.on(member, async |_| self.task.await.unwrap()).expect("every write succeeds");
        self.done.load(Ordering::Relaxed)
    }
}

fn add(cluster: &Cluster, through: usize, joiner: usize, learner: bool) -> Result<Member, StoreError> {
    let url = cluster.peer_url(joiner);
    cluster.on(through, async move |store| store.member_add(&[url], learner).await).map(|(member, _)| member)
}

fn id_of(cluster: &Cluster, member: usize) -> u64 {
    cluster.store(member).status().member_id
}

fn remove(cluster: &Cluster, through: usize, id: u64) -> Result<Vec<Member>, StoreError> {
    cluster.on(through, async move |store| store.member_remove(id).await)
}

/// Voters and others, as `member` knows them.
fn counts(store: &Store) -> (usize, usize) {
    let members = store.members();
    let learners = members.iter().filter(|member| member.is_learner).count();
    (members.len() - learners, learners)
}

#[test]
fn a_learner_joins_is_promoted_and_the_leader_goes_while_writes_run() {
    // So few entries that the new member is sent files.
    let mut cluster = Cluster::start_with(3, |config| config.replay_entries = 200);
    let leader = cluster.wait_for_leader();
    let writing = (leader + 1) % 3;
    let writer = Writer::start(&cluster, writing);
    writer.wait_for_more(600);
    wait("a purged log", || (cluster.store(leader).status().purged_index > 0).then_some(()));

    let joiner = cluster.prepare_joiner(|_| {});
    let added = add(&cluster, writing, joiner, true).unwrap();
    assert!(added.is_learner && added.name.is_empty(), "{added:?}");
    let early = cluster.on(leader, async |store| store.member_promote(added.id).await).unwrap_err();
    assert!(matches!(early, StoreError::Members(MembersError::LearnerNotReady)), "{early}");
    cluster.revive(joiner);
    assert_eq!(id_of(&cluster, joiner), added.id, "it finds its id by its address");
    writer.wait_for_more(100);
    wait("the promotion", || {
        cluster.on(writing, async |store| store.member_promote(added.id).await).ok().filter(|members| {
            members.iter().any(|member| member.id == added.id && !member.is_learner && member.name == "m3")
        })
    });
    writer.wait_for_more(100);

    // The leader is told to remove itself, by itself.
    let gone = id_of(&cluster, leader);
    remove(&cluster, leader, gone).unwrap();
    let removed = cluster.store(leader);
    let reason = wait("the end of the removed leader", || *removed.ended().borrow());
    assert!(reason.contains("removed"), "{reason}");
    writer.wait_for_more(100);
    assert!(writer.finish(&cluster, writing) > 900);
    drop(removed);
    cluster.kill(leader);
    let refused = cluster.try_revive(leader).unwrap_err();
    assert!(matches!(&refused, StartError::Ended { reason, .. } if reason.contains("removed")), "{refused}");
    assert_eq!(counts(&cluster.store(joiner)), (3, 0));
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_second_member_costs_a_cluster_of_one_nothing_before_it_is_there() {
    let mut cluster = Cluster::start(1);
    cluster.wait_for_leader();
    let joiner = cluster.prepare_joiner(|_| {});
    let added = add(&cluster, 0, joiner, false).unwrap();
    assert!(!added.is_learner, "for clients it is as with etcd");
    cluster.on(0, async |store| put(&store, "k", "alone").await);
    let twice = add(&cluster, 0, joiner, false).unwrap_err();
    assert!(matches!(twice, StoreError::Members(MembersError::NotEnoughStarted)), "{twice}");

    cluster.revive(joiner);
    let both = cluster.store(joiner);
    wait("the vote of the new member", || (!both.status().is_learner && both.members().len() == 2).then_some(()));
    cluster.on(joiner, async |store| put(&store, "k", "both").await);
    assert_eq!(cluster.on(0, async |store| value_of(&store, "k").await).as_deref(), Some("both"));
    cluster.wait_for_equal_hashes();
}

#[test]
fn who_was_removed_while_away_learns_it_and_never_starts_again() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.on(other, async |store| put(&store, "k", "v").await);
    let id = id_of(&cluster, away);
    cluster.kill(away);
    wait("the removal", || remove(&cluster, other, id).ok());
    let again = remove(&cluster, other, id).unwrap_err();
    assert!(matches!(again, StoreError::Members(MembersError::NotFound)), "{again}");

    cluster.revive(away);
    let removed = cluster.store(away);
    wait("the end of the removed member", || *removed.ended().borrow());
    drop(removed);
    cluster.kill(away);
    assert!(matches!(cluster.try_revive(away), Err(StartError::Ended { .. })));

    // Not with an empty directory either, under its old name.
    cluster.forget(away);
    let refused = cluster.try_revive(away).unwrap_err().to_string();
    assert!(refused.contains("removed"), "{refused}");
    cluster.on(leader, async |store| put(&store, "k", "w").await);
}

#[test]
fn a_joined_member_that_lost_its_data_does_not_come_back_under_its_id() {
    let mut cluster = Cluster::start(1);
    cluster.wait_for_leader();
    let joiner = cluster.prepare_joiner(|_| {});
    let added = add(&cluster, 0, joiner, true).unwrap();
    cluster.revive(joiner);
    wait("the learner", || (cluster.store(joiner).status().applied_index > 0).then_some(()));
    cluster.kill(joiner);
    cluster.forget(joiner);
    let refused = cluster.try_revive(joiner).unwrap_err().to_string();
    assert!(refused.contains("another data directory"), "{refused}");

    // As a new member it may.
    remove(&cluster, 0, added.id).unwrap();
    cluster.forget(joiner);
    let anew = add(&cluster, 0, joiner, true).unwrap();
    assert_ne!(anew.id, added.id);
    cluster.revive(joiner);
    assert_eq!(id_of(&cluster, joiner), anew.id);
}

#[test]
fn who_never_comes_is_removed() {
    let mut cluster = Cluster::start_with(1, |config| config.learner_expiry = Duration::from_secs(4));
    cluster.wait_for_leader();
    let joiner = cluster.prepare_joiner(|config| config.join_timeout = Duration::from_millis(300));
    add(&cluster, 0, joiner, true).unwrap();
    let another = cluster.prepare_joiner(|_| {});
    let too_many = add(&cluster, 0, another, true).unwrap_err();
    assert!(matches!(too_many, StoreError::Members(MembersError::TooManyLearners)), "{too_many}");
    wait("the end of the learner", || (cluster.store(0).members().len() == 1).then_some(()));
    // Who asks before the removal is applied everywhere is refused in other words.
    wait("the advice to add it again", || {
        let refused = cluster.try_revive(joiner).unwrap_err().to_string();
        refused.contains("quorate member add m1").then_some(())
    });
}

#[test]
fn all_addresses_change_at_once_and_the_cluster_comes_back() {
    let mut cluster = Cluster::start(3);
    cluster.wait_for_leader();
    cluster.on(0, async |store| put(&store, "k", "before").await);
    cluster.wait_for_equal_hashes();
    for member in 0..3 {
        cluster.kill(member);
    }
    let addresses: [_; 3] = std::array::from_fn(|_| free_address());
    let named: Vec<(String, String)> =
        addresses.iter().enumerate().map(|(number, address)| (format!("m{number}"), address.to_string())).collect();
    for (member, address) in addresses.iter().enumerate() {
        cluster.configure(member, |config| {
            config.listen_peer = *address;
            config.initial_cluster = named.clone();
        });
        cluster.revive(member);
    }
    cluster.on(1, async |store| put(&store, "k", "after").await);
    let wanted: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
    for member in 0..3 {
        wait("the new addresses", || {
            let members = cluster.store(member).members();
            let known: Vec<String> = members.into_iter().flat_map(|member| member.peer_ur_ls).collect();
            wanted.iter().all(|url| known.contains(url)).then_some(())
        });
    }
    // One that still has the old configuration finds the others by what it has learned.
    cluster.kill(2);
    cluster.configure(2, |config| config.initial_cluster[0].1 = "127.0.0.1:1".into());
    cluster.kill(0);
    cluster.revive(0);
    cluster.revive(2);
    cluster.on(0, async |store| put(&store, "k", "again").await);
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_member_moves_by_member_update() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let moving = (leader + 1) % 3;
    let id = id_of(&cluster, moving);
    let address = free_address();
    let url = format!("http://{address}");
    let taken = cluster.peer_url(leader);
    let refused = cluster.on(leader, async move |store| store.member_update(id, &[taken]).await).unwrap_err();
    assert!(matches!(refused, StoreError::Members(MembersError::PeerUrlsExist)), "{refused}");
    cluster.kill(moving);
    let said = url.clone();
    let members = cluster.on(leader, async move |store| store.member_update(id, &[said]).await).unwrap();
    assert!(members.iter().any(|member| member.id == id && member.peer_ur_ls == [url.clone()]), "{members:?}");
    cluster.configure(moving, |config| config.listen_peer = address);
    cluster.revive(moving);
    cluster.on(moving, async |store| put(&store, "k", "moved").await);
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_member_without_the_log_that_it_wrote_does_not_start() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let forgetful = (leader + 1) % 3;
    cluster.on(leader, async |store| put(&store, "k", "v").await);
    cluster.wait_for_equal_hashes();
    cluster.kill(forgetful);
    let log = cluster.data_dir(forgetful).join("wal");
    let aside = log.with_extension("lost");
    std::fs::rename(&log, &aside).unwrap();
    // Not once, and not with the log that the first attempt began.
    for _ in 0..2 {
        let refused = cluster.try_revive(forgetful).unwrap_err().to_string();
        assert!(refused.contains("member.json") && refused.contains("acknowledged"), "{refused}");
    }
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    cluster.revive(forgetful);
    cluster.wait_for_equal_hashes();
}
