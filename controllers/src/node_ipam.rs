//! Gives every node a range of pod addresses.
//!
//! Always: no two nodes have the same range. The ranges that nodes carry are the only
//! record; what was given out and is not visible yet is remembered within a reign.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use quorate_proto::object::Object;
use quorate_runtime::activation::Reign;
use quorate_runtime::client::{Patch, Result, WriteOptions};
use quorate_runtime::controller::{Controller, Reconciler, Requeue};
use quorate_runtime::informer::Lister;
use quorate_runtime::manager::Manager;
use quorate_runtime::resources;
use quorate_runtime::workqueue::WorkQueue;
use serde_json::json;

use crate::Config;
use crate::objects::typed;

/// Where all pods live, and how much of it a node gets: 10.244.0.0/16 in parts of /24, as
/// kubeadm and kube-controller-manager do by default.
const CLUSTER: Ranges = Ranges { first: Ipv4Addr::new(10, 244, 0, 0), prefix: 16, node_prefix: 24 };
/// When no range is free: a node may go meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

pub(crate) fn register(manager: &mut Manager, _config: &Config) {
    let nodes = manager.informers().informer(&resources::nodes());
    let queue = WorkQueue::new("node_ipam");
    let adds = queue.clone();
    nodes.on_change(move |change| {
        if !change.is_deletion() && ranges_of(change.object()).is_empty() {
            adds.add(change.key());
        }
    });
    let reconciler = NodeIpam { nodes: nodes.lister(), given: Mutex::default() };
    // One worker: two must not choose at the same time.
    manager.add(Controller::new("node-ipam-controller", queue, 1, Arc::new(reconciler), vec![nodes]));
}

fn ranges_of(node: &Object) -> Vec<String> {
    let Ok(node) = node.typed::<Node>() else { return Vec::new() };
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut ranges = spec.pod_cidrs.clone().unwrap_or_default();
    ranges.extend(spec.pod_cidr.clone().filter(|range| !range.is_empty() && !ranges.contains(range)));
    ranges
}

/// An IPv4 network cut into equal parts.
#[derive(Clone, Copy, Debug)]
struct Ranges {
    first: Ipv4Addr,
    prefix: u8,
    node_prefix: u8,
}

impl Ranges {
    fn count(self) -> u32 {
        1 << (self.node_prefix - self.prefix)
    }

    fn text(self, index: u32) -> String {
        let address = u32::from(self.first) + (index << (32 - self.node_prefix));
        format!("{}/{}", Ipv4Addr::from(address), self.node_prefix)
    }

    /// The parts that a network touches; none when it lies elsewhere or is no IPv4 network.
    fn touched_by(self, network: &str) -> Option<std::ops::RangeInclusive<u32>> {
        let (address, prefix) = network.split_once('/')?;
        let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
        let prefix = prefix.parse::<u32>().ok().filter(|prefix| *prefix <= 32)?;
        let last_bits = u32::MAX.checked_shr(prefix).unwrap_or(0);
        let (low, high) = (u64::from(address & !last_bits), u64::from(address | last_bits));
        let part = 1u64 << (32 - self.node_prefix);
        let first = u64::from(u32::from(self.first));
        let end = first + part * u64::from(self.count());
        if high < first || low >= end {
            return None;
        }
        let index = |address: u64| u32::try_from((address - first) / part).expect("an index within the network");
        Some(index(low.max(first))..=index(high.min(end - 1)))
    }

    /// A part that touches none of `taken`, the next one from `start` on: what a node gave
    /// back is not given out again at once, while others may still have routes to it.
    fn free<'a>(self, taken: impl Iterator<Item = &'a String>, start: u32) -> Option<u32> {
        let mut used = vec![false; self.count() as usize];
        for index in taken.filter_map(|network| self.touched_by(network)).flatten() {
            used[index as usize] = true;
        }
        (0..self.count()).map(|step| (start + step) % self.count()).find(|index| !used[*index as usize])
    }
}

struct NodeIpam {
    nodes: Lister,
    given: Mutex<Given>,
}

#[derive(Default)]
struct Given {
    next: u32,
    /// By node: given out in this reign, perhaps not visible yet.
    ranges: HashMap<String, String>,
}

impl Reconciler for NodeIpam {
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>> {
        Box::pin(async move {
            let Some(object) = self.nodes.get(key) else { return Ok(Requeue::Never) };
            if !ranges_of(&object).is_empty() {
                return Ok(Requeue::Never);
            }
            let Some(range) = self.choose(key) else {
                tracing::error!(node = key, "every range of pod addresses is taken");
                reign.events.warning(
                    &object,
                    "CIDRNotAvailable",
                    format!("Node {key} status is now: CIDRNotAvailable"),
                );
                return Ok(Requeue::After(LOOK_AGAIN));
            };
            let uid = &typed::<Node>(&object)?.metadata.uid;
            let patch = json!({"metadata": {"uid": uid}, "spec": {"podCIDR": range, "podCIDRs": [range]}});
            let options = WriteOptions { field_manager: "kube-controller-manager".to_owned(), fence: None };
            match reign.client.patch(&resources::nodes(), None, key, None, Patch::Merge(patch), options).await {
                Err(error) if error.is_not_found() => Ok(Requeue::Never),
                other => other.map(|_| Requeue::Never),
            }
        })
    }

    fn keys(&self) -> Vec<String> {
        self.nodes.keys()
    }

    fn begin(&self) {
        // What an earlier reign gave out is visible by now, or was refused.
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Given::default();
    }
}

impl NodeIpam {
    /// A free range, remembered as the node's. The same again while it is not visible.
    fn choose(&self, node: &str) -> Option<String> {
        let nodes = self.nodes.list();
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.ranges.retain(|name, _| nodes.iter().any(|node| node.meta().name == *name && ranges_of(node).is_empty()));
        if let Some(range) = given.ranges.get(node) {
            return Some(range.clone());
        }
        let visible: Vec<String> = nodes.iter().flat_map(|node| ranges_of(node)).collect();
        let index = CLUSTER.free(visible.iter().chain(given.ranges.values()), given.next)?;
        given.next = index + 1;
        given.ranges.insert(node.to_owned(), CLUSTER.text(index));
        Some(CLUSTER.text(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(taken: &[&str], start: u32, expected: Option<&str>) {
        let taken: Vec<String> = taken.iter().map(|network| (*network).to_owned()).collect();
        let free = CLUSTER.free(taken.iter(), start).map(|index| CLUSTER.text(index));
        assert_eq!(free.as_deref(), expected, "{taken:?} from {start}");
    }

    #[test]
    fn ranges_do_not_overlap() {
        check(&[], 0, Some("10.244.0.0/24"));
        check(&["10.244.0.0/24"], 0, Some("10.244.1.0/24"));
        check(&["10.244.0.0/24"], 5, Some("10.244.5.0/24"));
        check(&["10.244.255.0/24"], 255, Some("10.244.0.0/24"));
        check(&["10.244.0.0/23", "10.244.2.128/25"], 0, Some("10.244.3.0/24"));
        check(&["10.245.0.0/24", "fd00::/64", "nonsense", "10.243.255.0/24"], 0, Some("10.244.0.0/24"));
        check(&["10.0.0.0/8"], 0, None);
        check(&["0.0.0.0/0"], 0, None);
        check(&["10.244.0.0/16"], 0, None);
        check(&["10.244.0.7/32"], 256, Some("10.244.1.0/24"));
    }
}
