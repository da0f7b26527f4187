//! What the server says of its resources: the legacy documents and the aggregated ones.
//!
//! Every function is pure over the resources handed in, in their order.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::schema::{ResourceDef, SubresourceDef, Verb};

/// Which of the aggregated documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregatedVersion {
    V2,
    V2Beta1,
}

impl AggregatedVersion {
    /// The `Content-Type` that tells the client which document it got.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V2 => "apidiscovery.k8s.io/v2",
            Self::V2Beta1 => "apidiscovery.k8s.io/v2beta1",
        }
    }
}

/// `GET /api`: the versions of the core group. `server_address` is `host:port`, as clients should dial it.
pub fn legacy_api_versions(server_address: &str) -> Bytes {
    bytes(&json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    }))
}

/// `GET /apis`: all groups but the core group.
pub fn api_group_list(defs: &[&ResourceDef]) -> Bytes {
    let groups: Vec<Value> =
        groups(defs).into_iter().filter(|group| !group.is_empty()).map(|group| group_value(defs, group)).collect();
    bytes(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

/// `GET /apis/<group>`.
pub fn api_group(defs: &[&ResourceDef], group: &str) -> Option<Bytes> {
    if group.is_empty() || !defs.iter().any(|def| def.group == group) {
        return None;
    }
    let mut value = group_value(defs, group);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(bytes(&value))
}

/// `GET /api/v1` (with an empty group) and `GET /apis/<group>/<version>`.
pub fn api_resource_list(defs: &[&ResourceDef], group: &str, version: &str) -> Option<Bytes> {
    let mut resources = Vec::new();
    for def in defs.iter().filter(|def| def.group == group && def.version == version) {
        resources.push(legacy_resource(def));
        resources.extend(def.subresources.iter().map(|sub| legacy_subresource(def, sub)));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = api_version(group, version);
    Some(bytes(
        &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    ))
}

/// `GET /api` (`core`) or `GET /apis` for clients that ask for everything at once.
pub fn aggregated(defs: &[&ResourceDef], core: bool, version: AggregatedVersion) -> Bytes {
    let items: Vec<Value> = groups(defs)
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(defs, group)
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = defs
                        .iter()
                        .filter(|def| def.group == group && def.version == version)
                        .map(|def| aggregated_resource(def))
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    bytes(
        &json!({"kind": "APIGroupDiscoveryList", "apiVersion": version.api_version(), "metadata": {}, "items": items}),
    )
}

/// The entity tag of a document, with its quotes.
pub fn etag(document: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(66);
    text.push('"');
    for byte in Sha256::digest(document) {
        write!(text, "{byte:02X}").expect("writing to a string does not fail");
    }
    text.push('"');
    text
}

fn groups<'a>(defs: &[&'a ResourceDef]) -> Vec<&'a str> {
    let mut groups: Vec<&str> = Vec::new();
    for def in defs {
        if !groups.contains(&def.group) {
            groups.push(def.group);
        }
    }
    groups
}

fn versions<'a>(defs: &[&'a ResourceDef], group: &str) -> Vec<&'a str> {
    let mut versions: Vec<&str> = Vec::new();
    for def in defs.iter().filter(|def| def.group == group) {
        if !versions.contains(&def.version) {
            versions.push(def.version);
        }
    }
    versions
}

fn group_value(defs: &[&ResourceDef], group: &str) -> Value {
    let versions: Vec<Value> = versions(defs, group)
        .into_iter()
        .map(|version| json!({"groupVersion": api_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": versions[0], "versions": versions})
}

fn legacy_resource(def: &ResourceDef) -> Value {
    let mut value = json!({
        "name": def.resource,
        "singularName": def.singular,
        "namespaced": def.namespaced,
        "kind": def.kind,
        "verbs": verbs(def.verbs),
    });
    put_list(&mut value, "shortNames", def.short_names);
    put_list(&mut value, "categories", def.categories);
    value
}

fn legacy_subresource(def: &ResourceDef, sub: &SubresourceDef) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", def.resource, sub.name),
        "singularName": "",
        "namespaced": def.namespaced,
        "kind": sub.kind,
        "verbs": verbs(sub.verbs),
    });
    if (sub.group, sub.version) != (def.group, def.version) {
        value["group"] = json!(sub.group);
        value["version"] = json!(sub.version);
    }
    value
}

fn aggregated_resource(def: &ResourceDef) -> Value {
    let mut value = json!({
        "resource": def.resource,
        "responseKind": {"group": def.group, "version": def.version, "kind": def.kind},
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular,
        "verbs": verbs(def.verbs),
    });
    put_list(&mut value, "shortNames", def.short_names);
    put_list(&mut value, "categories", def.categories);
    if !def.subresources.is_empty() {
        value["subresources"] = def
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                    "verbs": verbs(sub.verbs),
                })
            })
            .collect();
    }
    value
}

fn put_list(value: &mut Value, name: &str, items: &[&str]) {
    if !items.is_empty() {
        value[name] = json!(items);
    }
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb.as_str()).collect()
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn bytes(value: &Value) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("a value always serialises"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    fn all() -> Vec<&'static ResourceDef> {
        schema::resources().iter().collect()
    }

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn groups_come_in_order_and_with_their_preferred_version() {
        let list = parse(&api_group_list(&all()));
        let groups = list["groups"].as_array().unwrap();
        assert_eq!(groups[0]["name"], "apiregistration.k8s.io");
        assert_eq!(groups[1]["name"], "apps");
        let autoscaling = groups.iter().find(|group| group["name"] == "autoscaling").unwrap();
        assert_eq!(autoscaling["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(autoscaling["versions"][1]["version"], "v1");
        assert!(api_group(&all(), "nobody").is_none());
        assert!(api_group(&all(), "").is_none(), "the core group has no group document");
    }

    #[test]
    fn subresources_of_other_groups_say_so() {
        let list = parse(&api_resource_list(&all(), "", "v1").unwrap());
        let find = |name: &str| {
            list["resources"].as_array().unwrap().iter().find(|entry| entry["name"] == name).cloned().unwrap()
        };
        assert_eq!(find("pods")["shortNames"], json!(["po"]));
        assert_eq!(find("pods/eviction")["group"], "policy");
        assert_eq!(find("pods/status").get("group"), None);
        assert!(api_resource_list(&all(), "apps", "v2").is_none());
    }

    #[test]
    fn the_aggregated_document_splits_core_from_groups() {
        let core = parse(&aggregated(&all(), true, AggregatedVersion::V2));
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        let groups = parse(&aggregated(&all(), false, AggregatedVersion::V2Beta1));
        assert_eq!(groups["items"].as_array().unwrap().len(), 20);
        assert_eq!(groups["items"][1]["versions"][0]["resources"][0]["resource"], "controllerrevisions");
    }

    #[test]
    fn the_entity_tag_follows_the_content() {
        assert_ne!(etag(b"a"), etag(b"b"));
        assert_eq!(etag(b"a").len(), 66);
    }
}
