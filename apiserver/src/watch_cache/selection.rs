//! Which objects a list or a watch is about, and what they look like to field selectors.

use std::borrow::Cow;

use quorate_proto::object::Object;
use quorate_proto::selector::{FieldSelector, LabelSelector};
use quorate_proto::status::Status;
use serde_json::Value;

use crate::schema::ResourceDef;

/// A namespace, a label selector and a field selector; all must agree.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Empty: all namespaces.
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    /// Reads selectors as a query string carries them.
    ///
    /// # Errors
    /// `BadRequest` when one does not parse, or names a field that cannot be selected by.
    pub fn parse(def: &ResourceDef, namespace: Option<&str>, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = LabelSelector::parse(labels).map_err(|error| Status::bad_request(error.to_string()))?;
        let fields = FieldSelector::parse(fields).map_err(|error| Status::bad_request(error.to_string()))?;
        for requirement in fields.requirements() {
            check_field(def, &requirement.path)?;
        }
        Ok(Self { namespace: namespace.unwrap_or_default().to_owned(), labels, fields })
    }

    /// Whether labels and fields are unrestricted, whatever the namespace.
    pub fn is_unselective(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || object.meta().namespace == self.namespace)
            && (self.labels.is_empty() || self.labels.matches(&object.meta().labels))
            && (self.fields.is_empty() || self.fields.matches(|path| field(object, path)))
    }
}

/// Fields of a kind, beside name and namespace, that selectors may name.
// Source: API reference, "Field Selectors", and each kind's conversion in upstream.
const SELECTABLE: [(&str, &str, &[&str]); 10] = [
    (
        "",
        "pods",
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
    ),
    (
        "",
        "events",
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
    ),
    (
        "events.k8s.io",
        "events",
        &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
    ),
    ("", "nodes", &["spec.unschedulable"]),
    ("", "namespaces", &["status.phase", "name"]),
    ("", "secrets", &["type"]),
    ("", "services", &["spec.clusterIP", "spec.type"]),
    ("", "replicationcontrollers", &["status.replicas"]),
    ("apps", "replicasets", &["status.replicas"]),
    ("batch", "jobs", &["status.successful"]),
];
const SELECTABLE_MORE: [(&str, &str, &[&str]); 2] = [
    ("certificates.k8s.io", "certificatesigningrequests", &["spec.signerName"]),
    ("resource.k8s.io", "resourceslices", &["spec.nodeName", "spec.driver"]),
];

fn check_field(def: &ResourceDef, path: &str) -> Result<(), Status> {
    if path == "metadata.name" || (path == "metadata.namespace" && def.namespaced) {
        return Ok(());
    }
    let row = SELECTABLE
        .iter()
        .chain(&SELECTABLE_MORE)
        .find(|(group, resource, _)| *group == def.group && *resource == def.resource);
    match row {
        Some((_, _, fields)) if fields.contains(&path) => Ok(()),
        Some(_) => Err(Status::bad_request(format!("field label not supported: {path}"))),
        None => Err(Status::bad_request(format!(
            "{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ))),
    }
}

/// An object's value of a selectable field, as text; absent is empty.
fn field<'a>(object: &'a Object, path: &str) -> Cow<'a, str> {
    let meta = object.meta();
    match path {
        "metadata.name" | "name" => return Cow::Borrowed(&meta.name),
        "metadata.namespace" => return Cow::Borrowed(&meta.namespace),
        "status.podIPs" => return at(object.value(), "status.podIP"),
        "source" => return at(object.value(), "source.component"),
        _ => {}
    }
    let text = at(object.value(), path);
    // Absent numbers and booleans compare as their zero value, as typed servers do.
    match path {
        "spec.unschedulable" | "spec.hostNetwork" if text.is_empty() => Cow::Borrowed("false"),
        "status.replicas" | "status.successful" if text.is_empty() => Cow::Borrowed("0"),
        _ => text,
    }
}

fn at<'a>(value: &'a Value, path: &str) -> Cow<'a, str> {
    let found = path.split('.').try_fold(value, |value, name| value.get(name));
    match found {
        Some(Value::String(text)) => Cow::Borrowed(text),
        Some(Value::Bool(flag)) => Cow::Owned(flag.to_string()),
        Some(Value::Number(number)) => Cow::Owned(number.to_string()),
        _ => Cow::Borrowed(""),
    }
}
