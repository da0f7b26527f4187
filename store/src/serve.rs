//! A port: TLS, HTTP/2 and HTTP/1, and an end that lets requests finish.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use quorate_transport::tls::Reloading;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::authority::Lenient;
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

/// Serves `router` until `cancel`; connections end in `tasks`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    router: Router,
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
        let (tls, router, cancel) = (tls.clone(), router.clone(), cancel.clone());
        tasks.spawn(async move { connection(stream, tls, router, cancel).await });
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    router: Router,
    cancel: CancellationToken,
) {
    // Only slower if it fails.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return requests(stream, None, router, cancel).await };
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let name = shown.and_then(|certificate| CommonName::of(certificate));
            requests(stream, name, router, cancel).await
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    name: Option<CommonName>,
    router: Router,
    cancel: CancellationToken,
) {
    let service = router.map_request(move |mut request: http::Request<Incoming>| {
        if let Some(name) = &name {
            request.extensions_mut().insert(name.clone());
        }
        request.map(Body::new)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let serving = builder.serve_connection(TokioIo::new(Lenient::new(stream)), TowerToHyperService::new(service));
    tokio::pin!(serving);
    tokio::select! {
        // A connection ends however its client likes.
        _ = serving.as_mut() => return,
        () = cancel.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(DRAIN, serving).await;
}
