//! The whole server over a real etcd: stock kubectl, identities, permissions, limits, and
//! an orderly end.

mod support;

use std::process::Output;

use serde_json::{Value, json};
use support::{Cluster, eventually, start};

const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: demo}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}}
spec:
  containers: [{name: web, image: web}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web}]}
"#;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs kubectl as the administrator; it must succeed and say each of `expected`.
#[track_caller]
fn says(cluster: &Cluster, arguments: &[&str], input: &str, expected: &[&str]) {
    let output = cluster.kubectl("admin", arguments, input);
    let said = text(&output);
    assert!(output.status.success(), "kubectl {arguments:?} failed: {said}");
    for part in expected {
        assert!(said.contains(part), "kubectl {arguments:?} does not say {part:?}: {said}");
    }
}

/// Runs kubectl as the administrator; it must fail and say `expected`.
#[track_caller]
fn refuses(cluster: &Cluster, arguments: &[&str], input: &str, expected: &str) {
    let output = cluster.kubectl("admin", arguments, input);
    let said = text(&output);
    assert!(!output.status.success(), "kubectl {arguments:?} succeeded: {said}");
    assert!(said.contains(expected), "kubectl {arguments:?} does not say {expected:?}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_whole_server() {
    let cluster = start().await;
    kubectl_works(&cluster);
    identities(&cluster).await;
    permissions(&cluster).await;
    tokens(&cluster).await;
    limits(&cluster).await;
    encodings(&cluster).await;
    documents(&cluster).await;
    watches_end_with_the_server(cluster).await;
}

fn kubectl_works(cluster: &Cluster) {
    says(cluster, &["version"], "", &["v1.35.0+quorate"]);
    says(
        cluster,
        &["apply", "-f", "-"],
        MANIFEST,
        &["namespace/demo created", "pod/web created", "deployment.apps/web created"],
    );
    says(
        cluster,
        &["apply", "-f", "-"],
        MANIFEST,
        &["pod/web unchanged", "service/web unchanged", "deployment.apps/web unchanged"],
    );
    says(cluster, &["-n", "demo", "get", "pods", "-o", "wide"], "", &["NAME", "READY", "web", "0/1", "Pending"]);
    says(
        cluster,
        &["-n", "demo", "describe", "pod", "web"],
        "",
        &["Service Account:  default", "kube-api-access-", "for 300s"],
    );
    says(cluster, &["-n", "demo", "scale", "deployment", "web", "--replicas=3"], "", &["scaled"]);
    says(cluster, &["-n", "demo", "set", "image", "deployment/web", "web=web:2"], "", &["image updated"]);
    says(cluster, &["-n", "demo", "label", "pod", "web", "tier=front"], "", &["labeled"]);
    says(cluster, &["-n", "demo", "get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"], "", &["3"]);
    says(cluster, &["explain", "pod.spec"], "", &["KIND:       Pod", "containers"]);
    says(cluster, &["api-resources"], "", &["deployments", "apps/v1", "serviceaccounts"]);
    says(cluster, &["auth", "can-i", "--list"], "", &["*.*"]);
    says(
        cluster,
        &["create", "deployment", "other", "--image=web", "-n", "demo"],
        "",
        &["deployment.apps/other created"],
    );
    says(cluster, &["-n", "demo", "delete", "deployment", "other", "--wait=false"], "", &["deleted"]);
    refuses(cluster, &["get", "nosuch"], "", "the server doesn't have a resource type \"nosuch\"");
    refuses(cluster, &["get", "pods", "nosuch"], "", "Error from server (NotFound): pods \"nosuch\" not found");
    refuses(cluster, &["create", "-f", "-"], MANIFEST, "Error from server (AlreadyExists)");
    let unknown =
        "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"x\"}, \"foo\": \"bar\"}";
    refuses(cluster, &["apply", "-f", "-"], unknown, "strict decoding error: unknown field \"foo\"");
    let lost = "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"x\", \"namespace\": \"nowhere\"}}";
    refuses(cluster, &["apply", "-f", "-"], lost, "namespaces \"nowhere\" not found");
    refuses(cluster, &["delete", "namespace", "kube-system"], "", "this namespace may not be deleted");
}

async fn identities(cluster: &Cluster) {
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(cluster.get(None, path, &[]).await.code, 200, "{path} is for everybody");
    }
    assert_eq!(cluster.get(None, "/api", &[]).await.code, 401, "everything else is not");
    let wrong = cluster.get(None, "/version", &[("authorization", "Bearer a.b.c")]).await;
    assert_eq!((wrong.code, wrong.json()["reason"].as_str()), (401, Some("Unauthorized")));
    let detail = cluster.get(Some("admin"), "/readyz?verbose", &[]).await;
    assert!(detail.text.contains("[+]etcd ok") && detail.text.contains("readyz check passed"), "{detail:?}");
    assert!(detail.headers.contains_key("audit-id"));
    assert_eq!(detail.headers["cache-control"], "no-cache, private");
}

async fn permissions(cluster: &Cluster) {
    cluster.client_certificate("jane", "jane", &["developers"]);
    let denied = cluster.get(Some("jane"), "/api/v1/namespaces/demo/pods", &[]).await;
    assert_eq!(denied.code, 403);
    assert_eq!(
        denied.json()["message"],
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"demo\""
    );
    says(
        cluster,
        &["-n", "demo", "create", "rolebinding", "devs", "--clusterrole=view", "--group=developers"],
        "",
        &["created"],
    );
    eventually("jane's permission", || cluster.kubectl("jane", &["-n", "demo", "get", "pods"], "").status.success())
        .await;
    assert_eq!(
        cluster.get(Some("jane"), "/api/v1/namespaces/demo/secrets", &[]).await.code,
        403,
        "view shows no secrets"
    );
    assert_eq!(cluster.get(Some("jane"), "/api/v1/namespaces/default/pods", &[]).await.code, 403, "elsewhere nothing");
    let as_jane = cluster.get(Some("admin"), "/api/v1/namespaces/demo/secrets", &[("impersonate-user", "jane")]).await;
    assert_eq!(as_jane.code, 403, "an administrator who acts as jane has her rights");
    let as_admin = cluster.get(Some("jane"), "/api", &[("impersonate-user", "admin")]).await;
    assert_eq!(as_admin.code, 403, "jane may not act as somebody else");
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "demo"}}});
    let answer = cluster.post(Some("jane"), "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await;
    assert_eq!(answer.json()["status"]["allowed"], true, "{answer:?}");
    cluster.client_certificate("node", "system:node:n1", &["system:nodes"]);
    assert_eq!(cluster.get(Some("node"), "/api/v1/services", &[]).await.code, 200);
    assert_eq!(cluster.get(Some("node"), "/api/v1/namespaces/demo/pods/web", &[]).await.code, 403, "not its pod");
}

async fn tokens(cluster: &Cluster) {
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let path = "/api/v1/namespaces/demo/serviceaccounts/default/token";
    let issued = cluster.post(Some("admin"), path, &request).await;
    assert_eq!(issued.code, 201, "{issued:?}");
    let token = issued.json()["status"]["token"].as_str().expect("a token").to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let denied = cluster.get(None, "/api/v1/namespaces/demo/pods", &headers).await;
    assert_eq!(denied.code, 403, "known, and not permitted: {denied:?}");
    assert!(denied.text.contains("system:serviceaccount:demo:default"), "{denied:?}");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviewed = cluster.post(Some("admin"), "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(reviewed.json()["status"]["user"]["username"], "system:serviceaccount:demo:default", "{reviewed:?}");
    let keys = cluster.get(Some("admin"), "/openid/v1/jwks", &[]).await;
    assert_eq!(keys.json()["keys"][0]["kty"], "EC");
    says(cluster, &["-n", "demo", "delete", "serviceaccount", "default"], "", &["deleted"]);
    let reviewed = cluster.post(Some("admin"), "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(reviewed.json()["status"].get("authenticated"), None, "the token died with its account: {reviewed:?}");
}

async fn limits(cluster: &Cluster) {
    let too_large = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "a".repeat(4 << 20)}});
    let answer = cluster.post(Some("admin"), "/api/v1/namespaces/demo/configmaps", &too_large).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
    let odd =
        http::Request::post("/api/v1/namespaces").header("host", "localhost").header("content-type", "text/plain");
    let answer = cluster.send(Some("admin"), odd.body("{}".to_owned()).expect("well formed")).await;
    assert_eq!(answer.code, 415);
    let answer = cluster.get(Some("admin"), "/api/v1/namespaces", &[("accept", "text/html")]).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (406, Some("NotAcceptable")));
    let plain = cluster.get(Some("admin"), "/api/v1/namespaces/demo", &[]).await;
    assert!(!plain.text.contains('\n'), "one line for programs");
    let people = cluster.get(Some("admin"), "/api/v1/namespaces/demo", &[("user-agent", "curl/8")]).await;
    assert!(people.text.contains("\n  \"metadata\": {"), "{people:?}");
}

async fn encodings(cluster: &Cluster) {
    use k8s_pb::api::core::v1::PodList;
    use k8s_pb::apimachinery::pkg::apis::meta::v1::Status;
    use k8s_pb::apimachinery::pkg::runtime::Unknown;
    use prost::Message;

    fn open<M: Message + Default>(body: &[u8]) -> M {
        let unknown = Unknown::decode(body.strip_prefix(b"k8s\0").expect("an envelope")).expect("a whole envelope");
        M::decode(unknown.raw.expect("a message").as_slice()).expect("a whole message")
    }
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    // As client-go asks for it.
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let answer = cluster.get(Some("admin"), "/api/v1/namespaces/demo/pods", &accept).await;
    assert_eq!((answer.code, answer.headers["content-type"].to_str().ok()), (200, Some(PROTOBUF)));
    let pods: PodList = open(&answer.bytes);
    let names: Vec<_> = pods.items.iter().filter_map(|pod| pod.metadata.as_ref()?.name.as_deref()).collect();
    assert_eq!(names, ["web"]);

    let answer = cluster.get(Some("admin"), "/api/v1/namespaces/demo/pods/nosuch", &accept).await;
    assert_eq!((answer.code, answer.headers["content-type"].to_str().ok()), (404, Some(PROTOBUF)));
    assert_eq!(open::<Status>(&answer.bytes).message.as_deref(), Some("pods \"nosuch\" not found"));
    let answer = cluster.get(None, "/api/v1/pods", &accept).await;
    assert_eq!((answer.code, open::<Status>(&answer.bytes).reason.as_deref()), (401, Some("Unauthorized")));

    let table = [("accept", "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1")];
    let answer = cluster.get(Some("admin"), "/api/v1/namespaces/demo/pods", &table).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (406, Some("NotAcceptable")));
}

async fn documents(cluster: &Cluster) {
    let index = cluster.get(Some("admin"), "/openapi/v3", &[]).await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("apps/v1 has a document").to_owned();
    let document = cluster.get(Some("admin"), &url, &[]).await;
    assert_eq!((document.code, document.headers["cache-control"].to_str().ok()), (200, Some("public, immutable")));
    let tag = document.headers["etag"].to_str().expect("a tag is text").to_owned();
    assert_eq!(cluster.get(Some("admin"), &url, &[("if-none-match", &tag)]).await.code, 304);
    let (path, _) = url.split_once('?').expect("the address carries a hash");
    let moved = cluster.get(Some("admin"), &format!("{path}?hash=old"), &[]).await;
    assert_eq!((moved.code, moved.headers["location"].to_str().ok()), (301, Some(url.as_str())));
    let protobuf =
        [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), ("accept-encoding", "gzip")];
    let document = cluster.get(Some("admin"), "/openapi/v2", &protobuf).await;
    assert_eq!((document.code, document.headers["content-encoding"].to_str().ok()), (200, Some("gzip")));
    let tag = document.headers["etag"].to_str().expect("a tag is text").to_owned();
    assert_eq!(cluster.get(Some("admin"), "/openapi/v2", &[("if-none-match", &tag)]).await.code, 304);
    assert_eq!(cluster.get(Some("admin"), "/nosuch", &[]).await.text, "404 page not found\n");
}

/// A watch that runs when the server is told to end is closed in order, and so is the server.
async fn watches_end_with_the_server(cluster: Cluster) {
    let cluster = std::sync::Arc::new(cluster);
    let path = "/api/v1/namespaces?watch=true&allowWatchBookmarks=true";
    let watching = {
        let cluster = std::sync::Arc::clone(&cluster);
        tokio::spawn(async move { cluster.get(Some("admin"), path, &[]).await })
    };
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!watching.is_finished(), "the watch stays open");
    tokio::time::timeout(support::PATIENCE, cluster.server.shutdown()).await.expect("the server ends");
    let seen = watching.await.expect("the watch ends without a panic");
    let events: Vec<Value> = seen.text.lines().map(|line| serde_json::from_str(line).expect("whole events")).collect();
    assert!(
        events.iter().any(|event| event["type"] == "ADDED" && event["object"]["metadata"]["name"] == "demo"),
        "{seen:?}"
    );
    assert!(tokio::net::TcpStream::connect(cluster.server.address()).await.is_err(), "nobody listens any more");
}
