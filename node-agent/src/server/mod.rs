//! The kubelet API: logs, exec, attach and port-forward of this node's pods.

pub mod logs;
mod splice;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use quorate_proto::cri as wire;
use quorate_runtime::informer::Lister;
use quorate_transport::tls::{self, ClientAuth, Reloading, TlsError, TlsFiles};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cri::{Cri, describe, labels};
use crate::pod::seen::{Container, State};
use crate::pod::spec;

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Response<Body>;

/// A client that does not finish its handshake holds no connection for longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Blocks of a log that wait for a slow reader.
const LOG_QUEUE: usize = 16;

/// Who may use this API: the API server, and those who may do everything.
const API_SERVER: [&str; 2] = ["apiserver-kubelet-client", "kube-apiserver-kubelet-client"];
const MASTERS: &str = "system:masters";

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// What requests are answered from.
pub struct Server {
    pub cri: Cri,
    pub pods: Lister,
    pub node_name: String,
}

/// An error as the text and code that clients see.
struct Problem(StatusCode, String);

type Reply = Result<Answer, Problem>;

/// Listens on `address`; returns where, and serves until cancelled.
///
/// # Errors
/// When the certificate cannot be used, or the address is taken.
pub async fn serve(
    server: Server,
    address: SocketAddr,
    files: &TlsFiles,
    tasks: &TaskTracker,
    cancel: CancellationToken,
) -> Result<SocketAddr, ServeError> {
    // HTTP/1.1 only: a stream of HTTP/2 cannot change its protocol.
    let make = |files: &TlsFiles| tls::server_config(files, ClientAuth::Required, &["http/1.1"]);
    let config = Reloading::new(files.clone(), make)?;
    let listen_error = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    let bound = listener.local_addr().map_err(listen_error)?;
    let server = Arc::new(server);
    let connections = tasks.clone();
    tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = connection(Arc::clone(&server), config.current(), stream);
                    let cancel = cancel.clone();
                    connections.spawn(async move {
                        tokio::select! {
                            () = cancel.cancelled() => {}
                            () = connection => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(bound)
}

async fn connection(server: Arc<Server>, config: Arc<ServerConfig>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
    let Ok(Ok(stream)) = handshake else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let caller = certificate.map(|certificate| Caller::read(certificate)).unwrap_or_default();
    let caller = Arc::new(caller);
    let service = hyper::service::service_fn(move |request| {
        let (server, caller) = (Arc::clone(&server), Arc::clone(&caller));
        async move { Ok::<_, Infallible>(server.answer(&caller, request).await) }
    });
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection to the kubelet API ended");
    }
}

/// Who a client certificate names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Caller {
    name: String,
    groups: Vec<String>,
}

impl Caller {
    fn read(certificate: &[u8]) -> Self {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return Self::default() };
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().unwrap_or_default().to_owned()
        };
        let subject = certificate.subject();
        Self {
            name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            groups: subject.iter_organization().map(text).collect(),
        }
    }

    fn is_allowed(&self) -> bool {
        API_SERVER.contains(&self.name.as_str()) || self.groups.iter().any(|group| group == MASTERS)
    }
}

fn empty() -> Body {
    Empty::new().boxed_unsync()
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn problem<T>(status: StatusCode, text: impl Into<String>) -> Result<T, Problem> {
    Err(Problem(status, text.into()))
}

fn runtime(status: &tonic::Status) -> Problem {
    Problem(StatusCode::INTERNAL_SERVER_ERROR, describe(status))
}

struct Query(Vec<(String, String)>);

impl Query {
    fn read(uri: &http::Uri) -> Result<Self, Problem> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        pairs.map(|pairs| Self(pairs.0)).map_err(|error| Problem(StatusCode::BAD_REQUEST, error.to_string()))
    }

    fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    }

    /// Under kubelet's name or under the API's.
    fn flag(&self, names: [&str; 2]) -> bool {
        self.0.iter().any(|(name, value)| names.contains(&name.as_str()) && matches!(value.as_str(), "1" | "true"))
    }
}

impl Server {
    async fn answer(&self, caller: &Caller, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        if path == "/healthz" || path == "/readyz" {
            return text(StatusCode::OK, "ok");
        }
        if !caller.is_allowed() {
            let verb = if request.method() == Method::GET { "get" } else { "create" };
            let message =
                format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[proxy])", caller.name);
            return text(StatusCode::FORBIDDEN, &message);
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let reply = match parts.as_slice() {
            ["pods"] => Ok(self.pod_list()),
            ["metrics"] => self.metrics().await,
            ["containerLogs", namespace, pod, container] => self.logs(namespace, pod, container, request.uri()).await,
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                self.exec(namespace, pod, container, request).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                self.attach(namespace, pod, container, request).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                self.port_forward(namespace, pod, request).await
            }
            _ => problem(StatusCode::NOT_FOUND, "404 page not found"),
        };
        reply.unwrap_or_else(|Problem(status, message)| text(status, &message))
    }

    fn pod_list(&self) -> Answer {
        let mut items: Vec<_> = self.pods.list();
        items.sort_by_key(|pod| pod.meta().key());
        let items: Vec<serde_json::Value> = items.iter().map(|pod| (**pod.value()).clone()).collect();
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        let mut answer = text(StatusCode::OK, &list.to_string());
        answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        answer
    }

    async fn metrics(&self) -> Reply {
        let (sandboxes, containers) =
            tokio::try_join!(self.cri.sandboxes(None), self.cri.containers(None)).map_err(|status| runtime(&status))?;
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state() == wire::PodSandboxState::SandboxReady).count();
        let count = |state| containers.iter().filter(|container| container.state() == state).count();
        let name = &self.node_name;
        let (created, running, exited) = (
            count(wire::ContainerState::ContainerCreated),
            count(wire::ContainerState::ContainerRunning),
            count(wire::ContainerState::ContainerExited),
        );
        Ok(text(
            StatusCode::OK,
            &format!(
                "# HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\n\
                 kubelet_node_name{{node=\"{name}\"}} 1\n\
                 # HELP kubelet_running_pods Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\n\
                 kubelet_running_pods {ready}\n\
                 # HELP kubelet_running_containers Number of containers by state\n# TYPE kubelet_running_containers gauge\n\
                 kubelet_running_containers{{container_state=\"created\"}} {created}\n\
                 kubelet_running_containers{{container_state=\"running\"}} {running}\n\
                 kubelet_running_containers{{container_state=\"exited\"}} {exited}\n"
            ),
        ))
    }

    /// The pod, and its uid.
    fn pod(&self, namespace: &str, name: &str) -> Result<(Arc<core::Pod>, String), Problem> {
        let key = format!("{namespace}/{name}");
        let Some(object) = self.pods.get(&key) else { return problem(StatusCode::NOT_FOUND, "pod does not exist") };
        let pod = object
            .typed::<core::Pod>()
            .map_err(|error| Problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok((pod, object.meta().uid.clone()))
    }

    /// All attempts of a container that the runtime has, the newest first.
    async fn attempts(&self, uid: &str, container: &str) -> Result<Vec<Container>, Problem> {
        let mut found = Vec::new();
        for listed in self.cri.containers(Some(uid)).await.map_err(|status| runtime(&status))? {
            if listed.labels.get(labels::CONTAINER_NAME).is_some_and(|name| name == container)
                && let Some(status) = self.cri.container_status(&listed.id).await.map_err(|status| runtime(&status))?
            {
                found.push(Container::from_wire(listed, status));
            }
        }
        found.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        Ok(found)
    }

    async fn running(&self, namespace: &str, pod: &str, container: &str) -> Result<String, Problem> {
        let (_, uid) = self.pod(namespace, pod)?;
        let attempts = self.attempts(&uid, container).await?;
        let running = attempts.into_iter().find(|attempt| attempt.state == State::Running);
        match running {
            Some(running) => Ok(running.id),
            None => problem(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")),
        }
    }

    async fn logs(&self, namespace: &str, pod_name: &str, container: &str, uri: &http::Uri) -> Reply {
        let query = Query::read(uri)?;
        let options = logs::Options::parse(&query.0, Timestamp::now());
        let options = options.map_err(|message| Problem(StatusCode::BAD_REQUEST, message))?;
        let (pod, uid) = self.pod(namespace, pod_name)?;
        if spec::find(&pod, container).is_none() {
            return problem(StatusCode::NOT_FOUND, format!("container {container} not found in pod {pod_name}"));
        }
        let mut attempts =
            self.attempts(&uid, container).await?.into_iter().filter(|attempt| attempt.state != State::Created);
        let latest = attempts.next();
        let chosen = if options.previous {
            let ended = attempts.next();
            match ended {
                Some(ended) => ended,
                None => {
                    let message = format!("previous terminated container {container:?} in pod {pod_name:?} not found");
                    return problem(StatusCode::BAD_REQUEST, message);
                }
            }
        } else {
            match latest {
                Some(latest) => latest,
                None => {
                    let status = spec::recorded(&pod, container).and_then(|status| status.state.clone()?.waiting);
                    let reason =
                        status.and_then(|waiting| waiting.reason).unwrap_or_else(|| "ContainerCreating".to_owned());
                    let message = format!("container {container:?} in pod {pod_name:?} is waiting to start: {reason}");
                    return problem(StatusCode::BAD_REQUEST, message);
                }
            }
        };
        if !Path::new(&chosen.log_path).is_file() {
            return problem(StatusCode::INTERNAL_SERVER_ERROR, format!("the log of container {container:?} is gone"));
        }
        let (sender, receiver) = mpsc::channel(LOG_QUEUE);
        let (cri, id) = (self.cri.clone(), chosen.id);
        let is_running = move || {
            let (cri, id) = (cri.clone(), id.clone());
            async move {
                match cri.container_status(&id).await {
                    Ok(Some(status)) => status.state() == wire::ContainerState::ContainerRunning,
                    Ok(None) => false,
                    // The runtime restarts; its containers go on.
                    Err(_) => true,
                }
            }
        };
        let path = chosen.log_path.into();
        tokio::spawn(async move {
            if let Err(error) = logs::send(path, options, sender, is_running).await {
                tracing::warn!(%error, "a log could not be read");
            }
        });
        let frames = ReceiverStream::new(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
        answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        Ok(answer)
    }

    async fn exec(&self, namespace: &str, pod: &str, container: &str, request: Request<Incoming>) -> Reply {
        let query = Query::read(request.uri())?;
        let command = query.all("command");
        if command.is_empty() {
            return problem(StatusCode::BAD_REQUEST, "you must specify at least 1 command");
        }
        let tty = query.flag(["tty", "tty"]);
        let exec = wire::ExecRequest {
            container_id: self.running(namespace, pod, container).await?,
            cmd: command,
            tty,
            stdin: query.flag(["input", "stdin"]),
            stdout: query.flag(["output", "stdout"]),
            // A terminal has one output.
            stderr: !tty && query.flag(["error", "stderr"]),
        };
        let url = self.cri.exec(exec).await.map_err(|status| runtime(&status))?;
        Ok(splice::splice(request, &url).await)
    }

    async fn attach(&self, namespace: &str, pod: &str, container: &str, request: Request<Incoming>) -> Reply {
        let query = Query::read(request.uri())?;
        let tty = query.flag(["tty", "tty"]);
        let attach = wire::AttachRequest {
            container_id: self.running(namespace, pod, container).await?,
            stdin: query.flag(["input", "stdin"]),
            tty,
            stdout: query.flag(["output", "stdout"]),
            stderr: !tty && query.flag(["error", "stderr"]),
        };
        let url = self.cri.attach(attach).await.map_err(|status| runtime(&status))?;
        Ok(splice::splice(request, &url).await)
    }

    async fn port_forward(&self, namespace: &str, pod: &str, request: Request<Incoming>) -> Reply {
        let query = Query::read(request.uri())?;
        let mut ports = Vec::new();
        for text in query.all("ports").iter().chain(&query.all("port")).flat_map(|ports| ports.split(',')) {
            match text.parse::<u16>() {
                Ok(port) if port > 0 => ports.push(i32::from(port)),
                _ => return problem(StatusCode::BAD_REQUEST, format!("invalid port {text:?}")),
            }
        }
        let (_, uid) = self.pod(namespace, pod)?;
        let sandboxes = self.cri.sandboxes(Some(&uid)).await.map_err(|status| runtime(&status))?;
        let ready = sandboxes.into_iter().find(|sandbox| sandbox.state() == wire::PodSandboxState::SandboxReady);
        let Some(sandbox) = ready else {
            return problem(StatusCode::NOT_FOUND, format!("pod not found ({namespace}/{pod})"));
        };
        let forward = wire::PortForwardRequest { pod_sandbox_id: sandbox.id, port: ports };
        let url = self.cri.port_forward(forward).await.map_err(|status| runtime(&status))?;
        Ok(splice::splice(request, &url).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, groups: &[&str], allowed: bool) {
        let caller = Caller { name: name.to_owned(), groups: groups.iter().map(|g| (*g).to_owned()).collect() };
        assert_eq!(caller.is_allowed(), allowed, "{caller:?}");
    }

    #[test]
    fn the_api_server_and_masters_are_let_in() {
        check("apiserver-kubelet-client", &[], true);
        check("kubernetes-admin", &["system:masters"], true);
        check("system:node:node-1", &["system:nodes"], false);
        check("", &[], false);
    }

    #[test]
    fn a_certificate_that_does_not_parse_names_nobody() {
        assert_eq!(Caller::read(b"\x30\x82garbage"), Caller::default());
    }
}
