//! Clients that others wrote: one script each, whose output against both clusters is compared.

use std::ffi::OsString;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use crate::script::difference;
use crate::server::{Cluster, Program};

/// A script that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn tool(variable: &str) -> Result<OsString> {
    std::env::var_os(variable).with_context(|| format!("{variable} is not set: run the tests with ./x test"))
}

/// What a program prints, and how it ends. One that hangs is shown as far as it came.
async fn output(mut command: Command) -> Result<String> {
    let (mut reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).kill_on_drop(true);
    let mut child = command.spawn()?;
    // It holds the ends that the child's output goes to.
    drop(command);
    let said = tokio::task::spawn_blocking(move || {
        let mut said = Vec::new();
        reader.read_to_end(&mut said).map(|_| said)
    });
    let ended = timeout(PATIENCE, child.wait()).await;
    child.start_kill().ok();
    let said = said.await??;
    let said = String::from_utf8_lossy(&said);
    let status = ended.with_context(|| format!("the script hangs after:\n{said}"))??;
    Ok(format!("{said}{status}"))
}

/// Runs the script that `command` makes for each of both clusters.
async fn compare(command: impl Fn(&Cluster) -> Result<Command>) -> Result<()> {
    let (etcd, quorate) = tokio::join!(Cluster::start(Program::Etcd, 1, &[]), Cluster::start(Program::Quorate, 1, &[]));
    let (etcd, quorate) = (etcd?, quorate?);
    let (expected, found) = tokio::join!(output(command(&etcd)?), output(command(&quorate)?));
    let (expected, found) = (expected.context("with etcd")?, found.context("with Quorate")?);
    ensure!(expected.ends_with("exit status: 0"), "the script fails with etcd: {expected}");
    ensure!(expected == found, "{}", difference(&expected, &found));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd3gw_sees_no_difference() -> Result<()> {
    let python = tool("QUORATE_ETCD3GW")?;
    compare(|cluster| {
        let mut command = Command::new(&python);
        let client = cluster.members[0].client;
        command.arg(quorate_tests::root().join("tests/store/gateway_client.py"));
        command.args([client.ip().to_string(), client.port().to_string()]);
        Ok(command)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crate_etcd_client_sees_no_difference() -> Result<()> {
    let program = tool("QUORATE_ETCD_CLIENT")?;
    compare(|cluster| {
        let mut command = Command::new(&program);
        command.arg(cluster.endpoints());
        Ok(command)
    })
    .await
}
