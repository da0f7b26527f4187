//! The Service `kubernetes` in `default`, and behind it the masters that live.
//!
//! Every master renews a Lease and says in it where its API listens; every master
//! writes the endpoints from the leases that are current. Whoever is late writes the
//! same, so no one needs to lead.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::{Client, ListOptions, Result};
use quorate_runtime::resources;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{ensure, options};

/// Upstream's rhythm for these leases.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// The first rounds follow quickly, because masters start together.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
const SETTLE_ROUNDS: u32 = 10;

/// A master whose lease is older is left out.
const LEASE_SECONDS: i64 = 25;

const NAMESPACE: &str = "default";
const LEASE_NAMESPACE: &str = "kube-system";
const NAME: &str = "kubernetes";
const IDENTITY_LABEL: &str = "apiserver.kubernetes.io/identity";
const IDENTITY: &str = "quorate-apiserver";
const ADDRESS_ANNOTATION: &str = "quorate.dev/api-address";

/// Keeps the Service and its endpoints.
pub struct KubernetesService {
    pub client: Arc<dyn Client>,
    /// The master's name: the lease is `apiserver-<name>`.
    pub name: String,
    /// Where this master's API is reached.
    pub address: SocketAddr,
    /// The first address of the Service range.
    pub cluster_ip: Ipv4Addr,
}

impl KubernetesService {
    /// Runs until `cancel`, then takes this master out of the endpoints.
    pub async fn run(self, cancel: CancellationToken) {
        let mut rounds = 0;
        loop {
            let pause = if rounds < SETTLE_ROUNDS { SETTLE_EVERY } else { RENEW_EVERY };
            rounds += 1;
            if let Err(status) = self.round().await {
                tracing::debug!(error = %status, "could not keep the Service kubernetes up to date");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => break,
            }
        }
        if let Err(status) = self.leave().await {
            tracing::debug!(error = %status, "could not leave the Service kubernetes");
        }
    }

    async fn round(&self) -> Result<()> {
        ensure(&*self.client, &resources::services(), Some(NAMESPACE), self.service()).await?;
        self.renew().await?;
        self.reconcile().await
    }

    async fn leave(&self) -> Result<()> {
        let leases = resources::leases();
        self.client.delete(&leases, Some(LEASE_NAMESPACE), &self.lease_name(), Default::default()).await?;
        self.reconcile().await
    }

    fn lease_name(&self) -> String {
        format!("apiserver-{}", self.name)
    }

    async fn renew(&self) -> Result<()> {
        let leases = resources::leases();
        let now = format!("{:.6}", Timestamp::now());
        let name = self.lease_name();
        let fresh = |acquired: &Value| {
            json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": name,
                    "namespace": LEASE_NAMESPACE,
                    "labels": {IDENTITY_LABEL: IDENTITY},
                    "annotations": {ADDRESS_ANNOTATION: self.address.to_string()},
                },
                "spec": {
                    "holderIdentity": self.name,
                    "leaseDurationSeconds": LEASE_SECONDS,
                    "acquireTime": acquired,
                    "renewTime": now,
                },
            })
        };
        match self.client.get(&leases, Some(LEASE_NAMESPACE), &name).await {
            Ok(found) => {
                let mut lease = fresh(&found.value()["spec"]["acquireTime"]);
                lease["metadata"]["resourceVersion"] = json!(found.revision().to_string());
                self.client.update(&leases, Some(LEASE_NAMESPACE), &name, None, lease, options()).await.map(drop)
            }
            Err(status) if status.is_not_found() => {
                self.client.create(&leases, Some(LEASE_NAMESPACE), None, fresh(&json!(now)), options()).await.map(drop)
            }
            Err(status) => Err(status),
        }
    }

    async fn reconcile(&self) -> Result<()> {
        let options = ListOptions { label_selector: format!("{IDENTITY_LABEL}={IDENTITY}"), ..ListOptions::default() };
        let leases = self.client.list(&resources::leases(), Some(LEASE_NAMESPACE), options).await?;
        let living = living(&leases.items, Timestamp::now());
        if living.is_empty() {
            // Wrong endpoints serve better than none.
            return Ok(());
        }
        self.put(&resources::endpoints(), endpoints(&living), "subsets").await?;
        self.put(&resources::endpoint_slices(), endpoint_slice(&living), "endpoints").await
    }

    /// Writes `wanted` unless the field that matters is right already.
    async fn put(
        &self,
        resource: &quorate_proto::gvk::GroupVersionResource,
        mut wanted: Value,
        field: &str,
    ) -> Result<()> {
        let outcome = match self.client.get(resource, Some(NAMESPACE), NAME).await {
            Ok(found) if found.value()[field] == wanted[field] => return Ok(()),
            Ok(found) => {
                wanted["metadata"]["resourceVersion"] = json!(found.revision().to_string());
                self.client.update(resource, Some(NAMESPACE), NAME, None, wanted, options()).await
            }
            Err(status) if status.is_not_found() => {
                self.client.create(resource, Some(NAMESPACE), None, wanted, options()).await
            }
            Err(status) => Err(status),
        };
        match outcome {
            // Another master was faster; the next round looks again.
            Err(status) if is_race(&status) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    fn service(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": self.cluster_ip.to_string(),
                "clusterIPs": [self.cluster_ip.to_string()],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "sessionAffinity": "None",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": self.address.port()}],
            },
        })
    }
}

fn is_race(status: &Status) -> bool {
    status.is_conflict() || status.is_already_exists()
}

/// The addresses of the masters whose lease is current.
fn living(leases: &[Arc<Object>], now: Timestamp) -> BTreeSet<SocketAddr> {
    leases
        .iter()
        .filter(|lease| {
            let renewed = lease.value()["spec"]["renewTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
            renewed.is_some_and(|renewed| now.as_second() - renewed.as_second() <= LEASE_SECONDS)
        })
        .filter_map(|lease| lease.meta().annotations.get(ADDRESS_ANNOTATION)?.parse().ok())
        .collect()
}

/// Masters on one port share a subset.
fn by_port(living: &BTreeSet<SocketAddr>) -> std::collections::BTreeMap<u16, Vec<SocketAddr>> {
    let mut ports = std::collections::BTreeMap::<u16, Vec<SocketAddr>>::new();
    for address in living {
        ports.entry(address.port()).or_default().push(*address);
    }
    ports
}

fn endpoints(living: &BTreeSet<SocketAddr>) -> Value {
    let subsets: Vec<Value> = by_port(living)
        .into_iter()
        .map(|(port, addresses)| {
            let addresses: Vec<Value> =
                addresses.iter().map(|address| json!({"ip": address.ip().to_string()})).collect();
            json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    })
}

/// A slice has one port, so it holds the masters on the most common one.
fn endpoint_slice(living: &BTreeSet<SocketAddr>) -> Value {
    let (port, addresses) =
        by_port(living).into_iter().max_by_key(|(_, addresses)| addresses.len()).unwrap_or((443, Vec::new()));
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address.ip().to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: &str, renewed: &str) -> Arc<Object> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "x", "annotations": {ADDRESS_ANNOTATION: address}},
            "spec": {"renewTime": renewed},
        });
        Arc::new(Object::from_value(&lease, 1).unwrap())
    }

    #[test]
    fn only_masters_with_a_current_lease_are_endpoints() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let leases = [
            lease("10.0.0.2:6443", "2026-01-01T00:00:50.000000Z"),
            lease("10.0.0.1:6443", "2026-01-01T00:00:59.000000Z"),
            lease("10.0.0.3:6443", "2026-01-01T00:00:10.000000Z"),
            lease("nonsense", "2026-01-01T00:00:59.000000Z"),
        ];
        let living = living(&leases, now);
        let value = endpoints(&living);
        assert_eq!(
            value["subsets"],
            json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}])
        );
        assert_eq!(endpoint_slice(&living)["endpoints"].as_array().unwrap().len(), 2);
    }
}
