//! What is wrong is refused in Kubernetes' own words, and changes nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::{Kubectl, TestCluster, eventually};

#[test]
fn mistakes_get_kubernetes_answers() -> Result<()> {
    let mut test = TestCluster::start(1, 0)?;
    let kubectl = test.kubectl();
    eventually("the default namespace", Duration::from_secs(10), || kubectl.run(&["get", "ns", "default"]).map(Some))?;

    check(
        &kubectl,
        &["get", "configmap", "nowhere"],
        r#"Error from server (NotFound): configmaps "nowhere" not found"#,
    )?;
    check(&kubectl, &["get", "deploy", "x"], r#"Error from server (NotFound): deployments.apps "x" not found"#)?;
    check(
        &kubectl,
        &["create", "ns", "default"],
        r#"Error from server (AlreadyExists): namespaces "default" already exists"#,
    )?;
    check(
        &kubectl,
        &["create", "configmap", "Bad_Name"],
        r#"error: failed to create configmap: ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
    )?;
    check(
        &kubectl,
        &["create", "configmap", "x", "-n", "none"],
        r#"error: failed to create configmap: namespaces "none" not found"#,
    )?;
    wrong_token(&test, &kubectl)?;

    refused(&kubectl, &["create", "-f", "-"], "{", "error")?;
    let unknown = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"u"},"dada":{"a":"b"}}"#;
    refused(&kubectl, &["create", "-f", "-"], unknown, r#"strict decoding error: unknown field "dada""#)?;
    ensure!(kubectl.fails(&["get", "configmap", "u"])?.contains("NotFound"), "a refused object was stored");

    kubectl.run(&["create", "configmap", "c", "--from-literal=a=1"])?;
    let mut stale = kubectl.json(&["get", "configmap", "c"])?;
    kubectl.run(&["label", "configmap", "c", "x=y"])?;
    stale["data"]["a"] = "2".into();
    let conflict = r#"Operation cannot be fulfilled on configmaps "c": the object has been modified; please apply your changes to the latest version and try again"#;
    refused(&kubectl, &["replace", "-f", "-"], &stale.to_string(), conflict)?;
    ensure!(kubectl.json(&["get", "configmap", "c"])?["data"]["a"] == "1", "a conflicting write took effect");
    test.cluster.stop()
}

#[track_caller]
fn check(kubectl: &Kubectl, arguments: &[&str], expected: &str) -> Result<()> {
    let said = kubectl.fails(arguments)?;
    ensure!(said == expected, "kubectl {} said {said:?} instead of {expected:?}", arguments.join(" "));
    Ok(())
}

fn refused(kubectl: &Kubectl, arguments: &[&str], input: &str, expected: &str) -> Result<()> {
    let output = kubectl.run_with_input(arguments, input)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "kubectl {} accepted {input}", arguments.join(" "));
    ensure!(said.contains(expected), "kubectl {} said {said:?}, without {expected:?}", arguments.join(" "));
    Ok(())
}

/// Asks with nothing but a bearer token that nobody issued.
fn wrong_token(test: &TestCluster, admin: &Kubectl) -> Result<()> {
    let ca = test.cluster.data_dir().join("pki/ca.crt");
    let server = format!("https://{}", test.cluster.endpoint());
    let nobody = test.cluster.data_dir().join("nobody.kubeconfig");
    std::fs::write(&nobody, "").context("cannot write a kubeconfig")?;
    let kubectl = Kubectl::with_kubeconfig(&nobody);
    let ca = ca.to_string_lossy();
    let said = kubectl.fails(&["--server", &server, "--certificate-authority", &ca, "--token=wrong", "get", "pods"])?;
    let expected = "error: You must be logged in to the server (Unauthorized)";
    ensure!(said.contains(expected), "a wrong token got {said:?}");
    admin.run(&["get", "ns"]).map(drop)
}
