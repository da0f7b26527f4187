//! The processes under comparison: Debian's etcd and `quorate store`, started alike.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_proto::etcd::cluster_client::ClusterClient;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::maintenance_client::MaintenanceClient;
use quorate_proto::etcd::{MemberListRequest, RangeRequest, StatusRequest};
use quorate_transport::loopback::free_address;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Longer than any member needs to start that starts at all, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(40);

/// The pause between two looks at a member that starts.
const START_POLL: Duration = Duration::from_millis(50);

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Etcd,
    Quorate,
}

impl Program {
    fn command(self) -> Result<Command> {
        match self {
            Self::Etcd => Ok(Command::new("etcd")),
            Self::Quorate => {
                let binary =
                    std::env::var_os("QUORATE_BIN").context("QUORATE_BIN is not set: run the tests with ./x test")?;
                let mut command = Command::new(binary);
                command.arg("store");
                Ok(command)
            }
        }
    }
}

/// A cluster of one program's processes; killed with this value.
pub(crate) struct Cluster {
    pub(crate) program: Program,
    pub(crate) members: Vec<Member>,
    folder: TempDir,
}

pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) client: SocketAddr,
    pub(crate) channel: Channel,
    process: Child,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Cluster {
    /// Starts `size` members with `flags`, and waits until all of them answer.
    pub(crate) async fn start(program: Program, size: usize, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("quorate-diff-").tempdir()?;
        let addresses: Vec<SocketAddr> = (0..size * 2).map(|_| free_address()).collect();
        let places: Vec<(String, SocketAddr, SocketAddr)> =
            addresses.chunks(2).enumerate().map(|(number, pair)| (format!("m{number}"), pair[0], pair[1])).collect();
        let initial: Vec<String> = places.iter().map(|(name, _, peer)| format!("{name}=http://{peer}")).collect();
        let mut members = Vec::new();
        for (name, client, peer) in places {
            let data = folder.path().join(&name);
            let log = folder.path().join(format!("{name}.log"));
            members.push(spawn(program, &name, [client, peer], &initial.join(","), &data, &log, flags)?);
        }
        let mut cluster = Self { program, members, folder };
        for member in 0..size {
            cluster.wait_for(member).await?;
        }
        cluster.wait_for_addresses().await?;
        Ok(cluster)
    }

    /// Waits until every member knows where clients reach all of them.
    async fn wait_for_addresses(&self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        for member in &self.members {
            loop {
                let mut client = ClusterClient::new(member.channel.clone());
                let list = client.member_list(MemberListRequest::default()).await?.into_inner();
                if list.members.iter().all(|known| !known.client_ur_ls.is_empty()) {
                    break;
                }
                ensure!(Instant::now() < deadline, "{:?} does not say where its members are", self.program);
                tokio::time::sleep(START_POLL).await;
            }
        }
        Ok(())
    }

    /// Starts one member from the data directory that `etcdctl snapshot restore` made.
    pub(crate) async fn start_from(program: Program, data: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("quorate-diff-").tempdir()?;
        let addresses = [free_address(), free_address()];
        let (name, initial) = ("default", format!("default=http://{}", addresses[1]));
        let log = folder.path().join("default.log");
        let member = spawn(program, name, [addresses[0], addresses[1]], &initial, data, &log, &[])?;
        let mut cluster = Self { program, members: vec![member], folder };
        cluster.wait_for(0).await?;
        Ok(cluster)
    }

    async fn wait_for(&mut self, number: usize) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let log = self.log(number);
            let member = &mut self.members[number];
            let mut kv = KvClient::new(member.channel.clone());
            let request = RangeRequest { key: "health".into(), ..RangeRequest::default() };
            match tokio::time::timeout(Duration::from_secs(2), kv.range(request)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if error.code() == tonic::Code::PermissionDenied => return Ok(()),
                _ => {}
            }
            if let Some(status) = member.process.try_wait()? {
                bail!("{:?} ended with {status}: {}", self.program, tail(&log));
            }
            ensure!(Instant::now() < deadline, "{:?} does not answer: {}", self.program, tail(&log));
            tokio::time::sleep(START_POLL).await;
        }
    }

    fn log(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", self.members[member].name))
    }

    /// A folder of this cluster's own, for what clients write.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The members' ids, in their order, and the place of the leader.
    pub(crate) async fn who(&self) -> Result<(Vec<u64>, usize)> {
        let mut ids = Vec::new();
        let mut leader = 0;
        for member in &self.members {
            let status = MaintenanceClient::new(member.channel.clone()).status(StatusRequest {}).await?.into_inner();
            ids.push(status.header.context("a header")?.member_id);
            leader = status.leader;
        }
        let place = ids.iter().position(|id| *id == leader).context("a leader")?;
        Ok((ids, place))
    }

    /// Where all members listen, as `--endpoints` takes it.
    pub(crate) fn endpoints(&self) -> String {
        let urls: Vec<String> = self.members.iter().map(|member| format!("http://{}", member.client)).collect();
        urls.join(",")
    }
}

fn spawn(
    program: Program,
    name: &str,
    [client, peer]: [SocketAddr; 2],
    initial: &str,
    data: &Path,
    log: &Path,
    flags: &[&str],
) -> Result<Member> {
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let process = program
        .command()?
        .args(["--name", name, "--initial-cluster", initial, "--initial-cluster-token", "diff"])
        .arg("--data-dir")
        .arg(data)
        .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
        .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(File::create(log)?)
        .stderr(File::options().append(true).open(log)?)
        .spawn()
        .with_context(|| format!("{program:?} does not start"))?;
    let channel = Endpoint::from_shared(client_url)?.connect_lazy();
    Ok(Member { name: name.to_owned(), client, channel, process })
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
