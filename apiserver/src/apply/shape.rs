//! How the fields of a type are owned: one by one, by key, or as a whole.

use serde_json::{Map, Value};

use super::element::Element;
use crate::schema::{Field, Kind, ListType, Type};

/// What stands in a place of an object, as far as ownership asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Owned as a whole: a scalar, or an atomic list, map or object.
    Whole,
    Object(&'static Type),
    Map(&'static Kind),
    /// A list of scalars, each owned by itself.
    Set,
    /// A list of items told apart by these of their fields.
    Keyed(&'static Type, &'static [&'static str]),
}

impl Shape {
    pub(super) fn of_field(field: &'static Field) -> Self {
        match (field.kind, field.list_type) {
            _ if field.atomic => Self::Whole,
            (Kind::List(_), ListType::Set) => Self::Set,
            (Kind::List(Kind::Object(id)), ListType::Map) => Self::Keyed(id.get(), field.list_keys),
            (kind, _) => Self::of_kind(kind),
        }
    }

    fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Object(id) if !id.get().atomic => Self::Object(id.get()),
            Kind::Map(inner) => Self::Map(inner),
            _ => Self::Whole,
        }
    }

    /// The shape of a field of an object, or of an entry of a map.
    pub(super) fn child(self, name: &str) -> Self {
        match self {
            Self::Object(own) => own.field(name).map_or(Self::Whole, Self::of_field),
            Self::Map(inner) => Self::of_kind(*inner),
            Self::Whole | Self::Set | Self::Keyed(..) => Self::Whole,
        }
    }

    /// The shape of an item of a list.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Keyed(own, _) if !own.atomic => Self::Object(own),
            _ => Self::Whole,
        }
    }

    /// Whether the schema names such a field; entries of maps have no names there.
    pub(super) fn names(self, name: &str) -> bool {
        matches!(self, Self::Object(own) if own.field(name).is_some())
    }

    /// Whether a field is there although it is not written. Upstream's objects are Go
    /// structs: in them a `spec` always is, and nobody adds or removes it as such.
    pub(super) fn is_implied(self, name: &str) -> bool {
        let Self::Object(own) = self else { return false };
        own.field(name).is_some_and(|field| match field.kind {
            Kind::Object(id) => is_embedded(id.get()),
            Kind::List(_) | Kind::Map(_) => field.required,
            _ => false,
        })
    }

    /// By what an item of this list is told from the others.
    ///
    /// # Errors
    /// In upstream's words, when the item lacks what it is told apart by.
    pub(super) fn element(self, item: &Value) -> Result<Element, String> {
        match (self, item) {
            (Self::Keyed(own, names), Value::Object(fields)) => keys(own, names, fields).map(Element::keys),
            (Self::Keyed(..), Value::Null) => Err("associative list with keys may not have a null element".to_owned()),
            (Self::Keyed(..), _) => Err("associative list with keys may not have non-map elements".to_owned()),
            (_, Value::Object(_)) => Err("associative list without keys has an element that's a map type".to_owned()),
            (_, Value::Array(_)) => Err("not supported: associative list with lists as elements".to_owned()),
            (_, Value::Null) => Err("associative list without keys has an element that's an explicit null".to_owned()),
            (_, scalar) => Ok(Element::value(scalar)),
        }
    }
}

/// The keys of an item, with the schema's defaults for those that it leaves out.
fn keys(own: &Type, names: &[&str], fields: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut keys = Map::new();
    for name in names {
        let field = own.field(name);
        let default = field.map_or("", |field| field.default);
        if let Some(value) = fields.get(*name) {
            keys.insert((*name).to_owned(), value.clone());
        } else if !default.is_empty() {
            let value = serde_json::from_str(default).expect("the table's defaults are JSON");
            keys.insert((*name).to_owned(), value);
        } else if names.len() == 1 || field.is_none_or(|field| field.required) {
            return Err(format!(
                "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
            ));
        }
    }
    Ok(keys)
}

/// Types that upstream's structs hold by value. Nothing but the dots in what
/// managedFields show depends on it.
fn is_embedded(own: &Type) -> bool {
    let name = own.name.rsplit('.').next().unwrap_or_default();
    name.ends_with("Spec")
        || name.ends_with("Status")
        || name.ends_with("Strategy")
        || matches!(
            name,
            "ObjectMeta"
                | "CustomResourceDefinitionNames"
                | "DaemonEndpoint"
                | "NodeDaemonEndpoints"
                | "NodeSystemInfo"
                | "VolumeResourceRequirements"
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::type_named;

    fn at(path: &[&str]) -> Shape {
        let root = Shape::Object(type_named("io.k8s.api.core.v1.Pod").unwrap());
        path.iter().fold(root, |shape, name| if *name == "[]" { shape.item() } else { shape.child(name) })
    }

    #[test]
    fn the_schema_says_how_fields_are_owned() {
        assert!(matches!(at(&["spec", "containers"]), Shape::Keyed(_, ["name"])));
        assert!(matches!(at(&["spec", "containers", "[]", "env"]), Shape::Keyed(_, ["name"])));
        assert!(matches!(at(&["spec", "containers", "[]", "args"]), Shape::Whole), "an atomic list");
        assert!(matches!(at(&["spec", "nodeSelector"]), Shape::Whole), "an atomic map");
        assert!(matches!(at(&["metadata", "labels"]), Shape::Map(_)));
        assert!(matches!(at(&["metadata", "labels", "app"]), Shape::Whole), "a scalar");
        assert!(matches!(at(&["metadata", "finalizers"]), Shape::Set));
        assert!(matches!(at(&["metadata", "ownerReferences", "[]"]), Shape::Whole), "an atomic object");
        assert!(matches!(at(&["spec", "tolerations"]), Shape::Whole));
    }

    #[test]
    fn items_are_told_apart_by_their_keys() {
        let ports = at(&["spec", "containers", "[]", "ports"]);
        let text = |item: Value| ports.element(&item).map(|element| element.as_str().to_owned());
        assert_eq!(text(json!({"containerPort": 80})).unwrap(), r#"k:{"containerPort":80,"protocol":"TCP"}"#);
        assert_eq!(
            text(json!({"containerPort": 80, "protocol": "UDP"})).unwrap(),
            r#"k:{"containerPort":80,"protocol":"UDP"}"#
        );
        assert_eq!(
            text(json!({"name": "web"})).unwrap_err(),
            "associative list with keys has an element that omits key field \"containerPort\" (and doesn't have default value)"
        );
        assert_eq!(at(&["metadata", "finalizers"]).element(&json!("x/y")).unwrap().as_str(), r#"v:"x/y""#);
    }
}
