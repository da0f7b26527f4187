//! `quorate snapshot`: save, look into, restore; from etcd and to etcd.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_proto::etcd::{SnapshotRequest, SnapshotResponse};
use quorate_store::Config;
use quorate_store::snapshot::{self, CHECKSUM_BYTES, Restore, Summary};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tonic::Streaming;

use crate::endpoints::{self, Endpoints};
use crate::output::{self, Format};

/// How often progress is shown.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// etcd's defaults.
const DEFAULT_NAME: &str = "default";
const DEFAULT_PEER_URL: &str = "http://localhost:2380";
const DEFAULT_TOKEN: &str = "etcd-cluster";

#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Save what a member holds, in etcd's format.
    #[command(after_help = "Examples:
  quorate snapshot save backup.db
  quorate snapshot save backup.db --endpoints https://10.0.0.1:2379 --cacert ca.crt --cert me.crt --key me.key")]
    Save(Save),
    /// Read all of a snapshot and say what it holds.
    Status(Status),
    /// Make the data directory of a member of a new cluster from a snapshot.
    #[command(after_help = "Run it once per member, with the same file and the same --initial-cluster and
--initial-cluster-token, then start the members with these settings. The new cluster is a
stranger to the old one; to restore the same file a second time, choose another token.

Examples:
  quorate snapshot restore backup.db --name m1 --data-dir m1.etcd \\
    --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380,m3=http://10.0.0.3:2380 \\
    --initial-advertise-peer-urls http://10.0.0.1:2380
  quorate snapshot restore backup.db --bump-revision 0     exactly as saved, history included")]
    Restore(Target),
    /// The same from the data directory of an etcd that has stopped, or from etcd's snapshot.
    #[command(after_help = "The data directory of a stopped etcd is taken over as it is: revisions, history and
leases go on. One that was killed has not written its last tenth of a second into its
database: that is taken from its log, except for changes of users. After a snapshot file
etcd may have written more, so the revision is raised as `restore` does.

Examples:
  quorate snapshot import /var/lib/etcd/default
  quorate snapshot import backup.db --name m1 --initial-cluster m1=http://10.0.0.1:2380,m2=…")]
    Import(Target),
    /// Write the data of a member that is not running as a snapshot that etcd restores.
    #[command(after_help = "Examples:
  quorate snapshot export m1.etcd backup.db
  etcdctl snapshot restore backup.db --data-dir new.etcd")]
    Export(Export),
}

#[derive(clap::Args, Debug)]
struct Save {
    /// Where to; an existing file is replaced once the new one is whole.
    file: PathBuf,
    #[command(flatten)]
    endpoints: Endpoints,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(clap::Args, Debug)]
struct Status {
    file: PathBuf,
    /// Read a file without a checksum, or with one that is wrong.
    #[arg(long)]
    skip_hash_check: bool,
    #[arg(short, long, visible_short_alias = 'w', value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(clap::Args, Debug)]
struct Target {
    /// A snapshot, or the data directory of an etcd that has stopped.
    source: PathBuf,
    /// The member to be.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Its data directory, which must not hold anything [default: NAME.etcd]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// All members of the new cluster [default: NAME=http://localhost:2380]
    #[arg(long, value_name = "NAME=URL,...")]
    initial_cluster: Option<String>,
    /// Tells clusters of the same names apart.
    #[arg(long, default_value = DEFAULT_TOKEN, value_name = "TOKEN")]
    initial_cluster_token: String,
    /// Where the others reach the member; it must be its URL in --initial-cluster.
    #[arg(long, default_value = DEFAULT_PEER_URL, value_name = "URL,...")]
    initial_advertise_peer_urls: String,
    /// Take a file without a checksum, such as one copied from a data directory.
    #[arg(long)]
    skip_hash_check: bool,
    /// Raise the revision by so much, so that none is given out twice [default: 1000000000; for a data directory 0]
    #[arg(long, value_name = "N")]
    bump_revision: Option<u64>,
    /// Count what was before the raised revision as compacted, so that watches learn of the restore [default: true if it is raised]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    mark_compacted: Option<bool>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(clap::Args, Debug)]
struct Export {
    /// The data directory of a member that is not running.
    data_dir: PathBuf,
    /// Where to.
    file: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Save(arguments) => save(arguments).await,
        Command::Status(arguments) => status(arguments).await,
        Command::Restore(arguments) | Command::Import(arguments) => restore(arguments).await,
        Command::Export(arguments) => export(arguments).await,
    }
}

#[derive(Serialize)]
struct Saved {
    file: PathBuf,
    #[serde(flatten)]
    summary: Summary,
}

async fn save(arguments: Save) -> Result<()> {
    let members = arguments.endpoints.resolved()?.0.connect().await?;
    let mut progress = Progress::new("saved");
    let stream = endpoints::first(&members, async |member| {
        let mut client = member.maintenance();
        client.snapshot(SnapshotRequest {}).await.map(tonic::Response::into_inner)
    })
    .await?;
    let part = part_of(&arguments.file);
    let received = receive(stream, &part, &mut progress).await;
    let checked = match received {
        Ok(()) => check(part.clone()).await,
        Err(error) => Err(error),
    };
    let summary = match checked {
        Ok(summary) => summary,
        Err(error) => {
            // What it says matters more than whether the rest could be removed.
            drop(tokio::fs::remove_file(&part).await);
            return Err(error);
        }
    };
    tokio::fs::rename(&part, &arguments.file).await.with_context(|| named("rename to", &arguments.file))?;
    sync_directory_of(&arguments.file).await?;
    progress.end();
    let saved = Saved { file: arguments.file, summary };
    output::print(arguments.output, &saved, |saved| {
        format!(
            "Snapshot saved at {}: revision {}, {}\n",
            saved.file.display(),
            summary.revision,
            size(summary.total_size)
        )
    })
}

/// Writes the stream into `part`, and all of it to the disk.
async fn receive(mut stream: Streaming<SnapshotResponse>, part: &Path, progress: &mut Progress) -> Result<()> {
    let file = tokio::fs::File::create(part).await.with_context(|| named("create", part))?;
    let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
    let mut bytes = 0u64;
    while let Some(message) = stream.message().await.map_err(|status| endpoints::refusal(&status))? {
        file.write_all(&message.blob).await.with_context(|| named("write", part))?;
        bytes += message.blob.len() as u64;
        progress.show(bytes, bytes + message.remaining_bytes);
    }
    file.flush().await.with_context(|| named("write", part))?;
    file.into_inner().sync_all().await.with_context(|| named("sync", part))?;
    ensure!(bytes % 512 == CHECKSUM_BYTES as u64, "the member's snapshot ended without its checksum");
    Ok(())
}

async fn check(part: PathBuf) -> Result<Summary> {
    let checked = tokio::task::spawn_blocking(move || snapshot::summarize(&part, false, &mut |_, _| {})).await?;
    checked.context("the snapshot that was received is not sound")
}

async fn status(arguments: Status) -> Result<()> {
    let Status { file, skip_hash_check, output } = arguments;
    let summary = tokio::task::spawn_blocking(move || {
        let mut progress = Progress::new("read");
        let summary = snapshot::summarize(&file, skip_hash_check, &mut |done, all| progress.show(done, all));
        progress.end();
        summary
    })
    .await??;
    output::print(output, &summary, table)
}

fn table(summary: &Summary) -> String {
    let row = vec![
        format!("{:x}", summary.hash),
        summary.revision.to_string(),
        summary.total_key.to_string(),
        size(summary.total_size),
    ];
    output::columns(&["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"], [row].into_iter())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    data_dir: PathBuf,
    cluster_id: String,
    member_id: String,
    saved_revision: i64,
    from_log: u64,
    revision: i64,
    compact_revision: i64,
    versions: u64,
    leases: u64,
}

async fn restore(arguments: Target) -> Result<()> {
    let output = arguments.output;
    let restore = plan(arguments)?;
    let report = tokio::task::spawn_blocking(move || {
        let mut progress = Progress::new("restored");
        let restored = snapshot::restore(&restore, &mut |done, all| progress.show(done, all));
        progress.end();
        restored.map(|restored| Report {
            data_dir: restore.member.data_dir,
            cluster_id: format!("{:x}", restored.cluster_id),
            member_id: format!("{:x}", restored.member_id),
            saved_revision: restored.saved_revision,
            from_log: restored.from_log,
            revision: restored.revision,
            compact_revision: restored.compact_revision,
            versions: restored.versions,
            leases: restored.leases,
        })
    })
    .await??;
    output::print(output, &report, describe)
}

fn describe(report: &Report) -> String {
    let mut text = format!(
        "Restored {} versions of keys and {} leases of revision {} into {}: member {} of the new cluster {}.\n",
        report.versions,
        report.leases,
        report.saved_revision,
        report.data_dir.display(),
        report.member_id,
        report.cluster_id,
    );
    if report.from_log > 0 {
        let _ = writeln!(
            text,
            "etcd was killed: {} changes that its database lacked were taken from its log, up to revision {}.",
            report.from_log, report.revision
        );
    } else if report.revision > report.saved_revision {
        let _ =
            writeln!(text, "The cluster goes on at revision {}, above every revision of the old one.", report.revision);
    }
    text
}

/// What the flags ask for.
fn plan(arguments: Target) -> Result<Restore> {
    let Target { source, name, data_dir, initial_cluster, initial_cluster_token, .. } = arguments;
    let all = initial_cluster.unwrap_or_else(|| format!("{name}={DEFAULT_PEER_URL}"));
    let mut members: Vec<(String, String)> = Vec::new();
    for part in all.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((member, url)) = part.split_once('=') else { bail!("{part:?} is not of the form NAME=URL") };
        let address = address(url).context("--initial-cluster is not usable")?;
        // etcd lets a member have several; here one is enough.
        if !members.iter().any(|(known, _)| known == member) {
            members.push((member.to_owned(), address));
        }
    }
    let Some((_, own)) = members.iter().find(|(member, _)| *member == name) else {
        bail!("couldn't find local name {name:?} in the initial cluster configuration");
    };
    let urls = &arguments.initial_advertise_peer_urls;
    let advertised = urls.split(',').map(|url| address(url.trim())).collect::<Result<Vec<_>>>();
    let advertised = advertised.context("--initial-advertise-peer-urls is not usable")?;
    ensure!(
        advertised.contains(own),
        "--initial-cluster has {name}={own} but missing from --initial-advertise-peer-urls={urls}"
    );
    let data_dir = data_dir.unwrap_or_else(|| format!("{name}.etcd").into());
    let mut member = Config::new(&name, data_dir);
    member.initial_cluster = members;
    member.cluster_token = initial_cluster_token;
    Ok(Restore {
        source,
        skip_hash_check: arguments.skip_hash_check,
        bump_revision: arguments.bump_revision,
        mark_compacted: arguments.mark_compacted,
        member,
    })
}

/// `host:port` of a peer URL.
fn address(url: &str) -> Result<String> {
    let address = match url.split_once("://") {
        Some(("http" | "https", address)) => address.trim_end_matches('/'),
        _ => bail!("{url:?}: URL scheme must be http or https"),
    };
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    ensure!(matches!(port, Some(Ok(_))), "{url:?}: URL address does not have the form \"host:port\"");
    Ok(address.to_owned())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExportReport {
    file: PathBuf,
    revision: i64,
    size_bytes: u64,
}

async fn export(arguments: Export) -> Result<()> {
    let Export { data_dir, file, output } = arguments;
    let report = tokio::task::spawn_blocking(move || {
        let mut progress = Progress::new("exported");
        let exported = snapshot::export_directory(&data_dir, &file, &mut |done, all| progress.show(done, all));
        progress.end();
        exported.map(|exported| ExportReport { file, revision: exported.revision, size_bytes: exported.size_bytes })
    })
    .await??;
    output::print(output, &report, |report| {
        format!(
            "Snapshot exported to {}: revision {}, {}\n",
            report.file.display(),
            report.revision,
            size(report.size_bytes)
        )
    })
}

fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

async fn sync_directory_of(file: &Path) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let opened = tokio::fs::File::open(directory).await.with_context(|| named("open", directory))?;
    opened.sync_all().await.with_context(|| named("sync", directory))
}

fn named(action: &str, path: &Path) -> String {
    format!("cannot {action} {}", path.display())
}

/// As etcdctl writes sizes.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "it is shown with two digits")]
    let mut number = bytes as f64;
    let mut unit = 0;
    while number >= 1000.0 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    if number < 10.0 && unit > 0 {
        format!("{number:.1} {}", UNITS[unit])
    } else {
        format!("{number:.0} {}", UNITS[unit])
    }
}

/// One line that is written over and over; none when nobody looks.
struct Progress {
    verb: &'static str,
    shown: Option<Instant>,
    visible: bool,
}

impl Progress {
    fn new(verb: &'static str) -> Self {
        Self { verb, shown: None, visible: std::io::stderr().is_terminal() }
    }

    /// `done` of `all`; 0 of 0 is unknown.
    fn show(&mut self, done: u64, all: u64) {
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_PERIOD);
        if !self.visible || !due || all == 0 {
            return;
        }
        self.shown = Some(Instant::now());
        eprint!("\r{} {:3} % ", self.verb, done.saturating_mul(100) / all);
        // Nobody is told less if the terminal is gone.
        let _ = std::io::stderr().flush();
    }

    fn end(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r{:40}\r", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn planned(line: &str) -> Result<Restore> {
        match Line::try_parse_from(line.split(' '))?.command {
            Command::Restore(target) | Command::Import(target) => plan(target),
            _ => bail!("another command"),
        }
    }

    #[test]
    fn flags_are_etcdctls() {
        let restore = planned("x restore f").unwrap();
        assert_eq!(restore.member.data_dir, Path::new("default.etcd"));
        assert_eq!(restore.member.initial_cluster, [("default".to_owned(), "localhost:2380".to_owned())]);
        assert_eq!((restore.bump_revision, restore.mark_compacted), (None, None));

        let restore = planned(
            "x restore f --name b --data-dir d --initial-cluster a=http://h:1,b=https://h:2 --skip-hash-check \
             --initial-cluster-token t --initial-advertise-peer-urls https://h:2 --bump-revision 5 --mark-compacted",
        )
        .unwrap();
        assert_eq!(restore.member.initial_cluster[1], ("b".to_owned(), "h:2".to_owned()));
        assert_eq!((restore.bump_revision, restore.mark_compacted), (Some(5), Some(true)));
        assert!(restore.skip_hash_check && restore.member.cluster_token == "t");
        assert_eq!(planned("x restore f --mark-compacted=false").unwrap().mark_compacted, Some(false));

        let check = |line: &str, expected: &str| {
            let error = format!("{:#}", planned(line).unwrap_err());
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("x restore f --name b --initial-cluster a=http://h:1", "couldn't find local name \"b\"");
        check("x restore f --name a --initial-cluster a=http://h:1", "missing from --initial-advertise-peer-urls");
        check("x restore f --initial-cluster default", "NAME=URL");
        check("x restore f --initial-cluster default=h:1", "scheme");
        check("x restore f --initial-cluster default=http://h", "host:port");
    }

    #[test]
    fn sizes_are_etcdctls() {
        for (bytes, expected) in [(0, "0 B"), (999, "999 B"), (24_576, "25 kB"), (1_234_000, "1.2 MB")] {
            assert_eq!(size(bytes), expected);
        }
    }
}
