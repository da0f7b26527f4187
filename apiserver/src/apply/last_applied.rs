//! Objects that kubectl applied itself before it let the server do so.

use serde_json::Value;

use super::check::check;
use super::conflict::Conflict;
use super::fields::field_set;
use super::scope::Scope;
use super::set::Set;
use crate::schema::{FieldValidation, decode};

/// The only manager for whom the annotation counts: who does not want that takes another name.
const KUBECTL: &str = "kubectl";

/// What kubectl applied last by itself, as JSON.
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// All annotations of an object together. Source: apimachinery, `TotalAnnotationSizeLimitB`.
const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;

/// Leaves the conflicts over what kubectl did not itself apply before, and nobody has
/// changed since.
pub(super) fn settle(scope: &Scope<'_>, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
    if scope.manager != KUBECTL || conflicts.is_empty() {
        return conflicts;
    }
    let Some(allowed) = allowed(scope, live) else { return conflicts };
    let narrow = |mut conflict: Conflict| {
        conflict.fields.remove(&allowed);
        (!conflict.fields.is_empty()).then_some(conflict)
    };
    conflicts.into_iter().filter_map(narrow).collect()
}

/// What the annotation sets and the object still has.
fn allowed(scope: &Scope<'_>, live: &Value) -> Option<Set> {
    let text = live["metadata"]["annotations"][ANNOTATION].as_str()?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last["apiVersion"] != scope.def.api_version() {
        return None;
    }
    check(&last, scope.own).ok()?;
    let mut fields = field_set(&last, scope.shape());
    let mut canonical = last;
    decode(scope.def, &mut canonical, FieldValidation::Ignore).ok()?;
    let differences = scope.compare(&canonical, live);
    fields.remove(&differences.written());
    fields.remove(&differences.removed);
    Some(fields)
}

/// Keeps the annotation, where there is one, in step with what kubectl applies now.
pub(super) fn follow(scope: &Scope<'_>, object: &mut Value, config: &Value) {
    let has_one = object["metadata"]["annotations"][ANNOTATION].as_str().is_some_and(|text| !text.is_empty());
    if scope.manager != KUBECTL || !has_one {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    annotations.insert(ANNOTATION.to_owned(), Value::String(format!("{config}\n")));
    let size: usize = annotations.iter().map(|(name, value)| name.len() + value.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_LIMIT_BYTES {
        annotations.remove(ANNOTATION);
    }
}
