//! The door through which virtual resources take part in the verbs.

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::Value;

use super::context::RequestContext;

/// A resource that only answers creations and stores nothing: TokenReview,
/// SubjectAccessReview, `serviceaccounts/token`.
pub trait VirtualResource: Send + Sync + 'static {
    /// Answers the POST of `object`; `name` is the parent's for subresources.
    fn create<'a>(
        &'a self,
        context: &'a RequestContext,
        namespace: &'a str,
        name: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>>;
}
