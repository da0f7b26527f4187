//! Every namespace has a service account named `default`: pods that name none run as it.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Lister;
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::json;

use crate::Config;
use crate::objects::unless_refused_by_namespace;

const NAME: &str = "default";

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let namespaces = manager.informers().informer(&resources::namespaces());
    let accounts = manager.informers().informer(&resources::service_accounts());
    let queue = WorkQueue::new("serviceaccount");
    let adds = queue.clone();
    namespaces.on_change(move |change| adds.add(change.key()));
    let adds = queue.clone();
    accounts.on_change(move |change| {
        if change.is_deletion() && change.object().meta().name == NAME {
            adds.add(change.object().meta().namespace.clone());
        }
    });
    let reconciler = ServiceAccounts { namespaces: namespaces.lister(), accounts: accounts.lister() };
    manager.add(Controller::new(
        "serviceaccount-controller",
        queue,
        1,
        Arc::new(reconciler),
        vec![namespaces, accounts],
    ));
}

struct ServiceAccounts {
    namespaces: Lister,
    accounts: Lister,
}

impl Reconciler for ServiceAccounts {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            let is_alive = self.namespaces.get(key).is_some_and(|namespace| !namespace.meta().is_terminating());
            if is_alive && self.accounts.get(&format!("{key}/{NAME}")).is_none() {
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                                     "metadata": {"name": NAME, "namespace": key}});
                let resource = resources::service_accounts();
                let created = reign.client.create(&resource, Some(key), None, account, WriteOptions::default()).await;
                unless_refused_by_namespace(created.map(drop))?;
            }
            Ok(Requeue::Never)
        })
    }

    fn keys(&self) -> Vec<String> {
        self.namespaces.keys()
    }
}
