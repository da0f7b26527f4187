//! Everything that is served and is no resource.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use quorate_proto::status::Status;
use serde_json::json;

use super::body::{self, Body};
use super::chain::page_not_found;
use super::health::{self, Check};
use super::negotiate::{self, MediaType};
use super::{Answer, Query, RequestInfo};
use crate::authn::User;
use crate::authn::service_account::ServiceAccounts;
use crate::discovery::{self, AggregatedVersion};
use crate::openapi;
use crate::schema::{self, ResourceDef};

/// The Kubernetes version whose API this is, with our own after the plus sign: a minus
/// would make it a pre-release in the eyes of Helm.
const GIT_VERSION: &str = concat!("v1.35.0+quorate.", env!("CARGO_PKG_VERSION"));

/// A document under a hash never changes. Upstream's figure: a year.
const IMMUTABLE_SECONDS: i64 = 365 * 24 * 3600;

/// What `/` lists, beside discovery and the checks.
const INDEX: [&str; 13] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// The non-resource side of the API.
pub struct Paths {
    /// `host:port`, as clients should dial it.
    pub server_address: String,
    pub accounts: Arc<ServiceAccounts>,
    pub checks: Vec<Check>,
    /// Absent when the process records no metrics.
    pub metrics: Option<PrometheusHandle>,
}

impl Paths {
    /// # Errors
    /// As a Status, for paths that exist and cannot be served as asked.
    pub async fn answer(
        &self,
        _user: &User,
        info: &RequestInfo,
        query: &Query,
        method: &Method,
        headers: &HeaderMap,
    ) -> Answer {
        let path = info.path.as_str();
        let trimmed = path.trim_end_matches('/');
        let first = trimmed.split('/').nth(1).unwrap_or("");
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(method_not_allowed(method, path));
        }
        let defs: Vec<&ResourceDef> = schema::resources().iter().collect();
        let found = match first {
            "" => Some(index(&self.checks)),
            "version" if trimmed == "/version" => Some(body::json(StatusCode::OK, &version())),
            "healthz" | "livez" | "readyz" => health::answer(&self.checks, trimmed, query).await,
            "metrics" if trimmed == "/metrics" => self.metrics.as_ref().map(|handle| {
                handle.run_upkeep();
                body::with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", handle.render())
            }),
            "api" | "apis" => return discover(&defs, trimmed, &self.server_address, headers),
            "openapi" => return open_api(trimmed, query, headers),
            ".well-known" if trimmed == "/.well-known/openid-configuration" => {
                let uri = format!("https://{}/openid/v1/jwks", self.server_address);
                Some(public(body::json(StatusCode::OK, &self.accounts.keys().discovery(&uri))))
            }
            "openid" if trimmed == "/openid/v1/jwks" => {
                let bytes = self.accounts.keys().key_set().to_string();
                Some(public(body::with_type(StatusCode::OK, "application/jwk-set+json", bytes)))
            }
            _ => None,
        };
        Ok(found.unwrap_or_else(page_not_found))
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": "35",
        "emulationMajor": "1",
        "emulationMinor": "35",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "34",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (Rust)",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    })
}

/// Go's name of the processor, because clients compare with it.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn index(checks: &[Check]) -> Response<Body> {
    let mut paths: Vec<String> = INDEX.iter().map(|path| (*path).to_owned()).collect();
    for def in schema::resources().iter().filter(|def| !def.group.is_empty()) {
        paths.push(format!("/apis/{}", def.group));
        paths.push(format!("/apis/{}", def.api_version()));
    }
    for check in checks {
        paths.push(format!("/readyz/{}", check.name));
        if check.liveness {
            paths.push(format!("/livez/{}", check.name));
            paths.push(format!("/healthz/{}", check.name));
        }
    }
    paths.sort_unstable();
    paths.dedup();
    body::json(StatusCode::OK, &json!({"paths": paths}))
}

fn discover(defs: &[&ResourceDef], path: &str, server_address: &str, headers: &HeaderMap) -> Answer {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let document = match parts[..] {
        ["api" | "apis"] => {
            let core = parts[0] == "api";
            match aggregated_version(headers) {
                Some(version) => {
                    let bytes = discovery::aggregated(defs, core, version);
                    let tag = discovery::etag(&bytes);
                    return Ok(tagged(bytes, version.content_type(), &tag, headers));
                }
                None if core => Some(discovery::legacy_api_versions(server_address)),
                None => Some(discovery::api_group_list(defs)),
            }
        }
        ["api", version] => discovery::api_resource_list(defs, "", version),
        ["apis", group] => discovery::api_group(defs, group),
        ["apis", group, version] => discovery::api_resource_list(defs, group, version),
        _ => None,
    };
    let Some(document) = document else { return Ok(page_not_found()) };
    negotiate::check_takes_json(text(headers, header::ACCEPT))?;
    Ok(body::json_bytes(StatusCode::OK, document))
}

/// The aggregated document that the client prefers, if it prefers one to the plain form.
fn aggregated_version(headers: &HeaderMap) -> Option<AggregatedVersion> {
    for media in MediaType::parse_all(text(headers, header::ACCEPT).unwrap_or("")) {
        if !matches!(media.essence.as_str(), "application/json" | "*/*" | "application/*") {
            continue;
        }
        match (media.parameter("as"), media.parameter("g"), media.parameter("v")) {
            (None, None, None) => return None,
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => {
                return Some(AggregatedVersion::V2);
            }
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                return Some(AggregatedVersion::V2Beta1);
            }
            _ => {}
        }
    }
    None
}

/// The media type of OpenAPI v2 in protobuf, and the older one: an `@` is no part of a
/// media type, so that answers do not have it.
const OPEN_API_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const OPEN_API_V2_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

fn open_api_v2(headers: &HeaderMap) -> Answer {
    let document = openapi::v2_document();
    for media in MediaType::parse_all(text(headers, header::ACCEPT).unwrap_or("*/*")) {
        let (bytes, content_type) = match media.essence.as_str() {
            "application/json" | "application/*" | "*/*" => (&document.json, "application/json"),
            OPEN_API_V2 | OPEN_API_V2_OLD => (&document.protobuf, OPEN_API_V2),
            _ => continue,
        };
        return Ok(tagged(bytes.clone(), content_type, &document.hash, headers));
    }
    Err(negotiate::not_acceptable(&["application/json", OPEN_API_V2]))
}

fn open_api(path: &str, query: &Query, headers: &HeaderMap) -> Answer {
    if path == "/openapi/v2" {
        return open_api_v2(headers);
    }
    let Some(rest) = path.strip_prefix("/openapi/v3") else { return Ok(page_not_found()) };
    let json_taken = MediaType::parse_all(text(headers, header::ACCEPT).unwrap_or("*/*"))
        .iter()
        .any(|media| matches!(media.essence.as_str(), "application/json" | "application/*" | "*/*"));
    if !json_taken {
        return Err(negotiate::not_acceptable(&["application/json"]));
    }
    let name = rest.trim_matches('/');
    if name.is_empty() {
        let bytes = openapi::v3_index();
        let tag = discovery::etag(&bytes);
        return Ok(tagged(bytes, "application/json", &tag, headers));
    }
    let Some(document) = openapi::v3_document(name) else { return Ok(page_not_found()) };
    let asked = query.text("hash");
    if !asked.is_empty() && asked != document.hash {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let target = format!("/openapi/v3/{name}?hash={}", document.hash);
        let target = HeaderValue::from_str(&target).map_err(Status::internal)?;
        response.headers_mut().insert(header::LOCATION, target);
        return Ok(response);
    }
    let mut response = tagged(document.json, "application/json", &format!("\"{}\"", document.hash), headers);
    if !asked.is_empty() {
        let expires = jiff::Zoned::now().saturating_add(jiff::SignedDuration::from_secs(IMMUTABLE_SECONDS));
        let expires =
            jiff::fmt::rfc2822::to_string(&expires.with_time_zone(jiff::tz::TimeZone::UTC)).unwrap_or_default();
        let expires = expires.replace("+0000", "GMT").replace("-0000", "GMT");
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        if let Ok(expires) = HeaderValue::from_str(&expires) {
            headers.insert(header::EXPIRES, expires);
        }
    }
    Ok(response)
}

/// A document with its tag, or 304 for a client that has it.
fn tagged(bytes: Bytes, content_type: &str, tag: &str, headers: &HeaderMap) -> Response<Body> {
    let held = text(headers, header::IF_NONE_MATCH).unwrap_or("");
    let same = held
        .split(',')
        .map(str::trim)
        .any(|held| held.trim_start_matches("W/").trim_matches('"') == tag.trim_matches('"'));
    let mut response = if same && !held.is_empty() {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        body::with_type(StatusCode::OK, content_type, bytes)
    };
    let quoted = if tag.starts_with('"') { tag.to_owned() } else { format!("\"{tag}\"") };
    if let Ok(value) = HeaderValue::from_str(&quoted) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn public(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn method_not_allowed(method: &Method, path: &str) -> Status {
    let mut status =
        Status::failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
    tracing::debug!(%method, path, "a method that no path of this kind takes");
    status.details = Some(quorate_proto::status::StatusDetails::default());
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &'static str) -> HeaderMap {
        [(header::ACCEPT, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn aggregated_discovery_is_for_those_who_ask() {
        const KUBECTL: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_version(&accept(KUBECTL)), Some(AggregatedVersion::V2));
        assert_eq!(aggregated_version(&accept("application/json")), None);
        assert_eq!(aggregated_version(&accept("*/*")), None);
        assert_eq!(aggregated_version(&HeaderMap::new()), None);
    }

    #[test]
    fn version_2_comes_in_the_encoding_that_is_asked_for() {
        #[track_caller]
        fn check(asked: &'static str, expected: &str) -> HeaderMap {
            let headers = open_api("/openapi/v2", &Query::default(), &accept(asked)).unwrap().headers().clone();
            assert_eq!(headers[header::CONTENT_TYPE], expected, "{asked}");
            headers
        }
        let json = check("application/json", "application/json");
        check("*/*", "application/json");
        // What kubectl 1.20 asks for, and its successors.
        let old = check("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", OPEN_API_V2);
        check("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", OPEN_API_V2);
        assert_eq!(json[header::ETAG], old[header::ETAG]);
        let refused = open_api("/openapi/v2", &Query::default(), &accept("text/plain")).err().unwrap();
        assert_eq!(refused.code, 406);
        let headers = [(header::IF_NONE_MATCH, json[header::ETAG].clone())].into_iter().collect();
        assert_eq!(open_api("/openapi/v2", &Query::default(), &headers).unwrap().status(), 304);
    }

    #[test]
    fn a_document_that_the_client_holds_is_not_sent_again() {
        let headers: HeaderMap = [(header::IF_NONE_MATCH, HeaderValue::from_static("\"a\""))].into_iter().collect();
        let bytes = Bytes::from_static(b"{}");
        assert_eq!(tagged(bytes.clone(), "application/json", "\"a\"", &headers).status(), 304);
        assert_eq!(tagged(bytes.clone(), "application/json", "a", &headers).status(), 304);
        assert_eq!(tagged(bytes, "application/json", "\"b\"", &headers).status(), 200);
    }
}
