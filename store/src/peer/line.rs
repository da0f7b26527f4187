//! A line to a peer: the short way of what members say to each other all the time.
//!
//! One connection and one task that reads and writes it; who has something to say puts it
//! into the [`Outbox`], and what waits there goes out in one write. A call costs two frames,
//! no stream of HTTP/2 and no task.
//!
//! Always: frames arrive in the order they were put. When the connection ends, every call
//! and stream on it ends with an error; nothing is sent twice, and nothing is dialled again
//! by itself: who needs the peer asks [`super::Peers::line`] for another line.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::raft as wire;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::dial::CONNECT_TIMEOUT;
use super::frame::{self, Frame, Kind, MAGIC};
use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};

/// Bytes that wait to be written before who has more to say has to wait; one message more
/// always fits. As much as is in flight to a peer a hundred milliseconds away.
const MAX_WAITING_BYTES: usize = 8 << 20;

/// What is read at once, and what buffers shrink to after a large message.
const BUFFER_BYTES: usize = 64 << 10;

/// Answers of a stream that wait for its user; the library has as many requests under way.
const MAX_ANSWERS: usize = 64;

/// A peer that was silent for so long is gone: the end that has dialled asks every second.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// What waits to be written on one connection.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: BytesMut,
    closed: bool,
}

impl Outbox {
    /// Puts a frame behind those that wait, without waiting for room: for answers, whose
    /// number is bounded by the requests. Returns the length of its body.
    pub(super) fn push(&self, kind: Kind, number: u32, message: &impl Message) -> usize {
        let mut waiting = self.lock();
        // Nobody will read it.
        if waiting.closed {
            return 0;
        }
        let length = frame::put(&mut waiting.bytes, kind, number, message);
        drop(waiting);
        self.filled.notify_one();
        length
    }

    pub(super) fn refuse(&self, number: u32, status: &Status) {
        let mut waiting = self.lock();
        if !waiting.closed {
            frame::put_refusal(&mut waiting.bytes, number, status);
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Puts a frame once there is room. Cancel-safe: put or not.
    async fn put(&self, kind: Kind, number: u32, message: &impl Message) -> Result<usize, Status> {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // From here on: what is emptied after the look below is not missed.
            emptied.as_mut().enable();
            {
                let waiting = self.lock();
                if waiting.closed {
                    return Err(broken("it is closed"));
                }
                if waiting.bytes.len() < MAX_WAITING_BYTES {
                    drop(waiting);
                    return Ok(self.push(kind, number, message));
                }
            }
            emptied.await;
        }
    }

    /// Writes what is put, until the connection fails or all is written and this is closed.
    pub(super) async fn pour(&self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut writing = BytesMut::new();
        loop {
            let closed = {
                let mut waiting = self.lock();
                mem::swap(&mut waiting.bytes, &mut writing);
                waiting.closed
            };
            if writing.is_empty() {
                if closed {
                    return Ok(());
                }
                self.filled.notified().await;
                continue;
            }
            self.emptied.notify_waiters();
            stream.write_all(&writing).await?;
            stream.flush().await?;
            writing.clear();
            if writing.capacity() > BUFFER_BYTES {
                writing = BytesMut::new();
            }
        }
    }

    /// Takes no more. What waits is still written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads frames.
pub(super) struct Reader<S> {
    stream: S,
    read: BytesMut,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: BytesMut::with_capacity(BUFFER_BYTES) }
    }

    /// The next frame. Cancel-safe.
    ///
    /// # Errors
    /// When the connection fails or ends, or what comes is no frame.
    pub(super) async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = frame::take(&mut self.read)? {
                return Ok(frame);
            }
            // Grows with what has come, not with what the peer says will come.
            self.read.reserve(BUFFER_BYTES.max(self.read.len()));
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Who waits for an answer.
enum Waiter {
    Call(oneshot::Sender<Result<Bytes, Status>>),
    Stream(mpsc::Sender<Result<Bytes, Status>>),
}

/// Who waits, by number; none once the line is closed.
struct Waiters(Mutex<Option<HashMap<u32, Waiter>>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u32, Waiter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, number: u32, waiter: Waiter) -> Result<(), Status> {
        self.lock().as_mut().ok_or_else(|| broken("it is closed"))?.insert(number, waiter);
        Ok(())
    }

    fn take(&self, number: u32) -> Option<Waiter> {
        self.lock().as_mut()?.remove(&number)
    }

    /// Hands over an answer. Nobody may wait any more.
    async fn answer(&self, number: u32, answer: Result<Bytes, Status>) {
        let stream = match self.lock().as_mut().and_then(|waiting| waiting.get(&number)) {
            Some(Waiter::Stream(stream)) => Some(stream.clone()),
            _ => None,
        };
        match stream {
            Some(stream) => drop(stream.send(answer).await),
            None => {
                if let Some(Waiter::Call(call)) = self.take(number) {
                    // Its caller has gone away in this moment.
                    let _ = call.send(answer);
                }
            }
        }
    }

    fn close(&self, status: &Status) {
        for waiter in self.lock().take().into_iter().flat_map(HashMap::into_values) {
            match waiter {
                Waiter::Call(call) => drop(call.send(Err(status.clone()))),
                // One that is full ends as well, a few answers later.
                Waiter::Stream(stream) => drop(stream.try_send(Err(status.clone()))),
            }
        }
    }
}

fn broken(reason: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("quorate: the line to a peer is broken: {reason}"))
}

/// This member's end of a line that it has opened. The line ends with its last handle.
#[derive(Clone)]
pub(crate) struct Line(Arc<Inner>);

struct Inner {
    outbox: Arc<Outbox>,
    waiters: Arc<Waiters>,
    last: AtomicU32,
    _task: AbortOnDropHandle<()>,
}

impl Line {
    /// Opens a line over the connection that `dial` makes. `hello` is checked by the peer
    /// with every frame.
    pub(super) fn open<S>(dial: impl Future<Output = io::Result<S>> + Send + 'static, hello: wire::Origin) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (outbox, waiters) = (Arc::new(Outbox::default()), Arc::new(Waiters(Mutex::new(Some(HashMap::new())))));
        outbox.lock().bytes.put_slice(MAGIC);
        outbox.push(Kind::Hello, 0, &hello);
        let task = run(dial, Arc::clone(&outbox), Arc::clone(&waiters));
        let _task = AbortOnDropHandle::new(tokio::spawn(task));
        Self(Arc::new(Inner { outbox, waiters, last: AtomicU32::new(0), _task }))
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.waiters.lock().is_some()
    }

    fn number(&self) -> u32 {
        self.0.last.fetch_add(1, Ordering::Relaxed)
    }

    /// The index below which this member's clients see every write acknowledged so far.
    ///
    /// # Errors
    /// What the peer refuses with; `Unavailable` when the line breaks.
    pub(crate) async fn read_index(&self) -> Result<u64, Status> {
        let answer: wire::ReadIndexResponse = self.call(Kind::ReadIndex, &wire::ReadIndexRequest {}).await?.1;
        Ok(answer.index)
    }

    /// Has the leader propose commands; returns the entry of the last.
    ///
    /// # Errors
    /// As [`Line::read_index`]; the outcome of the commands is then unknown.
    pub(crate) async fn propose(&self, commands: Vec<Bytes>) -> Result<u64, Status> {
        let answer: wire::ProposeResponse = self.call(Kind::Propose, &wire::ProposeRequest { commands }).await?.1;
        Ok(answer.index)
    }

    /// Has the leader renew leases; returns the seconds that each has then, 0 for an unknown
    /// one, none for one whose answer takes longer: [`Line::renew`] waits for it.
    ///
    /// # Errors
    /// As [`Line::read_index`].
    pub(crate) async fn renew_all(&self, leases: Vec<i64>) -> Result<Vec<Option<i64>>, Status> {
        self.ask_to_renew(wire::RenewRequest { leases, patient: false }).await
    }

    /// As [`Line::renew_all`], of one lease.
    ///
    /// # Errors
    /// As [`Line::read_index`].
    pub(crate) async fn renew(&self, lease: i64) -> Result<i64, Status> {
        let renewed = self.ask_to_renew(wire::RenewRequest { leases: vec![lease], patient: true }).await?;
        renewed.into_iter().flatten().next().ok_or_else(incomplete)
    }

    async fn ask_to_renew(&self, request: wire::RenewRequest) -> Result<Vec<Option<i64>>, Status> {
        let answer: wire::RenewResponse = self.call(Kind::Renew, &request).await?.1;
        match answer.ttls.len() == request.leases.len() {
            true => Ok(answer.ttls.into_iter().map(|ttl| (ttl >= 0).then_some(ttl)).collect()),
            false => Err(incomplete()),
        }
    }

    /// Seconds that are left of a lease, none for an unknown one; and the entry by which its
    /// grant is known wherever it is applied.
    ///
    /// # Errors
    /// As [`Line::read_index`].
    pub(crate) async fn time_left(&self, lease: i64) -> Result<(Option<i64>, u64), Status> {
        let answer: wire::TimeLeftResponse = self.call(Kind::TimeLeft, &wire::TimeLeftRequest { lease }).await?.1;
        Ok(((answer.left >= 0).then_some(answer.left), answer.index))
    }

    /// Sends an append without entries; returns its size, too.
    ///
    /// # Errors
    /// As [`Line::read_index`].
    pub(crate) async fn heartbeat(
        &self,
        request: &wire::AppendRequest,
    ) -> Result<(usize, wire::AppendResponse), Status> {
        self.call(Kind::Heartbeat, request).await
    }

    /// Asks, and waits for the answer. Who stops waiting has asked all the same.
    async fn call<A: Message + Default>(&self, kind: Kind, request: &impl Message) -> Result<(usize, A), Status> {
        let number = self.number();
        let (call, answer) = oneshot::channel();
        self.0.waiters.add(number, Waiter::Call(call))?;
        let asking = Asking { line: self, number };
        let sent = self.0.outbox.put(kind, number, request).await?;
        let answer = answer.await.map_err(|_| broken("it is closed"))??;
        mem::forget(asking);
        Ok((sent, decoded(answer)?))
    }

    /// Begins a stream of appends, which are answered in their order.
    ///
    /// # Errors
    /// `Unavailable` when the line is broken.
    pub(crate) fn appends(&self) -> Result<(Appends, Answers), Status> {
        let number = self.number();
        let (stream, answers) = mpsc::channel(MAX_ANSWERS);
        self.0.waiters.add(number, Waiter::Stream(stream))?;
        Ok((Appends { line: self.clone(), number }, Answers { line: self.clone(), number, answers }))
    }
}

fn incomplete() -> Status {
    Status::internal("quorate: a peer's answer does not say what was asked")
}

fn decoded<A: Message + Default>(answer: Bytes) -> Result<A, Status> {
    A::decode(answer).map_err(|error| Status::internal(format!("quorate: a peer's answer does not decode: {error}")))
}

/// Takes its call out again when nobody waits for the answer.
struct Asking<'a> {
    line: &'a Line,
    number: u32,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.line.0.waiters.take(self.number);
    }
}

/// The requests of a stream. Dropping it ends the stream: its answers come to their end.
pub(crate) struct Appends {
    line: Line,
    number: u32,
}

impl Appends {
    /// Sends the next one; returns its size. Cancel-safe: sent or not.
    ///
    /// # Errors
    /// `Unavailable` when the line is broken.
    pub(crate) async fn send(&self, request: &wire::AppendRequest) -> Result<usize, Status> {
        self.line.0.outbox.put(Kind::Append, self.number, request).await
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.line.0.outbox.push(Kind::AppendEnd, self.number, &());
    }
}

/// The answers of a stream of appends.
pub(crate) struct Answers {
    line: Line,
    number: u32,
    answers: mpsc::Receiver<Result<Bytes, Status>>,
}

impl Answers {
    /// The next one; none when the peer has answered everything. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Result<wire::AppendResponse, Status>> {
        Some(self.answers.recv().await?.and_then(decoded))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // A peer that refuses a stream does not say when it ends.
        self.line.0.waiters.take(self.number);
    }
}

/// Dials, reads and writes until either fails; then nobody waits any more.
async fn run<S>(dial: impl Future<Output = io::Result<S>>, outbox: Arc<Outbox>, waiters: Arc<Waiters>)
where
    S: AsyncRead + AsyncWrite,
{
    let failed = match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
        Ok(Ok(stream)) => {
            let (reading, writing) = tokio::io::split(stream);
            tokio::select! {
                error = listen(reading, &outbox, &waiters) => error,
                poured = outbox.pour(writing) => poured.err().unwrap_or_else(|| io::ErrorKind::NotConnected.into()),
            }
        }
        Ok(Err(error)) => error,
        Err(elapsed) => elapsed.into(),
    };
    outbox.close();
    waiters.close(&broken(failed));
}

async fn listen(stream: ReadHalf<impl AsyncRead>, outbox: &Outbox, waiters: &Waiters) -> io::Error {
    let mut frames = Reader::new(stream);
    // Asked once whether anybody is there, since the last frame came.
    let mut asked = false;
    loop {
        let patience = if asked { KEEPALIVE_TIMEOUT } else { KEEPALIVE_INTERVAL };
        let Frame { kind, number, body } = match tokio::time::timeout(patience, frames.next()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return error,
            Err(_) if !asked => {
                asked = true;
                outbox.push(Kind::Ping, 0, &());
                continue;
            }
            Err(elapsed) => return elapsed.into(),
        };
        asked = false;
        match kind {
            Kind::Answer => waiters.answer(number, Ok(body)).await,
            Kind::Refusal => waiters.answer(number, Err(frame::refusal(&body))).await,
            Kind::AnswerEnd => drop(waiters.take(number)),
            Kind::Pong => {}
            _ => return io::Error::new(io::ErrorKind::InvalidData, format!("a peer answers with {kind:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line, and the other end of its connection, which has read the hello.
    async fn open() -> (Line, Reader<ReadHalf<tokio::io::DuplexStream>>, tokio::io::WriteHalf<tokio::io::DuplexStream>)
    {
        let (near, far) = tokio::io::duplex(1 << 20);
        let line = Line::open(async { Ok(near) }, wire::Origin { cluster_id: 7, ..Default::default() });
        let (mut reading, writing) = tokio::io::split(far);
        let mut magic = [0; MAGIC.len()];
        reading.read_exact(&mut magic).await.unwrap();
        assert_eq!(magic, *MAGIC);
        let mut frames = Reader::new(reading);
        let hello = frames.next().await.unwrap();
        assert_eq!((hello.kind, wire::Origin::decode(hello.body).unwrap().cluster_id), (Kind::Hello, 7));
        (line, frames, writing)
    }

    fn waiting(line: &Line) -> usize {
        line.0.waiters.lock().as_ref().map_or(0, HashMap::len)
    }

    #[tokio::test]
    async fn calls_are_answered_by_their_numbers_in_any_order() {
        let (line, mut frames, mut peer) = open().await;
        let answers = async {
            let (first, second) = (frames.next().await.unwrap(), frames.next().await.unwrap());
            let mut bytes = BytesMut::new();
            frame::put_refusal(&mut bytes, second.number, &Status::failed_precondition("no"));
            frame::put(&mut bytes, Kind::Answer, 99, &wire::ReadIndexResponse { index: 1 });
            frame::put(&mut bytes, Kind::Answer, first.number, &wire::ReadIndexResponse { index: 5 });
            peer.write_all(&bytes).await.unwrap();
        };
        let (first, second, ()) = tokio::join!(line.read_index(), line.propose(vec!["a".into()]), answers);
        assert_eq!(first.unwrap(), 5);
        assert_eq!(second.unwrap_err().message(), "no");
        assert_eq!(waiting(&line), 0);
        let given_up = tokio::time::timeout(Duration::from_millis(1), line.read_index());
        assert!(given_up.await.is_err());
        assert_eq!(waiting(&line), 0, "nobody waits for that answer");
    }

    #[tokio::test]
    async fn an_answer_to_renewals_is_for_all_of_them() {
        let (line, mut frames, mut peer) = open().await;
        let answers = async {
            for ttls in [vec![60, 0, -1], vec![60], vec![30]] {
                let asked = frames.next().await.unwrap();
                assert_eq!(asked.kind, Kind::Renew);
                let mut bytes = BytesMut::new();
                frame::put(&mut bytes, Kind::Answer, asked.number, &wire::RenewResponse { ttls });
                peer.write_all(&bytes).await.unwrap();
            }
        };
        let asking = async {
            assert_eq!(line.renew_all(vec![1, 2, 3]).await.unwrap(), [Some(60), Some(0), None]);
            assert!(line.renew_all(vec![1, 2]).await.is_err(), "whose is it?");
            assert_eq!(line.renew(1).await.unwrap(), 30);
        };
        tokio::join!(answers, asking);
    }

    #[tokio::test]
    async fn the_end_of_the_connection_ends_every_call_and_stream() {
        let (line, frames, peer) = open().await;
        let (_appends, mut answers) = line.appends().unwrap();
        let gone = async { drop((frames, peer)) };
        let (asked, ()) = tokio::join!(line.read_index(), gone);
        assert_eq!(asked.unwrap_err().code(), tonic::Code::Unavailable);
        assert!(answers.next().await.unwrap().is_err());
        assert!(answers.next().await.is_none());
        assert!(!line.is_open() && line.appends().is_err());
        assert!(line.read_index().await.is_err());
    }

    #[tokio::test]
    async fn a_stream_that_is_refused_leaves_nothing() {
        let (line, mut frames, mut peer) = open().await;
        let (appends, mut answers) = line.appends().unwrap();
        appends.send(&wire::AppendRequest::default()).await.unwrap();
        let request = frames.next().await.unwrap();
        assert_eq!(request.kind, Kind::Append);
        let mut bytes = BytesMut::new();
        frame::put_refusal(&mut bytes, request.number, &Status::failed_precondition("no"));
        peer.write_all(&bytes).await.unwrap();
        assert!(answers.next().await.unwrap().is_err());
        drop((appends, answers));
        assert_eq!(waiting(&line), 0);
        assert_eq!(frames.next().await.unwrap().kind, Kind::AppendEnd);
    }

    #[tokio::test]
    async fn what_was_put_is_written_before_the_end() {
        let outbox = Outbox::default();
        let (near, far) = tokio::io::duplex(8);
        let long = wire::ProposeRequest { commands: vec![vec![1; 1000].into()] };
        outbox.push(Kind::Propose, 1, &long);
        outbox.close();
        assert_eq!(outbox.push(Kind::Propose, 2, &long), 0);
        let mut frames = Reader::new(far);
        let (poured, frame) = tokio::join!(outbox.pour(near), frames.next());
        poured.unwrap();
        assert_eq!((frame.unwrap().number, frames.next().await.is_err()), (1, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_asked_and_then_given_up() {
        let (line, mut frames, _peer) = open().await;
        assert_eq!(frames.next().await.unwrap().kind, Kind::Ping);
        assert!(frames.next().await.is_err(), "the line has closed its connection");
        assert!(!line.is_open());
    }
}
