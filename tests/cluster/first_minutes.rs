//! The README's first five minutes, and what users then do with kubectl.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_tests::{Kubectl, TestCluster, eventually, report};
use serde_json::Value;

use crate::web::{self, running};

/// The promise: from `kubectl apply` to the first Running container.
const FIRST_CONTAINER: Duration = Duration::from_secs(10);

#[test]
fn a_deployment_runs_and_obeys_kubectl() -> Result<()> {
    let mut test = TestCluster::start(3, 1)?;
    let kubectl = test.kubectl();
    web::wait_for_node(&kubectl)?;

    let example = web::manifest()?;
    let applied = Instant::now();
    kubectl.run(&["apply", "-f", &example])?;
    eventually("the first container to run", FIRST_CONTAINER, || Ok(running(&kubectl)?.into_iter().next()))?;
    report(&format!("kubectl apply to the first Running pod: {:.1} s", applied.elapsed().as_secs_f64()));
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;

    looks_right(&kubectl)?;
    answers_by_address(&kubectl)?;
    logs_and_exec(&kubectl)?;
    changes(&kubectl)?;
    new_pods_after_a_kill(&test, &kubectl)?;

    kubectl.run(&["delete", "-f", &example, "--timeout=90s"])?;
    eventually("the pods to be gone", Duration::from_secs(60), || Ok(running(&kubectl)?.is_empty().then_some(())))?;
    test.cluster.stop()?;
    nothing_is_left(&test)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn looks_right(kubectl: &Kubectl) -> Result<()> {
    let wide = kubectl.run(&["get", "pods", "-o", "wide"])?;
    for column in ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"] {
        ensure!(wide.contains(column), "`get pods -o wide` lacks {column}: {wide}");
    }
    ensure!(wide.contains("1/1") && wide.contains("Running") && wide.contains("n1"), "{wide}");
    let deployment = kubectl.run(&["get", "deployment", "web"])?;
    ensure!(deployment.contains("2/2"), "{deployment}");
    let described = kubectl.run(&["describe", "deployment", "web"])?;
    ensure!(described.contains("ScalingReplicaSet") && described.contains("NewReplicaSetAvailable"), "{described}");
    let described = kubectl.run(&["describe", "pods", "-l", "app=web"])?;
    for event in ["Scheduled", "Pulled", "Created", "Started"] {
        ensure!(described.contains(event), "`describe pods` shows no {event} event: {described}");
    }
    let explained = kubectl.run(&["explain", "pod.spec"])?;
    ensure!(explained.contains("containers") && explained.contains("-required-"), "{explained}");
    let resources = kubectl.run(&["api-resources"])?;
    ensure!(resources.contains("deployments") && resources.contains("apps/v1"), "{resources}");
    Ok(())
}

fn answers_by_address(kubectl: &Kubectl) -> Result<()> {
    for pod in running(kubectl)? {
        let address = pod["status"]["podIP"].as_str().context("a running pod has an address")?;
        let url = format!("http://{address}:8080/");
        eventually("the pod to answer", Duration::from_secs(10), || {
            let answer = Command::new("curl").args(["-sf", "--max-time", "2", &url]).output()?;
            Ok(answer.status.success().then_some(()))
        })?;
    }
    Ok(())
}

fn logs_and_exec(kubectl: &Kubectl) -> Result<()> {
    let pods = running(kubectl)?;
    let pod = name(pods.first().context("a running pod")?);
    let said = kubectl.run(&["exec", pod, "--", "echo", "hello from inside"])?;
    ensure!(said.trim() == "hello from inside", "{said}");
    let failed = kubectl.output(&["exec", pod, "--", "sh", "-c", "exit 7"])?;
    ensure!(failed.status.code() == Some(7), "exec hands the exit code on: {failed:?}");
    let echoed = kubectl.run_with_input(&["exec", "-i", pod, "--", "cat"], "over standard input")?;
    ensure!(echoed.stdout == b"over standard input", "{echoed:?}");

    let mut follow = kubectl.command(&["logs", "-f", pod]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    kubectl.run(&["exec", pod, "--", "sh", "-c", "echo a line for the log > /proc/1/fd/1"])?;
    let mut stdout = follow.stdout.take().context("standard output is a pipe")?;
    let reader = std::thread::spawn(move || {
        let (mut seen, mut chunk) = (String::new(), [0; 1024]);
        while !seen.contains("a line for the log") {
            match stdout.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(count) => seen.push_str(&String::from_utf8_lossy(&chunk[..count])),
            }
        }
        seen
    });
    let seen = eventually("the followed log to show the line", Duration::from_secs(10), || {
        Ok(reader.is_finished().then_some(()))
    });
    follow.kill().context("cannot end `kubectl logs -f`")?;
    follow.wait()?;
    seen?;
    ensure!(reader.join().is_ok_and(|seen| seen.contains("a line for the log")), "the line is missing");
    Ok(())
}

fn changes(kubectl: &Kubectl) -> Result<()> {
    let mut watch = kubectl
        .command(&["get", "deployment/web", "--watch", "-o", "jsonpath={.status.readyReplicas} "])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    kubectl.run(&["scale", "deployment/web", "--replicas=3"])?;
    eventually("three running pods", Duration::from_secs(30), || Ok((running(kubectl)?.len() == 3).then_some(())))?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    watch.kill().context("cannot end `kubectl get --watch`")?;
    let watched = String::from_utf8_lossy(&watch.wait_with_output()?.stdout).into_owned();
    ensure!(watched.starts_with("2 ") && watched.contains('3'), "`get --watch` showed {watched:?}");
    let image = "web=quorate.local/web:2";
    kubectl.run(&["set", "image", "deployment/web", image])?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    for pod in running(kubectl)? {
        ensure!(pod["spec"]["containers"][0]["image"] == "quorate.local/web:2", "{pod}");
    }
    kubectl.run(&["label", "deployment/web", "tier=front"])?;
    ensure!(kubectl.run(&["get", "deploy", "-l", "tier=front", "-o", "name"])?.trim() == "deployment.apps/web");
    let edited = kubectl
        .command(&["edit", "deployment/web"])
        .env("KUBE_EDITOR", "sed -i s/tier:.front/tier:\\ edited/")
        .stdin(Stdio::null())
        .output()?;
    ensure!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    ensure!(kubectl.json(&["get", "deployment", "web"])?["metadata"]["labels"]["tier"] == "edited");
    Ok(())
}

/// `kubectl scale` brings new Running pods after the leading master was killed.
fn new_pods_after_a_kill(test: &TestCluster, kubectl: &Kubectl) -> Result<()> {
    let status = test.cluster.status()?;
    let leader = status.leader.context("a leader")?;
    let member = status.members.iter().find(|member| member.name == leader).context("the leader is a member")?;
    quorate_chaos::fault::process::kill(member.pid.context("a pid")?)?;
    let killed = Instant::now();
    eventually("kubectl scale to succeed", Duration::from_secs(10), || {
        kubectl.run(&["scale", "deployment/web", "--replicas=5"]).map(Some)
    })?;
    eventually("five running pods", Duration::from_secs(30), || Ok((running(kubectl)?.len() == 5).then_some(())))?;
    report(&format!("kill -9 of the leading master to five Running pods: {:.1} s", killed.elapsed().as_secs_f64()));
    Ok(())
}

/// Ctrl-C leaves no process, mount, namespace or bridge of the cluster.
fn nothing_is_left(test: &TestCluster) -> Result<()> {
    let folder = test.cluster.data_dir().to_string_lossy().into_owned();
    let processes = Command::new("ps").args(["-eo", "args"]).output()?;
    let processes = String::from_utf8_lossy(&processes.stdout).into_owned();
    ensure!(!processes.contains(&folder), "processes are left: {processes}");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&folder), "mounts are left: {mounts}");
    let links = Command::new("ip").args(["-o", "link"]).output()?;
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    ensure!(!links.contains(": qr"), "bridges are left: {links}");
    let rules = Command::new("nft").args(["list", "tables"]).output()?;
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    ensure!(!rules.contains("quorate"), "rules are left: {rules}");
    Ok(())
}
