//! Joins the JSON schemas with the markers and the field numbers, name by name.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use crate::markers::{Markers, Message, key, normalise};

/// One type of the table; `fields` are in the order of their names.
pub(crate) struct Type {
    pub(crate) name: String,
    pub(crate) atomic: bool,
    pub(crate) fields: Vec<Field>,
}

pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    pub(crate) list_type: String,
    pub(crate) list_keys: Vec<String>,
    /// `atomic`, `granular` or empty.
    pub(crate) map_type: String,
    pub(crate) patch_strategy: String,
    pub(crate) merge_key: String,
    /// JSON; empty when there is none.
    pub(crate) default: String,
    /// Field numbers from the type's message down to the field: more than one
    /// where JSON inlines a message. Empty when protobuf lacks the field.
    pub(crate) tags: Vec<u32>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Simple(&'static str),
    Object(String),
    Map(Box<Kind>),
    List(Box<Kind>),
}

/// Types that are more than their JSON schema says.
const SPECIAL: [(&str, &str); 10] = [
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "Quantity"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "IntOrString"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "Time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "MicroTime"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "RawObject"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "RawObject"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "Json"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", "SchemaOrArray"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", "SchemaOrBool"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", "SchemaOrStrings"),
];

/// What a field's message adds, found by the field's normalised name.
struct Wire<'a> {
    tags: Vec<u32>,
    markers: &'a Markers,
}

/// Builds the table and writes the extensions into `definitions`; returns how many
/// properties and types got one.
pub(crate) fn join(definitions: &mut Map<String, Value>, messages: &HashMap<String, Message>) -> (Vec<Type>, usize) {
    let mut types = Vec::new();
    let mut extensions = 0;
    for (name, schema) in definitions.iter_mut() {
        if SPECIAL.iter().any(|(special, _)| special == name) {
            continue;
        }
        let message = messages.get(&message_key(name));
        let atomic = message.is_some_and(|message| message.markers.first("structType") == Some("atomic"));
        if atomic {
            schema["x-kubernetes-map-type"] = json!("atomic");
            extensions += 1;
        }
        let required: Vec<String> = serde_json::from_value(schema["required"].clone()).unwrap_or_default();
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let mut wire = HashMap::new();
        if let Some(message) = message {
            let names: Vec<String> = properties.keys().map(|property| normalise(property)).collect();
            collect_wire(message, messages, &names, &[], &mut wire);
        }
        let mut fields: Vec<Field> = properties
            .iter()
            .map(|(property, schema)| {
                let wire = wire.get(&normalise(property));
                field(property, schema, required.contains(property), wire)
            })
            .collect();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            for field in &fields {
                extensions += extend(&mut properties[&field.name], field);
            }
        }
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|name| fields.iter().any(|field| field.required && name == field.name.as_str()));
            if required.is_empty() {
                schema.as_object_mut().expect("a schema is an object").remove("required");
            }
        }
        types.push(Type { name: name.clone(), atomic, fields });
    }
    types.sort_by(|a, b| a.name.cmp(&b.name));
    (types, extensions)
}

/// `io.k8s.api.core.v1.PodIP` → the key of `api::core::v1::PodIp`.
fn message_key(name: &str) -> String {
    let path = name.strip_prefix("io.k8s.").unwrap_or(name).replace('-', "_");
    let mut module: Vec<String> = path.split('.').map(str::to_owned).collect();
    let last = module.pop().expect("a definition has a name");
    key(&module, &last)
}

/// Fields by normalised name; a message whose own name is no property is inlined in JSON.
fn collect_wire<'a>(
    message: &'a Message,
    messages: &'a HashMap<String, Message>,
    properties: &[String],
    path: &[u32],
    wire: &mut HashMap<String, Wire<'a>>,
) {
    for field in &message.fields {
        let mut tags = path.to_vec();
        tags.push(field.tag);
        let name = normalise(&field.name);
        let inner = field.message.as_deref().and_then(|inner| messages.get(&message.resolve(inner)));
        match inner {
            // Two levels are the deepest: NamedRuleWithOperations holds RuleWithOperations holds Rule.
            Some(inner) if !properties.contains(&name) && !field.repeated && !field.map && path.len() < 3 => {
                collect_wire(inner, messages, properties, &tags, wire);
            }
            _ => {
                wire.entry(name).or_insert(Wire { tags, markers: &field.markers });
            }
        }
    }
}

fn field(name: &str, schema: &Value, required: bool, wire: Option<&Wire<'_>>) -> Field {
    let none = Markers::default();
    let markers = wire.map_or(&none, |wire| wire.markers);
    let first = |name: &str| markers.first(name).unwrap_or_default().to_owned();
    let kind = kind(schema);
    let map_type = Some(first("structType")).filter(|own| !own.is_empty()).unwrap_or_else(|| first("mapType"));
    Field {
        name: name.to_owned(),
        // What has a default, if only an empty text, need not be given.
        required: required && markers.first("default").is_none(),
        list_type: first("listType"),
        list_keys: markers.all("listMapKey").map(str::to_owned).collect(),
        map_type,
        patch_strategy: first("patchStrategy"),
        merge_key: first("patchMergeKey"),
        default: default(&first("default")),
        tags: wire.map(|wire| wire.tags.clone()).unwrap_or_default(),
        kind,
    }
}

/// The marker's value as JSON. Zero values are what an absent field means anyway.
fn default(marker: &str) -> String {
    match marker {
        "" | "\"\"" | "0" | "false" => String::new(),
        "ref(AzureDataDiskCachingReadWrite)" => "\"ReadWrite\"".to_owned(),
        "ref(AzureSharedBlobDisk)" => "\"Shared\"".to_owned(),
        value if value.starts_with("ref(") => panic!("unknown constant in a default: {value}"),
        value => value.to_owned(),
    }
}

fn kind(schema: &Value) -> Kind {
    if let Some(reference) = reference(schema) {
        return match SPECIAL.iter().find(|(name, _)| *name == reference) {
            Some((_, special)) => Kind::Simple(special),
            None => Kind::Object(reference.to_owned()),
        };
    }
    let format = schema["format"].as_str().unwrap_or_default();
    match (schema["type"].as_str().unwrap_or_default(), format) {
        ("string", "byte") => Kind::Simple("Bytes"),
        ("string", "date-time") => Kind::Simple("Time"),
        ("string", _) => Kind::Simple("String"),
        ("boolean", _) => Kind::Simple("Bool"),
        ("integer", "int32") => Kind::Simple("Int32"),
        ("integer", _) => Kind::Simple("Int64"),
        ("number", _) => Kind::Simple("Double"),
        ("array", _) => Kind::List(Box::new(kind(&schema["items"]))),
        ("object", _) if schema["additionalProperties"].is_object() => {
            Kind::Map(Box::new(kind(&schema["additionalProperties"])))
        }
        ("object", _) => Kind::Simple("RawObject"),
        (other, _) => panic!("a schema of unknown type {other:?}: {schema}"),
    }
}

/// The definition that `schema` refers to, directly or beside a description.
fn reference(schema: &Value) -> Option<&str> {
    let direct = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str())?;
    direct.strip_prefix("#/definitions/")
}

/// Turns the joined schemas into OpenAPI v3's form. A kind's metadata is a reference that
/// the crate calls required; the API takes objects without it.
pub(crate) fn to_openapi(definitions: &mut Map<String, Value>) {
    for schema in definitions.values_mut() {
        let has = |name: &str| schema["properties"].get(name).is_some();
        if has("apiVersion")
            && has("kind")
            && has("metadata")
            && let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut)
        {
            required.retain(|name| name != "metadata");
            if required.is_empty() {
                schema.as_object_mut().expect("a schema is an object").remove("required");
            }
        }
        rewrite_references(schema);
    }
    let mut special = |name: &str, entries: &[(&str, Value)]| {
        let schema = definitions.get_mut(name).unwrap_or_else(|| panic!("no definition {name}"));
        let description = schema["description"].take();
        *schema = json!({ "description": description });
        for (name, value) in entries {
            schema[*name] = value.clone();
        }
    };
    special(SPECIAL[0].0, &[("oneOf", json!([{"type": "string"}, {"type": "number"}]))]);
    special(
        SPECIAL[1].0,
        &[("format", json!("int-or-string")), ("oneOf", json!([{"type": "integer"}, {"type": "string"}]))],
    );
    for (name, _) in &SPECIAL[6..] {
        special(name, &[]);
    }
}

fn rewrite_references(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get_mut("$ref")
                && let Some(name) = target.strip_prefix("#/definitions/")
            {
                *target = format!("#/components/schemas/{name}");
            }
            fields.values_mut().for_each(rewrite_references);
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}

/// Writes a field's extensions into its schema.
fn extend(schema: &mut Value, field: &Field) -> usize {
    let mut extensions = BTreeMap::new();
    let mut put = |name: &'static str, value: &str| {
        if !value.is_empty() {
            extensions.insert(name, json!(value));
        }
    };
    put("x-kubernetes-list-type", &field.list_type);
    put("x-kubernetes-patch-strategy", &field.patch_strategy);
    put("x-kubernetes-patch-merge-key", &field.merge_key);
    put("x-kubernetes-map-type", &field.map_type);
    if !field.list_keys.is_empty() {
        extensions.insert("x-kubernetes-list-map-keys", json!(field.list_keys));
    }
    let added = extensions.len();
    for (name, value) in extensions {
        schema[name] = value;
    }
    if !field.default.is_empty() {
        schema["default"] = serde_json::from_str(&field.default).expect("defaults are JSON");
    }
    added
}
