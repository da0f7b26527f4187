//! List, watch from there, resume where the watch ended, list again when that is too old.

use std::time::Duration;

use futures::StreamExt;

use super::Shared;
use super::indexer::Indexer;
use crate::client::WatchEvent;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// A server that comes back is found within that time.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

enum WatchEnd {
    /// The server closed the stream: go on from the last revision.
    Closed,
    /// The revision is no longer kept, or somebody asked for a refresh.
    ListAgain,
    Failed,
}

/// Never returns. May be dropped at any await: the copy is whole at each of them.
pub(super) async fn run(shared: &Shared) {
    let mut backoff = Backoff::new();
    loop {
        let asked = *shared.asked.borrow();
        let listed = shared.client.list(&shared.resource, shared.namespace.as_deref(), shared.options.clone()).await;
        let mut revision = match listed {
            Ok(list) => {
                shared.apply(|index: &mut Indexer| index.replace(list.items));
                shared.done.send_replace(asked);
                list.revision
            }
            Err(error) => {
                tracing::warn!(resource = %shared.resource, %error, "cannot list; trying again");
                backoff.wait().await;
                continue;
            }
        };
        loop {
            let before = revision;
            match watch(shared, &mut revision, asked).await {
                WatchEnd::ListAgain => break,
                // A server that closes at once must not be asked in a tight loop.
                WatchEnd::Closed | WatchEnd::Failed if revision == before => backoff.wait().await,
                WatchEnd::Closed | WatchEnd::Failed => backoff = Backoff::new(),
            }
        }
    }
}

/// One watch, from `revision` to its end; `revision` follows what was seen.
async fn watch(shared: &Shared, revision: &mut u64, listed: u64) -> WatchEnd {
    let mut asked = shared.asked.subscribe();
    let mut asked_again = Box::pin(asked.wait_for(|asked| *asked > listed));
    let opening = shared.client.watch(&shared.resource, shared.namespace.as_deref(), shared.options.clone(), *revision);
    let opened = tokio::select! {
        opened = opening => opened,
        _ = &mut asked_again => return WatchEnd::ListAgain,
    };
    let mut events = match opened {
        Ok(events) => events,
        Err(error) => return failed(shared, &error),
    };
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = &mut asked_again => return WatchEnd::ListAgain,
        };
        match event {
            None => return WatchEnd::Closed,
            Some(Err(error)) => return failed(shared, &error),
            Some(Ok(event)) => {
                *revision = apply(shared, event).max(*revision);
            }
        }
    }
}

/// Applies one event; the revision it brings the copy to.
fn apply(shared: &Shared, event: WatchEvent) -> u64 {
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            let revision = object.revision();
            shared.apply(|index| index.put(object).into_iter().collect());
            revision
        }
        WatchEvent::Deleted(object) => {
            let revision = object.revision();
            shared.apply(|index| index.take(object).into_iter().collect());
            revision
        }
        WatchEvent::Bookmark(revision) => revision,
    }
}

fn failed(shared: &Shared, error: &quorate_proto::status::Status) -> WatchEnd {
    if error.is_expired() {
        tracing::info!(resource = %shared.resource, "the watch fell behind what is kept; listing again");
        return WatchEnd::ListAgain;
    }
    tracing::debug!(resource = %shared.resource, %error, "the watch failed; watching again");
    WatchEnd::Failed
}

struct Backoff {
    next: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { next: FIRST_BACKOFF }
    }

    /// Full jitter above half, so that many clients of a restarted server spread out.
    async fn wait(&mut self) {
        tokio::time::sleep(self.next.mul_f64(rand::random_range(0.5..1.0))).await;
        self.next = (self.next * 2).min(MAX_BACKOFF);
    }
}
