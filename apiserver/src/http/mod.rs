//! HTTP as the API speaks it: what a request asks for, how an answer is written.

pub mod body;
pub mod chain;
pub mod connection;
mod encode;
pub(crate) mod health;
mod metrics;
pub mod negotiate;
pub mod paths;
pub mod query;
pub mod request_info;

use bytes::Bytes;
use quorate_proto::status::Status;

use crate::authn::User;

pub use body::Body;
pub use negotiate::{Encoding, Form};
pub use query::Query;
pub use request_info::RequestInfo;

/// What a handler answers: a whole response, or a Status that the chain writes as one.
pub type Answer = Result<::http::Response<Body>, Status>;

/// A request about resources that has passed authentication and authorization, its body read:
/// the chain hands it to `handlers::handle(&Registry, ApiRequest) -> Answer`.
#[derive(Clone, Debug)]
pub struct ApiRequest {
    pub method: ::http::Method,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: ::http::HeaderMap,
    pub user: User,
    /// The form in which the client wants the answer.
    pub form: Form,
    pub encoding: Encoding,
    /// At most [`body::LIMIT_BYTES`] long.
    pub body: Bytes,
    /// Why an apply may not create what is not there.
    pub create_refusal: Option<Status>,
}
