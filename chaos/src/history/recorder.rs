//! Writes a history while it happens.

use std::io::Write;
use std::sync::Mutex;

use tokio::time::Instant;

use super::HistoryError;
use super::event::{Client, Event, Line, Member, OperationId, Request, WatchId, WatchRequest};

/// Writes the lines of a run; many tasks share it. Its memory does not grow.
pub struct Recorder<W> {
    began: Instant,
    sink: Mutex<Sink<W>>,
}

struct Sink<W> {
    writer: W,
    next_id: u64,
    /// The first error, after which nothing is written.
    broken: Option<std::io::Error>,
}

impl<W: Write> Recorder<W> {
    /// Times count from now. `writer` should be buffered: each line is one write.
    pub fn new(writer: W) -> Self {
        Self { began: Instant::now(), sink: Mutex::new(Sink { writer, next_id: 0, broken: None }) }
    }

    /// To be called before the request is sent.
    pub fn invoke(&self, client: Client, member: Member, request: Request) -> OperationId {
        let mut sink = self.lock();
        let operation = OperationId(sink.take_id());
        self.write(&mut sink, Event::Invoke { operation, client, member, request });
        operation
    }

    /// To be called before the watch is sent.
    pub fn watch(&self, watcher: Client, member: Member, request: WatchRequest) -> WatchId {
        let mut sink = self.lock();
        let watch = WatchId(sink.take_id());
        self.write(&mut sink, Event::Watch { watch, watcher, member, request });
        watch
    }

    /// The time that a line would bear now.
    pub fn now_nanos(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    /// Everything else, once it is known.
    pub fn record(&self, event: Event) {
        self.write(&mut self.lock(), event);
    }

    /// Flushes, and returns the writer.
    ///
    /// # Errors
    /// The first error of any write: what came after it is missing.
    pub fn finish(self) -> Result<W, HistoryError> {
        let mut sink = self.sink.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = sink.broken {
            return Err(HistoryError::Write(error));
        }
        sink.writer.flush().map_err(HistoryError::Write)?;
        Ok(sink.writer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink<W>> {
        self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The time is taken under the lock, so that lines are in order.
    fn write(&self, sink: &mut Sink<W>, event: Event) {
        if sink.broken.is_none() {
            let line = Line { at_nanos: self.now_nanos(), event };
            sink.broken = write_line(&mut sink.writer, &line).err();
        }
    }
}

impl<W> Sink<W> {
    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn write_line(writer: &mut impl Write, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    writer.write_all(&text)
}
