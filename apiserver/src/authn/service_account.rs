//! Tokens of service accounts against the state of the cluster: a token dies with
//! its account, and a bound one with its pod, secret or node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_proto::gvk::GroupVersionResource;
use quorate_runtime::client::Client;
use sha2::{Digest, Sha256};

use super::token::{Claims, Reference, TokenKeys};
use super::user::User;
use super::x509::CREDENTIAL_ID;

/// How long a judgement is reused. Upstream's value: a deleted account is cut off by then.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// Judgements remembered at once; beyond that the table starts anew.
const REMEMBERED_MAX: usize = 4096;

type Digest256 = [u8; 32];

/// Judges tokens, and makes them.
pub struct ServiceAccounts {
    keys: TokenKeys,
    client: Arc<dyn Client>,
    remembered: Mutex<HashMap<Digest256, (Instant, User)>>,
}

impl ServiceAccounts {
    pub fn new(keys: TokenKeys, client: Arc<dyn Client>) -> Self {
        Self { keys, client, remembered: Mutex::default() }
    }

    pub fn keys(&self) -> &TokenKeys {
        &self.keys
    }

    pub fn client(&self) -> &Arc<dyn Client> {
        &self.client
    }

    /// The audiences that this API answers to.
    pub fn audiences(&self) -> Vec<String> {
        vec![self.keys.issuer().to_owned()]
    }

    /// The user of a token meant for this API, if it is good.
    pub async fn authenticate(&self, token: &str) -> Option<User> {
        let digest: Digest256 = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.recall(&digest) {
            return Some(user);
        }
        let (user, _) = self.judge(token, &self.audiences()).await?;
        let mut remembered = self.remembered.lock().expect("no holder of this lock panics");
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(digest, (Instant::now(), user.clone()));
        Some(user)
    }

    fn recall(&self, digest: &Digest256) -> Option<User> {
        let remembered = self.remembered.lock().expect("no holder of this lock panics");
        let (since, user) = remembered.get(digest)?;
        (since.elapsed() < REMEMBERED_FOR).then(|| user.clone())
    }

    /// The user of a token, and which of `audiences` it is meant for.
    pub async fn judge(&self, token: &str, audiences: &[String]) -> Option<(User, Vec<String>)> {
        let claims = self.keys.verify(token, audiences)?;
        let private = &claims.kubernetes;
        let namespace = private.namespace.as_str();
        let expected = format!("system:serviceaccount:{namespace}:{}", private.serviceaccount.name);
        if claims.sub != expected || !self.exists("serviceaccounts", namespace, &private.serviceaccount).await {
            return None;
        }
        let bound = [("pods", &private.pod), ("secrets", &private.secret)];
        for (resource, reference) in bound {
            if let Some(reference) = reference
                && !self.exists(resource, namespace, reference).await
            {
                return None;
            }
        }
        // A node named beside a pod is a note; alone it is what the token is bound to.
        if let (Some(node), None) = (&private.node, &private.pod)
            && !self.exists("nodes", "", node).await
        {
            return None;
        }
        let matching = audiences.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        Some((user(&claims), matching))
    }

    async fn exists(&self, resource: &str, namespace: &str, reference: &Reference) -> bool {
        let gvr = GroupVersionResource::new("", "v1", resource);
        let namespace = (!namespace.is_empty()).then_some(namespace);
        match self.client.get(&gvr, namespace, &reference.name).await {
            Ok(object) => object.meta().uid == reference.uid,
            Err(status) => {
                if !status.is_not_found() {
                    tracing::warn!(error = %status, resource, "could not look up what a token is bound to");
                }
                false
            }
        }
    }
}

fn user(claims: &Claims) -> User {
    let private = &claims.kubernetes;
    let account = &private.serviceaccount;
    let mut user = User::of_service_account(&private.namespace, &account.name, &account.uid);
    let mut add = |key: &str, value: String| user.extra.insert(key.to_owned(), vec![value]);
    if !claims.jti.is_empty() {
        add(CREDENTIAL_ID, format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &private.pod {
        add("authentication.kubernetes.io/pod-name", pod.name.clone());
        add("authentication.kubernetes.io/pod-uid", pod.uid.clone());
    }
    if let Some(node) = &private.node {
        add("authentication.kubernetes.io/node-name", node.name.clone());
        if !node.uid.is_empty() {
            add("authentication.kubernetes.io/node-uid", node.uid.clone());
        }
    }
    user
}

#[cfg(test)]
mod tests {
    use super::super::token::tests::claims;
    use super::*;

    #[test]
    fn a_tokens_user_carries_what_it_is_bound_to() {
        let mut claims = claims("a", 60);
        claims.kubernetes.pod = Some(Reference { name: "web-1".to_owned(), uid: "p".to_owned() });
        let user = user(&claims);
        assert_eq!(user.service_account(), Some(("default", "web")));
        assert!(user.is_in("system:serviceaccounts:default"));
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web-1"]);
    }
}
