//! `quorate bench` against both servers: what it counts and names, not how fast they are.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use quorate_tests::binary;
use serde_json::Value;

use crate::server::{Cluster, Program};

/// Enough for every kind of figure, and a few seconds in all.
const OPERATIONS: u64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_servers_are_measured_in_turns() -> Result<()> {
    let quorate = Cluster::start(Program::Quorate, 1, &[]).await?;
    let etcd = Cluster::start(Program::Etcd, 1, &[]).await?;
    let (total, endpoints, versus) = (OPERATIONS.to_string(), quorate.endpoints(), etcd.endpoints());
    let common = ["--endpoints", &endpoints, "--versus-endpoints", &versus, "--pairs", "2", "--conns", "2"];
    let common = [common.as_slice(), &["--total", &total, "-o", "json"]].concat();
    let several = ["--clients", "4", "--key-space-size", "50", "--val-size", "100"];
    for (workload, flags, kinds) in [
        ("put", several.as_slice(), ["put"].as_slice()),
        ("range", &several, &["range"]),
        ("txn", &[several.as_slice(), &["--txn-ops", "5"]].concat(), &["txn"]),
        ("mixed", &[several.as_slice(), &["--rw-ratio", "2", "--limit", "5"]].concat(), &["read", "write"]),
        ("list", &several, &["list"]),
        ("lease", &["--clients", "4", "--leases", "10"], &["keepalive"]),
    ] {
        let report = bench(&[&[workload], flags, &common].concat()).await?;
        check(&report, kinds, OPERATIONS).with_context(|| format!("{workload}: {report:#}"))?;
    }

    let watches = ["--streams", "2", "--watchers-per-stream", "5"];
    let steady = [watches.as_slice(), &["--put-rate", "1000", "--clients", "4"]].concat();
    let report = bench(&[&["watch-latency"], steady.as_slice(), &common].concat()).await?;
    check(&report, &["event"], OPERATIONS * 10).with_context(|| format!("watch-latency: {report:#}"))?;
    // Ten watchers of four keys: of every four writes the watchers of each key hear of one.
    let report = bench(&[&["watch", "--key-space-size", "4"], watches.as_slice(), &common].concat()).await?;
    check(&report, &["event"], OPERATIONS / 4 * 10).with_context(|| format!("watch: {report:#}"))
}

/// Every turn did everything, nothing failed, and both servers are named and told their costs.
fn check(report: &Value, kinds: &[&str], operations: u64) -> Result<()> {
    let programs: Vec<&Value> =
        [0, 1].iter().map(|cluster| &report["clusters"][cluster]["servers"][0]["program"]).collect();
    ensure!(programs == ["quorate", "etcd"], "{programs:?}");
    let runs = report["runs"].as_array().context("runs")?;
    let order: Vec<&Value> = runs.iter().map(|run| &run["cluster"]).collect();
    ensure!(order == [0, 1, 0, 1], "{order:?}");
    for run in runs {
        ensure!(run["operations"] == operations && run["errors"] == serde_json::json!({}));
        let all = run["kinds"].as_array().context("kinds")?;
        let counted: Vec<&Value> = all.iter().filter(|kind| kinds.iter().any(|name| kind["name"] == *name)).collect();
        ensure!(counted.len() == kinds.len());
        ensure!(counted.iter().filter_map(|kind| kind["count"].as_u64()).sum::<u64>() == operations);
        let histogram = counted.iter().flat_map(|kind| kind["histogram"].as_array().into_iter().flatten());
        ensure!(histogram.filter_map(|bucket| bucket[1].as_u64()).sum::<u64>() == operations);
        let known = ["cpu_micros", "syncs", "memory_bytes"].map(|cost| run["servers"][cost].is_number());
        ensure!(known == [true; 3], "a server does not tell its cost");
    }
    let ratio = report["ratios"].as_array().context("ratios")?.iter().find(|ratio| ratio["figure"] == "rate");
    ensure!(ratio.context("a ratio of rates")?["pairs"].as_array().is_some_and(|pairs| pairs.len() == 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_starts_and_removes_its_own_clusters() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().to_str().context("a path in UTF-8")?;
    let flags = ["--members", "1", "--pairs", "1", "--seconds", "1", "--only", "put, 1 client", "--data-dir", data];
    let table = bench(&[&["table"], flags.as_slice(), &["-o", "json"]].concat()).await?;
    let figures: Vec<&Value> = table["lines"].as_array().context("lines")?.iter().map(|line| &line["figure"]).collect();
    ensure!(figures == ["p50", "p99"], "{table:#}");
    let runs = table["reports"][0]["runs"].as_array().context("runs")?;
    for run in runs {
        ensure!(run["operations"].as_u64() > Some(0) && run["errors"] == serde_json::json!({}), "{run:#}");
    }
    ensure!(runs.len() == 2 && table["environment"]["disk"]["p99_ms"].is_number());
    ensure!(std::fs::read_dir(folder.path())?.next().is_none(), "data stays");
    Ok(())
}

/// What `quorate bench` prints as JSON. A verdict is no failure: 2 says that a target is missed.
async fn bench(arguments: &[&str]) -> Result<Value> {
    let output: Output = tokio::process::Command::new(binary()?)
        .arg("bench")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("quorate does not run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(matches!(output.status.code(), Some(0 | 2)), "bench {} failed: {said}", arguments.join(" "));
    serde_json::from_slice(&output.stdout).with_context(|| format!("bench {}: {said}", arguments.join(" ")))
}
