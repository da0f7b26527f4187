//! What the agent is told, checked once at start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use quorate_transport::tls::TlsFiles;

/// Where containers run.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// The agent starts a containerd of its own, which ends with it.
    Managed,
    /// A runtime that somebody else runs and whose network somebody else configures.
    Socket(PathBuf),
}

/// The settings of one node agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object; a DNS-1123 subdomain.
    pub node_name: String,
    /// How to reach the API, and as whom.
    pub kubeconfig: PathBuf,
    /// Everything that the agent writes is in here.
    pub data_dir: PathBuf,
    /// The kubelet API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The node's InternalIP; by default the address of `listen`.
    pub node_address: Option<IpAddr>,
    /// Serving certificate, and the CA whose clients may ask.
    pub tls: TlsFiles,
    pub runtime: Runtime,
    /// Image tarballs in this folder are imported at start, with a managed runtime.
    pub image_dir: Option<PathBuf>,
    /// First process of every sandbox, with a managed runtime.
    pub pause_image: String,
    /// Folder of the CNI plugins, with a managed runtime.
    pub cni_plugin_dir: PathBuf,
    /// Addresses of this node's pods; `None` waits until the API has assigned `spec.podCIDR`.
    pub pod_cidr: Option<IpNet>,
    /// Pods everywhere: traffic to it keeps its source address.
    pub cluster_cidr: IpNet,
    /// Domain and servers of the cluster's DNS; without servers pods use the node's.
    pub cluster_domain: String,
    pub cluster_dns: Vec<IpAddr>,
    /// Labels of the Node besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    pub max_pods: u32,
    /// How often the node's lease is renewed, and how long one attempt may take.
    pub lease_interval: Duration,
    /// A node that has not renewed its lease for so long counts as silent.
    pub lease_duration: Duration,
    /// How often the node's status is written although nothing has changed.
    pub status_interval: Duration,
    /// How often the runtime is asked what changed.
    pub relist_interval: Duration,
}

/// A setting that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    pub setting: &'static str,
    pub problem: String,
}

impl Config {
    /// Settings with their defaults; the named ones have none.
    pub fn new(node_name: &str, kubeconfig: PathBuf, data_dir: PathBuf, listen: SocketAddr, tls: TlsFiles) -> Self {
        Self {
            node_name: node_name.to_owned(),
            kubeconfig,
            data_dir,
            listen,
            node_address: None,
            tls,
            runtime: Runtime::Managed,
            image_dir: None,
            pause_image: "quorate.local/pause:1".to_owned(),
            cni_plugin_dir: PathBuf::from("/usr/lib/cni"),
            pod_cidr: None,
            cluster_cidr: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16)),
            cluster_domain: "cluster.local".to_owned(),
            cluster_dns: Vec::new(),
            labels: BTreeMap::new(),
            max_pods: 110,
            // Three renewals may be missed: one that hangs on a dying master, and two tries elsewhere.
            lease_interval: Duration::from_secs(1),
            lease_duration: Duration::from_secs(4),
            status_interval: Duration::from_secs(300),
            relist_interval: Duration::from_secs(1),
        }
    }

    /// Checks what can be checked without looking at the machine.
    ///
    /// # Errors
    /// The first setting that cannot be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |setting, problem: &str| Err(ConfigError { setting, problem: problem.to_owned() });
        if !is_subdomain(&self.node_name) {
            return wrong(
                "node name",
                "must consist of lower case letters, digits, '-' and '.', and start and end with a letter or digit",
            );
        }
        if !self.data_dir.is_absolute() {
            return wrong("data directory", "must be an absolute path");
        }
        if self.address().is_unspecified() {
            return wrong("node address", "is needed when the agent listens on every address");
        }
        if self.relist_interval.is_zero() || self.lease_interval.is_zero() || self.status_interval.is_zero() {
            return wrong("interval", "must not be zero");
        }
        if self.lease_duration <= self.lease_interval {
            return wrong("lease duration", "must be longer than the interval at which the lease is renewed");
        }
        Ok(())
    }

    /// The node's InternalIP.
    pub fn address(&self) -> IpAddr {
        self.node_address.unwrap_or(self.listen.ip())
    }
}

fn is_subdomain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let tls = TlsFiles { cert: "c".into(), key: "k".into(), ca: "ca".into() };
        Config::new("node-1", "/k".into(), "/d".into(), "127.0.10.101:10250".parse().unwrap(), tls)
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: Option<&str>) {
        let mut config = config();
        change(&mut config);
        assert_eq!(config.validate().err().map(|error| error.setting), expected);
    }

    #[test]
    fn wrong_settings_are_named() {
        check(|_| {}, None);
        check(|c| c.node_name = "Node_1".to_owned(), Some("node name"));
        check(|c| c.node_name = String::new(), Some("node name"));
        check(|c| c.data_dir = "relative".into(), Some("data directory"));
        check(|c| c.listen = "0.0.0.0:0".parse().unwrap(), Some("node address"));
        check(|c| c.relist_interval = Duration::ZERO, Some("interval"));
        check(|c| c.lease_duration = Duration::from_secs(1), Some("lease duration"));
    }
}
