//! One watch: a cursor into history.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcd::watch_create_request::FilterType;
use quorate_proto::etcd::{ResponseHeader, WatchCreateRequest, WatchResponse};

use super::hub::{Batch, Look, Place};
use super::{EncodedEvent, Hub, Mailbox};
use crate::command::ApplyError;
use crate::mvcc::{Engine, History, KeyRange, ReadError};

/// So many revisions of history belong to one response (etcd's number).
const MAX_REVISIONS: usize = 1000;

/// A part of a response takes no further revision once it is larger: well below what a
/// gRPC message may have, and enough to make its cost small beside that of the events.
const MAX_PART_BYTES: usize = 1 << 20;

/// Receives the events of one watch. Dropping it ends the watch.
pub struct Watcher {
    hub: Arc<Hub>,
    place: Place,
    mailbox: Arc<Mailbox>,
    watch_id: i64,
    key: Bytes,
    range_end: Bytes,
    without_puts: bool,
    without_deletes: bool,
    prev_kv: bool,
    /// The revision that was asked for; 0 is whatever comes next.
    start: i64,
    /// The revision at which it began.
    created: i64,
    /// Whether the start was found to be in the history.
    begun: bool,
    /// Every event before this revision was handed out.
    cursor: i64,
    /// Everything published was handed out, but for what it is woken for.
    synced: bool,
    /// The response of history of which a part was handed out.
    open: Option<Open>,
    progress_wanted: bool,
    ended: bool,
}

/// A response of history: as many revisions as etcd would take, however large. It comes in
/// parts, because all of it may be more than should be in memory.
struct Open {
    /// The store's revision when it began: nothing later belongs to it.
    revision: i64,
    /// Revisions that it may still take.
    room: usize,
    /// A part of it was handed out.
    begun: bool,
}

impl Open {
    fn new(revision: i64) -> Open {
        Open { revision, room: MAX_REVISIONS, begun: false }
    }
}

/// A response, or a part of one, that is not encoded yet, but for its events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    /// 0 when etcd says none.
    pub(crate) revision: i64,
    pub(crate) events: Vec<EncodedEvent>,
    /// Another part follows, which may have no events.
    pub(crate) more: bool,
    /// The watch has ended.
    pub(crate) canceled: bool,
    pub(crate) compact_revision: i64,
    pub(crate) cancel_reason: String,
}

/// What a watcher has to do next.
pub(crate) enum Step {
    /// Here is something; there may be more.
    Ready(Response),
    /// A piece of the change log has to be read, and given to [`Watcher::accept`].
    Behind(Read),
    /// Nothing until its mailbox says so.
    Idle,
    /// The watch has ended.
    Ended,
}

/// A piece of the change log to read.
pub(crate) struct Read {
    hub: Arc<Hub>,
    key: Bytes,
    range_end: Bytes,
    from: i64,
    revisions: usize,
}

/// What was read, and the store's revision then.
pub(crate) type ReadResult = Option<Result<(History, i64), ReadError>>;

impl Read {
    /// Reads; `None` when the runtime ends.
    pub(crate) async fn run(self) -> ReadResult {
        let _turn = self.hub.readers().acquire_owned().await.ok()?;
        let read = move || {
            let engine: &Engine = self.hub.engine();
            let range = KeyRange::new(&self.key, &self.range_end);
            let history = engine.changes(self.from, range, self.revisions, MAX_PART_BYTES)?;
            Ok((history, engine.revision()))
        };
        tokio::task::spawn_blocking(read).await.ok()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.leave(self.place, &self.key, &self.range_end);
    }
}

impl Watcher {
    /// `next` is the first revision that nobody can have seen; up to `published`,
    /// nothing will be announced.
    pub(super) fn new(
        hub: Arc<Hub>,
        place: Place,
        mailbox: Arc<Mailbox>,
        request: WatchCreateRequest,
        next: i64,
        published: i64,
    ) -> Watcher {
        let has = |filter: FilterType| request.filters.contains(&filter.into());
        let cursor = if request.start_revision > 0 { request.start_revision } else { next };
        Watcher {
            hub,
            place,
            mailbox,
            watch_id: request.watch_id,
            without_puts: has(FilterType::Noput),
            without_deletes: has(FilterType::Nodelete),
            key: request.key,
            range_end: request.range_end,
            prev_kv: request.prev_kv,
            start: request.start_revision.max(0),
            created: next - 1,
            begun: false,
            cursor,
            synced: cursor > published,
            open: None,
            progress_wanted: false,
            ended: false,
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Whether everything up to `published` was handed out, and its start has come.
    pub(super) fn is_synced(&self, published: i64) -> bool {
        self.begun && self.synced && published >= self.start
    }

    /// Whether there is nothing more to do until it is announced.
    pub(crate) fn is_idle(&self) -> bool {
        self.synced && self.open.is_none() && !self.ended
    }

    /// The store's revision when the watch began.
    pub(crate) fn created(&self) -> i64 {
        self.created
    }

    /// The next response: events, progress that was asked for, or the end of the watch
    /// because its history was compacted; after that `None`. Waits as long as it takes.
    ///
    /// Events of one revision come in one response. Cancel-safe: what is not handed out
    /// comes with the next call.
    pub async fn next(&mut self) -> Option<WatchResponse> {
        loop {
            let found = match self.step() {
                Step::Ready(response) => Some(response),
                Step::Behind(read) => {
                    let result = read.run().await;
                    self.accept(result)
                }
                Step::Ended => return None,
                Step::Idle if self.progress_wanted => {
                    if let Some(revision) = self.progress() {
                        self.progress_wanted = false;
                        let header = Some(ResponseHeader { revision, ..Default::default() });
                        return Some(WatchResponse { header, watch_id: self.watch_id, ..Default::default() });
                    }
                    tokio::select! {
                        () = self.mailbox.wait() => {}
                        () = self.hub.reached(self.start) => {}
                    }
                    self.mailbox.take();
                    None
                }
                Step::Idle => {
                    self.mailbox.wait().await;
                    self.mailbox.take();
                    None
                }
            };
            // Each part is a response here.
            if let Some(found) = found.filter(|found| found.canceled || !found.events.is_empty()) {
                return Some(self.decoded(found));
            }
        }
    }

    fn decoded(&self, response: Response) -> WatchResponse {
        WatchResponse {
            header: Some(ResponseHeader { revision: response.revision, ..Default::default() }),
            watch_id: self.watch_id,
            canceled: response.canceled,
            compact_revision: response.compact_revision,
            cancel_reason: response.cancel_reason,
            events: response.events.iter().map(EncodedEvent::decode).collect(),
            ..Default::default()
        }
    }

    /// What comes next, without waiting.
    pub(crate) fn step(&mut self) -> Step {
        if !self.begun {
            self.begun = true;
            // Said of a compacted start even while memory still holds its events.
            if self.start > 0 && self.start < self.hub.engine().compact_revision() {
                return Step::Ready(self.compacted());
            }
        }
        if !self.ended && self.hub.is_aside() {
            return Step::Ready(self.cancel(&ApplyError::Corrupt.to_string()));
        }
        while !self.ended {
            match self.hub.look(self.place, self.cursor, self.synced) {
                Look::Synced(published) => {
                    self.cursor = self.cursor.max(published + 1);
                    self.synced = true;
                    return self.part(Vec::new(), 0).map_or(Step::Idle, Step::Ready);
                }
                Look::Missed(from) => {
                    (self.cursor, self.synced) = (from, false);
                    let (key, range_end) = (self.key.clone(), self.range_end.clone());
                    let revisions = self.open.as_ref().map_or(MAX_REVISIONS, |open| open.room);
                    return Step::Behind(Read { hub: Arc::clone(&self.hub), key, range_end, from, revisions });
                }
                Look::Batches { batches, from, upto, complete, published } if self.synced => {
                    let (events, reached, _) = self.select_all(&batches, from, upto, usize::MAX);
                    self.reached(reached, complete && reached == upto, published);
                    if let Some(last) = events.last() {
                        return Step::Ready(Response { revision: last.revision, events, ..Response::default() });
                    }
                }
                Look::Batches { batches, from, upto, complete, published } => {
                    let (last, room) = self.history(published);
                    let last = last.min(upto);
                    let (events, reached, revisions) = self.select_all(&batches, from, last, room);
                    self.reached(reached, complete && reached == upto, published);
                    if let Some(part) = self.part(events, revisions) {
                        return Step::Ready(part);
                    }
                }
            }
        }
        Step::Ended
    }

    fn reached(&mut self, reached: i64, synced: bool, published: i64) {
        self.synced = synced;
        self.cursor = self.cursor.max(if synced { published } else { reached } + 1);
    }

    /// The last revision that belongs to the response of history, which begins now if there
    /// is none, and how many more it takes.
    fn history(&mut self, revision: i64) -> (i64, usize) {
        let open = self.open.get_or_insert_with(|| Open::new(revision));
        (open.revision, open.room)
    }

    /// The part of the response of history that has these events, of so many revisions;
    /// `None` when it says nothing.
    fn part(&mut self, events: Vec<EncodedEvent>, revisions: usize) -> Option<Response> {
        let open = self.open.as_mut()?;
        open.room = open.room.saturating_sub(revisions);
        let more = open.room > 0 && self.cursor <= open.revision;
        let ends = open.begun && !more;
        open.begun |= !events.is_empty();
        let revision = open.revision;
        if !more {
            self.open = None;
        }
        (ends || !events.is_empty()).then(|| Response { revision, events, more, ..Response::default() })
    }

    /// The revision up to which every event was handed out, when that is all there is;
    /// never below a start that is still to come.
    pub fn progress(&self) -> Option<i64> {
        self.hub.progress(std::iter::once(self))
    }

    /// Makes `next` answer with an empty response once everything was handed out.
    pub fn request_progress(&mut self) {
        self.progress_wanted = true;
        // Wakes nobody: who calls this holds the watcher, so `next` is not waiting.
    }

    /// Takes what was read for the last step; `None` when nothing in it matches.
    pub(crate) fn accept(&mut self, result: ReadResult) -> Option<Response> {
        match result {
            Some(Ok((History { changes, upto }, current))) => {
                let upto = upto.min(self.history(current).0);
                let (mut events, mut revisions, mut last) = (Vec::new(), 0, 0);
                for change in changes.into_iter().take_while(|change| change.row.revision.main <= upto) {
                    revisions += usize::from(change.row.revision.main != last);
                    last = change.row.revision.main;
                    events.extend(self.select(&EncodedEvent::new(change)));
                }
                self.cursor = self.cursor.max(upto + 1);
                self.part(events, revisions)
            }
            Some(Err(ReadError::Apply(ApplyError::Compacted))) => Some(self.compacted()),
            Some(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a watch cannot read history");
                Some(self.cancel("the change log cannot be read"))
            }
            None => Some(self.cancel("etcdserver: server stopped")),
        }
    }

    fn compacted(&mut self) -> Response {
        self.ended = true;
        // As etcd: its header tells no revision.
        let compact_revision = self.hub.engine().compact_revision();
        Response { canceled: true, compact_revision, ..Response::default() }
    }

    fn cancel(&mut self, reason: &str) -> Response {
        self.ended = true;
        let revision = self.hub.engine().revision();
        Response { revision, canceled: true, cancel_reason: reason.to_owned(), ..Response::default() }
    }

    /// The events from `from` up to `upto` that this watch wants, the revision up to which
    /// they are all of them, and how many revisions it took, `room` at most.
    fn select_all(&self, batches: &[Arc<Batch>], from: i64, upto: i64, room: usize) -> (Vec<EncodedEvent>, i64, usize) {
        let range = KeyRange::new(&self.key, &self.range_end);
        let mut events: Vec<EncodedEvent> = Vec::new();
        let (mut bytes, mut revisions, mut last) = (0, 0, 0);
        for batch in batches {
            let first = batch.events.partition_point(|event| event.revision() < from);
            let wanted = batch.events.iter().skip(first).take_while(|event| event.revision() <= upto);
            for event in wanted.filter(|event| range.contains(event.key())) {
                if event.revision() > last {
                    if bytes > MAX_PART_BYTES || revisions == room {
                        return (events, event.revision() - 1, revisions);
                    }
                    revisions += 1;
                    last = event.revision();
                }
                if let Some(event) = self.select(&event.encoded()) {
                    bytes += event.bytes().len();
                    events.push(event);
                }
            }
        }
        (events, upto, revisions)
    }

    /// The event as this watch wants it, if it is of a kind that it wants. Its key matches.
    fn select(&self, event: &EncodedEvent) -> Option<EncodedEvent> {
        let unwanted = if event.deletes { self.without_deletes } else { self.without_puts };
        (!unwanted).then(|| event.with_previous(self.prev_kv))
    }
}
