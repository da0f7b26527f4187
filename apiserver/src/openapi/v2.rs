//! The one document of version 2, with all groups: made of what version 3 says.
//!
//! Older kubectl validates with it, and the conformance suite reads it.

use serde_json::{Map, Value, json};

use super::definitions::Definitions;
use super::document::Contents;
use crate::schema::{PROTOBUF, ResourceDef, resources};

const V3_REFERENCE: &str = "#/components/schemas/";

/// The document as a value: some megabytes.
pub(super) fn render(definitions: &Definitions) -> Value {
    let defs: Vec<&ResourceDef> = resources().iter().collect();
    let contents = Contents::of(definitions, &defs);
    let mut own = Map::new();
    for (name, text) in contents.schemas(definitions, &json!(contents.paths).to_string()) {
        let mut value: Value = serde_json::from_str(text).expect("the schemas are JSON");
        if let Some(kind) = contents.kind(name) {
            value["x-kubernetes-group-version-kind"] = json!([kind]);
        }
        schema(&mut value);
        own.insert(name.to_owned(), value);
    }
    let mut paths = Map::new();
    for (path, mut item) in contents.paths {
        path_item(&mut item);
        paths.insert(path, item);
    }
    let mut document = json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
        }},
        "security": [{"BearerToken": []}],
    });
    document["definitions"] = Value::Object(own);
    document["paths"] = Value::Object(paths);
    document
}

fn path_item(item: &mut Value) {
    for (name, value) in object(item).iter_mut() {
        if name == "parameters" {
            value.as_array_mut().into_iter().flatten().for_each(parameter);
        } else {
            operation(value);
        }
    }
}

/// What stands in a parameter's schema stands in the parameter itself.
fn parameter(value: &mut Value) {
    let fields = object(value);
    if let Some(Value::Object(schema)) = fields.remove("schema") {
        fields.extend(schema);
    }
}

/// The body becomes a parameter; media types belong to the operation.
fn operation(value: &mut Value) {
    let fields = object(value);
    let mut parameters = match fields.remove("parameters") {
        Some(Value::Array(parameters)) => parameters,
        _ => Vec::new(),
    };
    parameters.iter_mut().for_each(parameter);
    let mut consumes = json!(["*/*"]);
    if let Some(mut body) = fields.remove("requestBody") {
        let required = body["required"] == true;
        let content = object(&mut body["content"]);
        consumes = content.keys().map(String::as_str).collect();
        let mut of = content.values_mut().next().map(|media| media["schema"].take()).unwrap_or_default();
        schema(&mut of);
        parameters.insert(0, json!({"in": "body", "name": "body", "required": required, "schema": of}));
    }
    for response in fields.get_mut("responses").map(object).into_iter().flat_map(Map::values_mut) {
        let response = object(response);
        if let Some(mut content) = response.remove("content") {
            let mut of = content["application/json"]["schema"].take();
            schema(&mut of);
            response.insert("schema".to_owned(), of);
        }
    }
    if !parameters.is_empty() {
        fields.insert("parameters".to_owned(), Value::Array(parameters));
    }
    fields.insert("consumes".to_owned(), consumes);
    fields.insert("produces".to_owned(), json!(["application/json", PROTOBUF]));
    fields.insert("schemes".to_owned(), json!(["https"]));
}

/// References point elsewhere and stand beside descriptions; what is text or number is a
/// text, as upstream has it.
fn schema(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    if let Some(mut all) = fields.remove("allOf") {
        fields.insert("$ref".to_owned(), all[0]["$ref"].take());
    }
    if fields.remove("oneOf").is_some() {
        fields.insert("type".to_owned(), json!("string"));
    }
    if let Some(Value::String(target)) = fields.get_mut("$ref")
        && let Some(name) = target.strip_prefix(V3_REFERENCE)
    {
        *target = format!("#/definitions/{name}");
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(name) {
            schema(inner);
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(schema);
    }
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("the parts of a document are objects")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_said_in_the_older_words() {
        #[track_caller]
        fn check(mut value: Value, expected: Value) {
            schema(&mut value);
            assert_eq!(value, expected);
        }
        check(
            json!({"description": "d", "allOf": [{"$ref": "#/components/schemas/A"}]}),
            json!({"description": "d", "$ref": "#/definitions/A"}),
        );
        check(
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"format": "int-or-string", "type": "string"}),
        );
        check(
            json!({"properties": {"allOf": {"type": "array", "items": {"$ref": "#/components/schemas/A"}},
                                  "m": {"additionalProperties": {"$ref": "#/components/schemas/B"}}}}),
            json!({"properties": {"allOf": {"type": "array", "items": {"$ref": "#/definitions/A"}},
                                  "m": {"additionalProperties": {"$ref": "#/definitions/B"}}}}),
        );
    }

    #[test]
    fn a_body_becomes_a_parameter() {
        let mut value = json!({"operationId": "patch", "parameters": [{"name": "dryRun", "in": "query", "schema": {"type": "string"}}],
            "requestBody": {"required": true, "content": {"a/b": {"schema": {"$ref": "#/components/schemas/P"}}, "c/d": {}}},
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "string"}}}}}});
        operation(&mut value);
        assert_eq!(
            value,
            json!({"operationId": "patch", "consumes": ["a/b", "c/d"], "produces": ["application/json", PROTOBUF],
                "schemes": ["https"],
                "parameters": [{"in": "body", "name": "body", "required": true, "schema": {"$ref": "#/definitions/P"}},
                               {"name": "dryRun", "in": "query", "type": "string"}],
                "responses": {"200": {"description": "OK", "schema": {"type": "string"}}}})
        );
    }
}
