//! Server-side apply: an object as its appliers together want it.

use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::check::check;
use super::compare::Comparison;
use super::conflict::{Conflict, refusal};
use super::fields::field_set;
use super::last_applied;
use super::managers::{Entry, Managers, Operation};
use super::merge::merge;
use super::remove::remove;
use super::scope::{Scope, nobodys};
use super::set::Set;
use super::shape::Shape;
use super::update::release;
use crate::schema::{FieldValidation, decode};

/// Who owns what was there before anybody applied, if nobody had recorded it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// `live`, or a new object, with `config` applied to it, its managedFields included.
/// What the manager applied before and leaves out now is gone unless others own it.
///
/// # Errors
/// 409 when others own what would change and `force` is not set; 400 and 500 for a
/// configuration that does not fit the schema, as upstream.
pub(crate) fn applied(scope: &Scope<'_>, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
    check(config, scope.own).map_err(|error| malformed(scope, config, &error))?;
    decode(scope.def, &mut config.clone(), FieldValidation::Ignore)?;
    let shape = scope.shape();
    let old = live.map_or_else(|| json!({}), without_owners);
    let mut managers = owners(scope, live, &old)?;
    let manager = scope.manager(Operation::Apply);
    let last = managers.take(&manager);
    let mut fields = field_set(config, shape);

    let mut new = merge(&old, config, shape);
    decode(scope.def, &mut new, FieldValidation::Ignore)?;
    if let Some(last) = &last
        && let Some(pruned) = prune(&new, &last.fields, &fields, &managers, shape)
    {
        new = pruned;
        decode(scope.def, &mut new, FieldValidation::Ignore)?;
    }
    scope.narrow(&mut fields);

    let changes = scope.compare(&old, &new);
    if !force {
        let conflicts = last_applied::settle(scope, &old, conflicts(scope, &managers, &old, &new, &changes));
        if !conflicts.is_empty() {
            return Err(refusal(conflicts));
        }
    }
    release(&mut managers, scope, &old, &new, &changes);
    let time = match last {
        Some(last)
            if changes.is_empty() && last.fields == fields && last.manager.api_version == manager.api_version =>
        {
            last.time
        }
        _ => scope.now.clone(),
    };
    managers.entries.push(Entry { manager, time, fields });
    last_applied::follow(scope, &mut new, config);
    if let Some(managed) = managers.encode() {
        new["metadata"]["managedFields"] = managed;
    }
    Ok(new)
}

/// Who owns the fields of the object as it is.
fn owners(scope: &Scope<'_>, live: Option<&Value>, old: &Value) -> Result<Managers, Status> {
    let Some(live) = live else { return Ok(Managers::default()) };
    let mut managers = match live["metadata"].get("managedFields") {
        Some(managed) => Managers::decode(managed)
            .map_err(|error| Status::failure(500, "", format!("failed to decode managed fields: {error}")))?,
        None => Managers::default(),
    };
    if managers.is_empty() {
        let fields = scope.compare(&json!({}), old).written();
        managers.give(scope.named(BEFORE_FIRST_APPLY, Operation::Update), fields, &scope.now);
    }
    Ok(managers)
}

fn without_owners(live: &Value) -> Value {
    let mut object = live.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// `merged` without what was owned at the last apply, is left out now, and is owned by
/// nobody else; `None` when there is nothing of that kind.
fn prune(merged: &Value, last: &Set, fields: &Set, others: &Managers, shape: Shape) -> Option<Value> {
    let mut left_out = last.clone();
    left_out.remove(fields);
    if left_out.is_empty() {
        return None;
    }
    let last = last.with_parents(shape);
    let mut owned = others.all();
    owned.add(fields);
    owned.add(nobodys());
    let owned = owned.with_parents(shape);
    let before = field_set(merged, shape).with_parents(shape);
    let lost = |rest: &Value| {
        let mut lost = before.clone();
        lost.remove(&field_set(rest, shape).with_parents(shape));
        lost
    };
    // Without everything of last time; then with what somebody owns back in; then with
    // what nobody ever owned back in.
    let mut gone = lost(&remove(merged, &last, shape));
    gone.remove(&owned);
    let gone = lost(&remove(merged, &gone, shape)).intersection(&last);
    Some(remove(merged, &gone, shape))
}

fn conflicts(scope: &Scope<'_>, managers: &Managers, old: &Value, new: &Value, changes: &Comparison) -> Vec<Conflict> {
    let here = scope.def.api_version();
    let conflict = |entry: &Entry| {
        let written = if entry.manager.api_version == here {
            changes.written()
        } else {
            scope.compare_at(&entry.manager.api_version, old, new)?.written()
        };
        let fields = entry.fields.intersection(&written);
        (!fields.is_empty()).then(|| Conflict { manager: entry.manager.clone(), fields })
    };
    managers.entries.iter().filter_map(conflict).collect()
}

fn malformed(scope: &Scope<'_>, config: &Value, error: &str) -> Status {
    let text = |name: &str| config["metadata"][name].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let def = scope.def;
    Status::failure(
        500,
        "",
        format!(
            "failed to create typed patch object ({namespace}/{name}; {}/{}, Kind={}): {error}",
            def.group, def.version, def.kind
        ),
    )
}

#[cfg(test)]
#[path = "applied_tests.rs"]
mod tests;
