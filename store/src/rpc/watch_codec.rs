//! How watch responses become bytes: their events are encoded already.
//!
//! The server that is generated from the service would encode each event for each
//! watcher; this one copies.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use http::request::Request as HttpRequest;
use http::response::Response as HttpResponse;
use prost::Message;
use quorate_proto::etcd::{WatchRequest, WatchResponse};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use super::watch::{Replies, Watch};
use crate::watch::EncodedEvent;

/// `events` of `WatchResponse`, as its fields are tagged: number 11, with a length.
const EVENTS_TAG: u8 = 11 << 3 | 2;

/// A watch response.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// All but the events.
    pub(super) head: WatchResponse,
    pub(super) events: Vec<EncodedEvent>,
}

/// What an event takes in a response.
pub(super) fn size_of_event(event: &EncodedEvent) -> usize {
    let len = event.bytes().len();
    1 + prost::length_delimiter_len(len) + len
}

impl Reply {
    /// Its length in bytes.
    pub(super) fn size(&self) -> usize {
        self.head.encoded_len() + self.events.iter().map(size_of_event).sum::<usize>()
    }

    fn encode(&self, buffer: &mut impl BufMut) {
        self.head.encode_raw(buffer);
        for event in &self.events {
            buffer.put_u8(EVENTS_TAG);
            prost::encoding::encode_varint(event.bytes().len() as u64, buffer);
            buffer.put_slice(event.bytes());
        }
    }
}

struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Reply;
    type Decode = WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        WatchCodec
    }

    fn decoder(&mut self) -> Self {
        WatchCodec
    }
}

impl Encoder for WatchCodec {
    type Item = Reply;
    type Error = Status;

    fn encode(&mut self, reply: Reply, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(reply.size());
        reply.encode(buffer);
        Ok(())
    }
}

impl Decoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        WatchRequest::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The service as the router knows it.
#[derive(Clone)]
pub(super) struct WatchService {
    pub(super) watch: Watch,
    pub(super) max_receive_bytes: usize,
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl StreamingService<WatchRequest> for Watch {
    type Response = Reply;
    type ResponseStream = Replies;
    type Future = Answer<Response<Replies>, Status>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        Box::pin(ready(self.watch(request)))
    }
}

impl Service<HttpRequest<Body>> for WatchService {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        if request.uri().path() != "/etcdserverpb.Watch/Watch" {
            let status = Status::unimplemented(format!("unknown method {}", request.uri().path()));
            return Box::pin(ready(Ok(status.into_http())));
        }
        let (watch, limit) = (self.watch.clone(), self.max_receive_bytes);
        Box::pin(async move {
            let mut server = Grpc::new(WatchCodec).apply_max_message_size_config(Some(limit), Some(usize::MAX));
            Ok(server.streaming(watch, request).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_proto::etcd::ResponseHeader;
    use quorate_proto::mvccpb::{Event, KeyValue};

    use super::*;

    #[test]
    fn a_reply_is_the_response_with_its_events() {
        let header = Some(ResponseHeader { revision: 7, raft_term: 3, ..Default::default() });
        let head = WatchResponse { header, watch_id: 5, fragment: true, ..Default::default() };
        let kv = KeyValue { key: Bytes::from_static(b"k"), value: vec![1; 300].into(), ..Default::default() };
        let event = Event { kv: Some(kv.clone()), prev_kv: Some(kv), ..Default::default() };
        let wanted = WatchResponse { events: vec![event.clone(), event.clone()], ..head.clone() };
        let encoded = EncodedEvent::of_event(&event);
        let reply = Reply { head, events: vec![encoded.clone(), encoded] };
        let mut buffer = Vec::new();
        reply.encode(&mut buffer);
        assert_eq!(buffer.len(), reply.size());
        assert_eq!(buffer, wanted.encode_to_vec());
    }
}
