//! Puts one document of version 3 together: paths made of the resource table, schemas copied as text.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::definitions::Definitions;
use super::operations;
use crate::schema::{ResourceDef, Verb, definition_name};

const REFERENCE: &str = "\"#/components/schemas/";

/// What the table says about some resources.
pub(super) struct Contents {
    pub(super) paths: BTreeMap<String, Value>,
    /// Schemas of lists, which no crate has.
    made: BTreeMap<String, String>,
    /// What kind a definition is.
    kinds: BTreeMap<String, Value>,
}

impl Contents {
    pub(super) fn of(definitions: &Definitions, defs: &[&ResourceDef]) -> Self {
        let mut paths = BTreeMap::new();
        let mut made = BTreeMap::new();
        let mut kinds = BTreeMap::new();
        for def in defs {
            operations::add_paths(def, definitions, &mut paths);
            kinds.insert(definition_name(def.group, def.version, def.kind), gvk(def.group, def.version, def.kind));
            for sub in def.subresources {
                kinds.insert(definition_name(sub.group, sub.version, sub.kind), gvk(sub.group, sub.version, sub.kind));
            }
            if def.has_verb(Verb::List) {
                made.insert(definition_name(def.group, def.version, def.list_kind), list_schema(def).to_string());
            }
        }
        kinds.insert(definition_name("", "v1", "Status"), gvk("", "v1", "Status"));
        Self { paths, made, kinds }
    }

    /// The kind that objects of a definition are of, if it is one.
    pub(super) fn kind(&self, definition: &str) -> Option<&Value> {
        self.kinds.get(definition)
    }

    /// The schemas that `paths` and, in turn, those schemas refer to.
    pub(super) fn schemas<'a>(&'a self, definitions: &'a Definitions, paths: &str) -> BTreeMap<&'a str, &'a str> {
        let mut wanted: Vec<String> = references(paths).map(str::to_owned).collect();
        let mut seen = BTreeSet::new();
        let mut schemas = BTreeMap::new();
        while let Some(name) = wanted.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let found = match self.made.get_key_value(&name) {
                Some((name, schema)) => Some((name.as_str(), schema.as_str())),
                None => definitions.entry(&name),
            };
            let Some((name, schema)) = found else {
                panic!("the table refers to {name}, which has no schema");
            };
            wanted.extend(references(schema).map(str::to_owned));
            schemas.insert(name, schema);
        }
        schemas
    }
}

/// The document of one group and version, as JSON.
pub(super) fn render(definitions: &Definitions, defs: &[&ResourceDef]) -> Vec<u8> {
    let contents = Contents::of(definitions, defs);
    let paths = json!(contents.paths).to_string();
    let schemas = contents.schemas(definitions, &paths);
    let mut out = Vec::with_capacity(paths.len() + 512 * 1024);
    out.extend_from_slice(br#"{"openapi":"3.0.0","info":{"title":"Kubernetes","version":"v1.35.0"},"paths":"#);
    out.extend_from_slice(paths.as_bytes());
    out.extend_from_slice(br#","components":{"schemas":{"#);
    for (index, (name, schema)) in schemas.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(format!("{}:", json!(name)).as_bytes());
        match contents.kind(name) {
            None => out.extend_from_slice(schema.as_bytes()),
            Some(kind) => {
                let extension = format!("{{\"x-kubernetes-group-version-kind\":[{kind}],");
                out.extend_from_slice(extension.as_bytes());
                // A schema is never an empty object: it has at least a description.
                out.extend_from_slice(&schema.as_bytes()[1..]);
            }
        }
    }
    out.extend_from_slice(
        br#"},"securitySchemes":{"BearerToken":{"description":"Bearer Token authentication","in":"header","name":"authorization","type":"apiKey"}}}}"#,
    );
    out
}

fn references(text: &str) -> impl Iterator<Item = &str> {
    text.split(REFERENCE).skip(1).filter_map(|rest| rest.split('"').next())
}

fn list_schema(def: &ResourceDef) -> Value {
    let item = operations::reference(&definition_name(def.group, def.version, def.kind));
    json!({
        "description": format!("{} is a list of {} objects.", def.list_kind, def.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of the schema that this object follows."},
            "kind": {"type": "string", "description": "The kind that this object is, in CamelCase."},
            "metadata": {
                "description": "Standard list metadata.",
                "allOf": [operations::reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")],
            },
            "items": {"type": "array", "items": item, "description": "The objects of the list."},
        },
        "x-kubernetes-group-version-kind": [gvk(def.group, def.version, def.list_kind)],
    })
}

pub(super) fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}
