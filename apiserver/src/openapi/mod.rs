//! What the server says of its types and paths: OpenAPI v3.

use bytes::Bytes;

/// A document of one group and version.
#[derive(Clone, Debug)]
pub struct Document {
    pub json: Bytes,
    /// Changes whenever the document does; the `hash` of its address in the index.
    pub hash: String,
}

/// The body of `/openapi/v3`: an address with a hash for each group and version.
pub fn v3_index() -> Bytes {
    Bytes::from_static(b"{\"paths\":{}}")
}

/// The document under `/openapi/v3/<path>`, where `path` is `api/v1` or `apis/<group>/<version>`.
pub fn v3_document(_path: &str) -> Option<Document> {
    None
}

/// The hash that the index gives for `path`, to redirect requests with another.
pub fn v3_hash(_path: &str) -> Option<String> {
    None
}
