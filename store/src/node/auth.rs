//! Who is there, and may they: [`crate::auth`] asked with this member's tokens, clock and
//! quorum.

use std::sync::Arc;

use quorate_proto::authpb::Permission;
use tokio::sync::Semaphore;

use super::Store;
use crate::auth::check::LeaseKeys;
use crate::auth::{Actor, AuthChange, AuthToken, AuthTokenError, Permit, State, Tokens, password};
use crate::command::{ApplyError, CommandResult, Operation};
use crate::error::StoreError;
use crate::mvcc::{Engine, ReadError};

/// Passwords that are hashed at once: it takes a core for a tenth of a second each.
const HASHES_AT_ONCE: usize = 2;

/// Passwords that wait to be hashed; more are refused.
const HASHES_WAITING: usize = 256;

/// How often a request begins anew because users or roles changed under it.
const ATTEMPTS: usize = 8;

/// The bytes of the secret that signs simple tokens.
const SECRET_LEN: usize = 32;

/// On whose behalf a handle on the store acts.
#[derive(Clone, Debug, Default)]
pub(crate) enum Caller {
    /// This process, which may do everything.
    #[default]
    Internal,
    /// A client of the port.
    Client(Arc<Credentials>),
}

/// What a client has shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) token: Option<String>,
    /// Of its certificate, when those are demanded.
    pub(crate) common_name: Option<String>,
}

/// The part of a member that knows tokens and passwords.
pub(super) struct Gate {
    tokens: Tokens,
    bcrypt_cost: u32,
    hashing: Semaphore,
    waiting: Semaphore,
}

impl Gate {
    pub(super) fn new(tokens: &AuthToken, bcrypt_cost: u32) -> Result<Gate, AuthTokenError> {
        let (hashing, waiting) = (Semaphore::new(HASHES_AT_ONCE), Semaphore::new(HASHES_WAITING));
        Ok(Gate { tokens: Tokens::new(tokens)?, bcrypt_cost, hashing, waiting })
    }

    /// Runs slow work on passwords, a little of it at once.
    async fn hashing<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
        let _waiting = self.waiting.try_acquire().map_err(|_| StoreError::TooManyRequests)?;
        let _hashing = self.hashing.acquire().await.map_err(|_| StoreError::Stopped)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Stopped)
    }
}

fn secret() -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&rand::random::<[u8; SECRET_LEN]>())
}

fn refused(error: ReadError) -> StoreError {
    match error {
        ReadError::Apply(error) => StoreError::Refused(error),
        ReadError::Engine(error) => StoreError::Engine(error),
    }
}

/// Requests that were permitted.
impl Store {
    /// A handle that may do what a client may.
    pub(crate) fn for_client(&self, credentials: Credentials) -> Store {
        Store { inner: Arc::clone(&self.inner), caller: Caller::Client(Arc::new(credentials)) }
    }

    /// Who calls, by one state of users and roles; none is this process.
    fn actor(&self, state: &State) -> Result<Option<Actor>, ApplyError> {
        let Caller::Client(credentials) = &self.caller else { return Ok(None) };
        let named = |user: &String| Actor { user: user.clone(), revision: state.revision() };
        Ok(Some(match credentials.as_ref() {
            _ if !state.enabled() => Actor::default(),
            Credentials { token: Some(token), .. } => self.inner.gate.tokens.verify(token, state)?,
            Credentials { common_name, .. } => {
                let known = common_name.as_ref().filter(|_| self.inner.config.client_cert_auth);
                known.map_or_else(Actor::default, named)
            }
        }))
    }

    /// Checks by what this member has applied.
    fn check(&self, check: impl Fn(&Permit<'_>) -> Result<(), ReadError>) -> Result<Option<Actor>, ReadError> {
        let state = self.inner.engine.auth();
        let Some(actor) = self.actor(&state)? else { return Ok(None) };
        check(&Permit::new(&state, &actor))?;
        Ok(Some(actor))
    }

    /// Checks, and refuses only by what the whole cluster has agreed on: a member that lags
    /// may not know a user yet. Returns who calls, none for this process.
    pub(crate) async fn permitted(
        &self,
        check: impl Fn(&Permit<'_>) -> Result<(), ReadError>,
    ) -> Result<Option<Actor>, StoreError> {
        match self.check(&check) {
            Err(ReadError::Apply(_)) => {
                self.inner.read_index.wait().await?;
                self.check(&check).map_err(refused)
            }
            decided => decided.map_err(refused),
        }
    }

    /// Refuses who is no admin.
    pub(crate) async fn admin(&self) -> Result<(), StoreError> {
        self.permitted(|permit| Ok(permit.admin()?)).await.map(drop)
    }

    /// Refuses who has not said who it is.
    pub(crate) async fn authenticated(&self) -> Result<(), StoreError> {
        self.permitted(|permit| Ok(permit.authenticated()?)).await.map(drop)
    }

    /// Reads what `check` permits, both by one state of users and roles.
    pub(super) fn guarded<T>(
        &self,
        check: impl Fn(&Permit<'_>) -> Result<(), ReadError>,
        read: impl Fn() -> Result<T, ReadError>,
    ) -> Result<T, StoreError> {
        for _ in 0..ATTEMPTS {
            let before = self.inner.engine.auth();
            self.check(&check).map_err(refused)?;
            let found = read().map_err(refused)?;
            let after = self.inner.engine.auth();
            if (before.revision(), before.enabled()) == (after.revision(), after.enabled()) {
                return Ok(found);
            }
        }
        Err(ApplyError::AuthOldRevision.into())
    }

    /// Proposes what the caller is permitted; it is checked again when it is applied.
    pub(super) async fn propose(
        &self,
        operation: Operation,
        fence: Option<quorate_proto::fence::Fence>,
    ) -> Result<CommandResult, StoreError> {
        let engine: &Engine = &self.inner.engine;
        let mut actor = self.permitted(|permit| permit.operation(&operation, engine)).await?;
        // What is not permitted takes up no space.
        self.inner.house.let_in(&operation).await;
        for _ in 1..ATTEMPTS {
            // With nobody to ask again, once is enough, without a copy.
            let Some(revision) = actor.as_ref().map(|actor| actor.revision).filter(|revision| *revision > 0) else {
                break;
            };
            let proposed = self.inner.proposer.propose_as(actor, operation.clone(), fence).await;
            let changed = matches!(proposed, Err(StoreError::Refused(ApplyError::AuthOldRevision)));
            if !changed || self.inner.engine.auth().revision() <= revision {
                return proposed;
            }
            actor = self.permitted(|permit| permit.operation(&operation, engine)).await?;
        }
        self.inner.proposer.propose_as(actor, operation, fence).await
    }

    /// Refuses a watch that would tell what its caller may not read.
    pub(crate) fn may_watch(&self, key: &bytes::Bytes, range_end: &bytes::Bytes) -> Result<(), ApplyError> {
        // etcd takes an empty key for the first there is.
        let first = bytes::Bytes::from_static(b"\0");
        let key = if key.is_empty() { &first } else { key };
        match self.check(|permit| Ok(permit.read(key, range_end)?)) {
            Ok(_) => Ok(()),
            Err(ReadError::Apply(error)) => Err(error),
            Err(ReadError::Engine(_)) => Err(ApplyError::PermissionDenied),
        }
    }

    /// Refuses who may not renew or end a lease.
    pub(super) async fn may_keep_lease(&self, lease: i64) -> Result<(), StoreError> {
        let engine: &Engine = &self.inner.engine;
        self.permitted(|permit| permit.lease(lease, engine)).await.map(drop)
    }

    /// Refuses who may not read the keys of every lease.
    pub(super) fn may_list_leases(&self, permit: &Permit<'_>) -> Result<(), ReadError> {
        permit.authenticated()?;
        if permit.admin().is_ok() {
            return Ok(());
        }
        for lease in self.inner.engine.leases() {
            permit.read_all(&LeaseKeys::lease_keys(&*self.inner.engine, lease.id)?)?;
        }
        Ok(())
    }
}

/// Users and roles.
impl Store {
    /// The users and roles this member has applied.
    pub fn auth(&self) -> Arc<State> {
        self.inner.engine.auth()
    }

    /// Makes a change of users and roles; returns the store's revision.
    ///
    /// # Errors
    /// `Refused` as etcd refuses; otherwise as [`Store::put`].
    pub async fn change_auth(&self, change: AuthChange) -> Result<i64, StoreError> {
        match self.write(Operation::Auth(change), None).await? {
            CommandResult::Done { revision } => Ok(revision),
            other => panic!("a change of users was answered as something else: {other:?}"),
        }
    }

    /// Asks clients who they are from here on.
    ///
    /// # Errors
    /// As [`Store::change_auth`]; refused without a user `root` that has the role `root`.
    pub async fn auth_enable(&self) -> Result<i64, StoreError> {
        self.change_auth(AuthChange::Enable { secret: secret() }).await
    }

    /// Adds a user; without a password it signs in by certificate.
    ///
    /// # Errors
    /// As [`Store::change_auth`].
    pub async fn user_add(&self, name: String, password: Option<String>) -> Result<i64, StoreError> {
        // Who may not add users must not make this member hash.
        self.admin().await?;
        let hash = match &password {
            Some(password) => self.hash(password.clone()).await?,
            None => bytes::Bytes::new(),
        };
        self.change_auth(AuthChange::UserAdd { name, password: hash, no_password: password.is_none() }).await
    }

    /// # Errors
    /// As [`Store::change_auth`].
    pub async fn user_change_password(&self, name: String, password: String) -> Result<i64, StoreError> {
        self.admin().await?;
        let password = self.hash(password).await?;
        self.change_auth(AuthChange::UserChangePassword { name, password }).await
    }

    async fn hash(&self, text: String) -> Result<bytes::Bytes, StoreError> {
        let cost = self.inner.gate.bcrypt_cost;
        Ok(self.inner.gate.hashing(move || password::hash(&text, cost)).await??)
    }

    /// A token for who knows the password of a user.
    ///
    /// # Errors
    /// `AuthFailed` when it is not the password, or nobody has that name.
    pub async fn authenticate(&self, name: &str, text: &str) -> Result<String, StoreError> {
        self.inner.read_index.wait().await?;
        for _ in 0..ATTEMPTS {
            let state = self.inner.engine.auth();
            if !state.enabled() {
                return Err(ApplyError::AuthNotEnabled.into());
            }
            if self.inner.gate.tokens.lacks_secret(&state) {
                // Enabled elsewhere, as in a snapshot of etcd.
                self.inner.proposer.propose(Operation::Auth(AuthChange::Secret { secret: secret() }), None).await?;
                continue;
            }
            let user = state.user(name);
            if user.is_some_and(crate::auth::no_password) {
                return Err(ApplyError::NoPasswordUser.into());
            }
            let cost = self.inner.gate.bcrypt_cost;
            let (hash, text) = (user.map(|user| user.password.clone()), text.to_owned());
            let fits = move || match hash {
                Some(hash) => password::verify(&text, &hash),
                None => {
                    password::verify_nobody(&text, cost);
                    false
                }
            };
            if !self.inner.gate.hashing(fits).await? {
                return Err(ApplyError::AuthFailed.into());
            }
            // By what was checked: a password that changed meanwhile opens nothing.
            let token = self.inner.gate.tokens.assign(name, &state)?;
            if self.inner.engine.auth().revision() == state.revision() {
                return Ok(token);
            }
        }
        Err(ApplyError::AuthOldRevision.into())
    }

    /// Whether users count, and their revision.
    ///
    /// # Errors
    /// `Refused` for who is no admin.
    pub async fn auth_status(&self) -> Result<(bool, u64), StoreError> {
        self.reading(|permit| permit.admin(), |state| Ok((state.enabled(), state.revision()))).await
    }

    /// The roles of a user.
    ///
    /// # Errors
    /// `Refused` for who is neither that user nor an admin.
    pub async fn user_get(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let found = |state: &State| state.user(name).map(|user| user.roles.clone()).ok_or(ApplyError::UserNotFound);
        self.reading(|permit| permit.read_user(name), found).await
    }

    /// # Errors
    /// As [`Store::auth_status`].
    pub async fn user_list(&self) -> Result<Vec<String>, StoreError> {
        self.reading(|permit| permit.admin(), |state| Ok(state.users().map(|(name, _)| name.clone()).collect())).await
    }

    /// What a role permits.
    ///
    /// # Errors
    /// `Refused` for who has not got the role and is no admin.
    pub async fn role_get(&self, role: &str) -> Result<Vec<Permission>, StoreError> {
        let found = |state: &State| state.permissions(role).ok_or(ApplyError::RoleNotFound);
        self.reading(|permit| permit.read_role(role), found).await
    }

    /// # Errors
    /// As [`Store::auth_status`].
    pub async fn role_list(&self) -> Result<Vec<String>, StoreError> {
        self.reading(|permit| permit.admin(), |state| Ok(state.roles().map(|(name, _)| name.clone()).collect())).await
    }

    async fn reading<T>(
        &self,
        check: impl Fn(&Permit<'_>) -> Result<(), ApplyError>,
        read: impl Fn(&State) -> Result<T, ApplyError>,
    ) -> Result<T, StoreError> {
        self.inner.read_index.wait().await?;
        let state = self.inner.engine.auth();
        if let Some(actor) = self.actor(&state)? {
            check(&Permit::new(&state, &actor))?;
        }
        Ok(read(&state)?)
    }
}
