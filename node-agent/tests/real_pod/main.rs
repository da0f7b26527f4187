//! Real pods in a real containerd; only the API's side is in memory.
//!
//! Needs root and the Debian packages that the agent's preflight names. Without them it
//! says why it was skipped, and under `CI=true` it fails.

mod memory_api;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use memory_api::MemoryApi;
use quorate_node_agent::{AgentError, Config, run_with_client};
use quorate_runtime::client::{Client, WriteOptions};
use quorate_runtime::resources;
use quorate_transport::authority::{Authority, Profile};
use quorate_transport::tls::{self, TlsFiles};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    api: Arc<MemoryApi>,
    config: Config,
    client_files: TlsFiles,
    cancel: CancellationToken,
    task: Option<tokio::task::JoinHandle<Result<(), AgentError>>>,
}

fn identity(authority: &Authority, folder: &Path, stem: &str, profile: &Profile) -> TlsFiles {
    let (cert, key) = (folder.join(format!("{stem}.crt")), folder.join(format!("{stem}.key")));
    authority.issue(profile, &cert, &key).unwrap();
    TlsFiles { cert, key, ca: authority.certificate_path().to_owned() }
}

fn images(folder: &Path) -> PathBuf {
    let output = folder.join("images");
    // Cargo runs tests in the folder of their crate.
    let built = Command::new("../images/build.sh").arg(&output).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    output
}

/// Ranges differ between the nodes of this file, and mostly between runs of it.
fn pod_cidr(index: u32) -> String {
    format!("10.{}.{}.0/24", 150 + index, std::process::id() % 256)
}

fn config(folder: &Path, name: &str, index: u32) -> (Config, TlsFiles) {
    let authority = Authority::load_or_create(folder, "ca", "test").unwrap();
    let address = "127.0.10.177".parse().unwrap();
    let server = identity(&authority, folder, "server", &Profile::new(name).address(address).server());
    let client = identity(&authority, folder, "client", &Profile::new("apiserver-kubelet-client").client());
    let mut config =
        Config::new(name, folder.join("unused"), folder.join(name), std::net::SocketAddr::new(address, 0), server);
    config.pod_cidr = Some(pod_cidr(index).parse().unwrap());
    config.cluster_cidr = "10.144.0.0/12".parse().unwrap();
    (config, client)
}

impl Node {
    async fn start(folder: &Path, name: &str, index: u32) -> Self {
        let (mut config, client_files) = config(folder, name, index);
        config.image_dir = Some(images(folder));
        let mut node =
            Self { api: MemoryApi::new(), config, client_files, cancel: CancellationToken::new(), task: None };
        node.run();
        node.wait_for("the node is ready", || {
            let nodes = node.api.all("nodes");
            let conditions = nodes.first()?["status"]["conditions"].as_array()?.clone();
            conditions.into_iter().find(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .await;
        node
    }

    fn run(&mut self) {
        self.cancel = CancellationToken::new();
        let client: Arc<dyn Client> = self.api.clone();
        self.task = Some(tokio::spawn(run_with_client(self.config.clone(), client, self.cancel.clone())));
    }

    async fn stop(&mut self) {
        self.cancel.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    async fn create(&self, name: &str, spec: Value) {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}, "generation": 1},
            "spec": spec,
        });
        self.api.create(&resources::pods(), Some("default"), None, pod, WriteOptions::default()).await.unwrap();
    }

    fn pod(&self, name: &str) -> Option<Arc<Value>> {
        self.api.read(&resources::pods(), "default", name)
    }

    fn container(&self, name: &str) -> Option<Value> {
        Some(self.pod(name)?["status"]["containerStatuses"][0].clone())
    }

    async fn wait_for<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if self.task.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) {
                panic!("the agent ended while waiting until {what}");
            }
            if begun.elapsed() >= DEADLINE {
                let events: Vec<String> =
                    self.api.all("events").iter().map(|e| format!("{} {}", e["reason"], e["message"])).collect();
                let pods: Vec<String> = self.api.all("pods").iter().map(|pod| pod["status"].to_string()).collect();
                panic!("not in time: {what}\nevents: {events:#?}\npods: {pods:#?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ready(&self, name: &str) -> Arc<Value> {
        let look = || {
            let pod = self.pod(name)?;
            let ready =
                pod["status"]["conditions"].as_array()?.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            (ready && pod["status"]["phase"] == "Running").then_some(pod)
        };
        self.wait_for(&format!("{name} is ready"), look).await
    }

    /// GET over the kubelet API.
    async fn kubelet(&self, path: &str) -> (u16, String) {
        get(TokioIo::new(self.connect().await), path).await
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let node = self.api.all("nodes")[0].clone();
        let port =
            u16::try_from(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap()).unwrap();
        let address = self.config.address();
        let stream = TcpStream::connect((address, port)).await.unwrap();
        let connector = TlsConnector::from(tls::client_config(&self.client_files, &["http/1.1"]).unwrap());
        connector.connect(ServerName::IpAddress(address.into()), stream).await.unwrap()
    }

    /// Asks for a WebSocket; returns the answer's head and the connection.
    async fn upgrade(&self, path: &str, protocol: &str) -> (String, TlsStream<TcpStream>) {
        let mut stream = self.connect().await;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    /// What a command prints in a container of pod `pod`.
    async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> String {
        let arguments: Vec<String> =
            command.iter().map(|word| format!("command={}", word.replace('&', "%26"))).collect();
        let path = format!("/exec/default/{pod}/{container}?output=1&error=1&{}", arguments.join("&"));
        let (head, mut stream) = self.upgrade(&path, "v4.channel.k8s.io").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let mut printed = Vec::new();
        // A frame: opcode, length, then channel and bytes. Close ends it.
        while let Ok(opcode) = stream.read_u8().await {
            let length = match stream.read_u8().await.unwrap() {
                126 => usize::from(stream.read_u16().await.unwrap()),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            match (opcode & 0x0f, payload.first()) {
                (8, _) => break,
                (_, Some(1 | 2)) => printed.extend_from_slice(&payload[1..]),
                _ => {}
            }
        }
        String::from_utf8(printed).unwrap()
    }
}

async fn get(io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static, path: &str) -> (u16, String) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("Host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// The web image's page; a container without a probe is ready before it listens.
async fn page(address: &str) -> String {
    let begun = Instant::now();
    loop {
        match TcpStream::connect((address, 8080)).await {
            Ok(stream) => return get(TokioIo::new(stream), "/").await.1,
            Err(error) => assert!(begun.elapsed() < DEADLINE, "{address} does not answer: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the machine can run this test; says why not.
fn can_run(name: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (config, _) = config(folder.path(), name, 0);
    match quorate_node_agent::preflight::check(&config) {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Nothing of the agent is left on the machine.
fn assert_clean(config: &Config) {
    let data_dir = config.data_dir.to_string_lossy().into_owned();
    let mine = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|b| b.is_ascii_digit()) && name != mine {
            let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            assert!(!command.contains(&data_dir), "still running: {command}");
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&data_dir), "{mounts}");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = hierarchy.path().join("quorate").join(&config.node_name);
        assert!(!group.exists(), "{} is left", group.display());
    }
    let tables = Command::new("/usr/sbin/nft").args(["list", "tables"]).output().unwrap();
    let network = quorate_node_agent::network::Network::new(&config.node_name, &config.data_dir, "".into(), "".into());
    assert!(!Path::new("/sys/class/net").join(network.bridge()).exists(), "the bridge is left");
    let id = network.bridge().trim_start_matches("qr").to_owned();
    assert!(!String::from_utf8_lossy(&tables.stdout).contains(&id), "the rules are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_live_as_their_authors_expect() {
    if !can_run("agent-test") {
        return;
    }
    let folder = tempfile::Builder::new().prefix("qn").tempdir_in("/tmp").unwrap();
    let mut node = Node::start(folder.path(), "agent-test", 0).await;

    // A pod runs, has an address that the host reaches, and is ready by its probe.
    node.api
        .create(
            &resources::config_maps(),
            Some("default"),
            None,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "blue"}}),
            WriteOptions::default(),
        )
        .await
        .unwrap();
    let begun = Instant::now();
    node.create(
        "web",
        json!({
            "terminationGracePeriodSeconds": 5,
            "volumes": [
                {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "scratch", "emptyDir": {"medium": "Memory"}},
            ],
            "initContainers": [{
                "name": "prepare", "image": "quorate.local/web:1", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "cp /settings/color /scratch/color"],
                "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, {"name": "scratch", "mountPath": "/scratch"}],
            }],
            "containers": [{
                "name": "web", "image": "quorate.local/web:1", "imagePullPolicy": "IfNotPresent",
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "command": ["sh", "-c"],
                "args": ["echo color $(cat /scratch/color) address $(POD_IP); exec /bin/web"],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
                "resources": {"limits": {"cpu": "500m", "memory": "32Mi"}},
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            }],
        }),
    )
    .await;
    let web = node.ready("web").await;
    eprintln!("bound to ready: {:?}", begun.elapsed());
    let address = web["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with(pod_cidr(0).trim_end_matches("0/24")), "{address}");
    assert_eq!(web["status"]["qosClass"], "Burstable");
    assert!(page(&address).await.contains("quorate.local/web:1"));
    let (status, log) = node.kubelet("/containerLogs/default/web/web?tailLines=10").await;
    assert_eq!(status, 200);
    assert!(log.contains(&format!("color blue address {address}")), "{log}");
    let (status, log) = node.kubelet("/containerLogs/default/web/web?previous=true").await;
    assert_eq!((status, log.as_str()), (400, "previous terminated container \"web\" in pod \"web\" not found"));
    assert_eq!(node.kubelet("/containerLogs/default/none/web").await.0, 404);

    // Commands run inside, over whatever protocol the runtime speaks.
    assert_eq!(node.exec("web", "web", &["cat", "/scratch/color"]).await, "blue");
    assert!(node.exec("web", "web", &["cat", "/none"]).await.contains("No such file"));
    let (refused, _) = node.upgrade("/exec/default/web/web?output=1&command=true", "v5.channel.k8s.io").await;
    assert!(refused.starts_with("HTTP/1.1 403"), "kubectl falls back by itself: {refused}");

    // One that fails is restarted with a growing pause, and says so.
    node.create(
        "crash",
        json!({"containers": [{
            "name": "main", "image": "quorate.local/web:2", "imagePullPolicy": "Never",
            "command": ["sh", "-c", "echo last words > /dev/termination-log; exit 3"],
        }]}),
    )
    .await;
    let crash = node
        .wait_for("the failing pod backs off", || {
            node.container("crash").filter(|status| status["state"]["waiting"]["reason"] == "CrashLoopBackOff")
        })
        .await;
    assert_eq!(crash["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(crash["lastState"]["terminated"]["message"], "last words\n");
    assert!(crash["restartCount"].as_i64().unwrap() >= 1);

    // A task that ends is done; an image that nobody has is named.
    node.create(
        "task",
        json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": "quorate.local/web:1", "command": ["true"]}]}),
    )
    .await;
    node.wait_for("the task has succeeded", || node.pod("task").filter(|pod| pod["status"]["phase"] == "Succeeded"))
        .await;
    node.create(
        "lost",
        json!({"containers": [{"name": "main", "image": "quorate.local/none:1", "imagePullPolicy": "Never"}]}),
    )
    .await;
    node.wait_for("the image is missing", || {
        node.container("lost").filter(|status| status["state"]["waiting"]["reason"] == "ErrImageNeverPull")
    })
    .await;

    // Deletion stops the containers, then the API may forget the pod.
    node.api.ask_to_delete(&resources::pods(), "default", "web", 5);
    node.wait_for("the pod is forgotten", || node.pod("web").is_none().then_some(())).await;

    // A restart of the node makes the containers that the API still wants.
    node.create("stays", json!({"containers": [{"name": "main", "image": "quorate.local/web:2"}]})).await;
    node.ready("stays").await;
    node.stop().await;
    assert_clean(&node.config);
    node.run();
    let stays = node
        .wait_for("the pod runs again", || {
            node.container("stays").filter(|s| s["restartCount"] == 1 && !s["state"]["running"].is_null())
        })
        .await;
    assert_eq!(stays["lastState"]["terminated"]["exitCode"], 255);
    let stays = node.ready("stays").await;
    assert!(page(stays["status"]["podIP"].as_str().unwrap()).await.contains("quorate.local/web:2"));

    for name in ["stays", "crash", "task", "lost"] {
        node.api.ask_to_delete(&resources::pods(), "default", name, 1);
    }
    node.wait_for("all pods are forgotten", || node.api.all("pods").is_empty().then_some(())).await;
    node.stop().await;
    assert_clean(&node.config);
}

fn simple(image: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 2, "containers": [{"name": "main", "image": image}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_share_a_machine() {
    if !can_run("first") {
        return;
    }
    let folder = tempfile::Builder::new().prefix("qn").tempdir_in("/tmp").unwrap();
    let mut first = Node::start(folder.path(), "first", 1).await;
    let mut second = Node::start(folder.path(), "second", 2).await;
    first.create("a", simple("quorate.local/web:1")).await;
    second.create("b", simple("quorate.local/web:2")).await;
    let (a, b) = (first.ready("a").await, second.ready("b").await);
    let address = |pod: &Value| pod["status"]["podIP"].as_str().unwrap().to_owned();
    let url = |pod: &Value| format!("http://{}:8080/", address(pod));
    assert!(
        first.exec("a", "main", &["wget", "-qO-", &url(&b)]).await.contains("web:2"),
        "pods reach each other across nodes"
    );
    assert!(
        second.exec("b", "main", &["wget", "-qO-", &url(&a)]).await.contains("web:1"),
        "pods reach each other across nodes"
    );
    first.stop().await;
    assert_clean(&first.config);
    assert!(page(&address(&b)).await.contains("web:2"), "the end of one node does not touch the other");
    second.stop().await;
    assert_clean(&second.config);
}

/// The folder in which [`child`] runs an agent until it is killed.
const CHILD_FOLDER: &str = "QUORATE_TEST_CHILD_FOLDER";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own, started by another test"]
async fn child() {
    let folder = PathBuf::from(std::env::var_os(CHILD_FOLDER).unwrap());
    let node = Node::start(&folder, "killed", 3).await;
    node.create("web", simple("quorate.local/web:1")).await;
    let web = node.ready("web").await;
    std::fs::write(folder.join("address"), web["status"]["podIP"].as_str().unwrap()).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_killed_leaves_nothing_that_the_next_one_does_not_remove() {
    if !can_run("killed") {
        return;
    }
    let folder = tempfile::Builder::new().prefix("qn").tempdir_in("/tmp").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env(CHILD_FOLDER, folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let address = loop {
        if let Ok(address) = std::fs::read_to_string(folder.path().join("address")) {
            break address;
        }
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        assert!(begun.elapsed() < DEADLINE, "the child's pod is not ready in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(page(&address).await.contains("web:1"));
    child.kill().unwrap();
    child.wait().unwrap();
    let gone = Instant::now();
    while TcpStream::connect((address.as_str(), 8080)).await.is_ok() {
        assert!(gone.elapsed() < DEADLINE, "the pod outlives its agent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The API of this process knows nothing of the pod: it is ended as one that nobody wants.
    let mut node = Node::start(folder.path(), "killed", 3).await;
    node.create("web", simple("quorate.local/web:2")).await;
    let web = node.ready("web").await;
    assert!(page(web["status"]["podIP"].as_str().unwrap()).await.contains("web:2"));
    let second = run_with_client(node.config.clone(), MemoryApi::new(), CancellationToken::new()).await;
    assert!(matches!(second, Err(AgentError::Locked { .. })), "{second:?}");
    node.stop().await;
    assert_clean(&node.config);
}
