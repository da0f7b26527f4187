//! Who may do what: masters everything, nodes what concerns them, everybody else
//! what RBAC grants.

pub mod node;
pub mod rbac;
pub mod review;

use quorate_proto::status::Status;

use crate::authn::{MASTERS, User};
use crate::http::{Query, RequestInfo};

pub use node::NodeView;
pub use rbac::Rbac;

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub user: User,
    pub verb: String,
    pub is_resource_request: bool,
    pub api_group: String,
    pub api_version: String,
    /// The plural.
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// For non-resource requests.
    pub path: String,
    /// The node that a list or a watch of pods restricts itself to.
    pub node_selector: String,
}

/// The outcome. Only `Allowed` lets a request pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Why, in a few words for reviews.
    Allowed(String),
    /// Nothing grants it; the text may be empty.
    NoOpinion(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// The words behind the decision.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allowed(reason) | Self::NoOpinion(reason) => reason,
        }
    }
}

/// All authorizers, in order; the first that allows decides.
pub struct Authorizer {
    pub rbac: std::sync::Arc<Rbac>,
    pub node: std::sync::Arc<NodeView>,
}

impl Authorizer {
    pub fn decide(&self, attributes: &Attributes) -> Decision {
        if attributes.user.is_in(MASTERS) {
            return Decision::Allowed(String::new());
        }
        if let Some(name) = attributes.user.node()
            && node::allows(name, attributes, &self.node)
        {
            return Decision::Allowed(String::new());
        }
        self.rbac.decide(attributes)
    }

    /// # Errors
    /// 403 in upstream's words.
    pub fn check(&self, attributes: &Attributes) -> Result<(), Status> {
        match self.decide(attributes) {
            Decision::Allowed(_) => Ok(()),
            Decision::NoOpinion(reason) => Err(forbidden(attributes, &reason)),
        }
    }
}

impl Attributes {
    pub fn of_request(user: &User, info: &RequestInfo, query: &Query) -> Self {
        let mut attributes = Self {
            user: user.clone(),
            verb: info.verb.clone(),
            is_resource_request: info.is_resource_request,
            path: info.path.clone(),
            ..Self::default()
        };
        if info.is_resource_request {
            attributes.api_group.clone_from(&info.api_group);
            attributes.api_version.clone_from(&info.api_version);
            attributes.resource.clone_from(&info.resource);
            attributes.subresource.clone_from(&info.subresource);
            attributes.namespace.clone_from(&info.namespace);
            attributes.name.clone_from(&info.name);
            let selector = quorate_proto::selector::FieldSelector::parse(query.text("fieldSelector"));
            attributes.node_selector =
                selector.ok().and_then(|fields| fields.exact("spec.nodeName").map(str::to_owned)).unwrap_or_default();
        }
        attributes
    }
}

/// The answer to a request that nothing allows.
pub fn forbidden(attributes: &Attributes, reason: &str) -> Status {
    let Attributes { verb, resource, subresource, api_group, namespace, name, .. } = attributes;
    let user = &attributes.user.name;
    let mut why = if !attributes.is_resource_request {
        format!("User {user:?} cannot {verb} path {:?}", attributes.path)
    } else {
        let what = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        format!("User {user:?} cannot {verb} resource {what:?} in API group {api_group:?} {place}")
    };
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    if attributes.is_resource_request {
        Status::forbidden(api_group, resource, name, &why)
    } else {
        Status::forbidden("", "", "", &why)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `who verb group/resource/subresource namespace name`, or `who verb /path`.
    pub(crate) fn attributes(user: User, verb: &str, what: &str, namespace: &str, name: &str) -> Attributes {
        let mut attributes = Attributes { user, verb: verb.to_owned(), ..Attributes::default() };
        if what.starts_with('/') {
            attributes.path = what.to_owned();
            return attributes;
        }
        let mut parts = what.split('/');
        let mut next = || parts.next().unwrap_or("").to_owned();
        attributes.is_resource_request = true;
        attributes.api_group = next();
        attributes.resource = next();
        attributes.subresource = next();
        attributes.namespace = namespace.to_owned();
        attributes.name = name.to_owned();
        attributes
    }

    fn jane() -> User {
        User { name: "jane".to_owned(), ..User::default() }
    }

    #[track_caller]
    fn check(attributes: &Attributes, expected: &str) {
        let status = forbidden(attributes, "");
        assert_eq!((status.code, status.message.as_str()), (403, expected));
    }

    #[test]
    fn refusals_have_upstreams_words() {
        check(
            &attributes(jane(), "list", "/pods", "", "").clone(),
            "forbidden: User \"jane\" cannot list path \"/pods\"",
        );
        let mut pods = attributes(jane(), "list", "x/pods", "default", "");
        pods.api_group.clear();
        check(
            &pods,
            "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
        );
        check(
            &attributes(jane(), "patch", "apps/deployments/scale", "a", "web"),
            "deployments.apps \"web\" is forbidden: User \"jane\" cannot patch resource \"deployments/scale\" in API group \"apps\" in the namespace \"a\"",
        );
        pods.namespace.clear();
        check(
            &pods,
            "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" at the cluster scope",
        );
    }
}
