//! How a member reaches another: one address after the other, until somebody answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use quorate_proto::raft::peer_client;
use quorate_transport::gather::Gathering;
use quorate_transport::tls::{Reloading, STORE_SERVER_NAME};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{self, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_MESSAGE_BYTES};

/// A client of one peer.
pub(crate) type PeerClient = peer_client::PeerClient<Channel>;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes in flight on one stream: a batch of entries must not wait for windows.
const WINDOW_BYTES: u32 = 8 << 20;

/// This member's side of a connection that it dials.
#[derive(Clone)]
pub(crate) struct PeerTls {
    pub(crate) config: Arc<Reloading<ClientConfig>>,
    /// Members are known by the store's own name and not by the host that was dialled.
    pub(crate) by_key: bool,
}

/// How this member dials others.
#[derive(Clone, Default)]
pub(crate) struct Dialer {
    /// Without it, members talk in plain text.
    pub(crate) tls: Option<PeerTls>,
    /// Where connections come from, if the peer can be reached from there; otherwise, and
    /// without it, the machine chooses.
    pub(crate) from: Option<IpAddr>,
}

/// The `host:port`s of a member, which are separated by commas.
pub(crate) fn split(addresses: &str) -> impl Iterator<Item = &str> {
    addresses.split(',').map(str::trim).filter(|address| !address.is_empty())
}

impl Dialer {
    /// A client of whoever listens at `addresses`. Connects at its first call, and again
    /// after a loss.
    pub(crate) fn client(&self, addresses: &str) -> PeerClient {
        client(self.channel(addresses))
    }

    pub(super) fn channel(&self, addresses: &str) -> Channel {
        // A member has several addresses, a URI only one: dialling knows them.
        let endpoint = Endpoint::from_static("http://peer")
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let (dialer, addresses) = (self.clone(), addresses.to_owned());
        let dial = tower::service_fn(move |_: Uri| {
            let dialled = dialer.dial(&addresses);
            async move { dialled.await.map(|stream| TokioIo::new(Gathering::new(stream))) }
        });
        endpoint.connect_with_connector_lazy(dial)
    }

    /// A connection to the first of `addresses` that accepts one. A peer that is known by its
    /// key may answer at any address: it holds a certificate of the cluster's authority for
    /// members of a store.
    pub(super) fn dial(&self, addresses: &str) -> impl Future<Output = io::Result<Box<dyn Duplex>>> + Send + use<> {
        let dialer = self.clone();
        let addresses: Vec<String> = split(addresses).map(str::to_owned).collect();
        async move {
            let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "the member has no address");
            for address in &addresses {
                match dialer.connect(address).await {
                    Ok(stream) => return dialer.secure(stream, address).await,
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        }
    }

    /// A bare connection to whoever listens at `address`.
    pub(super) async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let Some(from) = self.from else { return TcpStream::connect(address).await };
        let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for to in net::lookup_host(address).await? {
            match connect(from, to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn secure(&self, stream: TcpStream, address: &str) -> io::Result<Box<dyn Duplex>> {
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = if tls.by_key { STORE_SERVER_NAME } else { host };
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(tls.config.current()).connect(name, stream).await?))
    }
}

async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if reaches(from, to.ip()) {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(to).await
}

/// Whether packets from one address may go to the other: those of the loopback leave no machine.
fn reaches(from: IpAddr, to: IpAddr) -> bool {
    from.is_ipv4() == to.is_ipv4() && (to.is_loopback() || !from.is_loopback())
}

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) fn client(channel: Channel) -> PeerClient {
    PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_come_from_the_address_that_is_set() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        for (from, expected) in [("127.0.0.7", "127.0.0.7"), ("::1", "127.0.0.1")] {
            let dialer = Dialer { from: Some(from.parse().unwrap()), ..Dialer::default() };
            let _stream = dialer.connect(&address).await.unwrap();
            assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), expected);
        }
    }

    #[test]
    fn an_address_that_does_not_reach_the_peer_is_not_used() {
        let check = |from: &str, to: &str, expected: bool| {
            assert_eq!(reaches(from.parse().unwrap(), to.parse().unwrap()), expected, "{from} {to}");
        };
        check("127.0.10.1", "127.0.10.2", true);
        check("192.0.2.1", "198.51.100.1", true);
        check("192.0.2.1", "127.0.0.1", true);
        check("127.0.0.1", "192.0.2.1", false);
        check("192.0.2.1", "2001:db8::1", false);
        check("2001:db8::1", "2001:db8::2", true);
        check("::1", "2001:db8::2", false);
    }
}
