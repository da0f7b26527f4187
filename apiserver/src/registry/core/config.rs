//! ConfigMaps, Secrets and ServiceAccounts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::super::strategy::{Strategy, child, default_to, remove, set, text};
use super::super::validation::Errors;

/// All data of one object together. Source: core/v1, `MaxSecretSize`.
const DATA_LIMIT_BYTES: usize = 1024 * 1024;

const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

pub(in crate::registry) struct ConfigMapStrategy;
pub(in crate::registry) struct SecretStrategy;
pub(in crate::registry) struct ServiceAccountStrategy;

/// Checks keys, and adds up the sizes of what they name.
fn check_keys(data: &Value, field: &str, size: &mut usize, errors: &mut Errors) {
    for (key, value) in data.as_object().into_iter().flatten() {
        let fits = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if key.is_empty() || !fits {
            errors.invalid(&format!("{field}[{key}]"), &Value::from(key.as_str()), KEY);
        }
        if key.len() > 253 {
            errors.invalid(
                &format!("{field}[{key}]"),
                &Value::from(key.as_str()),
                "must be no more than 253 characters",
            );
        }
        if matches!(key.as_str(), "." | "..") {
            errors.invalid(&format!("{field}[{key}]"), &Value::from(key.as_str()), format_args!("may not be '{key}'"));
        }
        *size += value.as_str().map_or(0, str::len);
    }
}

fn check_immutable(object: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    if object["immutable"] != true {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if object[*field] != old[*field] {
            errors.forbidden(field, "field is immutable when `immutable` is set");
        }
    }
}

impl Strategy for ConfigMapStrategy {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let mut size = 0;
        check_keys(&object["data"], "data", &mut size, errors);
        check_keys(&object["binaryData"], "binaryData", &mut size, errors);
        for (key, _) in object["data"].as_object().into_iter().flatten() {
            if object["binaryData"].get(key).is_some() {
                errors.invalid(
                    &format!("data[{key}]"),
                    &Value::from(key.as_str()),
                    "duplicate of key present in binaryData",
                );
            }
        }
        if size > DATA_LIMIT_BYTES {
            errors.too_long("", DATA_LIMIT_BYTES);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        check_immutable(object, old, &["data", "binaryData"], errors);
    }
}

impl Strategy for SecretStrategy {
    /// `stringData` is for writing only: it becomes data.
    fn default(&self, object: &mut Value) {
        default_to(object, "type", "Opaque");
        if let Some(Value::Object(texts)) = remove(object, "stringData") {
            let data = child(object, "data");
            for (key, value) in texts {
                set(data, &key, STANDARD.encode(value.as_str().unwrap_or_default()));
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let mut size = 0;
        let data = &object["data"];
        check_keys(data, "data", &mut size, errors);
        if size > DATA_LIMIT_BYTES {
            errors.too_long("data", DATA_LIMIT_BYTES);
        }
        let required: &[&str] = match text(object, "type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in required {
            if data.get(key).is_none() {
                errors.required(&format!("data[{key}]"), "");
            }
        }
        if text(object, "type") == "kubernetes.io/service-account-token" {
            let name = &object["metadata"]["annotations"]["kubernetes.io/service-account.name"];
            if name.as_str().is_none_or(str::is_empty) {
                errors.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("type", &object["type"], &old["type"]);
        check_immutable(object, old, &["data"], errors);
    }
}

impl Strategy for ServiceAccountStrategy {
    fn returns_deleted_object(&self) -> bool {
        true
    }
}
