//! The [`Client`] of everybody who is not in a master's process: HTTPS by the crate `kube`.
//!
//! `kube` brings the kubeconfig, TLS and connections; requests and answers are made
//! here, so that an object arrives as the same [`Object`] that a master shares in process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::io::{AsyncBufRead, AsyncBufReadExt};
use futures::stream::{self, BoxStream, StreamExt};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::{Status, StatusCause, StatusDetails};
use serde_json::{Map, Value, json};

use crate::client::{Client, DeleteOptions, ListOptions, ObjectList, Patch, Result, WatchEvent, WriteOptions};

/// A server on the same network accepts within that time or is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// As the server's own limit of 60 s for calls that are not watches, minus what we can wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(32);
/// Servers send a bookmark every minute; after two missed ones the connection is dead.
const WATCH_IDLE_TIMEOUT: Duration = Duration::from_secs(130);
/// How long the server is asked to keep a watch open, as client-go does.
const WATCH_TIMEOUT_SECONDS: u64 = 540;
/// An event is one object, at most 1.5 MiB in the store; base64 and escapes may grow it.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// The API over HTTPS, as one user. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct HttpClient {
    kube: kube::Client,
}

/// Why a kubeconfig did not become a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the kubeconfig {path} cannot be used")]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error("no client can be made from the kubeconfig {path}")]
    Client { path: PathBuf, source: Box<kube::Error> },
}

impl HttpClient {
    /// Reads a kubeconfig file and prepares a client of its current context. Does not
    /// connect: a server that is not there yet is found by the first call.
    ///
    /// # Errors
    /// When the file, or the certificates it names, cannot be read or parsed.
    pub async fn from_kubeconfig(path: &Path) -> std::result::Result<Self, ConnectError> {
        let unusable = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Whoever calls has a queue with its own backoff; a second one below hides errors.
        config.default_retry = false;
        let kube = kube::Client::try_from(config)
            .map_err(|source| ConnectError::Client { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self { kube })
    }

    async fn call(&self, request: Request<Vec<u8>>) -> Result<Value> {
        let text = match tokio::time::timeout(CALL_TIMEOUT, self.kube.request_text(request)).await {
            Ok(answer) => answer.map_err(to_status)?,
            Err(_) => return Err(Status::failure(504, "Timeout", "the server did not answer in time")),
        };
        serde_json::from_str(&text)
            .map_err(|error| Status::internal(format!("the server's answer does not parse: {error}")))
    }

    async fn call_for_object(&self, request: Request<Vec<u8>>) -> Result<Arc<Object>> {
        decode_object(&self.call(request).await?)
    }
}

impl Client for HttpClient {
    fn get<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move {
            let uri = Uri::new(resource, namespace).segment(name);
            self.call_for_object(uri.request("GET", None)?).await
        })
    }

    fn list<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
    ) -> BoxFuture<'a, Result<ObjectList>> {
        Box::pin(async move {
            let uri = Uri::new(resource, namespace).select(&options);
            decode_list(self.call(uri.request("GET", None)?).await?)
        })
    }

    fn watch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
        revision: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchEvent>>>> {
        Box::pin(async move {
            let uri = Uri::new(resource, namespace)
                .select(&options)
                .query("watch", "true")
                .query("allowWatchBookmarks", "true")
                .query("timeoutSeconds", &WATCH_TIMEOUT_SECONDS.to_string())
                .query("resourceVersion", &revision.to_string());
            let request = uri.request("GET", None)?;
            let reader = match tokio::time::timeout(CALL_TIMEOUT, self.kube.request_stream(request)).await {
                Ok(answer) => answer.map_err(to_status)?,
                Err(_) => return Err(Status::failure(504, "Timeout", "the server did not answer in time")),
            };
            Ok(events(Box::pin(reader)).boxed())
        })
    }

    fn create<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        subresource: Option<(&'a str, &'a str)>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move {
            let mut uri = Uri::new(resource, namespace).write(&options)?;
            if let Some((name, subresource)) = subresource {
                uri = uri.segment(name).segment(subresource);
            }
            let answer = self.call(uri.request("POST", Some(("application/json", &object)))?).await?;
            // Some subresources answer with a Status instead of the object: then it is what was sent.
            if answer["kind"] == "Status" { decode_object(&object) } else { decode_object(&answer) }
        })
    }

    fn update<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move {
            let uri = Uri::new(resource, namespace).write(&options)?.segment(name).optional(subresource);
            self.call_for_object(uri.request("PUT", Some(("application/json", &object)))?).await
        })
    }

    fn patch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        patch: Patch,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        Box::pin(async move {
            let uri = Uri::new(resource, namespace).write(&options)?.segment(name).optional(subresource);
            let (content_type, body) = match &patch {
                Patch::Json(body) => ("application/json-patch+json", body),
                Patch::Merge(body) => ("application/merge-patch+json", body),
                Patch::Strategic(body) => ("application/strategic-merge-patch+json", body),
            };
            self.call_for_object(uri.request("PATCH", Some((content_type, body)))?).await
        })
    }

    fn delete<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        options: DeleteOptions,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let uri = Uri::new(resource, namespace).write(&options.write)?.segment(name);
            let body = delete_options(&options);
            self.call(uri.request("DELETE", Some(("application/json", &body)))?).await?;
            Ok(())
        })
    }
}

/// A path and a query, escaped as they grow.
struct Uri {
    path: String,
    query: String,
}

impl Uri {
    fn new(resource: &GroupVersionResource, namespace: Option<&str>) -> Self {
        let path = if resource.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", resource.group) };
        let mut uri = Self { path, query: String::new() }.segment(&resource.version);
        if let Some(namespace) = namespace {
            uri = uri.segment("namespaces").segment(namespace);
        }
        uri.segment(&resource.resource)
    }

    fn segment(mut self, segment: &str) -> Self {
        self.path.push('/');
        escape(&mut self.path, segment);
        self
    }

    fn optional(self, segment: Option<&str>) -> Self {
        match segment {
            Some(segment) => self.segment(segment),
            None => self,
        }
    }

    fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        self.query.push_str(name);
        self.query.push('=');
        escape(&mut self.query, value);
        self
    }

    fn query_unless_empty(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.query(name, value) }
    }

    fn select(self, options: &ListOptions) -> Self {
        let uri = self
            .query_unless_empty("labelSelector", &options.label_selector)
            .query_unless_empty("fieldSelector", &options.field_selector)
            .query_unless_empty("continue", &options.continue_token);
        if options.limit == 0 { uri } else { uri.query("limit", &options.limit.to_string()) }
    }

    /// # Errors
    /// A fenced write: only a master's own parts hold a fence, and they write in process.
    /// Sending it without the fence would let a deposed leader act.
    fn write(self, options: &WriteOptions) -> Result<Self> {
        if options.fence.is_some() {
            return Err(Status::bad_request("fenced writes are not supported over HTTPS"));
        }
        Ok(self.query_unless_empty("fieldManager", &options.field_manager))
    }

    fn request(&self, method: &str, body: Option<(&str, &Value)>) -> Result<Request<Vec<u8>>> {
        let builder = Request::builder()
            .method(method)
            .uri(format!("{}{}", self.path, self.query))
            .header(http::header::ACCEPT, "application/json");
        let request = match body {
            Some((content_type, body)) => builder
                .header(http::header::CONTENT_TYPE, content_type)
                .body(serde_json::to_vec(body).expect("a value serializes")),
            None => builder.body(Vec::new()),
        };
        request.map_err(|error| Status::bad_request(format!("the request cannot be formed: {error}")))
    }
}

/// RFC 3986: what is not unreserved is escaped.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut body = Map::new();
    body.insert("apiVersion".to_owned(), json!("v1"));
    body.insert("kind".to_owned(), json!("DeleteOptions"));
    if let Some(seconds) = options.grace_period_seconds {
        body.insert("gracePeriodSeconds".to_owned(), json!(seconds));
    }
    if let Some(policy) = &options.propagation_policy {
        body.insert("propagationPolicy".to_owned(), json!(policy));
    }
    let mut preconditions = Map::new();
    if let Some(uid) = &options.uid {
        preconditions.insert("uid".to_owned(), json!(uid));
    }
    if let Some(version) = &options.resource_version {
        preconditions.insert("resourceVersion".to_owned(), json!(version));
    }
    if !preconditions.is_empty() {
        body.insert("preconditions".to_owned(), Value::Object(preconditions));
    }
    Value::Object(body)
}

fn decode_object(value: &Value) -> Result<Arc<Object>> {
    let object = Object::from_value(value, revision_of(value))
        .map_err(|error| Status::internal(format!("the server's answer is not an object: {error}")))?;
    Ok(Arc::new(object))
}

/// The resourceVersion as a number, 0 when there is none: objects that are not stored have none.
fn revision_of(value: &Value) -> u64 {
    value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn decode_list(mut list: Value) -> Result<ObjectList> {
    let revision = revision_of(&list);
    let continue_token = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    // Items of built-in kinds do not repeat what the list already says.
    let api_version = list["apiVersion"].clone();
    let kind = list["kind"].as_str().unwrap_or_default();
    let kind = json!(kind.strip_suffix("List").unwrap_or(kind));
    let Value::Array(raw) = list["items"].take() else {
        return Ok(ObjectList { items: Vec::new(), revision, continue_token });
    };
    let mut items = Vec::with_capacity(raw.len());
    for mut item in raw {
        if let Value::Object(fields) = &mut item {
            fields.entry("kind").or_insert_with(|| kind.clone());
            fields.entry("apiVersion").or_insert_with(|| api_version.clone());
        }
        items.push(decode_object(&item)?);
    }
    Ok(ObjectList { items, revision, continue_token })
}

/// Turns lines into events until the server closes, errs, or falls silent. The stream
/// ends after an error: the caller starts again from the last revision it saw.
fn events<R: AsyncBufRead + Unpin + Send + 'static>(reader: R) -> impl stream::Stream<Item = Result<WatchEvent>> {
    stream::unfold(Some((reader, Vec::new())), |state| async move {
        let (mut reader, mut line) = state?;
        match tokio::time::timeout(WATCH_IDLE_TIMEOUT, read_line(&mut reader, &mut line)).await {
            Ok(Ok(true)) => {
                let event = decode_event(&line);
                line.clear();
                let next = event.is_ok().then_some((reader, line));
                Some((event, next))
            }
            // The server closed, the connection broke or is dead: all mean "watch again".
            Ok(Ok(false)) | Err(_) => None,
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "a watch's connection broke");
                None
            }
        }
    })
}

/// Reads up to the next newline into `line`; false at the end of the stream.
async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R, line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(false);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        if line.len() + taken > MAX_EVENT_BYTES {
            return Err(std::io::Error::other("an event is larger than any object may be"));
        }
        line.extend_from_slice(&available[..taken]);
        reader.consume_unpin(taken);
        if end.is_some() && !line.trim_ascii().is_empty() {
            return Ok(true);
        }
    }
}

fn decode_event(line: &[u8]) -> Result<WatchEvent> {
    let event: Value = serde_json::from_slice(line)
        .map_err(|error| Status::internal(format!("a watch event does not parse: {error}")))?;
    let object = &event["object"];
    match event["type"].as_str() {
        Some("ADDED") => Ok(WatchEvent::Added(decode_object(object)?)),
        Some("MODIFIED") => Ok(WatchEvent::Modified(decode_object(object)?)),
        Some("DELETED") => Ok(WatchEvent::Deleted(decode_object(object)?)),
        Some("BOOKMARK") => Ok(WatchEvent::Bookmark(revision_of(object))),
        Some("ERROR") => Err(serde_json::from_value(object.clone())
            .unwrap_or_else(|_| Status::internal(format!("the watch failed: {object}")))),
        other => Err(Status::internal(format!("a watch event is of the unknown type {other:?}"))),
    }
}

fn to_status(error: kube::Error) -> Status {
    match error {
        kube::Error::Api(status) => {
            let status = *status;
            let details = status.details.map(|details| StatusDetails {
                name: details.name,
                group: details.group,
                kind: details.kind,
                uid: details.uid,
                causes: details
                    .causes
                    .into_iter()
                    .map(|cause| StatusCause { reason: cause.reason, message: cause.message, field: cause.field })
                    .collect(),
                retry_after_seconds: i32::try_from(details.retry_after_seconds).unwrap_or(i32::MAX),
            });
            Status { details, ..Status::failure(status.code, &status.reason, status.message) }
        }
        other => {
            let mut message = other.to_string();
            let mut source = std::error::Error::source(&other);
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            Status::service_unavailable(format!("the server cannot be reached: {message}"), 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[test]
    fn paths_and_queries_are_escaped() {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let uri = Uri::new(&pods, Some("a/b")).segment("x y").query("labelSelector", "a in (b,c)");
        assert_eq!(uri.path, "/api/v1/namespaces/a%2Fb/pods/x%20y");
        assert_eq!(uri.query, "?labelSelector=a%20in%20%28b%2Cc%29");
        let deployments = GroupVersionResource::new("apps", "v1", "deployments");
        assert_eq!(Uri::new(&deployments, None).path, "/apis/apps/v1/deployments");
    }

    #[test]
    fn items_take_their_kind_from_the_list() {
        let list = decode_list(json!({"kind": "PodList", "apiVersion": "v1",
            "metadata": {"resourceVersion": "7", "continue": "t"},
            "items": [{"metadata": {"name": "a", "namespace": "b", "resourceVersion": "5"}}]}))
        .unwrap();
        assert_eq!((list.revision, list.continue_token.as_str()), (7, "t"));
        assert_eq!((list.items[0].gvk().kind.as_str(), list.items[0].revision()), ("Pod", 5));
        let empty = decode_list(json!({"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": null}));
        assert!(empty.unwrap().items.is_empty());
    }

    #[tokio::test]
    async fn a_watch_ends_at_its_first_error() {
        let lines = concat!(
            r#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"3"}}}"#,
            "\n\n",
            r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}"#,
            "\n",
            r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired"}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{}}"#,
            "\n",
        );
        let events: Vec<_> = events(Cursor::new(lines)).collect().await;
        assert_eq!(events.len(), 3, "{events:?}");
        assert!(matches!(&events[0], Ok(WatchEvent::Added(object)) if object.revision() == 3));
        assert!(matches!(&events[1], Ok(WatchEvent::Bookmark(9))));
        assert!(matches!(&events[2], Err(status) if status.is_expired()));
    }

    #[test]
    fn a_fence_is_never_dropped_in_silence() {
        let fence = quorate_proto::fence::Fence { generation: 1, term: 2 };
        let options = WriteOptions { fence: Some(fence), ..WriteOptions::default() };
        assert!(Uri::new(&GroupVersionResource::new("", "v1", "pods"), None).write(&options).is_err());
    }
}
