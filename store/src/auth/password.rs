//! Hashes of passwords, as etcd keeps them. All of this is slow on purpose: call it where
//! nobody waits for the thread.

use bytes::Bytes;

use crate::command::ApplyError;

/// What etcd takes when it is not told.
pub(crate) const DEFAULT_COST: u32 = 10;
pub(crate) const MIN_COST: u32 = 4;
pub(crate) const MAX_COST: u32 = 31;

/// bcrypt reads no further; more would be a weaker password than it looks.
const MAX_PASSWORD_BYTES: usize = 72;

/// Hashes a password.
///
/// # Errors
/// `PasswordTooLong` when part of it would not count.
pub(crate) fn hash(password: &str, cost: u32) -> Result<Bytes, ApplyError> {
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(ApplyError::PasswordTooLong);
    }
    match bcrypt::hash(password, cost) {
        Ok(hash) => Ok(hash.into()),
        // Only a cost out of its bounds, which the configuration has checked.
        Err(error) => panic!("a password cannot be hashed: {error}"),
    }
}

/// Whether `password` has this hash. A hash that is none fits no password.
pub(crate) fn verify(password: &str, hash: &[u8]) -> bool {
    std::str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

/// Takes as long as `verify`, so that the time does not tell whether a user exists.
pub(crate) fn verify_nobody(password: &str, cost: u32) {
    let _ = bcrypt::hash(password, cost);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_fit_their_passwords_only() {
        let held = hash("secret", MIN_COST).unwrap();
        assert!(held.starts_with(b"$2") && verify("secret", &held));
        assert!(!verify("Secret", &held) && !verify("", &held) && !verify("secret", b"") && !verify("secret", b"$2a$"));
        let empty = hash("", MIN_COST).unwrap();
        assert!(verify("", &empty) && !verify("x", &empty));
        assert_eq!(hash(&"x".repeat(73), MIN_COST), Err(ApplyError::PasswordTooLong));
        assert!(hash(&"x".repeat(72), MIN_COST).is_ok());
    }

    #[test]
    fn a_hash_made_by_go_is_read() {
        // golang.org/x/crypto/bcrypt of "allmine" at its lowest cost, from its own tests.
        assert!(verify("allmine", b"$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga"));
    }
}
