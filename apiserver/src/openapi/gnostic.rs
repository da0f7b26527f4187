//! The document of version 2 in protobuf.
//!
//! Source: openapiv2/OpenAPIv2.proto of github.com/google/gnostic. Each function writes the
//! message that it is named after; fields that this server's document never has are left out.

use serde_json::{Map, Value};

use crate::schema::ProtobufWriter as Writer;

/// Encodes a document that [`super::v2`] has made.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    text(&mut writer, 1, &value["swagger"]);
    let mut info = Writer::default();
    text(&mut info, 1, &value["info"]["title"]);
    text(&mut info, 2, &value["info"]["version"]);
    writer.message(2, info);
    let mut paths = Writer::default();
    for (name, item) in entries(&value["paths"]) {
        paths.message(2, named(name, path_item(item)));
    }
    writer.message(8, paths);
    let mut definitions = Writer::default();
    for (name, own) in entries(&value["definitions"]) {
        definitions.message(1, named(name, schema(own)));
    }
    writer.message(9, definitions);
    for requirement in items(&value["security"]) {
        writer.message(12, security_requirement(requirement));
    }
    let mut security = Writer::default();
    for (name, definition) in entries(&value["securityDefinitions"]) {
        security.message(1, named(name, wrapped(2, api_key_security(definition))));
    }
    writer.message(13, security);
    writer.into_bytes()
}

fn path_item(value: &Value) -> Writer {
    let mut writer = Writer::default();
    for (tag, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if value[method].is_object() {
            writer.message(tag, operation(&value[method]));
        }
    }
    for parameter in items(&value["parameters"]) {
        writer.message(9, parameters_item(parameter));
    }
    writer
}

fn operation(value: &Value) -> Writer {
    let mut writer = Writer::default();
    texts(&mut writer, 1, &value["tags"]);
    text(&mut writer, 3, &value["description"]);
    text(&mut writer, 5, &value["operationId"]);
    texts(&mut writer, 6, &value["produces"]);
    texts(&mut writer, 7, &value["consumes"]);
    for parameter in items(&value["parameters"]) {
        writer.message(8, parameters_item(parameter));
    }
    let mut responses = Writer::default();
    for (code, answer) in entries(&value["responses"]) {
        // One of a response and a reference.
        responses.message(1, named(code, wrapped(1, response(answer))));
    }
    writer.message(9, responses);
    texts(&mut writer, 10, &value["schemes"]);
    vendor_extensions(&mut writer, 13, value);
    writer
}

/// One of a parameter and a reference; a parameter is one of a body and all others, and
/// those are one of several places.
fn parameters_item(value: &Value) -> Writer {
    let parameter = match value["in"].as_str() {
        Some("body") => wrapped(1, body_parameter(value)),
        Some("path") => wrapped(2, wrapped(4, path_parameter(value))),
        _ => wrapped(2, wrapped(3, query_parameter(value))),
    };
    wrapped(1, parameter)
}

fn body_parameter(value: &Value) -> Writer {
    let mut writer = Writer::default();
    text(&mut writer, 1, &value["description"]);
    text(&mut writer, 2, &value["name"]);
    text(&mut writer, 3, &value["in"]);
    flag(&mut writer, 4, &value["required"]);
    writer.message(5, schema(&value["schema"]));
    writer
}

fn path_parameter(value: &Value) -> Writer {
    let mut writer = place(value);
    text(&mut writer, 5, &value["type"]);
    text(&mut writer, 6, &value["format"]);
    flag(&mut writer, 19, &value["uniqueItems"]);
    writer
}

fn query_parameter(value: &Value) -> Writer {
    let mut writer = place(value);
    text(&mut writer, 6, &value["type"]);
    text(&mut writer, 7, &value["format"]);
    flag(&mut writer, 20, &value["uniqueItems"]);
    writer
}

/// The fields that parameters of paths and queries have in common.
fn place(value: &Value) -> Writer {
    let mut writer = Writer::default();
    flag(&mut writer, 1, &value["required"]);
    text(&mut writer, 2, &value["in"]);
    text(&mut writer, 3, &value["description"]);
    text(&mut writer, 4, &value["name"]);
    writer
}

fn response(value: &Value) -> Writer {
    let mut writer = Writer::default();
    text(&mut writer, 1, &value["description"]);
    if value["schema"].is_object() {
        // One of a schema and a file.
        writer.message(2, wrapped(1, schema(&value["schema"])));
    }
    writer
}

fn schema(value: &Value) -> Writer {
    let mut writer = Writer::default();
    text(&mut writer, 1, &value["$ref"]);
    text(&mut writer, 2, &value["format"]);
    text(&mut writer, 4, &value["description"]);
    if let Some(default) = value.get("default") {
        writer.message(5, any(default));
    }
    texts(&mut writer, 19, &value["required"]);
    if value["additionalProperties"].is_object() {
        // One of a schema and a boolean.
        writer.message(21, wrapped(1, schema(&value["additionalProperties"])));
    }
    if value["type"].is_string() {
        let mut type_item = Writer::default();
        text(&mut type_item, 1, &value["type"]);
        writer.message(22, type_item);
    }
    if value["items"].is_object() {
        writer.message(23, wrapped(1, schema(&value["items"])));
    }
    if value["properties"].is_object() {
        let mut properties = Writer::default();
        for (name, property) in entries(&value["properties"]) {
            properties.message(1, named(name, schema(property)));
        }
        writer.message(25, properties);
    }
    vendor_extensions(&mut writer, 31, value);
    writer
}

fn security_requirement(value: &Value) -> Writer {
    let mut writer = Writer::default();
    for (name, scopes) in entries(value) {
        let mut array = Writer::default();
        texts(&mut array, 1, scopes);
        writer.message(1, named(name, array));
    }
    writer
}

fn api_key_security(value: &Value) -> Writer {
    let mut writer = Writer::default();
    text(&mut writer, 1, &value["type"]);
    text(&mut writer, 2, &value["name"]);
    text(&mut writer, 3, &value["in"]);
    text(&mut writer, 4, &value["description"]);
    writer
}

fn vendor_extensions(writer: &mut Writer, tag: u32, value: &Value) {
    for (name, extension) in entries(value).filter(|(name, _)| name.starts_with("x-")) {
        writer.message(tag, named(name, any(extension)));
    }
}

/// Any value, as YAML: every JSON is one.
fn any(value: &Value) -> Writer {
    let mut writer = Writer::default();
    writer.bytes(2, format!("{value}\n").as_bytes());
    writer
}

/// An entry of a map, which the format has as pairs.
fn named(name: &str, value: Writer) -> Writer {
    let mut writer = Writer::default();
    writer.bytes(1, name.as_bytes());
    writer.message(2, value);
    writer
}

/// A message with one field.
fn wrapped(tag: u32, inner: Writer) -> Writer {
    let mut writer = Writer::default();
    writer.message(tag, inner);
    writer
}

fn text(writer: &mut Writer, tag: u32, value: &Value) {
    if let Some(text) = value.as_str() {
        writer.bytes(tag, text.as_bytes());
    }
}

fn texts(writer: &mut Writer, tag: u32, value: &Value) {
    items(value).for_each(|item| text(writer, tag, item));
}

fn flag(writer: &mut Writer, tag: u32, value: &Value) {
    if value.as_bool() == Some(true) {
        writer.integer(tag, 1);
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::*;

    /// As much of the format as is looked at, declared apart from the functions above.
    #[derive(Clone, PartialEq, Message)]
    struct Document {
        #[prost(string, tag = "1")]
        swagger: String,
        #[prost(message, optional, tag = "8")]
        paths: Option<Paths>,
        #[prost(message, optional, tag = "9")]
        definitions: Option<NamedSchemas>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Paths {
        #[prost(message, repeated, tag = "2")]
        path: Vec<NamedPathItem>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedPathItem {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        value: Option<PathItem>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct PathItem {
        #[prost(message, optional, tag = "8")]
        patch: Option<Operation>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Operation {
        #[prost(string, tag = "5")]
        operation_id: String,
        #[prost(message, repeated, tag = "8")]
        parameters: Vec<ParametersItem>,
        #[prost(message, repeated, tag = "13")]
        vendor_extension: Vec<NamedAny>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct ParametersItem {
        #[prost(message, optional, tag = "1")]
        parameter: Option<Parameter>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Parameter {
        #[prost(message, optional, tag = "2")]
        non_body_parameter: Option<NonBodyParameter>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NonBodyParameter {
        #[prost(message, optional, tag = "3")]
        query: Option<QueryParameter>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct QueryParameter {
        #[prost(string, tag = "4")]
        name: String,
        #[prost(string, tag = "6")]
        of: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedAny {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        value: Option<Any>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Any {
        #[prost(string, tag = "2")]
        yaml: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedSchemas {
        #[prost(message, repeated, tag = "1")]
        additional_properties: Vec<NamedSchema>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NamedSchema {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        value: Option<Schema>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Schema {
        #[prost(string, tag = "1")]
        reference: String,
        #[prost(string, tag = "4")]
        description: String,
        #[prost(string, repeated, tag = "19")]
        required: Vec<String>,
        #[prost(message, optional, tag = "22")]
        of: Option<TypeItem>,
        #[prost(message, optional, tag = "25")]
        properties: Option<NamedSchemas>,
        #[prost(message, repeated, tag = "31")]
        vendor_extension: Vec<NamedAny>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct TypeItem {
        #[prost(string, repeated, tag = "1")]
        value: Vec<String>,
    }

    fn extension(extensions: &[NamedAny], name: &str) -> Value {
        let found = extensions.iter().find(|extension| extension.name == name).expect("the extension is there");
        serde_json::from_str(&found.value.as_ref().unwrap().yaml).expect("this YAML is JSON")
    }

    #[test]
    fn what_kubectl_looks_for_is_there() {
        let made = super::super::v2::render(&super::super::definitions::load());
        let document = Document::decode(document(&made).as_slice()).expect("the document is whole");
        assert_eq!(document.swagger, "2.0");
        let paths = document.paths.unwrap().path;
        assert_eq!(paths.len(), made["paths"].as_object().unwrap().len());
        let path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
        let item = paths.into_iter().find(|item| item.name == path).unwrap();
        let patch = item.value.unwrap().patch.unwrap();
        assert_eq!(
            extension(&patch.vendor_extension, "x-kubernetes-group-version-kind"),
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        let queries: Vec<(&str, &str)> = patch
            .parameters
            .iter()
            .filter_map(|item| item.parameter.as_ref()?.non_body_parameter.as_ref()?.query.as_ref())
            .map(|query| (query.name.as_str(), query.of.as_str()))
            .collect();
        assert!(queries.contains(&("dryRun", "string")), "{queries:?}");

        let definitions = document.definitions.unwrap().additional_properties;
        let definition =
            |name: &str| definitions.iter().find(|own| own.name == name).and_then(|own| own.value.clone()).unwrap();
        let deployment = definition("io.k8s.api.apps.v1.Deployment");
        assert_eq!(
            extension(&deployment.vendor_extension, "x-kubernetes-group-version-kind"),
            json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
        );
        let property = |of: &Schema, name: &str| {
            let properties = &of.properties.as_ref().unwrap().additional_properties;
            properties.iter().find(|property| property.name == name).and_then(|own| own.value.clone()).unwrap()
        };
        let spec = property(&deployment, "spec");
        assert_eq!(spec.reference, "#/definitions/io.k8s.api.apps.v1.DeploymentSpec");
        assert!(!spec.description.is_empty());
        let container = definition("io.k8s.api.core.v1.Container");
        assert_eq!(
            (container.of.as_ref().unwrap().value.as_slice(), container.required.as_slice()),
            (&["object".to_owned()][..], &["name".to_owned()][..])
        );
        let ports = property(&container, "ports");
        assert_eq!(extension(&ports.vendor_extension, "x-kubernetes-patch-merge-key"), json!("containerPort"));
        assert_eq!(definition("io.k8s.apimachinery.pkg.api.resource.Quantity").of.unwrap().value, ["string"]);
    }
}
