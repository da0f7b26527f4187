//! How clients' tokens are made: `--auth-token` as etcd reads it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// etcd's, for simple tokens and for JWTs alike.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// How a token is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthToken {
    /// Signed with a secret of the cluster; ends when it was not used for so long.
    Simple {
        /// How long.
        ttl: Duration,
    },
    /// A JSON Web Token, signed with a key from a file.
    Jwt(JwtOptions),
}

/// Which keys sign and verify JSON Web Tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// As `RS256`.
    pub sign_method: String,
    /// A PEM file. Alone, tokens are verified and none is given out.
    pub public_key: Option<PathBuf>,
    /// A PEM file; the secret itself for `HS…`.
    pub private_key: Option<PathBuf>,
    /// How long a token holds.
    pub ttl: Duration,
}

/// An `--auth-token` that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthTokenError(pub(super) String);

impl Default for AuthToken {
    fn default() -> AuthToken {
        AuthToken::Simple { ttl: DEFAULT_TTL }
    }
}

impl AuthToken {
    /// With another time for simple tokens: etcd's `--auth-token-ttl`.
    #[must_use]
    pub fn with_simple_ttl(self, ttl: Duration) -> AuthToken {
        match self {
            AuthToken::Simple { .. } => AuthToken::Simple { ttl },
            jwt => jwt,
        }
    }
}

impl FromStr for AuthToken {
    type Err = AuthTokenError;

    /// Reads `simple`, or `jwt,sign-method=RS256,pub-key=…,priv-key=…,ttl=10m`.
    fn from_str(text: &str) -> Result<AuthToken, AuthTokenError> {
        let mut parts = text.split(',');
        match parts.next() {
            Some("simple") => Ok(AuthToken::default()),
            Some("jwt") => jwt(parts).map(AuthToken::Jwt),
            kind => Err(AuthTokenError(format!("{:?} is neither \"simple\" nor \"jwt\"", kind.unwrap_or_default()))),
        }
    }
}

fn jwt<'a>(parts: impl Iterator<Item = &'a str>) -> Result<JwtOptions, AuthTokenError> {
    let mut method = None;
    let mut options = JwtOptions { sign_method: String::new(), public_key: None, private_key: None, ttl: DEFAULT_TTL };
    let mut seen = Vec::new();
    for part in parts {
        let Some((name, value)) = part.split_once('=').filter(|(_, value)| !value.contains('=')) else {
            return Err(AuthTokenError(format!("{part:?} is not of the form name=value")));
        };
        if seen.contains(&name) {
            return Err(AuthTokenError(format!("{name} is given twice")));
        }
        seen.push(name);
        match name {
            "sign-method" => method = Some(value.to_owned()),
            "pub-key" => options.public_key = Some(value.into()),
            "priv-key" => options.private_key = Some(value.into()),
            "ttl" => {
                let ttl = go_duration(value).filter(|ttl| !ttl.is_zero());
                options.ttl = ttl.ok_or_else(|| AuthTokenError(format!("ttl {value:?} is not a time such as 10m")))?;
            }
            // As etcd.
            _ => tracing::warn!(name, "an option of the JSON Web Tokens is not known"),
        }
    }
    options.sign_method = method.ok_or_else(|| AuthTokenError("sign-method is missing, such as RS256".to_owned()))?;
    Ok(options)
}

/// A time as Go writes it: `1h30m`, `90s`, `1.5m`.
fn go_duration(mut text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, rest) = text.split_at(digits);
        let letters = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        text = rest;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_etcd_reads_them() {
        let options = |method: &str, public: Option<&str>, private: Option<&str>, seconds| {
            AuthToken::Jwt(JwtOptions {
                sign_method: method.into(),
                public_key: public.map(PathBuf::from),
                private_key: private.map(PathBuf::from),
                ttl: Duration::from_secs(seconds),
            })
        };
        let check = |text: &str, expected: AuthToken| assert_eq!(text.parse(), Ok(expected), "{text}");
        check("simple", AuthToken::default());
        check("jwt,sign-method=HS256,priv-key=s", options("HS256", None, Some("s"), 300));
        check(
            "jwt,pub-key=a.pub,priv-key=a.key,sign-method=RS256,ttl=10m",
            options("RS256", Some("a.pub"), Some("a.key"), 600),
        );
        check("jwt,sign-method=ES256,pub-key=a,ttl=1h30m,color=red", options("ES256", Some("a"), None, 5400));
        let refused = |text: &str, reason: &str| {
            let error = text.parse::<AuthToken>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        };
        refused("", "neither");
        refused("other", "neither");
        refused("jwt", "sign-method is missing");
        refused("jwt,sign-method", "name=value");
        refused("jwt,a=b=c", "name=value");
        refused("jwt,ttl=1m,ttl=1m", "twice");
        refused("jwt,sign-method=RS256,ttl=0s", "not a time");
        refused("jwt,sign-method=RS256,ttl=10", "not a time");
        refused("jwt,sign-method=RS256,ttl=m", "not a time");
    }

    #[test]
    fn times_are_gos() {
        let check = |text, expected: Option<f64>| {
            assert_eq!(go_duration(text), expected.map(Duration::from_secs_f64), "{text}")
        };
        check("1.5m", Some(90.0));
        check("1h1m1s", Some(3661.0));
        check("250ms", Some(0.25));
        check("1", None);
        check("", None);
        check("1x", None);
        check("99999999999999999999999h", None);
    }
}
