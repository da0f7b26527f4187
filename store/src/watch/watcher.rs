//! One watch: a cursor into history.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcd::watch_create_request::FilterType;
use quorate_proto::etcd::{ResponseHeader, WatchCreateRequest, WatchResponse};
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use tokio::sync::watch;

use super::Hub;
use super::hub::{self, Batch, Recent};
use crate::command::ApplyError;
use crate::mvcc::{History, KeyRange, ReadError};

/// So many revisions are read from the change log at once (etcd's number).
const MAX_REVISIONS_PER_READ: usize = 1000;

/// A response takes no further revision once it is larger: well below what a gRPC message
/// may have, and enough to make its cost small beside that of the events.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Receives the events of one watch. Dropping it ends the watch.
pub struct Watcher {
    hub: Arc<Hub>,
    published: watch::Receiver<i64>,
    watch_id: i64,
    key: Bytes,
    range_end: Bytes,
    without_puts: bool,
    without_deletes: bool,
    prev_kv: bool,
    /// The revision that was asked for; 0 is whatever comes next.
    start: i64,
    /// Whether the start was found to be in the history.
    begun: bool,
    /// Every event before this revision was handed out.
    cursor: i64,
    progress_wanted: bool,
    ended: bool,
}

impl Watcher {
    pub(super) fn new(
        hub: Arc<Hub>,
        published: watch::Receiver<i64>,
        request: WatchCreateRequest,
        start: i64,
    ) -> Watcher {
        let has = |filter: FilterType| request.filters.contains(&filter.into());
        Watcher {
            hub,
            published,
            watch_id: request.watch_id,
            without_puts: has(FilterType::Noput),
            without_deletes: has(FilterType::Nodelete),
            // As etcd: an empty key is the smallest one.
            key: if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key },
            range_end: request.range_end,
            prev_kv: request.prev_kv,
            start: request.start_revision.max(0),
            begun: false,
            cursor: start,
            progress_wanted: false,
            ended: false,
        }
    }

    /// The next response: events, progress that was asked for, or the end of the watch
    /// because its history was compacted; after that `None`. Waits as long as it takes.
    ///
    /// Events of one revision come in one response. Cancel-safe: what is not handed out
    /// comes with the next call.
    pub async fn next(&mut self) -> Option<WatchResponse> {
        if !self.begun {
            self.begun = true;
            // Said of a compacted start even while memory still holds its events.
            if self.start > 0 && self.start < self.hub.engine().compact_revision() {
                return Some(self.compacted());
            }
        }
        while !self.ended {
            // Marked as seen before looking, so that nothing published later is overlooked.
            self.published.borrow_and_update();
            let response = match self.hub.recent(self.cursor) {
                Recent::Synced if self.progress_wanted => match self.progress() {
                    Some(revision) => {
                        self.progress_wanted = false;
                        Some(self.response(revision, Vec::new()))
                    }
                    None => None,
                },
                Recent::Synced => None,
                Recent::Batches(batches, upto) => {
                    let (events, upto) = self.select_all(&batches, upto);
                    self.cursor = upto + 1;
                    let Some(last) = events.last() else { continue };
                    Some(self.response(hub::revision_of(last), events))
                }
                Recent::Missed => match self.read_behind().await {
                    Some(response) => Some(response),
                    None => continue,
                },
            };
            if response.is_some() {
                return response;
            }
            if self.published.changed().await.is_err() {
                self.ended = true;
            }
        }
        None
    }

    /// The revision up to which every event was handed out, when that is all there is;
    /// never below a start that is still to come.
    pub fn progress(&self) -> Option<i64> {
        let published = *self.published.borrow();
        (self.cursor > published && published >= self.start).then_some(published)
    }

    /// Makes `next` answer with an empty response once everything was handed out.
    pub fn request_progress(&mut self) {
        self.progress_wanted = true;
        // Wakes nobody: who calls this holds the watcher, so `next` is not waiting.
    }

    /// Reads a piece of the change log; `None` when nothing in it matches.
    async fn read_behind(&mut self) -> Option<WatchResponse> {
        let engine = self.hub.engine().clone();
        let from = self.cursor;
        let read = tokio::task::spawn_blocking(move || {
            engine.changes(from, MAX_REVISIONS_PER_READ, MAX_RESPONSE_BYTES).map(|history| (history, engine.revision()))
        });
        match read.await {
            Ok(Ok((History { changes, upto }, current))) => {
                let events: Vec<Event> =
                    changes.into_iter().map(hub::event).filter_map(|event| self.select(&event)).collect();
                self.cursor = self.cursor.max(upto + 1);
                (!events.is_empty()).then(|| self.response(current, events))
            }
            Ok(Err(ReadError::Apply(ApplyError::Compacted))) => Some(self.compacted()),
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a watch cannot read history");
                self.cancel("the change log cannot be read")
            }
            Err(_) => self.cancel("etcdserver: server stopped"),
        }
    }

    fn compacted(&mut self) -> WatchResponse {
        self.ended = true;
        let mut response = self.response(self.hub.engine().revision(), Vec::new());
        response.canceled = true;
        response.compact_revision = self.hub.engine().compact_revision();
        response
    }

    fn cancel(&mut self, reason: &str) -> Option<WatchResponse> {
        self.ended = true;
        let mut response = self.response(self.hub.engine().revision(), Vec::new());
        response.canceled = true;
        response.cancel_reason = reason.to_owned();
        Some(response)
    }

    /// The events from the cursor on that this watch wants, and the revision up to which
    /// they are all of them.
    fn select_all(&self, batches: &[Arc<Batch>], upto: i64) -> (Vec<Event>, i64) {
        let mut events: Vec<Event> = Vec::new();
        let (mut bytes, mut last) = (0, 0);
        for event in batches.iter().flat_map(|batch| &batch.events) {
            let revision = hub::revision_of(event);
            if revision < self.cursor {
                continue;
            }
            if bytes > MAX_RESPONSE_BYTES && revision > last {
                return (events, revision - 1);
            }
            if let Some(event) = self.select(event) {
                bytes += hub::size_of_event(&event);
                last = revision;
                events.push(event);
            }
        }
        (events, upto)
    }

    /// The event as this watch wants it.
    fn select(&self, event: &Event) -> Option<Event> {
        let unwanted = match event.r#type() {
            EventType::Put => self.without_puts,
            EventType::Delete => self.without_deletes,
        };
        let key = &event.kv.as_ref()?.key;
        if unwanted || !KeyRange::new(&self.key, &self.range_end).contains(key) {
            return None;
        }
        let prev_kv = if self.prev_kv { event.prev_kv.clone() } else { None };
        Some(Event { r#type: event.r#type, kv: event.kv.clone(), prev_kv })
    }

    fn response(&self, revision: i64, events: Vec<Event>) -> WatchResponse {
        let header = Some(ResponseHeader { revision, ..Default::default() });
        WatchResponse { header, watch_id: self.watch_id, events, ..Default::default() }
    }
}
