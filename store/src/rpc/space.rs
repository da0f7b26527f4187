//! Where the space has gone, which etcd cannot say.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::node::Store;

/// How many segments of its path make up a key's prefix, unless the caller says.
const SPACE_DEPTH: usize = 2;

#[derive(Deserialize)]
pub(super) struct SpaceQuery {
    depth: Option<usize>,
}

/// `?depth=2`: the space of the keys by the first segments of their paths, largest first.
pub(super) async fn space(State(store): State<Store>, Query(query): Query<SpaceQuery>) -> Response {
    let depth = query.depth.unwrap_or(SPACE_DEPTH);
    match store.space(depth).await {
        Ok(space) => Json(json!({
            "depth": depth,
            "revision": store.revision(),
            "totalBytes": space.total_bytes,
            "otherBytes": space.other_bytes,
            "complete": space.complete,
            "prefixes": space.prefixes.iter().map(|(prefix, bytes)| json!({
                "prefix": String::from_utf8_lossy(prefix),
                "bytes": bytes,
            })).collect::<Vec<_>>(),
        }))
        .into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error.to_string() }))).into_response(),
    }
}
