//! What the log's entries say, and what applying one answers.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::etcd::{
    AlarmResponse, CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, TxnRequest,
    TxnResponse,
};
use quorate_proto::fence::Fence;

use crate::auth::{Actor, AuthChange};

/// Names a request, however often it is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// One life of one proposer; never used again.
    pub client: u64,
    /// Counts that proposer's requests.
    pub sequence: u64,
    /// A log index the proposer had applied before it first proposed this. Not part of the
    /// identity: it tells whether the table of results could have forgotten the request.
    pub since: u64,
}

/// One replicated command.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Given when the command may be proposed more than once.
    pub request: Option<RequestId>,
    /// Given when only the leader of one reign may act.
    pub fence: Option<Fence>,
    /// Given when a client asked: what it may do is checked when the command is applied.
    pub actor: Option<Actor>,
    /// What to do.
    pub operation: Operation,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Writes one key.
    Put(PutRequest),
    /// Deletes keys.
    DeleteRange(DeleteRangeRequest),
    /// Compares, then writes.
    Txn(TxnRequest),
    /// Forgets history.
    Compact(CompactionRequest),
    /// Makes a lease; the proposer has picked the id.
    LeaseGrant {
        /// Positive.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// Ends a lease and deletes its keys.
    LeaseRevoke {
        /// Which lease.
        id: i64,
    },
    /// Notes how many seconds leases have left, as (id, seconds).
    LeaseCheckpoint(Vec<(i64, i64)>),
    /// Replaces what a member says of itself. The first to say something ties the member
    /// to its data directory.
    MemberAttributes {
        /// Which member.
        member: u64,
        /// [`Attributes`], encoded.
        attributes: Bytes,
    },
    /// Raises or clears an alarm.
    Alarm(AlarmChange),
    /// Notes that the members are about to be replaced by an older version, or that they
    /// are not.
    Downgrade {
        /// The version, as `major.minor.0`; none cancels.
        target: Option<String>,
    },
    /// Nothing.
    Noop,
    /// Changes users and roles.
    Auth(AuthChange),
}

/// What happens to an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlarmChange {
    /// Raised, or cleared.
    pub raise: bool,
    /// The member that it is about; any number that an operator likes.
    pub member: u64,
    /// An `AlarmType`, as numbered on the wire.
    pub alarm: i32,
    /// By the member's own watch over itself, which clears it again too.
    pub automatic: bool,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Drawn when its data directory was made; another one is not this member.
    pub directory: u64,
    /// Unique in the cluster.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// The format of [`Attributes`].
const ATTRIBUTES_VERSION: u8 = 1;

impl Attributes {
    /// The bytes of a row.
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(64);
        buffer.put_u8(ATTRIBUTES_VERSION);
        buffer.put_u64(self.directory);
        for text in std::iter::once(&self.name).chain(&self.client_urls) {
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            buffer.put_u16(length);
            buffer.put_slice(&text.as_bytes()[..usize::from(length)]);
        }
        buffer.freeze()
    }

    /// Reads a row.
    ///
    /// # Errors
    /// When the bytes are not what `encode` writes.
    pub fn decode(mut bytes: &[u8]) -> Result<Attributes, DecodeError> {
        if bytes.try_get_u8()? != ATTRIBUTES_VERSION {
            return Err("its format is of another version".into());
        }
        let directory = bytes.try_get_u64()?;
        let mut texts = Vec::new();
        while bytes.has_remaining() {
            let length = usize::from(bytes.try_get_u16()?);
            let text = bytes.get(..length).ok_or(DecodeError::from("it is cut short"))?;
            texts.push(String::from_utf8(text.to_vec()).map_err(|_| DecodeError::from("a text is not UTF-8"))?);
            bytes.advance(length);
        }
        if texts.is_empty() {
            return Err("it has no name".into());
        }
        let name = texts.remove(0);
        Ok(Attributes { directory, name, client_urls: texts })
    }
}

/// The answer to a command. Headers carry the revision only.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandResult {
    /// Of a put.
    Put(PutResponse),
    /// Of a deletion.
    DeleteRange(DeleteRangeResponse),
    /// Of a transaction.
    Txn(TxnResponse),
    /// Of a compaction.
    Compact {
        /// The store's revision.
        revision: i64,
    },
    /// Of a lease grant.
    LeaseGrant {
        /// The lease.
        id: i64,
        /// Its seconds.
        ttl: i64,
        /// The store's revision.
        revision: i64,
    },
    /// Of a lease revocation.
    LeaseRevoke {
        /// The store's revision.
        revision: i64,
    },
    /// Of a change to an alarm: the alarm, if there was something to change.
    Alarm(AlarmResponse),
    /// Of everything that has nothing to say.
    Done {
        /// The store's revision.
        revision: i64,
    },
    /// The command did nothing.
    Error(ApplyError),
}

/// Why a command did nothing. The texts are etcd's, which its clients match on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ApplyError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// The writer's reign is over.
    #[error("quorate: fence is no longer current")]
    FenceNotCurrent,
    /// It has or may have taken effect before, and the result was not kept.
    #[error("etcdserver: request timed out")]
    RequestExpired,
    /// Asked of a read, which must not write.
    #[error("quorate: the transaction would write")]
    NotReadOnly,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error("etcdserver: cluster has a downgrade job in progress")]
    DowngradeInProgress,
    #[error("etcdserver: no inflight downgrade job")]
    NoDowngrade,
    #[error("etcdserver: wrong downgrade target version format")]
    DowngradeVersionFormat,
    #[error("etcdserver: invalid downgrade target version")]
    DowngradeVersion,
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    #[error("etcdserver: user name already exists")]
    UserAlreadyExist,
    #[error("etcdserver: user name not found")]
    UserNotFound,
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    #[error("etcdserver: role name already exists")]
    RoleAlreadyExist,
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    // etcd has no code for these: its clients see the bare text.
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    #[error("auth: token signing attempted with verify-only key")]
    VerifyOnly,
    #[error("bcrypt: password length exceeds 72 bytes")]
    PasswordTooLong,
    /// The entry is not a command this program knows.
    #[error("quorate: the command cannot be decoded: {0}")]
    Undecodable(String),
    #[error("quorate: the member was removed from the cluster")]
    MemberRemoved,
    #[error("quorate: the member has already run with another data directory")]
    OtherDirectory,
}

/// The bytes are no command or result of a known version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

impl From<&'static str> for DecodeError {
    fn from(text: &'static str) -> DecodeError {
        DecodeError(text.to_owned())
    }
}

impl From<prost::DecodeError> for DecodeError {
    fn from(error: prost::DecodeError) -> DecodeError {
        DecodeError(error.to_string())
    }
}

impl From<bytes::TryGetError> for DecodeError {
    fn from(_: bytes::TryGetError) -> DecodeError {
        DecodeError::from("it is cut short")
    }
}

/// Raised when a member of the version before could misread what is written.
const FORMAT_VERSION: u8 = 1;

const HAS_REQUEST: u8 = 1;
const HAS_FENCE: u8 = 2;
const HAS_ACTOR: u8 = 4;

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const LEASE_GRANT: u8 = 5;
const LEASE_REVOKE: u8 = 6;
const LEASE_CHECKPOINT: u8 = 7;
const MEMBER_ATTRIBUTES: u8 = 8;
const NOOP: u8 = 9;
const DONE: u8 = 10;
const ERROR: u8 = 11;
const AUTH: u8 = 12;
const ALARM: u8 = 16;
const DOWNGRADE: u8 = 17;

fn put_message(buffer: &mut BytesMut, kind: u8, message: &impl Message) {
    buffer.put_u8(kind);
    buffer.reserve(message.encoded_len());
    message.encode_raw(buffer);
}

impl Command {
    /// A command of this process, without request id and fence.
    pub fn new(operation: Operation) -> Command {
        Command { request: None, fence: None, actor: None, operation }
    }

    /// The bytes of an entry.
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(64);
        buffer.put_u8(FORMAT_VERSION);
        let flag = |given: bool, flag: u8| if given { flag } else { 0 };
        buffer.put_u8(
            flag(self.request.is_some(), HAS_REQUEST)
                | flag(self.fence.is_some(), HAS_FENCE)
                | flag(self.actor.is_some(), HAS_ACTOR),
        );
        if let Some(request) = self.request {
            buffer.put_u64(request.client);
            buffer.put_u64(request.sequence);
            buffer.put_u64(request.since);
        }
        if let Some(fence) = self.fence {
            buffer.put_u64(fence.generation);
            buffer.put_u64(fence.term);
        }
        if let Some(actor) = &self.actor {
            buffer.put_u64(actor.revision);
            buffer.put_u32(u32::try_from(actor.user.len()).expect("the request limit is far below 4 GiB"));
            buffer.put_slice(actor.user.as_bytes());
        }
        match &self.operation {
            Operation::Put(request) => put_message(&mut buffer, PUT, request),
            Operation::DeleteRange(request) => put_message(&mut buffer, DELETE_RANGE, request),
            Operation::Txn(request) => put_message(&mut buffer, TXN, request),
            Operation::Compact(request) => put_message(&mut buffer, COMPACT, request),
            Operation::LeaseGrant { id, ttl } => {
                buffer.put_u8(LEASE_GRANT);
                buffer.put_i64(*id);
                buffer.put_i64(*ttl);
            }
            Operation::LeaseRevoke { id } => {
                buffer.put_u8(LEASE_REVOKE);
                buffer.put_i64(*id);
            }
            Operation::LeaseCheckpoint(leases) => {
                buffer.put_u8(LEASE_CHECKPOINT);
                for (id, remaining) in leases {
                    buffer.put_i64(*id);
                    buffer.put_i64(*remaining);
                }
            }
            Operation::MemberAttributes { member, attributes } => {
                buffer.put_u8(MEMBER_ATTRIBUTES);
                buffer.put_u64(*member);
                buffer.put_slice(attributes);
            }
            Operation::Alarm(AlarmChange { raise, member, alarm, automatic }) => {
                buffer.put_u8(ALARM);
                buffer.put_u8(u8::from(*raise));
                buffer.put_u64(*member);
                buffer.put_i32(*alarm);
                buffer.put_u8(u8::from(*automatic));
            }
            Operation::Downgrade { target } => {
                buffer.put_u8(DOWNGRADE);
                buffer.put_u8(u8::from(target.is_some()));
                buffer.put_slice(target.as_deref().unwrap_or_default().as_bytes());
            }
            Operation::Noop => buffer.put_u8(NOOP),
            Operation::Auth(change) => {
                buffer.put_u8(AUTH);
                change.encode(&mut buffer);
            }
        }
        buffer.freeze()
    }

    /// Reads an entry; keys and values share its bytes.
    ///
    /// # Errors
    /// When the bytes are not a command of a known version.
    pub fn decode(mut bytes: Bytes) -> Result<Command, DecodeError> {
        if bytes.try_get_u8()? != FORMAT_VERSION {
            return Err("its format is of another version".into());
        }
        let flags = bytes.try_get_u8()?;
        if flags & !(HAS_REQUEST | HAS_FENCE | HAS_ACTOR) != 0 {
            return Err("it has unknown flags".into());
        }
        let request = if flags & HAS_REQUEST != 0 {
            let (client, sequence) = (bytes.try_get_u64()?, bytes.try_get_u64()?);
            Some(RequestId { client, sequence, since: bytes.try_get_u64()? })
        } else {
            None
        };
        let fence = if flags & HAS_FENCE != 0 {
            Some(Fence { generation: bytes.try_get_u64()?, term: bytes.try_get_u64()? })
        } else {
            None
        };
        let actor = if flags & HAS_ACTOR != 0 {
            let (revision, len) = (bytes.try_get_u64()?, bytes.try_get_u32()? as usize);
            if len > bytes.len() {
                return Err("it is cut short".into());
            }
            let user = String::from_utf8(bytes.split_to(len).into()).map_err(|_| "its actor is not in UTF-8")?;
            Some(Actor { user, revision })
        } else {
            None
        };
        let operation = match bytes.try_get_u8()? {
            PUT => Operation::Put(PutRequest::decode(bytes)?),
            DELETE_RANGE => Operation::DeleteRange(DeleteRangeRequest::decode(bytes)?),
            TXN => Operation::Txn(TxnRequest::decode(bytes)?),
            COMPACT => Operation::Compact(CompactionRequest::decode(bytes)?),
            LEASE_GRANT => Operation::LeaseGrant { id: bytes.try_get_i64()?, ttl: bytes.try_get_i64()? },
            LEASE_REVOKE => Operation::LeaseRevoke { id: bytes.try_get_i64()? },
            LEASE_CHECKPOINT => {
                let mut leases = Vec::with_capacity(bytes.len() / 16);
                while bytes.has_remaining() {
                    leases.push((bytes.try_get_i64()?, bytes.try_get_i64()?));
                }
                Operation::LeaseCheckpoint(leases)
            }
            MEMBER_ATTRIBUTES => Operation::MemberAttributes { member: bytes.try_get_u64()?, attributes: bytes },
            ALARM => Operation::Alarm(AlarmChange {
                raise: bytes.try_get_u8()? != 0,
                member: bytes.try_get_u64()?,
                alarm: bytes.try_get_i32()?,
                automatic: bytes.try_get_u8()? != 0,
            }),
            DOWNGRADE => {
                let present = bytes.try_get_u8()? != 0;
                let text = std::str::from_utf8(&bytes).map_err(|_| DecodeError::from("its version is no text"))?;
                Operation::Downgrade { target: present.then(|| text.to_owned()) }
            }
            NOOP => Operation::Noop,
            AUTH => Operation::Auth(AuthChange::decode(bytes)?),
            _ => return Err("its operation is unknown".into()),
        };
        Ok(Command { request, fence, actor, operation })
    }
}

const ERRORS: [ApplyError; 43] = [
    ApplyError::EmptyKey,
    ApplyError::KeyNotFound,
    ApplyError::ValueProvided,
    ApplyError::LeaseProvided,
    ApplyError::TooManyOps,
    ApplyError::DuplicateKey,
    ApplyError::Compacted,
    ApplyError::FutureRevision,
    ApplyError::LeaseNotFound,
    ApplyError::LeaseExists,
    ApplyError::LeaseTtlTooLarge,
    ApplyError::InvalidSortOption,
    ApplyError::FenceNotCurrent,
    ApplyError::RequestExpired,
    ApplyError::NotReadOnly,
    ApplyError::NoSpace,
    ApplyError::Corrupt,
    ApplyError::DowngradeInProgress,
    ApplyError::NoDowngrade,
    ApplyError::DowngradeVersionFormat,
    ApplyError::DowngradeVersion,
    ApplyError::RootUserNotExist,
    ApplyError::RootRoleNotExist,
    ApplyError::UserEmpty,
    ApplyError::UserAlreadyExist,
    ApplyError::UserNotFound,
    ApplyError::RoleEmpty,
    ApplyError::RoleAlreadyExist,
    ApplyError::RoleNotFound,
    ApplyError::RoleNotGranted,
    ApplyError::PermissionNotGranted,
    ApplyError::PermissionNotGiven,
    ApplyError::PermissionDenied,
    ApplyError::InvalidAuthManagement,
    ApplyError::AuthNotEnabled,
    ApplyError::AuthFailed,
    ApplyError::InvalidAuthToken,
    ApplyError::AuthOldRevision,
    ApplyError::NoPasswordUser,
    ApplyError::VerifyOnly,
    ApplyError::PasswordTooLong,
    ApplyError::MemberRemoved,
    ApplyError::OtherDirectory,
];

impl CommandResult {
    /// The bytes for a peer or for the table of results.
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(32);
        match self {
            CommandResult::Put(response) => put_message(&mut buffer, PUT, response),
            CommandResult::DeleteRange(response) => put_message(&mut buffer, DELETE_RANGE, response),
            CommandResult::Txn(response) => put_message(&mut buffer, TXN, response),
            CommandResult::Compact { revision } => {
                buffer.put_u8(COMPACT);
                buffer.put_i64(*revision);
            }
            CommandResult::LeaseGrant { id, ttl, revision } => {
                buffer.put_u8(LEASE_GRANT);
                buffer.put_i64(*id);
                buffer.put_i64(*ttl);
                buffer.put_i64(*revision);
            }
            CommandResult::LeaseRevoke { revision } => {
                buffer.put_u8(LEASE_REVOKE);
                buffer.put_i64(*revision);
            }
            CommandResult::Alarm(response) => put_message(&mut buffer, ALARM, response),
            CommandResult::Done { revision } => {
                buffer.put_u8(DONE);
                buffer.put_i64(*revision);
            }
            CommandResult::Error(error) => {
                buffer.put_u8(ERROR);
                match ERRORS.iter().position(|known| known == error) {
                    Some(position) => buffer.put_u8(position as u8),
                    None => {
                        buffer.put_u8(u8::MAX);
                        if let ApplyError::Undecodable(reason) = error {
                            buffer.put_slice(reason.as_bytes());
                        }
                    }
                }
            }
        }
        buffer.freeze()
    }

    /// Reads what `encode` wrote.
    ///
    /// # Errors
    /// When the bytes are not a result.
    pub fn decode(mut bytes: Bytes) -> Result<CommandResult, DecodeError> {
        Ok(match bytes.try_get_u8()? {
            PUT => CommandResult::Put(PutResponse::decode(bytes)?),
            DELETE_RANGE => CommandResult::DeleteRange(DeleteRangeResponse::decode(bytes)?),
            TXN => CommandResult::Txn(TxnResponse::decode(bytes)?),
            COMPACT => CommandResult::Compact { revision: bytes.try_get_i64()? },
            LEASE_GRANT => {
                let (id, ttl) = (bytes.try_get_i64()?, bytes.try_get_i64()?);
                CommandResult::LeaseGrant { id, ttl, revision: bytes.try_get_i64()? }
            }
            LEASE_REVOKE => CommandResult::LeaseRevoke { revision: bytes.try_get_i64()? },
            ALARM => CommandResult::Alarm(AlarmResponse::decode(bytes)?),
            DONE => CommandResult::Done { revision: bytes.try_get_i64()? },
            ERROR => {
                let code = bytes.try_get_u8()? as usize;
                let text = || String::from_utf8_lossy(&bytes).into_owned();
                let error = ERRORS.get(code).cloned();
                CommandResult::Error(error.unwrap_or_else(|| ApplyError::Undecodable(text())))
            }
            _ => return Err("the result is of an unknown kind".into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command> {
        let put = PutRequest { key: "k".into(), value: "v".into(), lease: 7, ..Default::default() };
        let txn = TxnRequest { compare: vec![Default::default()], ..Default::default() };
        let mut operations = vec![
            Operation::Put(put),
            Operation::DeleteRange(DeleteRangeRequest { key: "a".into(), ..Default::default() }),
            Operation::Txn(txn),
            Operation::Compact(CompactionRequest { revision: 9, physical: true }),
            Operation::LeaseGrant { id: 5, ttl: 60 },
            Operation::LeaseRevoke { id: -5 },
            Operation::LeaseCheckpoint(vec![(1, 2), (3, 4)]),
            Operation::MemberAttributes { member: u64::MAX, attributes: "x".into() },
            Operation::Alarm(AlarmChange { raise: true, member: 7, alarm: 2, automatic: false }),
            Operation::Alarm(AlarmChange { raise: false, member: u64::MAX, alarm: -1, automatic: true }),
            Operation::Downgrade { target: Some("3.6.0".to_owned()) },
            Operation::Downgrade { target: None },
            Operation::Noop,
        ];
        operations.extend(crate::auth::samples().into_iter().map(Operation::Auth));
        let request = Some(RequestId { client: 1, sequence: 2, since: 3 });
        let fence = Some(Fence { generation: 4, term: 5 });
        let bare = operations.iter().cloned().map(Command::new);
        let actor = |user: &str| Some(Actor { user: user.to_owned(), revision: 3 });
        let of = |actor: Option<Actor>| {
            let command = move |operation: &Operation| Command {
                request,
                fence,
                actor: actor.clone(),
                operation: operation.clone(),
            };
            operations.iter().map(command).collect::<Vec<_>>()
        };
        bare.chain(of(None)).chain(of(actor("root"))).chain(of(actor(""))).collect()
    }

    #[test]
    fn commands_read_back_as_written() {
        for command in commands() {
            assert_eq!(Command::decode(command.encode()), Ok(command));
        }
    }

    #[test]
    fn attributes_read_back_as_written() {
        let attributes =
            Attributes { directory: 7, name: "m".into(), client_urls: vec!["http://a:1".into(), String::new()] };
        let bytes = attributes.encode();
        assert_eq!(Attributes::decode(&bytes), Ok(attributes));
        for len in [0, 1, 8, 9, 10, bytes.len() - 1] {
            assert!(Attributes::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(Attributes::decode(b"127.0.0.1:2379").is_err());
    }

    #[test]
    fn damaged_commands_are_errors_not_panics() {
        for command in commands() {
            let bytes = command.encode();
            for len in 0..bytes.len() {
                let _ = Command::decode(bytes.slice(..len));
            }
            for position in 0..bytes.len() {
                let mut damaged = bytes.to_vec();
                damaged[position] ^= 0x55;
                let _ = Command::decode(damaged.into());
            }
        }
        let error = Command::decode(Bytes::from_static(&[9, 0, 9])).expect_err("another version");
        assert_eq!(error.to_string(), "its format is of another version");
    }

    #[test]
    fn results_read_back_as_written() {
        let mut results: Vec<_> = ERRORS.into_iter().map(CommandResult::Error).collect();
        results.push(CommandResult::Error(ApplyError::Undecodable("why".to_owned())));
        results.push(CommandResult::LeaseGrant { id: 1, ttl: 2, revision: 3 });
        results.push(CommandResult::Compact { revision: 3 });
        results.push(CommandResult::LeaseRevoke { revision: 3 });
        results.push(CommandResult::Done { revision: 3 });
        results.push(CommandResult::Alarm(AlarmResponse { alarms: vec![Default::default()], ..Default::default() }));
        results.push(CommandResult::Put(PutResponse::default()));
        results.push(CommandResult::DeleteRange(DeleteRangeResponse { deleted: 2, ..Default::default() }));
        results.push(CommandResult::Txn(TxnResponse { succeeded: true, ..Default::default() }));
        for result in results {
            assert_eq!(CommandResult::decode(result.encode()), Ok(result));
        }
    }
}
