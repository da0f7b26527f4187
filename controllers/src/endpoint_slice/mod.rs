//! EndpointSlices: the addresses behind each Service, in pieces that change one at a time.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{DeleteOptions, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::expectations::Expectations;
use quorate_runtime::informer::{Change, Lister};
use quorate_runtime::manager::Manager;
use quorate_runtime::owner::controller_reference;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::{Value, json};

use crate::endpoints::{
    HEADLESS, PortKey, add_services_of, hostname, is_headless, is_reserved, matches, ports_of, selector_of, target,
};
use crate::objects::{is_namespace_terminating, typed, unless_gone};
use crate::{Config, pods};
use plan::{Group, Slice, plan};

/// Upstream's `--concurrent-service-endpoint-syncs`.
const WORKERS: usize = 5;
const MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let services = manager.informers().informer(&resources::services());
    let slices = manager.informers().informer(&resources::endpoint_slices());
    let pods = manager.informers().informer(&resources::pods());
    let nodes = manager.informers().informer(&resources::nodes());
    let queue = WorkQueue::new("endpoint_slice");
    let reconciler = Arc::new(EndpointSlices {
        services: services.lister(),
        slices: slices.lister(),
        pods: pods.lister(),
        nodes: nodes.lister(),
        expectations: Expectations::default(),
        queue: queue.clone(),
    });
    let adds = queue.clone();
    services.on_change(move |change| adds.add(change.key()));
    let handler = Arc::clone(&reconciler);
    slices.on_change(move |change| handler.slice_changed(change));
    let (adds, lister) = (queue.clone(), services.lister());
    pods.on_change(move |change| add_services_of(&lister, &adds, change));
    let informers = vec![services, slices, pods, nodes];
    manager.add(Controller::new("endpoint-slice-controller", queue, WORKERS, reconciler, informers));
}

struct EndpointSlices {
    services: Lister,
    slices: Lister,
    pods: Lister,
    nodes: Lister,
    /// By the uid of the Service.
    expectations: Expectations,
    queue: WorkQueue<String>,
}

impl Reconciler for EndpointSlices {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            if let Some(service) = self.services.get(key).filter(|service| !service.meta().is_terminating()) {
                self.sync(reign, &service).await?;
            }
            // The slices of a Service that is gone are the garbage collector's.
            Ok(Requeue::Never)
        })
    }

    fn keys(&self) -> Vec<String> {
        self.services.keys()
    }

    fn begin(&self) {
        self.expectations.clear();
    }
}

impl EndpointSlices {
    fn slice_changed(&self, change: &Change) {
        let meta = change.object().meta();
        if !is_ours(change.object()) {
            return;
        }
        if let Some(service) = meta.controller() {
            if matches!(change, Change::Added(_)) {
                self.expectations.creation_observed(&service.uid);
            }
            self.queue.add(format!("{}/{}", meta.namespace, service.name));
        }
    }

    async fn sync(&self, reign: &Reign, service: &Arc<Object>) -> Result<()> {
        let uid = &service.meta().uid;
        let view = typed::<Service>(service)?;
        let Some(selector) = selector_of(&view) else { return Ok(()) };
        // Slices have generated names: before the last ones are seen, they would be made twice.
        if !self.expectations.are_satisfied(uid) {
            return Ok(());
        }
        let mut selected = Vec::new();
        for pod in self.pods.in_namespace(&service.meta().namespace) {
            if matches(selector, &pod.meta().labels) {
                selected.push(typed::<Pod>(&pod)?);
            }
        }
        let types = address_types(&view);
        let wanted = groups(&view, &selected, &types, |node| self.zone_of(node));
        let objects: BTreeMap<String, Arc<Object>> = self
            .slices
            .owned_by(uid)
            .into_iter()
            .filter(|slice| is_ours(slice) && !slice.meta().is_terminating())
            .map(|slice| (slice.meta().name.clone(), slice))
            .collect();
        let mut current = BTreeMap::new();
        for (name, object) in &objects {
            current.insert(name.clone(), slice_of(typed::<EndpointSlice>(object)?.as_ref()));
        }
        let labels = labels(service, &view);
        let mut plan = plan(&current, wanted, &types);
        for (name, object) in &objects {
            if object.meta().labels != labels && !plan.delete.contains(name) {
                plan.update.entry(name.clone()).or_insert_with(|| current[name].clone());
            }
        }
        self.carry_out(reign, service, plan, &objects, &labels).await
    }

    /// New slices first: an endpoint that moves is in two for a moment, never in none.
    async fn carry_out(
        &self,
        reign: &Reign,
        service: &Arc<Object>,
        plan: plan::Plan,
        objects: &BTreeMap<String, Arc<Object>>,
        labels: &BTreeMap<String, String>,
    ) -> Result<()> {
        let resource = resources::endpoint_slices();
        let uid = &service.meta().uid;
        let namespace = Some(service.meta().namespace.as_str());
        let client = &reign.client;
        let count = plan.create.len();
        if count > 0 {
            self.expectations.expect_creations(uid, count);
        }
        for (made, slice) in plan.create.iter().enumerate() {
            let value = slice_value(service, slice, labels, None);
            if let Err(error) = client.create(&resource, namespace, None, value, WriteOptions::default()).await {
                self.expectations.creations_skipped(uid, count - made);
                if is_namespace_terminating(&error) {
                    return Ok(());
                }
                let message =
                    format!("Error updating Endpoint Slices for Service {}: {}", service.meta().key(), error.message);
                reign.events.warning(service, "FailedToUpdateEndpointSlices", message);
                return Err(error);
            }
        }
        for (name, slice) in &plan.update {
            let value = slice_value(service, slice, labels, Some(&objects[name]));
            client.update(&resource, namespace, name, None, value, WriteOptions::default()).await?;
        }
        for name in &plan.delete {
            let options = DeleteOptions { uid: Some(objects[name].meta().uid.clone()), ..DeleteOptions::default() };
            unless_gone(client.delete(&resource, namespace, name, options).await)?;
        }
        Ok(())
    }

    fn zone_of(&self, node: &str) -> Option<String> {
        let node = self.nodes.get(node)?;
        let node = typed::<Node>(&node).ok()?;
        node.metadata.labels.as_ref()?.get(ZONE).cloned()
    }
}

fn is_ours(slice: &Object) -> bool {
    slice.meta().labels.get(MANAGED_BY.0).is_some_and(|manager| manager == MANAGED_BY.1)
}

fn address_types(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let is_v6 = |family: &str| family == "IPv6" || family.contains(':');
    if families.is_empty() {
        let ip = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        return vec![if is_v6(ip) { "IPv6" } else { "IPv4" }];
    }
    families.iter().map(|family| if is_v6(family) { "IPv6" } else { "IPv4" }).collect()
}

/// The endpoints there should be, by what their slices have in common.
fn groups(
    service: &Service,
    selected: &[Arc<Pod>],
    types: &[&'static str],
    zone_of: impl Fn(&str) -> Option<String>,
) -> BTreeMap<Group, Vec<Endpoint>> {
    let spec = service.spec.as_ref();
    let publishes_unready = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let service_ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for pod in selected.iter().filter(|pod| !pods::is_finished(pod)) {
        let ports = ports_of(service_ports, pod);
        let (is_serving, is_terminating) = (pods::is_ready(pod), pods::is_terminating(pod));
        let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        for address_type in types {
            let Some(ip) = ip_of(pod, address_type) else { continue };
            let group = Group { address_type: (*address_type).to_owned(), ports: ports.clone() };
            groups.entry(group).or_default().push(Endpoint {
                addresses: vec![ip.to_owned()],
                conditions: Some(EndpointConditions {
                    ready: Some(publishes_unready || (is_serving && !is_terminating)),
                    serving: Some(is_serving),
                    terminating: Some(is_terminating),
                }),
                hostname: hostname(service, pod),
                zone: node_name.as_deref().and_then(&zone_of),
                node_name: node_name.clone(),
                target_ref: Some(target(pod)),
                ..Endpoint::default()
            });
        }
    }
    groups
}

fn ip_of<'a>(pod: &'a Pod, address_type: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    listed.chain(status.pod_ip.as_deref()).find(|ip| !ip.is_empty() && ip.contains(':') == (address_type == "IPv6"))
}

fn labels(service: &Object, view: &Service) -> BTreeMap<String, String> {
    let meta = service.meta();
    let mut labels: BTreeMap<String, String> = meta
        .labels
        .iter()
        .filter(|(key, _)| !is_reserved(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    labels.insert(SERVICE_NAME.to_owned(), meta.name.clone());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if is_headless(view) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// What a stored slice holds, in the terms of the plan.
fn slice_of(slice: &EndpointSlice) -> Slice {
    let mut ports: Vec<PortKey> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| PortKey {
            name: port.name.clone().unwrap_or_default(),
            port: port.port.unwrap_or(0),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    Slice { group: Group { address_type: slice.address_type.clone(), ports }, endpoints: slice.endpoints.clone() }
}

/// The object of a slice; on top of the stored one, whose name and annotations stay.
fn slice_value(
    service: &Object,
    slice: &Slice,
    labels: &BTreeMap<String, String>,
    current: Option<&Arc<Object>>,
) -> Value {
    let meta = service.meta();
    let mut value = match current {
        Some(current) => Value::clone(current.value()),
        None => json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": format!("{}-", meta.name),
                "namespace": meta.namespace,
                "ownerReferences": [controller_reference(service)],
            },
        }),
    };
    let ports: Vec<EndpointPort> = slice
        .group
        .ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    value["metadata"]["labels"] = json!(labels);
    value["addressType"] = json!(slice.group.address_type);
    value["endpoints"] = json!(slice.endpoints);
    value["ports"] = json!(ports);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::tests::{parse, pod, service};

    #[test]
    fn endpoints_tell_what_their_pods_can_do() {
        let web = service(json!([{"name": "web", "port": 80, "targetPort": "http"}]));
        let mut leaving = pod("c", "10.0.0.3", true);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut finished = pod("d", "10.0.0.4", true);
        finished["status"]["phase"] = json!("Failed");
        let pods = parse(&[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false), leaving, finished]);
        let groups = groups(&web, &pods, &address_types(&web), |node| Some(format!("zone-of-{node}")));
        let (group, endpoints) = groups.first_key_value().unwrap();
        assert_eq!(
            (group.address_type.as_str(), group.ports[0].name.as_str(), group.ports[0].port),
            ("IPv4", "web", 8080)
        );
        let told: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let conditions = endpoint.conditions.as_ref().unwrap();
                (endpoint.addresses[0].as_str(), conditions.ready, conditions.serving, conditions.terminating)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("10.0.0.1", Some(true), Some(true), Some(false)),
                ("10.0.0.2", Some(false), Some(false), Some(false)),
                ("10.0.0.3", Some(false), Some(true), Some(true)),
            ]
        );
        assert_eq!(endpoints[0].zone.as_deref(), Some("zone-of-n1"));
        assert_eq!(groups.len(), 1);
    }

    #[test]
    fn what_was_written_reads_back_as_the_same_slice() {
        let object = Object::from_value(
            &json!({"apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"x": "y", SERVICE_NAME: "other"}}}),
            1,
        )
        .unwrap();
        let web = service(json!([{"port": 80}]));
        let pods = parse(&[pod("a", "10.0.0.1", true)]);
        let (group, endpoints) = groups(&web, &pods, &["IPv4"], |_| None).pop_first().unwrap();
        let slice = Slice { group, endpoints };
        let labels = labels(&object, &web);
        assert_eq!(labels[SERVICE_NAME], "web");
        let value = slice_value(&object, &slice, &labels, None);
        assert_eq!(value["metadata"]["ownerReferences"][0]["kind"], "Service");
        let read: EndpointSlice = serde_json::from_value(value).unwrap();
        assert_eq!(slice_of(&read), slice);
    }
}
