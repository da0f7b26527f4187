//! Bodies of requests and answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde::Serialize;

use crate::schema::PROTOBUF;

/// The largest body that a request may have. Upstream's limit.
pub const LIMIT_BYTES: usize = 3 * 1024 * 1024;

/// What an answer carries. A stream that fails ends the connection.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body of chunks; each is sent as soon as it appears.
pub fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// A JSON answer of one line.
pub fn json(code: http::StatusCode, value: &impl Serialize) -> http::Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => json_bytes(code, bytes),
        // Only a map with keys that are no text fails, and no answer has one.
        Err(error) => text(http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A JSON answer that is encoded already.
pub fn json_bytes(code: http::StatusCode, bytes: impl Into<Bytes>) -> http::Response<Body> {
    with_type(code, "application/json", bytes)
}

/// A protobuf answer.
pub fn protobuf(code: http::StatusCode, bytes: impl Into<Bytes>) -> http::Response<Body> {
    with_type(code, PROTOBUF, bytes)
}

/// A plain text answer.
pub fn text(code: http::StatusCode, text: impl Into<Bytes>) -> http::Response<Body> {
    with_type(code, "text/plain; charset=utf-8", text)
}

/// An answer of any type.
pub fn with_type(code: http::StatusCode, content_type: &str, bytes: impl Into<Bytes>) -> http::Response<Body> {
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() = code;
    let value = http::HeaderValue::from_str(content_type).expect("content types are constants of this crate");
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}
