//! Strategic merge patch: a merge patch that knows the keys of lists.
//!
//! Source: the Kubernetes documents on `strategic-merge-patch` and its directives
//! `$patch`, `$retainKeys`, `$setElementOrder` and `$deleteFromPrimitiveList`.

use quorate_proto::status::Status;
use serde_json::{Map, Value};

use super::order;
use crate::schema::{Field, Kind, Patch, ResourceDef, Type, type_for_kind};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// `original` with `patch` merged in by the strategies and keys of `def`'s kind.
///
/// # Errors
/// 400 when the patch is malformed, 415 for kinds without a built-in schema.
pub fn strategic(original: &Value, patch: &Value, def: &ResourceDef) -> Result<Value, Status> {
    strategic_kind(original, patch, def.group, def.version, def.kind)
}

/// As [`strategic`], for a kind that is not a resource of its own, such as `Scale`.
///
/// # Errors
/// As [`strategic`].
pub fn strategic_kind(
    original: &Value,
    patch: &Value,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Value, Status> {
    let Some(own) = type_for_kind(group, version, kind) else {
        return Err(Status::failure(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json",
        ));
    };
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Status::bad_request("invalid JSON document: a strategic merge patch is an object"));
    };
    let merged = merge_map(original.clone(), patch.clone(), Some(own))?;
    Ok(Value::Object(merged))
}

/// Merges an object of type `own`; `None` where the schema ends.
fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    own: Option<&'static Type>,
) -> Result<Map<String, Value>, Status> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(patch),
            "delete" => return Ok(Map::new()),
            "merge" => {}
            other => return Err(Status::bad_request(format!("unknown patch type found: {other}"))),
        },
        Some(_) => return Err(Status::bad_request("unknown patch type found: a directive is a string")),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut original, &patch, &keys)?;
    }
    apply_orders(&mut original, &mut patch, own)?;
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(&mut original, list, &value)?;
            continue;
        }
        if value.is_null() {
            original.remove(&name);
            continue;
        }
        let field = own.and_then(|own| own.field(&name));
        let merged = match (original.remove(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => match inner_type(field) {
                Inner::Replace => drop_directives(Value::Object(new)),
                Inner::Type(own) => Some(Value::Object(merge_map(old, new, own)?)),
            },
            (Some(Value::Array(old)), Value::Array(new)) => {
                Some(Value::Array(merge_field_list(&name, old, new, field)?))
            }
            (_, new) => drop_directives(new),
        };
        if let Some(merged) = merged {
            original.insert(name, merged);
        }
    }
    Ok(original)
}

enum Inner {
    Replace,
    Type(Option<&'static Type>),
}

fn inner_type(field: Option<&'static Field>) -> Inner {
    match field {
        Some(field) if field.patch.replace => Inner::Replace,
        Some(Field { kind: Kind::Object(id), .. }) => Inner::Type(Some(id.get())),
        _ => Inner::Type(None),
    }
}

fn merge_field_list(
    name: &str,
    original: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&'static Field>,
) -> Result<Vec<Value>, Status> {
    match field {
        Some(field) if field.patch.merge => merge_list(name, original, patch, item_type(field), field.patch),
        _ => Ok(patch),
    }
}

fn item_type(field: &Field) -> Option<&'static Type> {
    match field.kind {
        Kind::List(Kind::Object(id)) => Some(id.get()),
        _ => None,
    }
}

fn merge_list(
    name: &str,
    original: Vec<Value>,
    patch: Vec<Value>,
    item: Option<&'static Type>,
    strategy: Patch,
) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let Some(item) = item else {
        let mut merged = original.clone();
        for value in &patch {
            if !merged.contains(value) {
                merged.push(value.clone());
            }
        }
        return Ok(order::enforce(merged, &patch, &original, ""));
    };
    let key = strategy.merge_key;
    if key.is_empty() {
        return Err(Status::bad_request(format!("cannot merge lists without merge key for {}", item.name)));
    }
    let mut merged = original.clone();
    let mut additions = Vec::with_capacity(patch.len());
    let mut replace = false;
    for value in patch {
        let Value::Object(mut entry) = value else {
            return Err(Status::bad_request(format!("invalid JSON document: an item of {name} is not an object")));
        };
        match entry.get(PATCH).and_then(Value::as_str) {
            None | Some("merge") if !entry.contains_key(PATCH) || entry[PATCH] == "merge" => {
                entry.remove(PATCH);
                additions.push(entry);
            }
            Some("delete") => {
                let wanted = merge_key(&entry, key)?.clone();
                merged.retain(|old| old.get(key) != Some(&wanted));
            }
            Some("replace") => {
                replace = true;
                entry.remove(PATCH);
                if !entry.is_empty() {
                    additions.push(entry);
                }
            }
            other => {
                return Err(Status::bad_request(format!(
                    "unknown patch type found: {}",
                    other.unwrap_or("not a string")
                )));
            }
        }
    }
    if replace {
        return Ok(additions.into_iter().map(Value::Object).collect());
    }
    let patched: Vec<Value> = additions.iter().cloned().map(Value::Object).collect();
    for entry in additions {
        let wanted = merge_key(&entry, key)?.clone();
        match merged.iter_mut().find(|old| old.get(key) == Some(&wanted)) {
            Some(Value::Object(old)) => *old = merge_map(std::mem::take(old), entry, Some(item))?,
            _ => merged.extend(drop_directives(Value::Object(entry))),
        }
    }
    Ok(order::enforce(merged, &patched, &original, key))
}

fn merge_key<'a>(entry: &'a Map<String, Value>, key: &str) -> Result<&'a Value, Status> {
    entry.get(key).ok_or_else(|| {
        Status::bad_request(format!("map: {} does not contain declared merge key: {key}", Value::Object(entry.clone())))
    })
}

/// `$setElementOrder/name`: merges the list `name` and orders it as the directive says.
fn apply_orders(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    own: Option<&'static Type>,
) -> Result<(), Status> {
    let directives: Vec<String> = patch.keys().filter(|name| name.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let name = &directive[SET_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(Status::bad_request("$setElementOrder is not a list"));
        };
        let field = own.and_then(|own| own.field(name));
        let key = field.map_or("", |field| field.patch.merge_key);
        let new = match patch.remove(name) {
            None => None,
            Some(Value::Array(new)) => Some(new),
            // The list is removed or becomes something else: its order does not matter.
            Some(other) => {
                patch.insert(name.to_owned(), other);
                continue;
            }
        };
        let old = match original.get(name) {
            Some(Value::Array(old)) => Some(old.clone()),
            _ => None,
        };
        if let Some(new) = &new {
            check_order(name, new, &order, key)?;
        }
        let merged = match (old.clone(), new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(drop_directives).collect(),
            (Some(old), Some(new)) => merge_field_list(name, old, new, field)?,
        };
        let ordered = order::enforce(merged, &order, &old.unwrap_or_default(), key);
        original.insert(name.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

/// Every item of the patch must stand in the order, in the same sequence.
fn check_order(name: &str, patch: &[Value], order: &[Value], key: &str) -> Result<(), Status> {
    let mut rest = order.iter();
    for item in patch.iter().filter(|item| item.get(PATCH).is_none()) {
        if !rest.any(|ordered| order::same(ordered, item, key)) {
            return Err(Status::bad_request(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list of {name}:\n{}\n",
                Value::Array(patch.to_vec()),
                Value::Array(order.to_vec())
            )));
        }
    }
    Ok(())
}

fn delete_from_list(original: &mut Map<String, Value>, name: &str, removed: &Value) -> Result<(), Status> {
    let Value::Array(removed) = removed else {
        return Err(Status::bad_request("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(items)) = original.get_mut(name) {
        items.retain(|item| !removed.contains(item));
    }
    Ok(())
}

fn retain_keys(original: &mut Map<String, Value>, patch: &Map<String, Value>, keys: &Value) -> Result<(), Status> {
    let Value::Array(keys) = keys else {
        return Err(Status::bad_request("invalid patch format of $retainKeys"));
    };
    let retained = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    for name in patch.keys().filter(|name| !name.starts_with('$')) {
        if !patch[name].is_null() && !retained(name) {
            return Err(Status::bad_request("invalid patch format of $retainKeys: a changed field is not retained"));
        }
    }
    original.retain(|name, _| retained(name));
    Ok(())
}

/// What is left of a value that nothing was there to merge with; `None` when it is
/// a deletion.
fn drop_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut fields) => {
            if fields.remove(PATCH).is_some_and(|directive| directive == "delete") {
                return None;
            }
            let kept = fields
                .into_iter()
                .filter(|(name, value)| {
                    !value.is_null()
                        && name != RETAIN_KEYS
                        && !name.starts_with(DELETE_FROM_LIST)
                        && !name.starts_with(SET_ORDER)
                })
                .filter_map(|(name, value)| Some((name, drop_directives(value)?)))
                .collect();
            Some(Value::Object(kept))
        }
        Value::Array(items) => {
            let replaced =
                |item: &Value| item.as_object().is_some_and(|entry| entry.len() == 1 && entry.contains_key(PATCH));
            Some(Value::Array(items.into_iter().filter(|item| !replaced(item)).filter_map(drop_directives).collect()))
        }
        other => Some(other),
    }
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
