//! gRPC calls with nothing between an operation and its HTTP/2 stream. On a machine that
//! servers and clients share, what the client spends is missing in every rate: this one
//! spends about half of what a general client does.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{HeaderMap, Request, Uri};
use prost::Message;
use tokio::sync::Mutex;
use tonic::{Code, Status};

use crate::endpoints::{Connection, Endpoints};

/// How much a server may send before it is asked for more: a list of some size is not to
/// wait for the client in between.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
const UNCOMPRESSED: u8 = 0;

/// The calls that workloads make.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    Put,
    Range,
    Txn,
    Watch,
}

impl Method {
    /// In their order.
    const PATHS: [&'static str; 4] =
        ["etcdserverpb.KV/Put", "etcdserverpb.KV/Range", "etcdserverpb.KV/Txn", "etcdserverpb.Watch/Watch"];
}

/// One client's hold on a connection that several share.
#[derive(Clone)]
pub(crate) struct Wire {
    shared: Arc<Shared>,
    /// Absent after a failure, until the next call.
    sender: Option<SendRequest<Bytes>>,
    generation: u64,
}

struct Shared {
    endpoints: Endpoints,
    url: String,
    headers: HeaderMap,
    /// In the order of the methods.
    uris: [Uri; Method::PATHS.len()],
    /// The connection as it was opened last, and how often it was.
    live: Mutex<(u64, SendRequest<Bytes>)>,
}

impl Wire {
    /// Opens another connection to where `connection` leads.
    ///
    /// # Errors
    /// When nobody accepts it.
    pub(crate) async fn open(endpoints: &Endpoints, connection: &Connection) -> Result<Self> {
        let url = connection.url.clone();
        let (sender, origin) = dial(endpoints, &url).await?;
        let uri = |path: &str| format!("{origin}/{path}").parse::<Uri>();
        let uris = Method::PATHS.map(|path| uri(path).with_context(|| format!("{url} is no address")));
        let [put, range, txn, watch] = uris;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        connection.authorize(&mut headers)?;
        let live = Mutex::new((0, sender.clone()));
        let shared = Shared { endpoints: endpoints.clone(), url, headers, uris: [put?, range?, txn?, watch?], live };
        Ok(Self { shared: Arc::new(shared), sender: Some(sender), generation: 0 })
    }

    /// Asks and awaits the answer.
    ///
    /// # Errors
    /// What the server answers instead, or `Unavailable` when the connection is lost; the next
    /// call opens another.
    pub(crate) async fn call<R: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
    ) -> Result<R, Status> {
        let mut body = self.send(method, request).await?;
        let mut message = match body.data().await.transpose().map_err(|error| self.lost(&error))? {
            Some(chunk) => chunk,
            // Refused after the headers were sent.
            None => Bytes::new(),
        };
        release(&mut body, message.len());
        while let Some(chunk) = body.data().await.transpose().map_err(|error| self.lost(&error))? {
            release(&mut body, chunk.len());
            let mut joined = BytesMut::with_capacity(message.len() + chunk.len());
            joined.put(message);
            joined.put(chunk);
            message = joined.freeze();
        }
        self.end(&mut body).await?;
        if message.len() < PREFIX_BYTES || message[0] != UNCOMPRESSED {
            return Err(Status::internal("the answer is no message"));
        }
        message.advance(PREFIX_BYTES);
        R::decode(message).map_err(|error| Status::internal(error.to_string()))
    }

    /// Asks, counts the bytes of the answer and forgets them, so that a large one takes no
    /// memory.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn count(&mut self, method: Method, request: &impl Message) -> Result<usize, Status> {
        let mut body = self.send(method, request).await?;
        let mut bytes = 0;
        while let Some(chunk) = body.data().await.transpose().map_err(|error| self.lost(&error))? {
            release(&mut body, chunk.len());
            bytes += chunk.len();
        }
        self.end(&mut body).await?;
        Ok(bytes)
    }

    /// Begins a stream with messages. It lasts as long as both of what is returned.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn stream(
        &mut self,
        method: Method,
        messages: impl Iterator<Item = impl Message>,
    ) -> Result<(SendStream<Bytes>, Answers), Status> {
        let mut body = BytesMut::new();
        for message in messages {
            frame(&message, &mut body)?;
        }
        let (response, mut requests) = self.begin(method).await?;
        requests.send_data(body.freeze(), false).map_err(|error| self.lost(&error))?;
        let body = self.accepted(response).await?;
        Ok((requests, Answers { body, rest: BytesMut::new() }))
    }

    async fn send(&mut self, method: Method, message: &impl Message) -> Result<RecvStream, Status> {
        let mut body = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
        frame(message, &mut body)?;
        let (response, mut requests) = self.begin(method).await?;
        requests.send_data(body.freeze(), true).map_err(|error| self.lost(&error))?;
        self.accepted(response).await
    }

    async fn begin(&mut self, method: Method) -> Result<(ResponseFuture, SendStream<Bytes>), Status> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        request.uri_mut().clone_from(&self.shared.uris[method as usize]);
        request.headers_mut().clone_from(&self.shared.headers);
        let sender = match self.sender.take() {
            Some(sender) => sender,
            None => self.reopened().await?,
        };
        let mut sender = sender.ready().await.map_err(|error| self.lost(&error))?;
        let begun = sender.send_request(request, false).map_err(|error| self.lost(&error))?;
        self.sender = Some(sender);
        Ok(begun)
    }

    async fn accepted(&mut self, response: ResponseFuture) -> Result<RecvStream, Status> {
        let (head, body) = response.await.map_err(|error| self.lost(&error))?.into_parts();
        match Status::from_header_map(&head.headers) {
            Some(status) if status.code() != Code::Ok => Err(status),
            _ if head.status != http::StatusCode::OK => {
                Err(Status::unavailable(format!("HTTP status {}", head.status)))
            }
            _ => Ok(body),
        }
    }

    async fn end(&mut self, body: &mut RecvStream) -> Result<(), Status> {
        let trailers = body.trailers().await.map_err(|error| self.lost(&error))?;
        match trailers.and_then(|trailers| Status::from_header_map(&trailers)) {
            Some(status) if status.code() == Code::Ok => Ok(()),
            Some(status) => Err(status),
            None => Err(Status::unavailable("the answer ends without a status")),
        }
    }

    fn lost(&mut self, error: &h2::Error) -> Status {
        // A server may also end one stream alone.
        if !error.is_reset() {
            self.sender = None;
        }
        Status::unavailable(error.to_string())
    }

    /// The connection that another client has opened anew, or one that this opens.
    async fn reopened(&mut self) -> Result<SendRequest<Bytes>, Status> {
        let mut live = self.shared.live.lock().await;
        if live.0 == self.generation {
            let opened = dial(&self.shared.endpoints, &self.shared.url).await;
            let (sender, _) = opened.map_err(|error| Status::unavailable(format!("{error:#}")))?;
            *live = (live.0 + 1, sender);
        }
        self.generation = live.0;
        Ok(live.1.clone())
    }
}

/// Appends a message as gRPC sends it.
fn frame(message: &impl Message, body: &mut BytesMut) -> Result<(), Status> {
    let length = message.encoded_len();
    body.put_u8(UNCOMPRESSED);
    body.put_u32(u32::try_from(length).map_err(|_| Status::invalid_argument("a request of gigabytes"))?);
    message.encode(body).map_err(|error| Status::internal(error.to_string()))
}

/// What comes on a stream.
pub(crate) struct Answers {
    body: RecvStream,
    /// The beginning of a message whose end has not come.
    rest: BytesMut,
}

impl Answers {
    /// Waits for more, and calls `each` with every message that is complete then.
    ///
    /// # Errors
    /// Why the stream has ended, or what `each` returns.
    pub(crate) async fn read(&mut self, mut each: impl FnMut(&[u8]) -> Result<(), Status>) -> Result<(), Status> {
        let chunk = match self.body.data().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Err(Status::unavailable(error.to_string())),
            None => return Err(self.ended().await),
        };
        release(&mut self.body, chunk.len());
        if self.rest.is_empty() {
            let taken = messages(&chunk, &mut each)?;
            self.rest.extend_from_slice(&chunk[taken..]);
        } else {
            self.rest.extend_from_slice(&chunk);
            let taken = messages(&self.rest, &mut each)?;
            self.rest.advance(taken);
        }
        Ok(())
    }

    async fn ended(&mut self) -> Status {
        match self.body.trailers().await {
            Ok(trailers) => trailers.and_then(|trailers| Status::from_header_map(&trailers)),
            Err(error) => Some(Status::unavailable(error.to_string())),
        }
        .unwrap_or_else(|| Status::unavailable("the server closed the stream"))
    }
}

/// Calls `each` with every complete message; returns how many bytes they take.
fn messages(bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Result<(), Status>) -> Result<usize, Status> {
    let mut left = bytes;
    while let Some((&[compressed, a, b, c, d], rest)) = left.split_first_chunk::<PREFIX_BYTES>() {
        if compressed != UNCOMPRESSED {
            return Err(Status::internal("the answer is no message"));
        }
        let Some(message) = rest.get(..u32::from_be_bytes([a, b, c, d]) as usize) else { break };
        each(message)?;
        left = &rest[message.len()..];
    }
    Ok(bytes.len() - left.len())
}

/// Lets the server send as much again.
fn release(body: &mut RecvStream, bytes: usize) {
    // It fails only where more is released than came.
    let _ = body.flow_control().release_capacity(bytes);
}

async fn dial(endpoints: &Endpoints, url: &str) -> Result<(SendRequest<Bytes>, String)> {
    let (stream, origin) = endpoints.dial(url, "h2").await.with_context(|| url.to_owned())?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_push(false)
        .handshake(stream)
        .await
        .with_context(|| format!("{url} does not speak HTTP/2"))?;
    // Ends with the last sender; those who wait for answers learn of a loss.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, origin))
}

#[cfg(test)]
mod tests {
    use http::Response;
    use quorate_proto::etcd::{PutRequest, PutResponse, ResponseHeader};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers the first call in two pieces, goes away at the second, and refuses those on
    /// any later connection.
    async fn serve(listener: TcpListener) {
        let mut first = true;
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/etcdserverpb.KV/Put");
                let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
                if !std::mem::take(&mut first) {
                    let refused = response.header("grpc-status", "5").header("grpc-message", "no");
                    respond.send_response(refused.body(()).unwrap(), true).unwrap();
                    continue;
                }
                let mut body = respond.send_response(response.body(()).unwrap(), false).unwrap();
                let header = ResponseHeader { revision: 7, ..ResponseHeader::default() };
                let message = PutResponse { header: Some(header), prev_kv: None }.encode_to_vec();
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                let mut bytes = Bytes::from([[UNCOMPRESSED].as_slice(), &length, &message].concat());
                body.send_data(bytes.split_to(PREFIX_BYTES + 1), false).unwrap();
                body.send_data(bytes, false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                body.send_trailers(trailers).unwrap();
                // Until the next call, which nobody answers.
                let _ = connection.accept().await;
                break;
            }
        }
    }

    #[test]
    fn messages_are_found_wherever_chunks_end() {
        let sent = [&b"one"[..], b"", b"three"];
        let prefix = |message: &[u8]| [UNCOMPRESSED, 0, 0, 0, u8::try_from(message.len()).unwrap()];
        let framed = sent.map(|message| [prefix(message).as_slice(), message].concat());
        let bytes = framed.concat();
        for end in 0..=bytes.len() {
            let mut found = Vec::new();
            let mut each = |message: &[u8]| {
                found.push(message.to_vec());
                Ok(())
            };
            let taken = messages(&bytes[..end], &mut each).unwrap();
            assert_eq!(messages(&bytes[taken..], &mut each).unwrap(), bytes.len() - taken);
            assert_eq!(found, sent, "cut at {end}");
        }
        assert!(messages(&[1, 0, 0, 0, 0], &mut |_| Ok(())).is_err());
    }

    #[tokio::test]
    async fn a_lost_connection_is_opened_again_and_a_refusal_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = Endpoints::plain(vec![listener.local_addr().unwrap().to_string()]);
        let server = tokio::spawn(serve(listener));
        let connections = endpoints.connect().await.unwrap();
        let mut wire = Wire::open(&endpoints, &connections[0]).await.unwrap();
        let request = PutRequest { key: "b0".into(), ..PutRequest::default() };

        let answer: PutResponse = wire.call(Method::Put, &request).await.unwrap();
        assert_eq!(answer.header.map(|header| header.revision), Some(7));
        let lost = wire.call::<PutResponse>(Method::Put, &request).await.unwrap_err();
        assert_eq!(lost.code(), Code::Unavailable, "{lost}");
        let refused = wire.call::<PutResponse>(Method::Put, &request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::NotFound, "no"));
        server.abort();
    }
}
