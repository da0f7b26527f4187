//! JSON Web Tokens, as etcd makes and reads them: the claims `username`, `revision`, `exp`.

use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use serde::{Deserialize, Serialize};

use super::Actor;
use super::options::{AuthTokenError, JwtOptions};
use crate::command::ApplyError;

/// Signs and verifies with the keys of one configuration.
pub(crate) struct Jwt {
    algorithm: Algorithm,
    verifying: DecodingKey,
    /// None where tokens are given out by somebody else.
    signing: Option<EncodingKey>,
    ttl: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: f64,
    /// Seconds since the epoch; without it, as in etcd, a token does not end.
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<f64>,
}

/// As signed: etcd writes whole numbers.
#[derive(Debug, Serialize)]
struct Issued<'a> {
    exp: u64,
    revision: u64,
    username: &'a str,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("algorithm", &self.algorithm).field("signs", &self.signing.is_some()).finish()
    }
}

impl Jwt {
    pub(super) fn new(options: &JwtOptions) -> Result<Jwt, AuthTokenError> {
        let method = &options.sign_method;
        let algorithm: Algorithm = match method.as_str() {
            // The one method that etcd knows and the library does not.
            "ES512" => return Err(AuthTokenError("sign-method ES512 is not supported yet".to_owned())),
            // Go's name for it.
            "EdDSA" => Algorithm::EdDSA,
            _ => method.parse().map_err(|_| AuthTokenError(format!("sign-method {method:?} is not known")))?,
        };
        let family = algorithm.family();
        let private = options.private_key.as_deref().map(|path| read(path).map(|pem| (path, pem))).transpose()?;
        let public = options.public_key.as_deref().map(|path| read(path).map(|pem| (path, pem))).transpose()?;
        let ttl = options.ttl;
        if family == AlgorithmFamily::Hmac {
            let (_, secret) = private.ok_or_else(|| AuthTokenError(format!("{method} needs priv-key")))?;
            let (signing, verifying) = (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret));
            return Ok(Jwt { algorithm, verifying, signing: Some(signing), ttl });
        }
        let signing = private.as_ref().map(|(path, pem)| signing_key(family, path, pem)).transpose()?;
        let verifying = match (&public, &private) {
            (Some((path, pem)), _) => verifying_key(family, path, pem)?,
            (None, Some((path, pem))) => derived(algorithm, path, pem)?,
            (None, None) => return Err(AuthTokenError(format!("{method} needs pub-key, priv-key or both"))),
        };
        let jwt = Jwt { algorithm, verifying, signing, ttl };
        jwt.check_pair()?;
        Ok(jwt)
    }

    /// The two keys must be of one pair, or no token would ever hold.
    fn check_pair(&self) -> Result<(), AuthTokenError> {
        if self.signing.is_none() {
            return Ok(());
        }
        let token =
            self.assign("", 1, Duration::ZERO).map_err(|_| AuthTokenError("priv-key does not sign".to_owned()))?;
        match self.verify(&token, Duration::ZERO) {
            Some(_) => Ok(()),
            None => Err(AuthTokenError("pub-key does not belong to priv-key".to_owned())),
        }
    }

    pub(super) fn assign(&self, user: &str, revision: u64, now: Duration) -> Result<String, ApplyError> {
        let signing = self.signing.as_ref().ok_or(ApplyError::VerifyOnly)?;
        let claims = Issued { exp: (now + self.ttl).as_secs(), revision, username: user };
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, signing).map_err(|error| {
            tracing::warn!(%error, "a token cannot be signed");
            ApplyError::AuthFailed
        })
    }

    pub(super) fn verify(&self, token: &str, now: Duration) -> Option<Actor> {
        let mut validation = Validation::new(self.algorithm);
        // By the clock that is handed in, and as etcd: without a leeway, for any audience.
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation).ok()?.claims;
        let now = now.as_secs_f64();
        let holds = claims.exp.is_none_or(|exp| now < exp) && claims.nbf.is_none_or(|nbf| now >= nbf);
        let whole = claims.revision.is_finite() && claims.revision >= 0.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked, and saturating")]
        (holds && whole).then_some(Actor { user: claims.username, revision: claims.revision as u64 })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AuthTokenError> {
    std::fs::read(path).map_err(|error| AuthTokenError(format!("cannot read {}: {error}", path.display())))
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> AuthTokenError {
    AuthTokenError(format!("{} holds no key for this sign-method: {why}", path.display()))
}

fn signing_key(family: AlgorithmFamily, path: &Path, pem: &[u8]) -> Result<EncodingKey, AuthTokenError> {
    let key = match family {
        AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => EncodingKey::from_ec_pem(pem),
        AlgorithmFamily::Ed => EncodingKey::from_ed_pem(pem),
        AlgorithmFamily::Hmac => Ok(EncodingKey::from_secret(pem)),
    };
    key.map_err(|error| match pem.starts_with(b"-----BEGIN EC PRIVATE KEY") {
        true => unusable(path, "it has to be in PKCS #8; `openssl pkcs8 -topk8 -nocrypt` converts it"),
        false => unusable(path, error),
    })
}

fn verifying_key(family: AlgorithmFamily, path: &Path, pem: &[u8]) -> Result<DecodingKey, AuthTokenError> {
    let key = match family {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem),
        AlgorithmFamily::Hmac => Ok(DecodingKey::from_secret(pem)),
    };
    key.map_err(|error| unusable(path, error))
}

/// The public half of a private key.
fn derived(algorithm: Algorithm, path: &Path, pem: &[u8]) -> Result<DecodingKey, AuthTokenError> {
    let parsed = pem::parse(pem).map_err(|error| unusable(path, error))?;
    let der = parsed.contents();
    let curve = match algorithm {
        Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        _ => &ECDSA_P256_SHA256_FIXED_SIGNING,
    };
    let key = match algorithm.family() {
        AlgorithmFamily::Rsa if parsed.tag() == "RSA PRIVATE KEY" => {
            RsaKeyPair::from_der(der).map(|key| DecodingKey::from_rsa_der(key.public().as_ref()))
        }
        AlgorithmFamily::Rsa => RsaKeyPair::from_pkcs8(der).map(|key| DecodingKey::from_rsa_der(key.public().as_ref())),
        AlgorithmFamily::Ec => EcdsaKeyPair::from_pkcs8(curve, der, &SystemRandom::new())
            .map(|key| DecodingKey::from_ec_der(key.public_key().as_ref())),
        AlgorithmFamily::Ed => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(|key| DecodingKey::from_ed_der(key.public_key().as_ref())),
        AlgorithmFamily::Hmac => return Ok(DecodingKey::from_secret(pem)),
    };
    key.map_err(|error| unusable(path, error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const TTL: Duration = Duration::from_secs(60);

    fn keys() -> PathBuf {
        // Cargo runs tests in the folder of their crate.
        "testdata/jwt".into()
    }

    fn options(method: &str, public: Option<&str>, private: Option<&str>) -> JwtOptions {
        let path = |name: &str| keys().join(name);
        JwtOptions {
            sign_method: method.to_owned(),
            public_key: public.map(path),
            private_key: private.map(path),
            ttl: TTL,
        }
    }

    #[test]
    fn tokens_are_known_again_until_they_end() {
        let check = |method: &str, public: Option<&str>, private: &str| {
            let jwt = Jwt::new(&options(method, public, Some(private))).unwrap_or_else(|e| panic!("{method}: {e}"));
            let token = jwt.assign("näme", 7, NOW).unwrap();
            let actor = Actor { user: "näme".into(), revision: 7 };
            assert_eq!(jwt.verify(&token, NOW + TTL - Duration::from_secs(1)), Some(actor), "{method}");
            assert_eq!(jwt.verify(&token, NOW + TTL), None, "{method}");
            // Another signature, and none.
            let (rest, signature) = token.rsplit_once('.').unwrap();
            let middle = signature.len() / 2;
            let other = if signature.as_bytes()[middle] == b'A' { "B" } else { "A" };
            let damaged = format!("{rest}.{}{other}{}", &signature[..middle], &signature[middle + 1..]);
            assert_eq!(jwt.verify(&damaged, NOW), None, "{method}");
            assert_eq!(jwt.verify(&format!("{rest}."), NOW), None, "{method}");
        };
        for method in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
            check(method, Some("rsa.pub"), "rsa.key");
            check(method, None, "rsa.key");
        }
        check("ES256", Some("ec256.pub"), "ec256.key");
        check("ES256", None, "ec256.key");
        check("EdDSA", Some("ed.pub"), "ed.key");
        check("EdDSA", None, "ed.key");
        for method in ["HS256", "HS384", "HS512"] {
            check(method, None, "secret");
        }
    }

    #[test]
    fn who_holds_the_public_key_only_verifies_only() {
        let signer = Jwt::new(&options("RS256", None, Some("rsa.key"))).unwrap();
        let verifier = Jwt::new(&options("RS256", Some("rsa.pub"), None)).unwrap();
        let token = signer.assign("a", 1, NOW).unwrap();
        assert!(verifier.verify(&token, NOW).is_some());
        assert_eq!(verifier.assign("a", 1, NOW), Err(ApplyError::VerifyOnly));
    }

    /// A key must not be taken for the secret of another method, nor a token go unsigned.
    #[test]
    fn only_the_configured_method_counts() {
        let rsa = Jwt::new(&options("RS256", Some("rsa.pub"), None)).unwrap();
        let public = std::fs::read(keys().join("rsa.pub")).unwrap();
        let claims = Issued { exp: NOW.as_secs() + 9, revision: 1, username: "root" };
        let forged =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(&public)).unwrap();
        assert_eq!(rsa.verify(&forged, NOW), None);
        // {"alg":"none"} and {"username":"root","revision":1}.
        assert_eq!(rsa.verify("eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6MX0.", NOW), None);
        let other = Jwt::new(&options("RS512", None, Some("rsa.key"))).unwrap();
        assert_eq!(rsa.verify(&other.assign("a", 1, NOW).unwrap(), NOW), None);
        for text in ["", ".", "..", "a.b.c"] {
            assert_eq!(rsa.verify(text, NOW), None, "{text}");
        }
    }

    #[test]
    fn claims_are_checked_as_etcd_checks_them() {
        let jwt = Jwt::new(&options("HS256", None, Some("secret"))).unwrap();
        let sign = |claims: &serde_json::Value| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, jwt.signing.as_ref().unwrap()).unwrap()
        };
        let check = |claims: serde_json::Value, expected: bool| {
            assert_eq!(jwt.verify(&sign(&claims), NOW).is_some(), expected, "{claims}");
        };
        let now = NOW.as_secs();
        check(serde_json::json!({ "username": "a", "revision": 1 }), true);
        check(serde_json::json!({ "username": "a", "revision": 1, "aud": "x", "exp": now + 1 }), true);
        check(serde_json::json!({ "username": "a", "revision": 1, "exp": now }), false);
        check(serde_json::json!({ "username": "a", "revision": 1, "nbf": now + 1 }), false);
        check(serde_json::json!({ "username": "a", "revision": -1 }), false);
        check(serde_json::json!({ "username": "a" }), false);
        check(serde_json::json!({ "username": 1, "revision": 1 }), false);
        check(serde_json::json!({ "revision": 1 }), false);
    }

    #[test]
    fn keys_that_do_not_fit_are_named() {
        let check = |method: &str, public: Option<&str>, private: Option<&str>, reason: &str| {
            let error = Jwt::new(&options(method, public, private)).expect_err(reason).to_string();
            assert!(error.contains(reason), "{method}: {error}");
        };
        check("XS256", None, Some("rsa.key"), "not known");
        check("ES512", None, Some("ec256.key"), "not supported yet");
        check("HS256", None, None, "needs priv-key");
        check("RS256", None, None, "needs pub-key");
        check("RS256", None, Some("nothing"), "cannot read");
        check("RS256", None, Some("ec256.key"), "holds no key");
        check("RS256", Some("ec256.pub"), None, "holds no key");
        check("ES256", None, Some("ec256-sec1.key"), "PKCS #8");
        check("RS256", Some("other.pub"), Some("rsa.key"), "does not belong");
    }
}
