//! The one way in which controllers and agents see the API.
//!
//! In a master the API server implements [`Client`] in process and hands out the
//! very objects that its watch cache holds; elsewhere the same calls go over HTTPS.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate_proto::fence::Fence;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::Value;

/// What an API call returns; errors are the server's own Status.
pub type Result<T> = std::result::Result<T, Status>;

/// Which objects a list or a watch is about.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// As in a query string; empty selects everything.
    pub label_selector: String,
    /// As in a query string; empty selects everything.
    pub field_selector: String,
    /// At most that many items; 0 is no limit.
    pub limit: usize,
    /// Where an earlier, limited list ended.
    pub continue_token: String,
}

/// The items of a list, and the revision at which they were all true.
#[derive(Clone, Debug)]
pub struct ObjectList {
    pub items: Vec<Arc<Object>>,
    pub revision: u64,
    /// Empty when the list is complete.
    pub continue_token: String,
}

/// One step of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<Object>),
    Modified(Arc<Object>),
    /// The last state, at the revision of the deletion.
    Deleted(Arc<Object>),
    /// Everything up to this revision has been sent.
    Bookmark(u64),
}

/// Who writes, and on whose authority.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// The name under which managedFields records the change.
    pub field_manager: String,
    /// When set, the write takes effect only while this reign lasts.
    pub fence: Option<Fence>,
}

/// How an object is deleted.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub write: WriteOptions,
    /// `None` takes the kind's default.
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`; `None` takes the kind's default.
    pub propagation_policy: Option<String>,
    /// Delete only the object with this uid.
    pub uid: Option<String>,
    /// Delete only this version.
    pub resource_version: Option<String>,
}

/// A change described instead of a whole object.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' merge by keys.
    Strategic(Value),
}

/// The verbs of the API. `namespace` is `None` for cluster-scoped resources, and
/// for lists and watches over all namespaces.
///
/// Every future runs to its end unless dropped; a dropped write may still take effect.
pub trait Client: Send + Sync + 'static {
    fn get<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<Object>>>;

    fn list<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
    ) -> BoxFuture<'a, Result<ObjectList>>;

    /// Everything that happens after `revision`, in order. An `Expired` error, at the
    /// call or in the stream, means: list again. The stream ends when the server closes it.
    fn watch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
        revision: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchEvent>>>>;

    /// Creates `object`, or with `subresource` acts on the existing `(name, subresource)`:
    /// `("web-1", "binding")`, `("default", "token")`.
    fn create<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        subresource: Option<(&'a str, &'a str)>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>>;

    /// Replaces the object, or one subresource of it: `Some("status")`.
    fn update<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>>;

    fn patch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        patch: Patch,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>>;

    /// Asks for deletion; the object may live on until its grace period and finalizers are done.
    fn delete<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        options: DeleteOptions,
    ) -> BoxFuture<'a, Result<()>>;
}
