//! How watch responses become bytes: their events are encoded already.
//!
//! The server that is generated from the service would encode each event for each watcher.
//! This one copies what is small, and shares what is large.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::request::Request as HttpRequest;
use http::response::Response as HttpResponse;
use hyper::body::Body as HttpBody;
use prost::Message;
use quorate_proto::etcd::{ResponseHeader, WatchRequest, WatchResponse};
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap, MetadataValue};
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};
use tower::Service;

use super::unary::put_prefix;
use super::watch::Session;
use super::{admit, wants_leader};
use crate::node::Store;
use crate::watch::{EncodedEvent, Selection};

/// As the fields of `WatchResponse` are tagged: number 2, a number, and 11, with a length.
const WATCH_ID_TAG: u8 = 2 << 3;
const EVENTS_TAG: u8 = 11 << 3 | 2;

/// Events that are larger are not copied: each is a piece of its own.
const COPIED_BYTES: usize = 4 << 10;

const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

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

fn put_event_head(event: &EncodedEvent, buffer: &mut impl BufMut) {
    buffer.put_u8(EVENTS_TAG);
    prost::encoding::encode_varint(event.bytes().len() as u64, buffer);
}

impl Reply {
    /// Its length in bytes.
    pub(super) fn size(&self) -> usize {
        self.head.encoded_len() + self.events.iter().map(size_of_event).sum::<usize>()
    }
}

/// A response that differs between watchers by their ids alone: what comes before the id,
/// and what comes after it.
pub(super) struct Shared {
    selection: Arc<Selection>,
    header: Vec<u8>,
    events: Vec<u8>,
}

impl Shared {
    /// Nothing if it is not small.
    pub(super) fn new(selection: &Arc<Selection>, header: ResponseHeader) -> Option<Self> {
        let size = selection.events().iter().map(size_of_event).sum::<usize>();
        if size > COPIED_BYTES {
            return None;
        }
        let mut events = Vec::with_capacity(size);
        for event in selection.events() {
            put_event_head(event, &mut events);
            events.put_slice(event.bytes());
        }
        let header = WatchResponse { header: Some(header), ..WatchResponse::default() }.encode_to_vec();
        Some(Self { selection: Arc::clone(selection), header, events })
    }

    pub(super) fn is_of(&self, selection: &Arc<Selection>) -> bool {
        Arc::ptr_eq(&self.selection, selection)
    }
}

/// Messages to send, in pieces.
#[derive(Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Bytes>,
    last: BytesMut,
    bytes: usize,
}

impl Outbox {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// # Errors
    /// When it is larger than messages can be.
    pub(super) fn put(&mut self, reply: &Reply) -> Result<(), Status> {
        let before = self.last.len();
        put_prefix(&mut self.last, reply.size())?;
        self.bytes += self.last.len() - before + reply.size();
        reply.head.encode_raw(&mut self.last);
        for event in &reply.events {
            put_event_head(event, &mut self.last);
            if event.bytes().len() > COPIED_BYTES {
                self.pieces.extend([self.last.split().freeze(), event.bytes().clone()]);
            } else {
                self.last.put_slice(event.bytes());
            }
        }
        Ok(())
    }

    /// # Errors
    /// Never: it is small.
    pub(super) fn put_shared(&mut self, watch_id: i64, shared: &Shared) -> Result<(), Status> {
        let id = watch_id.cast_unsigned();
        let id_len = if id == 0 { 0 } else { 1 + prost::encoding::encoded_len_varint(id) };
        let size = shared.header.len() + id_len + shared.events.len();
        let before = self.last.len();
        put_prefix(&mut self.last, size)?;
        self.last.put_slice(&shared.header);
        if id != 0 {
            self.last.put_u8(WATCH_ID_TAG);
            prost::encoding::encode_varint(id, &mut self.last);
        }
        self.last.put_slice(&shared.events);
        self.bytes += self.last.len() - before;
        Ok(())
    }

    /// What goes out next.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.last.is_empty() => return None,
            None => self.last.split().freeze(),
        };
        self.bytes -= piece.len();
        Some(piece)
    }
}

struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        WatchRequest::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The service as the router knows it.
#[derive(Clone)]
pub(super) struct WatchService {
    pub(super) store: Store,
    pub(super) max_receive_bytes: usize,
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl WatchService {
    fn begin<B>(&self, request: HttpRequest<B>) -> Result<Session, Status>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        check_encoding(request.headers())?;
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, ());
        let store = admit(&self.store, &request)?;
        let requests = Streaming::new_request(RequestDecoder, body, None, Some(self.max_receive_bytes));
        Ok(Session::new(store, wants_leader(request.metadata()), requests))
    }
}

/// Refuses compressed requests, in the words of the library that serves all others.
fn check_encoding(headers: &http::HeaderMap) -> Result<(), Status> {
    let Some(encoding) = headers.get(ENCODING).filter(|encoding| *encoding != "identity") else { return Ok(()) };
    let encoding = String::from_utf8_lossy(encoding.as_bytes());
    let mut status = Status::unimplemented(format!("Content is compressed with `{encoding}` which isn't supported"));
    status.metadata_mut().insert(ACCEPT_ENCODING, MetadataValue::from_static("identity"));
    Err(status)
}

impl Service<HttpRequest<Body>> for WatchService {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let path = request.uri().path();
        let begun = match path {
            "/etcdserverpb.Watch/Watch" => self.begin(request),
            _ => Err(Status::unimplemented(format!("unknown method {path}"))),
        };
        ready(Ok(match begun {
            Ok(session) => {
                let mut response = HttpResponse::new(Body::new(session));
                response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
                response
            }
            Err(status) => status.into_http(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_proto::etcd::ResponseHeader;
    use quorate_proto::mvccpb::{Event, KeyValue};

    use super::*;

    /// What a client reads of all pieces.
    fn read(outbox: &mut Outbox) -> (Vec<u8>, usize) {
        let pieces: Vec<Bytes> = std::iter::from_fn(|| outbox.take()).collect();
        assert!(outbox.is_empty());
        let (message, count) = (pieces.concat(), pieces.len());
        let length = u32::from_be_bytes(*message[1..].first_chunk().unwrap()) as usize;
        assert_eq!((message[0], message.len()), (0, 5 + length));
        (message[5..].to_vec(), count)
    }

    #[test]
    fn a_reply_is_the_response_with_its_events() {
        let header = ResponseHeader { revision: 7, raft_term: 3, ..Default::default() };
        let head = WatchResponse { header: Some(header), watch_id: 5, fragment: true, ..Default::default() };
        for (size, pieces) in [(300, 1), (COPIED_BYTES, 4)] {
            let kv = KeyValue { key: Bytes::from_static(b"k"), value: vec![1; size].into(), ..Default::default() };
            let event = Event { kv: Some(kv), ..Default::default() };
            let wanted = WatchResponse { events: vec![event.clone(), event.clone()], ..head.clone() };
            let encoded = EncodedEvent::of_event(&event);
            let mut outbox = Outbox::default();
            outbox.put(&Reply { head: head.clone(), events: vec![encoded.clone(), encoded] }).unwrap();
            assert_eq!(read(&mut outbox), (wanted.encode_to_vec(), pieces));
        }
    }

    #[test]
    fn what_is_shared_differs_by_the_id() {
        let kv = KeyValue { key: Bytes::from_static(b"k"), value: vec![1; 300].into(), ..Default::default() };
        let event = Event { kv: Some(kv), ..Default::default() };
        let selection = Arc::new(Selection::of_events(vec![EncodedEvent::of_event(&event); 2]));
        let header = ResponseHeader { revision: 7, raft_term: 3, ..Default::default() };
        let shared = Shared::new(&selection, header).unwrap();
        assert!(shared.is_of(&selection));
        for watch_id in [0, 1, 300, i64::MAX, -2] {
            let events = vec![event.clone(), event.clone()];
            let wanted = WatchResponse { header: Some(header), watch_id, events, ..Default::default() };
            let mut outbox = Outbox::default();
            outbox.put_shared(watch_id, &shared).unwrap();
            assert_eq!(read(&mut outbox), (wanted.encode_to_vec(), 1), "{watch_id}");
        }
        let large = Arc::new(Selection::of_events(vec![EncodedEvent::of_event(&event); 20]));
        assert!(Shared::new(&large, header).is_none());
    }

    #[test]
    fn compressed_requests_are_refused() {
        let check = |encoding: Option<&'static str>| {
            let headers = encoding.map(|encoding| (http::HeaderName::from_static(ENCODING), encoding.parse().unwrap()));
            check_encoding(&headers.into_iter().collect())
        };
        assert!(check(None).is_ok() && check(Some("identity")).is_ok());
        let refused = check(Some("gzip")).unwrap_err();
        assert_eq!(refused.message(), "Content is compressed with `gzip` which isn't supported");
        assert_eq!(refused.metadata().get(ACCEPT_ENCODING).unwrap(), "identity");
    }
}
