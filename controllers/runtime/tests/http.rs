//! The client over HTTP against a server that answers by a script: what is asked on the
//! wire, and what becomes of each kind of answer.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use quorate_runtime::client::{Client, DeleteOptions, ListOptions, Patch, WatchEvent, WriteOptions};
use quorate_runtime::http::HttpClient;
use quorate_runtime::informer::Informer;
use quorate_runtime::resources;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What the server saw: the request line's method and target, the content type, the body.
type Seen = Arc<Mutex<Vec<(String, String, String)>>>;

/// The status code, and the parts of a chunked body. A body without parts never ends.
type Answer = (u16, Vec<String>);

struct Server {
    seen: Seen,
    client: HttpClient,
    _kubeconfig: tempfile::NamedTempFile,
}

impl Server {
    /// Answers by `METHOD target`; each entry's answers are used one after another, the
    /// last one for ever.
    async fn start(script: &[(&str, Vec<Answer>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = script.iter().map(|(request, answers)| ((*request).to_owned(), answers.clone())).collect();
        let script: Arc<Mutex<HashMap<String, Vec<Answer>>>> = Arc::new(Mutex::new(script));
        let seen = Seen::default();
        let recorder = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&recorder)));
            }
        });
        let (client, kubeconfig) = client_of(&format!("http://{address}")).await;
        Self { seen, client, _kubeconfig: kubeconfig }
    }

    fn last(&self) -> (String, String, String) {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

async fn client_of(server: &str) -> (HttpClient, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}]});
    file.write_all(config.to_string().as_bytes()).unwrap();
    (HttpClient::from_kubeconfig(file.path()).await.unwrap(), file)
}

async fn serve(stream: TcpStream, script: Arc<Mutex<HashMap<String, Vec<Answer>>>>, seen: Seen) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let header = |name: &str| {
            let find = |line: &String| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            head[1..].iter().find_map(find).unwrap_or_default()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        stream.read_exact(&mut body).await.unwrap();
        let request = head[0].rsplit_once(' ').unwrap().0.to_owned();
        seen.lock().unwrap().push((request.clone(), header("content-type"), String::from_utf8(body).unwrap()));
        let (code, parts) = {
            let mut script = script.lock().unwrap();
            let answers = script.get_mut(&request).unwrap_or_else(|| panic!("unexpected: {request}"));
            if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }
        };
        let head = format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for part in &parts {
            let _ = stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await;
        }
        if parts.is_empty() {
            std::future::pending::<()>().await;
        }
        let _ = stream.write_all(b"0\r\n\r\n").await;
    }
}

fn json_answer(code: u16, body: Value) -> Vec<Answer> {
    vec![(code, vec![body.to_string()])]
}

fn pod(name: &str, revision: u64) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
           "metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": revision.to_string()}})
}

const LIST: &str = "GET /api/v1/pods";
fn watch_from(revision: u64) -> String {
    format!("GET /api/v1/pods?watch=true&allowWatchBookmarks=true&timeoutSeconds=540&resourceVersion={revision}")
}

fn list_of(revision: u64, pods: &[Value]) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": revision.to_string()}, "items": pods})
}

fn event(event_type: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": event_type, "object": object}))
}

#[tokio::test]
async fn writes_say_what_they_mean() {
    let stored = pod("x", 7);
    let success = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
    let server = Server::start(&[
        ("POST /api/v1/namespaces/a/pods?fieldManager=me", json_answer(201, stored.clone())),
        ("POST /api/v1/namespaces/a/pods/x/binding", json_answer(201, success.clone())),
        ("PUT /api/v1/namespaces/a/pods/x/status", json_answer(200, stored.clone())),
        ("PATCH /api/v1/namespaces/a/pods/x", json_answer(200, stored.clone())),
        ("DELETE /api/v1/namespaces/a/pods/x", json_answer(200, success)),
    ])
    .await;
    let (client, pods) = (&server.client, resources::pods());
    let options = WriteOptions { field_manager: "me".to_owned(), ..WriteOptions::default() };
    let created = client.create(&pods, Some("a"), None, pod("x", 0), options).await.unwrap();
    assert_eq!((created.revision(), server.last().1.as_str()), (7, "application/json"));
    let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "x"}, "target": {"name": "n1"}});
    client.create(&pods, Some("a"), Some(("x", "binding")), binding, WriteOptions::default()).await.unwrap();
    client.update(&pods, Some("a"), "x", Some("status"), stored, WriteOptions::default()).await.unwrap();
    let patch = Patch::Strategic(json!({"metadata": {"labels": {"a": "b"}}}));
    client.patch(&pods, Some("a"), "x", None, patch, WriteOptions::default()).await.unwrap();
    assert_eq!(server.last().1, "application/strategic-merge-patch+json");
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some("u".to_owned()),
        propagation_policy: Some("Foreground".to_owned()),
        ..DeleteOptions::default()
    };
    client.delete(&pods, Some("a"), "x", options).await.unwrap();
    let body: Value = serde_json::from_str(&server.last().2).unwrap();
    assert_eq!(
        body,
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
               "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}})
    );
}

#[tokio::test]
async fn refusals_come_back_as_the_servers_own_status() {
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
        "reason": "Forbidden", "message": "pods \"x\" is forbidden: no",
        "details": {"name": "x", "kind": "pods", "causes": [{"reason": "NamespaceTerminating", "message": "m"}]}});
    let server = Server::start(&[
        ("GET /api/v1/namespaces/a/pods/x", json_answer(403, refusal)),
        ("GET /api/v1/namespaces/a/pods/y", vec![(502, vec!["no upstream".to_owned()])]),
    ])
    .await;
    let refused = server.client.get(&resources::pods(), Some("a"), "x").await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (403, "Forbidden"));
    assert_eq!(refused.details.unwrap().causes[0].reason, "NamespaceTerminating");
    assert_eq!(server.client.get(&resources::pods(), Some("a"), "y").await.unwrap_err().code, 502);

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (client, _file) = client_of(&format!("http://{nobody}")).await;
    let unreachable = client.get(&resources::pods(), Some("a"), "x").await.unwrap_err();
    assert_eq!((unreachable.code, unreachable.reason.as_str()), (503, "ServiceUnavailable"), "{unreachable}");
}

#[tokio::test]
async fn a_watch_puts_lines_together_and_ends_with_its_error() {
    let whole = event("MODIFIED", &pod("x", 8));
    let (head, tail) = whole.split_at(20);
    let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    let parts = vec![event("ADDED", &pod("x", 7)), head.to_owned(), tail.to_owned(), event("ERROR", &gone)];
    let server = Server::start(&[(watch_from(5).as_str(), vec![(200, parts)])]).await;
    let events = server.client.watch(&resources::pods(), None, ListOptions::default(), 5).await.unwrap();
    let events: Vec<_> = events.collect().await;
    assert!(matches!(&events[0], Ok(WatchEvent::Added(object)) if object.revision() == 7));
    assert!(matches!(&events[1], Ok(WatchEvent::Modified(object)) if object.revision() == 8));
    assert!(matches!(&events[2], Err(error) if error.is_expired()), "{events:?}");
    assert_eq!(events.len(), 3);
}

#[tokio::test]
async fn an_informer_resumes_where_it_was_and_lists_again_when_that_is_too_old() {
    let bookmark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}});
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"});
    let lists = vec![
        (200, vec![list_of(10, &[pod("x", 5), pod("y", 6)]).to_string()]),
        (200, vec![list_of(40, &[pod("x", 5), pod("z", 33)]).to_string()]),
    ];
    let first = vec![event("ADDED", &pod("w", 12)), event("DELETED", &pod("y", 13)), event("BOOKMARK", &bookmark)];
    let server = Server::start(&[
        (LIST, lists),
        (watch_from(10).as_str(), vec![(200, first)]),
        // The server closed the first; the second starts from the bookmark and is refused.
        (watch_from(20).as_str(), json_answer(410, gone)),
        (watch_from(40).as_str(), vec![(200, Vec::new())]),
    ])
    .await;
    let informer = Informer::new(Arc::new(server.client.clone()), resources::pods(), None, ListOptions::default());
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = Arc::clone(&told);
    informer.on_change(move |change| {
        let verb = if change.is_deletion() { "-" } else { "+" };
        teller.lock().unwrap().push(format!("{verb}{}", change.object().meta().name));
    });
    let cancel = CancellationToken::new();
    let (running, token) = (informer.clone(), cancel.clone());
    let task = tokio::spawn(async move { running.run(token).await });
    tokio::time::timeout(Duration::from_secs(10), async {
        informer.synced().await;
        while informer.lister().get("a/z").is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(informer.lister().keys(), ["a/x", "a/z"]);
    assert_eq!(*told.lock().unwrap(), ["+x", "+y", "+w", "-y", "-w", "+z"]);
    cancel.cancel();
    task.await.unwrap();
}
