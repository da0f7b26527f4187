//! The resources that are questions about identity: TokenRequest, TokenReview,
//! SelfSubjectReview. None of them is stored.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use quorate_proto::status::{Status, StatusCause};
use serde_json::{Value, json};

use super::service_account::ServiceAccounts;
use super::token::{Claims, Private, Reference};
use crate::registry::context::RequestContext;
use crate::registry::hooks::VirtualResource;

/// What a request for a token gets when it names no lifetime.
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// The lifetime that token volumes ask for. Upstream grants those a year, because old
/// clients never read the file again, and tells by `warnafter` when it should have ended.
const VOLUME_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// `serviceaccounts/token`.
pub struct TokenRequest(pub Arc<ServiceAccounts>);

/// `authentication.k8s.io/v1 TokenReview`.
pub struct TokenReview(pub Arc<ServiceAccounts>);

/// `authentication.k8s.io/v1 SelfSubjectReview`.
pub struct SelfSubjectReview;

impl VirtualResource for TokenRequest {
    fn create<'a>(
        &'a self,
        _context: &'a RequestContext,
        namespace: &'a str,
        name: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(self.issue(namespace, name, object))
    }
}

impl TokenRequest {
    async fn issue(&self, namespace: &str, name: &str, mut request: Value) -> Result<Value, Status> {
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
        check_lifetime(seconds)?;
        let mut audiences = texts(&request["spec"]["audiences"]);
        if audiences.is_empty() {
            audiences = self.0.audiences();
        }
        let account = self.get("serviceaccounts", namespace, name).await?;
        if let Some(metadata) = request.get("metadata") {
            let uid = metadata["uid"].as_str().unwrap_or("");
            if !uid.is_empty() && uid != account.meta().uid {
                return Err(uid_conflict("serviceaccounts", name, uid, &account.meta().uid));
            }
        }
        let mut private = Private {
            namespace: namespace.to_owned(),
            serviceaccount: Reference { name: name.to_owned(), uid: account.meta().uid.clone() },
            ..Private::default()
        };
        let bound = request["spec"]["boundObjectRef"].clone();
        if bound.is_object() {
            self.bind(&bound, namespace, name, &mut private).await?;
        }
        let now = jiff::Timestamp::now().as_second();
        let mut expires = now + seconds;
        if seconds == VOLUME_SECONDS && private.pod.is_some() && audiences == self.0.audiences() {
            private.warnafter = Some(expires);
            expires = now + EXTENDED_SECONDS;
        }
        let claims = Claims {
            aud: audiences.clone(),
            exp: expires,
            iat: now,
            iss: self.0.keys().issuer().to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: private,
            nbf: now,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
        };
        let token = self.0.keys().sign(&claims).map_err(Status::internal)?;
        request["kind"] = json!("TokenRequest");
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["metadata"]["name"] = json!(name);
        request["metadata"]["namespace"] = json!(namespace);
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = json!(seconds);
        request["status"] = json!({"expirationTimestamp": rfc3339(now + seconds), "token": token});
        Ok(request)
    }

    async fn bind(&self, bound: &Value, namespace: &str, account: &str, private: &mut Private) -> Result<(), Status> {
        let (kind, name) = (bound["kind"].as_str().unwrap_or(""), bound["name"].as_str().unwrap_or(""));
        let resource = match kind {
            "Pod" => "pods",
            "Secret" => "secrets",
            "Node" => "nodes",
            _ => {
                let version = bound["apiVersion"].as_str().unwrap_or("");
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to object of type {version}, Kind={kind}"
                )));
            }
        };
        let object = self.get(resource, if resource == "nodes" { "" } else { namespace }, name).await?;
        let uid = &object.meta().uid;
        let wanted = bound["uid"].as_str().unwrap_or("");
        if !wanted.is_empty() && wanted != uid {
            return Err(uid_conflict(resource, name, wanted, uid));
        }
        let reference = Some(Reference { name: name.to_owned(), uid: uid.clone() });
        match resource {
            "pods" => {
                let spec = &object.value()["spec"];
                if spec["serviceAccountName"].as_str() != Some(account) {
                    let used = spec["serviceAccountName"].as_str().unwrap_or("");
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name {used:?}."
                    )));
                }
                if let Some(node) = spec["nodeName"].as_str().filter(|node| !node.is_empty()) {
                    let uid = self.get("nodes", "", node).await.map(|node| node.meta().uid.clone()).unwrap_or_default();
                    private.node = Some(Reference { name: node.to_owned(), uid });
                }
                private.pod = reference;
            }
            "secrets" => private.secret = reference,
            _ => private.node = reference,
        }
        Ok(())
    }

    async fn get(&self, resource: &str, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        let gvr = GroupVersionResource::new("", "v1", resource);
        self.0.client().get(&gvr, (!namespace.is_empty()).then_some(namespace), name).await
    }
}

fn check_lifetime(seconds: i64) -> Result<(), Status> {
    let why = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let cause = StatusCause {
        reason: "FieldValueInvalid".to_owned(),
        message: format!("Invalid value: {seconds}: {why}"),
        field: "spec.expirationSeconds".to_owned(),
    };
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause]))
}

fn uid_conflict(resource: &str, name: &str, wanted: &str, found: &str) -> Status {
    let why = format!(
        "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated: {found}"
    );
    Status::conflict("", resource, name, &why)
}

impl VirtualResource for TokenReview {
    fn create<'a>(
        &'a self,
        _context: &'a RequestContext,
        _namespace: &'a str,
        _name: &'a str,
        mut object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move {
            let token = object["spec"]["token"].as_str().unwrap_or("").to_owned();
            if token.is_empty() {
                return Err(Status::bad_request("token is required for TokenReview in authentication"));
            }
            let asked = texts(&object["spec"]["audiences"]);
            let audiences = if asked.is_empty() { self.0.audiences() } else { asked };
            object["status"] = match self.0.judge(&token, &audiences).await {
                Some((user, matching)) => json!({"authenticated": true, "user": user, "audiences": matching}),
                None => json!({"user": {}, "error": "invalid bearer token"}),
            };
            Ok(object)
        })
    }
}

impl VirtualResource for SelfSubjectReview {
    fn create<'a>(
        &'a self,
        context: &'a RequestContext,
        _namespace: &'a str,
        _name: &'a str,
        mut object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move {
            object["metadata"]["creationTimestamp"] = json!(rfc3339(jiff::Timestamp::now().as_second()));
            object["status"] = json!({"userInfo": context.user});
            Ok(object)
        })
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A time in whole seconds, as API objects write it.
pub fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_bounded() {
        assert!(check_lifetime(600).is_ok());
        assert_eq!(
            check_lifetime(599).unwrap_err().message,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"
        );
        assert!(check_lifetime(MAX_SECONDS + 1).is_err());
    }
}
