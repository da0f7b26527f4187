//! Users and roles as they are replicated, and what each change does to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;
use quorate_proto::authpb::permission::Type;
use quorate_proto::authpb::{Permission, Role, User, UserAddOptions};

use super::interval::IntervalSet;
use super::{AuthChange, ROOT};
use crate::command::ApplyError;

/// All of it, at one revision. Cheap to keep many of: a change makes a new one.
#[derive(Debug)]
pub struct State {
    enabled: bool,
    revision: u64,
    secret: Bytes,
    users: BTreeMap<String, Account>,
    roles: BTreeMap<String, Role>,
}

#[derive(Debug)]
struct Account {
    user: User,
    /// What all roles together permit; found out when first asked for.
    merged: OnceLock<Merged>,
}

#[derive(Debug, Default)]
struct Merged {
    read: IntervalSet,
    write: IntervalSet,
}

/// What a change touched, to be written or removed as rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    /// Enabled or not, the revision and the secret.
    Whole,
    /// One user.
    User(String),
    /// One role.
    Role(String),
}

impl Default for State {
    /// etcd's: the first revision is 1.
    fn default() -> State {
        State { enabled: false, revision: 1, secret: Bytes::new(), users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Clone for State {
    fn clone(&self) -> State {
        let users = self.users.iter().map(|(name, account)| (name.clone(), Account::new(account.user.clone())));
        State {
            enabled: self.enabled,
            revision: self.revision,
            secret: self.secret.clone(),
            users: users.collect(),
            roles: self.roles.clone(),
        }
    }
}

impl Account {
    fn new(user: User) -> Account {
        Account { user, merged: OnceLock::new() }
    }

    fn has_role(&self, role: &str) -> bool {
        self.user.roles.iter().any(|held| held == role)
    }
}

impl State {
    /// What was read from the rows of a database.
    pub(crate) fn from_rows(
        (enabled, revision, secret): (bool, u64, Bytes),
        users: impl IntoIterator<Item = (String, User)>,
        roles: impl IntoIterator<Item = (String, Role)>,
    ) -> State {
        let users = users.into_iter().map(|(name, user)| (name, Account::new(user))).collect();
        State { enabled, revision, secret, users, roles: roles.into_iter().collect() }
    }

    /// Whether callers have to say who they are.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Counts the changes.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Signs simple tokens; empty when none was given yet.
    pub(crate) fn secret(&self) -> &Bytes {
        &self.secret
    }

    /// One user.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|account| &account.user)
    }

    /// All users, by name.
    pub fn users(&self) -> impl Iterator<Item = (&String, &User)> {
        self.users.iter().map(|(name, account)| (name, &account.user))
    }

    /// One role.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// All roles, by name.
    pub fn roles(&self) -> impl Iterator<Item = (&String, &Role)> {
        self.roles.iter()
    }

    /// What a role permits; the root role has it without being told.
    pub(crate) fn permissions(&self, role: &str) -> Option<Vec<Permission>> {
        let found = self.roles.get(role)?;
        if role == ROOT {
            let everything = Permission {
                perm_type: Type::Readwrite.into(),
                key: Bytes::new(),
                range_end: Bytes::from_static(b"\0"),
            };
            return Some(vec![everything]);
        }
        Some(found.key_permission.clone())
    }

    pub(crate) fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|account| account.has_role(role))
    }

    /// Whether a user may read all of a range.
    pub(super) fn may_read(&self, user: &str, key: &Bytes, range_end: &Bytes) -> bool {
        self.merged(user).is_some_and(|merged| merged.read.covers(key, range_end))
    }

    /// Whether a user may write all of a range.
    pub(super) fn may_write(&self, user: &str, key: &Bytes, range_end: &Bytes) -> bool {
        self.merged(user).is_some_and(|merged| merged.write.covers(key, range_end))
    }

    fn merged(&self, user: &str) -> Option<&Merged> {
        let account = self.users.get(user)?;
        Some(account.merged.get_or_init(|| {
            let permissions: Vec<&Permission> = account
                .user
                .roles
                .iter()
                .filter_map(|role| self.roles.get(role))
                .flat_map(|role| &role.key_permission)
                .collect();
            let of = |wanted: Type| {
                let granted =
                    permissions.iter().filter(|one| one.perm_type() == wanted || one.perm_type() == Type::Readwrite);
                IntervalSet::union(granted.map(|one| (&one.key, &one.range_end)))
            };
            Merged { read: of(Type::Read), write: of(Type::Write) }
        }))
    }

    /// Makes a change; returns which rows it touched.
    ///
    /// # Errors
    /// As etcd; then nothing was changed.
    pub(crate) fn apply(&mut self, change: &AuthChange) -> Result<BTreeSet<Row>, ApplyError> {
        use AuthChange as Change;
        let mut touched = BTreeSet::new();
        match change {
            Change::Enable { secret } => {
                if self.enabled {
                    return Ok(touched);
                }
                let root = self.users.get(ROOT).ok_or(ApplyError::RootUserNotExist)?;
                if !root.has_role(ROOT) {
                    return Err(ApplyError::RootRoleNotExist);
                }
                self.enabled = true;
                self.secret = secret.clone();
                // As etcd, which counts changes of users and roles only.
                touched.insert(Row::Whole);
                return Ok(touched);
            }
            Change::Disable => {
                if !self.enabled {
                    return Ok(touched);
                }
                self.enabled = false;
                self.secret = Bytes::new();
            }
            Change::Secret { secret } => {
                if self.enabled && self.secret.is_empty() {
                    self.secret = secret.clone();
                    touched.insert(Row::Whole);
                }
                return Ok(touched);
            }
            Change::UserAdd { name, password, no_password } => {
                if name.is_empty() {
                    return Err(ApplyError::UserEmpty);
                }
                if self.users.contains_key(name) {
                    return Err(ApplyError::UserAlreadyExist);
                }
                let user = User {
                    name: Bytes::copy_from_slice(name.as_bytes()),
                    password: if *no_password { Bytes::new() } else { password.clone() },
                    roles: Vec::new(),
                    options: Some(UserAddOptions { no_password: *no_password }),
                };
                self.users.insert(name.clone(), Account::new(user));
                touched.insert(Row::User(name.clone()));
            }
            Change::UserDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(ApplyError::InvalidAuthManagement);
                }
                self.users.remove(name).ok_or(ApplyError::UserNotFound)?;
                touched.insert(Row::User(name.clone()));
            }
            Change::UserChangePassword { name, password } => {
                let account = self.users.get_mut(name).ok_or(ApplyError::UserNotFound)?;
                if !no_password(&account.user) {
                    account.user.password = password.clone();
                }
                touched.insert(Row::User(name.clone()));
            }
            Change::UserGrantRole { user, role } => {
                let account = self.users.get_mut(user).ok_or(ApplyError::UserNotFound)?;
                if role != ROOT && !self.roles.contains_key(role) {
                    return Err(ApplyError::RoleNotFound);
                }
                let Err(position) = account.user.roles.binary_search(role) else { return Ok(touched) };
                account.user.roles.insert(position, role.clone());
                touched.insert(Row::User(user.clone()));
            }
            Change::UserRevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(ApplyError::InvalidAuthManagement);
                }
                let account = self.users.get_mut(user).ok_or(ApplyError::UserNotFound)?;
                let position = account.user.roles.iter().position(|held| held == role);
                account.user.roles.remove(position.ok_or(ApplyError::RoleNotGranted)?);
                touched.insert(Row::User(user.clone()));
            }
            Change::RoleAdd { name } => {
                if name.is_empty() {
                    return Err(ApplyError::RoleEmpty);
                }
                if self.roles.contains_key(name) {
                    return Err(ApplyError::RoleAlreadyExist);
                }
                let role = Role { name: Bytes::copy_from_slice(name.as_bytes()), key_permission: Vec::new() };
                self.roles.insert(name.clone(), role);
                touched.insert(Row::Role(name.clone()));
            }
            Change::RoleDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(ApplyError::InvalidAuthManagement);
                }
                self.roles.remove(name).ok_or(ApplyError::RoleNotFound)?;
                touched.insert(Row::Role(name.clone()));
                for (user, account) in &mut self.users {
                    if account.has_role(name) {
                        account.user.roles.retain(|held| held != name);
                        touched.insert(Row::User(user.clone()));
                    }
                }
            }
            Change::RoleGrantPermission { role, permission } => {
                let permission = permission.as_ref().ok_or(ApplyError::PermissionNotGiven)?;
                let found = self.roles.get_mut(role).ok_or(ApplyError::RoleNotFound)?;
                grant(&mut found.key_permission, permission)?;
                touched.insert(Row::Role(role.clone()));
            }
            Change::RoleRevokePermission { role, key, range_end } => {
                let found = self.roles.get_mut(role).ok_or(ApplyError::RoleNotFound)?;
                let before = found.key_permission.len();
                found.key_permission.retain(|held| held.key != *key || held.range_end != *range_end);
                if found.key_permission.len() == before {
                    return Err(ApplyError::PermissionNotGranted);
                }
                touched.insert(Row::Role(role.clone()));
            }
        }
        self.revision += 1;
        touched.insert(Row::Whole);
        for account in self.users.values_mut() {
            account.merged = OnceLock::new();
        }
        Ok(touched)
    }
}

/// Whether a user signs in by certificate only.
pub(crate) fn no_password(user: &User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

/// Permissions stand in the order of their keys, and of being given.
fn grant(held: &mut Vec<Permission>, given: &Permission) -> Result<(), ApplyError> {
    // etcd 3.4 notes such a range, which permits nothing; later ones refuse it.
    let ends = matches!(given.range_end[..], [] | [0]) || given.key < given.range_end;
    if given.key.is_empty() || !ends || Type::try_from(given.perm_type).is_err() {
        return Err(ApplyError::InvalidAuthManagement);
    }
    match held.iter_mut().find(|one| one.key == given.key && one.range_end == given.range_end) {
        Some(one) => one.perm_type = given.perm_type,
        None => {
            let position = held.partition_point(|one| one.key <= given.key);
            held.insert(position, given.clone());
        }
    }
    Ok(())
}
