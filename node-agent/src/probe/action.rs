//! One look at a container: by HTTP, TCP, gRPC or a command inside.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use quorate_proto::health;
use tokio::net::TcpStream;
use tonic::Code;

use crate::cri::Cri;

/// What of an answer is kept for an event. Upstream's bound.
const MAX_ANSWER_BYTES: usize = 10 * 1024;
const USER_AGENT: &str = "kube-probe/1.35";

/// Where to look.
pub struct Target<'a> {
    pub cri: &'a Cri,
    pub container_id: &'a str,
    /// The pod's primary address.
    pub address: &'a str,
    pub ports: &'a [core::ContainerPort],
    pub timeout: Duration,
}

impl Target<'_> {
    /// A port by number or by its name in the container.
    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(text) => match text.parse() {
                Ok(number) => Some(number),
                Err(_) => {
                    self.ports.iter().find(|port| port.name.as_ref() == Some(text)).map(|port| port.container_port)
                }
            },
        };
        let text = || match port {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text.clone(),
        };
        number
            .and_then(|number| u16::try_from(number).ok())
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("invalid port: {}", text()))
    }

    fn host<'h>(&'h self, own: Option<&'h str>) -> &'h str {
        own.filter(|host| !host.is_empty()).unwrap_or(self.address)
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let connected = TcpStream::connect((host, port)).await;
        connected.map_err(|error| {
            // As Go words it, without the number that Rust adds.
            let text = error.to_string().to_lowercase();
            let text = text.split(" (os error").next().unwrap_or_default();
            format!("dial tcp {}: connect: {text}", authority(host, port))
        })
    }

    /// # Errors
    /// Why the command failed: what it printed.
    pub async fn exec(&self, command: Vec<String>) -> Result<(), String> {
        let text = command.join(" ");
        match self.cri.exec_sync(self.container_id, command, self.timeout).await {
            Ok(answer) if answer.exit_code == 0 => Ok(()),
            Ok(answer) => {
                let mut output = answer.stdout.to_vec();
                output.extend_from_slice(&answer.stderr);
                output.truncate(MAX_ANSWER_BYTES);
                Err(String::from_utf8_lossy(&output).into_owned())
            }
            Err(status) if status.code() == Code::DeadlineExceeded => {
                Err(format!("command timed out: \"{text}\" timed out after {}s", self.timeout.as_secs()))
            }
            Err(status) => Err(crate::cri::describe(&status)),
        }
    }

    /// # Errors
    /// Why the port does not answer.
    pub async fn tcp(&self, action: &core::TCPSocketAction) -> Result<(), String> {
        let port = self.port(&action.port)?;
        self.connect(self.host(action.host.as_deref()), port).await.map(drop)
    }

    /// # Errors
    /// Why the answer is no success.
    pub async fn http(&self, action: &core::HTTPGetAction) -> Result<(), String> {
        if action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            return Err("HTTPS probes are not supported by the node agent yet".to_owned());
        }
        let port = self.port(&action.port)?;
        let host = self.host(action.host.as_deref());
        let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let url = format!("http://{}{path}", authority(host, port));
        let failed = |error: String| format!("Get \"{url}\": {error}");
        let mut request = hyper::Request::get(&path)
            .header("User-Agent", USER_AGENT)
            .header("Accept", "*/*")
            .header("Connection", "close");
        let mut named = false;
        for header in action.http_headers.iter().flatten() {
            named |= header.name.eq_ignore_ascii_case("host");
            request = request.header(&header.name, &header.value);
        }
        if !named {
            request = request.header("Host", authority(host, port));
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| failed(error.to_string()))?;
        let stream = self.connect(host, port).await.map_err(failed)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let exchange = async move {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            // Reading the body to its end lets the server finish; what it says does not matter.
            let _ = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok::<_, String>(status)
        };
        let (status, _) = tokio::join!(exchange, connection);
        let status = status.map_err(failed)?;
        if (200..400).contains(&status.as_u16()) {
            Ok(())
        } else {
            Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
        }
    }

    /// # Errors
    /// Why the service is not serving.
    pub async fn grpc(&self, action: &core::GRPCAction) -> Result<(), String> {
        let port = self.port(&IntOrString::Int(action.port))?;
        let address = format!("http://{}", authority(self.address, port));
        let endpoint = tonic::transport::Endpoint::from_shared(address).map_err(|error| error.to_string())?;
        let channel = endpoint.connect_timeout(self.timeout).connect().await;
        let channel = channel.map_err(|error| {
            format!("error: failed to connect service {:?}: {error}", authority(self.address, port))
        })?;
        let request = health::HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
        let answer = health::health_client::HealthClient::new(channel).check(request).await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(health::health_check_response::ServingStatus::Serving) => Ok(()),
            Ok(status) => Err(format!("service unhealthy (responded with {:?})", status.as_str_name())),
            Err(status) => Err(format!("error: health rpc probe failed: {}", crate::cri::describe(&status))),
        }
    }

    /// Runs the hook of a container's lifecycle.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn hook(&self, handler: &core::LifecycleHandler) -> Result<(), String> {
        if let Some(action) = &handler.exec {
            self.exec(action.command.clone().unwrap_or_default()).await
        } else if let Some(action) = &handler.http_get {
            self.http(action).await
        } else if let Some(action) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
            Ok(())
        } else {
            Err("invalid handler: it has no action that is supported".to_owned())
        }
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
