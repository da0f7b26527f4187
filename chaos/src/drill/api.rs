//! The API as Kubernetes' clients reach it: one master's server, or the endpoint.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::io::Lines;
use futures::{AsyncBufRead, AsyncBufReadExt};
use http::Method;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::time;

use super::sample::Outcome;
use super::store::was_refused;

/// A connection that takes longer to be made is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A client that never retries: what is retried is for the probe to say.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
}

/// Why a request was not carried out, as far as its client knows.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    /// Of the answer, if there was one.
    pub(crate) code: Option<u16>,
    pub(crate) outcome: Outcome,
    text: String,
}

impl Refusal {
    fn of(error: &kube::Error) -> Self {
        let code = match error {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        };
        let outcome = if was_refused(error) { Outcome::Unreachable } else { Outcome::Failed };
        Self { code, outcome, text: error.to_string() }
    }

    fn late(patience: Duration) -> Self {
        let text = format!("no answer within {} ms", patience.as_millis());
        Self { code: None, outcome: Outcome::Failed, text }
    }
}

impl Api {
    /// The API server at `address`, with the certificates of `kubeconfig`.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub(crate) async fn connect(kubeconfig: &Path, address: SocketAddr) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig).context("the kubeconfig does not parse")?;
        let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .context("the kubeconfig names no usable cluster")?;
        config.cluster_url = format!("https://{address}").parse().context("an address makes a URL")?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = None;
        config.default_retry = false;
        Ok(Self { client: kube::Client::try_from(config).context("no client can be made")? })
    }

    pub(crate) async fn create(&self, path: &str, object: &Value, patience: Duration) -> Result<Value, Refusal> {
        self.call(Method::POST, path, "application/json", Some(object), patience).await
    }

    pub(crate) async fn get(&self, path: &str, patience: Duration) -> Result<Value, Refusal> {
        self.call(Method::GET, path, "application/json", None, patience).await
    }

    pub(crate) async fn merge(&self, path: &str, patch: &Value, patience: Duration) -> Result<Value, Refusal> {
        self.call(Method::PATCH, path, "application/merge-patch+json", Some(patch), patience).await
    }

    /// What is gone already counts as deleted.
    pub(crate) async fn delete(&self, path: &str, patience: Duration) -> Result<(), Refusal> {
        match self.call(Method::DELETE, path, "application/json", None, patience).await {
            Err(refusal) if refusal.code != Some(404) => Err(refusal),
            _ => Ok(()),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<Value, Refusal> {
        let body = body.map(|body| serde_json::to_vec(body).expect("a value is JSON")).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body)
            .expect("paths of drills are well formed");
        match time::timeout(patience, self.client.request::<Value>(request)).await {
            Ok(answer) => answer.map_err(|error| Refusal::of(&error)),
            Err(_) => Err(Refusal::late(patience)),
        }
    }

    /// Opens a watch; its lines are events in JSON.
    pub(crate) async fn watch(
        &self,
        path: &str,
        resource_version: u64,
        patience: Duration,
    ) -> Result<Lines<impl AsyncBufRead + Unpin + use<>>, Refusal> {
        let uri = format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={resource_version}");
        let request = http::Request::get(uri).body(Vec::new()).expect("paths of drills are well formed");
        match time::timeout(patience, self.client.request_stream(request)).await {
            Ok(Ok(stream)) => Ok(Box::pin(stream).lines()),
            Ok(Err(error)) => Err(Refusal::of(&error)),
            Err(_) => Err(Refusal::late(patience)),
        }
    }
}
