//! The members of a store as commands reach them: `--endpoints`, `--cacert`, `--cert`,
//! `--key` and `--user`, with the meaning that etcdctl gives them, and its environment.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use quorate_proto::etcd::auth_client::AuthClient;
use quorate_proto::etcd::cluster_client::ClusterClient;
use quorate_proto::etcd::maintenance_client::MaintenanceClient;
use quorate_proto::etcd::{AuthenticateRequest, Member, MemberListRequest};
use quorate_transport::tls::{self, TlsFiles, Trust};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tower::ServiceExt;

use crate::layout::ClusterState;
use crate::pki::Pki;

/// Where a Debian machine keeps the authorities it trusts, for `https` without `--cacert`.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where etcd's clients look when nothing is said.
const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";

/// The largest answer: what a store holds under one key is small, a list of keys is not.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// As etcdctl has it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where `quorate up` keeps its cluster when nothing is said.
const DEFAULT_DATA_DIR: &str = "quorate-data";

/// Given before or behind a subcommand.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Endpoints {
    /// The cluster that `quorate up` keeps there, with its addresses and certificates; wins
    /// over --endpoints [default: quorate-data, if there is one and nothing else is said].
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where members of the store serve clients [default: 127.0.0.1:2379].
    #[arg(long, global = true, env = "ETCDCTL_ENDPOINTS", value_delimiter = ',', value_name = "URL,...")]
    endpoints: Vec<String>,
    /// The authorities that may vouch for the members.
    #[arg(long, global = true, env = "ETCDCTL_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The certificate to show.
    #[arg(long, global = true, env = "ETCDCTL_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, global = true, env = "ETCDCTL_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Talk to whoever answers, as with certificates that the members made themselves.
    #[arg(long, global = true, env = "ETCDCTL_INSECURE_SKIP_TLS_VERIFY")]
    insecure_skip_tls_verify: bool,
    /// Log in as that user.
    #[arg(long, global = true, env = "ETCDCTL_USER", hide_env_values = true, value_name = "NAME:PASSWORD")]
    user: Option<String>,
    /// How many seconds one request may take.
    #[arg(long, global = true, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    command_timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    // etcdctl writes 5s.
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{text:?} is not a number of seconds between 0 and 86400")),
    }
}

/// The way to one member; connects at its first call. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// As it was given, or as the member says.
    pub(crate) url: String,
    channel: Channel,
    token: Token,
    timeout: Duration,
}

/// What the clients of etcd's services are made of.
pub(crate) type Service = InterceptedService<Channel, Token>;

/// Shows the token of a login with every request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// What both TCP and TLS give.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Connection {
    /// Adds the token of a login, if there was one, to what is sent without [`Self::service`].
    ///
    /// # Errors
    /// When the token is no header.
    pub(crate) fn authorize(&self, headers: &mut http::HeaderMap) -> Result<()> {
        if let Token(Some(token)) = &self.token {
            let value = http::HeaderValue::from_bytes(token.as_encoded_bytes()).context("the token cannot be sent")?;
            headers.insert("token", value);
        }
        Ok(())
    }

    pub(crate) fn service(&self) -> Service {
        InterceptedService::new(self.channel.clone(), self.token.clone())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Service> {
        ClusterClient::new(self.service())
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient<Service> {
        MaintenanceClient::new(self.service()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Awaits an answer of this member, for as long as a command may take.
    pub(crate) async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {:?}", self.timeout))),
        }
    }

    /// What the member answers to an HTTP GET of `path`, beside its gRPC services.
    ///
    /// # Errors
    /// When it does not answer in time, or with anything but 200.
    pub(crate) async fn get(&self, path: &'static str) -> Result<Bytes> {
        let request = http::Request::get(path).body(tonic::body::Body::empty()).context("a path of ours")?;
        let ask = async {
            let response = self.channel.clone().oneshot(request).await?;
            ensure!(response.status() == http::StatusCode::OK, "{path} answers {}", response.status());
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok(body.map_err(|error| anyhow!("{path}: {error}"))?.to_bytes())
        };
        match tokio::time::timeout(self.timeout, ask).await {
            Ok(answer) => answer,
            Err(_) => bail!("{path}: no answer within {:?}", self.timeout),
        }
    }

    /// The members as this one knows them.
    pub(crate) async fn members(&self, linearizable: bool) -> Result<Vec<Member>, Status> {
        let mut client = self.cluster();
        let list = self.answer(client.member_list(MemberListRequest { linearizable })).await?;
        Ok(list.members)
    }
}

impl Endpoints {
    /// Members that serve in plain text, or whose addresses say otherwise.
    pub(crate) fn plain(urls: Vec<String>) -> Self {
        Self {
            data_dir: None,
            endpoints: urls,
            cacert: None,
            cert: None,
            key: None,
            insecure_skip_tls_verify: false,
            user: None,
            command_timeout: DEFAULT_TIMEOUT,
        }
    }

    /// With the addresses and certificates of the cluster that `quorate up` keeps here, if
    /// that is the one that is meant; and what is known of that cluster.
    ///
    /// # Errors
    /// When --data-dir names a folder without a cluster.
    pub(crate) fn resolved(&self) -> Result<(Self, Option<ClusterState>)> {
        let folder = match &self.data_dir {
            Some(folder) => folder.as_path(),
            None if self.endpoints.is_empty() => Path::new(DEFAULT_DATA_DIR),
            None => return Ok((self.clone(), None)),
        };
        let state = match ClusterState::read(folder)? {
            Some(state) => state,
            None if self.data_dir.is_none() => return Ok((self.clone(), None)),
            None => bail!("no cluster was started in {}: run `quorate up`, or name its --data-dir", folder.display()),
        };
        let TlsFiles { cert, key, ca } = Pki::at(&folder.join("pki")).store_client();
        let resolved = Self {
            data_dir: None,
            endpoints: state.masters.iter().map(|master| format!("https://{}", master.place.client)).collect(),
            cacert: Some(ca),
            cert: Some(cert),
            key: Some(key),
            ..self.clone()
        };
        Ok((resolved, Some(state)))
    }

    /// Connects to what was said, and logs in if that was asked for.
    ///
    /// # Errors
    /// When an address is none, the certificates cannot be read, or the login is refused.
    pub(crate) async fn connect(&self) -> Result<Vec<Connection>> {
        let mut connections = match self.endpoints.as_slice() {
            [] => self.towards(&[DEFAULT_ENDPOINT.to_owned()], &[])?,
            given => self.towards(given, &[])?,
        };
        if let Some(user) = &self.user {
            self.log_in(user, &mut connections).await?;
        }
        Ok(connections)
    }

    /// Towards other addresses, with the login of `known`: a token of one member is good at all.
    ///
    /// # Errors
    /// When an address is none, or the certificates cannot be read.
    pub(crate) fn towards(&self, urls: &[String], known: &[Connection]) -> Result<Vec<Connection>> {
        let token = known.first().map(|connection| connection.token.clone()).unwrap_or_default();
        let mut tls = None;
        let mut connections = Vec::with_capacity(urls.len());
        for url in urls {
            let address = Address::parse(url, self.cacert.is_some() || self.cert.is_some())?;
            let channel = if address.tls {
                let config = match &tls {
                    Some(config) => Arc::clone(config),
                    None => Arc::clone(tls.insert(self.tls("h2")?)),
                };
                quorate_transport::channel::channel(&address.authority, config, &address.host)
            } else {
                quorate_transport::channel::plain_channel(&address.authority)
            };
            let (channel, token) = (channel?, token.clone());
            connections.push(Connection { url: url.clone(), channel, token, timeout: self.command_timeout });
        }
        Ok(connections)
    }

    /// What the member at `url` answers to an HTTP/1 GET of `path`. Some members answer what
    /// is no gRPC on connections of HTTP/1 alone, so that [`Connection::get`] does not do.
    ///
    /// # Errors
    /// When it does not answer in time, or with anything but 200 and text.
    pub(crate) async fn get_http1(&self, url: &str, path: &str) -> Result<String> {
        let asked = tokio::time::timeout(self.command_timeout, async {
            let (stream, origin) = self.dial(url, "http/1.1").await?;
            get_on(stream, &origin, path).await
        });
        match asked.await {
            Ok(answer) => answer.with_context(|| format!("{url}{path}")),
            Err(_) => bail!("{url}{path}: no answer within {:?}", self.command_timeout),
        }
    }

    /// A connection to the member at `url` to speak `protocol` on, and how requests name the
    /// member: `http://host:port`.
    ///
    /// # Errors
    /// When nobody accepts it, or not with our certificates.
    pub(crate) async fn dial(&self, url: &str, protocol: &str) -> Result<(Box<dyn Stream>, String)> {
        let address = Address::parse(url, self.cacert.is_some() || self.cert.is_some())?;
        let stream = TcpStream::connect(&address.authority).await.context("cannot connect")?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        if !address.tls {
            return Ok((Box::new(stream), format!("http://{}", address.authority)));
        }
        let name = ServerName::try_from(address.host).context("this is no name of a server")?;
        let stream = TlsConnector::from(self.tls(protocol)?).connect(name, stream).await.context("no TLS")?;
        Ok((Box::new(stream), format!("https://{}", address.authority)))
    }

    /// The same settings towards other members.
    pub(crate) fn at(&self, urls: Vec<String>) -> Self {
        Self { data_dir: None, endpoints: urls, ..self.clone() }
    }

    fn tls(&self, protocol: &str) -> Result<Arc<rustls::ClientConfig>> {
        let identity = self.cert.as_deref().zip(self.key.as_deref());
        let trust = match &self.cacert {
            _ if self.insecure_skip_tls_verify => Trust::Anyone,
            Some(ca) => Trust::Authority(ca.clone()),
            None => Trust::Authority(PathBuf::from(SYSTEM_AUTHORITIES)),
        };
        if matches!(&trust, Trust::Authority(ca) if self.cacert.is_none() && !ca.exists()) {
            bail!("say with --cacert which authority vouches for the members");
        }
        Ok(tls::client_config_with(identity, &trust, &[protocol])?)
    }

    async fn log_in(&self, user: &str, connections: &mut [Connection]) -> Result<()> {
        let Some((name, password)) = user.split_once(':') else { bail!("--user is of the form NAME:PASSWORD") };
        let token = first(connections, async |connection| {
            let request = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
            let mut client = AuthClient::new(connection.service());
            connection.answer(client.authenticate(request)).await
        })
        .await?
        .token;
        let token: MetadataValue<Ascii> = token.parse().context("the token of the login cannot be sent")?;
        for connection in connections {
            connection.token = Token(Some(token.clone()));
        }
        Ok(())
    }
}

/// Speaks HTTP/1.0, so that the answer comes in one piece and ends with the connection.
async fn get_on(mut stream: Box<dyn Stream>, origin: &str, path: &str) -> Result<String> {
    let host = origin.rsplit('/').next().unwrap_or_default();
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("cannot ask")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES as u64).read_to_string(&mut answer).await.context("no answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("this is no answer of HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "the answer is {status:?}");
    Ok(body.to_owned())
}

/// What the first member answers that can be reached; a refusal is an answer.
pub(crate) async fn first<T>(
    connections: &[Connection],
    ask: impl AsyncFn(&Connection) -> Result<T, Status>,
) -> Result<T> {
    let mut failed = Vec::new();
    for connection in connections {
        match ask(connection).await {
            Ok(answer) => return Ok(answer),
            Err(status) if is_silence(&status) => failed.push(format!("{}: {}", connection.url, status.message())),
            Err(status) => return Err(refusal(&status)),
        }
    }
    bail!("no endpoint answers: {}", failed.join("; "))
}

/// Whether another member may answer better.
pub(crate) fn is_silence(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled)
}

/// A refusal as people read it: the store's own words.
pub(crate) fn refusal(status: &Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow!("the store refused: {:?}", status.code()),
        text => anyhow!("{text}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    tls: bool,
    /// `host:port`
    authority: String,
    host: String,
}

impl Address {
    /// `tls` is for an endpoint that does not say.
    fn parse(url: &str, tls: bool) -> Result<Self> {
        let (tls, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => bail!("the endpoint {url:?} begins with {scheme}://; http and https are known"),
            None => (tls, url),
        };
        let authority = rest.trim_end_matches('/');
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => host,
            _ => bail!("the endpoint {url:?} is not of the form HOST:PORT"),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, authority: authority.to_owned(), host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_etcdctl_reads_them() {
        let check = |url: &str, tls: bool, expected: (bool, &str, &str)| {
            let address = Address::parse(url, tls).unwrap();
            assert_eq!((address.tls, address.authority.as_str(), address.host.as_str()), expected);
        };
        check("127.0.0.1:2379", false, (false, "127.0.0.1:2379", "127.0.0.1"));
        check("127.0.0.1:2379", true, (true, "127.0.0.1:2379", "127.0.0.1"));
        check("http://a.example:1/", true, (false, "a.example:1", "a.example"));
        check("https://[::1]:2379", false, (true, "[::1]:2379", "::1"));
        for bad in ["unix:///tmp/x", "host", "host:", ":1", "host:port"] {
            assert!(Address::parse(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn timeouts_are_seconds() {
        assert_eq!(seconds("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "x", "1e9", "NaN"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
