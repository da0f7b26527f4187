//! What a write is, as far as ownership asks: of what, through what, by whom.

use std::sync::LazyLock;

use serde_json::Value;

use super::compare::Comparison;
use super::managers::{Manager, Operation};
use super::set::Set;
use super::shape::Shape;
use crate::schema::{ResourceDef, Type, type_for_kind};

/// The manager of who gives no name.
const UNKNOWN: &str = "unknown";

/// Fields that nobody owns: they name the object, or the server alone sets them.
// Source: apimachinery, `stripMetaManager`.
static NOBODYS: LazyLock<Set> = LazyLock::new(|| {
    Set::of(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// One write. Objects are in the version of `def`.
pub(crate) struct Scope<'a> {
    pub(crate) def: &'static ResourceDef,
    /// The type of `def`'s kind.
    pub(crate) own: &'static Type,
    /// Empty for the object itself.
    pub(crate) subresource: &'a str,
    /// The name that the client gave itself; may be empty.
    pub(crate) manager: &'a str,
    /// RFC 3339 in whole seconds.
    pub(crate) now: String,
    /// Fields of the object that such a write does not reach.
    pub(crate) unreached: &'static [&'static str],
    /// Makes an object in another version of the same resource; `None` when that
    /// version is not served.
    pub(crate) convert: fn(&'static ResourceDef, &Value, &str) -> Option<(&'static ResourceDef, Value)>,
}

impl Scope<'_> {
    pub(super) fn shape(&self) -> Shape {
        Shape::Object(self.own)
    }

    /// Who writes.
    pub(super) fn manager(&self, operation: Operation) -> Manager {
        self.named(if self.manager.is_empty() { UNKNOWN } else { self.manager }, operation)
    }

    /// As [`Scope::manager`], under another name.
    pub(super) fn named(&self, name: &str, operation: Operation) -> Manager {
        Manager {
            name: name.to_owned(),
            operation,
            api_version: self.def.api_version(),
            subresource: self.subresource.to_owned(),
        }
    }

    /// Leaves of `fields` what such a write can make somebody own.
    pub(super) fn narrow(&self, fields: &mut Set) {
        fields.remove(nobodys());
        for name in self.unreached {
            fields.remove_trees(&Set::of(&[&[*name]]));
        }
    }

    /// How two versions of the object differ, in what somebody can own.
    pub(super) fn compare(&self, old: &Value, new: &Value) -> Comparison {
        self.compare_as(self.own, old, new)
    }

    /// As [`Scope::compare`], seen in another version; `None` when it is not served.
    pub(super) fn compare_at(&self, api_version: &str, old: &Value, new: &Value) -> Option<Comparison> {
        let (def, old) = (self.convert)(self.def, old, api_version)?;
        let (_, new) = (self.convert)(self.def, new, api_version)?;
        let own = type_for_kind(def.group, def.version, def.kind)?;
        Some(self.compare_as(own, &old, &new))
    }

    fn compare_as(&self, own: &'static Type, old: &Value, new: &Value) -> Comparison {
        let mut comparison = Comparison::of(old, new, Shape::Object(own));
        for fields in comparison.sets_mut() {
            self.narrow(fields);
        }
        comparison
    }
}

/// Fields that nobody owns.
pub(super) fn nobodys() -> &'static Set {
    &NOBODYS
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::schema::resource;

    /// A write of `group`'s v1 `resource` by `manager`, in that minute.
    pub(in super::super) fn scope<'a>(group: &str, name: &str, manager: &'a str, minute: u8) -> Scope<'a> {
        let def = resource(group, "v1", name).unwrap();
        Scope {
            def,
            own: type_for_kind(def.group, def.version, def.kind).unwrap(),
            subresource: "",
            manager,
            now: format!("2024-01-01T00:{minute:02}:00Z"),
            unreached: if def.subresource("status").is_some() { &["status"] } else { &[] },
            convert: |_, _, _| None,
        }
    }
}
