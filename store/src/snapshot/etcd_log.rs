//! The end of etcd's write-ahead log: what an etcd that was killed has confirmed and its
//! backend, written every tenth of a second, does not hold (etcd 3.4: `wal/decoder.go`,
//! `wal/wal.go`, `etcdserver/server.go`).

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcd::{
    CompactionRequest, DeleteRangeRequest, LeaseCheckpointRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    TxnRequest,
};

use super::{SnapshotError, file_error};
use crate::auth::{Actor, AuthChange};
use crate::command::{Command, Operation};

/// The kinds of records.
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CRC: i64 = 4;

/// What a power failure leaves of a record that was being written ends with a sector of zeros.
const SECTOR_BYTES: usize = 512;

/// etcd's `walpb.Record`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// The part of etcd's `raftpb.HardState` that counts.
#[derive(Clone, Copy, PartialEq, Message)]
struct HardState {
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// etcd's `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    /// 0 is a request, all others change the members.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

/// etcd's `RequestHeader`.
#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "2")]
    username: String,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
}

/// etcd's `InternalRaftRequest`, as far as it changes keys and leases.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "4")]
    put: Option<PutRequest>,
    #[prost(message, optional, tag = "5")]
    delete_range: Option<DeleteRangeRequest>,
    #[prost(message, optional, tag = "6")]
    txn: Option<TxnRequest>,
    #[prost(message, optional, tag = "7")]
    compaction: Option<CompactionRequest>,
    #[prost(message, optional, tag = "8")]
    lease_grant: Option<LeaseGrantRequest>,
    #[prost(message, optional, tag = "9")]
    lease_revoke: Option<LeaseRevokeRequest>,
    #[prost(message, optional, tag = "11")]
    lease_checkpoint: Option<LeaseCheckpointRequest>,
    #[prost(message, optional, tag = "100")]
    header: Option<Header>,
    #[prost(message, optional, tag = "1000")]
    auth_enable: Option<Anything>,
    #[prost(message, optional, tag = "1011")]
    auth_disable: Option<Anything>,
    #[prost(message, optional, tag = "1100")]
    user_add: Option<Anything>,
    #[prost(message, optional, tag = "1101")]
    user_delete: Option<Anything>,
    #[prost(message, optional, tag = "1103")]
    user_change_password: Option<Anything>,
    #[prost(message, optional, tag = "1104")]
    user_grant_role: Option<Anything>,
    #[prost(message, optional, tag = "1105")]
    user_revoke_role: Option<Anything>,
    #[prost(message, optional, tag = "1200")]
    role_add: Option<Anything>,
    #[prost(message, optional, tag = "1201")]
    role_delete: Option<Anything>,
    #[prost(message, optional, tag = "1203")]
    role_grant_permission: Option<Anything>,
    #[prost(message, optional, tag = "1204")]
    role_revoke_permission: Option<Anything>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Anything {}

impl Request {
    /// Otherwise than by letting them count, or not: etcd may note that in its backend without
    /// the entry's index, and does it again when it starts.
    fn changes_users(&self) -> bool {
        let changes = [
            &self.user_add,
            &self.user_delete,
            &self.user_change_password,
            &self.user_grant_role,
            &self.user_revoke_role,
            &self.role_add,
            &self.role_delete,
            &self.role_grant_permission,
            &self.role_revoke_permission,
        ];
        changes.into_iter().any(Option::is_some)
    }

    /// None changes nothing that is kept here.
    fn command(self) -> Option<Command> {
        let operation = if let Some(request) = self.put {
            Operation::Put(request)
        } else if let Some(request) = self.delete_range {
            Operation::DeleteRange(request)
        } else if let Some(request) = self.txn {
            Operation::Txn(request)
        } else if let Some(request) = self.compaction {
            Operation::Compact(request)
        } else if let Some(LeaseGrantRequest { id, ttl }) = self.lease_grant {
            Operation::LeaseGrant { id, ttl }
        } else if let Some(LeaseRevokeRequest { id }) = self.lease_revoke {
            Operation::LeaseRevoke { id }
        } else if let Some(LeaseCheckpointRequest { checkpoints }) = self.lease_checkpoint {
            Operation::LeaseCheckpoint(checkpoints.into_iter().map(|lease| (lease.id, lease.remaining_ttl)).collect())
        } else if self.auth_enable.is_some() {
            // Whoever signs in first brings the secret.
            Operation::Auth(AuthChange::Enable { secret: Bytes::new() })
        } else if self.auth_disable.is_some() {
            Operation::Auth(AuthChange::Disable)
        } else {
            return None;
        };
        let Header { username, auth_revision } = self.header.unwrap_or_default();
        // etcd itself ends leases, and notes what is left of them.
        let own = matches!(operation, Operation::LeaseRevoke { .. } | Operation::LeaseCheckpoint(_));
        let actor = (!own || !username.is_empty()).then_some(Actor { user: username, revision: auth_revision });
        Some(Command { actor, ..Command::new(operation) })
    }
}

/// What the log has after the entry that the backend applied last.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) commands: Vec<Command>,
    /// The last entry of the log that counts.
    pub(super) last: u64,
}

/// Reads what the log in `directory` holds after entry `applied`. Of an etcd that was
/// `alone` all of it counts: started again it would commit it. Another one may hold entries
/// that its cluster has never decided on; those count up to the last it knew to be committed.
///
/// # Errors
/// When the log is damaged, ends before the backend does, or cannot be taken over.
pub(super) fn read(directory: &Path, applied: u64, alone: bool) -> Result<Tail, SnapshotError> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(file_error("list", directory))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    // Their names begin with their number, as sixteen digits.
    files.sort();
    let (mut entries, mut commit, mut crc): (Vec<Entry>, _, _) = (Vec::new(), 0, 0);
    for (position, path) in files.iter().enumerate() {
        let damaged = |reason: &str| SnapshotError::Log { path: path.clone(), reason: reason.to_owned() };
        let is_last = position + 1 == files.len();
        let mut frames = Frames::open(path).map_err(file_error("open", path))?;
        while let Some(frame) = frames.next().map_err(file_error("read", path))? {
            let record = frame.whole.then(|| Record::decode(frame.bytes.clone()).ok()).flatten();
            let expected = record.as_ref().map(|record| match record.kind {
                CRC => record.crc,
                _ => crc32c::crc32c_append(crc, &record.data),
            });
            let Some(record) = record.filter(|record| Some(record.crc) == expected) else {
                if is_last && frame.is_torn() {
                    break;
                }
                return Err(damaged("a record does not have its checksum"));
            };
            // At the start of a file stands what the one before ended with.
            if record.kind == CRC && position > 0 && record.crc != crc {
                return Err(damaged("it does not follow the file before it"));
            }
            crc = record.crc;
            match record.kind {
                ENTRY => {
                    let entry = Entry::decode(record.data).map_err(|_| damaged("an entry is none"))?;
                    if entry.index > applied {
                        // What a later leader wrote replaces what stood there.
                        entries.retain(|kept| kept.index < entry.index);
                        entries.push(entry);
                    }
                }
                STATE => {
                    let state = HardState::decode(record.data).map_err(|_| damaged("a state is none"))?;
                    commit = state.commit;
                }
                _ => {}
            }
        }
    }
    if !alone {
        entries.retain(|entry| entry.index <= commit);
    }
    let refused = |reason: &str| SnapshotError::Log { path: directory.to_owned(), reason: reason.to_owned() };
    if (applied + 1..).zip(&entries).any(|(expected, entry)| entry.index != expected) {
        return Err(refused("entries are missing after the last one that is in the backend"));
    }
    let mut tail = Tail { last: entries.last().map_or(applied, |entry| entry.index), commands: Vec::new() };
    for entry in entries.into_iter().filter(|entry| entry.kind == 0 && !entry.data.is_empty()) {
        // What does not decode is of etcd's old store, which holds no keys.
        let Ok(request) = Request::decode(entry.data) else { continue };
        if request.changes_users() {
            let reason = "its last entries change users or roles, and the backend does not have them yet; start this \
                          etcd once more, write any key, stop it with SIGTERM, and import again";
            return Err(refused(reason));
        }
        tail.commands.extend(request.command());
    }
    Ok(tail)
}

/// The records of one file, checked for their length only.
struct Frames {
    reader: BufReader<File>,
    left: u64,
}

struct Frame {
    bytes: Bytes,
    whole: bool,
}

impl Frame {
    /// Whether it looks as if it was being written when everything ended.
    fn is_torn(&self) -> bool {
        let end = &self.bytes[self.bytes.len().saturating_sub(SECTOR_BYTES)..];
        !self.whole || end.iter().all(|byte| *byte == 0)
    }
}

impl Frames {
    fn open(path: &Path) -> io::Result<Frames> {
        let file = File::open(path)?;
        let left = file.metadata()?.len();
        Ok(Frames { reader: BufReader::with_capacity(1 << 20, file), left })
    }

    /// None at the end of the file, or of what was written into it.
    fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 8];
        if self.left < head.len() as u64 {
            return Ok(None);
        }
        self.reader.read_exact(&mut head)?;
        self.left -= head.len() as u64;
        let head = u64::from_le_bytes(head);
        if head == 0 {
            return Ok(None);
        }
        // The low 56 bits are the length; with the highest bit set, three more are the padding.
        let length = head & (u64::MAX >> 8);
        let padding = if head >> 63 == 1 { (head >> 56) & 7 } else { 0 };
        let taken = length.saturating_add(padding).min(self.left);
        let mut bytes = vec![0; usize::try_from(taken).map_err(io::Error::other)?];
        self.reader.read_exact(&mut bytes)?;
        self.left -= taken;
        let whole = taken == length + padding;
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(Some(Frame { bytes: bytes.into(), whole }))
    }
}
