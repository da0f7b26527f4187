//! A whole API server over a real etcd, on this machine and for one test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_apiserver::storage::etcd::EtcdStorage;
use quorate_apiserver::{Config, Server};
use quorate_transport::authority::{Authority, Profile};
use quorate_transport::loopback::free_address;
use quorate_transport::tls::{self, TlsFiles};
use tokio::sync::watch;

/// How long anything in here may take; a loaded machine needs a part of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Ends etcd and removes its data when dropped.
pub(crate) struct Cluster {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: Server,
    etcd: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// Starts etcd and an API server, and waits until it is ready.
pub(crate) async fn start() -> Cluster {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (client, peer) = (format!("http://{}", free_address()), format!("http://{}", free_address()));
    let etcd = Command::new("etcd")
        .arg("--data-dir")
        .arg(folder.path().join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is installed: `./x test` sees to it");
    pki(folder.path());
    let channel = tonic::transport::Endpoint::from_shared(client).expect("the address is a URL").connect_lazy();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = Config::new("m1", listen, folder.path());
    let (leadership, _) = watch::channel(None);
    let server = Server::start(config, Arc::new(EtcdStorage::new(channel)), leadership.subscribe())
        .await
        .expect("the server starts");
    let cluster = Cluster { folder, server, etcd };
    tokio::time::timeout(PATIENCE, cluster.server.ready()).await.expect("the server gets ready");
    cluster
}

impl Cluster {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a certificate for a client; its files are `<stem>.crt` and `<stem>.key`.
    pub(crate) fn client_certificate(&self, stem: &str, user: &str, groups: &[&str]) {
        issue(
            self.folder.path(),
            stem,
            groups.iter().fold(Profile::new(user).client(), |profile, group| profile.organization(group)),
        );
    }

    /// Runs kubectl as the holder of a certificate; `input` is its standard input.
    pub(crate) fn kubectl(&self, stem: &str, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new("kubectl")
            .arg(format!("--server=https://{}", self.server.address()))
            .arg(format!("--certificate-authority={}", self.path("ca.crt").display()))
            .arg(format!("--client-certificate={}", self.path(&format!("{stem}.crt")).display()))
            .arg(format!("--client-key={}", self.path(&format!("{stem}.key")).display()))
            .arg(format!("--cache-dir={}", self.path("cache").display()))
            .args(["--kubeconfig=/dev/null", "--request-timeout=20s"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        use std::io::Write as _;
        // A command that reads nothing closes its side early.
        let _ = child.stdin.take().expect("the input is piped").write_all(input.as_bytes());
        child.wait_with_output().expect("kubectl ends")
    }
}

/// An answer, its body read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
    pub(crate) bytes: bytes::Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Cluster {
    /// Sends one request over a connection of its own; `stem` names the certificate that it shows.
    pub(crate) async fn send(&self, stem: Option<&str>, request: http::Request<String>) -> Answer {
        use http_body_util::BodyExt as _;
        let ca = TlsFiles { cert: self.path("admin.crt"), key: self.path("admin.key"), ca: self.path("ca.crt") };
        let config = match stem {
            Some(stem) => {
                let files =
                    TlsFiles { cert: self.path(&format!("{stem}.crt")), key: self.path(&format!("{stem}.key")), ..ca };
                tls::client_config(&files, &["http/1.1"]).expect("the files make an identity")
            }
            None => {
                let mut roots = rustls::RootCertStore::empty();
                let pem = std::fs::read(&ca.ca).expect("the authority was written");
                let der = pem::parse(pem).expect("the file is PEM").into_contents();
                roots.add(der.into()).expect("the file is a certificate");
                let builder = rustls::ClientConfig::builder_with_provider(tls::provider());
                let builder = builder.with_safe_default_protocol_versions().expect("the versions are supported");
                Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
            }
        };
        let stream = tokio::net::TcpStream::connect(self.server.address()).await.expect("the server accepts");
        let name = rustls::pki_types::ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let stream =
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("the handshake succeeds");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("the connection works");
        tokio::spawn(connection);
        let response = sender.send_request(request).await.expect("the server answers");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("the answer is complete").to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
            bytes,
        }
    }

    /// As [`Cluster::send`], for a GET without a body.
    pub(crate) async fn get(&self, stem: Option<&str>, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = http::Request::get(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(stem, request.body(String::new()).expect("the request is well formed")).await
    }

    /// As [`Cluster::send`], for a JSON body.
    pub(crate) async fn post(&self, stem: Option<&str>, path: &str, body: &serde_json::Value) -> Answer {
        let request = http::Request::post(path).header("host", "localhost").header("content-type", "application/json");
        self.send(stem, request.body(body.to_string()).expect("the request is well formed")).await
    }
}

/// The certificates that kubeadm would have made.
fn pki(folder: &Path) {
    let serving = Profile::new("kube-apiserver").server().dns("localhost").address(Ipv4Addr::LOCALHOST.into());
    issue(folder, "apiserver", serving);
    issue(
        folder,
        "apiserver-kubelet-client",
        Profile::new("kube-apiserver-kubelet-client").organization("system:masters").client(),
    );
    issue(folder, "admin", Profile::new("kubernetes-admin").organization("system:masters").client());
    // An authority is a P-256 pair with a certificate: all that is needed of it here.
    Authority::load_or_create(folder, "sa", "sa").expect("a key pair can be made");
    let certificate = std::fs::read(folder.join("sa.crt")).expect("the file was written");
    let (_, certificate) = x509_parser::pem::parse_x509_pem(&certificate).expect("the file is PEM");
    let certificate = certificate.parse_x509().expect("the file is a certificate");
    let public = pem::encode(&pem::Pem::new("PUBLIC KEY", certificate.public_key().raw.to_vec()));
    std::fs::write(folder.join("sa.pub"), public).expect("the folder is writable");
}

fn issue(folder: &Path, stem: &str, profile: Profile) {
    let authority = Authority::load_or_create(folder, "ca", "test").expect("an authority can be made");
    authority
        .issue(&profile, &folder.join(format!("{stem}.crt")), &folder.join(format!("{stem}.key")))
        .expect("a certificate can be issued");
}

/// Tries `attempt` until it holds or patience ends.
pub(crate) async fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let began = Instant::now();
    while !attempt() {
        assert!(began.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
