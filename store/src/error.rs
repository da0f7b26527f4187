//! What goes wrong with a request, and why a store does not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use quorate_transport::tls::TlsError;

use crate::command::ApplyError;
use crate::mvcc::EngineError;
use crate::snapshot::SnapshotError;
use crate::wal::WalError;

/// Why a request failed. `rpc::status` gives each its gRPC code and text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The request as such: refused the same way on every member.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// No member leads, or none is known here.
    #[error("no leader")]
    NoLeader,
    /// This member was asked for what only the leader does.
    #[error("not leader")]
    NotLeader,
    /// Nothing is known of the outcome: it may still take effect.
    #[error("request timed out")]
    Timeout,
    /// As `Timeout`, and leadership changed or was lost meanwhile.
    #[error("request timed out, possibly due to previous leader failure")]
    LeaderFailed,
    /// The store is closing.
    #[error("server stopped")]
    Stopped,
    /// Leadership cannot go to that member.
    #[error("bad leader transferee")]
    BadTransferee,
    /// More requests wait than this member lets in.
    #[error("too many requests")]
    TooManyRequests,
    /// The request is larger than the store takes.
    #[error("request is too large")]
    TooLarge,
    /// The members are not changed so.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// Not offered yet.
    #[error("{0} is not supported yet")]
    Unsupported(&'static str),
    /// The state machine could not be read.
    #[error("reading the state machine")]
    Engine(#[from] EngineError),
    /// A snapshot for a client could not be written.
    #[error("writing a snapshot")]
    Snapshot(#[from] SnapshotError),
}

impl StoreError {
    /// Whether the request certainly has not taken effect and never will.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Timeout | Self::LeaderFailed | Self::Stopped)
    }
}

/// Why the members of a cluster are not changed. The texts are etcd's, which its clients
/// match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembersError {
    #[error("etcdserver: member ID already exist")]
    Exists,
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlsExist,
    #[error("etcdserver: given member URLs are invalid")]
    BadPeerUrls,
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    #[error("etcdserver: member not found")]
    NotFound,
    #[error("etcdserver: can only promote a learner member")]
    NotLearner,
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// What is asked is not served by a learner.
    #[error("etcdserver: rpc not supported for learner")]
    Learner,
}

impl MembersError {
    /// In the order of their numbers between members; only added to.
    const ALL: [Self; 10] = [
        Self::Exists,
        Self::PeerUrlsExist,
        Self::BadPeerUrls,
        Self::NotEnoughStarted,
        Self::Unhealthy,
        Self::NotFound,
        Self::NotLearner,
        Self::LearnerNotReady,
        Self::TooManyLearners,
        Self::Learner,
    ];

    /// Its number between members, from 1.
    pub(crate) fn number(self) -> u32 {
        let position = Self::ALL.iter().position(|known| *known == self).unwrap_or(0);
        u32::try_from(position + 1).unwrap_or(u32::MAX)
    }

    pub(crate) fn of_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }
}

/// Why a store does not start. Display says which file or setting, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("the setting {setting} is not usable: {reason}")]
    Config { setting: &'static str, reason: String },
    #[error("cannot use the data directory: {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("another process holds {}; end it, or choose another data directory", path.display())]
    Locked { path: PathBuf },
    #[error(
        "{} belongs to {found}, but this is {wanted}; \
         choose another data directory, or correct the name and the cluster token",
        path.display()
    )]
    OtherMember { path: PathBuf, found: String, wanted: String },
    #[error(
        "{} does not say whose data this is ({reason}); \
         restore the file, or remove the data directory and let the member join anew",
        path.display()
    )]
    Identity { path: PathBuf, reason: String },
    #[error("{} is of no use any more: {reason}", path.display())]
    Ended { path: PathBuf, reason: String },
    #[error("cannot join the cluster: {0}")]
    Join(String),
    #[error(transparent)]
    Log(#[from] WalError),
    #[error("cannot open the state machine in {}: {source}", path.display())]
    StateMachine { path: PathBuf, source: EngineError },
    #[error("consensus does not start from the data in {}: {source}", path.display())]
    Consensus { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address}; is another process there?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}
