//! The table of types: what fields an object has, how lists merge, what is atomic.
//!
//! Static data made by `build.rs` of the crates `k8s-openapi` (fields and their
//! kinds) and `k8s-pb` (markers and field numbers).

include!(concat!(env!("OUT_DIR"), "/types.rs"));

/// An object type, such as `io.k8s.api.core.v1.Container`.
#[derive(Debug)]
pub struct Type {
    pub name: &'static str,
    /// Patches replace such an object as a whole in field ownership.
    pub atomic: bool,
    /// In the order of their names.
    pub fields: &'static [Field],
}

/// Where a type stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeId(u16);

#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    pub list_type: ListType,
    /// What identifies an item of a `ListType::Map`.
    pub list_keys: &'static [&'static str],
    pub atomic: bool,
    pub patch: Patch,
    /// JSON; empty when there is none.
    pub default: &'static str,
    /// Protobuf field numbers from the type's message down to this field; more than
    /// one where JSON inlines a message, none where protobuf lacks the field.
    pub tags: &'static [u32],
}

/// What a value is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    String,
    /// Base64 in JSON.
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Quantity,
    IntOrString,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// An object without a schema here.
    RawObject,
    /// Any JSON.
    Json,
    /// A JSONSchemaProps, or a list of them.
    SchemaOrArray,
    /// A JSONSchemaProps, or a boolean.
    SchemaOrBool,
    /// A JSONSchemaProps, or a list of strings.
    SchemaOrStrings,
    Object(TypeId),
    Map(&'static Kind),
    List(&'static Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    pub merge: bool,
    pub retain_keys: bool,
    pub replace: bool,
    /// Empty when the field is no list of objects.
    pub merge_key: &'static str,
}

impl TypeId {
    pub fn get(self) -> &'static Type {
        &TYPES[usize::from(self.0)]
    }
}

impl Type {
    pub fn id(&'static self) -> TypeId {
        let index = TYPES.binary_search_by(|own| own.name.cmp(self.name)).expect("a static type is in the table");
        TypeId(u16::try_from(index).expect("the table has fewer than 65536 types"))
    }

    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &self.fields[index])
    }
}

/// The type of that name.
pub fn type_named(name: &str) -> Option<&'static Type> {
    TYPES.binary_search_by(|own| own.name.cmp(name)).ok().map(|index| &TYPES[index])
}

/// The type of a built-in kind, whether or not a resource of its own has it.
pub fn type_for_kind(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    type_named(&definition_name(group, version, kind))
}

/// The whole table.
#[cfg(test)]
pub(crate) fn types() -> &'static [Type] {
    &TYPES
}

/// Under which name upstream's OpenAPI defines a kind.
pub fn definition_name(group: &str, version: &str, kind: &str) -> String {
    // These belong to apimachinery, whatever group a request gives them.
    if matches!(kind, "DeleteOptions" | "Status" | "WatchEvent" | "APIGroup" | "APIResourceList") {
        return format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
    }
    match group {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions.k8s.io" => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}")
        }
        "apiregistration.k8s.io" => {
            format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}")
        }
        _ => {
            let short = group.split('.').next().unwrap_or(group);
            format!("io.k8s.api.{short}.{version}.{kind}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::resources;

    #[test]
    fn the_crates_have_lost_nothing() {
        assert_eq!(MESSAGES, 1257, "messages in k8s-pb");
        assert_eq!(EXTENSIONS, 487, "extensions joined");
        assert_eq!(TYPES.len(), 492, "types reached");
    }

    #[test]
    fn every_resource_and_subresource_with_a_body_has_a_type() {
        for def in resources() {
            assert!(type_for_kind(def.group, def.version, def.kind).is_some(), "{}", def.kind);
            for sub in def.subresources.iter().filter(|sub| !sub.kind.ends_with("Options")) {
                assert!(type_for_kind(sub.group, sub.version, sub.kind).is_some(), "{}", sub.kind);
            }
        }
    }

    #[test]
    fn fields_without_field_numbers_are_known() {
        let mut missing = Vec::new();
        for own in &TYPES {
            for field in own.fields {
                if field.tags.is_empty() && !matches!(field.name, "apiVersion" | "kind") {
                    missing.push(format!("{}.{}", own.name, field.name));
                }
            }
        }
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn a_container_s_ports_have_both_keys() {
        let container = type_named("io.k8s.api.core.v1.Container").unwrap();
        let ports = container.field("ports").unwrap();
        assert_eq!((ports.list_type, ports.list_keys), (ListType::Map, &["containerPort", "protocol"][..]));
        assert_eq!((ports.patch.merge, ports.patch.merge_key), (true, "containerPort"));
        let volume = type_named("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(volume.field("hostPath").unwrap().tags, [2, 1], "the source is inlined");
    }
}
