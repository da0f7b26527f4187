//! `quorate store`: one member of the store alone, in the place of an etcd process.

mod flags;
mod notify;
mod settings;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgMatches, Command};
use quorate_store::{Listener, MetricsText, PeerTrust, Serves, Store};
use quorate_transport::authority::{Authority, Profile};
use quorate_transport::tls::{ClientAuth, TlsFiles};

use self::flags::{Values, Warning};
use self::notify::Manager;
use self::settings::{ListenUrl, Settings, TlsSettings};
pub(crate) use self::settings::{Log, parse_size};
use crate::supervise;

/// Where distributions keep the authorities that everybody trusts; etcd falls back to
/// them when no authority is named.
const SYSTEM_AUTHORITIES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How often a member that has just started asks whether there is a quorum; the service
/// manager is asked for so much more time, which outlasts the longest such question.
const QUORUM_LOOK: Duration = Duration::from_millis(100);
const QUORUM_WAIT: Duration = Duration::from_secs(30);

/// What the command line and the environment say.
#[derive(Debug)]
pub(crate) struct Arguments {
    settings: Result<Settings>,
    warnings: Vec<Warning>,
}

const EXAMPLES: &str = "Every flag is also a variable: --listen-client-urls is ETCD_LISTEN_CLIENT_URLS. Flags go \
before variables; one dash is as good as two.

Examples:
  quorate store                 one member, clients at http://localhost:2379

  Three members on this machine; run each in a terminal, with N = 1, 2, 3:
  quorate store --name mN --data-dir mN.data \\
    --listen-client-urls http://127.0.0.N:2379 --advertise-client-urls http://127.0.0.N:2379 \\
    --listen-peer-urls http://127.0.0.N:2380 --initial-advertise-peer-urls http://127.0.0.N:2380 \\
    --initial-cluster m1=http://127.0.0.1:2380,m2=http://127.0.0.2:2380,m3=http://127.0.0.3:2380";

impl clap::FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Ok(Self::read(flags::from_matches(matches), environment))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Arguments {
    fn augment_args(command: Command) -> Command {
        flags::arguments(command).after_help(EXAMPLES)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Arguments {
    fn read(flags: Values, environment: impl Iterator<Item = (String, String)>) -> Self {
        let (values, mut warnings) = flags::with_environment(flags, environment);
        let settings = settings(values, &mut warnings);
        Self { settings, warnings }
    }

    /// How to log; settings that cannot be used are complained about later, by [`run`].
    pub(crate) fn log(&self) -> Log {
        self.settings.as_ref().map_or_else(|_| Log::default(), |settings| settings.log)
    }
}

/// With a configuration file, what flags and environment say is not looked at.
fn settings(values: Values, warnings: &mut Vec<Warning>) -> Result<Settings> {
    let values = match values.get(flags::CONFIG_FILE) {
        None => values,
        Some(file) => {
            let text = std::fs::read_to_string(&file.text).with_context(|| format!("cannot read {}", file.text))?;
            let (values, unknown) = flags::from_yaml(&text).with_context(|| format!("{} is not usable", file.text))?;
            // Whatever was said of flags and variables is of no interest any more.
            *warnings = unknown;
            values
        }
    };
    let (values, meaningless) = flags::without_meaningless(values)?;
    warnings.extend(meaningless);
    Settings::parse(&values)
}

/// etcd's flags may begin with one dash.
pub(crate) fn command_line(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    flags::double_dashes(arguments)
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    for warning in &arguments.warnings {
        tracing::warn!("{warning}");
    }
    let settings = arguments.settings?;
    let config = config(&settings)?;
    let store = Store::start(config).await?;
    tracing::info!(name = settings.name, peer = %store.peer_address(), client = ?settings.advertise_client, "listening");
    let manager = Manager::of_this_process();
    let mut ended = store.ended();
    tokio::select! {
        () = serving(&store, &manager) => {}
        reason = ended.wait_for(Option::is_some) => if let Ok(Some(reason)) = reason.map(|reason| *reason) {
            bail!("{reason}")
        },
        ended = supervise::shutdown_signal(false) => ended?,
    }
    tracing::info!("shutting down: leadership first, then requests, then the store");
    manager.stopping();
    store.shutdown().await;
    Ok(())
}

/// Tells the service manager once requests can be served, as etcd does; never returns.
async fn serving(store: &Store, manager: &Manager) {
    while store.read_index().await.is_err() {
        manager.waiting(QUORUM_WAIT);
        tokio::time::sleep(QUORUM_LOOK).await;
    }
    manager.ready();
    tracing::info!("serving");
    std::future::pending().await
}

fn config(settings: &Settings) -> Result<quorate_store::Config> {
    refuse_etcd(&settings.data_dir)?;
    let metrics = crate::metrics::install()?;
    let mut config = quorate_store::Config::new(&settings.name, &settings.data_dir);
    let [peer, others @ ..] = settings.listen_peer.as_slice() else { bail!("--listen-peer-urls names no URL") };
    ensure!(
        others.iter().all(|url| url.tls == peer.tls),
        "--listen-peer-urls mixes http:// and https://: members speak the one or the other"
    );
    config.listen_peer = peer.address;
    config.also_listen_peer = others.iter().map(|url| url.address).collect();
    config.advertise_peer = Some(settings.advertise_peer.clone());
    config.advertise_client = settings.advertise_client.clone();
    config.initial_cluster = settings.initial_cluster.clone();
    config.initial_cluster_state = settings.cluster_state;
    config.strict_reconfig_check = settings.strict_reconfig_check;
    config.max_learners = settings.max_learners.unwrap_or(config.max_learners);
    config.cluster_token = settings.cluster_token.clone();
    if peer.tls {
        (config.peer_tls, config.peer_trust) = peer_identity(settings)?;
    }
    config.listeners = client_listeners(settings)?;
    if let Some(timing) = settings.timing {
        config.heartbeat = timing.heartbeat;
        config.election_timeout_min = timing.election;
        config.election_timeout_max = timing.election * 2;
    }
    config.watch_progress_interval = settings.watch_progress.unwrap_or(config.watch_progress_interval);
    config.client_cert_auth = settings.client_tls.client_cert_auth;
    config.auth_token = settings.auth_token.clone();
    config.bcrypt_cost = settings.bcrypt_cost.unwrap_or(config.bcrypt_cost);
    let limits = settings.limits;
    config.quota_bytes = limits.quota_bytes.unwrap_or(config.quota_bytes);
    config.max_request_bytes = limits.request_bytes.unwrap_or(config.max_request_bytes);
    config.max_txn_ops = limits.txn_ops.unwrap_or(config.max_txn_ops);
    config.memory_limit_bytes = limits.memory_bytes.unwrap_or(config.memory_limit_bytes);
    config.auto_compaction = settings.auto_compaction;
    config.metrics = Some(MetricsText(Arc::new(move || metrics.render())));
    Ok(config)
}

/// A directory that etcd wrote is not ours to write into.
fn refuse_etcd(data_dir: &Path) -> Result<()> {
    ensure!(
        !data_dir.join("member").exists(),
        "{} holds the data of an etcd member; choose another --data-dir, and bring the data over with \
         `quorate snapshot import`",
        data_dir.display()
    );
    Ok(())
}

fn client_listeners(settings: &Settings) -> Result<Vec<Listener>> {
    let all = || settings.listen_client.iter().chain(&settings.listen_metrics);
    let identity = match all().any(|url| url.tls) {
        true => Some(identity(settings, &settings.client_tls, "client")?),
        false => None,
    };
    let listener = |serves| {
        let identity = identity.clone();
        move |url: &ListenUrl| Listener { address: url.address, tls: identity.clone().filter(|_| url.tls), serves }
    };
    let clients = settings.listen_client.iter().map(listener(Serves::Everything));
    let monitoring = settings.listen_metrics.iter().map(listener(Serves::Monitoring));
    Ok(clients.chain(monitoring).collect())
}

fn peer_identity(settings: &Settings) -> Result<(Option<TlsFiles>, PeerTrust)> {
    let tls = &settings.peer_tls;
    let (files, shown) = identity(settings, tls, "peer")?;
    let trust = if tls.cert.is_some() { PeerTrust::Host(shown) } else { PeerTrust::Nobody };
    Ok((Some(files), trust))
}

/// The files of one side, made if none were named, and what the others must show.
fn identity(settings: &Settings, tls: &TlsSettings, side: &str) -> Result<(TlsFiles, ClientAuth)> {
    // As etcd: naming an authority means that certificates are demanded.
    let shown = match tls.client_cert_auth || tls.ca.is_some() {
        true => ClientAuth::Required,
        false => ClientAuth::None,
    };
    let ca = tls.ca.clone().or_else(system_authorities);
    let files = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.unwrap_or_default() },
        _ => TlsFiles { ca: ca.unwrap_or_default(), ..made_identity(settings, side)? },
    };
    Ok((files, shown))
}

fn system_authorities() -> Option<PathBuf> {
    SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// A certificate of an authority of the member's own, kept with its data.
fn made_identity(settings: &Settings, side: &str) -> Result<TlsFiles> {
    let folder = settings.data_dir.join("fixtures").join(side);
    let authority = Authority::load_or_create(&folder, "ca", &format!("quorate store {}", settings.name))?;
    let listening = if side == "peer" { &settings.listen_peer } else { &settings.listen_client };
    let mut profile = Profile::new(&settings.name).dns("localhost").server().client();
    for url in listening.iter().filter(|url| url.tls) {
        profile = profile.address(url.address.ip());
    }
    let files = TlsFiles {
        cert: folder.join("cert.pem"),
        key: folder.join("key.pem"),
        ca: authority.certificate_path().into(),
    };
    authority.issue(&profile, &files.cert, &files.key)?;
    tracing::info!(certificate = %files.cert.display(), side, "made a certificate: none was named");
    Ok(files)
}
