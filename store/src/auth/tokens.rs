//! Giving out tokens and knowing them again.

use std::time::{Duration, SystemTime};

use super::jwt::Jwt;
use super::simple::Simple;
use super::{Actor, AuthToken, AuthTokenError, State};
use crate::command::ApplyError;

/// The tokens of one member, of the configured kind.
#[derive(Debug)]
pub(crate) enum Tokens {
    Simple(Simple),
    Jwt(Jwt),
}

impl Tokens {
    /// # Errors
    /// When a key cannot be read or does not fit its method.
    pub(crate) fn new(config: &AuthToken) -> Result<Tokens, AuthTokenError> {
        Ok(match config {
            AuthToken::Simple { ttl } => Tokens::Simple(Simple::new(*ttl)),
            AuthToken::Jwt(options) => Tokens::Jwt(Jwt::new(options)?),
        })
    }

    /// Whether a token can be given out by this state at all.
    pub(crate) fn lacks_secret(&self, state: &State) -> bool {
        matches!(self, Tokens::Simple(_)) && state.secret().is_empty()
    }

    /// A token for a user who has shown its password.
    ///
    /// # Errors
    /// `AuthFailed` without such a user; `VerifyOnly` when the key that signs is elsewhere.
    pub(crate) fn assign(&self, user: &str, state: &State) -> Result<String, ApplyError> {
        match self {
            Tokens::Simple(simple) => simple.assign(user, state, rand::random(), now()).ok_or(ApplyError::AuthFailed),
            Tokens::Jwt(jwt) => jwt.assign(user, state.revision(), now()),
        }
    }

    /// Who shows this token. A simple token follows the users and roles as they change; a
    /// JSON Web Token says of which revision it is.
    ///
    /// # Errors
    /// `InvalidAuthToken` when it does not hold.
    pub(crate) fn verify(&self, token: &str, state: &State) -> Result<Actor, ApplyError> {
        let actor = match self {
            Tokens::Simple(simple) => {
                let user = simple.verify(token, state, now());
                user.map(|user| Actor { user, revision: state.revision() })
            }
            Tokens::Jwt(jwt) => jwt.verify(token, now()),
        };
        actor.ok_or(ApplyError::InvalidAuthToken)
    }
}

/// Since the epoch: members have no other clock in common.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
