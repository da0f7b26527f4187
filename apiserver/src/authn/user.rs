//! The identity that every later step decides by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Every authenticated user is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody else is in this one.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Members may do everything, whatever RBAC says.
pub const MASTERS: &str = "system:masters";
/// The agents of nodes.
pub const NODES: &str = "system:nodes";

/// `authentication.k8s.io/v1 UserInfo`, under Rust names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    #[serde(rename = "username", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A part of this very server: it may do everything.
    pub fn system(name: &str) -> Self {
        Self { groups: vec![MASTERS.to_owned(), AUTHENTICATED.to_owned()], ..Self::named(name) }
    }

    pub fn anonymous() -> Self {
        Self { groups: vec![UNAUTHENTICATED.to_owned()], ..Self::named("system:anonymous") }
    }

    /// A service account, in the groups that all of them are in.
    pub fn of_service_account(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.to_owned(),
            ],
            ..Self::named(&format!("system:serviceaccount:{namespace}:{name}"))
        }
    }

    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|candidate| candidate == group)
    }

    /// `(namespace, name)` of a service account.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// The name of the node whose agent this is.
    pub fn node(&self) -> Option<&str> {
        self.is_in(NODES).then(|| self.name.strip_prefix("system:node:")).flatten()
    }
}
