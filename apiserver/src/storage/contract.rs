//! What every Storage must do, run against each implementation.

use std::time::Duration;

use bytes::Bytes;

use super::{Condition, ListRequest, Storage, StorageError, Transaction, WatchMessage, Write, prefix_end};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn keys(storage: &dyn Storage, revision: Option<u64>, limit: usize) -> super::Result<(Vec<String>, bool, u64)> {
    let request = ListRequest { start: "/registry/a/".to_owned(), end: prefix_end("/registry/a/"), revision, limit };
    let page = storage.list(request).await?;
    Ok((page.items.into_iter().map(|item| item.key).collect(), page.more, page.count))
}

async fn next(watch: &mut Box<dyn super::WatchStream>) -> WatchMessage {
    let message = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    message.expect("a message within 10 s").expect("the watch goes on")
}

/// Runs the whole contract.
pub(super) async fn check(storage: &dyn Storage) {
    writes_are_conditional(storage).await;
    lists_read_the_past(storage).await;
    transactions_are_atomic(storage).await;
    watches_tell_everything_in_order(storage).await;
    compacted_history_is_gone(storage).await;
}

async fn writes_are_conditional(storage: &dyn Storage) {
    let first = storage.create("/registry/a/x", bytes("1"), None).await.unwrap();
    let Err(StorageError::Conflict { found }) = storage.create("/registry/a/x", bytes("2"), None).await else {
        panic!("a second creation fails");
    };
    let found = found[0].as_ref().expect("it says what is there");
    assert_eq!((found.value.as_ref(), found.mod_revision), (b"1".as_slice(), first));
    let second = storage.update("/registry/a/x", bytes("2"), first, None).await.unwrap();
    assert!(second > first);
    assert!(matches!(
        storage.update("/registry/a/x", bytes("3"), first, None).await,
        Err(StorageError::Conflict { .. })
    ));
    let got = storage.get("/registry/a/x").await.unwrap();
    assert!(got.revision >= second);
    assert_eq!(got.value.unwrap().value, bytes("2"));
    assert!(matches!(storage.delete("/registry/a/x", first, None).await, Err(StorageError::Conflict { .. })));
    storage.delete("/registry/a/x", second, None).await.unwrap();
    assert!(storage.get("/registry/a/x").await.unwrap().value.is_none());
    let Err(StorageError::Conflict { found }) = storage.delete("/registry/a/x", second, None).await else {
        panic!("what is gone cannot be deleted");
    };
    assert!(found[0].is_none());
}

async fn lists_read_the_past(storage: &dyn Storage) {
    for name in ["a", "b", "c"] {
        storage.create(&format!("/registry/a/{name}"), bytes("v"), None).await.unwrap();
    }
    let past = storage.read_index().await.unwrap();
    storage.create("/registry/a/d", bytes("v"), None).await.unwrap();
    let (all, more, count) = keys(storage, None, 0).await.unwrap();
    assert_eq!((all.len(), more, count), (4, false, 4));
    let (part, more, count) = keys(storage, Some(past), 2).await.unwrap();
    assert_eq!((part, more, count), (vec!["/registry/a/a".to_owned(), "/registry/a/b".to_owned()], true, 3));
    assert!(matches!(keys(storage, Some(past + 1_000_000), 0).await, Err(StorageError::FutureRevision)));
}

async fn transactions_are_atomic(storage: &dyn Storage) {
    let put = |key: &str| Write::Put { key: key.to_owned(), value: bytes("t") };
    let absent = |key: &str| Condition { key: key.to_owned(), mod_revision: 0 };
    let both = || Transaction {
        conditions: vec![absent("/registry/t/one"), absent("/registry/t/two")],
        writes: vec![put("/registry/t/one"), put("/registry/t/two")],
    };
    let revision = storage.transact(both(), None).await.unwrap();
    for key in ["/registry/t/one", "/registry/t/two"] {
        assert_eq!(storage.get(key).await.unwrap().value.unwrap().mod_revision, revision);
    }
    storage.delete("/registry/t/one", revision, None).await.unwrap();
    let Err(StorageError::Conflict { found }) = storage.transact(both(), None).await else {
        panic!("one condition is enough to refuse");
    };
    assert!(found[0].is_none());
    assert!(found[1].is_some());
    assert!(storage.get("/registry/t/one").await.unwrap().value.is_none());
}

async fn watches_tell_everything_in_order(storage: &dyn Storage) {
    let from = storage.read_index().await.unwrap() + 1;
    let first = storage.create("/registry/w/x", bytes("1"), None).await.unwrap();
    let mut watch = storage.watch("/registry/w/", from, true).await.unwrap();
    let second = storage.update("/registry/w/x", bytes("2"), first, None).await.unwrap();
    storage.create("/registry/other", bytes("-"), None).await.unwrap();
    let third = storage.delete("/registry/w/x", second, None).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if let WatchMessage::Events(events) = next(&mut watch).await {
            seen.extend(events.into_iter().map(|event| {
                let previous = event.previous.map(|item| item.value);
                (event.revision, event.value, previous, event.is_creation)
            }));
        }
    }
    let expected = [
        (first, Some(bytes("1")), None, true),
        (second, Some(bytes("2")), Some(bytes("1")), false),
        (third, None, Some(bytes("2")), false),
    ];
    assert_eq!(seen, expected);
    let quiet = storage.create("/registry/other2", bytes("-"), None).await.unwrap();
    for _ in 0..50 {
        watch.request_progress().await.unwrap();
        if let Ok(Ok(WatchMessage::Progress(revision))) =
            tokio::time::timeout(Duration::from_millis(200), watch.next()).await
            && revision >= quiet
        {
            return;
        }
    }
    panic!("progress reaches what happened elsewhere");
}

async fn compacted_history_is_gone(storage: &dyn Storage) {
    let old = storage.create("/registry/c/x", bytes("1"), None).await.unwrap();
    let new = storage.update("/registry/c/x", bytes("2"), old, None).await.unwrap();
    storage.compact(new).await.unwrap();
    assert!(matches!(keys(storage, Some(old), 0).await, Err(StorageError::Compacted { .. })));
    let mut watch = storage.watch("/registry/c/", old, false).await.unwrap();
    // Compacted history may still be at hand; but it is told whole, or not at all.
    let outcome = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap();
    match &outcome {
        Err(StorageError::Compacted { compacted }) => assert!(*compacted >= new, "{outcome:?}"),
        Ok(WatchMessage::Events(events)) => assert_eq!(events[0].revision, old, "{outcome:?}"),
        _ => panic!("{outcome:?}"),
    }
    assert_eq!(storage.get("/registry/c/x").await.unwrap().value.unwrap().value, bytes("2"));
}

#[tokio::test]
async fn etcd_keeps_the_contract() {
    let (_process, storage) = super::testing::etcd().await;
    check(&storage).await;
    let fence = Some(quorate_proto::fence::Fence { generation: 1, term: 1 });
    let refused = storage.create("/registry/a/fenced", bytes("1"), fence).await;
    assert!(matches!(refused, Err(StorageError::NotSupported(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_store_keeps_the_contract() {
    let (member, storage) = super::testing::local().await;
    check(&storage).await;
    let fence = *member.store.leadership().borrow();
    storage.create("/registry/a/fenced", bytes("1"), fence).await.unwrap();
    let over = fence.map(|fence| quorate_proto::fence::Fence { term: fence.term + 1, ..fence });
    let refused = storage.create("/registry/a/later", bytes("1"), over).await;
    assert!(matches!(refused, Err(StorageError::Fenced)), "{refused:?}");
    member.store.shutdown().await;
}
