//! An API object as bytes with a parsed view, shared by everybody who looks at it.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::codec::{self, Cuts};
use crate::gvk::GroupVersionKind;
use crate::meta::ObjectMeta;

/// One version of one object. Immutable; clone the `Arc` around it.
///
/// Always: `json` is the stored form with `revision` as its resourceVersion.
pub struct Object {
    revision: u64,
    json: Bytes,
    cuts: Cuts,
    gvk: GroupVersionKind,
    meta: ObjectMeta,
    value: OnceLock<Arc<Value>>,
    encoding: OnceLock<Bytes>,
    typed: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// Why bytes are not an object.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the bytes are not in the stored form of an object")]
    Layout,
    #[error("the object does not parse")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    kind: String,
    api_version: String,
    metadata: ObjectMeta,
}

impl Object {
    /// Reads an object from the stored form; `revision` is where the store last changed it.
    ///
    /// # Errors
    /// When the bytes are not in the stored form, or their head does not parse.
    pub fn from_stored(stored: &[u8], revision: u64) -> Result<Self, DecodeError> {
        let cuts = codec::cuts(stored).ok_or(DecodeError::Layout)?;
        let head: Head = serde_json::from_slice(stored)?;
        Ok(Self {
            revision,
            json: codec::splice_resource_version(stored, cuts, revision),
            cuts,
            gvk: GroupVersionKind::from_api_version(&head.api_version, &head.kind),
            meta: head.metadata,
            value: OnceLock::new(),
            encoding: OnceLock::new(),
            typed: OnceLock::new(),
        })
    }

    /// Makes an object of a parsed value, as if the store had held it at `revision`.
    ///
    /// # Errors
    /// When kind, apiVersion or metadata are missing or of a wrong type.
    pub fn from_value(value: &Value, revision: u64) -> Result<Self, DecodeError> {
        if !value.is_object() {
            return Err(DecodeError::Layout);
        }
        Self::from_stored(&codec::encode_stored(value), revision)
    }

    /// The store's revision of this version: the number in `metadata.resourceVersion`.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn gvk(&self) -> &GroupVersionKind {
        &self.gvk
    }

    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// The whole object as compact JSON, resourceVersion included.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// What stands between `{` and the end of the JSON without kind and apiVersion:
    /// an item of a built-in kind's list is `{` followed by this.
    pub fn json_without_kind(&self) -> Bytes {
        self.json.slice(self.cuts.metadata_key..)
    }

    /// The parsed object, made at the first call and shared afterwards.
    pub fn value(&self) -> &Arc<Value> {
        self.value
            .get_or_init(|| Arc::new(serde_json::from_slice(&self.json).expect("an object's JSON was parsed before")))
    }

    /// The object in its other encoding, which `encode` makes of the parsed object at the
    /// first call; later calls share it, so all of them have to mean the same encoding.
    pub fn encoding(&self, encode: impl FnOnce(&Value) -> Bytes) -> &Bytes {
        self.encoding.get_or_init(|| match self.value.get() {
            Some(value) => encode(value),
            // Who wants bytes seldom looks at fields as well: the parsed form, which is
            // several times larger, is not kept for that.
            None => encode(&serde_json::from_slice(&self.json).expect("an object's JSON was parsed before")),
        })
    }

    /// A typed view, made at the first call and shared by later calls of the same type.
    ///
    /// # Errors
    /// When the JSON does not fit `K`.
    pub fn typed<K: DeserializeOwned + Send + Sync + 'static>(&self) -> Result<Arc<K>, serde_json::Error> {
        if let Some(view) = self.typed.get()
            && let Ok(view) = Arc::clone(view).downcast::<K>()
        {
            return Ok(view);
        }
        let view: Arc<K> = Arc::new(serde_json::from_slice(&self.json)?);
        // A view of another type may have come first; then this one is not kept.
        let _ = self.typed.set(view.clone());
        Ok(view)
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} @{}", self.gvk, self.meta.key(), self.revision)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn views_agree_with_the_bytes() {
        let object = Object::from_value(
            &json!({"apiVersion": "apps/v1", "kind": "Deployment",
                    "metadata": {"name": "web", "namespace": "default", "labels": null}, "spec": {"replicas": 2}}),
            9,
        )
        .unwrap();
        assert_eq!(object.gvk(), &GroupVersionKind::new("apps", "v1", "Deployment"));
        assert_eq!(object.meta().key(), "default/web");
        assert_eq!(object.value()["metadata"]["resourceVersion"], "9");
        assert_eq!(object.typed::<Value>().unwrap()["spec"]["replicas"], 2);
        assert!(object.json_without_kind().starts_with(b"\"metadata\""));
    }

    #[test]
    fn the_other_encoding_is_made_once() {
        let object =
            Object::from_value(&json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": "x"}}), 9).unwrap();
        let made = object.encoding(|value| Bytes::from(value["metadata"]["name"].as_str().unwrap().to_owned()));
        assert_eq!(made, "x");
        assert_eq!(object.encoding(|_| unreachable!()), made);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for value in [json!(3), json!({}), json!({"kind": "A", "apiVersion": "v1", "metadata": {"labels": 3}})] {
            assert!(Object::from_value(&value, 1).is_err(), "{value}");
        }
    }
}
