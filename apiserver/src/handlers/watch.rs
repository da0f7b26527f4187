//! GET with `watch=true`: an answer that goes on.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use quorate_proto::status::Status;
use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frames::Frames;
use super::{list, render};
use crate::http::body::stream;
use crate::http::{Answer, ApiRequest, Query};
use crate::registry::status::not_supported;
use crate::registry::{Registry, WatchQuery, Watching};
use crate::schema::{ResourceDef, Verb};
use crate::watch_cache::Watcher;

/// How often a client hears how far the server is. Upstream's interval.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// A watch without `timeoutSeconds` ends after this long, or up to twice as long.
/// kube-apiserver's `--min-request-timeout`.
const MIN_TIMEOUT_SECONDS: u64 = 1800;

pub(super) async fn watch(registry: &Registry, def: &'static ResourceDef, request: &ApiRequest) -> Answer {
    if !def.has_verb(Verb::Watch) {
        return Err(not_supported(def, "watch"));
    }
    let query = watch_query(request)?;
    let timeout = timeout(&request.query)?;
    let frames = Frames::new(def, request.clone());
    let content_type = frames.content_type();
    let watching = match registry.watch(def, list::namespace(def, request), &query).await {
        Ok(watching) => watching,
        // Upstream says so inside the stream; clients look for it there.
        Err(status) if status.is_expired() => {
            return Ok(respond(content_type, futures::stream::iter([frames.error(&status)])));
        }
        Err(status) => return Err(status),
    };
    render::encode_ahead(&watching.initial, request).await;
    let watch = Watch {
        frames,
        bookmarks: request.query.flag("allowWatchBookmarks"),
        watching: Some(watching),
        watcher: None,
        deadline: Instant::now() + timeout,
        ending: registry.ending().clone(),
    };
    Ok(respond(content_type, futures::stream::unfold(Some(watch), Watch::step)))
}

fn respond(
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Response<crate::http::Body> {
    let mut response = Response::new(stream(chunks));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn watch_query(request: &ApiRequest) -> Result<WatchQuery, Status> {
    let (query, info) = (&request.query, &request.info);
    let mut fields = query.text("fieldSelector").to_owned();
    if !info.name.is_empty() && !info.name_from_selector {
        // The old path `/watch/…/name`.
        let separator = if fields.is_empty() { "" } else { "," };
        fields = format!("{fields}{separator}metadata.name={}", info.name);
    }
    Ok(WatchQuery {
        labels: query.text("labelSelector").to_owned(),
        fields,
        resource_version: query.text("resourceVersion").to_owned(),
        resource_version_match: query.text("resourceVersionMatch").to_owned(),
        send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
    })
}

fn timeout(query: &Query) -> Result<Duration, Status> {
    let seconds = match query.text("timeoutSeconds") {
        "" | "0" => rand::rng().random_range(MIN_TIMEOUT_SECONDS..2 * MIN_TIMEOUT_SECONDS),
        text => text.parse().map_err(|_| Status::bad_request(format!("timeoutSeconds: Invalid value: {text:?}")))?,
    };
    // A year is as good as forever, and far from what a clock can add.
    Ok(Duration::from_secs(seconds.min(365 * 24 * 3600)))
}

struct Watch {
    frames: Frames,
    bookmarks: bool,
    /// What is sent first; `None` once it was.
    watching: Option<Watching>,
    watcher: Option<Watcher>,
    deadline: Instant,
    ending: CancellationToken,
}

impl Watch {
    /// The next chunk of the answer: as many events as there are.
    async fn step(watch: Option<Self>) -> Option<(Bytes, Option<Self>)> {
        let mut watch = watch?;
        if let Some(Watching { initial, initial_end, watcher }) = watch.watching.take() {
            watch.watcher = Some(watcher);
            let mut out = Vec::new();
            for object in &initial {
                watch.frames.event(&mut out, "ADDED", object);
            }
            if let Some(revision) = initial_end {
                watch.frames.bookmark(&mut out, revision, true);
            }
            if !out.is_empty() {
                return Some((Bytes::from(out), Some(watch)));
            }
        }
        let watcher = watch.watcher.as_mut()?;
        let next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        let mut out = Vec::new();
        loop {
            let seen = tokio::select! {
                seen = watcher.next() => seen,
                () = tokio::time::sleep_until(next_bookmark), if watch.bookmarks => {
                    watch.frames.bookmark(&mut out, watcher.delivered(), false);
                    return Some((Bytes::from(out), Some(watch)));
                }
                () = tokio::time::sleep_until(watch.deadline) => return watch.end(),
                () = watch.ending.cancelled() => return watch.end(),
            };
            match seen {
                Ok(seen) => seen.into_iter().for_each(|seen| watch.frames.seen(&mut out, seen)),
                Err(status) => return Some((watch.frames.error(&status), None)),
            }
            if !out.is_empty() {
                return Some((Bytes::from(out), Some(watch)));
            }
        }
    }

    /// Ends the watch; a bookmark tells the client where to go on.
    fn end(mut self) -> Option<(Bytes, Option<Self>)> {
        let watcher = self.watcher.as_mut()?;
        if !self.bookmarks {
            return None;
        }
        let mut out = Vec::new();
        for seen in watcher.try_next().ok()? {
            self.frames.seen(&mut out, seen);
        }
        self.frames.bookmark(&mut out, watcher.delivered(), false);
        Some((Bytes::from(out), None))
    }
}
