//! A port: TLS, HTTP/2 and HTTP/1, and an end that lets requests finish.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::future::RouteFuture;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use quorate_transport::gather::Gathering;
use quorate_transport::tls::Reloading;
use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use crate::authority::Lenient;
use crate::peer::{self, PeerService};
use crate::rpc::CommonName;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long requests under way may take once the port closes.
const DRAIN: Duration = Duration::from_secs(2);

/// After an accept that failed (too many open files), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Streams of one connection: a kube-apiserver keeps hundreds of watches on one.
const MAX_STREAMS: u32 = 65_536;

/// Bytes in flight on one stream and one connection; the protocol's 64 KiB throttles.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Idle connections are tested this often, and closed when the answer takes longer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Binds `address`, so that whoever asks knows the port before anything is served.
///
/// # Errors
/// When the address is taken or not of this machine.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What answers the requests of a port.
pub(crate) trait Answers:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
    type Body: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> Answers for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A router in the place of a service.
#[derive(Clone)]
pub(crate) struct Routed(pub(crate) Router);

impl Service<Request<Incoming>> for Routed {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.0.clone().call(request)
    }
}

/// A service whose requests bear the name that their connection has shown.
struct Named<S> {
    service: S,
    name: Option<CommonName>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Named<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Some(name) = &self.name {
            request.extensions_mut().insert(name.clone());
        }
        self.service.call(request)
    }
}

/// Serves `service`, and lines of peers where `lines` answers them, until `cancel`;
/// connections end in `tasks`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    service: impl Answers,
    lines: Option<Arc<PeerService>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A token of its own: those who wait for the same one share a lock, at every event.
        let (tls, service, lines, cancel) = (tls.clone(), service.clone(), lines.clone(), cancel.child_token());
        tasks.spawn(async move { connection(stream, tls, service, lines, cancel).await });
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    service: impl Answers,
    lines: Option<Arc<PeerService>>,
    cancel: CancellationToken,
) {
    // Only slower if it fails.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return speak(stream, Named { service, name: None }, lines, cancel).await };
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let name = shown.and_then(|certificate| CommonName::of(certificate));
            speak(stream, Named { service, name }, lines, cancel).await
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Tells by the first byte what the other side speaks.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    service: Named<impl Answers>,
    lines: Option<Arc<PeerService>>,
    cancel: CancellationToken,
) {
    let Some(lines) = lines else { return requests(stream, service, cancel).await };
    // What it has read ahead is read from it first.
    let mut stream = BufReader::new(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.fill_buf()).await {
        Ok(Ok(read)) if read.first() == peer::MAGIC.first() => peer::serve_line(lines, stream, cancel).await,
        Ok(Ok(_)) => requests(stream, service, cancel).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection has ended before it began"),
        Err(_) => tracing::debug!("a connection has said nothing"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    service: Named<impl Answers>,
    cancel: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let serving = builder.serve_connection(TokioIo::new(Gathering::new(Lenient::new(stream))), service);
    tokio::pin!(serving);
    tokio::select! {
        // A connection ends however its client likes.
        _ = serving.as_mut() => return,
        () = cancel.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(DRAIN, serving).await;
}
