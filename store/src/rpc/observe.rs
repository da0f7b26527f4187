//! Counts the calls of the services, under the names that etcd's dashboards know.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use metrics::{Counter, counter};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::gateway::descriptors;
use super::status::of_large_message;

/// Counts what goes through a service.
#[derive(Clone)]
pub(crate) struct Observe {
    rpcs: Arc<HashMap<String, Arc<Rpc>>>,
    received: Counter,
    sent: Counter,
}

/// One RPC's counters.
struct Rpc {
    service: String,
    method: String,
    kind: &'static str,
    started: Counter,
    succeeded: Counter,
}

impl Observe {
    pub(crate) fn new() -> Self {
        let methods = descriptors().services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let rpcs = methods.map(|method| {
            let service = method.parent_service().full_name().to_owned();
            let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            };
            let rpc = Rpc {
                started: counter!(
                    "grpc_server_started_total",
                    "grpc_method" => method.name().to_owned(),
                    "grpc_service" => service.clone(),
                    "grpc_type" => kind,
                ),
                succeeded: handled(Code::Ok, &service, method.name(), kind),
                method: method.name().to_owned(),
                service,
                kind,
            };
            (format!("/{}/{}", rpc.service, rpc.method), Arc::new(rpc))
        });
        Self {
            rpcs: Arc::new(rpcs.collect()),
            received: counter!("etcd_network_client_grpc_received_bytes_total"),
            sent: counter!("etcd_network_client_grpc_sent_bytes_total"),
        }
    }
}

fn handled(code: Code, service: &str, method: &str, kind: &'static str) -> Counter {
    counter!(
        "grpc_server_handled_total",
        "grpc_code" => code_name(code),
        "grpc_method" => method.to_owned(),
        "grpc_service" => service.to_owned(),
        "grpc_type" => kind,
    )
}

/// As Go names them.
fn code_name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    }
}

impl Observe {
    /// Counts a call that is answered by a message or a status and not by a service; its
    /// request has so many bytes.
    pub(super) fn call(&self, path: &str, received: usize) -> Option<Counted> {
        let rpc = Arc::clone(self.rpcs.get(path)?);
        rpc.started.increment(1);
        self.received.increment(received as u64);
        Some(Counted { call: Call { rpc, counted: false }, sent: self.sent.clone() })
    }
}

/// A call that [`Observe::call`] began to count.
pub(super) struct Counted {
    call: Call,
    sent: Counter,
}

impl Counted {
    pub(super) fn done(mut self, code: Code, sent: usize) {
        self.sent.increment(sent as u64);
        self.call.count(code);
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(rpc) = self.observe.rpcs.get(request.uri().path()) else { return Box::pin(self.inner.call(request)) };
        rpc.started.increment(1);
        let mut call = Call { rpc: Arc::clone(rpc), counted: false };
        let (received, sent) = (self.observe.received.clone(), self.observe.sent.clone());
        let request = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(data) = frame.data_ref() {
                    received.increment(data.len() as u64);
                }
                frame
            }))
        });
        let answering = self.inner.call(request);
        Box::pin(async move {
            let mut response = answering.await?;
            // A call that fails at once has no body.
            if let Some(mut status) = Status::from_header_map(response.headers()) {
                if let Some(worded) = of_large_message(&status) {
                    status = worded;
                    // Code and text are ASCII: they become headers.
                    let _ = status.add_header(response.headers_mut());
                }
                call.count(status.code());
            }
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(data) = frame.data_ref() {
                        sent.increment(data.len() as u64);
                    }
                    if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                        call.count(status.code());
                    }
                    frame
                }))
            }))
        })
    }
}

/// A call under way. One that is dropped before its end was cancelled by its caller.
struct Call {
    rpc: Arc<Rpc>,
    counted: bool,
}

impl Call {
    fn count(&mut self, code: Code) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        match code {
            Code::Ok => self.rpc.succeeded.increment(1),
            code => handled(code, &self.rpc.service, &self.rpc.method, self.rpc.kind).increment(1),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named_as_go_names_them() {
        let names = [Code::Ok, Code::Cancelled, Code::InvalidArgument, Code::Unavailable].map(code_name);
        assert_eq!(names, ["OK", "Canceled", "InvalidArgument", "Unavailable"]);
    }

    #[test]
    fn every_rpc_is_known_by_its_path() {
        let observe = Observe::new();
        let kind = |path: &str| observe.rpcs.get(path).map(|rpc| rpc.kind);
        assert_eq!(kind("/etcdserverpb.KV/Range"), Some("unary"));
        assert_eq!(kind("/etcdserverpb.Watch/Watch"), Some("bidi_stream"));
        assert_eq!(kind("/etcdserverpb.Maintenance/Snapshot"), Some("server_stream"));
        assert_eq!(kind("/v3lockpb.Lock/Lock"), Some("unary"));
    }
}
