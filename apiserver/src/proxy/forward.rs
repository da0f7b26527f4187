//! Carrying one request to another server, and its answer back as it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use quorate_proto::status::Status;
use quorate_transport::tls::Reloading;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::body::Body;

/// A place that has not answered by then is taken for gone.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Errors of nodes are short texts; more is not read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// What concerns one connection only, and what concerns nobody but this server.
const NOT_FORWARDED: [&str; 8] = [
    "authorization",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "host",
];

/// Where a request is carried to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    address: SocketAddr,
    tls: bool,
}

impl Place {
    pub(super) fn new(address: IpAddr, port: u16, tls: bool) -> Self {
        Self { address: SocketAddr::new(address, port), tls }
    }
}

/// Connects as this API server.
pub(super) struct Forwarder {
    tls: Reloading<ClientConfig>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Forwarder {
    pub(super) fn new(tls: Reloading<ClientConfig>) -> Self {
        Self { tls }
    }

    /// Sends `request`, whose path is the target's already, and returns the answer. When
    /// both sides agree to upgrade, their bytes are spliced until one of them closes.
    pub(super) async fn forward(
        &self,
        place: &Place,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let upgrade = request.headers().contains_key(header::UPGRADE);
        let client_side = upgrade.then(|| hyper::upgrade::on(&mut request));
        clean(request.headers_mut(), upgrade);
        let host = HeaderValue::from_str(&place.address.to_string()).map_err(Status::internal)?;
        request.headers_mut().insert(header::HOST, host);
        *request.version_mut() = http::Version::HTTP_11;

        let stream = match tokio::time::timeout(CONNECT_LIMIT, self.connect(place)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(dial_error(place, &error.to_string())),
            Err(_) => return Err(dial_error(place, "i/o timeout")),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(place, &error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a proxied connection ended early");
            }
        });
        let mut response = sender.send_request(request).await.map_err(|error| broken(place, &error))?;
        match client_side {
            Some(client_side) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let node_side = hyper::upgrade::on(&mut response);
                tokio::spawn(splice(client_side, node_side));
            }
            _ => clean(response.headers_mut(), false),
        }
        Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
    }

    async fn connect(&self, place: &Place) -> std::io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(place.address).await?;
        stream.set_nodelay(true)?;
        if !place.tls {
            return Ok(Box::new(stream));
        }
        let config: Arc<ClientConfig> = self.tls.current();
        let name = ServerName::IpAddress(place.address.ip().into());
        Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
    }
}

async fn splice(client: hyper::upgrade::OnUpgrade, node: hyper::upgrade::OnUpgrade) {
    let (client, node) = match tokio::try_join!(client, node) {
        Ok(sides) => sides,
        Err(error) => {
            tracing::debug!(%error, "an upgrade did not come about");
            return;
        }
    };
    let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
        tracing::debug!(%error, "a spliced stream ended early");
    }
}

fn clean(headers: &mut HeaderMap, keep_upgrade: bool) {
    for name in NOT_FORWARDED {
        headers.remove(name);
    }
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
    if !keep_upgrade {
        headers.remove(header::UPGRADE);
        headers.remove(header::CONNECTION);
    }
}

/// The Status of an answer that is an error: its text is the message.
pub(super) async fn failure(response: Response<Body>) -> Status {
    let code = response.status().as_u16();
    let text = read_text(response.into_body()).await;
    match code {
        400 => Status::bad_request(text),
        404 => Status::failure(
            404,
            "NotFound",
            if text.is_empty() { "the server could not find the requested resource".to_owned() } else { text },
        ),
        500 => Status::internal(text),
        _ => Status::failure(code, "", text),
    }
}

async fn read_text(mut body: Body) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

fn dial_error(place: &Place, why: &str) -> Status {
    Status::internal(format!("error dialing backend: dial tcp {}: {why}", place.address))
}

fn broken(place: &Place, error: &hyper::Error) -> Status {
    Status::service_unavailable(format!("error trying to reach service: {}: {error}", place.address), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hops_stay_here() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "upgrade", "connection", "impersonate-user", "x-stream-protocol-version"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        let mut plain = headers.clone();
        clean(&mut headers, true);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "upgrade", "x-stream-protocol-version"]);
        clean(&mut plain, false);
        assert_eq!(plain.len(), 1);
    }
}
