//! Keeps history short: every five minutes, what is older than five minutes goes; and
//! Events, which only report, go after an hour.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use quorate_proto::fence::Fence;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::context::RequestContext;
use super::delete::DeleteRequest;
use super::{Registry, Target};
use crate::schema::{ResourceDef, resource};
use crate::watch_cache::Selection;

/// kube-apiserver's `--etcd-compaction-interval`: history lives this long, at least.
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// kube-apiserver's `--event-ttl`.
const EVENT_TTL_SECONDS: i64 = 60 * 60;

/// How many Events are removed at a time: few, so that clients' writes come between.
const REMOVALS_AT_A_TIME: usize = 8;

/// Runs until dropped: what it does is one transaction at a time, and any of them may be the last.
pub(super) async fn run(registry: &Registry, leadership: watch::Receiver<Option<Fence>>) {
    registry.cache().ready().await;
    // Where the store was one interval ago; only what is older is dropped.
    let mut earlier = registry.cache().position();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let compact_to = std::mem::replace(&mut earlier, registry.cache().position());
        let Some(fence) = *leadership.borrow() else { continue };
        match registry.storage().compact(compact_to).await {
            Ok(()) => debug!(revision = compact_to, "History was compacted"),
            Err(crate::storage::StorageError::Compacted { .. }) => {}
            Err(error) => warn!(%error, revision = compact_to, "History could not be compacted"),
        }
        expire_events(registry, fence).await;
    }
}

async fn expire_events(registry: &Registry, fence: Fence) {
    let Some(def) = resource("", "v1", "events") else { return };
    let Ok(cache) = registry.cache().of(def) else { return };
    let context = RequestContext::system("system:apiserver").with_fence(Some(fence));
    let oldest = jiff::Timestamp::now().as_second() - EVENT_TTL_SECONDS;
    let events = cache.list(&Selection::default(), "", 0).items;
    let expired = events.iter().filter(|event| last_seen(event.value()).is_some_and(|seen| seen < oldest));
    let removals: Vec<_> =
        expired.cloned().map(|event| remove(registry.clone(), context.clone(), def, event)).collect();
    // Until one fails: the next round goes on.
    let _ = futures::stream::iter(removals).buffer_unordered(REMOVALS_AT_A_TIME).try_collect::<()>().await;
}

/// Removes one Event as it was; says so when that fails for a reason of the store's.
async fn remove(
    registry: Registry,
    context: RequestContext,
    def: &'static ResourceDef,
    event: Arc<Object>,
) -> Result<(), Status> {
    let meta = event.meta();
    let target = Target { def, namespace: &meta.namespace, name: &meta.name, subresource: "" };
    let request = DeleteRequest { resource_version: Some(event.revision().to_string()), ..DeleteRequest::default() };
    match registry.delete(&context, target, &request).await {
        Err(status) if !status.is_not_found() && !status.is_conflict() => {
            warn!(%status, event = meta.key(), "An old event could not be removed");
            Err(status)
        }
        _ => Ok(()),
    }
}

/// When an Event was last reported, in seconds since 1970.
fn last_seen(event: &serde_json::Value) -> Option<i64> {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let text = times.into_iter().find_map(serde_json::Value::as_str)?;
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}
