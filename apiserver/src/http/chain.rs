//! What every request passes on its way, in upstream's order: identity, permission,
//! limits; and what every answer gets.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use quorate_proto::status::Status;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::body::{self, Body, LIMIT_BYTES};
use super::connection::{Peer, Service};
use super::negotiate::{self, Encoding, Negotiated};
use super::paths::Paths;
use super::{Answer, ApiRequest, Query, RequestInfo, encode, metrics};
use crate::authn::service_account::ServiceAccounts;
use crate::authn::{self, MASTERS, User, impersonation, x509};
use crate::authz::{Attributes, Authorizer};
use crate::handlers;
use crate::proxy::Proxy;
use crate::registry::Registry;
use crate::schema::Message;

/// Everything but watches, logs and streams ends by then. Upstream's default.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Requests worked on at once, as upstream's defaults have it; long-running ones do not count.
const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;

/// How much of a body that is too large is read.
const DISCARD_BYTES: usize = 4 * LIMIT_BYTES;

const AUDIT_ID: &str = "audit-id";

/// Answers requests.
pub struct Chain {
    registry: Registry,
    accounts: Arc<ServiceAccounts>,
    authorizer: Arc<Authorizer>,
    paths: Paths,
    proxy: Proxy,
    reads: Semaphore,
    writes: Semaphore,
    /// Whether permissions are known yet.
    ready: tokio::sync::watch::Receiver<bool>,
    /// Ends logs and other streams when the server does.
    ending: tokio_util::sync::CancellationToken,
}

impl Chain {
    pub fn new(
        registry: Registry,
        accounts: Arc<ServiceAccounts>,
        authorizer: Arc<Authorizer>,
        paths: Paths,
        proxy: Proxy,
        ready: tokio::sync::watch::Receiver<bool>,
        ending: tokio_util::sync::CancellationToken,
    ) -> Self {
        let (reads, writes) = (Semaphore::new(READS_MAX), Semaphore::new(WRITES_MAX));
        Self { registry, accounts, authorizer, paths, proxy, reads, writes, ready, ending }
    }

    async fn answer(&self, peer: &Peer, info: &RequestInfo, query: &Query, request: Request<Incoming>) -> Answer {
        let user = self.user(peer, info, request.headers()).await?;
        let _permit = self.admit(&user, info, query)?;
        self.authorize(&user, info, query)?;
        if !info.is_resource_request {
            return self.paths.answer(&user, info, query, request.method(), request.headers()).await;
        }
        if Proxy::serves(info) {
            return self.proxy.answer(info, query, request).await;
        }
        let Negotiated { form, encoding } =
            negotiate::negotiate(request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()))?;
        let (parts, incoming) = request.into_parts();
        let body = read_body(&parts.headers, incoming).await?;
        let create_refusal = self.create_refusal(&user, info, query, &parts.headers);
        let request = ApiRequest {
            method: parts.method,
            info: info.clone(),
            query: query.clone(),
            headers: parts.headers,
            user,
            form,
            encoding,
            body,
            create_refusal,
        };
        handlers::handle(&self.registry, request).await
    }

    async fn user(&self, peer: &Peer, info: &RequestInfo, headers: &HeaderMap) -> Result<User, Status> {
        let certificate = match &peer.certificate {
            Some(certificate) if !x509::is_valid_at(&certificate.der, jiff::Timestamp::now().as_second()) => {
                return Err(Status::unauthorized());
            }
            certificate => certificate.as_ref().map(|certificate| &certificate.user),
        };
        let user = authn::authenticate(&self.accounts, certificate, headers, &info.path).await?;
        impersonation::impersonate(user, headers, &self.authorizer)
    }

    fn admit(&self, user: &User, info: &RequestInfo, query: &Query) -> Result<Option<SemaphorePermit<'_>>, Status> {
        if info.is_long_running(query) {
            return Ok(None);
        }
        let lane = if is_write(info) { &self.writes } else { &self.reads };
        match lane.try_acquire() {
            Ok(permit) => Ok(Some(permit)),
            Err(_) if user.is_in(MASTERS) => Ok(None),
            Err(_) => Err(too_many_requests()),
        }
    }

    fn authorize(&self, user: &User, info: &RequestInfo, query: &Query) -> Result<(), Status> {
        let mut attributes = Attributes::of_request(user, info, query);
        // Before roles are known, a refusal could be wrong: clients come back after this one.
        if info.is_resource_request && !*self.ready.borrow() && !user.is_in(MASTERS) {
            return Err(Status::service_unavailable("the server is starting", 1));
        }
        self.authorizer.check(&attributes)?;
        // Since 1.35 a WebSocket, which is a GET, needs what a POST would.
        let runs_something = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward");
        if info.is_resource_request && info.resource == "pods" && runs_something && info.verb == "get" {
            attributes.verb = "create".to_owned();
            self.authorizer.check(&attributes)?;
        }
        Ok(())
    }

    /// Why who may patch may not create: an apply of what is not there needs both.
    fn create_refusal(&self, user: &User, info: &RequestInfo, query: &Query, headers: &HeaderMap) -> Option<Status> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if info.verb != "patch" || negotiate::MediaType::parse(content_type).essence != handlers::APPLY {
            return None;
        }
        let attributes = Attributes { verb: "create".to_owned(), ..Attributes::of_request(user, info, query) };
        self.authorizer.check(&attributes).err()
    }
}

impl Service for Chain {
    async fn call(self: Arc<Self>, peer: Arc<Peer>, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        let method = request.method().clone();
        let accept = request.headers().get(header::ACCEPT).cloned();
        let wishes = encode::Wishes::of(request.headers(), &query);
        let audit_id = request
            .headers()
            .get(AUDIT_ID)
            .cloned()
            .unwrap_or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).expect("a UUID is ASCII"));
        let long_running = info.is_long_running(&query);
        let _in_flight = metrics::in_flight(&info, long_running);

        let work = AssertUnwindSafe(self.answer(&peer, &info, &query, request)).catch_unwind();
        let outcome = if long_running {
            work.await
        } else {
            match tokio::time::timeout(REQUEST_LIMIT, work).await {
                Ok(outcome) => outcome,
                Err(_) => Ok(Err(timed_out())),
            }
        };
        let answer = outcome.unwrap_or_else(|_| {
            metrics::panicked();
            Err(Status::failure(
                500,
                "InternalError",
                "This request caused apiserver to panic. Look in the logs for details.",
            ))
        });
        let mut response = answer.unwrap_or_else(|status| {
            let accept = accept.as_ref().and_then(|value| value.to_str().ok());
            status_response(&status, negotiate::error_encoding(accept))
        });
        if long_running && info.verb == "watch" {
            // The registry ends watches itself, with a last bookmark.
        } else if long_running {
            response = response.map(|body| encode::until(body, self.ending.clone()));
        } else {
            response = encode::finish(response, &wishes).await;
        }
        let headers = response.headers_mut();
        headers.insert(AUDIT_ID, audit_id);
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if method == Method::HEAD {
            *response.body_mut() = body::full("");
        }
        metrics::answered(&info, &method, &query, response.status(), started.elapsed());
        response
    }
}

fn is_write(info: &RequestInfo) -> bool {
    if info.is_resource_request {
        !matches!(info.verb.as_str(), "get" | "list" | "watch")
    } else {
        !matches!(info.verb.as_str(), "get" | "head" | "options")
    }
}

/// Reads a whole body. One that is too large is read on for a while without being kept:
/// a client that is still sending would not see the answer.
async fn read_body(headers: &HeaderMap, mut incoming: Incoming) -> Result<Bytes, Status> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok())
        .unwrap_or(0);
    let mut kept = BytesMut::with_capacity(announced.min(LIMIT_BYTES));
    let mut length = 0;
    while let Some(frame) = incoming.frame().await {
        let frame =
            frame.map_err(|error| Status::bad_request(format!("the body of the request ended early: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= LIMIT_BYTES {
            kept.extend_from_slice(&data);
        } else if length > DISCARD_BYTES {
            break;
        }
    }
    if length > LIMIT_BYTES { Err(too_large()) } else { Ok(kept.freeze()) }
}

/// A Status as an answer, with the headers that go with it.
pub fn status_response(status: &Status, encoding: Encoding) -> Response<Body> {
    if status.code == 404 && status.reason.is_empty() {
        return page_not_found();
    }
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match encoding {
        Encoding::Protobuf => match Message::of_value(&serde_json::json!(status)) {
            Some(message) => body::protobuf(code, message.body()),
            None => body::json(code, status),
        },
        Encoding::Json => body::json(code, status),
    };
    let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if wait > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait));
    }
    response
}

/// What upstream says of a path that nobody registered.
pub fn page_not_found() -> Response<Body> {
    let mut response = body::text(StatusCode::NOT_FOUND, "404 page not found\n");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn too_large() -> Status {
    Status::failure(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {LIMIT_BYTES}"))
}

fn too_many_requests() -> Status {
    let mut status = Status::failure(429, "TooManyRequests", "Too many requests, please try again later.");
    status.details = Some(quorate_proto::status::StatusDetails { retry_after_seconds: 1, ..Default::default() });
    status
}

fn timed_out() -> Status {
    Status::failure(504, "Timeout", "Timeout: request did not complete within the allotted timeout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_answers() {
        for (encoding, media_type) in
            [(Encoding::Json, "application/json"), (Encoding::Protobuf, "application/vnd.kubernetes.protobuf")]
        {
            let response = status_response(&too_many_requests(), encoding);
            assert_eq!(response.status(), 429);
            assert_eq!(response.headers()[header::RETRY_AFTER], "1");
            assert_eq!(response.headers()[header::CONTENT_TYPE], media_type);
            assert_eq!(status_response(&Status::unauthorized(), encoding).status(), 401);
        }
    }

    #[test]
    fn reads_and_writes_have_lanes_of_their_own() {
        let check = |method: Method, path: &str, expected: bool| {
            let info = RequestInfo::parse(&method, path, &Query::default());
            assert_eq!(is_write(&info), expected, "{method} {path}");
        };
        check(Method::GET, "/api/v1/pods", false);
        check(Method::POST, "/api/v1/namespaces/a/pods", true);
        check(Method::DELETE, "/api/v1/namespaces/a/pods", true);
        check(Method::GET, "/version", false);
    }
}
