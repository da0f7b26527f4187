//! The certificates and kubeconfigs of a cluster on this machine, laid out as kubeadm does.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quorate_transport::authority::{Authority, Profile};
use quorate_transport::tls::{STORE_SERVER_NAME, TlsFiles};
use serde_json::json;

use crate::layout::{Layout, MasterPlace, NodePlace};

/// Where the files of a cluster's authorities are: `DATA_DIR/pki`.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// What an API server shows.
    pub(crate) fn apiserver(&self) -> TlsFiles {
        self.files("apiserver", "ca.crt")
    }

    /// What an API server shows to node agents.
    pub(crate) fn kubelet_client(&self) -> TlsFiles {
        self.files("apiserver-kubelet-client", "ca.crt")
    }

    pub(crate) fn admin(&self) -> TlsFiles {
        self.files("admin", "ca.crt")
    }

    pub(crate) fn kubelet(&self, node: &str) -> TlsFiles {
        self.files(&format!("kubelet-{node}"), "ca.crt")
    }

    /// What the store's client port shows.
    pub(crate) fn store_server(&self) -> TlsFiles {
        self.files("etcd/server", "etcd/ca.crt")
    }

    /// What members of the store show each other.
    pub(crate) fn store_peer(&self) -> TlsFiles {
        self.files("etcd/peer", "etcd/ca.crt")
    }

    /// What `etcdctl` and `quorate status` show to the store.
    pub(crate) fn store_client(&self) -> TlsFiles {
        self.files("etcd/healthcheck-client", "etcd/ca.crt")
    }

    pub(crate) fn service_account_key(&self) -> PathBuf {
        self.path("sa.key")
    }

    fn files(&self, stem: &str, ca: &str) -> TlsFiles {
        TlsFiles { cert: self.path(&format!("{stem}.crt")), key: self.path(&format!("{stem}.key")), ca: self.path(ca) }
    }
}

/// Makes whatever certificate or kubeconfig of the cluster is missing or will end soon.
///
/// Two authorities: one for the API, one for the store, so that no client of the
/// API can ever reach the store.
pub(crate) fn prepare(
    layout: &Layout,
    endpoint: SocketAddr,
    service_address: Ipv4Addr,
    masters: &[MasterPlace],
    nodes: &[NodePlace],
) -> Result<Pki> {
    let folder = layout.pki();
    let pki = Pki::at(&folder);
    let api = Authority::load_or_create(&folder, "ca", "quorate")?;
    let store = Authority::load_or_create(&folder.join("etcd"), "ca", "quorate-etcd")?;
    let issue =
        |authority: &Authority, files: &TlsFiles, profile: &Profile| authority.issue(profile, &files.cert, &files.key);

    let mut serving = Profile::new("kube-apiserver").server();
    for name in [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ] {
        serving = serving.dns(name);
    }
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), endpoint.ip(), service_address.into()];
    addresses.extend(masters.iter().map(|master| master.api.ip()));
    for address in unique(addresses) {
        serving = serving.address(address);
    }
    issue(&api, &pki.apiserver(), &serving)?;
    issue(
        &api,
        &pki.kubelet_client(),
        &Profile::new("kube-apiserver-kubelet-client").organization("system:masters").client(),
    )?;
    issue(&api, &pki.admin(), &Profile::new("kubernetes-admin").organization("system:masters").client())?;

    let mut member = Profile::new("quorate-member").dns(STORE_SERVER_NAME).dns("localhost").server().client();
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    addresses.extend(masters.iter().flat_map(|master| [master.client.ip(), master.peer.ip()]));
    for address in unique(addresses) {
        member = member.address(address);
    }
    issue(&store, &pki.store_server(), &member)?;
    issue(&store, &pki.store_peer(), &member)?;
    issue(&store, &pki.store_client(), &Profile::new("kube-etcd-healthcheck-client").client())?;

    service_account_key(&pki)?;
    kubeconfig(&layout.admin_kubeconfig(), "quorate", "kubernetes-admin", endpoint, &pki.admin())?;
    for node in nodes {
        let files = pki.kubelet(&node.name);
        let profile = Profile::new(&format!("system:node:{}", node.name))
            .organization("system:nodes")
            .dns(&node.name)
            .address(node.kubelet.ip())
            .server()
            .client();
        issue(&api, &files, &profile)?;
        kubeconfig(
            &layout.node_kubeconfig(&node.name),
            "quorate",
            &format!("system:node:{}", node.name),
            endpoint,
            &files,
        )?;
    }
    Ok(pki)
}

fn unique(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

/// The key pair that signs service-account tokens.
fn service_account_key(pki: &Pki) -> Result<()> {
    let private = pki.service_account_key();
    if private.exists() {
        return Ok(());
    }
    let pair = rcgen::KeyPair::generate().context("cannot make the key of service accounts")?;
    write_private(&private, &pair.serialize_pem())?;
    write_private(&private.with_extension("pub"), &pair.public_key_pem())
}

/// Writes a kubeconfig with everything inside, so that the one file can be carried away.
fn kubeconfig(path: &Path, cluster: &str, user: &str, endpoint: SocketAddr, files: &TlsFiles) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let encode = |text: String| base64(text.as_bytes());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {
            "server": format!("https://{endpoint}"),
            "certificate-authority-data": encode(read(&files.ca)?),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": encode(read(&files.cert)?),
            "client-key-data": encode(read(&files.key)?),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    });
    let text = serde_saphyr::to_string(&config).context("a kubeconfig is plain data")?;
    write_private(path, &text)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("cannot create {}", fresh.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}
