//! Requests in, bytes out, over a real store.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt;
use prost::Message as _;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use crate::authn::User;
use crate::http::{ApiRequest, Encoding, Form, Query, RequestInfo};
use crate::registry::testing::World;

fn request(method: &str, uri: &str, content_type: &'static str, body: impl Into<Bytes>) -> ApiRequest {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let method: Method = method.parse().unwrap();
    let query = Query::parse(query);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    ApiRequest {
        info: RequestInfo::parse(&method, path, &query),
        method,
        query,
        headers,
        user: User::system("test"),
        form: Form::Object,
        encoding: Encoding::Json,
        body: body.into(),
        create_refusal: None,
    }
}

async fn send(world: &World, request: ApiRequest) -> Result<(u16, Value), Status> {
    let response = super::handle(&world.registry, request).await?;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("the body is whole").to_bytes();
    Ok((code, serde_json::from_slice(&bytes).expect("the body is JSON")))
}

const JSON: &str = "application/json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_become_verbs() {
    let world = World::start().await;
    let body = json!({"metadata": {"name": "a"}, "data": {"k": "v"}}).to_string();
    let (code, created) = send(&world, request("POST", MAPS, JSON, body)).await.unwrap();
    assert_eq!((code, &created["kind"], &created["apiVersion"]), (201, &json!("ConfigMap"), &json!("v1")));

    let (code, list) = send(&world, request("GET", MAPS, JSON, "")).await.unwrap();
    assert_eq!((code, &list["kind"]), (200, &json!("ConfigMapList")));
    assert_eq!(list["items"][0]["data"], json!({"k": "v"}));
    assert!(list["items"][0].get("kind").is_none(), "items of built-in kinds name no kind");
    assert!(list["metadata"]["resourceVersion"].is_string());

    let patch = json!({"data": {"k": "w"}}).to_string();
    let (_, patched) =
        send(&world, request("PATCH", &format!("{MAPS}/a"), "application/merge-patch+json", patch)).await.unwrap();
    assert_eq!(patched["data"]["k"], "w");
    let unknown = send(&world, request("PATCH", &format!("{MAPS}/a"), JSON, "{}")).await.unwrap_err();
    assert_eq!((unknown.code, unknown.reason.as_str()), (415, "UnsupportedMediaType"));

    let wrong = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "b"}}).to_string();
    let refused = send(&world, request("POST", MAPS, JSON, wrong)).await.unwrap_err();
    assert!(
        refused.message.starts_with("Secret in version \"v1\" cannot be handled as a ConfigMap"),
        "{}",
        refused.message
    );

    let dry = json!({"metadata": {"name": "dry"}}).to_string();
    assert_eq!(send(&world, request("POST", &format!("{MAPS}?dryRun=All"), JSON, dry)).await.unwrap().0, 201);
    assert_eq!(send(&world, request("GET", &format!("{MAPS}/dry"), JSON, "")).await.unwrap_err().code, 404);

    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}}).to_string();
    let kept = send(&world, request("DELETE", &format!("{MAPS}/a"), JSON, options)).await.unwrap_err();
    assert_eq!(kept.reason, "Conflict");
    let (code, gone) = send(&world, request("DELETE", &format!("{MAPS}/a"), JSON, "")).await.unwrap();
    assert_eq!((code, &gone["status"], &gone["details"]["kind"]), (200, &json!("Success"), &json!("configmaps")));
    assert_eq!(gone["details"]["uid"], created["metadata"]["uid"]);
    assert_eq!(send(&world, request("GET", "/apis/nowhere/v1/things", JSON, "")).await.unwrap_err().code, 404);
}

/// Who may do everything in one namespace was authorized by such a path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_does_not_lead_to_what_lies_outside_of_all() {
    let world = World::start().await;
    for (method, uri) in [
        ("GET", "/api/v1/namespaces/default/nodes"),
        ("GET", "/api/v1/namespaces/default/nodes?watch=true"),
        ("DELETE", "/api/v1/namespaces/default/nodes/n1"),
        ("DELETE", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterroles/admin"),
        ("POST", "/api/v1/namespaces/default/persistentvolumes"),
    ] {
        let refused = send(&world, request(method, uri, JSON, "{}")).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (404, "NotFound"), "{method} {uri}");
    }
    let (code, namespace) = send(&world, request("GET", "/api/v1/namespaces/default", JSON, "")).await.unwrap();
    assert_eq!((code, &namespace["kind"]), (200, &json!("Namespace")));
    assert!(!crate::proxy::Proxy::serves(&request("GET", "/api/v1/namespaces/a/nodes/n1/proxy", JSON, "").info));
    assert!(crate::proxy::Proxy::serves(&request("GET", "/api/v1/nodes/n1/proxy", JSON, "").info));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begins_with_what_is_there_and_says_where_it_ends() {
    let world = World::start().await;
    let body = json!({"metadata": {"name": "a"}}).to_string();
    send(&world, request("POST", MAPS, JSON, body)).await.unwrap();
    let uri = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let response = super::handle(&world.registry, request("GET", &uri, JSON, "")).await.unwrap();
    let change = json!({"data": {"k": "v"}}).to_string();
    send(&world, request("PATCH", &format!("{MAPS}/a"), "application/merge-patch+json", change)).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let events: Vec<Value> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ADDED", "BOOKMARK", "MODIFIED", "BOOKMARK"]);
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(events[1]["object"]["kind"], "ConfigMap");
    assert_eq!(events[2]["object"]["data"]["k"], "v");
    assert!(events[3]["object"]["metadata"].get("annotations").is_none());

    let old = request("GET", &format!("{MAPS}?watch=true&resourceVersion=1"), JSON, "");
    let (code, event) = send(&world, old).await.unwrap();
    assert_eq!((code, &event["type"], &event["object"]["kind"]), (200, &json!("ERROR"), &json!("Status")));
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&json!(410), &json!("Expired")));
}

/// What an envelope holds: the kind, and the message.
#[track_caller]
fn open<M: prost::Message + Default>(body: &[u8]) -> (String, M) {
    let envelope = body.strip_prefix(b"k8s\0").expect("an envelope begins with its mark");
    let unknown = k8s_pb::apimachinery::pkg::runtime::Unknown::decode(envelope).expect("the envelope is whole");
    let kind = unknown.type_meta.and_then(|meta| meta.kind).expect("the envelope names a kind");
    (kind, M::decode(unknown.raw.unwrap_or_default().as_slice()).expect("the message is whole"))
}

/// Sends a request for an answer in protobuf; returns code, type and body.
async fn send_for_protobuf(world: &World, mut request: ApiRequest, form: Form) -> (u16, String, Bytes) {
    request.encoding = Encoding::Protobuf;
    request.form = form;
    let response = super::handle(&world.registry, request).await.unwrap();
    let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let code = response.status().as_u16();
    (code, content_type, response.into_body().collect().await.expect("the body is whole").to_bytes())
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_answers_in_protobuf() {
    use k8s_pb::api::core::v1::{ConfigMap, ConfigMapList};
    use k8s_pb::apimachinery::pkg::apis::meta::v1::{PartialObjectMetadataList, Status};

    let world = World::start().await;
    let body = json!({"metadata": {"name": "a"}, "data": {"k": "v"}}).to_string();
    let (code, content_type, body) = send_for_protobuf(&world, request("POST", MAPS, JSON, body), Form::Object).await;
    assert_eq!((code, content_type.as_str()), (201, PROTOBUF));
    let (kind, created) = open::<ConfigMap>(&body);
    assert_eq!((kind.as_str(), created.data["k"].as_str()), ("ConfigMap", "v"));

    // What was answered is taken as a body.
    let uri = format!("{MAPS}/a");
    let (code, _, body) = send_for_protobuf(&world, request("PUT", &uri, PROTOBUF, body), Form::Object).await;
    assert_eq!((code, open::<ConfigMap>(&body).1.metadata), (200, created.metadata.clone()));
    let (_, _, body) = send_for_protobuf(&world, request("GET", &uri, JSON, ""), Form::Object).await;
    assert_eq!(open::<ConfigMap>(&body).1.metadata, created.metadata);

    let (_, content_type, body) = send_for_protobuf(&world, request("GET", MAPS, JSON, ""), Form::Object).await;
    let (kind, list) = open::<ConfigMapList>(&body);
    assert_eq!((content_type.as_str(), kind.as_str(), list.items.len()), (PROTOBUF, "ConfigMapList", 1));
    assert_eq!(list.items[0].metadata, created.metadata);
    let form = Form::PartialObjectMetadata { version: "v1".to_owned() };
    let (_, _, body) = send_for_protobuf(&world, request("GET", MAPS, JSON, ""), form).await;
    let (kind, partial) = open::<PartialObjectMetadataList>(&body);
    assert_eq!((kind.as_str(), &partial.items[0].metadata), ("PartialObjectMetadataList", &created.metadata));

    let (code, _, body) = send_for_protobuf(&world, request("DELETE", &uri, JSON, ""), Form::Object).await;
    let (kind, status) = open::<Status>(&body);
    assert_eq!((code, kind.as_str(), status.status.as_deref()), (200, "Status", Some("Success")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_in_protobuf_comes_in_frames() {
    use k8s_pb::api::core::v1::ConfigMap;
    use k8s_pb::apimachinery::pkg::apis::meta::v1::{Status, WatchEvent};

    fn events(mut rest: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut events = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (frame, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
            let event = WatchEvent::decode(frame).expect("the frame is a WatchEvent");
            events.push((event.r#type.unwrap(), event.object.unwrap().raw.unwrap()));
            rest = tail;
        }
        assert!(rest.is_empty(), "frames are whole");
        events
    }

    let world = World::start().await;
    let body = json!({"metadata": {"name": "a"}, "data": {"k": "v"}}).to_string();
    send(&world, request("POST", MAPS, JSON, body)).await.unwrap();
    let uri = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let (code, content_type, body) = send_for_protobuf(&world, request("GET", &uri, JSON, ""), Form::Object).await;
    assert_eq!((code, content_type.as_str()), (200, "application/vnd.kubernetes.protobuf;stream=watch"));
    let events_seen = events(&body);
    let kinds: Vec<&str> = events_seen.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["ADDED", "BOOKMARK", "BOOKMARK"]);
    let (kind, added) = open::<ConfigMap>(&events_seen[0].1);
    assert_eq!((kind.as_str(), added.data["k"].as_str()), ("ConfigMap", "v"));
    let (kind, bookmark) = open::<ConfigMap>(&events_seen[1].1);
    let metadata = bookmark.metadata.unwrap();
    assert_eq!((kind.as_str(), metadata.annotations["k8s.io/initial-events-end"].as_str()), ("ConfigMap", "true"));
    assert!(metadata.resource_version.is_some_and(|version| version != "0"));

    let old = request("GET", &format!("{MAPS}?watch=true&resourceVersion=1"), JSON, "");
    let (_, _, body) = send_for_protobuf(&world, old, Form::Object).await;
    let expired = events(&body);
    let (kind, status) = open::<Status>(&expired[0].1);
    assert_eq!((expired[0].0.as_str(), kind.as_str(), status.code), ("ERROR", "Status", Some(410)));
}

const APPLY: &str = "application/apply-patch+yaml";

fn apply(query: &str, body: impl Into<Bytes>) -> ApiRequest {
    request("PATCH", &format!("{MAPS}/m?{query}"), APPLY, body)
}

fn config(data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata: {data}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_are_applied() {
    let world = World::start().await;
    let dry = send(&world, apply("fieldManager=x&dryRun=All", config("{a: '1'}"))).await.unwrap();
    assert_eq!(dry.0, 201);
    let (code, created) = send(&world, apply("fieldManager=x", config("{a: '1', b: '1'}"))).await.unwrap();
    assert_eq!((code, &created["data"]), (201, &json!({"a": "1", "b": "1"})));
    let entry = &created["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["manager"], &entry["operation"], &entry["apiVersion"], &entry["fieldsType"], &entry["fieldsV1"]),
        (&json!("x"), &json!("Apply"), &json!("v1"), &json!("FieldsV1"), &json!({"f:data": {"f:a": {}, "f:b": {}}}))
    );
    let (code, again) = send(&world, apply("fieldManager=x", config("{a: '1', b: '1'}"))).await.unwrap();
    assert_eq!((code, &again), (200, &created), "nothing changes, the revision neither");

    let conflict = send(&world, apply("fieldManager=y", config("{a: '2'}"))).await.unwrap_err();
    assert_eq!(
        (conflict.code, conflict.message.as_str()),
        (409, "Apply failed with 1 conflict: conflict with \"x\": .data.a")
    );
    let (_, forced) = send(&world, apply("fieldManager=y&force=true", config("{a: '2'}"))).await.unwrap();
    assert_eq!(forced["data"], json!({"a": "2", "b": "1"}));
    let (_, left_out) = send(&world, apply("fieldManager=x", config("{}"))).await.unwrap();
    assert_eq!(left_out["data"], json!({"a": "2"}));

    // As kubectl hands over what it applied by itself.
    let entries = json!([{"manager": "z", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "time": "2024-01-01T00:00:00Z", "fieldsV1": {"f:data": {"f:a": {}}}}]);
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": entries},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": left_out["metadata"]["resourceVersion"]}]);
    let (_, moved) =
        send(&world, request("PATCH", &format!("{MAPS}/m"), "application/json-patch+json", patch.to_string()))
            .await
            .unwrap();
    assert_eq!(moved["metadata"]["managedFields"], entries);
    let reset = json!({"metadata": {"managedFields": []}}).to_string();
    let (_, reset) =
        send(&world, request("PATCH", &format!("{MAPS}/m"), "application/merge-patch+json", reset)).await.unwrap();
    assert!(reset["metadata"].get("managedFields").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_applied_is_refused_in_upstreams_words() {
    let world = World::start().await;
    let refused = async |query: &str, body: String| {
        let status = send(&world, apply(query, body)).await.unwrap_err();
        (status.code, status.message)
    };
    assert_eq!(
        refused("", config("{}")).await,
        (
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
                .to_owned()
        )
    );
    let wrong = config("{}").replace("v1", "v2");
    assert_eq!(
        refused("fieldManager=x", wrong).await,
        (400, "Incorrect version specified in apply patch. Specified patch version: v2, expected: v1".to_owned())
    );
    let owned = config("{}").replace("  name: m", "  name: m\n  managedFields: []");
    assert_eq!(refused("fieldManager=x", owned).await, (400, "metadata.managedFields must be nil".to_owned()));
    let other = config("{}").replace("name: m", "name: other");
    assert_eq!(
        refused("fieldManager=x", other).await,
        (400, "the name of the object (other) does not match the name on the URL (m)".to_owned())
    );
    let known = config("{}").replace("  name: m", "  name: m\n  uid: u");
    assert_eq!(refused("fieldManager=x", known).await.0, 409);
    assert_eq!(refused("fieldManager=x", "a: 1\na: 2".to_owned()).await.0, 400);
    let forbidden = Status::forbidden("", "configmaps", "m", "no");
    let request_of_other =
        ApiRequest { create_refusal: Some(forbidden.clone()), ..apply("fieldManager=x", config("{}")) };
    assert_eq!(send(&world, request_of_other).await.unwrap_err(), forbidden);
    let forced = request("PATCH", &format!("{MAPS}/m?force=true"), "application/merge-patch+json", "{}");
    assert_eq!(
        send(&world, forced).await.unwrap_err().message,
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
}
