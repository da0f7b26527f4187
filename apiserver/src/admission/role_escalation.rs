//! Nobody grants more than they have: roles and bindings are checked against the
//! rights of whoever writes them, unless they hold `escalate` or `bind`.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use serde_json::Value;

use super::{Admission, Attributes, Operation};
use crate::authn::MASTERS;
use crate::authz::rbac::{RoleRef, Rule};
use crate::authz::{self, Authorizer};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Upstream does this in the storage of RBAC; as a plugin it covers every way to write.
pub(super) struct RoleEscalation {
    authorizer: Arc<Authorizer>,
}

impl RoleEscalation {
    pub(super) fn new(authorizer: &Arc<Authorizer>) -> Self {
        Self { authorizer: Arc::clone(authorizer) }
    }

    fn check(&self, attributes: Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        let namespace = attributes.namespace;
        let (rules, verb, name) = match attributes.resource {
            "roles" | "clusterroles" => {
                if old.is_some_and(|old| old["rules"] == object["rules"]) {
                    return Ok(());
                }
                let rules: Vec<Rule> = serde_json::from_value(object["rules"].clone()).unwrap_or_default();
                (rules, "escalate", attributes.name.to_owned())
            }
            "rolebindings" | "clusterrolebindings" => {
                if old.is_some_and(|old| old["subjects"] == object["subjects"] && old["roleRef"] == object["roleRef"]) {
                    return Ok(());
                }
                let reference: RoleRef = serde_json::from_value(object["roleRef"].clone()).unwrap_or_default();
                let resource = if reference.kind == "Role" { "roles" } else { "clusterroles" };
                if self.may(attributes, "bind", resource, &reference.name) {
                    return Ok(());
                }
                let Some(rules) = self.authorizer.rbac.rules_of_role(namespace, &reference) else {
                    return Err(Status::not_found(GROUP, resource, &reference.name));
                };
                (rules, "bind", reference.name)
            }
            _ => return Ok(()),
        };
        let allowed = (verb == "escalate" && self.may(attributes, verb, attributes.resource, &name))
            || self.authorizer.rbac.holds(attributes.user, namespace, &rules);
        if allowed {
            return Ok(());
        }
        let held = self.authorizer.rbac.rules_for(attributes.user, namespace);
        let excess: Vec<Rule> =
            rules.iter().flat_map(Rule::atoms).filter(|atom| !held.iter().any(|rule| rule.covers(atom))).collect();
        let user = &attributes.user.name;
        let groups = attributes.user.groups.iter().map(|group| format!("{group:?}")).collect::<Vec<_>>().join(" ");
        let why = format!(
            "user {user:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}",
            excess.iter().map(describe).collect::<Vec<_>>().join("\n")
        );
        Err(Status::forbidden(attributes.group, attributes.resource, attributes.name, &why))
    }

    fn may(&self, attributes: Attributes<'_>, verb: &str, resource: &str, name: &str) -> bool {
        let question = authz::Attributes {
            user: attributes.user.clone(),
            verb: verb.to_owned(),
            is_resource_request: true,
            api_group: GROUP.to_owned(),
            api_version: attributes.version.to_owned(),
            resource: resource.to_owned(),
            namespace: attributes.namespace.to_owned(),
            name: name.to_owned(),
            ..authz::Attributes::default()
        };
        self.authorizer.decide(&question).is_allowed()
    }
}

impl Admission for RoleEscalation {
    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        let concerned = attributes.group == GROUP && writes && !attributes.user.is_in(MASTERS);
        let outcome = match object {
            Some(object) if concerned => self.check(attributes, object, old),
            _ => Ok(()),
        };
        Box::pin(std::future::ready(outcome))
    }
}

/// One excess right, as upstream's messages print rules.
fn describe(rule: &Rule) -> String {
    let list = |name: &str, items: &[String]| {
        let items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
        (!items.is_empty()).then(|| format!("{name}:[{}]", items.join(" ")))
    };
    let parts = [
        list("APIGroups", &rule.api_groups),
        list("Resources", &rule.resources),
        list("ResourceNames", &rule.resource_names),
        list("NonResourceURLs", &rule.non_resource_urls),
        list("Verbs", &rule.verbs),
    ];
    format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}
