//! One replicated change of users and roles, and its bytes in the log.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::authpb::Permission;

use crate::command::DecodeError;

/// What changes. Names are as the client gave them; passwords are hashed before.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum AuthChange {
    /// From here on the port asks who is there. `secret` signs the tokens from now on, so
    /// that those of an earlier time are void.
    Enable {
        secret: Bytes,
    },
    Disable,
    /// Gives the key that signs tokens where there is none yet.
    Secret {
        secret: Bytes,
    },
    UserAdd {
        name: String,
        password: Bytes,
        no_password: bool,
    },
    UserDelete {
        name: String,
    },
    UserChangePassword {
        name: String,
        password: Bytes,
    },
    UserGrantRole {
        user: String,
        role: String,
    },
    UserRevokeRole {
        user: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    RoleGrantPermission {
        role: String,
        permission: Option<Permission>,
    },
    RoleRevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

const ENABLE: u8 = 1;
const DISABLE: u8 = 2;
const SECRET: u8 = 3;
const USER_ADD: u8 = 4;
const USER_DELETE: u8 = 5;
const USER_CHANGE_PASSWORD: u8 = 6;
const USER_GRANT_ROLE: u8 = 7;
const USER_REVOKE_ROLE: u8 = 8;
const ROLE_ADD: u8 = 9;
const ROLE_DELETE: u8 = 10;
const ROLE_GRANT_PERMISSION: u8 = 11;
const ROLE_REVOKE_PERMISSION: u8 = 12;

impl AuthChange {
    /// Appends the bytes: the kind, then each part with its length.
    pub(crate) fn encode(&self, buffer: &mut BytesMut) {
        use AuthChange as Change;
        let mut put = |kind: u8, parts: &[&[u8]]| {
            buffer.put_u8(kind);
            for part in parts {
                buffer.put_u32(u32::try_from(part.len()).expect("the request limit is far below 4 GiB"));
                buffer.put_slice(part);
            }
        };
        match self {
            Change::Enable { secret } => put(ENABLE, &[secret]),
            Change::Disable => put(DISABLE, &[]),
            Change::Secret { secret } => put(SECRET, &[secret]),
            Change::UserAdd { name, password, no_password } => {
                put(USER_ADD, &[name.as_bytes(), password, &[u8::from(*no_password)]]);
            }
            Change::UserDelete { name } => put(USER_DELETE, &[name.as_bytes()]),
            Change::UserChangePassword { name, password } => put(USER_CHANGE_PASSWORD, &[name.as_bytes(), password]),
            Change::UserGrantRole { user, role } => put(USER_GRANT_ROLE, &[user.as_bytes(), role.as_bytes()]),
            Change::UserRevokeRole { user, role } => put(USER_REVOKE_ROLE, &[user.as_bytes(), role.as_bytes()]),
            Change::RoleAdd { name } => put(ROLE_ADD, &[name.as_bytes()]),
            Change::RoleDelete { name } => put(ROLE_DELETE, &[name.as_bytes()]),
            Change::RoleGrantPermission { role, permission } => match permission {
                Some(permission) => put(ROLE_GRANT_PERMISSION, &[role.as_bytes(), &permission.encode_to_vec(), &[1]]),
                None => put(ROLE_GRANT_PERMISSION, &[role.as_bytes(), &[], &[0]]),
            },
            Change::RoleRevokePermission { role, key, range_end } => {
                put(ROLE_REVOKE_PERMISSION, &[role.as_bytes(), key, range_end]);
            }
        }
    }

    /// Reads what `encode` wrote.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<AuthChange, DecodeError> {
        use AuthChange as Change;
        let kind = bytes.try_get_u8()?;
        let mut part = || -> Result<Bytes, DecodeError> {
            let len = bytes.try_get_u32()? as usize;
            if len > bytes.len() {
                return Err("it is cut short".into());
            }
            Ok(bytes.split_to(len))
        };
        let text =
            |part: Bytes| String::from_utf8(part.into()).map_err(|_| DecodeError::from("a name is not in UTF-8"));
        Ok(match kind {
            ENABLE => Change::Enable { secret: part()? },
            DISABLE => Change::Disable,
            SECRET => Change::Secret { secret: part()? },
            USER_ADD => {
                let (name, password) = (text(part()?)?, part()?);
                Change::UserAdd { name, password, no_password: part()?[..] == [1] }
            }
            USER_DELETE => Change::UserDelete { name: text(part()?)? },
            USER_CHANGE_PASSWORD => Change::UserChangePassword { name: text(part()?)?, password: part()? },
            USER_GRANT_ROLE => Change::UserGrantRole { user: text(part()?)?, role: text(part()?)? },
            USER_REVOKE_ROLE => Change::UserRevokeRole { user: text(part()?)?, role: text(part()?)? },
            ROLE_ADD => Change::RoleAdd { name: text(part()?)? },
            ROLE_DELETE => Change::RoleDelete { name: text(part()?)? },
            ROLE_GRANT_PERMISSION => {
                let (role, permission) = (text(part()?)?, part()?);
                let given = part()?[..] == [1];
                let permission = given.then(|| Permission::decode(permission)).transpose()?;
                Change::RoleGrantPermission { role, permission }
            }
            ROLE_REVOKE_PERMISSION => {
                Change::RoleRevokePermission { role: text(part()?)?, key: part()?, range_end: part()? }
            }
            _ => return Err("its change of users and roles is unknown".into()),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One of each kind.
    pub(crate) fn samples() -> Vec<AuthChange> {
        let (name, user, role): (String, String, String) = ("näme".into(), "user".into(), "role".into());
        let permission = Permission { perm_type: 2, key: "a".into(), range_end: "\0".into() };
        vec![
            AuthChange::Enable { secret: "s".into() },
            AuthChange::Disable,
            AuthChange::Secret { secret: Bytes::new() },
            AuthChange::UserAdd { name: name.clone(), password: "$2b$".into(), no_password: false },
            AuthChange::UserAdd { name: name.clone(), password: Bytes::new(), no_password: true },
            AuthChange::UserDelete { name: name.clone() },
            AuthChange::UserChangePassword { name: name.clone(), password: "$2b$".into() },
            AuthChange::UserGrantRole { user: user.clone(), role: role.clone() },
            AuthChange::UserRevokeRole { user, role: role.clone() },
            AuthChange::RoleAdd { name: name.clone() },
            AuthChange::RoleDelete { name },
            AuthChange::RoleGrantPermission { role: role.clone(), permission: Some(permission) },
            AuthChange::RoleGrantPermission { role: role.clone(), permission: Some(Permission::default()) },
            AuthChange::RoleGrantPermission { role: role.clone(), permission: None },
            AuthChange::RoleRevokePermission { role, key: "a".into(), range_end: Bytes::new() },
        ]
    }
}
