//! The answer to an apply that would change what others own.

use quorate_proto::status::{Status, StatusCause, StatusDetails};

use super::element::print;
use super::managers::Manager;
use super::set::Set;

/// What one manager owns of what an apply would change.
pub(super) struct Conflict {
    pub(super) manager: Manager,
    pub(super) fields: Set,
}

/// Upstream's 409 with a cause for every field.
pub(super) fn refusal(mut conflicts: Vec<Conflict>) -> Status {
    conflicts.sort_by(|a, b| a.manager.cmp(&b.manager));
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for Conflict { manager, fields } in &conflicts {
        lines.push(format!("conflicts with {manager}:"));
        for path in fields.paths() {
            let field = print(&path);
            lines.push(format!("- {field}"));
            let message = format!("conflict with {manager}");
            causes.push(StatusCause { reason: "FieldManagerConflict".to_owned(), message, field });
        }
    }
    let message = match causes.as_slice() {
        [cause] => format!("Apply failed with 1 conflict: {}: {}", cause.message, cause.field),
        causes => format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n")),
    };
    Status::failure(409, "Conflict", message).with_details(StatusDetails { causes, ..StatusDetails::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::managers::Operation;
    use super::*;

    fn conflict(name: &str, operation: Operation, fields: Value) -> Conflict {
        let manager =
            Manager { name: name.to_owned(), operation, api_version: "apps/v1".to_owned(), subresource: String::new() };
        Conflict { manager, fields: Set::from_fields(&fields).unwrap() }
    }

    #[test]
    fn conflicts_have_upstreams_words() {
        let one = refusal(vec![conflict(
            "kubectl-client-side-apply",
            Operation::Update,
            json!({"f:spec": {"f:replicas": {}}}),
        )]);
        assert_eq!((one.code, one.reason.as_str()), (409, "Conflict"));
        assert_eq!(
            one.message,
            "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
        );
        let cause = &one.details.unwrap().causes[0];
        assert_eq!(
            (cause.reason.as_str(), cause.message.as_str(), cause.field.as_str()),
            ("FieldManagerConflict", "conflict with \"kubectl-client-side-apply\" using apps/v1", ".spec.replicas")
        );
        let image =
            json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}}}}}}});
        let two = refusal(vec![
            conflict("b", Operation::Update, json!({"f:spec": {"f:replicas": {}}})),
            conflict("a", Operation::Apply, image),
        ]);
        assert_eq!(
            two.message,
            "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.template.spec.containers[name=\"a\"].image\n\
             conflicts with \"b\" using apps/v1:\n- .spec.replicas"
        );
    }
}
