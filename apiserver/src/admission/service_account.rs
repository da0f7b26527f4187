//! Every pod runs as a service account, and gets a token of it unless it declines.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::Client;
use quorate_runtime::informer::{Informers, Lister};
use quorate_runtime::resources;
use serde_json::{Value, json};

use super::{Admission, Attributes, Operation};

/// Where clients in pods look for their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";

/// Upstream's lifetime of these tokens; `authn::review` knows what it stands for.
const TOKEN_SECONDS: i64 = 3607;

/// A mirror pod is made by a node from a file, and has no account.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The plugin `ServiceAccount`.
pub(super) struct ServiceAccount {
    client: Arc<dyn Client>,
    accounts: Lister,
}

impl ServiceAccount {
    pub(super) fn new(client: &Arc<dyn Client>, informers: &Informers) -> Self {
        Self { client: Arc::clone(client), accounts: informers.informer(&resources::service_accounts()).lister() }
    }

    async fn account(&self, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        if let Some(account) = self.accounts.get(&format!("{namespace}/{name}")) {
            return Ok(account);
        }
        self.client.get(&resources::service_accounts(), Some(namespace), name).await
    }
}

impl Admission for ServiceAccount {
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            if !is_new_pod(attributes) || is_mirror(object) {
                return Ok(());
            }
            let name = match object["spec"]["serviceAccountName"].as_str() {
                Some(name) if !name.is_empty() => name.to_owned(),
                _ => "default".to_owned(),
            };
            let account = match self.account(attributes.namespace, &name).await {
                Ok(account) => account,
                Err(status) if status.is_not_found() => {
                    let why =
                        format!("error looking up service account {}/{name}: {}", attributes.namespace, status.message);
                    return Err(Status::forbidden("", "pods", attributes.name, &why));
                }
                Err(status) => return Err(status),
            };
            let suffix = random_suffix();
            apply(object, &name, account.value(), &suffix);
            Ok(())
        })
    }

    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: Option<&'a Value>,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let refused = object
            .filter(|object| is_new_pod(attributes) && is_mirror(object))
            .is_some_and(|pod| pod["spec"]["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()));
        Box::pin(std::future::ready(if refused {
            Err(Status::forbidden("", "pods", attributes.name, "a mirror pod may not reference service accounts"))
        } else {
            Ok(())
        }))
    }
}

fn is_new_pod(attributes: Attributes<'_>) -> bool {
    attributes.operation == Operation::Create
        && attributes.group.is_empty()
        && attributes.resource == "pods"
        && attributes.subresource.is_empty()
}

fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR_ANNOTATION).is_some()
}

/// Five characters, as generated names end in.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

/// Gives `pod` the account's name, pull secrets and token. Changes nothing that is there.
fn apply(pod: &mut Value, name: &str, account: &Value, suffix: &str) {
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = json!(name);
    spec["serviceAccount"] = json!(name);
    if is_empty(&spec["imagePullSecrets"]) && !is_empty(&account["imagePullSecrets"]) {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let automount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec, suffix);
    }
}

fn mount_token(spec: &mut Value, suffix: &str) {
    let existing =
        spec["volumes"].as_array().into_iter().flatten().find_map(|volume| {
            volume["name"].as_str().filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned)
        });
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut used = false;
    for containers in ["initContainers", "containers"] {
        for container in spec.get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            let taken = mounts.as_array().into_iter().flatten().any(|mount| mount["mountPath"] == MOUNT_PATH);
            if taken {
                continue;
            }
            push(mounts, json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            used = true;
        }
    }
    if used && existing.is_none() {
        push(&mut spec["volumes"], token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ],
        },
    })
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = Value::Array(vec![item]),
    }
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_account_and_token_once() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        apply(&mut pod, "default", &json!({"imagePullSecrets": [{"name": "pull"}]}), "abcde");
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["imagePullSecrets"][0]["name"], "pull");
        assert!(spec.get("initContainers").is_none(), "nothing appears that was not there: {spec}");
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "own");
        let before = pod.clone();
        apply(&mut pod, "default", &json!({}), "other");
        assert_eq!(pod, before, "a second run changes nothing");
    }

    #[test]
    fn pod_and_account_may_decline_the_token() {
        let mut pod = json!({"spec": {"automountServiceAccountToken": false, "containers": [{}]}});
        apply(&mut pod, "a", &json!({}), "abcde");
        assert!(pod["spec"].get("volumes").is_none());
        let mut pod = json!({"spec": {"containers": [{}]}});
        apply(&mut pod, "a", &json!({"automountServiceAccountToken": false}), "abcde");
        assert!(pod["spec"].get("volumes").is_none());
    }
}
