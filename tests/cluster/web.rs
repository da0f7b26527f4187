//! The example of the README: a Deployment of web servers.

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_tests::{Kubectl, eventually, root};
use serde_json::Value;

/// The path of the example's manifest.
pub(crate) fn manifest() -> Result<String> {
    let path = root().join("examples/web.yaml");
    Ok(path.to_str().context("the path is text")?.to_owned())
}

/// Returns once the cluster's node takes pods.
pub(crate) fn wait_for_node(kubectl: &Kubectl) -> Result<()> {
    eventually("the node to be Ready", Duration::from_secs(30), || {
        let node = kubectl.json(&["get", "node", "n1"])?;
        let conditions = node["status"]["conditions"].as_array().context("conditions")?;
        let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        Ok(conditions.iter().any(is_ready).then_some(()))
    })
}

/// The pods of the example whose containers run.
pub(crate) fn running(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let pods = kubectl.json(&["get", "pods", "-l", "app=web"])?;
    let pods = pods["items"].as_array().context("items")?.clone();
    let runs = |pod: &Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
    Ok(pods.into_iter().filter(runs).collect())
}
