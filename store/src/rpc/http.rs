//! What monitoring asks over plain HTTP: `/health`, `/version`, `/metrics`; and where the
//! space has gone, which etcd cannot say.

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use crate::node::{SERVER_VERSION, Store};

pub(super) fn router(store: &Store) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(live))
        .route("/readyz", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/quorate/v1/space", get(space))
        .with_state(store.clone())
}

/// Healthy is who can answer a linearizable read.
async fn health(State(store): State<Store>) -> Response {
    let (status, body) = match store.read_index().await {
        Ok(_) => (StatusCode::OK, json!({ "health": "true", "reason": "" })),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "health": "false", "reason": error.to_string() })),
    };
    (status, Json(body)).into_response()
}

async fn live() -> &'static str {
    "ok"
}

async fn version() -> Response {
    Json(json!({ "etcdserver": SERVER_VERSION, "etcdcluster": SERVER_VERSION })).into_response()
}

/// How many segments of its path make up a key's prefix, unless the caller says.
const SPACE_DEPTH: usize = 2;

#[derive(Deserialize)]
struct SpaceQuery {
    depth: Option<usize>,
}

/// `?depth=2`: the space of the keys by the first segments of their paths, largest first.
async fn space(State(store): State<Store>, Query(query): Query<SpaceQuery>) -> Response {
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

async fn metrics(State(store): State<Store>) -> Response {
    match store.metrics_text() {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        None => (StatusCode::NOT_FOUND, "this process keeps no metrics\n").into_response(),
    }
}
