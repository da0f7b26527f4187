//! Simple tokens: signed with a secret that all members hold, so that each accepts what
//! another gave out, without an entry in the log per sign-in.
//!
//! etcd replicates its tokens and keeps them in memory; these survive a restart too. A
//! token ends with its time, with the user, with the user's password and with the secret,
//! which changes whenever authentication is enabled. Using it prolongs it, on the member
//! that it is used on, as in etcd.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, BufMut};
use ring::hmac;

use super::State;

/// Tokens in use that are remembered as such; more of them end without being prolonged.
const MAX_IN_USE: usize = 65_536;

/// Distinguishes what is signed from anything else a secret might sign.
const CONTEXT: &[u8] = b"quorate simple token 1";

const NONCE_LEN: usize = 8;
const ISSUED_LEN: usize = 8;
const MAC_LEN: usize = 32;

/// Signs and knows tokens.
#[derive(Debug)]
pub(crate) struct Simple {
    ttl: Duration,
    /// When a token was used last here, by its signature.
    in_use: Mutex<HashMap<[u8; MAC_LEN], Duration>>,
}

impl Simple {
    pub(super) fn new(ttl: Duration) -> Simple {
        Simple { ttl, in_use: Mutex::default() }
    }

    /// A token for a user that is in `state`; none without the user or a secret. `now` is
    /// since the epoch.
    pub(super) fn assign(&self, user: &str, state: &State, nonce: [u8; NONCE_LEN], now: Duration) -> Option<String> {
        let mut token = Vec::with_capacity(NONCE_LEN + ISSUED_LEN + user.len() + MAC_LEN);
        token.put_slice(&nonce);
        token.put_u64(now.as_millis() as u64);
        token.put_slice(user.as_bytes());
        let tag = hmac::sign(&key(state)?, &signed(&token, user, state)?);
        token.put_slice(tag.as_ref());
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// Whose token it is, if it holds.
    pub(super) fn verify(&self, token: &str, state: &State, now: Duration) -> Option<String> {
        let token = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (said, mac) = token.split_at_checked(token.len().checked_sub(MAC_LEN)?)?;
        let (mut head, user) = said.split_at_checked(NONCE_LEN + ISSUED_LEN)?;
        let user = std::str::from_utf8(user).ok()?;
        hmac::verify(&key(state)?, &signed(said, user, state)?, mac).ok()?;
        head.advance(NONCE_LEN);
        let issued = Duration::from_millis(head.get_u64());
        self.prolong(mac.try_into().ok()?, issued, now).then(|| user.to_owned())
    }

    fn prolong(&self, mac: [u8; MAC_LEN], issued: Duration, now: Duration) -> bool {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let last = in_use.get(&mac).copied().unwrap_or(issued).max(issued);
        // One issued by a member whose clock is ahead is in the future: not over.
        if now.saturating_sub(last) > self.ttl {
            in_use.remove(&mac);
            return false;
        }
        if in_use.len() >= MAX_IN_USE && !in_use.contains_key(&mac) {
            in_use.retain(|_, last| now.saturating_sub(*last) <= self.ttl);
        }
        if in_use.len() < MAX_IN_USE || in_use.contains_key(&mac) {
            in_use.insert(mac, now);
        }
        true
    }
}

fn key(state: &State) -> Option<hmac::Key> {
    let secret = state.secret();
    (!secret.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, secret))
}

/// What the signature covers: the password's hash too, so that a new one ends old tokens.
fn signed(said: &[u8], user: &str, state: &State) -> Option<Vec<u8>> {
    let user = state.user(user)?;
    let mut all = Vec::with_capacity(CONTEXT.len() + said.len() + user.password.len() + 8);
    all.put_slice(CONTEXT);
    all.put_u64(said.len() as u64);
    all.put_slice(said);
    all.put_slice(&user.password);
    Some(all)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::auth::AuthChange;

    const TTL: Duration = Duration::from_secs(300);
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn state() -> State {
        let mut state = State::default();
        let add = |name: &str| AuthChange::UserAdd { name: name.into(), password: "h".into(), no_password: false };
        let root = || "root".to_owned();
        for change in [
            add("root"),
            add("a"),
            AuthChange::UserGrantRole { user: root(), role: root() },
            AuthChange::Enable { secret: Bytes::from_static(b"0123456789") },
        ] {
            state.apply(&change).unwrap();
        }
        state
    }

    #[test]
    fn every_member_knows_every_token() {
        let (one, other, state) = (Simple::new(TTL), Simple::new(TTL), state());
        let token = one.assign("a", &state, [1; 8], NOW).unwrap();
        assert_ne!(token, one.assign("a", &state, [2; 8], NOW).unwrap());
        assert_eq!(one.verify(&token, &state, NOW), Some("a".into()));
        assert_eq!(other.verify(&token, &state, NOW + TTL), Some("a".into()));
        assert_eq!(one.assign("nobody", &state, [1; 8], NOW), None);
        assert_eq!(one.assign("a", &State::default(), [1; 8], NOW), None, "no secret");
    }

    #[test]
    fn a_token_ends_with_its_time_unless_it_is_used() {
        let (simple, state) = (Simple::new(TTL), state());
        let token = simple.assign("a", &state, [1; 8], NOW).unwrap();
        let second = Duration::from_secs(1);
        assert!(simple.verify(&token, &state, NOW + TTL).is_some());
        assert!(simple.verify(&token, &state, NOW + TTL * 2).is_some(), "it was used");
        assert!(simple.verify(&token, &state, NOW + TTL * 3 + second).is_none());
        assert!(simple.verify(&token, &state, NOW + TTL * 3 + second).is_none(), "and is not revived");
        let other = Simple::new(TTL);
        assert!(other.verify(&token, &state, NOW + TTL + second).is_none());
        assert!(other.verify(&token, &state, NOW - TTL * 9).is_some(), "by a clock that is behind");
    }

    #[test]
    fn a_token_ends_with_what_it_stands_on() {
        let check = |changes: &[AuthChange]| {
            let (simple, mut state) = (Simple::new(TTL), state());
            let token = simple.assign("a", &state, [1; 8], NOW).unwrap();
            changes.iter().for_each(|change| drop(state.apply(change).unwrap()));
            assert_eq!(simple.verify(&token, &state, NOW), None, "{changes:?}");
        };
        let (name, password) = (|| "a".to_owned(), || Bytes::from_static(b"i"));
        check(&[AuthChange::UserDelete { name: name() }]);
        check(&[AuthChange::UserChangePassword { name: name(), password: password() }]);
        check(&[AuthChange::Disable]);
        check(&[AuthChange::Disable, AuthChange::Enable { secret: Bytes::from_static(b"another") }]);
        let again = AuthChange::UserAdd { name: name(), password: password(), no_password: false };
        check(&[AuthChange::UserDelete { name: name() }, again]);
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let (simple, state) = (Simple::new(TTL), state());
        let token = simple.assign("a", &state, [1; 8], NOW).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert_eq!(simple.verify(&URL_SAFE_NO_PAD.encode(damaged), &state, NOW), None);
            assert_eq!(simple.verify(&URL_SAFE_NO_PAD.encode(&bytes[..position]), &state, NOW), None);
        }
        for text in ["", "AAAA", "not base64!", "abcdefghijklmnop.12"] {
            assert_eq!(simple.verify(text, &state, NOW), None, "{text}");
        }
    }
}
