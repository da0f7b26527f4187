//! The resources that are questions about permission. None of them is stored.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::{Value, json};

use super::{Attributes, Authorizer};
use crate::authn::User;
use crate::registry::context::RequestContext;
use crate::registry::hooks::VirtualResource;

/// Whose permission a review is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `SelfSubjectAccessReview`: the asker's.
    Asker,
    /// `SubjectAccessReview`: whoever the spec names.
    Named,
    /// `LocalSubjectAccessReview`: whoever the spec names, in the request's namespace.
    NamedHere,
}

/// The three access reviews.
pub struct AccessReview {
    pub authorizer: Arc<Authorizer>,
    pub subject: Subject,
}

/// `SelfSubjectRulesReview`: everything that the asker may do.
pub struct RulesReview(pub Arc<Authorizer>);

impl VirtualResource for AccessReview {
    fn create<'a>(
        &'a self,
        context: &'a RequestContext,
        namespace: &'a str,
        _name: &'a str,
        mut object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move {
            let attributes = self.question(context, namespace, &object["spec"])?;
            let decision = self.authorizer.decide(&attributes);
            let mut status = json!({"allowed": decision.is_allowed()});
            if !decision.reason().is_empty() {
                status["reason"] = json!(decision.reason());
            }
            object["status"] = status;
            Ok(object)
        })
    }
}

impl AccessReview {
    fn question(&self, context: &RequestContext, namespace: &str, spec: &Value) -> Result<Attributes, Status> {
        let user = match self.subject {
            Subject::Asker => context.user.clone(),
            Subject::Named | Subject::NamedHere => named_user(spec)?,
        };
        let attributes = attributes(user, spec)?;
        if self.subject == Subject::NamedHere && attributes.namespace != namespace {
            return Err(Status::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {namespace}"
            )));
        }
        Ok(attributes)
    }
}

fn named_user(spec: &Value) -> Result<User, Status> {
    let user = User {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: serde_json::from_value(spec["groups"].clone()).unwrap_or_default(),
        extra: serde_json::from_value(spec["extra"].clone()).unwrap_or_default(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Status::bad_request("at least one of user or group must be specified"));
    }
    Ok(user)
}

fn attributes(user: User, spec: &Value) -> Result<Attributes, Status> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), path.is_object()) {
        (true, false) => Ok(Attributes {
            user,
            is_resource_request: true,
            verb: text(&resource["verb"]),
            api_group: text(&resource["group"]),
            api_version: text(&resource["version"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            ..Attributes::default()
        }),
        (false, true) => {
            Ok(Attributes { user, verb: text(&path["verb"]), path: text(&path["path"]), ..Attributes::default() })
        }
        _ => Err(Status::bad_request("exactly one of nonResourceAttributes or resourceAttributes must be specified")),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

impl VirtualResource for RulesReview {
    fn create<'a>(
        &'a self,
        context: &'a RequestContext,
        _namespace: &'a str,
        _name: &'a str,
        mut object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move {
            let namespace = text(&object["spec"]["namespace"]);
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            let rules = self.0.rbac.rules_for(&context.user, &namespace);
            let (paths, resources): (Vec<_>, Vec<_>) =
                rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
            object["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
            Ok(object)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_asks_about_one_thing() {
        let both = json!({"resourceAttributes": {}, "nonResourceAttributes": {}});
        for spec in [json!({}), both] {
            assert_eq!(attributes(User::default(), &spec).unwrap_err().code, 400, "{spec}");
        }
        let spec = json!({"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "a"}});
        let asked = attributes(User::default(), &spec).unwrap();
        assert_eq!((asked.verb.as_str(), asked.namespace.as_str(), asked.is_resource_request), ("get", "a", true));
    }

    #[test]
    fn a_review_names_somebody() {
        assert!(named_user(&json!({})).is_err());
        assert!(named_user(&json!({"groups": ["a"]})).unwrap().is_in("a"));
    }
}
