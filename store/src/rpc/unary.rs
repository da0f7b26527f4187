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
use prost::Message;
use quorate_proto::etcd::kv_server::Kv as _;
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::{Code, Status};
use tower::ServiceExt;

use super::kv::Kv;
use super::observe::Observe;

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
            RANGE => unary(request(parts), message, |request| kv.range(request)).await,
            PUT => unary(request(parts), message, |request| kv.put(request)).await,
            DELETE_RANGE => unary(request(parts), message, |request| kv.delete_range(request)).await,
            _ => unary(request(parts), message, |request| kv.txn(request)).await,
        };
        match answered {
            Ok(data) => {
                if let Some(call) = call {
                    call.done(Code::Ok, data.len());
                }
                let reply = Reply { data: Some(data), trailers: Some(trailers()) };
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

/// Decodes, runs, and encodes with the prefix.
async fn unary<Q, A, F>(
    (metadata, extensions): (MetadataMap, http::Extensions),
    message: Bytes,
    run: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<Bytes, Status>
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<tonic::Response<A>, Status>>,
{
    let message = Q::decode(message).map_err(|error| Status::internal(error.to_string()))?;
    let answer = run(tonic::Request::from_parts(metadata, extensions, message)).await?.into_inner();
    let length = answer.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| {
        Status::resource_exhausted(format!("Cannot return body with more than 4GB of data but got {length} bytes"))
    })?;
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(prefix);
    // It has room for all of it.
    answer.encode(&mut buffer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(buffer.freeze())
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
    trailers: Option<HeaderMap>,
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
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
        let reply = Reply { data: Some(Bytes::from_static(b"m")), trailers: Some(trailers()) };
        let whole = reply.collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap().get("grpc-status").unwrap(), "0");
        assert_eq!(whole.to_bytes(), "m");
        assert!(Reply::default().is_end_stream());
    }
}
