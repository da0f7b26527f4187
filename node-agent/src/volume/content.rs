//! What files of API objects volumes hold.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use quorate_runtime::client::{Client, WriteOptions};
use quorate_runtime::resources;
use serde_json::json;

use super::atomic::{File, Payload};
use crate::pod::data;
use crate::pod::env::{self, Sources};
use crate::pod::spec;

const DEFAULT_MODE: i32 = 0o644;
// Upstream's texts.
const UNKNOWN_CONFIG_KEY: &str = "configmap references non-existent config key";
const UNKNOWN_SECRET_KEY: &str = "references non-existent secret key";
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Tokens of service accounts that are still young enough, by pod.
#[derive(Default)]
pub(super) struct Tokens {
    cached: Mutex<BTreeMap<(String, String, i64), Token>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

impl Tokens {
    pub(super) fn forget(&self, pod_uid: &str) {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, ..), _| uid != pod_uid);
    }
}

pub(super) struct Content<'a> {
    pub(super) client: &'a dyn Client,
    pub(super) sources: &'a Sources<'a>,
    pub(super) tokens: &'a Tokens,
}

fn file_mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0) & 0o777
}

/// The files that `items` choose of an object's data; all of them without items.
fn choose(
    unknown_key: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<core::KeyToPath>>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let file = |bytes: &Vec<u8>| File { bytes: bytes.clone(), mode: file_mode(None, default_mode) };
        return Ok(data.iter().map(|(key, bytes)| (key.clone(), file(bytes))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                payload
                    .insert(item.path.clone(), File { bytes: bytes.clone(), mode: file_mode(item.mode, default_mode) });
            }
            None if optional => {}
            None => return Err(format!("{unknown_key}: {}", item.key)),
        }
    }
    Ok(payload)
}

impl Content<'_> {
    fn namespace(&self) -> &str {
        spec::namespace(self.sources.pod)
    }

    async fn of_config_map(
        &self,
        name: &str,
        items: Option<&Vec<core::KeyToPath>>,
        mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<Payload, String> {
        let optional = optional == Some(true);
        match data::config_map(self.client, self.namespace(), name).await? {
            Some(found) => choose(UNKNOWN_CONFIG_KEY, &found, items, mode, optional),
            None if optional => Ok(Payload::new()),
            None => Err(format!("configmap {name:?} not found")),
        }
    }

    async fn of_secret(
        &self,
        name: &str,
        items: Option<&Vec<core::KeyToPath>>,
        mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<Payload, String> {
        let optional = optional == Some(true);
        match data::secret(self.client, self.namespace(), name).await? {
            Some(found) => choose(UNKNOWN_SECRET_KEY, &found, items, mode, optional),
            None if optional => Ok(Payload::new()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    pub(super) async fn config_map(&self, source: &core::ConfigMapVolumeSource) -> Result<Payload, String> {
        self.of_config_map(&source.name, source.items.as_ref(), source.default_mode, source.optional).await
    }

    pub(super) async fn secret(&self, source: &core::SecretVolumeSource) -> Result<Payload, String> {
        let name = source.secret_name.as_deref().unwrap_or_default();
        self.of_secret(name, source.items.as_ref(), source.default_mode, source.optional).await
    }

    pub(super) fn downward<'i>(
        &self,
        items: impl Iterator<Item = &'i core::DownwardAPIVolumeFile>,
        default_mode: Option<i32>,
    ) -> Result<Payload, String> {
        let mut payload = Payload::new();
        for item in items {
            let text = if let Some(reference) = &item.field_ref {
                env::field(self.sources, &reference.field_path)?
            } else if let Some(reference) = &item.resource_field_ref {
                let name = reference.container_name.as_deref().unwrap_or_default();
                let container = spec::find(self.sources.pod, name).map(|(container, _)| container);
                let container = container.ok_or_else(|| format!("container {name} not found"))?;
                env::resource(container, reference, self.sources.allocatable)?
            } else {
                return Err(format!("the file {:?} has no source", item.path));
            };
            payload
                .insert(item.path.clone(), File { bytes: text.into_bytes(), mode: file_mode(item.mode, default_mode) });
        }
        Ok(payload)
    }

    pub(super) async fn projected(&self, source: &core::ProjectedVolumeSource) -> Result<Payload, String> {
        let mode = source.default_mode;
        let mut payload = Payload::new();
        for part in source.sources.iter().flatten() {
            let files = if let Some(map) = &part.config_map {
                self.of_config_map(&map.name, map.items.as_ref(), mode, map.optional).await?
            } else if let Some(secret) = &part.secret {
                self.of_secret(&secret.name, secret.items.as_ref(), mode, secret.optional).await?
            } else if let Some(fields) = &part.downward_api {
                self.downward(fields.items.iter().flatten(), mode)?
            } else if let Some(token) = &part.service_account_token {
                let bytes = self.token(token).await?.into_bytes();
                Payload::from([(token.path.clone(), File { bytes, mode: file_mode(None, mode) })])
            } else {
                return Err("a source of a projected volume is not supported by the node agent yet".to_owned());
            };
            payload.extend(files);
        }
        Ok(payload)
    }

    /// A token of the pod's service account, renewed when four fifths of its time are over.
    async fn token(&self, source: &core::ServiceAccountTokenProjection) -> Result<String, String> {
        let pod = self.sources.pod;
        let account =
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty());
        let account = account.unwrap_or("default");
        let audience = source.audience.clone().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let key = (spec::uid(pod).to_owned(), audience.clone(), seconds);
        let now = Timestamp::now();
        let cached = self.tokens.cached.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(token) = cached.filter(|token| token.renew_at > now) {
            return Ok(token.text);
        }
        let audiences: Vec<&str> = if audience.is_empty() { Vec::new() } else { vec![&audience] };
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": self.namespace()},
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": spec::name(pod), "uid": spec::uid(pod)},
            },
        });
        let accounts = resources::service_accounts();
        let answer = self.client.create(
            &accounts,
            Some(self.namespace()),
            Some((account, "token")),
            request,
            WriteOptions::default(),
        );
        let answer = answer.await.map_err(|status| format!("failed to fetch token: {status}"))?;
        let status = &answer.value()["status"];
        let text = status["token"].as_str().ok_or("failed to fetch token: the answer has none")?.to_owned();
        let expires = status["expirationTimestamp"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        let lifetime = expires.map_or(SignedDuration::from_secs(seconds), |expires| expires.duration_since(now));
        let renew_at = now.checked_add(lifetime * 4 / 5).unwrap_or(now);
        let token = Token { text: text.clone(), renew_at };
        self.tokens.cached.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, path: &str, mode: Option<i32>) -> core::KeyToPath {
        core::KeyToPath { key: key.to_owned(), path: path.to_owned(), mode }
    }

    #[test]
    fn items_choose_names_and_modes() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let all = choose(UNKNOWN_CONFIG_KEY, &data, None, Some(0o400), false).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all["a"].mode, 0o400);
        let items = vec![item("b", "x/y", Some(0o600)), item("c", "z", None)];
        let some = choose(UNKNOWN_CONFIG_KEY, &data, Some(&items), None, true).unwrap();
        assert_eq!((some.len(), some["x/y"].mode), (1, 0o600));
        let error = choose(UNKNOWN_CONFIG_KEY, &data, Some(&items), None, false).unwrap_err();
        assert_eq!(error, "configmap references non-existent config key: c");
    }
}
