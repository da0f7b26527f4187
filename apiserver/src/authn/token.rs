//! Service-account tokens: signed claims, made and judged without asking anybody.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// What a token says. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    pub nbf: i64,
    pub sub: String,
}

/// The claim `kubernetes.io`: whose token it is and what it dies with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Private {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// An object that must still exist, by name and uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reference {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Why the key pair of service accounts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is neither an RSA nor a P-256 {what} key in PEM", path.display())]
    Format { path: PathBuf, what: &'static str },
}

/// Signs and verifies; every master holds the same pair.
pub struct TokenKeys {
    signing: EncodingKey,
    verifying: DecodingKey,
    algorithm: Algorithm,
    key_id: String,
    jwk: Value,
    issuer: String,
}

impl TokenKeys {
    /// Reads the pair that kubeadm calls `sa.key` and `sa.pub`.
    ///
    /// # Errors
    /// When a file cannot be read or holds no such key.
    pub fn load(private: &Path, public: &Path, issuer: &str) -> Result<Self, KeyError> {
        let read = |path: &Path| std::fs::read(path).map_err(|source| KeyError::Read { path: path.to_owned(), source });
        let (private_pem, public_pem) = (read(private)?, read(public)?);
        Self::from_pem(&private_pem, &public_pem, issuer).map_err(|what| KeyError::Format {
            path: if what == "private" { private } else { public }.to_owned(),
            what,
        })
    }

    /// As [`Self::load`], from the text of the files; the error says which key is bad.
    ///
    /// # Errors
    /// `"private"` or `"public"`.
    pub fn from_pem(private: &[u8], public: &[u8], issuer: &str) -> Result<Self, &'static str> {
        let der = pem::parse(public).map_err(|_| "public")?.into_contents();
        let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| "public")?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&der));
        let (signing, verifying, algorithm, mut jwk) = match info.parsed().map_err(|_| "public")? {
            PublicKey::RSA(key) => (
                EncodingKey::from_rsa_pem(private),
                DecodingKey::from_rsa_pem(public),
                Algorithm::RS256,
                json!({"kty": "RSA", "alg": "RS256", "n": component(key.modulus), "e": component(key.exponent)}),
            ),
            PublicKey::EC(point) if point.data().len() == 65 => (
                EncodingKey::from_ec_pem(private),
                DecodingKey::from_ec_pem(public),
                Algorithm::ES256,
                json!({"kty": "EC", "alg": "ES256", "crv": "P-256",
                    "x": URL_SAFE_NO_PAD.encode(&point.data()[1..33]),
                    "y": URL_SAFE_NO_PAD.encode(&point.data()[33..])}),
            ),
            _ => return Err("public"),
        };
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(key_id);
        Ok(Self {
            signing: signing.map_err(|_| "private")?,
            verifying: verifying.map_err(|_| "public")?,
            algorithm,
            key_id,
            jwk,
            issuer: issuer.to_owned(),
        })
    }

    /// Who signs: the `iss` of every token, and the audience of those for this API.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// # Errors
    /// When the key does not sign; the text is for the log.
    pub fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(self.algorithm);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// The claims of a token that we signed, that is in force now and meant for one of `audiences`.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Option<Claims> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        // Masters' clocks may differ by seconds; upstream grants a minute for nbf only.
        validation.leeway = 10;
        jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation).ok().map(|data| data.claims)
    }

    /// The body of `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    /// The body of `/.well-known/openid-configuration`.
    pub fn discovery(&self, keys_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": keys_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [if self.algorithm == Algorithm::RS256 { "RS256" } else { "ES256" }],
        })
    }
}

fn component(integer: &[u8]) -> String {
    let start = integer.iter().position(|byte| *byte != 0).unwrap_or(0);
    URL_SAFE_NO_PAD.encode(&integer[start..])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fresh pair, as PEM: the private key and the public one.
    fn pair() -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        quorate_transport::authority::Authority::load_or_create(folder.path(), "sa", "sa").unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let certificate = pem::parse(read("sa.crt")).unwrap().into_contents();
        let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        let public = pem::encode(&pem::Pem::new("PUBLIC KEY", certificate.public_key().raw.to_vec()));
        (read("sa.key"), public)
    }

    pub(crate) fn keys() -> TokenKeys {
        let (private, public) = pair();
        TokenKeys::from_pem(private.as_bytes(), public.as_bytes(), "https://issuer").unwrap()
    }

    pub(crate) fn claims(audience: &str, valid_for_seconds: i64) -> Claims {
        let now = jiff::Timestamp::now().as_second();
        Claims {
            aud: vec![audience.to_owned()],
            exp: now + valid_for_seconds,
            iat: now,
            iss: "https://issuer".to_owned(),
            jti: "1".to_owned(),
            kubernetes: Private {
                namespace: "default".to_owned(),
                serviceaccount: Reference { name: "web".to_owned(), uid: "u".to_owned() },
                ..Private::default()
            },
            nbf: now,
            sub: "system:serviceaccount:default:web".to_owned(),
        }
    }

    #[test]
    fn only_our_tokens_in_force_for_the_audience_pass() {
        let keys = keys();
        let ours = ["a".to_owned(), "b".to_owned()];
        let token = keys.sign(&claims("b", 600)).unwrap();
        assert_eq!(keys.verify(&token, &ours).unwrap().kubernetes.serviceaccount.name, "web");
        assert_eq!(keys.verify(&token, &["c".to_owned()]), None, "another audience");
        assert_eq!(keys.verify(&keys.sign(&claims("a", -60)).unwrap(), &ours), None, "expired");
        assert_eq!(keys.verify("a.b.c", &ours), None, "no token");
        let mut foreign = claims("a", 600);
        foreign.iss = "https://elsewhere".to_owned();
        assert_eq!(keys.verify(&keys.sign(&foreign).unwrap(), &ours), None, "another issuer");
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims("a", 600)).unwrap());
        parts[1] = &forged;
        assert_eq!(keys.verify(&parts.join("."), &ours), None, "changed claims");
    }

    #[test]
    fn the_key_set_names_the_key_of_the_tokens() {
        let keys = keys();
        let header = jsonwebtoken::decode_header(keys.sign(&claims("a", 60)).unwrap()).unwrap();
        let set = keys.key_set();
        assert_eq!(set["keys"][0]["kid"].as_str(), header.kid.as_deref());
        assert_eq!(set["keys"][0]["crv"], "P-256");
    }

    #[test]
    fn other_files_are_no_keys() {
        let (private, public) = pair();
        let check = |private: &str, public: &str, expected| {
            assert_eq!(TokenKeys::from_pem(private.as_bytes(), public.as_bytes(), "i").err(), Some(expected));
        };
        check("", &public, "private");
        check(&private, "x", "public");
        check(&private, &private, "public");
    }
}
