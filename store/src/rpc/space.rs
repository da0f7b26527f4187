//! Where the space has gone, which etcd cannot say.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::admit_http;
use crate::node::Store;

/// How many segments of its path make up a key's prefix, unless the caller says.
const SPACE_DEPTH: usize = 2;

#[derive(Deserialize)]
pub(super) struct SpaceQuery {
    depth: Option<usize>,
}

/// `?depth=2`: the space of the keys by the first segments of their paths, largest first.
/// For admins, once users count: prefixes tell about keys.
pub(super) async fn space(State(store): State<Store>, Query(query): Query<SpaceQuery>, headers: HeaderMap) -> Response {
    if let Err(error) = admit_http(&store, &headers).admin().await {
        return (StatusCode::FORBIDDEN, Json(json!({ "error": error.to_string() }))).into_response();
    }
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
