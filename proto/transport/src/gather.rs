//! Many answers in one write.
//!
//! When a batch of writes is applied, the tasks of many requests are woken one after the
//! other. Each wakes the task of its connection, which tokio runs next, before the other
//! requests: every answer would be a system call of its own. And HTTP/2 flushes after each
//! frame of some size, though more follow. So what HTTP/2 flushes is kept while the tasks
//! that are ready have their turn, and goes out in one piece with what they had to say.
//!
//! This relies on how connections of HTTP/2 work: each time that one is polled, it reads,
//! and then flushes. Other protocols pass through.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection of HTTP/2 begins with, whoever speaks.
const PREFACE: &[u8] = b"PRI";

/// More than this is not kept: about what a socket takes at once.
const KEPT_BYTES: usize = 128 << 10;

/// Room for so much stays when nothing is to be written.
const IDLE_BYTES: usize = 4 << 10;

/// A frame as large as they may be: another of the same message is likely to follow.
const WHOLE_FRAME_BYTES: usize = 16 << 10;

/// A connection that has given way so often in a row for nothing does so no more, but for
/// every so many flushes, to see whether others have something to say meanwhile.
const FRUITLESS_TURNS: u8 = 4;
const FLUSHES_PER_TRY: u8 = 32;

/// A stream whose writer lets the tasks that are ready run before it writes.
pub struct Gathering<S> {
    stream: S,
    protocol: Protocol,
    kept: Vec<u8>,
    /// How much of it was written.
    written: usize,
    turn: Turn,
    /// How often it gave way in a row and found nothing more to write.
    fruitless: u8,
    /// Flushes since it gave way last.
    flushes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Unknown,
    Http2,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// What is flushed now may wait.
    Own,
    /// It has given way with so many bytes, and woken itself.
    Others(usize),
    /// It is back: what it has goes out.
    Back(usize),
    /// It goes out.
    Writing,
}

impl<S> Gathering<S> {
    /// Wraps a stream.
    pub fn new(stream: S) -> Self {
        let (kept, written) = (Vec::new(), 0);
        Self { stream, protocol: Protocol::Unknown, kept, written, turn: Turn::Own, fruitless: 0, flushes: 0 }
    }

    /// Looks at the first bytes, read or written.
    fn recognize(&mut self, first: &[u8]) {
        if self.protocol == Protocol::Unknown && !first.is_empty() {
            self.protocol = if first.starts_with(PREFACE) { Protocol::Http2 } else { Protocol::Other };
        }
    }

    /// Whether what is flushed now has to wait for what others say.
    fn gives_way(&mut self) -> bool {
        self.flushes = self.flushes.saturating_add(1);
        let tries = self.fruitless < FRUITLESS_TURNS || self.flushes >= FLUSHES_PER_TRY;
        tries || self.kept.len() >= WHOLE_FRAME_BYTES
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Writes everything that is kept.
    fn poll_kept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.kept[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.written = 0;
        self.kept.clear();
        if self.kept.capacity() > IDLE_BYTES {
            self.kept = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Turn::Others(kept) = this.turn {
            this.turn = Turn::Back(kept);
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.recognize(&buffer.filled()[before..]);
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.recognize(bytes);
        if this.protocol != Protocol::Http2 {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        }
        if this.kept.len() >= KEPT_BYTES {
            ready!(this.poll_kept(context))?;
        }
        this.kept.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.recognize(slices.iter().find(|slice| !slice.is_empty()).map_or(&[], |slice| slice));
        if this.protocol != Protocol::Http2 {
            return Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        }
        if this.kept.len() >= KEPT_BYTES {
            ready!(this.poll_kept(context))?;
        }
        slices.iter().for_each(|slice| this.kept.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    /// So that HTTP/2 puts small frames together itself.
    fn is_write_vectored(&self) -> bool {
        self.protocol == Protocol::Other && self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let turn = this.turn;
        match turn {
            _ if this.kept.is_empty() => {}
            Turn::Own if this.gives_way() => {
                this.flushes = 0;
                this.turn = Turn::Others(this.kept.len());
                // A task that wakes itself goes behind those that are ready.
                context.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
            Turn::Own | Turn::Writing => {}
            Turn::Others(_) => return Poll::Ready(Ok(())),
            Turn::Back(before) => {
                let gained = this.kept.len() > before;
                this.fruitless = if gained { 0 } else { this.fruitless.saturating_add(1) };
            }
        }
        this.turn = Turn::Writing;
        ready!(this.poll_kept(context))?;
        this.turn = Turn::Own;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_kept(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection of HTTP/2 as its task sees it, and the other side.
    struct Connection {
        near: Gathering<DuplexStream>,
        far: DuplexStream,
        wakes: Arc<Wakes>,
    }

    impl Connection {
        fn new(room: usize) -> Self {
            let (near, far) = tokio::io::duplex(room);
            let mut connection = Self { near: Gathering::new(near), far, wakes: Arc::default() };
            connection.write(PREFACE);
            connection
        }

        fn with<T>(&mut self, poll: impl FnOnce(Pin<&mut Gathering<DuplexStream>>, &mut Context<'_>) -> T) -> T {
            let waker = Waker::from(Arc::clone(&self.wakes));
            poll(Pin::new(&mut self.near), &mut Context::from_waker(&waker))
        }

        fn write(&mut self, bytes: &[u8]) {
            let written = self.with(|near, context| near.poll_write(context, bytes));
            assert!(matches!(written, Poll::Ready(Ok(count)) if count == bytes.len()));
        }

        fn flush(&mut self) -> bool {
            self.with(AsyncWrite::poll_flush).is_ready()
        }

        /// Its task is polled: it reads, then flushes. Returns whether the flush was ready.
        fn poll(&mut self) -> bool {
            let mut space = [0; 8];
            let read = self.with(|near, context| near.poll_read(context, &mut ReadBuf::new(&mut space)));
            assert!(read.is_pending());
            self.flush()
        }

        /// How many bytes have come to the other side, and how often the task was to be polled.
        fn arrived(&mut self) -> (usize, usize) {
            let mut space = vec![0; 1 << 20];
            let mut buffer = ReadBuf::new(&mut space);
            let _ = Pin::new(&mut self.far).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
            (buffer.filled().len(), self.wakes.0.swap(0, Ordering::Relaxed))
        }
    }

    #[test]
    fn frames_and_what_others_say_go_out_together() {
        let mut connection = Connection::new(1 << 20);
        for _ in 0..10 {
            connection.write(&[1; 20_000]);
            assert!(connection.flush());
            connection.write(&[1; 20_000]);
            assert!(connection.flush() && connection.flush());
            assert_eq!(connection.arrived(), (0, 1));
            connection.write(b"others");
            assert!(connection.poll());
            let (bytes, wakes) = connection.arrived();
            assert!(wakes == 0 && (bytes == 40_006 || bytes == 40_009), "{bytes}");
        }
    }

    #[test]
    fn who_gives_way_for_nothing_stops_and_tries_again() {
        let mut connection = Connection::new(1 << 20);
        let mut gave_way = Vec::new();
        for _ in 0..100 {
            connection.write(&[1; 300]);
            assert!(connection.flush());
            let (bytes, wakes) = connection.arrived();
            gave_way.push(wakes == 1);
            assert_eq!(bytes == 0, wakes == 1);
            assert!(connection.poll());
            connection.arrived();
        }
        let first = usize::from(FRUITLESS_TURNS);
        assert!(gave_way[..first].iter().all(|gave_way| *gave_way), "{gave_way:?}");
        assert!(!gave_way[first..first + 20].contains(&true), "{gave_way:?}");
        assert!(gave_way[first + 20..].contains(&true), "{gave_way:?}");
        // A message of several frames goes out in one piece all the same.
        connection.write(&[1; WHOLE_FRAME_BYTES]);
        assert!(connection.flush());
        assert_eq!(connection.arrived(), (0, 1));
    }

    #[test]
    fn what_is_kept_is_bounded_and_waits_for_the_reader() {
        let mut connection = Connection::new(1000);
        connection.write(&vec![1; KEPT_BYTES]);
        assert!(connection.flush());
        let more = connection.with(|near, context| near.poll_write(context, b"more"));
        assert!(more.is_pending());
        let mut bytes = 0;
        while !connection.poll() {
            bytes += connection.arrived().0;
        }
        assert_eq!(bytes + connection.arrived().0, PREFACE.len() + KEPT_BYTES);
    }

    #[tokio::test]
    async fn other_protocols_pass_and_the_end_loses_nothing() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut stream = Gathering::new(near);
        stream.write_all(b"HTTP/1.1 200 OK").await.unwrap();
        let mut read = [0; 15];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"HTTP/1.1 200 OK");

        let (near, mut far) = tokio::io::duplex(1000);
        let mut stream = Gathering::new(near);
        stream.write_all(b"PRI and more").await.unwrap();
        stream.flush().await.unwrap();
        stream.shutdown().await.unwrap();
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "PRI and more");
    }
}
