//! Nothing is created in a namespace that is missing or ending, and the namespaces
//! that every cluster needs are not deleted.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::status::{Status, StatusCause};
use quorate_runtime::client::Client;
use quorate_runtime::informer::{Informers, Lister};
use quorate_runtime::resources;
use serde_json::Value;

use super::{Admission, Attributes, Operation};

/// These outlive everything in them.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin `NamespaceLifecycle`.
pub(super) struct NamespaceLifecycle {
    client: Arc<dyn Client>,
    namespaces: Lister,
}

impl NamespaceLifecycle {
    pub(super) fn new(client: &Arc<dyn Client>, informers: &Informers) -> Self {
        Self { client: Arc::clone(client), namespaces: informers.informer(&resources::namespaces()).lister() }
    }

    async fn check_creation(&self, attributes: Attributes<'_>) -> Result<(), Status> {
        let namespace = match self.namespaces.get(attributes.namespace) {
            Some(namespace) => namespace,
            // The view may lag: a namespace that it lacks is looked up where it is stored.
            None => self.client.get(&resources::namespaces(), None, attributes.namespace).await?,
        };
        let ending = namespace.meta().is_terminating() || namespace.value()["status"]["phase"] == "Terminating";
        if ending { Err(terminating(attributes)) } else { Ok(()) }
    }
}

impl Admission for NamespaceLifecycle {
    fn validate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        _object: Option<&'a Value>,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let is_namespace = attributes.group.is_empty() && attributes.resource == "namespaces";
            match attributes.operation {
                Operation::Delete if is_namespace && IMMORTAL.contains(&attributes.name) => {
                    Err(Status::forbidden("", "namespaces", attributes.name, "this namespace may not be deleted"))
                }
                Operation::Create if !is_namespace && !attributes.namespace.is_empty() && !is_review(attributes) => {
                    self.check_creation(attributes).await
                }
                _ => Ok(()),
            }
        })
    }
}

/// A question about a namespace that is gone is still a question.
fn is_review(attributes: Attributes<'_>) -> bool {
    attributes.group == "authorization.k8s.io" && attributes.resource == "localsubjectaccessreviews"
}

fn terminating(attributes: Attributes<'_>) -> Status {
    let Attributes { group, resource, namespace, name, .. } = attributes;
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(group, resource, name, &why);
    if let Some(details) = &mut status.details {
        details.causes.push(StatusCause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
    }
    status
}
