//! The short way of the calls that a store lives by: one message in, one out, without the
//! layers that every other request passes.
//!
//! A request that is unusual in any way (several pieces, compressed, too large, a method
//! that is not here, a learner) takes the long way, which also knows what to refuse.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Either};
use hyper::body::{Body as HttpBody, Frame, Incoming};
use quorate_proto::etcd::kv_server::Kv as _;
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::{Code, Status};
use tower::ServiceExt;

use super::kv::Kv;
use super::observe::Observe;
use crate::mvcc::{EngineError, Rest, is_plain};

/// A message of gRPC begins with whether it is compressed and with its length.
const PREFIX_BYTES: usize = 5;

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";

/// The client port: the short way where it leads, and the long one.
#[derive(Clone)]
pub(crate) struct Front(Arc<Ways>);

struct Ways {
    kv: Kv,
    observe: Observe,
    max_receive_bytes: usize,
    router: Router,
}

impl Front {
    pub(super) fn new(kv: Kv, observe: Observe, max_receive_bytes: usize, router: Router) -> Self {
        Self(Arc::new(Ways { kv, observe, max_receive_bytes, router }))
    }
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Either<Reply, Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let ways = Arc::clone(&self.0);
        Box::pin(async move {
            let request = match ways.is_short(&request) {
                true => {
                    let (parts, mut body) = request.into_parts();
                    match message(&mut body, ways.max_receive_bytes).await {
                        Ok(message) => return Ok(ways.answer(parts, message).await.map(Either::Left)),
                        Err(read) => Request::from_parts(parts, Body::new(Again { read, rest: body })),
                    }
                }
                false => request.map(Body::new),
            };
            ways.router.clone().oneshot(request).await.map(|response| response.map(Either::Right))
        })
    }
}

impl Ways {
    fn is_short(&self, request: &Request<Incoming>) -> bool {
        matches!(request.uri().path(), RANGE | PUT | DELETE_RANGE | TXN)
            && request.version() == Version::HTTP_2
            && !self.kv.0.serves_as_learner()
    }

    async fn answer(&self, parts: Parts, message: Bytes) -> Response<Reply> {
        let path = parts.uri.path();
        let call = self.observe.call(path, PREFIX_BYTES + message.len());
        let request = |parts: Parts| (MetadataMap::from_headers(parts.headers), parts.extensions);
        let kv = &self.kv;
        let answered = match path {
            RANGE => range(request(parts), message, kv).await,
            PUT => unary(request(parts), message, |request| kv.put(request)).await,
            DELETE_RANGE => unary(request(parts), message, |request| kv.delete_range(request)).await,
            _ => unary(request(parts), message, |request| kv.txn(request)).await,
        };
        match answered {
            Ok((data, length, rest)) => {
                if let Some(call) = call {
                    call.done(Code::Ok, length);
                }
                let reply = Reply { data: Some(data), rest, trailers: Some(trailers()) };
                let mut response = Response::new(reply);
                response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
                response
            }
            Err(status) => {
                if let Some(call) = call {
                    call.done(status.code(), 0);
                }
                status.into_http()
            }
        }
    }
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
    trailers
}

/// What is sent at once, the length of all of it, and what follows.
type Message = (Bytes, usize, Option<Rest>);

/// A range of many keys in their order is encoded from the rows, and comes in pieces when
/// it is large.
async fn range(
    (metadata, extensions): (MetadataMap, http::Extensions),
    message: Bytes,
    kv: &Kv,
) -> Result<Message, Status> {
    let request = tonic::Request::from_parts(metadata, extensions, decode(message)?);
    if !is_plain(request.get_ref()) {
        return whole(kv.range(request).await?.into_inner());
    }
    let (header, listing) = kv.list(request).await?;
    let (first, length, rest) = listing.into_message(header);
    let mut data = BytesMut::with_capacity(PREFIX_BYTES + first.len());
    put_prefix(&mut data, length)?;
    data.put_slice(&first);
    Ok((data.freeze(), PREFIX_BYTES + length, rest))
}

fn decode<Q: prost::Message + Default>(message: Bytes) -> Result<Q, Status> {
    Q::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// # Errors
/// When a message cannot be so long.
pub(super) fn put_prefix(buffer: &mut BytesMut, length: usize) -> Result<(), Status> {
    let prefix = u32::try_from(length).map_err(|_| {
        Status::resource_exhausted(format!("Cannot return body with more than 4GB of data but got {length} bytes"))
    })?;
    buffer.put_u8(0);
    buffer.put_u32(prefix);
    Ok(())
}

/// Decodes, runs, and encodes with the prefix.
async fn unary<Q, A, F>(
    (metadata, extensions): (MetadataMap, http::Extensions),
    message: Bytes,
    run: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<Message, Status>
where
    Q: prost::Message + Default,
    A: prost::Message,
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    whole(run(tonic::Request::from_parts(metadata, extensions, decode(message)?)).await?.into_inner())
}

fn whole(answer: impl prost::Message) -> Result<Message, Status> {
    let length = PREFIX_BYTES + answer.encoded_len();
    let mut buffer = BytesMut::with_capacity(length);
    put_prefix(&mut buffer, length - PREFIX_BYTES)?;
    answer.encode_raw(&mut buffer);
    Ok((buffer.freeze(), length, None))
}

/// The one message of a request, or the pieces that were read of something else.
async fn message(body: &mut Incoming, max_bytes: usize) -> Result<Bytes, VecDeque<Bytes>> {
    let mut read = VecDeque::new();
    while !body.is_end_stream() {
        // Whoever reads on finds out why it ended.
        let Some(Ok(frame)) = body.frame().await else { break };
        let Ok(data) = frame.into_data() else { break };
        if data.is_empty() {
            continue;
        }
        read.push_back(data);
        if read.len() > 1 || !is_message(&read[0], max_bytes) {
            return Err(read);
        }
    }
    match read.pop_front() {
        Some(data) => Ok(data.slice(PREFIX_BYTES..)),
        None => Err(read),
    }
}

/// Whether `data` is exactly one message, as it is and not too large.
fn is_message(data: &[u8], max_bytes: usize) -> bool {
    match data {
        [0, a, b, c, d, message @ ..] => {
            message.len() <= max_bytes && u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len()
        }
        _ => false,
    }
}

/// A body of which some was read.
struct Again {
    read: VecDeque<Bytes>,
    rest: Incoming,
}

impl HttpBody for Again {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.read.pop_front() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }
}

/// One message and the status behind it; empty when the status is in the headers.
#[derive(Default)]
pub(crate) struct Reply {
    data: Option<Bytes>,
    rest: Option<Rest>,
    trailers: Option<HeaderMap>,
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = EngineError;

    /// Asked for more only as the client reads.
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(rest) = &mut self.rest {
            match rest.piece() {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Ok(None) => self.rest = None,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a range cannot be read to its end");
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.rest.is_none() && self.trailers.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_plain_message_goes_the_short_way() {
        let check = |data: &[u8], expected| assert_eq!(is_message(data, 3), expected, "{data:?}");
        check(&[0, 0, 0, 0, 0], true);
        check(&[0, 0, 0, 0, 3, 1, 2, 3], true);
        check(&[0, 0, 0, 0, 4, 1, 2, 3, 4], false);
        check(&[1, 0, 0, 0, 1, 1], false);
        check(&[0, 0, 0, 0, 2, 1], false);
        check(&[0, 0, 0, 0, 1, 1, 0], false);
        check(&[0, 0, 0], false);
        check(&[], false);
    }

    #[tokio::test]
    async fn a_reply_is_its_message_and_then_its_status() {
        let reply = Reply { data: Some(Bytes::from_static(b"m")), trailers: Some(trailers()), ..Reply::default() };
        let whole = reply.collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap().get("grpc-status").unwrap(), "0");
        assert_eq!(whole.to_bytes(), "m");
        assert!(Reply::default().is_end_stream());
    }
}
