//! How writes enter `metadata.managedFields`.

use serde_json::Value;

use super::context::RequestContext;
use super::create::now;
use super::strategy::{child, set, strategy};
use super::{Target, convert};
use crate::apply::{self, Scope};
use crate::schema::type_for_kind;

const MANAGED_FIELDS: &str = "managedFields";

/// Who owns what a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Who writes.
    Track,
    /// The object comes with its managedFields: it was applied.
    Given,
    /// Nobody: the server itself does it.
    Keep,
}

/// What ownership has to know of a write; `None` for kinds without a schema.
pub(super) fn scope<'a>(context: &'a RequestContext, target: Target<'a>) -> Option<Scope<'a>> {
    let def = target.def;
    let own = type_for_kind(def.group, def.version, def.kind)?;
    let unreached: &'static [&'static str] = match target.subresource {
        "" if def.subresource("status").is_some() => &["status"],
        "status" if strategy(def).status_writes_metadata() => &["spec"],
        "status" => &["metadata", "spec"],
        _ => &[],
    };
    let (subresource, manager) = (target.subresource, context.field_manager.as_str());
    Some(Scope { def, own, subresource, manager, now: now(), unreached, convert: convert::to_version })
}

/// Records who owns a new object; `given` are the managedFields that it came with.
pub(super) fn record_new(
    context: &RequestContext,
    target: Target<'_>,
    ownership: Ownership,
    object: &mut Value,
    given: Option<Value>,
) {
    let managed = match ownership {
        Ownership::Track => scope(context, target).and_then(|scope| apply::created(&scope, object)),
        Ownership::Given => given,
        Ownership::Keep => None,
    };
    if let Some(managed) = managed {
        set(child(object, "metadata"), MANAGED_FIELDS, managed);
    }
}

/// Records who owns what a change of `old` into `object` changes; `given` are the
/// managedFields that came with it.
pub(super) fn record(
    context: &RequestContext,
    target: Target<'_>,
    ownership: Ownership,
    object: &mut Value,
    old: &Value,
    given: Option<Value>,
) {
    let kept = || old["metadata"].get(MANAGED_FIELDS).cloned();
    let managed = match ownership {
        Ownership::Track => match scope(context, target) {
            Some(scope) => apply::updated(&scope, old, object, given.as_ref()),
            None => kept(),
        },
        Ownership::Given => given,
        Ownership::Keep => kept(),
    };
    if let Some(managed) = managed {
        set(child(object, "metadata"), MANAGED_FIELDS, managed);
    }
}

/// Takes back new times of owners in a write that changes nothing else.
pub(super) fn settle(object: &mut Value, old: &Value) {
    let (new, kept) = (object["metadata"].get(MANAGED_FIELDS), old["metadata"].get(MANAGED_FIELDS));
    let (Some(new), Some(kept)) = (new, kept) else { return };
    if new != kept && is_same_otherwise(object, old) && apply::same_owners(new, kept) {
        set(child(object, "metadata"), MANAGED_FIELDS, kept.clone());
    }
}

fn is_same_otherwise(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    let same = |name: &str, value: &Value| {
        old.get(name)
            .is_some_and(|before| if name == "metadata" { rest(value).eq(rest(before)) } else { value == before })
    };
    new.len() == old.len() && new.iter().all(|(name, value)| same(name, value))
}

/// Metadata without what differs between any two versions.
fn rest(metadata: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = metadata.as_object().into_iter().flatten();
    fields.filter(|(name, _)| !matches!(name.as_str(), MANAGED_FIELDS | "resourceVersion"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_write_of_nothing_leaves_times_alone() {
        let object = |version: Option<&str>, minute: u8, data: &str| {
            let mut object = json!({"metadata": {"name": "m", "managedFields": [
                {"manager": "x", "operation": "Update", "apiVersion": "v1", "time": format!("2024-01-01T00:{minute:02}:00Z"),
                 "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}}]}, "data": {"a": data}});
            if let Some(version) = version {
                object["metadata"]["resourceVersion"] = version.into();
            }
            object
        };
        let old = object(Some("7"), 1, "1");
        let mut new = object(None, 2, "1");
        settle(&mut new, &old);
        assert_eq!(new, object(None, 1, "1"));
        let mut changed = object(None, 2, "2");
        settle(&mut changed, &old);
        assert_eq!(changed, object(None, 2, "2"));
    }
}
