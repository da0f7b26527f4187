//! Requests that a node answers: logs, exec, attach, port-forward, and the proxies.
//!
//! Nothing here understands what passes: an upgrade (WebSocket or SPDY) is forwarded
//! and, once the node has agreed, bytes go both ways until one side closes.

mod forward;
mod target;

use std::sync::Arc;

use http::{Request, Uri};
use hyper::body::Incoming;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::Client;
use quorate_runtime::resources;
use quorate_transport::tls::Reloading;
use rustls::ClientConfig;

use crate::http::{Answer, Query, RequestInfo};
use forward::{Forwarder, Place};
use target::{Streaming, container_of, kubelet_place, log_query, split_proxy_name, streaming_query};

/// Carries requests to nodes, pods and services.
pub struct Proxy {
    client: Arc<dyn Client>,
    forwarder: Forwarder,
}

impl Proxy {
    /// `tls` is what the server shows to node agents.
    pub fn new(client: Arc<dyn Client>, tls: Reloading<ClientConfig>) -> Self {
        Self { client, forwarder: Forwarder::new(tls) }
    }

    /// Whether a request is one of those answered here. A node's path has no namespace.
    pub fn serves(info: &RequestInfo) -> bool {
        let known = match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "log" | "exec" | "attach" | "portforward" | "proxy") | ("services", "proxy") => true,
            ("nodes", "proxy") => info.namespace.is_empty(),
            _ => false,
        };
        known && info.api_group.is_empty()
    }

    /// # Errors
    /// 404 for what does not exist, 400 for what cannot be reached, 502 and 503 from the way there.
    pub async fn answer(&self, info: &RequestInfo, query: &Query, request: Request<Incoming>) -> Answer {
        match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "log") => self.log(info, query, request).await,
            ("pods", "exec") => self.stream(Streaming::Exec, info, query, request).await,
            ("pods", "attach") => self.stream(Streaming::Attach, info, query, request).await,
            ("pods", "portforward") => self.stream(Streaming::PortForward, info, query, request).await,
            ("nodes", _) => {
                let place = self.kubelet(&info.name).await?;
                self.pass(place, info, request).await
            }
            ("services", _) => {
                let place = self.service(info).await?;
                self.pass(place, info, request).await
            }
            _ => {
                let place = self.pod(info).await?;
                self.pass(place, info, request).await
            }
        }
    }

    async fn log(&self, info: &RequestInfo, query: &Query, mut request: Request<Incoming>) -> Answer {
        let pod = self.get_pod(info, &info.name).await?;
        let container = container_of(&pod, query.text("container"))?;
        let Some(node) = node_of(&pod) else {
            // Nothing runs yet, so nothing was said yet.
            return Ok(crate::http::body::text(http::StatusCode::OK, ""));
        };
        let place = self.kubelet(node).await?;
        let path = format!("/containerLogs/{}/{}/{container}?{}", info.namespace, info.name, log_query(query));
        *request.uri_mut() = uri(&path)?;
        let response = self.forwarder.forward(&place, request).await?;
        if response.status().is_success() { Ok(response) } else { Err(forward::failure(response).await) }
    }

    async fn stream(
        &self,
        kind: Streaming,
        info: &RequestInfo,
        query: &Query,
        mut request: Request<Incoming>,
    ) -> Answer {
        let pod = self.get_pod(info, &info.name).await?;
        let phase = pod.value()["status"]["phase"].as_str().unwrap_or("");
        if matches!(phase, "Succeeded" | "Failed") && kind != Streaming::PortForward {
            return Err(Status::bad_request(format!(
                "cannot exec into a container in a completed pod; current phase is {phase}"
            )));
        }
        let Some(node) = node_of(&pod) else {
            return Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)));
        };
        let mut path = format!("/{}/{}/{}", kind.path(), info.namespace, info.name);
        if kind != Streaming::PortForward {
            path = format!("{path}/{}", container_of(&pod, query.text("container"))?);
        }
        let place = self.kubelet(node).await?;
        *request.uri_mut() = uri(&format!("{path}?{}", streaming_query(kind, query)))?;
        self.forwarder.forward(&place, request).await
    }

    /// Forwards what stands after `/proxy`, as it was sent.
    async fn pass(&self, place: Place, info: &RequestInfo, mut request: Request<Incoming>) -> Answer {
        // Before the name: prefix, version, resource, and in a namespace two more.
        let skip = if info.resource == "nodes" { 5 } else { 7 };
        let raw = request.uri().path().trim_start_matches('/').splitn(skip + 1, '/').nth(skip).unwrap_or("");
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        *request.uri_mut() = uri(&format!("/{raw}{query}"))?;
        self.forwarder.forward(&place, request).await
    }

    async fn kubelet(&self, node: &str) -> Result<Place, Status> {
        let (_, name, _) = split_proxy_name(node);
        let node = self.client.get(&resources::nodes(), None, name).await?;
        kubelet_place(&node).ok_or_else(|| Status::internal(format!("no address known of the agent on node {name:?}")))
    }

    async fn get_pod(&self, info: &RequestInfo, name: &str) -> Result<Arc<Object>, Status> {
        self.client.get(&resources::pods(), Some(&info.namespace), name).await
    }

    async fn pod(&self, info: &RequestInfo) -> Result<Place, Status> {
        let (scheme, name, port) = split_proxy_name(&info.name);
        let pod = self.get_pod(info, name).await?;
        let address = pod.value()["status"]["podIP"].as_str().and_then(|text| text.parse().ok());
        let first_port = target::first_container_port(&pod);
        let port = if port.is_empty() { first_port } else { port.parse().ok() };
        match (address, port) {
            (Some(address), Some(port)) => Ok(Place::new(address, port, scheme == "https")),
            (None, _) => Err(Status::bad_request(format!("address not allowed: pod {name} has no address"))),
            (_, None) => Err(Status::bad_request(format!("no port {port:?} found for pod {name}"))),
        }
    }

    async fn service(&self, info: &RequestInfo) -> Result<Place, Status> {
        let (scheme, name, port) = split_proxy_name(&info.name);
        let service = self.client.get(&resources::services(), Some(&info.namespace), name).await?;
        let endpoints = self.client.get(&resources::endpoints(), Some(&info.namespace), name).await;
        let found = endpoints.ok().and_then(|endpoints| target::service_endpoint(&service, &endpoints, port));
        let (address, port) = found.ok_or_else(|| {
            let asked = if port.is_empty() { name.to_owned() } else { format!("{name}:{port}") };
            Status::service_unavailable(format!("no endpoints available for service {asked:?}"), 0)
        })?;
        Ok(Place::new(address, port, scheme == "https"))
    }
}

fn node_of(pod: &Object) -> Option<&str> {
    pod.value()["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

fn uri(path: &str) -> Result<Uri, Status> {
    path.parse().map_err(|_| Status::bad_request("the request cannot be forwarded: its path is not valid"))
}
