//! The answering end of a line.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use prost::Message;
use quorate_proto::raft as wire;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::frame::{Frame, Kind, MAGIC};
use super::line::{Outbox, Reader, SILENCE};
use super::server::PeerService;
use crate::telemetry;

/// Calls of one line that are being answered; no further frame is read meanwhile.
const MAX_CALLS: usize = 1024;

/// A call that takes longer is given up: its caller asks somebody else before.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long calls under way may take once this member closes.
const DRAIN: Duration = Duration::from_secs(2);

/// Appends that wait for consensus.
const APPEND_QUEUE: usize = 4;

/// Answers what comes on a line until it breaks, or `cancel`.
pub(crate) async fn serve(
    service: Arc<PeerService>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    cancel: CancellationToken,
) {
    let (mut reading, writing) = tokio::io::split(stream);
    let outbox = Arc::new(Outbox::default());
    let answered = async {
        let mut magic = [0; MAGIC.len()];
        reading.read_exact(&mut magic).await?;
        if magic != *MAGIC {
            return Err(invalid("it begins with something else"));
        }
        answer(service, Reader::new(reading), &outbox, cancel).await
    };
    let pouring = outbox.pour(writing);
    tokio::pin!(pouring);
    let mut ended = tokio::select! {
        ended = answered => ended,
        poured = pouring.as_mut() => poured,
    };
    outbox.close();
    if ended.is_ok() {
        // What was answered last.
        ended = tokio::time::timeout(DRAIN, pouring).await.unwrap_or(Ok(()));
    }
    if let Err(error) = ended {
        tracing::debug!(%error, "a peer's line has ended");
    }
}

async fn answer(
    service: Arc<PeerService>,
    mut frames: Reader<impl AsyncRead + Unpin>,
    outbox: &Arc<Outbox>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let hello = tokio::time::timeout(SILENCE, frames.next()).await??;
    if hello.kind != Kind::Hello {
        return Err(invalid("it has no hello"));
    }
    let origin = wire::Origin::decode(hello.body)?;
    // Looked up once its sender is admitted: anybody can give any name.
    let received = OnceLock::new();
    let received = || received.get_or_init(|| telemetry::received(origin.from_member));
    let mut calls = FuturesUnordered::new();
    let mut appends: Option<Appends> = None;
    loop {
        let Frame { kind, number, body } = tokio::select! {
            Some(()) = calls.next(), if !calls.is_empty() => continue,
            () = cancel.cancelled() => break,
            frame = tokio::time::timeout(SILENCE, frames.next()), if calls.len() < MAX_CALLS => frame??,
        };
        match kind {
            Kind::Ping => drop(outbox.push(Kind::Pong, 0, &())),
            Kind::Append => {
                let stream = match appends.take() {
                    Some(stream) if stream.number == number => stream,
                    _ => Appends::begin(&service, number, outbox),
                };
                let length = body.len();
                // One that is not for this member ends the stream.
                match service.append_request(&origin, body) {
                    Ok(request) => {
                        received().increment(length as u64);
                        // Nobody takes it: then its answers have ended already.
                        let _ = stream.requests.send(request).await;
                        appends = Some(stream);
                    }
                    Err(status) => {
                        tracing::debug!(%status, "a peer's stream of entries has ended");
                        outbox.refuse(number, &status);
                    }
                }
            }
            Kind::AppendEnd => {
                if let Some(Appends { requests, answers, .. }) = appends.take_if(|stream| stream.number == number) {
                    drop(requests);
                    // What was asked is answered, also while another stream begins.
                    calls.push(Box::pin(async move { drop(answers.await) }) as Call<'_>);
                }
            }
            Kind::Heartbeat | Kind::Propose | Kind::ReadIndex | Kind::Renew | Kind::TimeLeft => {
                let (service, outbox, received) = (&service, &outbox, &received);
                calls.push(Box::pin(async move {
                    let length = body.len();
                    let answer = async {
                        service.admit(Some(&origin))?;
                        if kind == Kind::Heartbeat {
                            received().increment(length as u64);
                        }
                        respond(service, kind, number, body, outbox).await
                    };
                    let answered = tokio::time::timeout(MAX_ANSWER_TIME, answer).await;
                    if let Err(status) =
                        answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("quorate: no answer")))
                    {
                        outbox.refuse(number, &status);
                    }
                }));
            }
            _ => return Err(invalid(format!("it asks with {kind:?}"))),
        }
    }
    // The leader of tomorrow takes new ones; these may still be answered.
    let _ = tokio::time::timeout(DRAIN, async { while calls.next().await.is_some() {} }).await;
    Ok(())
}

type Call<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

async fn respond(service: &PeerService, kind: Kind, number: u32, body: Bytes, outbox: &Outbox) -> Result<(), Status> {
    match kind {
        Kind::Heartbeat => drop(outbox.push(Kind::Answer, number, &service.heartbeat(decoded(body)?).await?)),
        Kind::Propose => drop(outbox.push(Kind::Answer, number, &service.propose(decoded(body)?).await?)),
        Kind::Renew => drop(outbox.push(Kind::Answer, number, &service.renew(decoded(body)?).await?)),
        Kind::TimeLeft => drop(outbox.push(Kind::Answer, number, &service.time_left(decoded(body)?).await?)),
        _ => drop(outbox.push(Kind::Answer, number, &service.read_index().await?)),
    }
    Ok(())
}

/// The stream of appends that is open.
struct Appends {
    number: u32,
    requests: mpsc::Sender<wire::AppendRequest>,
    /// Ends with the last answer, or when this is dropped.
    answers: AbortOnDropHandle<()>,
}

impl Appends {
    fn begin(service: &PeerService, number: u32, outbox: &Arc<Outbox>) -> Self {
        let (requests, queue) = mpsc::channel(APPEND_QUEUE);
        let answers = tell(service.appends(ReceiverStream::new(queue)), number, Arc::clone(outbox));
        Self { number, requests, answers: AbortOnDropHandle::new(tokio::spawn(answers)) }
    }
}

async fn tell(answers: impl Stream<Item = Result<wire::AppendResponse, Status>>, number: u32, outbox: Arc<Outbox>) {
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => drop(outbox.push(Kind::Answer, number, &answer)),
            Err(status) => outbox.refuse(number, &status),
        }
    }
    outbox.push(Kind::AnswerEnd, number, &());
}

pub(super) fn decoded<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body)
        .map_err(|error| Status::invalid_argument(format!("quorate: a peer's message does not decode: {error}")))
}

fn invalid(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a peer's line is not valid: {reason}"))
}
