//! Who may do what: users, roles, and what a token or a certificate says of its bearer.
//!
//! The state is replicated and decides alike on every member; [`check`] is asked at the
//! port, and again when a command is applied, by the state as it is then. Passwords reach
//! the log as hashes only.

mod change;
pub(crate) mod check;
mod interval;
mod jwt;
mod options;
pub(crate) mod password;
mod simple;
mod state;
#[cfg(test)]
mod tests;
mod tokens;

pub use change::AuthChange;
pub use options::{AuthToken, AuthTokenError, JwtOptions};
pub use state::State;

pub(crate) use check::Permit;
pub(crate) use state::{Row, no_password};
pub(crate) use tokens::Tokens;

#[cfg(test)]
pub(crate) use change::tests::samples;

/// The user, and the role, that may do everything.
pub(crate) const ROOT: &str = "root";

/// On whose behalf a command came through the port. Commands of this process have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// Empty for a caller that has not said who it is.
    pub user: String,
    /// The revision of users and roles by which the caller was admitted; 0 with no user.
    pub revision: u64,
}
