//! `componentstatuses`: a report on the parts of the control plane, deprecated since 1.19.

use std::sync::Arc;

use http::StatusCode;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::json;

use super::render;
use crate::http::{Answer, ApiRequest};
use crate::registry::{Listed, Registry};
use crate::schema::resource;

const DEPRECATED: &str = "v1 ComponentStatus is deprecated in v1.19+";

/// The store is asked; the other parts live in this process and answer with it.
pub(super) async fn handle(registry: &Registry, request: &ApiRequest) -> Answer {
    let def = resource("", "v1", "componentstatuses").ok_or_else(super::unknown_path)?;
    let store = registry.cache().catch_up().await.map(|_| ());
    let mut components = Vec::new();
    for name in ["controller-manager", "etcd-0", "scheduler"] {
        let health = if name == "etcd-0" { store.as_ref().err() } else { None };
        let (status, message) = health.map_or(("True", "ok".to_owned()), |error| ("False", error.message.clone()));
        let component = json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": status, "message": message}]});
        components.push(Arc::new(Object::from_value(&component, 0).map_err(Status::internal)?));
    }
    let mut response = match request.info.verb.as_str() {
        "list" => {
            let listed = Listed {
                items: components,
                revision: registry.cache().position(),
                continue_token: String::new(),
                remaining: None,
            };
            render::list(def, &listed, request)?
        }
        "get" => {
            let name = &request.info.name;
            let found = components.iter().find(|component| component.meta().name == *name);
            let component = found.ok_or_else(|| Status::not_found("", def.resource, name))?;
            render::object(def, StatusCode::OK, component, request)?
        }
        verb => return Err(crate::registry::status::not_supported(def, verb)),
    };
    if let Some(warning) = super::warning_header(DEPRECATED) {
        response.headers_mut().append(http::header::WARNING, warning);
    }
    Ok(response)
}
