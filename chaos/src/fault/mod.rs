//! What is done to a cluster.

pub mod disk;
pub mod link;
pub mod network;
pub mod process;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end, with `input`.
fn feed(mut command: Command, input: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    // One that ends without reading says why.
    let fed = child.stdin.take().context("a pipe")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} failed on\n{input}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    fed.with_context(|| format!("{program} does not read"))
}
