//! Watches over the real engine: what they see, and when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcd::{CompactionRequest, DeleteRangeRequest, PutRequest, WatchCreateRequest, WatchResponse};
use quorate_proto::mvccpb::event::EventType;

use super::*;
use crate::apply::{Entry, Payload, StateMachine};
use crate::command::{Command, Operation};
use crate::mvcc::Config;
use crate::wal::EntryId;

struct Fixture {
    machine: StateMachine,
    /// Removed with the fixture.
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new(history_bytes: usize) -> Fixture {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config { history_bytes, ..Config::new(directory.path().join("state")) };
        Fixture { machine: StateMachine::open(config).expect("it opens"), directory }
    }

    fn apply(&mut self, operation: Operation) {
        let index = self.machine.applied().map_or(1, |id| id.index + 1);
        let payload = Payload::Command(Command::new(operation));
        self.machine.apply(vec![Entry { id: EntryId { term: 1, node: 1, index }, payload }]).expect("it applies");
    }

    fn put(&mut self, key: &'static str, value: &str) {
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.apply(Operation::Put(PutRequest { key: key.into(), value, ..Default::default() }));
    }

    fn delete(&mut self, key: &'static str) {
        self.apply(Operation::DeleteRange(DeleteRangeRequest { key: key.into(), ..Default::default() }));
    }

    fn watch(&self, request: WatchCreateRequest) -> Watcher {
        self.machine.hub().watch(request)
    }
}

fn all_from(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision,
        prev_kv: true,
        ..Default::default()
    }
}

async fn next(watcher: &mut Watcher) -> WatchResponse {
    let response = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await;
    response.expect("a response in time").expect("the watch goes on")
}

async fn is_silent(watcher: &mut Watcher) -> bool {
    tokio::time::timeout(Duration::from_millis(50), watcher.next()).await.is_err()
}

/// Reads revisions until one is reached.
async fn revisions_upto(watcher: &mut Watcher, last: i64) -> Vec<i64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let response = next(watcher).await;
        assert!(!response.canceled, "canceled after {seen:?}");
        seen.extend(response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)));
    }
    seen
}

#[tokio::test]
async fn events_come_once_in_order_from_history_and_from_the_ring() {
    // A ring of two or three events: most is read from the change log.
    let mut fixture = Fixture::new(700);
    let mut early = fixture.watch(all_from(0));
    for number in 0..3000 {
        fixture.put(if number % 2 == 0 { "a" } else { "b" }, &number.to_string());
    }
    let mut late = fixture.watch(all_from(1500));
    assert_eq!(revisions_upto(&mut late, 3001).await, (1500..=3001).collect::<Vec<_>>());
    assert_eq!(revisions_upto(&mut early, 3001).await, (2..=3001).collect::<Vec<_>>());
    fixture.put("a", "live");
    for watcher in [&mut early, &mut late] {
        let response = next(watcher).await;
        assert_eq!(response.header.map(|header| header.revision), Some(3002));
        let event = &response.events[0];
        assert_eq!(event.prev_kv.as_ref().map(|kv| &kv.value[..]), Some(&b"2998"[..]));
    }
}

#[tokio::test]
async fn a_watch_sees_its_keys_and_kinds_only() {
    let mut fixture = Fixture::new(1 << 20);
    let no_puts = WatchCreateRequest { key: "a".into(), filters: vec![0], ..Default::default() };
    let no_deletes = WatchCreateRequest { key: "a".into(), filters: vec![1], watch_id: 5, ..Default::default() };
    let (mut deletes, mut puts) = (fixture.watch(no_puts), fixture.watch(no_deletes));
    fixture.put("a", "1");
    fixture.put("b", "1");
    fixture.delete("a");
    let deleted = next(&mut deletes).await;
    assert_eq!((deleted.events.len(), deleted.events[0].r#type()), (1, EventType::Delete));
    let kv = deleted.events[0].kv.clone().expect("a key");
    assert_eq!((kv.mod_revision, kv.create_revision, kv.value.len()), (4, 0, 0));
    assert!(deleted.events[0].prev_kv.is_none(), "it was not asked for");
    let written = next(&mut puts).await;
    assert_eq!((written.events.len(), written.events[0].r#type(), written.watch_id), (1, EventType::Put, 5));
    assert!(is_silent(&mut puts).await);
}

#[tokio::test]
async fn a_start_before_the_compacted_revision_is_canceled_and_at_it_is_not() {
    let mut fixture = Fixture::new(1);
    for _ in 0..5 {
        fixture.put("a", "x");
        fixture.delete("a");
    }
    let revision = fixture.machine.engine().revision();
    assert_eq!(revision, 11);
    fixture.apply(Operation::Compact(CompactionRequest { revision, physical: true }));
    let mut before = fixture.watch(all_from(revision - 1));
    let response = next(&mut before).await;
    assert!(response.canceled);
    assert_eq!(response.compact_revision, revision);
    assert_eq!(before.next().await, None);
    let collected = fixture.machine.engine().collected().wait_for(|collected| *collected == revision).await.is_ok();
    assert!(collected);
    let mut at = fixture.watch(all_from(revision));
    let response = next(&mut at).await;
    assert_eq!(response.events.len(), 1);
    assert_eq!(response.events[0].r#type(), EventType::Delete);
}

#[tokio::test]
async fn a_future_start_sees_nothing_before_it() {
    let mut fixture = Fixture::new(1 << 20);
    let mut watcher = fixture.watch(all_from(4));
    fixture.put("a", "2");
    watcher.request_progress();
    assert!(is_silent(&mut watcher).await);
    assert_eq!(watcher.progress(), None);
    fixture.put("a", "3");
    fixture.put("a", "4");
    let response = next(&mut watcher).await;
    assert_eq!(response.events.len(), 1);
    assert_eq!(response.events[0].kv.as_ref().map(|kv| kv.mod_revision), Some(4));
}

#[tokio::test]
async fn progress_is_what_was_handed_out() {
    let mut fixture = Fixture::new(1 << 20);
    let mut watcher = fixture.watch(WatchCreateRequest { key: "quiet".into(), ..Default::default() });
    fixture.put("loud", "x");
    assert_eq!(watcher.progress(), None, "it has not looked at anything yet");
    watcher.request_progress();
    let response = next(&mut watcher).await;
    assert_eq!((response.events.len(), response.header.map(|header| header.revision)), (0, Some(2)));
    assert_eq!(watcher.progress(), Some(2));
    fixture.put("loud", "y");
    assert_eq!(watcher.progress(), Some(3), "nothing was for it");
    fixture.put("quiet", "z");
    assert_eq!(watcher.progress(), None, "an event waits for it");
    assert_eq!(revisions_upto(&mut watcher, 4).await, [4]);
    assert_eq!(watcher.progress(), Some(4));
}

/// Watchers that share a mailbox, as those of a stream do.
struct Owner {
    mailbox: Arc<Mailbox>,
    watchers: Vec<Option<Watcher>>,
}

impl Owner {
    /// A watcher for each of the spans.
    fn new(fixture: &Fixture, spans: &[(&'static str, &'static str)]) -> Owner {
        let mut owner = Owner { mailbox: Arc::default(), watchers: Vec::new() };
        for (key, end) in spans {
            owner.watch(
                fixture,
                WatchCreateRequest { key: (*key).into(), range_end: (*end).into(), ..Default::default() },
            );
        }
        owner
    }

    fn watch(&mut self, fixture: &Fixture, request: WatchCreateRequest) {
        self.watchers.push(Some(fixture.machine.hub().watch_for(request, Arc::clone(&self.mailbox))));
    }

    /// Tells the news; returns how many letters there were, and up to which revision.
    fn collect(&mut self, fixture: &Fixture) -> (usize, i64) {
        let (letters, published) = fixture.machine.hub().collect(&self.mailbox);
        for (group, news) in &letters {
            let watchers = self.watchers.iter_mut().flatten();
            watchers.filter(|watcher| watcher.group() == *group).for_each(|watcher| watcher.tell(*news));
        }
        (letters.len(), published)
    }

    /// The numbers of the watchers that have something to look at, and what they find.
    fn look(&mut self) -> Vec<(usize, Arc<Selection>)> {
        let mut selections = Selections::default();
        let mut found = Vec::new();
        for (number, watcher) in self.watchers.iter_mut().enumerate() {
            let Some(watcher) = watcher.as_mut().filter(|watcher| !watcher.is_idle()) else { continue };
            while let Step::Live(selection) = watcher.step(&mut selections) {
                found.push((number, selection));
            }
        }
        found
    }
}

#[tokio::test]
async fn a_publish_announces_only_watchers_whose_keys_match() {
    let mut fixture = Fixture::new(1 << 20);
    let mut owner = Owner::new(&fixture, &[("a", ""), ("b", ""), ("a", "c"), ("b", "\0"), ("x", "z")]);
    let mut announced = |fixture: &mut Fixture, key| {
        fixture.put(key, "v");
        owner.collect(fixture);
        let found = owner.look();
        assert!(found.iter().all(|(_, selection)| selection.events().len() == 1));
        found.iter().map(|(number, _)| *number).collect::<Vec<_>>()
    };
    assert_eq!(announced(&mut fixture, "a"), [0, 2]);
    assert_eq!(announced(&mut fixture, "b"), [1, 2, 3]);
    assert_eq!(announced(&mut fixture, "y"), [3, 4]);
    assert_eq!(announced(&mut fixture, "A"), [0usize; 0]);
    // Until its owner looks, a group is announced once.
    fixture.put("y", "v");
    fixture.put("y", "v");
    assert_eq!(owner.collect(&fixture).0, 2);
    owner.watchers[4] = None;
    fixture.put("y", "v");
    assert_eq!(owner.collect(&fixture).0, 1);
}

#[tokio::test]
async fn watchers_of_the_same_keys_share_what_they_are_told() {
    let mut fixture = Fixture::new(1 << 20);
    let mut owner = Owner::new(&fixture, &[("a", ""), ("a", ""), ("a", "")]);
    owner.watch(&fixture, WatchCreateRequest { key: "a".into(), prev_kv: true, ..Default::default() });
    owner.watch(&fixture, WatchCreateRequest { key: "a".into(), filters: vec![0], ..Default::default() });
    owner.watch(&fixture, WatchCreateRequest { key: "a".into(), start_revision: 4, ..Default::default() });
    fixture.put("a", "1");
    fixture.put("a", "2");
    fixture.put("a", "3");
    // What comes after the news is not told with them, and not lost.
    assert_eq!(owner.collect(&fixture), (1, 4));
    fixture.put("a", "4");
    let found = owner.look();
    let revisions = |found: &[(usize, Arc<Selection>)]| {
        let seen = found.iter().map(|(number, selection)| (*number, selection.events().len(), selection.revision()));
        seen.collect::<Vec<_>>()
    };
    assert_eq!(revisions(&found), [(0, 3, 4), (1, 3, 4), (2, 3, 4), (3, 3, 4), (5, 1, 4)]);
    assert!(Arc::ptr_eq(&found[0].1, &found[1].1) && Arc::ptr_eq(&found[0].1, &found[2].1));
    assert!(!Arc::ptr_eq(&found[0].1, &found[3].1));
    // One that comes now has nothing of what waits.
    owner.watch(&fixture, WatchCreateRequest { key: "a".into(), ..Default::default() });
    let progress = |owner: &Owner, published| {
        owner.watchers.iter().flatten().map(|watcher| watcher.progress_at(published)).collect::<Vec<_>>()
    };
    assert_eq!(owner.collect(&fixture), (1, 5));
    assert_eq!(progress(&owner, 5), [None, None, None, None, None, None, None]);
    assert_eq!(revisions(&owner.look()), [(0, 1, 5), (1, 1, 5), (2, 1, 5), (3, 1, 5), (5, 1, 5)]);
    let last = owner.watchers[6].as_mut().expect("it is there").step(&mut Selections::default());
    assert!(matches!(last, Step::Idle));
    assert_eq!(progress(&owner, 5), [Some(5); 7]);
}

#[tokio::test]
async fn news_of_what_was_read_as_history_are_none() {
    let mut fixture = Fixture::new(1 << 20);
    fixture.put("a", "1");
    let mut owner = Owner::new(&fixture, &[("a", "")]);
    owner.watch(&fixture, WatchCreateRequest { key: "a".into(), start_revision: 2, ..Default::default() });
    fixture.put("a", "2");
    // It reads everything that is published, whatever lies in the mailbox.
    let late = owner.watchers[1].as_mut().expect("it is there");
    assert!(matches!(late.step(&mut Selections::default()), Step::Ready(found) if found.events.len() == 2));
    assert_eq!(owner.collect(&fixture), (1, 3));
    assert!(owner.watchers[1].as_ref().is_some_and(Watcher::is_idle));
    assert_eq!(owner.look().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0]);
}

#[tokio::test]
async fn a_quiet_watch_of_a_busy_store_reads_only_its_own_history() {
    let mut fixture = Fixture::new(1);
    fixture.put("quiet", "1");
    for number in 0..500 {
        fixture.put("loud", &number.to_string());
    }
    fixture.put("quiet", "2");
    let one = WatchCreateRequest { key: "quiet".into(), start_revision: 2, prev_kv: true, ..Default::default() };
    let span = WatchCreateRequest { range_end: "quiet0".into(), ..one.clone() };
    for request in [one, span] {
        let mut watcher = fixture.watch(request);
        let response = next(&mut watcher).await;
        let revisions: Vec<_> =
            response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).collect();
        assert_eq!(revisions, [2, 503]);
        let previous = response.events[1].prev_kv.as_ref();
        assert_eq!(previous.map(|kv| (kv.mod_revision, &kv.value[..])), Some((2, &b"1"[..])));
    }
}

#[tokio::test]
async fn large_events_are_spread_over_responses_by_whole_revisions() {
    for history_bytes in [1, 64 << 20] {
        let mut fixture = Fixture::new(history_bytes);
        let mut watcher = fixture.watch(all_from(2));
        let value = "v".repeat(400_000);
        for _ in 0..10 {
            fixture.put("a", &value);
        }
        let mut seen = Vec::new();
        while seen.len() < 10 {
            let response = next(&mut watcher).await;
            assert!(response.events.len() <= 4, "{} large events at once", response.events.len());
            seen.extend(response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)));
        }
        assert_eq!(seen, (2..=11).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_slow_watcher_delays_nobody_and_loses_nothing() {
    let mut fixture = Fixture::new(2000);
    let mut slow = fixture.watch(all_from(0));
    let mut fast = fixture.watch(all_from(0));
    for revision in 2..200 {
        fixture.put("a", "some value that fills the ring before long");
        assert_eq!(revisions_upto(&mut fast, revision).await, [revision]);
    }
    assert_eq!(revisions_upto(&mut slow, 199).await, (2..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_replaced_state_machine_goes_on_or_says_compacted() {
    let mut source = Fixture::new(1 << 20);
    for revision in 2..=20 {
        source.put("a", &revision.to_string());
    }
    source.apply(Operation::Compact(CompactionRequest { revision: 10, physical: false }));
    let mut behind = Fixture::new(1 << 20);
    let mut near = Fixture::new(1 << 20);
    for _ in 2..=5 {
        behind.put("a", "old");
    }
    for _ in 2..=12 {
        near.put("a", "old");
    }
    let (mut lost, mut kept) = (behind.watch(all_from(0)), near.watch(all_from(0)));
    for (fixture, name) in [(&mut behind, "one"), (&mut near, "two")] {
        let received = source.directory.path().join(name);
        source.machine.engine().checkpoint(&received).expect("a checkpoint");
        fixture.machine.install(&received).expect("it installs");
    }
    let response = next(&mut lost).await;
    assert_eq!((response.canceled, response.compact_revision), (true, 10));
    assert_eq!(revisions_upto(&mut kept, 20).await, (13..=20).collect::<Vec<_>>());
    near.put("a", "live");
    assert_eq!(revisions_upto(&mut kept, 21).await, [21]);
}

#[tokio::test]
async fn a_member_that_is_put_aside_tells_nobody_anything() {
    let mut fixture = Fixture::new(1 << 20);
    let mut idle = fixture.watch(all_from(0));
    fixture.put("a", "1");
    fixture.machine.hub().set_aside(true);
    let mut late = fixture.watch(all_from(1));
    for watcher in [&mut idle, &mut late] {
        let response = next(watcher).await;
        assert!(response.canceled && response.events.is_empty(), "{response:?}");
        assert!(response.cancel_reason.contains("corrupt"), "{response:?}");
    }
    fixture.machine.hub().set_aside(false);
    let mut after = fixture.watch(all_from(1));
    assert_eq!(next(&mut after).await.events.len(), 1);
}

#[tokio::test]
async fn watches_that_come_and_go_leave_nothing() {
    let mut fixture = Fixture::new(1 << 20);
    let kept = fixture.watch(all_from(0));
    for number in 0..10_000 {
        let key = number.to_string();
        let end = if number % 2 == 0 { String::new() } else { format!("{key}0") };
        drop(fixture.watch(WatchCreateRequest { key: key.into(), range_end: end.into(), ..Default::default() }));
    }
    assert_eq!(fixture.machine.hub().places(), 2);
    fixture.put("5", "v");
    drop(kept);
}
