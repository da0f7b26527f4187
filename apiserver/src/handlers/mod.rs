//! From a request to a verb of the registry, and from its result to bytes.
//!
//! Bodies are decoded once; answers are joined from the bytes that the watch cache holds.

mod list;

use quorate_proto::status::Status;

use crate::http::{Answer, ApiRequest};
use crate::registry::Registry;
use crate::schema::resource;

/// Does what `request` asks for.
///
/// # Errors
/// Every refusal and failure, as the client is to see it.
pub async fn handle(registry: &Registry, request: ApiRequest) -> Answer {
    let info = &request.info;
    let Some(def) = resource(&info.api_group, &info.api_version, &info.resource) else {
        return Err(unknown_path());
    };
    match info.verb.as_str() {
        "list" => list::list(registry, def, &request).await,
        verb => Err(Status::failure(405, "MethodNotAllowed", format!("{verb} is not supported on {}", def.group_resource()))),
    }
}

/// Upstream's answer to a path that names nothing.
fn unknown_path() -> Status {
    Status::failure(404, "NotFound", "the server could not find the requested resource")
}
