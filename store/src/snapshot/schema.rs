//! What etcd keeps under which key of which bucket (etcd 3.4: `mvcc/kvstore.go`,
//! `mvcc/revision.go`, `lease/lessor.go`, `auth/store.go`).

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use quorate_proto::authpb::{Role, User};
use quorate_proto::mvccpb::KeyValue;

use crate::mvcc::{AuthRow, LeaseRecord, Revision, Row};

pub(super) const ALARM: &str = "alarm";
pub(super) const AUTH: &str = "auth";
pub(super) const AUTH_ROLES: &str = "authRoles";
pub(super) const AUTH_USERS: &str = "authUsers";
pub(super) const CLUSTER: &str = "cluster";
pub(super) const KEY: &str = "key";
pub(super) const LEASE: &str = "lease";
pub(super) const MEMBERS: &str = "members";
pub(super) const MEMBERS_REMOVED: &str = "members_removed";
pub(super) const META: &str = "meta";
/// Ours; etcd keeps buckets that it does not know.
pub(super) const QUORATE: &str = "quorate";

pub(super) const AUTH_ENABLED: &[u8] = b"authEnabled";
pub(super) const AUTH_REVISION: &[u8] = b"authRevision";
pub(super) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub(super) const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
pub(super) const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
pub(super) const TERM: &[u8] = b"term";
pub(super) const GENERATION: &[u8] = b"generation";

/// main u64, '_', sub u64.
const REVISION_BYTES: usize = 17;
/// Follows the revision of a deletion.
const TOMBSTONE: u8 = b't';

pub(super) fn revision_key(revision: Revision, tombstone: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(REVISION_BYTES + 1);
    key.put_i64(revision.main);
    key.put_u8(b'_');
    key.put_u64(u64::from(revision.sub));
    if tombstone {
        key.put_u8(TOMBSTONE);
    }
    key
}

/// The revision, and whether it deleted.
pub(super) fn parse_revision_key(mut key: &[u8]) -> Result<(Revision, bool), &'static str> {
    let tombstone = match key.get(REVISION_BYTES..) {
        Some([]) => false,
        Some([TOMBSTONE]) => true,
        _ => return Err("a key is no revision"),
    };
    let main = key.get_i64();
    let separator = key.get_u8();
    let sub = u32::try_from(key.get_u64()).map_err(|_| "a revision has too many changes")?;
    if main < 0 || separator != b'_' {
        return Err("a key is no revision");
    }
    Ok((Revision { main, sub }, tombstone))
}

/// The row under the revision's key; of a deletion it says the key alone.
pub(super) fn version_value(key: Bytes, row: &Row) -> Vec<u8> {
    if row.tombstone {
        return KeyValue { key, ..Default::default() }.encode_to_vec();
    }
    row.to_key_value(key).encode_to_vec()
}

/// The key and its version; none where a revision stands for itself alone, as a restore that
/// raised it leaves one behind.
pub(super) fn parse_version(
    revision: Revision,
    tombstone: bool,
    value: Bytes,
) -> Result<Option<(Bytes, Row)>, &'static str> {
    let KeyValue { key, create_revision, mod_revision, version, value, lease } =
        KeyValue::decode(value).map_err(|_| "a value is no key with its value")?;
    if key.is_empty() {
        return Ok(None);
    }
    if tombstone {
        let row = Row { revision, tombstone, create: 0, version: 0, lease: 0, value: Bytes::new() };
        return Ok(Some((key, row)));
    }
    let sound = mod_revision == revision.main && (1..=mod_revision).contains(&create_revision) && version >= 1;
    if !sound {
        return Err("the revisions of a key contradict each other");
    }
    Ok(Some((key, Row { revision, tombstone, create: create_revision, version, lease, value })))
}

pub(super) fn number(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(super) fn parse_number(bytes: &[u8]) -> Result<u64, &'static str> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| "a number has another length")
}

/// etcd's `leasepb.Lease`.
#[derive(Clone, Copy, PartialEq, Message)]
struct LeaseValue {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining: i64,
}

pub(super) fn lease_value(lease: &LeaseRecord) -> Vec<u8> {
    LeaseValue { id: lease.id, ttl: lease.ttl, remaining: lease.remaining }.encode_to_vec()
}

pub(super) fn parse_lease(key: &[u8], value: &[u8]) -> Result<LeaseRecord, &'static str> {
    let LeaseValue { id, ttl, remaining } = LeaseValue::decode(value).map_err(|_| "a value is no lease")?;
    if parse_number(key)? != id as u64 || id == 0 || ttl < 0 || remaining < 0 {
        return Err("a lease contradicts itself");
    }
    Ok(LeaseRecord { id, ttl, remaining })
}

/// Checks that a user, or a role, is one, and bears the name of its key; returns that.
pub(super) fn parse_auth_row<'a>(kind: AuthRow, key: &'a [u8], value: &[u8]) -> Result<&'a str, &'static str> {
    let name = match kind {
        AuthRow::User => User::decode(value).map(|user| user.name),
        AuthRow::Role => Role::decode(value).map(|role| role.name),
    };
    let name = name.map_err(|_| "a value is no user and no role")?;
    if name != key || name.is_empty() {
        return Err("a user or a role bears another name");
    }
    str::from_utf8(key).map_err(|_| "a name is not in UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_read_back_and_sort() {
        let mut keys = Vec::new();
        for main in [1, 2, 255, 256, i64::MAX] {
            for sub in [0, 1, u32::MAX] {
                for tombstone in [false, true] {
                    let revision = Revision { main, sub };
                    let key = revision_key(revision, tombstone);
                    assert_eq!(parse_revision_key(&key), Ok((revision, tombstone)));
                    keys.push(key);
                }
            }
        }
        assert!(keys.is_sorted());
        for bad in [&b""[..], b"12345678_1234567", b"12345678_12345678x", b"12345678-\0\0\0\0\0\0\0\0", &[255; 17]] {
            assert!(parse_revision_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn users_bear_the_name_of_their_key() {
        let user = User { name: "u".into(), ..Default::default() }.encode_to_vec();
        assert_eq!(parse_auth_row(AuthRow::User, b"u", &user), Ok("u"));
        assert!(parse_auth_row(AuthRow::User, b"v", &user).is_err());
        assert!(parse_auth_row(AuthRow::Role, b"u", &[255]).is_err());
        assert!(parse_auth_row(AuthRow::User, b"", &[]).is_err());
    }

    #[test]
    fn leases_read_back() {
        let lease = LeaseRecord { id: 77, ttl: 60, remaining: 5 };
        assert_eq!(parse_lease(&number(77), &lease_value(&lease)), Ok(lease));
        assert!(parse_lease(&number(78), &lease_value(&lease)).is_err());
        assert!(parse_lease(&number(77), &[255]).is_err());
        assert!(parse_lease(b"7", &lease_value(&lease)).is_err());
    }
}
