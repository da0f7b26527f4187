//! Members that lose each other, their processes and their leaders.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::etcd::{
    CompactionRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, TxnRequest,
    WatchCreateRequest,
};
use quorate_proto::fence::Fence;
use quorate_store::{Config, Store, StoreError};

use crate::common::{Cluster, put, value_of, wait};

#[test]
fn a_cluster_of_one_serves_and_comes_back() {
    let mut cluster = Cluster::start(1);
    let revision = cluster.on(0, async |store| {
        put(&store, "a", "1").await;
        put(&store, "a", "2").await;
        store.revision()
    });
    assert_eq!(revision, 3);
    cluster.kill(0);
    cluster.revive(0);
    let (value, revision) = cluster.on(0, async |store| (value_of(&store, "a").await, store.revision()));
    assert_eq!((value.as_deref(), revision), (Some("2"), 3));
}

#[test]
fn every_member_takes_writes_and_all_hold_the_same() {
    let cluster = Cluster::start(3);
    for member in 0..3 {
        cluster.on(member, async move |store| put(&store, &format!("from-{member}"), "x").await);
    }
    for member in 0..3 {
        let count = cluster.on(member, async |store| {
            let everything = RangeRequest {
                key: Bytes::from_static(b"from-"),
                range_end: Bytes::from_static(b"from."),
                ..Default::default()
            };
            store.range(everything).await.unwrap().count
        });
        assert_eq!(count, 3, "linearizable on member {member}");
    }
    cluster.wait_for_equal_hashes();
}

#[test]
fn writes_go_on_after_the_leader_is_killed() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let survivor = (leader + 1) % 3;
    for number in 0..20 {
        cluster.on(survivor, async move |store| put(&store, "k", &number.to_string()).await);
    }
    cluster.kill(leader);
    let began = Instant::now();
    cluster.on(survivor, async |store| put(&store, "k", "after").await);
    let outage = began.elapsed();
    eprintln!("first write after the kill: {outage:?}");
    assert!(outage < Duration::from_secs(3), "{outage:?}");
    let value = cluster.on(survivor, async |store| value_of(&store, "k").await);
    assert_eq!(value.as_deref(), Some("after"));

    cluster.revive(leader);
    let value = cluster.on(leader, async |store| value_of(&store, "k").await);
    assert_eq!(value.as_deref(), Some("after"), "the old leader reads what it missed");
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_leader_that_hangs_is_replaced_before_its_lease_has_ended() {
    let lease = Duration::from_secs(4);
    let cluster = Cluster::start_with(3, |config| {
        config.election_timeout_min = Duration::from_millis(300);
        config.election_timeout_max = lease;
    });
    let leader = cluster.wait_for_leader();
    let (store, gone) = (cluster.store((leader + 1) % 3), cluster.store(leader).status().member_id);
    let began = Instant::now();
    let frozen = cluster.freeze(leader);
    wait("another leader", || [0, gone].iter().all(|id| *id != store.status().leader).then_some(()));
    let waited = began.elapsed();
    // The timers alone let the lease run out first.
    assert!(waited < lease, "{waited:?}");
    drop(frozen);
    cluster.wait_for_equal_hashes();
    assert_ne!(cluster.store(leader).status().leader, gone, "it follows");
}

#[test]
fn acknowledged_writes_survive_the_end_of_all_members() {
    let mut cluster = Cluster::start(3);
    cluster.wait_for_leader();
    for number in 0..50 {
        let member = number % 3;
        cluster.on(member, async move |store| put(&store, &format!("k{number:02}"), "v").await);
    }
    for member in 0..3 {
        cluster.kill(member);
    }
    for member in 0..3 {
        cluster.revive(member);
    }
    cluster.wait_for_leader();
    let count = cluster.on(1, async |store| {
        let everything = RangeRequest {
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            count_only: true,
            ..Default::default()
        };
        store.range(everything).await.unwrap().count
    });
    assert_eq!(count, 50);
    cluster.wait_for_equal_hashes();
}

#[test]
fn leadership_is_handed_over_at_shutdown() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let survivor = (leader + 1) % 3;
    let before = cluster.on(survivor, async |store| store.status().term);
    cluster.on(leader, async |store| store.shutdown().await);
    let began = Instant::now();
    cluster.on(survivor, async |store| put(&store, "k", "v").await);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let after = cluster.on(survivor, async |store| store.status().term);
    assert_eq!(after, before + 1, "one election, by transfer");
}

#[test]
fn a_deposed_leaders_fence_writes_nothing() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let old = cluster.on(leader, async |store| crate::common::fence(&store).await);
    cluster.on(leader, async |store| store.transfer_leadership().await.unwrap());
    let new = cluster.wait_for_leader();
    let now = cluster.on(new, async |store| crate::common::fence(&store).await);
    assert!(now > old, "{now} follows {old}");
    let write = |fence: Fence| {
        cluster.on(leader, async move |store| {
            let operation = quorate_proto::etcd::RequestOp {
                request: Some(quorate_proto::etcd::request_op::Request::RequestPut(PutRequest {
                    key: Bytes::from_static(b"fenced"),
                    value: Bytes::from_static(b"x"),
                    ..Default::default()
                })),
            };
            store.txn(TxnRequest { success: vec![operation], ..Default::default() }, Some(fence)).await
        })
    };
    let refused = write(old).unwrap_err();
    assert!(refused.to_string().contains("fence is no longer current"), "{refused}");
    assert!(write(now).unwrap().succeeded);
}

#[test]
fn an_isolated_member_says_so_instead_of_lying() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    cluster.on(leader, async |store| put(&store, "k", "v").await);
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    for member in &others {
        cluster.kill(*member);
    }
    let (linearizable, serializable, fence) = cluster.on(leader, async |store| {
        let request = RangeRequest { key: Bytes::from_static(b"k"), ..Default::default() };
        let linearizable = store.range(request.clone()).await;
        let serializable = store.range(RangeRequest { serializable: true, ..request }).await.unwrap();
        (linearizable, serializable.count, *store.leadership().borrow())
    });
    assert!(matches!(linearizable, Err(StoreError::Timeout | StoreError::NoLeader)), "{linearizable:?}");
    assert_eq!(serializable, 1);
    assert_eq!(fence, None, "who has no quorum does not act as leader");
}

#[test]
fn watches_resume_on_another_member() {
    let cluster = Cluster::start(3);
    cluster.wait_for_leader();
    let first = cluster.on(0, async |store| {
        put(&store, "w", "1").await;
        store.revision()
    });
    cluster.on(1, async |store| put(&store, "w", "2").await);
    let events = cluster.on(2, async move |store| {
        let request = WatchCreateRequest { key: Bytes::from_static(b"w"), start_revision: first, ..Default::default() };
        let mut watcher = store.watch(request).unwrap();
        let mut values = Vec::new();
        while values.len() < 2 {
            let response = tokio::time::timeout(Duration::from_secs(5), watcher.next()).await.unwrap().unwrap();
            values.extend(response.events.into_iter().filter_map(|event| event.kv).map(|kv| kv.value));
        }
        values
    });
    assert_eq!(events, [Bytes::from_static(b"1"), Bytes::from_static(b"2")]);
}

#[test]
fn leases_end_and_are_renewed_through_any_member() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let follower = (leader + 1) % 3;
    let (short, long) = cluster.on(follower, async |store| {
        let short = store.lease_grant(LeaseGrantRequest { ttl: 2, id: 0 }).await.unwrap().id;
        let long = store.lease_grant(LeaseGrantRequest { ttl: 60, id: 77 }).await.unwrap().id;
        for (key, lease) in [("short", short), ("long", long)] {
            let request =
                PutRequest { key: Bytes::from(key), value: Bytes::from_static(b"x"), lease, ..Default::default() };
            store.put(request).await.unwrap();
        }
        (short, long)
    });
    assert_eq!(long, 77);
    let renewed = cluster.on(follower, async move |store| store.lease_keep_alive(long).await.unwrap().ttl);
    assert_eq!(renewed, 60);
    for member in [leader, follower] {
        cluster.on(member, async move |store| {
            let left = store.lease_time_to_live(LeaseTimeToLiveRequest { id: long, keys: true }).await.unwrap();
            assert!((50..=60).contains(&left.ttl) && left.granted_ttl == 60 && left.keys == ["long"], "{left:?}");
            let left = store.lease_time_to_live(LeaseTimeToLiveRequest { id: 78, keys: true }).await.unwrap();
            assert!((left.ttl, left.granted_ttl) == (-1, 0) && left.keys.is_empty(), "{left:?}");
        });
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while cluster.on(follower, async |store| value_of(&store, "short").await).is_some() {
        assert!(Instant::now() < deadline, "the lease of two seconds did not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (gone, kept) = cluster.on(follower, async move |store| {
        (store.lease_keep_alive(short).await.unwrap().ttl, value_of(&store, "long").await)
    });
    assert_eq!((gone, kept.as_deref()), (0, Some("x")));
}

#[test]
fn renewals_at_one_time_have_each_its_own_answer() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    for (member, first) in [(leader, 1000), ((leader + 1) % 3, 2000)] {
        cluster.on(member, async |store| {
            let ended = store.lease_grant(LeaseGrantRequest { ttl: 2, id: 0 }).await.unwrap().id;
            for number in 0..20 {
                store.lease_grant(LeaseGrantRequest { ttl: 100 + number, id: first + number }).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            let renewals = (0..900).map(|number| {
                let (id, ttl) = match number % 3 {
                    // Waits until it is revoked, and holds up nobody.
                    0 => (ended, 0),
                    1 => (first + number % 20, 100 + number % 20),
                    _ => (first + 100 + number, 0),
                };
                let store = store.clone();
                async move { assert_eq!((store.lease_keep_alive(id).await.unwrap().ttl, id), (ttl, id)) }
            });
            futures::future::join_all(renewals).await;
        });
    }
}

#[test]
fn a_member_that_missed_the_log_gets_a_snapshot() {
    let mut cluster = Cluster::start_with(3, |config| config.replay_entries = 100);
    let leader = cluster.wait_for_leader();
    let away = (leader + 1) % 3;
    cluster.kill(away);
    cluster.on(leader, async |store| {
        for round in 0..6 {
            let writes = (0..100).map(|number| {
                let store = store.clone();
                async move { put(&store, &format!("k{number}"), &round.to_string()).await }
            });
            futures::future::join_all(writes).await;
        }
        store.compact(CompactionRequest { revision: store.revision(), physical: false }).await.unwrap();
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.on(leader, async |store| store.status().purged_index) < 100 {
        assert!(Instant::now() < deadline, "the log was not shortened");
        std::thread::sleep(Duration::from_millis(200));
    }
    cluster.revive(away);
    let value = cluster.on(away, async |store| value_of(&store, "k7").await);
    assert_eq!(value.as_deref(), Some("5"));
    cluster.wait_for_equal_hashes();
}

#[test]
fn acknowledged_writes_survive_power_losses() {
    let seed: u64 = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("replay with SEED={seed}");
    let mut cluster = Cluster::start_in_memory(3);
    let mut acknowledged = 0;
    for round in 0..5 {
        cluster.wait_for_leader();
        for member in 0..3 {
            let from = acknowledged;
            cluster.on(member, async move |store| {
                let writes = (from..from + 20).map(|number| {
                    let store = store.clone();
                    async move { put(&store, &format!("k{number:04}"), "v").await }
                });
                futures::future::join_all(writes).await;
            });
            acknowledged += 20;
        }
        cluster.power_loss(seed ^ round);
        let count = cluster.on(usize::try_from(round).unwrap() % 3, async |store| {
            let request = RangeRequest {
                key: Bytes::from_static(b"k"),
                range_end: Bytes::from_static(b"l"),
                count_only: true,
                ..Default::default()
            };
            store.range(request).await.unwrap().count
        });
        assert_eq!(count, acknowledged, "round {round}");
        cluster.wait_for_equal_hashes();
    }
}

#[test]
fn the_client_port_answers_monitoring() {
    let cluster = Cluster::start_with(1, |config| config.listen_client = Some(([127, 0, 0, 1], 0).into()));
    cluster.wait_for_leader();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(cluster.client_address(0)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let health = ask("/health");
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with(r#"{"health":"true","reason":""}"#), "{health}");
    assert!(ask("/version").contains(r#""etcdserver":"3.7.0""#));
    assert!(ask("/metrics").starts_with("HTTP/1.1 404"), "this process keeps no metrics");
}

#[test]
fn a_directory_of_another_member_is_refused_by_name() {
    let cluster = Cluster::start(1);
    let directory = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let config = Config::new(name, directory.path());
        cluster.on(0, async move |_| Store::start(config).await)
    };
    let first = start("a").unwrap();
    let locked = start("a").err().unwrap().to_string();
    assert!(locked.contains("LOCK"), "{locked}");
    cluster.on(0, async move |_| first.shutdown().await);
    wait("the end of the first", || start("b").err().filter(|error| error.to_string().contains("member.json")));
}

#[test]
fn a_member_without_its_data_harms_nobody() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let victim = (leader + 1) % 3;
    cluster.on(leader, async |store| put(&store, "k", "1").await);
    cluster.wait_for_equal_hashes();
    let term = cluster.on(leader, async |store| store.status().term);
    cluster.kill(victim);
    cluster.forget(victim);
    let refused = cluster.try_revive(victim).unwrap_err().to_string();
    assert!(refused.contains("another data directory"), "{refused}");
    for number in 0..50 {
        cluster.on(leader, async move |store| put(&store, "k", &number.to_string()).await);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(cluster.on(leader, async |store| store.status().term), term, "the leader goes on");
}

#[test]
fn a_member_that_lost_its_data_while_nobody_was_there_to_say_so_acts_no_more() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let victim = (leader + 1) % 3;
    cluster.on(leader, async |store| put(&store, "k", "1").await);
    cluster.wait_for_equal_hashes();
    for member in 0..3 {
        cluster.kill(member);
    }
    cluster.forget(victim);
    cluster.revive(victim);
    for member in (0..3).filter(|member| *member != victim) {
        cluster.revive(member);
    }
    cluster.on(leader, async |store| put(&store, "k", "2").await);
    let lost = cluster.store(victim);
    let reason = wait("the end of the member without data", || *lost.ended().borrow());
    assert!(reason.contains("another data directory"), "{reason}");
    assert_eq!(lost.revision(), 1, "nothing is acknowledged under the old id");
}
