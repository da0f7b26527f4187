//! What dashboards know about requests, under upstream's names.

use std::time::Duration;

use http::{Method, StatusCode};

use super::{Query, RequestInfo};
use crate::schema;

/// Counts a request as being worked on while it lives.
pub(super) struct InFlight(Option<&'static str>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(kind) = self.0 {
            metrics::gauge!("apiserver_current_inflight_requests", "request_kind" => kind).decrement(1.0);
        }
    }
}

pub(super) fn in_flight(info: &RequestInfo, long_running: bool) -> InFlight {
    if long_running {
        return InFlight(None);
    }
    let kind = if matches!(info.verb.as_str(), "get" | "list" | "watch") { "readOnly" } else { "mutating" };
    metrics::gauge!("apiserver_current_inflight_requests", "request_kind" => kind).increment(1.0);
    InFlight(Some(kind))
}

pub(super) fn panicked() {
    metrics::counter!("apiserver_request_panics_total").increment(1);
    tracing::error!("a request panicked");
}

pub(super) fn answered(info: &RequestInfo, method: &Method, query: &Query, code: StatusCode, took: Duration) {
    // Names that clients invent must not become label values.
    let known = schema::resource(&info.api_group, &info.api_version, &info.resource);
    let (group, version, resource) = known.map_or(("", "", ""), |def| (def.group, def.version, def.resource));
    let subresource = known.and_then(|def| def.subresource(&info.subresource)).map_or("", |sub| sub.name);
    let dry_run = if query.get("dryRun") == Some("All") { "All" } else { "" };
    let verb = verb(info, method);
    let labels = [
        ("verb", verb.to_owned()),
        ("group", group.to_owned()),
        ("version", version.to_owned()),
        ("resource", resource.to_owned()),
        ("subresource", subresource.to_owned()),
        ("scope", scope(info).to_owned()),
        ("component", "apiserver".to_owned()),
        ("dry_run", dry_run.to_owned()),
    ];
    if verb != "WATCH" && verb != "CONNECT" {
        metrics::histogram!("apiserver_request_duration_seconds", &labels).record(took.as_secs_f64());
    }
    let mut labels = labels.to_vec();
    labels.push(("code", code.as_u16().to_string()));
    metrics::counter!("apiserver_request_total", &labels).increment(1);
}

fn verb(info: &RequestInfo, method: &Method) -> &'static str {
    if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") && info.is_resource_request {
        return "CONNECT";
    }
    match info.verb.as_str() {
        "list" => "LIST",
        "watch" => "WATCH",
        "deletecollection" => "DELETECOLLECTION",
        _ => match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            Method::PATCH => "PATCH",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        },
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    if !info.is_resource_request {
        ""
    } else if !info.name.is_empty() && !info.name_from_selector {
        "resource"
    } else if !info.namespace.is_empty() {
        "namespace"
    } else {
        "cluster"
    }
}
