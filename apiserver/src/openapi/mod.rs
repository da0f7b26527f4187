//! What the server says of its types and paths: OpenAPI v3, and v2 for older clients.
//!
//! Documents of v3 are made when they are asked for and not kept: clients keep them by
//! their hash. The one of v2 is kept once somebody has asked, because those who read it ask
//! again and again. The schemas, with all their words, rest compressed in the binary.

mod definitions;
mod document;
mod gnostic;
mod operations;
mod v2;

use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use crate::schema::{ResourceDef, resources};

/// A document of one group and version.
#[derive(Clone, Debug)]
pub struct Document {
    pub json: Bytes,
    /// Changes whenever the document does; the `hash` of its address in the index.
    pub hash: String,
}

/// The document of all groups in version 2, in both of its encodings.
#[derive(Debug)]
pub struct DocumentV2 {
    pub json: Bytes,
    /// In the messages of gnostic.
    pub protobuf: Bytes,
    /// The hash of the JSON, which stands for both.
    pub hash: String,
}

/// The document of version 2, made at the first call: a tenth of a second.
pub fn v2_document() -> &'static DocumentV2 {
    static DOCUMENT: OnceLock<DocumentV2> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let document = v2::render(&definitions::load());
        let json = Bytes::from(document.to_string());
        let hash = hex(&Sha256::digest(&json));
        DocumentV2 { json, protobuf: Bytes::from(gnostic::document(&document)), hash }
    })
}

/// The body of `/openapi/v3`: an address with a hash for each group and version.
pub fn v3_index() -> Bytes {
    let paths: Map<_, _> = hashes()
        .iter()
        .map(|(path, hash)| (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")})))
        .collect();
    Bytes::from(json!({ "paths": paths }).to_string())
}

/// The document under `/openapi/v3/<path>`, where `path` is `api/v1` or `apis/<group>/<version>`.
pub fn v3_document(path: &str) -> Option<Document> {
    let hash = v3_hash(path)?;
    let (group, version) = split(path)?;
    let json = document::render(&definitions::load(), &of_group_version(group, version));
    Some(Document { json: Bytes::from(json), hash })
}

/// The hash that the index gives for `path`, to redirect requests with another.
pub fn v3_hash(path: &str) -> Option<String> {
    hashes().iter().find(|(own, _)| own == path).map(|(_, hash)| hash.clone())
}

/// Hashes of all documents, made once: a tenth of a second at the first request.
fn hashes() -> &'static [(String, String)] {
    static HASHES: OnceLock<Vec<(String, String)>> = OnceLock::new();
    HASHES.get_or_init(|| {
        let definitions = definitions::load();
        let mut hashes: Vec<(String, String)> = Vec::new();
        for def in resources() {
            let path = path(def);
            if !hashes.iter().any(|(own, _)| *own == path) {
                let json = document::render(&definitions, &of_group_version(def.group, def.version));
                hashes.push((path, hex(&Sha256::digest(json))));
            }
        }
        hashes
    })
}

fn of_group_version(group: &str, version: &str) -> Vec<&'static ResourceDef> {
    resources().iter().filter(|def| def.group == group && def.version == version).collect()
}

fn path(def: &ResourceDef) -> String {
    if def.group.is_empty() { format!("api/{}", def.version) } else { format!("apis/{}/{}", def.group, def.version) }
}

fn split(path: &str) -> Option<(&str, &str)> {
    match path.strip_prefix("apis/") {
        Some(rest) => rest.split_once('/'),
        None => Some(("", path.strip_prefix("api/")?)),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02X}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(path: &str) -> Value {
        serde_json::from_slice(&v3_document(path).unwrap().json).unwrap()
    }

    #[test]
    fn the_index_leads_to_every_document() {
        let index: Value = serde_json::from_slice(&v3_index()).unwrap();
        let paths = index["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 22);
        for (path, entry) in paths {
            let document = v3_document(path).unwrap();
            assert_eq!(entry["serverRelativeURL"], format!("/openapi/v3/{path}?hash={}", document.hash));
            assert_eq!(hex(&Sha256::digest(&document.json)), document.hash, "documents are the same each time");
        }
        assert!(v3_document("apis/nobody/v1").is_none());
        assert!(v3_document("").is_none());
    }

    #[test]
    fn references_stay_inside_their_document() {
        for (path, _) in hashes() {
            let document = parse(path);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let text = document.to_string();
            for part in text.split("\"#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{path} lacks {name}");
            }
            assert!(!text.contains("#/definitions/"), "{path}");
        }
    }

    #[test]
    fn version_2_has_everything_and_refers_to_nothing_else() {
        let own: Value = serde_json::from_slice(&v2_document().json).unwrap();
        let definitions = own["definitions"].as_object().unwrap();
        let text = own.to_string();
        assert!(!text.contains("#/components/schemas/") && !text.contains("\"requestBody\""));
        for part in text.split("\"#/definitions/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(definitions.contains_key(name), "{name} is missing");
        }
        for (path, _) in hashes() {
            let document = parse(path);
            let paths = document["paths"].as_object().unwrap();
            assert!(paths.keys().all(|path| own["paths"].get(path).is_some()), "{path}");
            let schemas = document["components"]["schemas"].as_object().unwrap();
            assert!(schemas.keys().all(|name| definitions.contains_key(name)), "{path}");
        }
        assert_eq!(v2_document().hash, hex(&Sha256::digest(&v2_document().json)));
        assert!(!v2_document().protobuf.is_empty());
    }

    #[test]
    fn apply_finds_what_it_looks_for() {
        let document = parse("apis/apps/v1");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"));
        let container = &document["components"]["schemas"]["io.k8s.api.core.v1.Container"];
        assert_eq!(container["properties"]["ports"]["x-kubernetes-patch-merge-key"], "containerPort");
        let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        assert!(deployment.get("required").is_none());
        assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentList"].is_object());
    }
}
