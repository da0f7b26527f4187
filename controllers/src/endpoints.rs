//! Endpoints: the addresses behind each Service, in the old form that has one object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{DeleteOptions, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::{Change, Lister};
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::{Value, json};

use crate::objects::{typed, unless_gone, unless_refused_by_namespace};
use crate::{Config, pods};

/// Upstream's `--concurrent-endpoint-syncs`.
const WORKERS: usize = 5;
/// More addresses do not fit into one object.
const MAX_ADDRESSES: usize = 1000;
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let services = manager.informers().informer(&resources::services());
    let endpoints = manager.informers().informer(&resources::endpoints());
    let pods = manager.informers().informer(&resources::pods());
    let queue = WorkQueue::new("endpoint");
    let reconciler =
        EndpointsController { services: services.lister(), endpoints: endpoints.lister(), pods: pods.lister() };
    let adds = queue.clone();
    services.on_change(move |change| adds.add(change.key()));
    let adds = queue.clone();
    // Only what somebody else did to ours matters; our own writes come back as well and
    // find nothing to do.
    endpoints.on_change(move |change| adds.add(change.key()));
    let (adds, lister) = (queue.clone(), services.lister());
    pods.on_change(move |change| add_services_of(&lister, &adds, change));
    let informers = vec![services, endpoints, pods];
    manager.add(Controller::new("endpoint-controller", queue, WORKERS, Arc::new(reconciler), informers));
}

/// Adds every Service that selects the pod, or did before the change.
pub(crate) fn add_services_of(services: &Lister, queue: &WorkQueue<String>, change: &Change) {
    let meta = change.object().meta();
    let versions = || [Some(change.object()), change.old()].into_iter().flatten();
    for service in services.in_namespace(&meta.namespace) {
        let Ok(view) = typed::<Service>(&service) else { continue };
        let Some(selector) = selector_of(&view) else { continue };
        if versions().any(|pod| matches(selector, &pod.meta().labels)) {
            queue.add(service.meta().key());
        }
    }
}

/// `None` when the Service's addresses are somebody else's to keep.
pub(crate) fn selector_of(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

pub(crate) fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

struct EndpointsController {
    services: Lister,
    endpoints: Lister,
    pods: Lister,
}

impl Reconciler for EndpointsController {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            self.sync(reign, key).await?;
            Ok(Requeue::Never)
        })
    }

    fn keys(&self) -> Vec<String> {
        // Also those whose Service went while nobody led.
        let mut keys = self.services.keys();
        keys.extend(self.endpoints.keys());
        keys
    }
}

impl EndpointsController {
    async fn sync(&self, reign: &Reign, key: &str) -> Result<()> {
        let resource = resources::endpoints();
        let current = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            // Those that another keeps are another's to delete.
            if let Some(current) = current.filter(|current| is_ours(current)) {
                let meta = current.meta();
                let options = DeleteOptions { uid: Some(meta.uid.clone()), ..DeleteOptions::default() };
                let deleted = reign.client.delete(&resource, Some(&meta.namespace), &meta.name, options).await;
                return unless_gone(deleted);
            }
            return Ok(());
        };
        let view = typed::<Service>(&service)?;
        let Some(selector) = selector_of(&view) else { return Ok(()) };
        if service.meta().is_terminating() {
            return Ok(());
        }
        let mut selected = Vec::new();
        for pod in self.pods.in_namespace(&service.meta().namespace) {
            if matches(selector, &pod.meta().labels) {
                selected.push(typed::<Pod>(&pod)?);
            }
        }
        let mut subsets = subsets(&view, &selected);
        let is_truncated = truncate(&mut subsets);
        let wanted = wanted(&service, &view, &subsets, is_truncated, current.as_deref());
        let namespace = Some(service.meta().namespace.as_str());
        let written = match &current {
            Some(current) if is_same(current, &wanted) => return Ok(()),
            Some(_) => {
                let name = &service.meta().name;
                reign.client.update(&resource, namespace, name, None, wanted, WriteOptions::default()).await
            }
            None => reign.client.create(&resource, namespace, None, wanted, WriteOptions::default()).await,
        };
        match written {
            Err(error) if error.is_conflict() => Err(error),
            other => unless_refused_by_namespace(other.map(drop)),
        }
    }
}

fn is_ours(endpoints: &Object) -> bool {
    endpoints.meta().labels.get(MANAGED_BY.0).is_some_and(|manager| manager == MANAGED_BY.1)
}

/// The object as it should be; what others put into its metadata stays.
fn wanted(
    service: &Object,
    view: &Service,
    subsets: &[EndpointSubset],
    is_truncated: bool,
    current: Option<&Object>,
) -> Value {
    let meta = service.meta();
    let mut labels = meta.labels.clone();
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if is_headless(view) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let mut value = match current {
        Some(current) => Value::clone(current.value()),
        None => json!({"apiVersion": "v1", "kind": "Endpoints",
                       "metadata": {"name": meta.name, "namespace": meta.namespace}}),
    };
    value["metadata"]["labels"] = json!(labels);
    if is_truncated {
        if !value["metadata"]["annotations"].is_object() {
            value["metadata"]["annotations"] = json!({});
        }
        value["metadata"]["annotations"][OVER_CAPACITY] = json!("truncated");
    } else if let Some(annotations) = value["metadata"]["annotations"].as_object_mut() {
        annotations.remove(OVER_CAPACITY);
    }
    value["subsets"] = json!(subsets);
    value
}

fn is_same(current: &Object, wanted: &Value) -> bool {
    let subsets = |value: &Value| match serde_json::from_value::<Endpoints>(value.clone()) {
        Ok(endpoints) => endpoints.subsets.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let value = current.value();
    value["metadata"]["labels"] == wanted["metadata"]["labels"]
        && value["metadata"].get("annotations") == wanted["metadata"].get("annotations")
        && subsets(value) == subsets(wanted)
}

/// Groups the pods' addresses by the ports they have, in an order that depends on nothing else.
fn subsets(service: &Service, selected: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.as_ref();
    let publishes_unready = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let service_ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    // Per list of ports, per address: whether it is ready.
    let mut groups: BTreeMap<Vec<PortKey>, BTreeMap<AddressKey, (EndpointAddress, bool)>> = BTreeMap::new();
    for pod in selected {
        let Some(ip) = primary_ip(pod) else { continue };
        if !may_serve(pod, publishes_unready) {
            continue;
        }
        let ports = ports_of(service_ports, pod);
        // A Service with ports none of which the pod has; a headless one without ports is fine.
        if ports.is_empty() && !(service_ports.is_empty() && is_headless(service)) {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            target_ref: Some(target(pod)),
        };
        let is_ready = publishes_unready || pods::is_ready(pod);
        let key = (ip.to_owned(), pod.metadata.uid.clone());
        groups.entry(ports).or_default().insert(key, (address, is_ready));
    }
    groups
        .into_iter()
        .map(|(ports, addresses)| {
            let (ready, unready): (Vec<_>, Vec<_>) = addresses.into_values().partition(|(_, is_ready)| *is_ready);
            let list = |addresses: Vec<(EndpointAddress, bool)>| {
                let addresses: Vec<_> = addresses.into_iter().map(|(address, _)| address).collect();
                (!addresses.is_empty()).then_some(addresses)
            };
            let ports: Vec<EndpointPort> = ports.into_iter().map(PortKey::into_port).collect();
            EndpointSubset {
                addresses: list(ready),
                not_ready_addresses: list(unready),
                ports: (!ports.is_empty()).then_some(ports),
            }
        })
        .collect()
}

type AddressKey = (String, Option<String>);

/// A port as the Service names it, with the number that the pod has for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortKey {
    pub(crate) name: String,
    pub(crate) port: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

impl PortKey {
    fn into_port(self) -> EndpointPort {
        EndpointPort {
            name: (!self.name.is_empty()).then_some(self.name),
            port: self.port,
            protocol: Some(self.protocol),
            app_protocol: self.app_protocol,
        }
    }
}

/// The ports of the Service that the pod has, sorted.
pub(crate) fn ports_of(service_ports: &[ServicePort], pod: &Pod) -> Vec<PortKey> {
    let mut ports: Vec<PortKey> = service_ports
        .iter()
        .filter_map(|service_port| {
            Some(PortKey {
                name: service_port.name.clone().unwrap_or_default(),
                port: target_port(service_port, pod)?,
                protocol: service_port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                app_protocol: service_port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

fn target_port(service_port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &service_port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(service_port.port),
        Some(IntOrString::Int(port)) => return Some(*port),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(service_port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = service_port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    // Sidecars are init containers that keep running: they may serve, too.
    let sidecars = spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}

/// Whether the pod's address belongs to the Service at all, ready or not.
fn may_serve(pod: &Pod, publishes_unready: bool) -> bool {
    !pods::is_finished(pod) && (publishes_unready || !pods::is_terminating(pod))
}

fn primary_ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// A pod that names its subdomain after the Service has a name of its own there.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let is_here = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|hostname| is_here && !hostname.is_empty())
}

pub(crate) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Cuts the addresses down to what one object holds, unready ones first; whether it did.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let mut room = MAX_ADDRESSES;
    let mut is_truncated = false;
    let mut cut = |addresses: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = addresses {
            is_truncated |= addresses.len() > room;
            addresses.truncate(room);
            room -= addresses.len();
        }
    };
    for subset in subsets.iter_mut() {
        cut(&mut subset.addresses);
    }
    for subset in subsets.iter_mut() {
        cut(&mut subset.not_ready_addresses);
    }
    is_truncated
}

/// The labels that a Service's endpoint objects must not take over from it.
pub(crate) fn is_reserved(label: &str) -> bool {
    static RESERVED: std::sync::LazyLock<BTreeSet<&str>> = std::sync::LazyLock::new(|| {
        BTreeSet::from(["endpointslice.kubernetes.io/managed-by", "kubernetes.io/service-name", HEADLESS])
    });
    RESERVED.contains(label)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn service(ports: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": ports, "clusterIP": "10.96.0.7"}}))
        .unwrap()
    }

    pub(crate) fn pod(name: &str, ip: &str, ready: bool) -> Value {
        let status = if ready { "True" } else { "False" };
        json!({"metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
               "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
                   {"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
               "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                          "conditions": [{"type": "Ready", "status": status}]}})
    }

    pub(crate) fn parse(pods: &[Value]) -> Vec<Arc<Pod>> {
        pods.iter().map(|pod| Arc::new(serde_json::from_value(pod.clone()).unwrap())).collect()
    }

    /// Each subset as `ready/unready ports`.
    #[track_caller]
    fn check(service: &Service, pods: &[Value], expected: &[&str]) {
        let list = |addresses: &Option<Vec<EndpointAddress>>| {
            addresses.iter().flatten().map(|address| address.ip.as_str()).collect::<Vec<_>>().join(",")
        };
        let told: Vec<String> = subsets(service, &parse(pods))
            .iter()
            .map(|subset| {
                let ports = subset.ports.iter().flatten();
                let ports: Vec<String> =
                    ports.map(|port| format!("{}:{}", port.name.as_deref().unwrap_or("-"), port.port)).collect();
                format!("{}/{} {}", list(&subset.addresses), list(&subset.not_ready_addresses), ports.join(","))
            })
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn addresses_follow_the_pods() {
        let web = service(json!([{"port": 80, "targetPort": "http"}]));
        check(&web, &[], &[]);
        check(&web, &[pod("b", "10.0.0.2", true), pod("a", "10.0.0.1", true)], &["10.0.0.1,10.0.0.2/ -:8080"]);
        check(&web, &[pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)], &["10.0.0.1/10.0.0.2 -:8080"]);
        let mut finished = pod("c", "10.0.0.3", true);
        finished["status"]["phase"] = json!("Succeeded");
        let mut leaving = pod("d", "10.0.0.4", true);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        check(&web, &[finished.clone(), leaving.clone(), pod("e", "", true)], &[]);
        let mut eager = web.clone();
        eager.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        check(&eager, &[finished, leaving, pod("f", "10.0.0.5", false)], &["10.0.0.4,10.0.0.5/ -:8080"]);
    }

    #[test]
    fn ports_are_found_by_name_and_protocol() {
        let ports = json!([{"name": "web", "port": 80, "targetPort": "http"},
                           {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
                           {"name": "lost", "port": 1, "targetPort": "nothing"},
                           {"name": "same", "port": 99}]);
        check(&service(ports), &[pod("a", "10.0.0.1", true)], &["10.0.0.1/ dns:53,same:99,web:8080"]);
        // A TCP port of the name is not the UDP port.
        let udp = json!([{"port": 53, "protocol": "UDP", "targetPort": "http"}]);
        check(&service(udp), &[pod("a", "10.0.0.1", true)], &[]);
        let mut other = pod("b", "10.0.0.2", true);
        other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
        let named = service(json!([{"port": 80, "targetPort": "http"}]));
        check(&named, &[pod("a", "10.0.0.1", true), other], &["10.0.0.1/ -:8080", "10.0.0.2/ -:9090"]);
    }

    #[test]
    fn one_object_holds_a_thousand_addresses() {
        let web = service(json!([{"port": 80}]));
        let pods: Vec<Value> = (0..1200)
            .map(|index| pod(&format!("p{index}"), &format!("10.0.{}.{}", index / 250, index % 250), index >= 300))
            .collect();
        let mut subsets = subsets(&web, &parse(&pods));
        assert!(truncate(&mut subsets));
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 900);
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap().len(), 100);
        assert!(!truncate(&mut subsets));
    }
}
