//! `quorate`: one binary for masters, nodes and whoever operates them.
//!
//! The only room that reads arguments, environment and signals.

mod bench;
mod drill;
mod endpoint;
mod endpoints;
mod layout;
mod master;
mod member;
mod members;
mod metrics;
mod node;
mod output;
mod pki;
mod readiness;
mod snapshot;
mod status;
mod store;
mod supervise;
mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Serves RocksDB as well. How it is set, and why, is in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Kubernetes-compatible control plane on its own replicated store.
#[derive(Parser, Debug)]
#[command(
    name = "quorate",
    version,
    about,
    after_help = "Examples:
  quorate up                   a cluster on this machine: 3 masters, 1 node
  quorate status -o json       who leads, who lags, what can be lost
  source <(quorate completion bash)"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a whole cluster on this machine until Ctrl-C.
    Up(up::Arguments),
    /// Run one master: store replica, API server, controllers.
    Master(master::Arguments),
    /// Run one member of the store alone, in the place of etcd.
    Store(store::Arguments),
    /// Run one node agent.
    Node(node::Arguments),
    /// Save, inspect and restore snapshots of the store; take over from etcd and go back to it.
    Snapshot(snapshot::Arguments),
    /// Say who leads, who lags, and what the cluster can lose.
    Status(status::Arguments),
    /// List, add, move, replace and remove members of a store.
    Member(member::Arguments),
    /// Measure how fast a store is, also a real etcd, or two of them in turns.
    Bench(bench::Arguments),
    /// Break a part of a running cluster on purpose, and measure what clients lose.
    Drill(drill::Arguments),
    /// Print the completion script of a shell.
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(store::command_line(std::env::args_os()));
    // Commands that people run speak for themselves; processes of the cluster write logs.
    // The Raft library warns about every attempt to reach a peer that is down.
    let default = match &cli.command {
        Command::Store(arguments) => format!("{},openraft=error", arguments.log().level),
        Command::Master(_) | Command::Node(_) => "info,openraft=error".to_owned(),
        // Whom drills kill, clients complain about: drills tell of it themselves.
        Command::Drill(_) => "warn,openraft=off,kube_client=off".to_owned(),
        _ => "warn,openraft=off".to_owned(),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("QUORATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    match &cli.command {
        Command::Store(arguments) if arguments.log().json => log.json().init(),
        _ => log.init(),
    }
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Up(arguments) => up::run(arguments).await.map(|()| 0),
            Command::Master(arguments) => master::run(arguments).await.map(|()| 0),
            Command::Store(arguments) => store::run(arguments).await.map(|()| 0),
            Command::Node(arguments) => node::run(arguments).await.map(|()| 0),
            Command::Snapshot(arguments) => snapshot::run(arguments).await.map(|()| 0),
            Command::Status(arguments) => status::run(arguments).await,
            Command::Member(arguments) => member::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
            Command::Drill(arguments) => drill::run(arguments).await,
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut std::io::stdout());
                Ok(0)
            }
        }
    })
}
