//! Every namespace has the ConfigMap `kube-root-ca.crt`, by which its pods recognise the
//! API server.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Lister;
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::{Value, json};

use crate::Config;
use crate::objects::unless_refused_by_namespace;

const NAME: &str = "kube-root-ca.crt";

pub(crate) fn register(manager: &mut Manager, config: &Config) {
    let namespaces = manager.informers().informer(&resources::namespaces());
    let maps = manager.informers().informer(&resources::config_maps());
    let queue = WorkQueue::new("root_ca_cert_publisher");
    let adds = queue.clone();
    namespaces.on_change(move |change| adds.add(change.key()));
    let adds = queue.clone();
    maps.on_change(move |change| {
        if change.object().meta().name == NAME {
            adds.add(change.object().meta().namespace.clone());
        }
    });
    let reconciler =
        RootCa { namespaces: namespaces.lister(), maps: maps.lister(), data: json!({"ca.crt": config.root_ca_pem}) };
    manager.add(Controller::new(
        "root-ca-certificate-publisher-controller",
        queue,
        1,
        Arc::new(reconciler),
        vec![namespaces, maps],
    ));
}

struct RootCa {
    namespaces: Lister,
    maps: Lister,
    data: Value,
}

impl Reconciler for RootCa {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            if self.namespaces.get(key).is_none_or(|namespace| namespace.meta().is_terminating()) {
                return Ok(Requeue::Never);
            }
            let resource = resources::config_maps();
            let written = match self.maps.get(&format!("{key}/{NAME}")) {
                Some(map) if map.value()["data"] == self.data => return Ok(Requeue::Never),
                Some(map) => {
                    let mut value = Value::clone(map.value());
                    value["data"] = self.data.clone();
                    reign.client.update(&resource, Some(key), NAME, None, value, WriteOptions::default()).await
                }
                None => {
                    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                                     "metadata": {"name": NAME, "namespace": key}, "data": self.data});
                    reign.client.create(&resource, Some(key), None, map, WriteOptions::default()).await
                }
            };
            unless_refused_by_namespace(written.map(drop))?;
            Ok(Requeue::Never)
        })
    }

    fn keys(&self) -> Vec<String> {
        self.namespaces.keys()
    }
}
