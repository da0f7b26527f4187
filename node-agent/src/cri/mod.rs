//! The container runtime, over its socket.

pub mod image;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use quorate_proto::cri::image_service_client::ImageServiceClient;
use quorate_proto::cri::runtime_service_client::RuntimeServiceClient;
use quorate_proto::cri::{self as wire};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Upstream's default for calls that are not pulls.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A pull without an end blocks a pod; a large image on a slow line takes minutes.
const PULL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How much later than its own time limit a call is given up.
const GRACE: Duration = Duration::from_secs(10);
/// Answers hold every container of a node: more than tonic's 4 MiB.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// Labels by which sandboxes and containers are found again. Kubernetes' names.
pub mod labels {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// A connection to the runtime; cheap to clone, reconnects by itself.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn call<T>(message: T) -> Request<T> {
    within(message, CALL_TIMEOUT)
}

/// An error of the runtime as Kubernetes prints it: clients know the form.
pub fn describe(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

/// Removing what is gone already is success.
fn gone_is_fine<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status),
    }
}

impl Cri {
    /// Speaks to the runtime that listens on `socket`; connects with the first call.
    pub fn new(socket: &Path) -> Self {
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is never resolved; HTTP/2 wants one.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES),
        }
    }

    pub async fn version(&self) -> Result<wire::VersionResponse, Status> {
        let request = within(wire::VersionRequest { version: "v1".to_owned() }, Duration::from_secs(2));
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// `verbose` adds the runtime's configuration as JSON.
    pub async fn status(&self, verbose: bool) -> Result<wire::StatusResponse, Status> {
        Ok(self.runtime.clone().status(call(wire::StatusRequest { verbose })).await?.into_inner())
    }

    pub async fn run_sandbox(&self, config: wire::PodSandboxConfig) -> Result<String, Status> {
        let request = wire::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        Ok(self.runtime.clone().run_pod_sandbox(call(request)).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = wire::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().stop_pod_sandbox(call(request)).await)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = wire::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().remove_pod_sandbox(call(request)).await)
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<Option<wire::PodSandboxStatus>, Status> {
        let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        match self.runtime.clone().pod_sandbox_status(call(request)).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// The sandboxes of one pod, or of all.
    pub async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<wire::PodSandbox>, Status> {
        let filter = wire::PodSandboxFilter { label_selector: of_pod(pod_uid), ..Default::default() };
        let request = wire::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_pod_sandbox(call(request)).await?.into_inner().items)
    }

    /// The containers of one pod, or of all; in any state.
    pub async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<wire::Container>, Status> {
        let filter = wire::ContainerFilter { label_selector: of_pod(pod_uid), ..Default::default() };
        let request = wire::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(call(request)).await?.into_inner().containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<Option<wire::ContainerStatus>, Status> {
        let request = wire::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.runtime.clone().container_status(call(request)).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: wire::ContainerConfig,
        sandbox_config: wire::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(self.runtime.clone().create_container(call(request)).await?.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = wire::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(call(request)).await.map(drop)
    }

    /// Asks the container to end and kills it after `grace`.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Status> {
        let request =
            wire::StopContainerRequest { container_id: id.to_owned(), timeout: grace.as_secs().cast_signed() };
        gone_is_fine(self.runtime.clone().stop_container(within(request, grace + CALL_TIMEOUT)).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = wire::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().remove_container(call(request)).await)
    }

    /// Runs a command to its end; `DeadlineExceeded` when it takes longer than `timeout`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<wire::ExecSyncResponse, Status> {
        let request = wire::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command,
            timeout: timeout.as_secs().max(1).cast_signed(),
        };
        Ok(self.runtime.clone().exec_sync(within(request, timeout + GRACE)).await?.into_inner())
    }

    pub async fn exec(&self, request: wire::ExecRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().exec(call(request)).await?.into_inner().url)
    }

    pub async fn attach(&self, request: wire::AttachRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().attach(call(request)).await?.into_inner().url)
    }

    pub async fn port_forward(&self, request: wire::PortForwardRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().port_forward(call(request)).await?.into_inner().url)
    }

    pub async fn images(&self) -> Result<Vec<wire::Image>, Status> {
        Ok(self.images.clone().list_images(call(wire::ListImagesRequest {})).await?.into_inner().images)
    }

    /// `None` when the image is not on this node.
    pub async fn image(&self, reference: &str) -> Result<Option<wire::Image>, Status> {
        let request = wire::ImageStatusRequest { image: Some(spec(reference)), verbose: false };
        Ok(self.images.clone().image_status(call(request)).await?.into_inner().image)
    }

    /// Returns the reference by which the runtime knows the image.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<wire::AuthConfig>,
        sandbox_config: wire::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request =
            wire::PullImageRequest { image: Some(spec(reference)), auth, sandbox_config: Some(sandbox_config) };
        Ok(self.images.clone().pull_image(within(request, PULL_TIMEOUT)).await?.into_inner().image_ref)
    }
}

fn spec(reference: &str) -> wire::ImageSpec {
    wire::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

fn of_pod(uid: Option<&str>) -> HashMap<String, String> {
    uid.map(|uid| (labels::POD_UID.to_owned(), uid.to_owned())).into_iter().collect()
}
