//! Server-side apply as stock kubectl does it: managers share objects, and none takes a
//! field from another by accident.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::{Kubectl, TestCluster, eventually};
use serde_json::{Value, json};

#[test]
fn managers_share_objects() -> Result<()> {
    let mut test = TestCluster::start(1, 0)?;
    let kubectl = test.kubectl();
    eventually("the default namespace", Duration::from_secs(10), || kubectl.run(&["get", "ns", "default"]).map(Some))?;
    repeating_changes_nothing(&kubectl)?;
    others_are_asked_first(&kubectl)?;
    a_scaler_keeps_its_replicas(&kubectl)?;
    client_side_apply_is_taken_over(&kubectl)?;
    test.cluster.stop()
}

fn map(name: &str, data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

/// Applies and returns what kubectl said, which is an error if it failed.
fn apply(kubectl: &Kubectl, flags: &[&str], object: &str) -> Result<String, String> {
    let arguments = [&["apply", "-f", "-"][..], flags].concat();
    let output = kubectl.run_with_input(&arguments, object).map_err(|error| format!("{error:#}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

fn applied(kubectl: &Kubectl, flags: &[&str], object: &str) -> Result<String> {
    apply(kubectl, flags, object).map_err(anyhow::Error::msg)
}

fn get(kubectl: &Kubectl, kind: &str, name: &str) -> Result<Value> {
    kubectl.json(&["get", kind, name, "--show-managed-fields"])
}

/// `manager operation`, sorted.
fn owners(object: &Value) -> Vec<String> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let mut owners: Vec<String> =
        entries.map(|entry| format!("{} {}", text(entry, "manager"), text(entry, "operation"))).collect();
    owners.sort();
    owners
}

fn repeating_changes_nothing(kubectl: &Kubectl) -> Result<()> {
    let object = map("shared", json!({"color": "red", "size": "1"}));
    let first = applied(kubectl, &["--server-side"], &object)?;
    ensure!(first.contains("serverside-applied"), "{first}");
    let before = get(kubectl, "configmap", "shared")?;
    ensure!(owners(&before) == ["kubectl Apply"], "{before}");
    applied(kubectl, &["--server-side"], &object)?;
    let after = get(kubectl, "configmap", "shared")?;
    ensure!(before == after, "an apply of the same changed the object: {before} {after}");
    applied(kubectl, &["--server-side", "--dry-run=server"], &map("shared", json!({"color": "blue"})))?;
    ensure!(get(kubectl, "configmap", "shared")? == before, "a dry run took effect");
    Ok(())
}

fn others_are_asked_first(kubectl: &Kubectl) -> Result<()> {
    let other = ["--server-side", "--field-manager=other"];
    let object = map("shared", json!({"color": "blue"}));
    let refused = apply(kubectl, &other, &object).err().context("a conflict was let through")?;
    ensure!(
        refused.contains(r#"Apply failed with 1 conflict: conflict with "kubectl": .data.color"#),
        "another answer than Kubernetes': {refused}"
    );
    applied(kubectl, &[&other[..], &["--force-conflicts"]].concat(), &object)?;
    let forced = get(kubectl, "configmap", "shared")?;
    ensure!(forced["data"] == json!({"color": "blue", "size": "1"}), "{forced}");
    ensure!(owners(&forced) == ["kubectl Apply", "other Apply"], "{forced}");
    applied(kubectl, &["--server-side"], &map("shared", json!({})))?;
    let left = get(kubectl, "configmap", "shared")?;
    ensure!(left["data"] == json!({"color": "blue"}), "what kubectl left out is still there: {left}");
    Ok(())
}

fn a_scaler_keeps_its_replicas(kubectl: &Kubectl) -> Result<()> {
    let deployment = |replicas: Option<u8>| {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "quorate.local/web:1", "ports": [{"containerPort": 8080}]}]}}}});
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = replicas.into();
        }
        object.to_string()
    };
    applied(kubectl, &["--server-side"], &deployment(Some(1)))?;
    kubectl.run(&["scale", "deployment", "web", "--replicas=3"])?;
    let refused =
        apply(kubectl, &["--server-side"], &deployment(Some(1))).err().context("a conflict was let through")?;
    ensure!(
        refused.contains(r#"conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas"#),
        "another answer than Kubernetes': {refused}"
    );
    applied(kubectl, &["--server-side"], &deployment(None))?;
    let kept = get(kubectl, "deployment", "web")?;
    ensure!(kept["spec"]["replicas"] == 3, "who leaves the number out takes it away: {kept}");
    kubectl.run(&["delete", "deployment", "web", "--wait=false"])?;
    Ok(())
}

fn client_side_apply_is_taken_over(kubectl: &Kubectl) -> Result<()> {
    applied(kubectl, &[], &map("moved", json!({"a": "1", "b": "1"})))?;
    let before = get(kubectl, "configmap", "moved")?;
    ensure!(owners(&before) == ["kubectl-client-side-apply Update"], "{before}");
    applied(kubectl, &["--server-side"], &map("moved", json!({"a": "2"})))?;
    let after = get(kubectl, "configmap", "moved")?;
    ensure!(after["data"] == json!({"a": "2"}), "kubectl's own fields of before are not its own: {after}");
    ensure!(!owners(&after).contains(&"kubectl-client-side-apply Update".to_owned()), "{after}");
    // And back: the annotation tells kubectl what the server has applied.
    applied(kubectl, &[], &map("moved", json!({"c": "1"})))?;
    let back = get(kubectl, "configmap", "moved")?;
    ensure!(back["data"] == json!({"c": "1"}), "{back}");
    Ok(())
}
