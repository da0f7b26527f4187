//! `quorate node`: one node agent as a process.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use quorate_node_agent::{Config, Runtime};
use tokio_util::sync::CancellationToken;

use crate::pki::Pki;
use crate::supervise;

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:
  quorate node --name n1 --data-dir /var/lib/quorate/n1 --pki /etc/quorate/pki \\
    --kubeconfig /etc/quorate/n1.kubeconfig --listen 192.0.2.11:10250")]
pub(crate) struct Arguments {
    /// Name of the Node object.
    #[arg(long)]
    name: String,
    /// Where the agent and its containers keep their state.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The folder with ca.crt, kubelet-NAME.crt and kubelet-NAME.key.
    #[arg(long, value_name = "DIR")]
    pki: PathBuf,
    /// How to reach the API, and as whom.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Where the API server reaches the agent; its address is the node's.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// A container runtime that runs already; by default the agent starts a containerd of its own.
    #[arg(long, value_name = "SOCKET")]
    cri_socket: Option<PathBuf>,
    /// Image archives to import at start.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// End when standard input closes: set by the supervisor.
    #[arg(long, hide = true)]
    lifeline: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    std::fs::create_dir_all(&arguments.data_dir)
        .with_context(|| format!("cannot create {}", arguments.data_dir.display()))?;
    let data_dir = arguments.data_dir.canonicalize().context("the data directory has no absolute path")?;
    let tls = Pki::at(&arguments.pki).kubelet(&arguments.name);
    let mut config = Config::new(&arguments.name, arguments.kubeconfig, data_dir, arguments.listen, tls);
    config.image_dir = arguments.images;
    if let Some(socket) = arguments.cri_socket {
        config.runtime = Runtime::Socket(socket);
    }
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let lifeline = arguments.lifeline;
    tokio::spawn(async move {
        if let Err(error) = supervise::shutdown_signal(lifeline).await {
            tracing::error!(%error, "cannot listen for signals");
        }
        stop.cancel();
    });
    quorate_node_agent::run(config, cancel).await.context("the node agent cannot go on")
}
