//! One watch: a cursor into history.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcd::watch_create_request::FilterType;
use quorate_proto::etcd::{ResponseHeader, WatchCreateRequest, WatchResponse};

use super::hub::{Batch, Look, Place};
use super::{EncodedEvent, Hub, Mailbox, News};
use crate::command::ApplyError;
use crate::mvcc::{Engine, History, KeyRange, ReadError};

/// So many revisions of history belong to one response (etcd's number).
const MAX_REVISIONS: usize = 1000;

/// A part of a response takes no further revision once it is larger: well below what a
/// gRPC message may have, and enough to make its cost small beside that of the events.
const MAX_PART_BYTES: usize = 1 << 20;

/// Owners keep so many selections: of the keys and kinds that their watchers share.
const MAX_SELECTIONS: usize = 8;

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
    /// Everything published was handed out, but for what it hears news of.
    synced: bool,
    /// Revisions that have something for it. What is before the cursor was handed out.
    news: Option<News>,
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

/// What makes selections equal, as long as history is the same.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wanted {
    group: usize,
    from: i64,
    upto: i64,
    without_puts: bool,
    without_deletes: bool,
    prev_kv: bool,
}

/// The events of some revisions for every watcher of the same keys and kinds.
pub(crate) struct Selection {
    events: Vec<EncodedEvent>,
    /// Up to here, they are all of them.
    reached: i64,
    /// Nothing is missing of what was asked for.
    complete: bool,
}

impl Selection {
    pub(crate) fn events(&self) -> &[EncodedEvent] {
        &self.events
    }

    #[cfg(test)]
    pub(crate) fn of_events(events: Vec<EncodedEvent>) -> Selection {
        Selection { events, reached: 0, complete: true }
    }

    /// The last that has an event.
    pub(crate) fn revision(&self) -> i64 {
        self.events.last().map_or(0, |event| event.revision)
    }
}

/// Selections that watchers of one owner share.
#[derive(Default)]
pub(crate) struct Selections(Vec<(Wanted, Arc<Selection>)>);

impl Selections {
    fn find(&self, wanted: &Wanted) -> Option<Arc<Selection>> {
        self.0.iter().rev().find(|(found, _)| found == wanted).map(|(_, selection)| Arc::clone(selection))
    }

    fn keep(&mut self, wanted: Wanted, selection: &Arc<Selection>) {
        if self.0.len() == MAX_SELECTIONS {
            self.0.clear();
        }
        self.0.push((wanted, Arc::clone(selection)));
    }

    /// To be called before other keys can be meant by the same group.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a watcher has to do next.
pub(crate) enum Step {
    /// Here is something; there may be more.
    Ready(Response),
    /// Here are events that have just come, one at least.
    Live(Arc<Selection>),
    /// A piece of the change log has to be read, and given to [`Watcher::accept`].
    Behind(Read),
    /// Nothing until there is news.
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
            news: None,
            open: None,
            progress_wanted: false,
            ended: false,
        }
    }

    /// The number of those who watch the same keys, in what its mailbox tells.
    pub(crate) fn group(&self) -> usize {
        self.place.group
    }

    /// Its mailbox has news of its group.
    pub(crate) fn tell(&mut self, news: News) {
        News::add(&mut self.news, news);
    }

    fn has_news(&self) -> bool {
        self.news.is_some_and(|news| news.last >= self.cursor)
    }

    /// Whether there is nothing more to do until it hears news.
    pub(crate) fn is_idle(&self) -> bool {
        self.synced && !self.has_news() && !self.ended
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
            self.collect();
            let found = match self.step(&mut Selections::default()) {
                Step::Ready(response) => Some(response),
                Step::Live(selection) => Some(Response {
                    revision: selection.revision(),
                    events: selection.events.clone(),
                    ..Response::default()
                }),
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
                        () = self.hub.reached(self.start.max(self.cursor - 1)) => {}
                    }
                    None
                }
                Step::Idle => {
                    self.mailbox.wait().await;
                    None
                }
            };
            // Each part is a response here.
            if let Some(found) = found.filter(|found| found.canceled || !found.events.is_empty()) {
                return Some(self.decoded(found));
            }
        }
    }

    /// Looks into a mailbox that is its own.
    fn collect(&mut self) {
        if self.mailbox.is_filled() {
            for (_, news) in self.hub.collect(&self.mailbox).0 {
                self.tell(news);
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

    /// What comes next, without waiting. What watchers of the same keys want at the same
    /// time is found once.
    pub(crate) fn step(&mut self, selections: &mut Selections) -> Step {
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
            let news = self.news.take().filter(|news| news.last >= self.cursor);
            let found = match (self.synced, news) {
                (true, None) => return Step::Idle,
                (true, Some(news)) => self.live(news, selections),
                (false, _) => self.history(),
            };
            if let Some(step) = found {
                return step;
            }
        }
        Step::Ended
    }

    /// Takes from the ring what there is news of; nothing if it is of no kind that this
    /// watch wants, or to be taken as history.
    fn live(&mut self, news: News, selections: &mut Selections) -> Option<Step> {
        let wanted = Wanted {
            group: self.place.group,
            from: self.cursor.max(news.first),
            upto: news.last,
            without_puts: self.without_puts,
            without_deletes: self.without_deletes,
            prev_kv: self.prev_kv,
        };
        let selection = match selections.find(&wanted) {
            Some(selection) => selection,
            None => {
                let Look::Batches { batches, upto, complete, .. } = self.hub.look(wanted.from, Some(wanted.upto))
                else {
                    (self.cursor, self.synced) = (wanted.from, false);
                    return None;
                };
                let (events, reached, _) = self.select_all(&batches, wanted.from, upto, usize::MAX);
                let selection = Arc::new(Selection { events, reached, complete: complete && reached == upto });
                selections.keep(wanted, &selection);
                selection
            }
        };
        // Not beyond it: there may be news of later revisions that it has not heard.
        self.cursor = self.cursor.max(selection.reached + 1);
        self.synced = selection.complete;
        (!selection.events.is_empty()).then_some(Step::Live(selection))
    }

    /// Takes what comes next in history, from the ring or from the change log.
    fn history(&mut self) -> Option<Step> {
        match self.hub.look(self.cursor, None) {
            Look::Synced(published) => {
                self.cursor = self.cursor.max(published + 1);
                self.synced = true;
                self.part(Vec::new(), 0).map(Step::Ready)
            }
            Look::Missed => {
                let (key, range_end, from) = (self.key.clone(), self.range_end.clone(), self.cursor);
                let revisions = self.open.as_ref().map_or(MAX_REVISIONS, |open| open.room);
                Some(Step::Behind(Read { hub: Arc::clone(&self.hub), key, range_end, from, revisions }))
            }
            Look::Batches { batches, upto, complete, published } => {
                let (last, room) = self.response(published);
                let (events, reached, revisions) = self.select_all(&batches, self.cursor, last.min(upto), room);
                self.synced = complete && reached == upto;
                self.cursor = self.cursor.max(if self.synced { published } else { reached } + 1);
                self.part(events, revisions).map(Step::Ready)
            }
        }
    }

    /// The last revision that belongs to the response of history, which begins now if there
    /// is none, and how many more it takes.
    fn response(&mut self, revision: i64) -> (i64, usize) {
        let open = self.open.get_or_insert_with(|| Open::new(revision));
        (open.revision, open.room)
    }

    /// The part of the response of history that has these events, of so many revisions;
    /// `None` when it says nothing.
    fn part(&mut self, events: Vec<EncodedEvent>, revisions: usize) -> Option<Response> {
        let open = self.open.as_mut()?;
        open.room = open.room.saturating_sub(revisions);
        // What is not published yet is announced.
        let more = open.room > 0 && self.cursor <= open.revision && !self.synced;
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
        self.hub.progress(&self.mailbox, self)
    }

    /// The same for one that has heard all news up to `published`.
    pub(crate) fn progress_at(&self, published: i64) -> Option<i64> {
        let quiet = self.begun && self.synced && !self.has_news();
        // What it read from the change log may not be published yet.
        (quiet && published >= self.start && published + 1 >= self.cursor).then_some(published)
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
                let upto = upto.min(self.response(current).0);
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
