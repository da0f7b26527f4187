//! Space that runs out and comes back, alarms, and members whose data was damaged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcd::alarm_request::AlarmAction;
use quorate_proto::etcd::downgrade_request::DowngradeAction;
use quorate_proto::etcd::{
    AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, DeleteRangeRequest, DowngradeRequest, PutRequest,
    RangeRequest,
};
use quorate_store::command::ApplyError;
use quorate_store::{Store, StoreError};
use rocksdb::{DB, IteratorMode, Options};

use crate::common::{Cluster, put, value_of, wait};

const VALUE_BYTES: usize = 64 << 10;

/// Bytes that do not compress.
fn noise(seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(VALUE_BYTES);
    while bytes.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.into()
}

async fn try_put(store: &Store, key: &str, value: Bytes) -> Result<(), StoreError> {
    let request = PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value, ..Default::default() };
    store.put(request).await.map(|_| ())
}

fn is(error: &StoreError, expected: &ApplyError) -> bool {
    matches!(error, StoreError::Refused(refused) if refused == expected)
}

async fn alarm(store: &Store, action: AlarmAction, member_id: u64, alarm: AlarmType) -> AlarmResponse {
    let request = AlarmRequest { action: action.into(), member_id, alarm: alarm.into() };
    store.alarm(request).await.unwrap()
}

#[test]
fn a_full_store_refuses_writes_and_goes_on_once_there_is_room() {
    let cluster = Cluster::start_with(1, |config| config.quota_bytes = 20 << 20);
    let keys = cluster.on(0, async |store| {
        for number in 0..2000u64 {
            match try_put(&store, &format!("k{number:04}"), noise(number)).await {
                Ok(()) => {}
                Err(error) => {
                    assert!(is(&error, &ApplyError::NoSpace), "{error}");
                    return number;
                }
            }
        }
        panic!("the quota has no effect");
    });
    assert!(keys > 100, "refused after {keys} keys, far below the quota");
    let member = cluster.on(0, async |store| store.status().member_id);
    wait("the alarm", || cluster.on(0, async |store| (!store.alarms().is_empty()).then_some(())));
    cluster.on(0, async |store| {
        let listed = alarm(&store, AlarmAction::Get, 0, AlarmType::None).await.alarms;
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].member_id, listed[0].alarm()), (member, AlarmType::Nospace));
        let small = try_put(&store, "small", Bytes::from_static(b"x")).await.unwrap_err();
        assert!(is(&small, &ApplyError::NoSpace), "{small}");
        assert!(value_of(&store, "small").await.is_none(), "reads go on");
        let everything = DeleteRangeRequest {
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            ..Default::default()
        };
        let deleted = store.delete_range(everything).await.unwrap();
        assert_eq!(deleted.deleted, i64::try_from(keys).unwrap(), "deletes go on");
        let revision = store.revision();
        store.compact(CompactionRequest { revision, physical: true }).await.unwrap();
    });
    wait("room", || {
        cluster
            .on(0, async |store| try_put(&store, "k", noise(1)).await.is_ok() && store.alarms().is_empty())
            .then_some(())
    });
    wait("the space without defragmentation", || {
        (cluster.on(0, async |store| store.status().size_bytes) < 5 << 20).then_some(())
    });
}

#[test]
fn what_is_refused_uses_up_no_quota() {
    let cluster = Cluster::start_with(1, |config| config.quota_bytes = 20 << 20);
    cluster.wait_for_leader();
    cluster.on(0, async |store| {
        let too_large = Bytes::from(vec![0; 1600 << 10]);
        for round in 0..5 {
            for _ in 0..30 {
                let refused = try_put(&store, "large", too_large.clone()).await.unwrap_err();
                assert!(matches!(refused, StoreError::TooLarge), "{refused}");
            }
            put(&store, "small", &round.to_string()).await;
        }
        assert!(store.alarms().is_empty());
    });
}

#[test]
fn many_refusals_raise_one_alarm() {
    // An empty database fits in, a single value does not.
    let cluster = Cluster::start_with(1, |config| (config.quota_bytes, config.max_request_bytes) = (8 << 20, 16 << 20));
    cluster.wait_for_leader();
    cluster.on(0, async |store| {
        put(&store, "a", "1").await;
        let before = store.status().last_index;
        let large = Bytes::from(vec![0; 8 << 20]);
        let refusals = (0..500).map(|_| try_put(&store, "large", large.clone()));
        for refusal in futures::future::join_all(refusals).await {
            let refused = refusal.unwrap_err();
            assert!(is(&refused, &ApplyError::NoSpace), "{refused}");
        }
        // Raised by one entry, and cleared by another, as there is room.
        while store.status().last_index < before + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.status().last_index, before + 2);
        put(&store, "a", "2").await;
    });
}

#[test]
fn alarms_by_hand_stay_until_they_are_cleared_by_hand() {
    let cluster = Cluster::start(3);
    cluster.wait_for_leader();
    cluster.on(0, async |store| {
        put(&store, "a", "1").await;
        let raised = alarm(&store, AlarmAction::Activate, 7, AlarmType::Nospace).await.alarms;
        assert_eq!((raised.len(), raised[0].member_id), (1, 7));
    });
    for member in 0..3 {
        cluster.on(member, async |store| {
            let refused = try_put(&store, "a", Bytes::from_static(b"2")).await.unwrap_err();
            assert!(is(&refused, &ApplyError::NoSpace), "{refused}");
        });
    }
    // Longer than a member takes to clear an alarm of its own.
    std::thread::sleep(Duration::from_secs(1));
    cluster.on(1, async |store| {
        assert_eq!(alarm(&store, AlarmAction::Get, 0, AlarmType::None).await.alarms.len(), 1);
        assert!(alarm(&store, AlarmAction::Get, 0, AlarmType::Corrupt).await.alarms.is_empty());
        assert_eq!(alarm(&store, AlarmAction::Deactivate, 7, AlarmType::Nospace).await.alarms.len(), 1);
        assert!(alarm(&store, AlarmAction::Deactivate, 7, AlarmType::Nospace).await.alarms.is_empty());
        put(&store, "a", "3").await;

        alarm(&store, AlarmAction::Activate, 9, AlarmType::Corrupt).await;
        let refused = try_put(&store, "a", Bytes::from_static(b"4")).await.unwrap_err();
        assert!(is(&refused, &ApplyError::Corrupt), "{refused}");
        let revision = store.revision();
        let refused = store.compact(CompactionRequest { revision, physical: false }).await.unwrap_err();
        assert!(is(&refused, &ApplyError::Corrupt), "{refused}");
        assert_eq!(value_of(&store, "a").await.as_deref(), Some("3"), "reads go on");
        alarm(&store, AlarmAction::Deactivate, 9, AlarmType::Corrupt).await;
        put(&store, "a", "5").await;
    });
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_downgrade_is_checked_announced_and_cancelled() {
    let mut cluster = Cluster::start(1);
    cluster.wait_for_leader();
    let ask = |cluster: &Cluster, action: DowngradeAction, version: &str| {
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        cluster.on(0, async |store| store.downgrade(request).await)
    };
    let refused = |result: Result<_, StoreError>, expected: ApplyError| {
        let error = result.map(|_: quorate_proto::etcd::DowngradeResponse| ()).unwrap_err();
        assert!(is(&error, &expected), "{error}");
    };
    assert_eq!(ask(&cluster, DowngradeAction::Validate, "3.6.0").unwrap().version, "3.7");
    refused(ask(&cluster, DowngradeAction::Validate, "3.5.0"), ApplyError::DowngradeVersion);
    refused(ask(&cluster, DowngradeAction::Enable, "3.7.0"), ApplyError::DowngradeVersion);
    refused(ask(&cluster, DowngradeAction::Validate, "latest"), ApplyError::DowngradeVersionFormat);
    refused(ask(&cluster, DowngradeAction::Cancel, ""), ApplyError::NoDowngrade);
    ask(&cluster, DowngradeAction::Enable, "3.6").unwrap();
    refused(ask(&cluster, DowngradeAction::Enable, "3.6.0"), ApplyError::DowngradeInProgress);
    cluster.kill(0);
    cluster.revive(0);
    cluster.wait_for_leader();
    let target = cluster.on(0, async |store| {
        store.read_index().await.unwrap();
        store.downgrade_target()
    });
    assert_eq!(target.as_deref(), Some("3.6.0"), "it outlives the process");
    ask(&cluster, DowngradeAction::Cancel, "").unwrap();
    assert_eq!(cluster.on(0, async |store| store.downgrade_target()), None);
}

#[test]
fn space_is_told_by_prefix() {
    let cluster = Cluster::start(1);
    cluster.on(0, async |store| {
        for number in 0..40 {
            try_put(&store, &format!("/registry/secrets/ns/{number}"), noise(number)).await.unwrap();
            try_put(&store, &format!("/registry/pods/ns/{number}"), Bytes::from_static(b"small")).await.unwrap();
        }
        put(&store, "alone", "x").await;
        // Only what is in files is told.
        store.shutdown().await;
        let space = store.space(2).await.unwrap();
        assert!(space.complete);
        let names: Vec<&[u8]> = space.prefixes.iter().map(|(prefix, _)| &prefix[..]).collect();
        assert_eq!(names, [&b"/registry/secrets/"[..], b"/registry/pods/"]);
        let secrets = space.prefixes[0].1;
        assert!(secrets > 2 << 20 && secrets > space.total_bytes / 10 * 9, "{secrets} of {}", space.total_bytes);
        let top = store.space(1).await.unwrap();
        assert_eq!(top.prefixes.len(), 1);
        assert_eq!(&top.prefixes[0].0[..], b"/registry/");
    });
}

/// Opens the database of a member that is not running.
fn open_database(data: &Path) -> DB {
    let name = std::fs::read_to_string(data.join("db/CURRENT")).unwrap();
    let path: PathBuf = data.join("db").join(name.trim());
    DB::open(&Options::default(), path).unwrap()
}

/// Changes the newest row of a key on the disk of a member that is not running.
fn damage(data: &Path, key: &str, change: impl Fn(&mut [u8])) {
    let database = open_database(data);
    let prefix = [b"k", key.as_bytes(), &[0, 1]].concat();
    let (row_key, row) = database
        .iterator(IteratorMode::Start)
        .map(Result::unwrap)
        .find(|(row_key, _)| row_key.starts_with(&prefix))
        .expect("the key has a row");
    let mut row = row.to_vec();
    change(&mut row);
    database.put(row_key, row).unwrap();
    database.flush().unwrap();
}

async fn local_value(store: &Store, key: &'static str) -> Option<(String, i64)> {
    let request = RangeRequest { key: Bytes::from_static(key.as_bytes()), serializable: true, ..Default::default() };
    let kv = store.range(request).await.ok()?.kvs.pop()?;
    Some((String::from_utf8_lossy(&kv.value).into_owned(), kv.version))
}

/// Stops a follower in order, damages its disk, and starts it again.
fn damage_a_follower(cluster: &mut Cluster, change: impl Fn(&mut [u8])) -> usize {
    cluster.wait_for_leader();
    cluster.on(0, async |store| {
        for number in 0..50 {
            put(&store, &format!("k{number}"), "value").await;
        }
        put(&store, "victim", "sound").await;
    });
    cluster.wait_for_equal_hashes();
    let follower = (cluster.wait_for_leader() + 1) % 3;
    cluster.on(follower, async |store| store.shutdown().await);
    cluster.kill(follower);
    damage(cluster.data_dir(follower), "victim", change);
    cluster.revive(follower);
    follower
}

#[test]
fn a_member_whose_disk_changed_a_value_is_reseeded() {
    let mut cluster = Cluster::start_with(3, |config| {
        config.compare_interval = Duration::from_millis(200);
        config.scrub_interval = Duration::from_millis(500);
    });
    let follower = damage_a_follower(&mut cluster, |row| *row.last_mut().unwrap() ^= 1);
    wait("the sound value", || {
        let value = cluster.on(follower, async |store| local_value(&store, "victim").await);
        (value == Some(("sound".to_owned(), 1))).then_some(())
    });
    wait("no alarm", || cluster.on(follower, async |store| store.alarms().is_empty()).then_some(()));
    cluster.on(follower, async |store| put(&store, "after", "x").await);
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_member_that_computed_something_else_is_reseeded() {
    let mut cluster = Cluster::start_with(3, |config| {
        config.compare_interval = Duration::from_millis(200);
        config.scrub_interval = Duration::ZERO;
    });
    // The version: what is written next counts on from it.
    let follower = damage_a_follower(&mut cluster, |row| row[16] ^= 0x40);
    let other = (follower + 1) % 3;
    cluster.on(other, async |store| put(&store, "victim", "next").await);
    wait("the sound version", || {
        let value = cluster.on(follower, async |store| local_value(&store, "victim").await);
        (value == Some(("next".to_owned(), 2))).then_some(())
    });
    wait("no alarm", || cluster.on(follower, async |store| store.alarms().is_empty()).then_some(()));
    cluster.on(follower, async |store| put(&store, "after", "x").await);
    cluster.wait_for_equal_hashes();
}

#[test]
fn a_member_put_aside_answers_nobody() {
    let mut cluster = Cluster::start(1);
    let member = cluster.on(0, async |store| {
        put(&store, "a", "1").await;
        let member = store.status().member_id;
        store.shutdown().await;
        member
    });
    cluster.kill(0);
    let database = open_database(cluster.data_dir(0));
    let corrupt = i32::from(AlarmType::Corrupt);
    database.put([&b"ha"[..], &member.to_be_bytes(), &corrupt.to_be_bytes()].concat(), [1]).unwrap();
    database.flush().unwrap();
    drop(database);
    cluster.revive(0);
    cluster.on(0, async |store| {
        let range = RangeRequest { key: Bytes::from_static(b"a"), serializable: true, ..Default::default() };
        let refused = store.range(range).await.unwrap_err();
        assert!(is(&refused, &ApplyError::Corrupt), "{refused}");
        let refused = try_put(&store, "a", Bytes::from_static(b"2")).await.unwrap_err();
        assert!(is(&refused, &ApplyError::Corrupt), "{refused}");
        assert!(store.watch(Default::default()).is_err());
    });
}
