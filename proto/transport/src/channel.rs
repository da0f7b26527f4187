//! gRPC channels to members of the store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// A connection attempt that takes longer is given up: members are close together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often an idle connection is tested, and how long its answer may take: a peer
/// whose machine vanished is noticed although TCP says nothing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel to `authority` (`host:port`) that connects at its first call and again
/// after each loss. The other side must hold a certificate for `server_name`.
///
/// # Errors
/// When `authority` is not of the form `host:port`.
pub fn channel(authority: &str, tls: Arc<ClientConfig>, server_name: &str) -> Result<Channel, ChannelError> {
    let invalid = || ChannelError { authority: authority.to_owned(), server_name: server_name.to_owned() };
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| invalid())?;
    let endpoint = endpoint(authority).map_err(|_| invalid())?;
    let connector = TlsConnector::from(tls);
    let dial = tower::service_fn(move |uri: Uri| {
        let (connector, name) = (connector.clone(), name.clone());
        async move {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            let stream = TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(dial))
}

/// As [`channel`], in plain text.
///
/// # Errors
/// When `authority` is not of the form `host:port`.
pub fn plain_channel(authority: &str) -> Result<Channel, ChannelError> {
    let invalid = |_| ChannelError { authority: authority.to_owned(), server_name: String::new() };
    endpoint(authority).map(|endpoint| endpoint.connect_lazy()).map_err(invalid)
}

fn endpoint(authority: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{authority}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The address or the name cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("{authority:?} as {server_name:?} is not an address that can be dialled: write host:port")]
pub struct ChannelError {
    authority: String,
    server_name: String,
}
