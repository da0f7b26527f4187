//! What is wrong with an object, in upstream's words, and the rules every kind shares.
//!
//! Source: apimachinery's `util/validation` and `api/validation`: clients and tests match
//! on these texts.

use std::fmt::Display;

use quorate_proto::status::{Status, StatusCause};
use serde_json::Value;

use crate::schema::ResourceDef;

/// Collects everything that is wrong, each with its field.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    causes: Vec<StatusCause>,
}

impl Errors {
    fn push(&mut self, reason: &str, field: &str, message: String) {
        self.causes.push(StatusCause { reason: reason.to_owned(), message, field: field.to_owned() });
    }

    pub(crate) fn required(&mut self, field: &str, detail: &str) {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        self.push("FieldValueRequired", field, message);
    }

    pub(crate) fn invalid(&mut self, field: &str, value: &Value, detail: impl Display) {
        self.push("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"));
    }

    pub(crate) fn forbidden(&mut self, field: &str, detail: impl Display) {
        self.push("FieldValueForbidden", field, format!("Forbidden: {detail}"));
    }

    pub(crate) fn not_supported(&mut self, field: &str, value: &Value, supported: &[&str]) {
        let quoted: Vec<String> = supported.iter().map(|text| format!("{text:?}")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", quoted.join(", "));
        self.push("FieldValueNotSupported", field, message);
    }

    pub(crate) fn duplicate(&mut self, field: &str, value: &Value) {
        self.push("FieldValueDuplicate", field, format!("Duplicate value: {value}"));
    }

    /// `value` names something that is not there.
    pub(crate) fn not_found(&mut self, field: &str, value: &Value) {
        self.push("FieldValueNotFound", field, format!("Not found: {value}"));
    }

    pub(crate) fn too_long(&mut self, field: &str, limit: usize) {
        self.push("FieldValueTooLong", field, format!("Too long: may not be more than {limit} bytes"));
    }

    /// `text`, when present, must be one of `supported`.
    pub(crate) fn one_of(&mut self, field: &str, value: &Value, supported: &[&str]) {
        if value.as_str().is_none_or(|text| !supported.contains(&text)) && !value.is_null() {
            self.not_supported(field, value, supported);
        }
    }

    /// `value`, when present, must not be negative.
    pub(crate) fn non_negative(&mut self, field: &str, value: &Value) {
        if value.as_i64().is_some_and(|number| number < 0) {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }

    /// `new` must be what `old` is.
    pub(crate) fn immutable(&mut self, field: &str, new: &Value, old: &Value) {
        if new != old {
            self.invalid(field, new, "field is immutable");
        }
    }

    /// What was wrong.
    pub(crate) fn into_causes(self) -> Vec<StatusCause> {
        self.causes
    }

    /// `Ok` when nothing was wrong.
    pub(crate) fn finish(self, def: &ResourceDef, name: &str) -> Result<(), Status> {
        if self.causes.is_empty() { Ok(()) } else { Err(Status::invalid(def.group, def.kind, name, self.causes)) }
    }

    #[cfg(test)]
    pub(crate) fn texts(&self) -> Vec<String> {
        self.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }
}

/// Which names objects of a kind may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameRule {
    Subdomain,
    Label,
    /// A label that begins with a letter.
    Label1035,
    /// Anything that can stand in a path.
    PathSegment,
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Source: apimachinery, `FieldManagerMaxLength` and `MaxSubresourceNameLength`.
pub(crate) const MANAGER_LIMIT_BYTES: usize = 128;
const SUBRESOURCE_LIMIT_BYTES: usize = 256;

/// All annotations of an object together. Source: apimachinery, `TotalAnnotationSizeLimitB`.
const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;

impl NameRule {
    /// What is wrong with `name`; empty when nothing is.
    pub(crate) fn check(self, name: &str) -> Vec<String> {
        let is_lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_label = |text: &str| {
            let bytes = text.as_bytes();
            bytes.first().is_some_and(|byte| is_lower(*byte))
                && bytes.last().is_some_and(|byte| is_lower(*byte))
                && bytes.iter().all(|byte| is_lower(*byte) || *byte == b'-')
        };
        let (limit, fits, text) = match self {
            Self::Subdomain => (253, name.split('.').all(is_label), SUBDOMAIN),
            Self::Label => (63, is_label(name), LABEL),
            Self::Label1035 => (63, is_label(name) && name.as_bytes()[0].is_ascii_lowercase(), LABEL_1035),
            Self::PathSegment => return check_path_segment(name),
        };
        let mut wrong = Vec::new();
        if name.len() > limit {
            wrong.push(format!("must be no more than {limit} characters"));
        }
        if !fits {
            wrong.push(text.to_owned());
        }
        wrong
    }
}

fn check_path_segment(name: &str) -> Vec<String> {
    if matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].iter().filter(|part| name.contains(**part)).map(|part| format!("may not contain '{part}'")).collect()
}

/// What is wrong with a label key, an annotation key, a finalizer's name.
pub(crate) fn check_qualified_name(key: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                &NAME_PART["name part ".len()..]
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(NameRule::Subdomain.check(prefix).into_iter().map(|text| format!("prefix part {text}")));
            }
            name
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push("name part must be no more than 63 characters".to_owned());
    }
    if !is_name_part(name) {
        wrong.push(NAME_PART.to_owned());
    }
    wrong
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Checks a map of labels at `field`.
pub(crate) fn check_labels(labels: &Value, field: &str, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for wrong in check_qualified_name(key) {
            errors.invalid(field, &Value::from(key.as_str()), wrong);
        }
        let text = value.as_str().unwrap_or_default();
        if text.len() > 63 {
            errors.invalid(field, value, "must be no more than 63 characters");
        }
        if !text.is_empty() && !is_name_part(text) {
            errors.invalid(field, value, LABEL_VALUE);
        }
    }
}

/// Checks metadata as every kind's must be.
pub(crate) fn check_metadata(object: &Value, rule: NameRule, errors: &mut Errors) {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        for wrong in rule.check(name) {
            errors.invalid("metadata.name", &metadata["name"], wrong);
        }
    }
    check_labels(&metadata["labels"], "metadata.labels", errors);
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        for wrong in check_qualified_name(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", &Value::from(key.as_str()), wrong);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT_BYTES {
        errors.too_long("metadata.annotations", ANNOTATIONS_LIMIT_BYTES);
    }
    check_owners(&metadata["ownerReferences"], errors);
    check_managers(&metadata["managedFields"], errors);
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        for wrong in check_qualified_name(finalizer.as_str().unwrap_or_default()) {
            errors.invalid("metadata.finalizers", finalizer, wrong);
        }
    }
}

/// Names of managers are bounded, and printable.
fn check_managers(managers: &Value, errors: &mut Errors) {
    for (index, entry) in managers.as_array().into_iter().flatten().enumerate() {
        let field = format!("metadata.managedFields[{index}]");
        check_manager(entry["manager"].as_str().unwrap_or_default(), &format!("{field}.manager"), errors);
        if entry["subresource"].as_str().is_some_and(|name| name.len() > SUBRESOURCE_LIMIT_BYTES) {
            errors.too_long(&format!("{field}.subresource"), SUBRESOURCE_LIMIT_BYTES);
        }
    }
}

/// The rule for one who writes, as `fieldManager` names him.
pub(crate) fn check_manager(name: &str, field: &str, errors: &mut Errors) {
    if name.len() > MANAGER_LIMIT_BYTES {
        errors.too_long(field, MANAGER_LIMIT_BYTES);
    }
    for (at, letter) in name.char_indices().filter(|(_, letter)| letter.is_control()) {
        let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(letter));
        errors.invalid(field, &Value::from(name), detail);
    }
}

fn check_owners(owners: &Value, errors: &mut Errors) {
    let mut controllers = 0;
    for (index, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let field = format!("metadata.ownerReferences[{index}]");
        let missing = |name: &str| owner[name].as_str().is_none_or(str::is_empty);
        for name in ["apiVersion", "kind", "name", "uid"] {
            if missing(name) {
                errors.invalid(&format!("{field}.{name}"), &Value::from(""), format_args!("{name} must not be empty"));
            }
        }
        if owner["controller"] == true {
            controllers += 1;
        }
    }
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            owners,
            "Only one reference can have Controller set to true. Found \"true\" in references for more than one owner",
        );
    }
}

/// Checks what may not change about metadata. `new` has the fields that the server keeps.
pub(crate) fn check_metadata_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    if old["deletionTimestamp"].is_null() {
        return;
    }
    let before = old["finalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let added: Vec<String> = new["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finalizer| !before.contains(finalizer))
        .map(ToString::to_string)
        .collect();
    if !added.is_empty() {
        errors.forbidden(
            "metadata.finalizers",
            format_args!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(object: Value, expected: &[&str]) {
        let mut errors = Errors::default();
        check_metadata(&object, NameRule::Subdomain, &mut errors);
        let texts = errors.texts();
        assert_eq!(texts.len(), expected.len(), "{texts:?}");
        for (text, start) in texts.iter().zip(expected) {
            assert!(text.starts_with(start), "{text}");
        }
    }

    #[test]
    fn metadata_is_judged_in_upstreams_words() {
        check(json!({"metadata": {"name": "web-1.example", "labels": {"a.b/c": "D_1", "x": ""}}}), &[]);
        check(json!({"metadata": {}}), &["metadata.name: Required value: name or generateName is required"]);
        check(
            json!({"metadata": {"name": "Web"}}),
            &["metadata.name: Invalid value: \"Web\": a lowercase RFC 1123 subdomain must consist of"],
        );
        check(
            json!({"metadata": {"name": "a", "labels": {"-x": "ok", "y": "no way"}}}),
            &[
                "metadata.labels: Invalid value: \"-x\": name part must consist of",
                "metadata.labels: Invalid value: \"no way\": a valid label must be an empty string",
            ],
        );
        check(
            json!({"metadata": {"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}}),
            &["metadata.ownerReferences[0].uid: Invalid value: \"\": uid must not be empty"],
        );
        check(json!({"metadata": {"name": "a".repeat(254)}}), &["metadata.name: Invalid value: \"aaaa"]);
    }

    #[test]
    fn a_terminating_object_takes_no_new_finalizers() {
        let mut errors = Errors::default();
        let old = json!({"metadata": {"deletionTimestamp": "x", "finalizers": ["a/b"]}});
        check_metadata_update(&json!({"metadata": {"finalizers": ["a/b", "c/d"]}}), &old, &mut errors);
        assert!(errors.texts()[0].ends_with("found new finalizers []string{\"c/d\"}"));
    }
}
