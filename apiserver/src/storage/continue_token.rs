//! Where a limited list goes on: the opaque token that clients hand back.
//!
//! Source: apiserver's `storage/continue.go` for the shape, because tokens outlive a
//! change of servers behind one address.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

const VERSION: &str = "meta.k8s.io/v1";

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContinueToken {
    /// The revision of the first part; `None` goes on with whatever is newest.
    pub revision: Option<u64>,
    /// The first key of the next part, relative to the prefix of the resource.
    pub start: String,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    v: String,
    rv: i64,
    start: String,
}

/// Why a token is refused. Display is the message for the client.
#[derive(Debug, thiserror::Error)]
#[error("continue key is not valid: {0}")]
pub struct InvalidToken(&'static str);

impl ContinueToken {
    /// The token behind `last`, the last key of a part.
    pub fn after(last: &str, revision: u64) -> Self {
        Self { revision: Some(revision), start: format!("{last}\0") }
    }

    pub fn encode(&self) -> String {
        let rv = self.revision.map_or(-1, |revision| i64::try_from(revision).unwrap_or(i64::MAX));
        let wire = Wire { v: VERSION.to_owned(), rv, start: self.start.clone() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).expect("writing to memory does not fail"))
    }

    /// # Errors
    /// When the text is no token of ours, or tries to leave the resource's prefix.
    pub fn decode(text: &str) -> Result<Self, InvalidToken> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidToken("illegal base64 data"))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|_| InvalidToken("malformed value"))?;
        if wire.v != VERSION {
            return Err(InvalidToken("server does not recognize this encoded version"));
        }
        if wire.rv == 0 {
            return Err(InvalidToken("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        if wire.start.is_empty() {
            return Err(InvalidToken("encoded start key empty (version meta.k8s.io/v1)"));
        }
        if wire.start.split('/').any(|part| part == ".." || part == ".") {
            return Err(InvalidToken("invalid encoded start key"));
        }
        Ok(Self { revision: u64::try_from(wire.rv).ok(), start: wire.start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_to_go_on() {
        let token = ContinueToken::after("default/web", 42);
        assert_eq!(ContinueToken::decode(&token.encode()).unwrap(), token);
        let inconsistent = ContinueToken { revision: None, ..token };
        assert_eq!(ContinueToken::decode(&inconsistent.encode()).unwrap(), inconsistent);
    }

    #[test]
    fn foreign_tokens_are_refused() {
        let token = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for text in [
            "%%%".to_owned(),
            token("{}"),
            token(r#"{"v":"v2","rv":1,"start":"a"}"#),
            token(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
            token(r#"{"v":"meta.k8s.io/v1","rv":1,"start":""}"#),
            token(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../secrets/a"}"#),
        ] {
            assert!(ContinueToken::decode(&text).is_err(), "{text}");
        }
    }
}
