//! What is wrong with an applied configuration before it meets the object.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde_json::Value;

use super::shape::Shape;
use crate::schema::{Field, Kind, Type};

/// # Errors
/// In upstream's words: fields that the schema does not declare, list items without
/// their keys or with the same ones. Nobody could own them.
pub(super) fn check(config: &Value, own: &'static Type) -> Result<(), String> {
    let mut walk = Walk { path: String::new(), errors: Vec::new() };
    walk.object(own, config);
    match walk.errors.as_slice() {
        [] => Ok(()),
        [error] => Err(error.clone()),
        errors => Err(format!("errors:\n  {}", errors.join("\n  "))),
    }
}

struct Walk {
    path: String,
    errors: Vec<String>,
}

impl Walk {
    fn object(&mut self, own: &'static Type, value: &Value) {
        for (name, value) in value.as_object().into_iter().flatten() {
            self.below(format_args!(".{name}"), |walk| match own.field(name) {
                Some(field) => walk.field(field, value),
                None => walk.error("field not declared in schema"),
            });
        }
    }

    fn field(&mut self, field: &'static Field, value: &Value) {
        if let (Shape::Set | Shape::Keyed(..), Value::Array(items)) = (Shape::of_field(field), value) {
            self.items(Shape::of_field(field), items);
        } else {
            self.value(field.kind, value);
        }
    }

    fn items(&mut self, shape: Shape, items: &[Value]) {
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            match shape.element(item) {
                Err(error) => self.error(format_args!("element {index}: {error}")),
                Ok(element) => {
                    let printed = element.to_string();
                    if !seen.insert(element) {
                        self.error(format_args!("duplicate entries for key {printed}"));
                    }
                    if let Shape::Keyed(own, _) = shape {
                        self.below(printed, |walk| walk.object(own, item));
                    }
                }
            }
        }
    }

    fn value(&mut self, kind: Kind, value: &Value) {
        match (kind, value) {
            (Kind::Object(id), _) => self.object(id.get(), value),
            (Kind::List(inner), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.below(format_args!("[{index}]"), |walk| walk.value(*inner, item));
                }
            }
            (Kind::Map(inner), Value::Object(entries)) => {
                for (name, entry) in entries {
                    self.below(format_args!(".{name}"), |walk| walk.value(*inner, entry));
                }
            }
            _ => {}
        }
    }

    /// Goes one step down, and back.
    fn below(&mut self, step: impl Display, look: impl FnOnce(&mut Self)) {
        let before = self.path.len();
        self.path.push_str(&step.to_string());
        look(self);
        self.path.truncate(before);
    }

    fn error(&mut self, what: impl Display) {
        self.errors.push(format!("{}: {what}", self.path));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::type_named;

    #[track_caller]
    fn refused(config: Value, expected: &str) {
        let own = type_named("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(check(&config, own).unwrap_err(), expected);
    }

    #[test]
    fn what_nobody_could_own_is_refused() {
        refused(json!({"spec": {"hostname_": "x"}}), ".spec.hostname_: field not declared in schema");
        refused(
            json!({"specs": {}, "spec": {"containers": [{"name": "c", "imag": "x"}]}}),
            "errors:\n  .spec.containers[name=\"c\"].imag: field not declared in schema\n  .specs: field not declared in schema",
        );
        refused(
            json!({"spec": {"containers": [{"image": "x"}]}}),
            ".spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)",
        );
        refused(
            json!({"spec": {"containers": [{"name": "c", "env": [{"name": "A"}, {"name": "A"}]}]}}),
            ".spec.containers[name=\"c\"].env: duplicate entries for key [name=\"A\"]",
        );
        refused(
            json!({"spec": {"tolerations": [{"keys": "x"}]}}),
            ".spec.tolerations[0].keys: field not declared in schema",
        );
    }

    #[test]
    fn what_the_schema_declares_passes() {
        let own = type_named("io.k8s.api.core.v1.Pod").unwrap();
        let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}],
                "resources": {"limits": {"cpu": 1}}}], "volumes": [{"name": "v", "emptyDir": {}}]}});
        assert_eq!(check(&config, own), Ok(()));
    }
}
