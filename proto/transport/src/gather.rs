//! Many answers in one write.
//!
//! When a batch of writes is applied, the tasks of many requests are woken one after the
//! other. Each wakes the task of its connection, which tokio runs next, before the other
//! requests: every answer would be a system call of its own. A connection that gives way
//! once before it writes finds the answers of all of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writer lets the tasks that are ready run before it writes.
pub struct Gathering<S> {
    stream: S,
    /// It has given way since the last flush.
    gave_way: bool,
}

impl<S> Gathering<S> {
    /// Wraps a stream whose user keeps what it cannot write yet, as those of HTTP do.
    pub fn new(stream: S) -> Self {
        Self { stream, gave_way: false }
    }

    /// Ready the second time that it is asked.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.gave_way {
            return Poll::Ready(());
        }
        self.gave_way = true;
        // A task that wakes itself goes behind those that are ready.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(context));
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(context));
        Pin::new(&mut this.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.gave_way = false;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_others_have_to_say_comes_before_the_write() {
        let (near, mut far) = tokio::io::duplex(1024);
        let said = Arc::new(Mutex::new(Vec::new()));
        let note = |word: &'static str| {
            let said = Arc::clone(&said);
            async move { said.lock().unwrap().push(word) }
        };
        let other = tokio::spawn(note("other"));
        let mut stream = Gathering::new(near);
        stream.write_all(b"first").await.unwrap();
        note("written").await;
        // One turn until the next flush.
        stream.write_all(b"second").await.unwrap();
        stream.flush().await.unwrap();
        other.await.unwrap();
        assert_eq!(*said.lock().unwrap(), ["other", "written"]);
        drop(stream);
        let mut read = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut far, &mut read).await.unwrap();
        assert_eq!(read, "firstsecond");
    }
}
