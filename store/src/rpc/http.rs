//! What monitoring asks over plain HTTP: `/health`, `/version`, `/metrics`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::node::{SERVER_VERSION, Store};

pub(super) fn router(store: &Store) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(live))
        .route("/readyz", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
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

async fn metrics(State(store): State<Store>) -> Response {
    match store.metrics_text() {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        None => (StatusCode::NOT_FOUND, "this process keeps no metrics\n").into_response(),
    }
}
