//! Member to member: who the peers are, how they are reached, and what is
//! answered to them.
//!
//! Always: a message of another cluster, of another generation, or meant for
//! another member is refused before anything looks at it.

mod presence;
mod server;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use quorate_proto::raft::{self as wire, peer_client};
use quorate_transport::tls::{Reloading, STORE_SERVER_NAME};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) use self::presence::Presence;
pub(crate) use self::server::{Memory, PeerService};

/// A client of one peer.
pub(crate) type PeerClient = peer_client::PeerClient<Channel>;

/// The largest message between members: a batch of entries, plus one entry.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a connection is tested, and how long the answer may take: a peer whose
/// machine vanished is noticed although TCP says nothing.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes in flight on one stream: a batch of entries must not wait for windows.
const WINDOW_BYTES: u32 = 8 << 20;

/// Who this process is to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    pub(crate) generation: u64,
    /// Chosen when the process started.
    pub(crate) incarnation: u64,
}

impl Identity {
    /// Checks that a message is meant for this member of this cluster.
    ///
    /// # Errors
    /// `FailedPrecondition`, naming what differs.
    pub(crate) fn check(&self, origin: Option<&wire::Origin>) -> Result<u64, Status> {
        let Some(origin) = origin else {
            return Err(Status::invalid_argument("quorate: a peer's message lacks its origin"));
        };
        if origin.cluster_id != self.cluster_id {
            return Err(Status::failed_precondition("etcdserver: cluster ID mismatch"));
        }
        if origin.generation != self.generation {
            let text = format!(
                "quorate: generation {} is not this cluster's generation {}",
                origin.generation, self.generation
            );
            return Err(Status::failed_precondition(text));
        }
        if origin.to_member != self.member_id {
            let text = format!("quorate: this is member {:x}, not {:x}", self.member_id, origin.to_member);
            return Err(Status::failed_precondition(text));
        }
        Ok(origin.from_member)
    }
}

/// Connections are apart by what must not delay what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Log entries.
    Entries,
    /// Heartbeats, votes, transfers of leadership.
    Control,
    Snapshots,
    /// Requests of clients that only the leader answers.
    Forward,
    Presence,
}

/// This member's side of a connection that it dials.
#[derive(Clone)]
pub(crate) struct PeerTls {
    pub(crate) config: Arc<Reloading<ClientConfig>>,
    /// Members are known by the store's own name and not by the host that was dialled.
    pub(crate) by_key: bool,
}

/// The channels to the peers, opened at their first use.
pub(crate) struct Peers {
    identity: Identity,
    tls: Option<PeerTls>,
    /// Where members are now, if the membership does not know better yet.
    moved: HashMap<u64, String>,
    channels: Mutex<HashMap<(u64, Lane), (String, Channel)>>,
    /// What each peer has acknowledged to this member as the leader of a term.
    acknowledged: Mutex<HashMap<u64, Acknowledged>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Acknowledged {
    term: u64,
    index: u64,
}

impl Peers {
    /// Without `tls`, members talk in plain text. `moved` overrides the addresses that
    /// the membership knows.
    pub(crate) fn new(identity: Identity, tls: Option<PeerTls>, moved: HashMap<u64, String>) -> Self {
        Self { identity, tls, moved, channels: Mutex::default(), acknowledged: Mutex::default() }
    }

    /// Where `target` is, which the membership says to be at `known`.
    pub(crate) fn address<'a>(&'a self, target: u64, known: &'a str) -> &'a str {
        self.moved.get(&target).map_or(known, String::as_str)
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Notes that `peer` holds everything up to `index`, said to the leader of `term`.
    pub(crate) fn acknowledged(&self, peer: u64, term: u64, index: u64) {
        let mut all = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(peer).or_insert(Acknowledged { term, index });
        match known.term == term {
            true => known.index = known.index.max(index),
            false => *known = Acknowledged { term, index },
        }
    }

    /// Whether `peer`, which does not hold entry `index`, acknowledged it to the leader of
    /// `term`: then it has lost its log.
    pub(crate) fn has_lost(&self, peer: u64, term: u64, index: u64) -> bool {
        let all = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&peer).is_some_and(|known| known.term == term && known.index >= index)
    }

    /// What every message to `target` begins with.
    pub(crate) fn origin(&self, target: u64) -> wire::Origin {
        wire::Origin {
            cluster_id: self.identity.cluster_id,
            generation: self.identity.generation,
            from_member: self.identity.member_id,
            to_member: target,
        }
    }

    /// A client of `target`, which the membership says to be at `known`. Connects at its first call, and
    /// again after a loss.
    ///
    /// # Errors
    /// When the address is not `host:port`.
    pub(crate) fn client(&self, target: u64, known: &str, lane: Lane) -> Result<PeerClient, tonic::transport::Error> {
        let address = self.address(target, known);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = channels.get(&(target, lane)).filter(|(at, _)| at == address);
        let channel = match known {
            Some((_, channel)) => channel.clone(),
            None => {
                let channel = self.open(address)?;
                channels.insert((target, lane), (address.to_owned(), channel.clone()));
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn open(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let tls = self.tls.clone();
        let dial = tower::service_fn(move |uri: Uri| dial(uri, tls.clone()));
        Ok(endpoint.connect_with_connector_lazy(dial))
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A peer that is known by its key may answer at any address: it holds a certificate of
/// the cluster's authority for members of a store.
async fn dial(uri: Uri, tls: Option<PeerTls>) -> std::io::Result<TokioIo<Box<dyn Duplex>>> {
    let address = uri.authority().map(ToString::to_string).unwrap_or_default();
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream: Box<dyn Duplex> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let name = if tls.by_key { STORE_SERVER_NAME } else { host };
            let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
            Box::new(TlsConnector::from(tls.config.current()).connect(name, stream).await?)
        }
    };
    Ok(TokioIo::new(stream))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_peer_that_takes_back_what_it_acknowledged_has_lost_its_log() {
        let identity = Identity { cluster_id: 7, member_id: 2, generation: 3, incarnation: 0 };
        let peers = Peers::new(identity, None, HashMap::new());
        assert!(!peers.has_lost(1, 4, 0), "nothing was acknowledged");
        peers.acknowledged(1, 4, 10);
        peers.acknowledged(1, 4, 8);
        assert!(peers.has_lost(1, 4, 10));
        assert!(!peers.has_lost(1, 4, 11), "a probe beyond its end");
        assert!(!peers.has_lost(1, 5, 3), "another reign may truncate");
        peers.acknowledged(1, 5, 2);
        assert!(peers.has_lost(1, 5, 2) && !peers.has_lost(1, 4, 2));
    }

    #[test]
    fn messages_of_others_are_refused() {
        let identity = Identity { cluster_id: 7, member_id: 2, generation: 3, incarnation: 0 };
        let good = wire::Origin { cluster_id: 7, generation: 3, from_member: 1, to_member: 2 };
        assert_eq!(identity.check(Some(&good)).unwrap(), 1);
        let check = |origin: Option<wire::Origin>, text: &str| {
            let status = identity.check(origin.as_ref()).unwrap_err();
            assert!(status.message().contains(text), "{status}");
            status.code()
        };
        let refused = Code::FailedPrecondition;
        assert_eq!(check(Some(wire::Origin { cluster_id: 8, ..good }), "cluster ID mismatch"), refused);
        assert_eq!(check(Some(wire::Origin { generation: 2, ..good }), "generation 2"), refused);
        assert_eq!(check(Some(wire::Origin { to_member: 9, ..good }), "not 9"), refused);
        assert_eq!(check(None, "origin"), Code::InvalidArgument);
    }
}
