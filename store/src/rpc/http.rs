//! What monitoring asks over plain HTTP: `/health`, `/livez`, `/readyz`, `/version`,
//! `/metrics`. Paths and bodies are those of etcd 3.6 and later: `/health` gives a reason,
//! and the checks of `/livez` and `/readyz` have names. Besides, where the space has gone.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::routing::{any, get};
use http::{HeaderValue, Method, Response, StatusCode, Uri, header};
use metrics::{counter, gauge};
use quorate_proto::etcd::{AlarmType, RangeRequest};
use serde_json::json;
use tonic::Status;

use super::space;
use crate::error::StoreError;
use crate::node::{SERVER_VERSION, Store};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(super) fn router(store: &Store) -> Router {
    Router::new()
        .route("/health", any(health))
        .route("/livez", any(live))
        .route("/livez/{check}", any(live_check))
        .route("/readyz", any(ready))
        .route("/readyz/{check}", any(ready_check))
        .route("/version", any(version))
        .route("/metrics", any(metrics))
        .route("/quorate/v1/space", get(space::space))
        .with_state(store.clone())
}

/// What no route is for: a service that is not offered, or a page that does not exist.
pub(super) async fn unknown(request: Request) -> Response<Body> {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !kind.starts_with(b"application/grpc") {
        return answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned());
    }
    let service = request.uri().path().split('/').nth(1).unwrap_or_default();
    Status::unimplemented(format!("unknown service {service}")).into_http()
}

/// The values of a query's parameter, as they stand there.
fn parameters<'a>(uri: &'a Uri, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn answer(status: StatusCode, kind: HeaderValue, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// These pages are read and nothing else.
fn only_get(method: &Method) -> Result<(), Response<Body>> {
    if method == Method::GET {
        return Ok(());
    }
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n".to_owned());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    Err(response)
}

/// Healthy is who has no alarm and can answer a read, with a quorum unless the request
/// says `serializable=true`.
async fn health(State(store): State<Store>, method: Method, uri: Uri) -> Result<Response<Body>, Response<Body>> {
    only_get(&method)?;
    let serializable = parameters(&uri, "serializable").next() == Some("true");
    let alarm =
        alarms(&store).into_iter().find(|alarm| parameters(&uri, "exclude").all(|name| name != alarm.as_str_name()));
    let reason = match alarm {
        Some(alarm) => Some(format!("ALARM {}", alarm.as_str_name())),
        None if !serializable && !store.has_leader() => Some("RAFT NO LEADER".to_owned()),
        None => read(&store, serializable).await.err().map(|reason| format!("RANGE ERROR:{reason}")),
    };
    let body = json!({ "health": reason.is_none().to_string(), "reason": reason.clone().unwrap_or_default() });
    Ok(match reason {
        None => {
            counter!("etcd_server_health_success").increment(1);
            answer(StatusCode::OK, TEXT, body.to_string())
        }
        Some(_) => {
            counter!("etcd_server_health_failures").increment(1);
            answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{body}\n"))
        }
    })
}

/// The kinds of the alarms that bear on this member.
fn alarms(store: &Store) -> Vec<AlarmType> {
    store.alarms_here().iter().map(|raised| raised.alarm()).collect()
}

/// Reads one key.
async fn read(store: &Store, serializable: bool) -> Result<(), String> {
    let request =
        RangeRequest { key: vec![0].into(), limit: 1, keys_only: true, serializable, ..RangeRequest::default() };
    let read = store.range(request).await;
    read.map(|_| ()).map_err(|error: StoreError| Status::from(error).message().to_owned())
}

/// A question that `/livez` or `/readyz` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, store: &Store) -> Result<(), String> {
        match self {
            Check::DataCorruption if alarms(store).contains(&AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Check::NonLearner if store.status().is_learner => Err("not supported for learner".to_owned()),
            Check::DataCorruption | Check::NonLearner => Ok(()),
            Check::SerializableRead => read(store, true).await,
            Check::LinearizableRead => read(store, false).await,
        }
    }
}

async fn live(State(store): State<Store>, method: Method, uri: Uri) -> Result<Response<Body>, Response<Body>> {
    run("livez", LIVE.iter().copied(), &store, &method, &uri).await
}

async fn ready(State(store): State<Store>, method: Method, uri: Uri) -> Result<Response<Body>, Response<Body>> {
    run("readyz", READY.iter().copied(), &store, &method, &uri).await
}

async fn live_check(
    State(store): State<Store>,
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
) -> Result<Response<Body>, Response<Body>> {
    one("livez", LIVE, &name, &store, &method, &uri).await
}

async fn ready_check(
    State(store): State<Store>,
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
) -> Result<Response<Body>, Response<Body>> {
    one("readyz", READY, &name, &store, &method, &uri).await
}

async fn one(
    page: &'static str,
    checks: &[Check],
    name: &str,
    store: &Store,
    method: &Method,
    uri: &Uri,
) -> Result<Response<Body>, Response<Body>> {
    match checks.iter().find(|check| check.name() == name) {
        Some(check) => run(page, [*check].into_iter(), store, method, uri).await,
        None => Err(answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned())),
    }
}

/// `ok` when every check that the query does not exclude succeeds; otherwise, and with
/// `verbose`, what each one found.
async fn run(
    page: &'static str,
    checks: impl Iterator<Item = Check>,
    store: &Store,
    method: &Method,
    uri: &Uri,
) -> Result<Response<Body>, Response<Body>> {
    only_get(method)?;
    let mut report = String::new();
    let mut failed = false;
    for check in checks.filter(|check| parameters(uri, "exclude").all(|name| name != check.name())) {
        let name = check.name();
        let status = match check.run(store).await {
            Ok(()) => {
                report.push_str(&format!("[+]{name} ok\n"));
                "success"
            }
            Err(reason) => {
                failed = true;
                report.push_str(&format!("[-]{name} failed: {reason}\n"));
                "error"
            }
        };
        let succeeded = if status == "success" { 1.0 } else { 0.0 };
        gauge!("etcd_server_healthcheck", "type" => page, "name" => name).set(succeeded);
        counter!("etcd_server_healthchecks_total", "type" => page, "name" => name, "status" => status).increment(1);
    }
    if failed {
        // As Go ends an error's text.
        return Err(answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{report}\n")));
    }
    let verbose = parameters(uri, "verbose").next().is_some();
    Ok(answer(StatusCode::OK, TEXT, if verbose { format!("{report}ok\n") } else { "ok\n".to_owned() }))
}

async fn version(method: Method) -> Result<Response<Body>, Response<Body>> {
    only_get(&method)?;
    // Written by hand: the order of the fields is etcd's.
    let body = format!(
        "{{\"etcdserver\":\"{SERVER_VERSION}\",\"etcdcluster\":\"{SERVER_VERSION}\",\"storage\":\"{SERVER_VERSION}\"}}"
    );
    Ok(answer(StatusCode::OK, JSON, body))
}

async fn metrics(State(store): State<Store>, method: Method) -> Result<Response<Body>, Response<Body>> {
    only_get(&method)?;
    match store.metrics_text() {
        Some(text) => Ok(answer(StatusCode::OK, METRICS_TEXT, text)),
        None => Err(answer(StatusCode::NOT_FOUND, TEXT, "this process keeps no metrics\n".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_they_stand() {
        let check = |uri: &'static str, name: &str, expected: &[&str]| {
            let parsed = Uri::from_static(uri);
            assert_eq!(parameters(&parsed, name).collect::<Vec<_>>(), expected, "{uri}");
        };
        check("/readyz", "verbose", &[]);
        check("/readyz?verbose", "verbose", &[""]);
        check("/readyz?exclude=a&verbose&exclude=b", "exclude", &["a", "b"]);
        check("/health?serializable=true", "serializable", &["true"]);
    }

    #[tokio::test]
    async fn an_unknown_service_is_a_status_and_an_unknown_page_is_not() {
        let request = |kind: &'static str| {
            Request::builder().uri("/v9.Nothing/Do").header("content-type", kind).body(Body::empty()).unwrap()
        };
        let status = Status::from_header_map(unknown(request("application/grpc+proto")).await.headers()).unwrap();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, "unknown service v9.Nothing"));
        assert_eq!(unknown(request("text/plain")).await.status(), StatusCode::NOT_FOUND);
    }
}
