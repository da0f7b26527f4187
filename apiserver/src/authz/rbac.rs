//! Role-based access control: roles grant, bindings say to whom.
//!
//! Source: "Using RBAC Authorization" and the types of rbac.authorization.k8s.io/v1.

use std::sync::Arc;

use quorate_proto::object::Object;
use quorate_proto::selector::LabelSelector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attributes, Decision};
use crate::authn::User;
use crate::mirror::Mirror;

const ALL: &str = "*";

/// What may be done to what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// A Role or a ClusterRole.
#[derive(Debug)]
pub struct Role {
    pub labels: std::collections::BTreeMap<String, String>,
    pub rules: Vec<Rule>,
    /// A ClusterRole may take over the rules of those that these select.
    pub aggregates: Vec<LabelSelector>,
}

/// A RoleBinding or a ClusterRoleBinding.
#[derive(Debug)]
pub struct Binding {
    pub namespace: String,
    pub name: String,
    pub subjects: Vec<Subject>,
    pub role: RoleRef,
}

/// One of those whom a binding is about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Subject {
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

/// The role that a binding grants.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !matches(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.is_resource_request {
            return self.non_resource_urls.iter().any(|pattern| covers_path(pattern, &attributes.path));
        }
        matches(&self.api_groups, &attributes.api_group)
            && self.covers_resource(&attributes.resource, &attributes.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|candidate| {
            candidate == ALL
                || match candidate.split_once('/') {
                    None => subresource.is_empty() && candidate == resource,
                    Some((parent, sub)) => {
                        !subresource.is_empty() && sub == subresource && (parent == ALL || parent == resource)
                    }
                }
        })
    }

    /// Whether everything that `other` grants is granted by `self` alone.
    pub fn covers(&self, other: &Self) -> bool {
        let all_in = |ours: &[String], theirs: &[String]| theirs.iter().all(|item| matches(ours, item));
        let resources = other.resources.iter().all(|resource| {
            let (parent, sub) = resource.split_once('/').unwrap_or((resource, ""));
            self.resources.contains(resource) || self.covers_resource(parent, sub)
        });
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty()
                && other.resource_names.iter().all(|name| self.resource_names.contains(name)));
        let paths = other
            .non_resource_urls
            .iter()
            .all(|path| self.non_resource_urls.iter().any(|ours| covers_path(ours, path)));
        all_in(&self.verbs, &other.verbs) && all_in(&self.api_groups, &other.api_groups) && resources && names && paths
    }

    /// Splits into rules of one verb, group, resource and name each: what escalation
    /// checks compare, because several rules together may cover one.
    pub fn atoms(&self) -> Vec<Self> {
        let one = |item: &String| vec![item.clone()];
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                atoms.push(Self { verbs: one(verb), non_resource_urls: one(path), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom =
                        Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                    } else {
                        let named =
                            self.resource_names.iter().map(|name| Self { resource_names: one(name), ..atom.clone() });
                        atoms.extend(named);
                    }
                }
            }
        }
        atoms
    }
}

fn matches(patterns: &[String], item: &str) -> bool {
    patterns.iter().any(|pattern| pattern == ALL || pattern == item)
}

fn covers_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

impl Subject {
    /// `namespace` is the binding's, for service accounts that name none.
    pub fn is(&self, user: &User, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
                !namespace.is_empty() && user.service_account() == Some((namespace, &self.name))
            }
            _ => false,
        }
    }
}

/// Reads a Role or a ClusterRole.
pub fn role(object: &Arc<Object>) -> Option<Role> {
    let value = object.value();
    let rules = match &value["rules"] {
        Value::Null => Vec::new(),
        rules => serde_json::from_value(rules.clone()).ok()?,
    };
    let selectors = value["aggregationRule"]["clusterRoleSelectors"].as_array();
    let aggregates =
        selectors.into_iter().flatten().filter_map(|selector| LabelSelector::from_object(selector).ok()).collect();
    Some(Role { labels: object.meta().labels.clone(), rules, aggregates })
}

/// Reads a RoleBinding or a ClusterRoleBinding.
pub fn binding(object: &Arc<Object>) -> Option<Binding> {
    let value = object.value();
    let subjects = match &value["subjects"] {
        Value::Null => Vec::new(),
        subjects => serde_json::from_value(subjects.clone()).ok()?,
    };
    Some(Binding {
        namespace: object.meta().namespace.clone(),
        name: object.meta().name.clone(),
        subjects,
        role: serde_json::from_value(value["roleRef"].clone()).ok()?,
    })
}

/// The roles and bindings of the cluster, as of a moment ago.
pub struct Rbac {
    pub roles: Arc<Mirror<Role>>,
    pub cluster_roles: Arc<Mirror<Role>>,
    pub bindings: Arc<Mirror<Binding>>,
    pub cluster_bindings: Arc<Mirror<Binding>>,
}

impl Rbac {
    /// Nothing granted until the mirrors are filled.
    pub fn new() -> Self {
        Self {
            roles: Mirror::new(),
            cluster_roles: Mirror::new(),
            bindings: Mirror::new(),
            cluster_bindings: Mirror::new(),
        }
    }

    pub fn decide(&self, attributes: &Attributes) -> Decision {
        let mut missing = Vec::new();
        let namespace = if attributes.is_resource_request { attributes.namespace.as_str() } else { "" };
        for binding in self.bindings_of(&attributes.user, namespace) {
            let Some(rules) = self.rules_of(&binding) else {
                missing.push(missing_role(&binding));
                continue;
            };
            if rules.iter().any(|rule| rule.allows(attributes)) {
                return Decision::Allowed(grant(&binding, &attributes.user));
            }
        }
        Decision::NoOpinion(match missing.len() {
            0 => String::new(),
            1 => format!("RBAC: {}", missing[0]),
            _ => format!("RBAC: [{}]", missing.join(", ")),
        })
    }

    /// Everything that `user` may do in `namespace` (or, if empty, everywhere).
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Rule> {
        self.bindings_of(user, namespace).iter().filter_map(|binding| self.rules_of(binding)).flatten().collect()
    }

    /// Whether `user` holds everything that `rules` would grant in `namespace`.
    pub fn holds(&self, user: &User, namespace: &str, rules: &[Rule]) -> bool {
        let held = self.rules_for(user, namespace);
        rules.iter().flat_map(Rule::atoms).all(|atom| held.iter().any(|rule| rule.covers(&atom)))
    }

    /// The rules of a named role; `None` when it does not exist.
    pub fn rules_of_role(&self, namespace: &str, reference: &RoleRef) -> Option<Vec<Rule>> {
        let role = match reference.kind.as_str() {
            "Role" => self.roles.get(&format!("{namespace}/{}", reference.name)),
            _ => self.cluster_roles.get(&reference.name),
        }?;
        let mut rules = role.rules.clone();
        if !role.aggregates.is_empty() {
            let selected = |other: &Role| role.aggregates.iter().any(|selector| selector.matches(&other.labels));
            for other in self.cluster_roles.all().iter().filter(|other| selected(other)) {
                rules.extend(other.rules.iter().cloned());
            }
        }
        Some(rules)
    }

    fn rules_of(&self, binding: &Binding) -> Option<Vec<Rule>> {
        self.rules_of_role(&binding.namespace, &binding.role)
    }

    fn bindings_of(&self, user: &User, namespace: &str) -> Vec<Arc<Binding>> {
        let concerns = |binding: &Binding| binding.subjects.iter().any(|subject| subject.is(user, &binding.namespace));
        let mut bindings: Vec<_> =
            self.cluster_bindings.all().into_iter().filter(|binding| concerns(binding)).collect();
        if !namespace.is_empty() {
            let local = self.bindings.all().into_iter();
            bindings.extend(local.filter(|binding| binding.namespace == namespace && concerns(binding)));
        }
        bindings
    }
}

impl Default for Rbac {
    fn default() -> Self {
        Self::new()
    }
}

fn missing_role(binding: &Binding) -> String {
    let resource = if binding.role.kind == "Role" { "role" } else { "clusterrole" };
    format!("{resource}.rbac.authorization.k8s.io {:?} not found", binding.role.name)
}

fn grant(binding: &Binding, user: &User) -> String {
    let subject = binding.subjects.iter().find(|subject| subject.is(user, &binding.namespace));
    let whom = subject.map(|subject| match subject.kind.as_str() {
        "ServiceAccount" => format!("ServiceAccount \"{}/{}\"", subject.name, subject.namespace),
        kind => format!("{kind} {:?}", subject.name),
    });
    let (kind, name) = if binding.namespace.is_empty() {
        ("ClusterRoleBinding", binding.name.clone())
    } else {
        ("RoleBinding", format!("{}/{}", binding.name, binding.namespace))
    };
    format!(
        "RBAC: allowed by {kind} {name:?} of {} {:?} to {}",
        binding.role.kind,
        binding.role.name,
        whom.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::attributes;
    use super::*;

    #[track_caller]
    fn check(rule: Value, verb: &str, what: &str, name: &str, expected: bool) {
        let rule: Rule = serde_json::from_value(rule).unwrap();
        let attributes = attributes(User::default(), verb, what, "a", name);
        assert_eq!(rule.allows(&attributes), expected, "{verb} {what} {name} by {rule:?}");
    }

    #[test]
    fn rules_match_as_documented() {
        let deployments = json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["deployments"]});
        check(deployments.clone(), "get", "apps/deployments", "web", true);
        check(deployments.clone(), "get", "apps/deployments/scale", "web", false);
        check(deployments.clone(), "list", "apps/deployments", "", false);
        check(deployments, "get", "batch/deployments", "", false);
        let scale = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]});
        check(scale.clone(), "patch", "apps/deployments/scale", "web", true);
        check(scale, "patch", "apps/deployments", "web", false);
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        check(all.clone(), "get", "a/b/c", "d", true);
        check(all, "get", "/metrics", "", false);
        let named = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"]});
        check(
            json!({"verbs": ["get"], "apiGroups": ["g"], "resources": ["s"], "resourceNames": ["x"]}),
            "get",
            "g/s",
            "x",
            true,
        );
        check(named, "get", "g/secrets", "y", false);
        let paths = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]});
        check(paths.clone(), "get", "/healthz", "", true);
        check(paths.clone(), "get", "/api/v1", "", true);
        check(paths, "get", "/healthz/etcd", "", false);
    }

    #[test]
    fn subjects_are_users_groups_and_service_accounts() {
        let user = User::of_service_account("a", "web", "u");
        let subject = |kind: &str, name: &str, namespace: &str| Subject {
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        };
        assert!(subject("ServiceAccount", "web", "a").is(&user, ""));
        assert!(subject("ServiceAccount", "web", "").is(&user, "a"));
        assert!(!subject("ServiceAccount", "web", "b").is(&user, "a"));
        assert!(subject("Group", "system:serviceaccounts:a", "").is(&user, ""));
        assert!(subject("User", "system:serviceaccount:a:web", "").is(&user, ""));
        assert!(!subject("Robot", "web", "a").is(&user, "a"));
    }

    #[test]
    fn several_rules_together_cover_one() {
        let rule = |value: Value| serde_json::from_value::<Rule>(value).unwrap();
        let wanted = rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}));
        let held = [
            rule(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]})),
            rule(json!({"verbs": ["get", "list"], "apiGroups": ["*"], "resources": ["*/log"]})),
        ];
        assert!(wanted.atoms().iter().all(|atom| held.iter().any(|rule| rule.covers(atom))));
        let named = rule(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]}));
        assert!(!wanted.atoms().iter().all(|atom| named.covers(atom)));
    }
}
