//! The task that fills the caches: one list, then one watch for good.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::object::Object;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Inner;
use super::cache::Incoming;
use super::window::Change;
use crate::storage::{Event, KeyValue, ListRequest, StorageError, WatchMessage, prefix_end};

const ROOT: &str = "/registry/";

/// Objects read in one go: some 10 MB of common objects.
const PAGE: usize = 5_000;

/// How many revisions of the past are read when the caches are filled: a minute, the
/// interval of bookmarks, at some 80 writes a second.
const HISTORY: u64 = 5_000;

/// How long that may take: the server is not ready before.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause after a failure: short, because every read waits for the caches.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(inner: &Inner, cancel: CancellationToken) {
    let mut must_load = true;
    loop {
        let outcome = tokio::select! {
            outcome = follow(inner, must_load) => outcome,
            () = cancel.cancelled() => return,
        };
        must_load = match outcome {
            StorageError::Compacted { compacted } => {
                warn!(
                    compacted,
                    position = *inner.position.borrow(),
                    "The watch cache was overtaken by compaction and starts over"
                );
                true
            }
            error => {
                warn!(%error, "The watch cache lost the store and tries again");
                *inner.position.borrow() == 0
            }
        };
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Loads when it must, then follows the store until that fails.
async fn follow(inner: &Inner, must_load: bool) -> StorageError {
    if must_load && let Err(error) = load(inner).await {
        return error;
    }
    let from = *inner.position.borrow() + 1;
    let mut stream = match inner.storage.watch(ROOT, from, false).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    loop {
        let message = tokio::select! {
            message = stream.next() => message,
            () = inner.wanted.notified() => {
                if let Err(error) = stream.request_progress().await {
                    return error;
                }
                continue;
            }
        };
        match message {
            Ok(WatchMessage::Events(events)) => deliver(inner, events),
            Ok(WatchMessage::Progress(revision)) => advance(inner, revision),
            Err(error) => return error,
        }
    }
}

async fn load(inner: &Inner) -> Result<(), StorageError> {
    let started = tokio::time::Instant::now();
    let mut contents: HashMap<&'static str, BTreeMap<String, Arc<Object>>> = HashMap::new();
    let mut request = ListRequest { start: ROOT.to_owned(), end: prefix_end(ROOT), revision: None, limit: PAGE };
    let mut count = 0;
    let revision = loop {
        let page = inner.storage.list(request.clone()).await?;
        let revision = request.revision.unwrap_or(page.revision);
        count += page.items.len();
        let last = page.items.last().map(|item| item.key.clone());
        for item in page.items {
            let Some((prefix, key)) = place(inner, &item.key) else { continue };
            if let Some(object) = decode(&item) {
                contents.entry(prefix).or_default().insert(key.to_owned(), object);
            }
        }
        match last {
            Some(last) if page.more => {
                request.start = format!("{last}\0");
                request.revision = Some(revision);
            }
            _ => break revision,
        }
    };
    let mut past = history(inner, revision).await;
    for (prefix, cache) in &inner.caches {
        let changes = past.changes.remove(prefix).unwrap_or_default();
        cache.reset(contents.remove(prefix).unwrap_or_default(), revision, past.floor, changes);
    }
    inner.position.send_replace(revision);
    info!(objects = count, revision, elapsed = ?started.elapsed(), "The watch cache is filled");
    Ok(())
}

/// What happened before the caches were filled.
struct Past {
    changes: HashMap<&'static str, Vec<Change>>,
    /// Nothing after this revision is missing.
    floor: u64,
}

/// Reads the recent past from the store, so that watches which began at another server
/// go on here. Without it they would list again: what cannot be read in time is left out.
async fn history(inner: &Inner, revision: u64) -> Past {
    let mut from = revision.saturating_sub(HISTORY).max(1);
    // The second attempt begins where the store says that its history begins.
    for _ in 0..2 {
        let read = read_history(inner, from, revision);
        match tokio::time::timeout(HISTORY_TIMEOUT, read).await {
            Ok(Ok(past)) => return past,
            Ok(Err(StorageError::Compacted { compacted })) if compacted > from && compacted <= revision => {
                from = compacted
            }
            Ok(Err(error)) => {
                warn!(%error, "The recent past could not be read: watches from before list again");
                break;
            }
            Err(_) => {
                warn!("The recent past could not be read in time: watches from before list again");
                break;
            }
        }
    }
    Past { changes: HashMap::new(), floor: revision }
}

async fn read_history(inner: &Inner, from: u64, revision: u64) -> Result<Past, StorageError> {
    let mut past = Past { changes: HashMap::new(), floor: from.saturating_sub(1) };
    // A store that was never written to has no past.
    if revision <= 1 {
        return Ok(past);
    }
    let mut stream = inner.storage.watch(ROOT, from, true).await?;
    // The end is seen by an event, never by progress: etcd before 3.4.25 reports
    // progress that it has not made.
    loop {
        let WatchMessage::Events(events) = stream.next().await? else { continue };
        let reached = events.last().map_or(0, |event| event.revision);
        events
            .into_iter()
            .filter(|event| event.revision <= revision)
            .for_each(|event| remember(inner, &mut past, event));
        if reached >= revision {
            return Ok(past);
        }
    }
}

fn remember(inner: &Inner, past: &mut Past, event: Event) {
    let Some((prefix, _)) = place(inner, &event.key) else { return };
    let previous = event.previous.as_ref().and_then(decode);
    if previous.is_none() && !event.is_creation {
        // Who watched then saw something that is not known here: begin after it.
        past.floor = event.revision;
        past.changes.clear();
        return;
    }
    let item = event.value.map(|value| KeyValue { key: event.key, value, mod_revision: event.revision });
    let object = item.as_ref().and_then(decode);
    past.changes.entry(prefix).or_default().push(Change::new(event.revision, object, previous));
}

fn deliver(inner: &Inner, events: Vec<Event>) {
    let Some(last) = events.last().map(|event| event.revision) else { return };
    // Few resources change in one message: a list is quicker than a map.
    let mut batches: Vec<(&'static str, Vec<Incoming>)> = Vec::new();
    for event in events {
        let Some((prefix, key)) = place(inner, &event.key) else { continue };
        let key = key.to_owned();
        // What cannot be read any longer is gone, as far as readers are concerned.
        let object =
            event.value.and_then(|value| decode(&KeyValue { key: event.key, value, mod_revision: event.revision }));
        let incoming = Incoming { key, revision: event.revision, object };
        match batches.iter_mut().find(|(candidate, _)| *candidate == prefix) {
            Some((_, batch)) => batch.push(incoming),
            None => batches.push((prefix, vec![incoming])),
        }
    }
    for (prefix, batch) in batches {
        inner.caches[prefix].apply(batch);
    }
    advance(inner, last);
}

fn advance(inner: &Inner, revision: u64) {
    inner.position.send_if_modified(|position| {
        let is_newer = revision > *position;
        if is_newer {
            *position = revision;
        }
        is_newer
    });
}

/// Which resource a key belongs to, and the key below that resource's prefix.
fn place<'a>(inner: &Inner, key: &'a str) -> Option<(&'static str, &'a str)> {
    // `prefix/namespace/name` or `prefix/name`.
    key.rmatch_indices('/').skip(1).take(1).chain(key.rmatch_indices('/').take(1)).find_map(|(at, _)| {
        let (prefix, _) = inner.caches.get_key_value(&key[..at])?;
        Some((*prefix, &key[at + 1..]))
    })
}

fn decode(item: &KeyValue) -> Option<Arc<Object>> {
    match Object::from_stored(&item.value, item.mod_revision) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            warn!(key = item.key, %error, "A stored object cannot be read and is left out");
            None
        }
    }
}
