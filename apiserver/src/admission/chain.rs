//! The plugins in their order, and where each gets what it needs to know.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::status::Status;
use quorate_runtime::client::Client;
use quorate_runtime::informer::Informers;
use serde_json::Value;

use super::namespace_lifecycle::NamespaceLifecycle;
use super::node_restriction::NodeRestriction;
use super::priority::Priority;
use super::role_escalation::RoleEscalation;
use super::service_account::ServiceAccount;
use super::taint_nodes::TaintNodes;
use super::tolerations::DefaultTolerationSeconds;
use super::{Admission, Attributes};
use crate::authz::Authorizer;

/// One plugin after the other; the first refusal ends it.
pub struct Chain {
    plugins: Vec<Box<dyn Admission>>,
}

impl Chain {
    /// The plugins that every cluster has, in upstream's order. Pods that do not say for how
    /// long they tolerate a lost node do so for `toleration_seconds`.
    pub fn standard(
        client: &Arc<dyn Client>,
        informers: &Informers,
        authorizer: &Arc<Authorizer>,
        toleration_seconds: u32,
    ) -> Self {
        Self {
            plugins: vec![
                Box::new(NamespaceLifecycle),
                Box::new(ServiceAccount::new(client, informers)),
                Box::new(NodeRestriction::new(client)),
                Box::new(TaintNodes),
                Box::new(Priority::new(client, informers)),
                Box::new(DefaultTolerationSeconds { seconds: toleration_seconds }),
                Box::new(RoleEscalation::new(authorizer)),
            ],
        }
    }
}

impl Admission for Chain {
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            for plugin in &self.plugins {
                plugin.mutate(attributes, object, old).await?;
            }
            Ok(())
        })
    }

    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            for plugin in &self.plugins {
                plugin.validate(attributes, object, old).await?;
            }
            Ok(())
        })
    }
}
