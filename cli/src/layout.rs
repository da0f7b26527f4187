//! Where `quorate up` keeps things, and at which addresses its processes listen.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use quorate_chaos::fault::disk::Disk;
use serde::{Deserialize, Serialize};

/// etcd's and Kubernetes' well-known ports: habits keep working.
pub(crate) const CLIENT_PORT: u16 = 2379;
pub(crate) const PEER_PORT: u16 = 2380;
pub(crate) const API_PORT: u16 = 6443;
pub(crate) const KUBELET_PORT: u16 = 10250;

/// Node addresses begin there in the cluster's loopback network, masters at 1.
const FIRST_NODE_HOST: u8 = 101;

/// The places of one cluster on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    data_dir: PathBuf,
    network: Ipv4Addr,
}

/// One master of the cluster and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MasterPlace {
    pub name: String,
    pub api: SocketAddr,
    pub client: SocketAddr,
    pub peer: SocketAddr,
}

/// One node of the cluster and its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodePlace {
    pub name: String,
    pub kubelet: SocketAddr,
}

impl Layout {
    /// `network` names a /24 inside 127.0.0.0/8; its last octet is ignored.
    pub(crate) fn new(data_dir: &Path, network: Ipv4Addr) -> Self {
        Self { data_dir: data_dir.to_owned(), network }
    }

    pub(crate) fn master(&self, index: u8) -> MasterPlace {
        let at = |port| SocketAddr::from((self.host(index + 1), port));
        MasterPlace { name: format!("m{}", index + 1), api: at(API_PORT), client: at(CLIENT_PORT), peer: at(PEER_PORT) }
    }

    pub(crate) fn node(&self, index: u8) -> NodePlace {
        NodePlace {
            name: format!("n{}", index + 1),
            kubelet: SocketAddr::from((self.host(FIRST_NODE_HOST + index), KUBELET_PORT)),
        }
    }

    fn host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.network.octets();
        Ipv4Addr::new(a, b, c, last)
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The folder of one process: its store, its runtime's state.
    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    pub(crate) fn node_kubeconfig(&self, name: &str) -> PathBuf {
        self.of(name).join("kubelet.kubeconfig")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.data_dir.join("lock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.data_dir.join("cluster.json")
    }
}

/// Where that is kept what stands between masters and their disks.
pub(crate) fn faults(data_dir: &Path) -> PathBuf {
    data_dir.join("faults")
}

/// The disk of a master, where it can be failed; `data_dir` is absolute and without links.
pub(crate) fn disk(data_dir: &Path, name: &str) -> Disk {
    Disk::at(&faults(data_dir), name, &data_dir.join(name))
}

/// What `quorate up` tells other commands about the cluster that it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterState {
    /// The process of `quorate up`; absent when the cluster is down.
    pub pid: Option<u32>,
    pub endpoint: SocketAddr,
    pub network: Ipv4Addr,
    pub masters: Vec<Running<MasterPlace>>,
    pub nodes: Vec<Running<NodePlace>>,
    /// Whether the disks of masters can be failed: see [`disk`].
    #[serde(default)]
    pub faults: bool,
}

/// A process of the cluster; `pid` is absent while it is not running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running<P> {
    pub pid: Option<u32>,
    #[serde(flatten)]
    pub place: P,
}

impl ClusterState {
    /// Replaces the state file as a whole.
    pub(crate) fn write(&self, layout: &Layout) -> std::io::Result<()> {
        let path = layout.state();
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec_pretty(self).expect("the state is plain data"))?;
        std::fs::rename(fresh, path)
    }

    /// `None` when no cluster was ever started in `data_dir`.
    pub(crate) fn read(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join("cluster.json");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes)
                    .map_err(|error| anyhow::anyhow!("{} does not parse: {error}", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(anyhow::anyhow!("cannot read {}: {error}", path.display())),
        }
    }
}
