//! Who writes, as the query or the client's name says.

use http::header;
use quorate_proto::status::Status;

use super::APPLY;
use crate::http::ApiRequest;
use crate::http::negotiate::MediaType;
use crate::registry::validation::{Errors, MANAGER_LIMIT_BYTES, check_manager};

/// The name under which a write is recorded: `fieldManager`, else what stands before the
/// first slash of the user agent.
///
/// # Errors
/// 422 for names that are too long or not printable, and where `fieldManager` or `force`
/// do not go with the sort of patch.
pub(super) fn field_manager(request: &ApiRequest) -> Result<String, Status> {
    let given = request.query.text("fieldManager");
    let options = match request.info.verb.as_str() {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        _ => return Ok(given.to_owned()),
    };
    let mut errors = Errors::default();
    if request.info.verb == "patch" {
        if !is_apply(request) && request.query.get("force").is_some() {
            errors.forbidden("force", "may not be specified for non-apply patch");
        }
        if is_apply(request) && given.is_empty() {
            errors.required("fieldManager", "is required for apply patch");
        }
    }
    check_manager(given, "fieldManager", &mut errors);
    let causes = errors.into_causes();
    if !causes.is_empty() {
        return Err(Status::invalid("meta.k8s.io", options, "", causes));
    }
    if !given.is_empty() {
        return Ok(given.to_owned());
    }
    let agent = request.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(of_agent(agent))
}

/// Whether the request is a server-side apply.
pub(super) fn is_apply(request: &ApiRequest) -> bool {
    let content_type = request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|text| MediaType::parse(text).essence == APPLY)
}

fn of_agent(agent: &str) -> String {
    let name = agent.split('/').next().unwrap_or_default();
    let mut manager = String::new();
    for letter in name.chars().filter(|letter| !letter.is_control()) {
        if manager.len() + letter.len_utf8() > MANAGER_LIMIT_BYTES {
            break;
        }
        manager.push(letter);
    }
    manager
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_called_by_its_agent() {
        assert_eq!(of_agent("kubectl/v1.35.0 (linux/amd64) kubernetes/abc"), "kubectl");
        assert_eq!(of_agent(""), "");
        assert_eq!(of_agent(&"a".repeat(200)).len(), MANAGER_LIMIT_BYTES);
    }
}
