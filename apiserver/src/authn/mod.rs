//! Who is asking. A client certificate, else a bearer token, else nobody.

pub mod impersonation;
pub mod review;
pub mod service_account;
pub mod token;
pub mod user;
pub mod x509;

use http::header::{AUTHORIZATION, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use quorate_proto::status::Status;

pub use user::{AUTHENTICATED, MASTERS, UNAUTHENTICATED, User};

use service_account::ServiceAccounts;

/// Paths that everybody may read, so that probes need no credentials.
const ANONYMOUS_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// How a browser sends a token with a WebSocket: as a sub-protocol.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// Finds the user behind a request.
///
/// # Errors
/// 401 for credentials that are wrong, and for none on a path that needs some.
pub async fn authenticate(
    accounts: &ServiceAccounts,
    certificate: Option<&User>,
    headers: &HeaderMap,
    path: &str,
) -> Result<User, Status> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    if let Some(token) = bearer_token(headers) {
        return accounts.authenticate(&token).await.ok_or_else(Status::unauthorized);
    }
    let open = ANONYMOUS_PATHS
        .iter()
        .any(|open| path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if open { Ok(User::anonymous()) } else { Err(Status::unauthorized()) }
}

fn bearer_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    if let Some(value) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_BEARER))
        .and_then(|encoded| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(name: http::HeaderName, value: &str, expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        assert_eq!(bearer_token(&headers).as_deref(), expected, "{value}");
    }

    #[test]
    fn tokens_come_in_two_headers() {
        check(AUTHORIZATION, "Bearer a.b.c", Some("a.b.c"));
        check(AUTHORIZATION, "bearer  a.b.c ", Some("a.b.c"));
        check(AUTHORIZATION, "Basic YTpi", None);
        check(AUTHORIZATION, "Bearer", None);
        check(
            SEC_WEBSOCKET_PROTOCOL,
            "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YS5iLmM",
            Some("a.b.c"),
        );
        check(SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io", None);
    }
}
