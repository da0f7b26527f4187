//! The paths of a resource and what can be done there.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::definitions::Definitions;
use super::document::gvk;
use crate::schema::{ResourceDef, SubresourceDef, Verb, definition_name};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// What an operation is about.
struct Subject {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    /// `NamespacedPodStatus`: the end of operation ids.
    id: String,
    /// Empty when the kind has no schema, as `PodExecOptions`.
    definition: String,
}

/// Adds the paths of `def` and its subresources.
pub(super) fn add_paths(def: &ResourceDef, definitions: &Definitions, paths: &mut BTreeMap<String, Value>) {
    let prefix = if def.group.is_empty() {
        format!("/api/{}", def.version)
    } else {
        format!("/apis/{}/{}", def.group, def.version)
    };
    let scope = if def.namespaced { "Namespaced" } else { "" };
    let subject = Subject {
        group: def.group,
        version: def.version,
        kind: def.kind,
        id: format!("{scope}{}", def.kind),
        definition: definition_name(def.group, def.version, def.kind),
    };
    let collection = if def.namespaced {
        format!("{prefix}/namespaces/{{namespace}}/{}", def.resource)
    } else {
        format!("{prefix}/{}", def.resource)
    };
    let list = definition_name(def.group, def.version, def.list_kind);
    if def.namespaced && def.has_verb(Verb::List) {
        let everywhere = Subject { id: format!("{}ForAllNamespaces", def.kind), ..subject.copy() };
        paths.insert(
            format!("{prefix}/{}", def.resource),
            item(&[("get", list_operation(&everywhere, &list))], false, false),
        );
    }
    let mut operations = Vec::new();
    if def.has_verb(Verb::List) {
        operations.push(("get", list_operation(&subject, &list)));
    }
    if def.has_verb(Verb::Create) {
        operations.push(("post", body_operation(&subject, "create", "post")));
    }
    if def.has_verb(Verb::DeleteCollection) {
        operations.push(("delete", delete_operation(&subject, "deleteCollection", "deletecollection")));
    }
    paths.insert(collection.clone(), item(&operations, def.namespaced, false));
    let one = format!("{collection}/{{name}}");
    let operations = single_operations(&subject, def.verbs.iter().copied().filter(|verb| *verb != Verb::Create));
    if !operations.is_empty() {
        paths.insert(one.clone(), item(&operations, def.namespaced, true));
    }
    for sub in def.subresources {
        let operations = single_operations(&sub_subject(def, sub, scope, definitions), sub.verbs.iter().copied());
        paths.insert(format!("{one}/{}", sub.name), item(&operations, def.namespaced, true));
    }
}

pub(super) fn reference(definition: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{definition}")})
}

fn sub_subject(def: &ResourceDef, sub: &SubresourceDef, scope: &str, definitions: &Definitions) -> Subject {
    let definition = definition_name(sub.group, sub.version, sub.kind);
    let definition = if definitions.entry(&definition).is_some() { definition } else { String::new() };
    let (first, rest) = sub.name.split_at(1);
    let id = format!("{scope}{}{}{rest}", def.kind, first.to_uppercase());
    Subject { group: sub.group, version: sub.version, kind: sub.kind, id, definition }
}

fn single_operations(subject: &Subject, verbs: impl Iterator<Item = Verb>) -> Vec<(&'static str, Value)> {
    verbs
        .filter_map(|verb| match verb {
            Verb::Get => Some(("get", plain_operation(subject, "read", "get"))),
            Verb::Create => Some(("post", body_operation(subject, "create", "post"))),
            Verb::Update => Some(("put", body_operation(subject, "replace", "put"))),
            Verb::Patch => Some(("patch", patch_operation(subject))),
            Verb::Delete => Some(("delete", delete_operation(subject, "delete", "delete"))),
            Verb::List | Verb::Watch | Verb::DeleteCollection => None,
        })
        .collect()
}

/// A path with its operations and the parameters that stand in it.
fn item(operations: &[(&str, Value)], namespaced: bool, named: bool) -> Value {
    let mut item: Map<String, Value> =
        operations.iter().map(|(method, operation)| ((*method).to_owned(), operation.clone())).collect();
    let mut parameters = vec![query("pretty", "string", "If 'true', the answer is laid out for people.")];
    let in_path = |name: &str, description: &str| {
        json!({"name": name, "in": "path", "description": description, "required": true,
               "schema": {"type": "string", "uniqueItems": true}})
    };
    if namespaced {
        parameters.push(in_path("namespace", "The namespace that the object is in."));
    }
    if named {
        parameters.push(in_path("name", "The name of the object."));
    }
    item.insert("parameters".to_owned(), json!(parameters));
    Value::Object(item)
}

fn plain_operation(subject: &Subject, verb: &str, action: &str) -> Value {
    let parameters: &[Value] = &[];
    operation(subject, verb, action, parameters, response(&subject.definition))
}

fn list_operation(subject: &Subject, list: &str) -> Value {
    let parameters = [
        query("allowWatchBookmarks", "boolean", "Whether a watch sends bookmarks."),
        query("continue", "string", "Where an earlier, limited list ended."),
        query("fieldSelector", "string", "Which objects, by their fields."),
        query("labelSelector", "string", "Which objects, by their labels."),
        query("limit", "integer", "At most that many objects; the rest follows by `continue`."),
        query("resourceVersion", "string", "How recent the answer has to be."),
        query("resourceVersionMatch", "string", "How resourceVersion is meant."),
        query("sendInitialEvents", "boolean", "Whether a watch begins with the objects that there are."),
        query("timeoutSeconds", "integer", "After how long the request ends."),
        query("watch", "boolean", "Whether changes are sent as they happen."),
    ];
    operation(subject, "list", "list", &parameters, response(list))
}

fn body_operation(subject: &Subject, verb: &str, action: &str) -> Value {
    let mut value = operation(subject, verb, action, &write_parameters(), response(&subject.definition));
    if !subject.definition.is_empty() {
        value["requestBody"] =
            json!({"content": {"*/*": {"schema": reference(&subject.definition)}}, "required": true});
    }
    value
}

fn patch_operation(subject: &Subject) -> Value {
    let mut parameters = write_parameters();
    parameters.push(query("force", "boolean", "Of server-side apply: takes over fields that others own."));
    let mut value = operation(subject, "patch", "patch", &parameters, response(&subject.definition));
    let body = json!({"schema": reference(PATCH)});
    let types = [
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    let content: Map<String, Value> = types.iter().map(|media| ((*media).to_owned(), body.clone())).collect();
    value["requestBody"] = json!({"content": content, "required": true});
    value
}

fn delete_operation(subject: &Subject, verb: &str, action: &str) -> Value {
    let parameters = [
        query("dryRun", "string", "`All` goes through every stage but stores nothing."),
        query("gracePeriodSeconds", "integer", "How long the object has to end."),
        query("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
        query("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground."),
    ];
    let mut value = operation(subject, verb, action, &parameters, response(STATUS));
    value["requestBody"] = json!({"content": {"*/*": {"schema": reference(DELETE_OPTIONS)}}});
    value
}

fn operation(subject: &Subject, verb: &str, action: &str, parameters: &[Value], responses: Value) -> Value {
    let group =
        if subject.group.is_empty() { "core" } else { subject.group.split('.').next().unwrap_or(subject.group) };
    let tag = format!("{group}_{}", subject.version);
    let mut value = json!({
        "operationId": format!("{verb}{}{}{}", capital(group), capital(subject.version), subject.id),
        "tags": [tag],
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(subject.group, subject.version, subject.kind),
    });
    if !parameters.is_empty() {
        value["parameters"] = json!(parameters);
    }
    value
}

fn response(definition: &str) -> Value {
    let schema = if definition.is_empty() { json!({"type": "string"}) } else { reference(definition) };
    json!({"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}, "401": {"description": "Unauthorized"}})
}

fn write_parameters() -> Vec<Value> {
    vec![
        query("dryRun", "string", "`All` goes through every stage but stores nothing."),
        query("fieldManager", "string", "The name under which the change is recorded."),
        query("fieldValidation", "string", "What happens to unknown and duplicate fields: Ignore, Warn or Strict."),
    ]
}

fn query(name: &str, of: &str, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": {"type": of, "uniqueItems": true}})
}

fn capital(text: &str) -> String {
    let (first, rest) = text.split_at(text.len().min(1));
    format!("{}{rest}", first.to_uppercase())
}

impl Subject {
    fn copy(&self) -> Self {
        Self {
            group: self.group,
            version: self.version,
            kind: self.kind,
            id: self.id.clone(),
            definition: self.definition.clone(),
        }
    }
}
