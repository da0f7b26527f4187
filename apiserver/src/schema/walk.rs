//! Walks a value along its type: refuses what does not fit, drops what is unknown,
//! writes the rest as the server writes it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use quorate_proto::quantity::Quantity;
use quorate_proto::status::Status;
use serde_json::{Map, Value};

use super::types::{Field, Kind, Type, type_for_kind, type_named};
use super::{FieldValidation, ResourceDef, Warnings};

/// Most unknown fields that are reported; upstream's limit on strict errors.
const MAX_REPORTED: usize = 100;

/// Checks `value` against the type of `def`'s kind and brings it into canonical form:
/// fields that the type does not know are dropped, amounts and times are written as
/// the server writes them, nulls and empty optional lists and maps are removed.
///
/// # Errors
/// 400 when a field has the wrong type, or under `Strict` when a field is unknown.
pub fn decode(def: &ResourceDef, value: &mut Value, mode: FieldValidation) -> Result<Warnings, Status> {
    decode_kind(def.group, def.version, def.kind, value, &[], mode)
}

/// As [`decode`], for any built-in kind (also `Scale`, `Eviction`, `DeleteOptions`) and
/// with the `duplicates` that parsing found. A kind without a schema is left as it is.
///
/// # Errors
/// As [`decode`], and under `Strict` when there are duplicates.
pub fn decode_kind(
    group: &str,
    version: &str,
    kind: &str,
    value: &mut Value,
    duplicates: &[String],
    mode: FieldValidation,
) -> Result<Warnings, Status> {
    let refuse = |text: &str| {
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {text}"))
    };
    let mut reports: Vec<String> = duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
    if let Some(own) = type_for_kind(group, version, kind) {
        let mut walk = Walk { path: String::new(), fields: Vec::new(), unknown: Vec::new() };
        walk.object(own, value, None).map_err(|error| refuse(&error))?;
        reports.extend(walk.unknown.iter().map(|path| format!("unknown field {path:?}")));
    }
    match mode {
        FieldValidation::Ignore => Ok(Warnings::new()),
        FieldValidation::Warn => Ok(reports),
        FieldValidation::Strict if reports.is_empty() => Ok(reports),
        FieldValidation::Strict => Err(refuse(&format!("strict decoding error: {}", reports.join(", ")))),
    }
}

/// Sets the fields that are absent and for which the types name a default, such as
/// a container port's `protocol`.
pub fn apply_defaults(def: &ResourceDef, value: &mut Value) {
    if let Some(own) = type_for_kind(def.group, def.version, def.kind) {
        default_object(own, value);
    }
}

fn default_object(own: &Type, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for field in own.fields {
        match fields.get_mut(field.name) {
            Some(value) => default_value(field.kind, value),
            None if field.default.is_empty() => {}
            None => {
                let value = serde_json::from_str(field.default).expect("the table's defaults are JSON");
                fields.insert(field.name.to_owned(), value);
            }
        }
    }
}

fn default_value(kind: Kind, value: &mut Value) {
    match (kind, value) {
        (Kind::Object(id), value) => default_object(id.get(), value),
        (Kind::List(Kind::Object(id)), Value::Array(items)) => {
            items.iter_mut().for_each(|item| default_object(id.get(), item));
        }
        (Kind::Map(Kind::Object(id)), Value::Object(entries)) => {
            entries.values_mut().for_each(|entry| default_object(id.get(), entry));
        }
        _ => {}
    }
}

struct Walk {
    /// With list indices and map keys, as strict errors name fields.
    path: String,
    /// The names of fields alone, as Go's decoder names them.
    fields: Vec<&'static str>,
    unknown: Vec<String>,
}

/// The field that a value stands in, for the words of an error.
#[derive(Clone, Copy)]
struct Place {
    owner: &'static Type,
}

type Refusal = String;

impl Walk {
    fn object(&mut self, own: &'static Type, value: &mut Value, place: Option<Place>) -> Result<(), Refusal> {
        let Value::Object(fields) = value else {
            return Err(self.mismatch(value, &go_name(own), place));
        };
        let names: Vec<String> = fields.keys().cloned().collect();
        for name in names {
            let before = self.enter(&name);
            match own.field(&name) {
                None => {
                    if self.unknown.len() < MAX_REPORTED {
                        self.unknown.push(self.path.clone());
                    }
                    fields.remove(&name);
                }
                Some(field) => {
                    let value = fields.get_mut(&name).expect("its name was just listed");
                    self.fields.push(field.name);
                    if value.is_null() || !self.keep(own, field, value)? {
                        fields.remove(&name);
                    }
                    self.fields.pop();
                }
            }
            self.path.truncate(before);
        }
        Ok(())
    }

    /// Walks a field's value; tells whether the field stays.
    fn keep(&mut self, owner: &'static Type, field: &'static Field, value: &mut Value) -> Result<bool, Refusal> {
        self.value(field.kind, value, Place { owner })?;
        // Lists and maps are `omitempty` upstream unless the field is required.
        Ok(match value {
            // An empty list of owners is more than none: it takes the others away.
            Value::Array(items) => field.required || !items.is_empty() || field.name == "managedFields",
            Value::Object(entries) if matches!(field.kind, Kind::Map(_)) => field.required || !entries.is_empty(),
            _ => true,
        })
    }

    fn value(&mut self, kind: Kind, value: &mut Value, place: Place) -> Result<(), Refusal> {
        match kind {
            Kind::String if value.is_string() => Ok(()),
            Kind::Bool if value.is_boolean() => Ok(()),
            Kind::Double if value.is_number() => Ok(()),
            Kind::Int32 if is_integer(value, i64::from(i32::MIN), i64::from(i32::MAX)) => Ok(()),
            Kind::Int64 if is_integer(value, i64::MIN, i64::MAX) => Ok(()),
            Kind::RawObject if value.is_object() => Ok(()),
            Kind::Json => Ok(()),
            Kind::Bytes => self.bytes(value, place),
            Kind::Quantity => self.quantity(value),
            Kind::IntOrString if value.is_string() || is_integer(value, i64::from(i32::MIN), i64::from(i32::MAX)) => {
                Ok(())
            }
            Kind::Time => self.time(value, place, "%Y-%m-%dT%H:%M:%SZ"),
            Kind::MicroTime => self.time(value, place, "%Y-%m-%dT%H:%M:%S.%6fZ"),
            Kind::Object(id) => self.object(id.get(), value, Some(place)),
            Kind::List(inner) => self.list(*inner, value, place),
            Kind::Map(inner) => self.map(*inner, value, place),
            Kind::SchemaOrArray => match value {
                Value::Array(_) => self.list(schema_kind(), value, place),
                _ => self.value(schema_kind(), value, place),
            },
            Kind::SchemaOrBool if value.is_boolean() => Ok(()),
            Kind::SchemaOrBool => self.value(schema_kind(), value, place),
            Kind::SchemaOrStrings => match value {
                Value::Array(_) => self.list(Kind::String, value, place),
                _ => self.value(schema_kind(), value, place),
            },
            _ => Err(self.mismatch(value, &go_type(kind), Some(place))),
        }
    }

    fn list(&mut self, inner: Kind, value: &mut Value, place: Place) -> Result<(), Refusal> {
        let Value::Array(items) = value else {
            return Err(self.mismatch(value, &format!("[]{}", go_type(inner)), Some(place)));
        };
        for (index, item) in items.iter_mut().enumerate() {
            let before = self.path.len();
            write!(self.path, "[{index}]").expect("writing to a string does not fail");
            if item.is_null() {
                *item = zero(inner);
            }
            self.value(inner, item, place)?;
            self.path.truncate(before);
        }
        Ok(())
    }

    fn map(&mut self, inner: Kind, value: &mut Value, place: Place) -> Result<(), Refusal> {
        let Value::Object(entries) = value else {
            return Err(self.mismatch(value, &format!("map[string]{}", go_type(inner)), Some(place)));
        };
        for (name, entry) in entries.iter_mut() {
            let before = self.enter(name);
            if entry.is_null() {
                *entry = zero(inner);
            }
            self.value(inner, entry, place)?;
            self.path.truncate(before);
        }
        Ok(())
    }

    fn quantity(&mut self, value: &mut Value) -> Result<(), Refusal> {
        // Anything else is a text that is no quantity.
        let text = match &*value {
            Value::String(text) => text.trim().to_owned(),
            other => other.to_string(),
        };
        let quantity: Quantity =
            text.parse().map_err(|error: quorate_proto::quantity::ParseQuantityError| error.to_string())?;
        *value = Value::String(quantity.to_string());
        Ok(())
    }

    fn time(&mut self, value: &mut Value, place: Place, format: &str) -> Result<(), Refusal> {
        let Value::String(text) = value else {
            return Err(self.mismatch(value, "string", Some(place)));
        };
        let time: Timestamp = text.parse().map_err(|_| {
            format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"")
        })?;
        *text = time.strftime(format).to_string();
        Ok(())
    }

    fn bytes(&mut self, value: &mut Value, place: Place) -> Result<(), Refusal> {
        let Value::String(text) = value else {
            return Err(self.mismatch(value, "[]uint8", Some(place)));
        };
        // Line breaks inside base64 are what editors and `base64` without -w make.
        if text.contains(['\n', '\r']) {
            text.retain(|letter| !matches!(letter, '\n' | '\r'));
        }
        match STANDARD.decode(text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(offset, _)) => {
                Err(format!("illegal base64 data at input byte {offset}"))
            }
            Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
        }
    }

    /// Appends a field's name; returns where to cut when it is left.
    fn enter(&mut self, name: &str) -> usize {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        before
    }

    /// The words of Go's decoder, which clients' users know.
    fn mismatch(&self, value: &Value, wanted: &str, place: Option<Place>) -> Refusal {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if wanted.starts_with("int") => format!("number {number}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        match place {
            None => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
            Some(place) => {
                let owner = place.owner.name.rsplit('.').next().unwrap_or_default();
                let path = self.fields.join(".");
                format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")
            }
        }
    }
}

fn is_integer(value: &Value, least: i64, most: i64) -> bool {
    value.as_i64().is_some_and(|number| (least..=most).contains(&number))
}

/// What Go leaves where a list or a map holds null.
fn zero(kind: Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes => Value::String(String::new()),
        Kind::Bool => Value::Bool(false),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => Value::from(0),
        Kind::Quantity => Value::from("0"),
        Kind::List(_) => Value::Array(Vec::new()),
        Kind::Json => Value::Null,
        _ => Value::Object(Map::new()),
    }
}

fn schema_kind() -> Kind {
    type_named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .map_or(Kind::RawObject, |own| Kind::Object(own.id()))
}

fn go_type(kind: Kind) -> String {
    match kind {
        Kind::String | Kind::Time | Kind::MicroTime => "string".to_owned(),
        Kind::Bytes => "[]uint8".to_owned(),
        Kind::Bool => "bool".to_owned(),
        Kind::Int32 | Kind::IntOrString => "int32".to_owned(),
        Kind::Int64 => "int64".to_owned(),
        Kind::Double => "float64".to_owned(),
        Kind::Quantity => "resource.Quantity".to_owned(),
        Kind::RawObject | Kind::Json => "map[string]interface {}".to_owned(),
        Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => "v1.JSONSchemaProps".to_owned(),
        Kind::Object(id) => go_name(id.get()),
        Kind::Map(inner) => format!("map[string]{}", go_type(*inner)),
        Kind::List(inner) => format!("[]{}", go_type(*inner)),
    }
}

/// `io.k8s.api.core.v1.PodSpec` → `v1.PodSpec`.
fn go_name(own: &Type) -> String {
    let start = own.name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
    own.name[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::resource;

    fn def(resource_name: &str) -> &'static ResourceDef {
        ["", "apps", "rbac.authorization.k8s.io", "networking.k8s.io", "coordination.k8s.io", "apiextensions.k8s.io"]
            .iter()
            .find_map(|group| resource(group, "v1", resource_name))
            .unwrap()
    }

    #[track_caller]
    fn check(resource: &str, mut value: Value, expected: Value) {
        assert_eq!(decode(def(resource), &mut value, FieldValidation::Strict).unwrap(), Warnings::new());
        assert_eq!(value, expected);
    }

    #[track_caller]
    fn check_refused(resource: &str, mut value: Value, expected: &str) {
        let status = decode(def(resource), &mut value, FieldValidation::Strict).unwrap_err();
        assert_eq!((status.code, status.reason.as_str(), status.message.as_str()), (400, "BadRequest", expected));
    }

    #[test]
    fn values_become_canonical() {
        check(
            "pods",
            json!({"kind": "Pod", "apiVersion": "v1",
                   "metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "annotations": {"x": null}},
                   "spec": {"containers": [{"name": "c", "args": [], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}],
                            "volumes": [{"name": "v", "emptyDir": {}}]},
                   "status": {"startTime": "2024-01-02T05:04:05.9+02:00"}}),
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "annotations": {"x": ""}},
                   "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}],
                            "volumes": [{"name": "v", "emptyDir": {}}]},
                   "status": {"startTime": "2024-01-02T03:04:05Z"}}),
        );
        check(
            "leases",
            json!({"spec": {"renewTime": "2024-01-02T03:04:05.123456Z"}}),
            json!({"spec": {"renewTime": "2024-01-02T03:04:05.123456Z"}}),
        );
        check(
            "services",
            json!({"spec": {"ports": [{"port": 1, "targetPort": "web"}, {"port": 2, "targetPort": 8080}]}}),
            json!({"spec": {"ports": [{"port": 1, "targetPort": "web"}, {"port": 2, "targetPort": 8080}]}}),
        );
        check("secrets", json!({"data": {"a": "aGVs\nbG8="}}), json!({"data": {"a": "aGVsbG8="}}));
    }

    #[test]
    fn schemas_of_custom_resources_may_recurse() {
        let schema = json!({"type": "object", "properties": {"a": {"items": {"type": "string"}, "additionalProperties": false,
                            "enum": ["x", null], "default": {"x": null}}}});
        let value = json!({"spec": {"group": "g", "scope": "Cluster", "names": {"kind": "K", "plural": "ks"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        check("customresourcedefinitions", value.clone(), value);
    }

    #[test]
    fn unknown_fields_follow_the_mode() {
        let value =
            json!({"spec": {"replicaz": 1, "template": {"spec": {"containers": [{"name": "c", "imagee": 1}]}}}});
        check_refused(
            "deployments",
            value.clone(),
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: \
             unknown field \"spec.replicaz\", unknown field \"spec.template.spec.containers[0].imagee\"",
        );
        for (mode, warnings) in [(FieldValidation::Ignore, 0), (FieldValidation::Warn, 2)] {
            let mut value = value.clone();
            assert_eq!(decode(def("deployments"), &mut value, mode).unwrap().len(), warnings);
            assert_eq!(value, json!({"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}));
        }
    }

    #[test]
    fn duplicates_are_reported_like_unknown_fields() {
        let duplicates = ["spec.replicas".to_owned()];
        let mut value = json!({});
        let status =
            decode_kind("apps", "v1", "Deployment", &mut value, &duplicates, FieldValidation::Strict).unwrap_err();
        assert!(status.message.ends_with("strict decoding error: duplicate field \"spec.replicas\""), "{status}");
        let warnings = decode_kind("apps", "v1", "Deployment", &mut value, &duplicates, FieldValidation::Warn).unwrap();
        assert_eq!(warnings, ["duplicate field \"spec.replicas\""]);
    }

    #[test]
    fn wrong_types_are_refused_in_go_s_words() {
        check_refused(
            "deployments",
            json!({"spec": {"replicas": "x"}}),
            "Deployment in version \"v1\" cannot be handled as a Deployment: \
             json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        check_refused(
            "deployments",
            json!({"spec": {"template": {"spec": {"containers": [{"image": 3}]}}}}),
            "Deployment in version \"v1\" cannot be handled as a Deployment: \
             json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.image of type string",
        );
        check_refused(
            "pods",
            json!({"spec": {"containers": {}}}),
            "Pod in version \"v1\" cannot be handled as a Pod: \
             json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        );
        check_refused(
            "pods",
            json!([]),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal array into Go value of type v1.Pod",
        );
        check_refused(
            "pods",
            json!({"spec": {"overhead": {"cpu": "lots"}}}),
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
        check_refused(
            "pods",
            json!({"metadata": {"annotations": {"a.b/c": true}}}),
            "Pod in version \"v1\" cannot be handled as a Pod: \
             json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.annotations of type string",
        );
        check_refused(
            "services",
            json!({"spec": {"ports": [{"targetPort": []}]}}),
            "Service in version \"v1\" cannot be handled as a Service: \
             json: cannot unmarshal array into Go struct field ServicePort.spec.ports.targetPort of type int32",
        );
        check_refused(
            "secrets",
            json!({"data": {"a": "a*"}}),
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 1",
        );
        check_refused(
            "services",
            json!({"spec": {"ports": [{"port": 99_999_999_999_i64}]}}),
            "Service in version \"v1\" cannot be handled as a Service: json: cannot unmarshal number 99999999999 \
             into Go struct field ServicePort.spec.ports.port of type int32",
        );
    }

    #[test]
    fn defaults_of_the_table_are_set_where_their_parent_is() {
        let mut value =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}}}});
        apply_defaults(def("deployments"), &mut value);
        assert_eq!(
            value["spec"]["template"]["spec"]["containers"][0]["ports"][0],
            json!({"containerPort": 80, "protocol": "TCP"})
        );
        let once = value.clone();
        apply_defaults(def("deployments"), &mut value);
        assert_eq!(value, once, "defaults are idempotent");
    }

    #[test]
    fn kinds_without_a_schema_are_left_alone() {
        let mut value = json!({"spec": {"anything": null}});
        decode_kind("example.com", "v1", "Widget", &mut value, &[], FieldValidation::Strict).unwrap();
        assert_eq!(value, json!({"spec": {"anything": null}}));
    }
}
