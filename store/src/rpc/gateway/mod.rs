//! The JSON gateway: every RPC of the client port as a POST of JSON, as etcd offers it
//! below `/v3` (and, as etcd 3.4, below `/v3beta`).
//!
//! A request becomes the same gRPC call that a gRPC client would make, in this process:
//! authentication, limits and errors are the port's own. What etcd's versions do
//! differently is decided here: errors look as those of 3.4 (`error`, `message`, `code`),
//! malformed JSON is always the client's fault (3.4 answers 500 on streams), URL-safe and
//! unpadded base64 is taken as newer versions do.

mod call;
mod json;
mod paths;
mod reader;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use self::call::Codec;
use self::reader::Reader;

/// The prefix of a header that becomes metadata of the call.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// What every answer of grpc-gateway says of the call behind it.
const CALL_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");

/// What an RPC takes and gives.
pub(super) fn descriptors() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(quorate_proto::etcd::DESCRIPTORS)
            .expect("the descriptors were compiled with this program")
    });
    &POOL
}

/// One RPC.
struct Rpc {
    path: PathAndQuery,
    input: MessageDescriptor,
    output: MessageDescriptor,
    reads_stream: bool,
    answers_stream: bool,
}

struct Gateway {
    rpcs: HashMap<&'static str, Rpc>,
    /// The services of the port, and the largest message that they take.
    services: Router,
    max_message_bytes: usize,
}

/// The gateway to `services`, which take messages of so many bytes.
pub(super) fn router(services: Router, max_message_bytes: usize) -> Router {
    let gateway = Arc::new(Gateway { rpcs: rpcs(), services, max_message_bytes });
    Router::new()
        .route("/v3/", any(serve))
        .route("/v3/{*path}", any(serve))
        .route("/v3beta/", any(serve))
        .route("/v3beta/{*path}", any(serve))
        .with_state(gateway)
}

fn rpcs() -> HashMap<&'static str, Rpc> {
    let rpc = |(path, service, method): &(&'static str, &str, &str)| {
        let service = descriptors().get_service_by_name(service).expect("the table names services that exist");
        let method = service.methods().find(|known| known.name() == *method).expect("the table names RPCs that exist");
        let call = format!("/{}/{}", service.full_name(), method.name());
        let rpc = Rpc {
            path: PathAndQuery::try_from(call).expect("names of services are paths"),
            input: method.input(),
            output: method.output(),
            reads_stream: method.is_client_streaming(),
            answers_stream: method.is_server_streaming(),
        };
        (*path, rpc)
    };
    paths::PATHS.iter().map(rpc).collect()
}

async fn serve(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path();
    let path = path.strip_prefix("/v3beta").or_else(|| path.strip_prefix("/v3")).unwrap_or_default();
    let Some(rpc) = gateway.rpcs.get(path) else { return plain(StatusCode::NOT_FOUND, "Not Found\n") };
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    let (parts, body) = request.into_parts();
    match gateway.call(rpc, parts, Reader::new(body, rpc.input.clone(), gateway.max_message_bytes)).await {
        Ok(response) => response,
        Err(status) => refusal(&status),
    }
}

impl Gateway {
    async fn call(&self, rpc: &Rpc, parts: Parts, mut reader: Reader) -> Result<Response<Body>, Status> {
        let metadata = metadata(&parts.headers);
        // A request that cannot be read at all never becomes a call.
        let first = reader.next().await.transpose()?;
        let mut services = tonic::client::Grpc::new(self.services.clone()).max_decoding_message_size(usize::MAX);
        let codec = Codec { output: rpc.output.clone() };
        let first = match (first, rpc.reads_stream) {
            // No body is an empty message where one is needed.
            (None, false) => Some(DynamicMessage::new(rpc.input.clone())),
            (first, _) => first,
        };
        let requests: std::pin::Pin<Box<dyn Stream<Item = DynamicMessage> + Send>> = if rpc.reads_stream {
            Box::pin(stream::iter(first).chain(reader.rest()))
        } else {
            // What follows the first message is passed over, as etcd does.
            Box::pin(stream::iter(first))
        };
        let request = tonic::Request::from_parts(metadata, parts.extensions, requests);
        let mut answers = services.streaming(request, rpc.path.clone(), codec).await?.into_inner();
        if rpc.answers_stream {
            // Whether the call succeeds is known with its first answer.
            let Some(first) = answers.next().await else { return Ok(answered(Body::empty())) };
            return Ok(match first {
                Ok(first) => answered(lines(first, answers)),
                Err(status) => end_of_stream(&status),
            });
        }
        let answer = answers.message().await?.ok_or_else(|| Status::internal("the call was not answered"))?;
        // The end of the call may still be an error.
        match answers.message().await? {
            None => Ok(answered(Body::from(json::encode(&answer)))),
            Some(_) => Err(Status::internal("the call was answered twice")),
        }
    }
}

/// What the caller says beside its message: who it is, and what it asks of gRPC itself.
fn metadata(headers: &HeaderMap) -> MetadataMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            Some(name) => HeaderName::from_bytes(name.as_bytes()).ok(),
            None => {
                [header::AUTHORIZATION, HeaderName::from_static("grpc-timeout")].into_iter().find(|kept| kept == name)
            }
        };
        if let Some(name) = name {
            metadata.append(name, value.clone());
        }
    }
    MetadataMap::from_headers(metadata)
}

/// A stream's answers, one object on a line.
fn lines(first: DynamicMessage, answers: tonic::Streaming<DynamicMessage>) -> Body {
    let line = |answer: Result<DynamicMessage, Status>| {
        let line = match answer {
            Ok(message) => format!("{{\"result\":{}}}\n", json::encode(&message)),
            Err(status) => stream_error(&status),
        };
        Ok::<_, Infallible>(Bytes::from(line))
    };
    Body::from_stream(stream::iter([Ok(first)]).chain(answers).map(line))
}

fn answered(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CALL_CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn refusal(status: &Status) -> Response<Body> {
    let mut message = String::new();
    json::quote(&mut message, status.message());
    let code = status.code() as i32;
    let mut response =
        Response::new(Body::from(format!("{{\"error\":{message},\"message\":{message},\"code\":{code}}}")));
    *response.status_mut() = http_status(status.code());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A stream that failed before its first answer.
fn end_of_stream(status: &Status) -> Response<Body> {
    let mut response = answered(Body::from(stream_error(status)));
    *response.status_mut() = http_status(status.code());
    response
}

/// The last line of a stream that failed.
fn stream_error(status: &Status) -> String {
    let http = http_status(status.code());
    let mut message = String::new();
    json::quote(&mut message, status.message());
    format!(
        "{{\"error\":{{\"grpc_code\":{},\"http_code\":{},\"message\":{message},\"http_status\":\"{}\"}}}}\n",
        status.code() as i32,
        http.as_u16(),
        http.canonical_reason().unwrap_or_default(),
    )
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// As grpc-gateway maps codes.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_an_rpc_and_every_rpc_has_a_path() {
        let rpcs = rpcs();
        assert_eq!(rpcs.len(), paths::PATHS.len(), "a path stands twice");
        for service in descriptors().services().filter(|service| service.package_name() != "grpc.health.v1") {
            for method in service.methods() {
                let call = format!("/{}/{}", service.full_name(), method.name());
                assert!(rpcs.values().any(|rpc| rpc.path.as_str() == call), "{call} has no path");
            }
        }
    }

    #[test]
    fn errors_are_written_as_etcd_does() {
        let status = Status::unavailable("etcdserver: <no leader>");
        assert_eq!(
            stream_error(&status),
            "{\"error\":{\"grpc_code\":14,\"http_code\":503,\"message\":\"etcdserver: \\u003cno leader\\u003e\",\
             \"http_status\":\"Service Unavailable\"}}\n"
        );
        assert_eq!(refusal(&Status::failed_precondition("x")).status(), StatusCode::PRECONDITION_FAILED);
    }

    #[test]
    fn metadata_is_what_the_caller_meant_for_the_call() {
        let headers =
            [("authorization", "t"), ("grpc-metadata-hasleader", "true"), ("cookie", "c"), ("grpc-timeout", "1S")];
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut names: Vec<String> =
            metadata(&HeaderMap::from_iter(headers)).into_headers().keys().map(ToString::to_string).collect();
        names.sort();
        assert_eq!(names, ["authorization", "grpc-timeout", "hasleader"]);
    }
}
