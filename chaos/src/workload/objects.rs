//! Writes of API objects, one after another, each retried until it succeeds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::time;

/// One attempt of a write; a client whose server died asks again after that.
const ATTEMPT: Duration = Duration::from_millis(500);

/// The wait between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// A client of one cluster, through its endpoint.
#[derive(Clone)]
pub struct Objects {
    client: kube::Client,
}

/// One write that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub name: String,
    /// What was written: unique to this write.
    pub value: String,
    pub resource_version: String,
}

impl Objects {
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn connect(kubeconfig: &Path) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig).context("the kubeconfig does not parse")?;
        let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .context("the kubeconfig names no usable cluster")?;
        config.connect_timeout = Some(ATTEMPT);
        config.read_timeout = Some(ATTEMPT);
        let client = kube::Client::try_from(config).context("no client can be made")?;
        Ok(Self { client })
    }

    /// Creates a ConfigMap that holds `value`, trying until `deadline`. A retry that finds
    /// its own earlier attempt in place counts as acknowledged.
    ///
    /// # Errors
    /// With the last attempt's error, once the deadline has passed.
    pub async fn create(&self, name: &str, value: &str, deadline: Instant) -> Result<Acknowledged> {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}});
        let path = "/api/v1/namespaces/default/configmaps";
        loop {
            let last = match self.attempt(http::Method::POST, path, Some(&object)).await {
                Ok(created) => return acknowledged(name, value, &created),
                Err(error) => error,
            };
            if last.downcast_ref::<kube::Error>().is_some_and(already_exists) {
                return self.get(name, deadline).await;
            }
            if Instant::now() > deadline {
                return Err(last.context(format!("the write of {name} was not acknowledged in time")));
            }
            time::sleep(PAUSE).await;
        }
    }

    /// Reads a ConfigMap back, trying until `deadline`.
    ///
    /// # Errors
    /// When it is missing, or nobody answers in time.
    pub async fn get(&self, name: &str, deadline: Instant) -> Result<Acknowledged> {
        let path = format!("/api/v1/namespaces/default/configmaps/{name}");
        loop {
            match self.attempt(http::Method::GET, &path, None).await {
                Ok(object) => {
                    let value = object["data"]["value"].as_str().unwrap_or_default().to_owned();
                    return acknowledged(name, &value, &object);
                }
                Err(error) if error.downcast_ref::<kube::Error>().is_some_and(not_found) => return Err(error),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => time::sleep(PAUSE).await,
            }
        }
    }

    async fn attempt(&self, method: http::Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .context("a request is well formed")?;
        match time::timeout(ATTEMPT, self.client.request::<Value>(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => bail!("no answer within {} ms", ATTEMPT.as_millis()),
        }
    }
}

fn already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

fn not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn acknowledged(name: &str, value: &str, object: &Value) -> Result<Acknowledged> {
    let resource_version =
        object["metadata"]["resourceVersion"].as_str().context("an object has a resourceVersion")?.to_owned();
    Ok(Acknowledged { name: name.to_owned(), value: value.to_owned(), resource_version })
}
