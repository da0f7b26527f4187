//! The pod network of one node: a bridge, addresses from the node's range, masquerading.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::json;

use crate::process::{self, CommandError};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Has a file of each node that runs on this machine, if forwarding was off before the first
/// of them; the last one that leaves switches it off again. Like the setting itself, it does
/// not outlive a reboot.
const FORWARDING_MARKS: &str = "/run/quorate-ip-forwarding";
/// Names of our bridges start with it; at most 15 bytes are allowed for the whole.
const BRIDGE_PREFIX: &str = "qr";

/// Names and files of one node's network.
#[derive(Clone, Debug)]
pub struct Network {
    /// Tells nodes of one machine apart: four hexadecimal digits.
    id: String,
    config_dir: PathBuf,
    data_dir: PathBuf,
}

/// Why the network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot set up the rules for pod traffic")]
    Rules(#[source] CommandError),
}

impl Network {
    /// Names derive from the node's name and folder, so that a restart finds its leftovers.
    pub fn new(node_name: &str, data_dir: &Path, config_dir: PathBuf, cni_data_dir: PathBuf) -> Self {
        let text = format!("{node_name}\0{}", data_dir.display());
        // FNV-1a: stable between versions, which the standard hasher is not.
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self { id: format!("{:04x}", (hash >> 16) ^ (hash & 0xffff)), config_dir, data_dir: cni_data_dir }
    }

    pub fn bridge(&self) -> String {
        format!("{BRIDGE_PREFIX}{}", self.id)
    }

    fn table(&self) -> String {
        format!("quorate-{}", self.id)
    }

    /// Gives pods addresses of `pod_cidr`: rules first, then the configuration that
    /// containerd waits for.
    ///
    /// # Errors
    /// When the rules are refused or a file cannot be written.
    pub async fn up(&self, pod_cidr: IpNet, cluster_cidr: IpNet) -> Result<(), NetworkError> {
        self.forward()?;
        let rules = self.rules(pod_cidr, cluster_cidr);
        process::run("nft", &["-f", "-"], &rules).await.map_err(NetworkError::Rules)?;
        // containerd takes up a file the moment it appears: it must be whole.
        let path = self.config_dir.join("10-quorate.conflist");
        let partial = self.config_dir.join("10-quorate.partial");
        std::fs::write(&partial, self.conflist(pod_cidr).to_string())
            .and_then(|()| std::fs::rename(&partial, &path))
            .map_err(|source| NetworkError::Write { path, source })
    }

    fn forward(&self) -> Result<(), NetworkError> {
        let failed = |path: &Path, source| NetworkError::Write { path: path.to_owned(), source };
        let is_on = std::fs::read_to_string(FORWARDING).is_ok_and(|on| on.trim() == "1");
        if is_on && !Path::new(FORWARDING_MARKS).is_dir() {
            return Ok(());
        }
        let mark = self.forwarding_mark();
        std::fs::create_dir_all(FORWARDING_MARKS)
            .and_then(|()| std::fs::write(&mark, ""))
            .map_err(|source| failed(&mark, source))?;
        std::fs::write(FORWARDING, "1").map_err(|source| failed(Path::new(FORWARDING), source))?;
        tracing::info!("IPv4 forwarding is on while a node runs");
        Ok(())
    }

    fn forwarding_mark(&self) -> PathBuf {
        Path::new(FORWARDING_MARKS).join(self.bridge())
    }

    /// Removes the bridge and the rules, also those of an agent that was killed.
    /// The pods must have ended.
    pub async fn down(&self) {
        let bridge = self.bridge();
        if Path::new("/sys/class/net").join(&bridge).exists()
            && let Err(error) = process::run("ip", &["link", "delete", &bridge], "").await
        {
            tracing::warn!(bridge, %error, "the bridge stays behind");
        }
        // `add` first, for `delete` fails on a table that is not there.
        let table = self.table();
        let script = format!("add table ip {table}\ndelete table ip {table}\n");
        if let Err(error) = process::run("nft", &["-f", "-"], &script).await {
            tracing::warn!(table, %error, "the rules stay behind");
        }
        // The folder goes with its last mark.
        if std::fs::remove_file(self.forwarding_mark()).is_ok() && std::fs::remove_dir(FORWARDING_MARKS).is_ok() {
            let _ = std::fs::write(FORWARDING, "0");
        }
    }

    fn conflist(&self, pod_cidr: IpNet) -> serde_json::Value {
        json!({
            "cniVersion": "0.4.0",
            "name": self.table(),
            "plugins": [{
                "type": "bridge",
                "bridge": self.bridge(),
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.data_dir,
                    "ranges": [[{"subnet": pod_cidr.trunc().to_string()}]],
                },
            }],
        })
    }

    fn rules(&self, pod_cidr: IpNet, cluster_cidr: IpNet) -> String {
        let table = self.table();
        let inside = inside(pod_cidr.trunc(), cluster_cidr.trunc());
        let pods = pod_cidr.trunc();
        format!(
            "add table ip {table}\n\
             flush table ip {table}\n\
             table ip {table} {{\n\
             \tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr {pods} ip daddr != {inside} masquerade;\n\
             \t}}\n\
             }}\n"
        )
    }
}

/// Both ranges as one operand: a set with overlapping members is refused.
fn inside(pods: IpNet, cluster: IpNet) -> String {
    if cluster.contains(&pods) {
        cluster.to_string()
    } else if pods.contains(&cluster) {
        pods.to_string()
    } else {
        format!("{{ {pods}, {cluster} }}")
    }
}

/// Name servers and search domains of a resolv.conf. Source: resolv.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Reads a resolv.conf; what is unknown or malformed is passed over.
pub fn parse_resolv_conf(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                resolver.servers.extend(words.next().filter(|w| w.parse::<IpAddr>().is_ok()).map(str::to_owned))
            }
            Some("search") => resolver.searches = words.map(str::to_owned).collect(),
            Some("domain") if resolver.searches.is_empty() => {
                resolver.searches = words.take(1).map(str::to_owned).collect()
            }
            Some("options") => resolver.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str) -> Network {
        Network::new(name, Path::new("/d"), "/d/net.d".into(), "/d/host-local".into())
    }

    #[test]
    fn nodes_of_one_machine_do_not_share_names() {
        assert_ne!(network("node-1").bridge(), network("node-2").bridge());
        assert_eq!(network("node-1").bridge(), network("node-1").bridge());
        assert!(network("node-1").bridge().len() <= 15, "what an interface may be called");
    }

    #[track_caller]
    fn check(pods: &str, cluster: &str, expected: &str) {
        let rules = network("n").rules(pods.parse().unwrap(), cluster.parse().unwrap());
        assert!(rules.contains(&format!("ip daddr != {expected} masquerade;")), "{rules}");
    }

    #[test]
    fn traffic_that_leaves_the_cluster_is_masqueraded() {
        check("10.244.1.0/24", "10.244.0.0/16", "10.244.0.0/16");
        check("10.9.0.0/24", "10.244.0.0/16", "{ 10.9.0.0/24, 10.244.0.0/16 }");
        check("10.244.1.7/24", "10.244.1.0/24", "10.244.1.0/24");
    }

    #[test]
    fn a_resolver_is_read() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver bad\nsearch a.test b.test ; c\noptions ndots:2 edns0\nodd";
        let resolver = parse_resolv_conf(text);
        assert_eq!(resolver.servers, ["127.0.0.53"]);
        assert_eq!(resolver.searches, ["a.test", "b.test"]);
        assert_eq!(resolver.options, ["ndots:2", "edns0"]);
    }
}
