//! Accepting connections: TLS, HTTP/1.1 or HTTP/2 by ALPN, and an orderly end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use quorate_transport::tls::Reloading;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Body;
use crate::authn::{User, x509};

/// A peer that has not finished its handshake by then is not a client of ours.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Streams that one HTTP/2 connection may have open: informers of one client share one.
const STREAMS_MAX: u32 = 1000;

/// A silent HTTP/2 peer is asked that often whether it lives. Upstream's figures.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// After a failed accept (too many open files), time for others to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// When this server ends, an idle HTTP/1.1 connection stays open for so long: a request may be
/// on its way, and would be lost. It is answered, and the answer closes the connection.
const LINGER: Duration = Duration::from_millis(300);

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The client certificate, if one was shown and verified.
    pub certificate: Option<Arc<Certificate>>,
}

/// A verified client certificate.
#[derive(Debug)]
pub struct Certificate {
    pub der: Vec<u8>,
    pub user: User,
}

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    fn call(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = http::Response<Body>> + Send;
}

/// Accepts until `stop`; connections then get to finish their requests. Returns when no
/// more are accepted; the connections themselves are tasks of `tasks`.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: Arc<Reloading<ServerConfig>>,
    service: Arc<S>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let (tls, service, stop) = (tls.current(), Arc::clone(&service), stop.clone());
                tasks.spawn(connection(stream, address, tls, service, stop));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection<S: Service>(
    stream: TcpStream,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    service: Arc<S>,
    stop: CancellationToken,
) {
    // Watch events are small and must not wait for more.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            metrics::counter!("apiserver_tls_handshake_errors_total").increment(1);
            tracing::debug!(%address, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|leaf| {
        let user = x509::user(leaf)?;
        Some(Arc::new(Certificate { der: leaf.to_vec(), user }))
    });
    let peer = Arc::new(Peer { address, certificate });
    // HTTP/2 says itself which requests it does not take any more.
    let lingers = stream.get_ref().1.alpn_protocol() != Some(b"h2");
    let ending = stop.clone();
    let handler = tower::service_fn(move |request| {
        let (service, peer, ending) = (Arc::clone(&service), Arc::clone(&peer), ending.clone());
        async move {
            let mut response = service.call(peer, request).await;
            let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if lingers && !upgrades && ending.is_cancelled() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(handler));
    tokio::pin!(connection);
    let stopped = async {
        stop.cancelled().await;
        if lingers {
            tokio::time::sleep(LINGER).await;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, error = &*error, "a connection ended early");
    }
}
