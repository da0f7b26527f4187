//! The Lease objects by which dashboards see who leads.
//!
//! Only a report: leadership is the store's, and nothing here decides by a Lease.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quorate_proto::object::Object;
use quorate_runtime::activation::{Fenced, Leadership, while_leading};
use quorate_runtime::client::{Client, Result, WriteOptions};
use quorate_runtime::resources;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
const NAMES: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
/// As upstream's components hold theirs.
const LEASE_DURATION_SECONDS: u64 = 15;
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// The namespace may not be there yet.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the leases up to date while this master leads.
pub(crate) async fn run(client: Arc<dyn Client>, leadership: Leadership, identity: String, cancel: CancellationToken) {
    while_leading(leadership, cancel, |fence| {
        let client = Fenced::new(Arc::clone(&client), fence);
        let identity = identity.as_str();
        async move {
            loop {
                let mut wait = RENEW_INTERVAL;
                for name in NAMES {
                    if let Err(error) = renew(&client, name, identity).await {
                        tracing::debug!(lease = name, %error, "cannot report who leads; trying again");
                        wait = RETRY_INTERVAL;
                    }
                }
                tokio::time::sleep(wait).await;
            }
        }
    })
    .await;
}

async fn renew(client: &dyn Client, name: &str, identity: &str) -> Result<()> {
    let resource = resources::leases();
    let now = Timestamp::now();
    match client.get(&resource, Some(NAMESPACE), name).await {
        Ok(lease) => {
            let lease = renewed(Some(&lease), name, identity, now);
            client.update(&resource, Some(NAMESPACE), name, None, lease, WriteOptions::default()).await?;
        }
        Err(error) if error.is_not_found() => {
            let lease = renewed(None, name, identity, now);
            client.create(&resource, Some(NAMESPACE), None, lease, WriteOptions::default()).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The lease as it reads once `identity` has renewed, or taken, it at `now`.
fn renewed(lease: Option<&Object>, name: &str, identity: &str, now: Timestamp) -> Value {
    let mut value = match lease {
        Some(lease) => Value::clone(lease.value()),
        None => json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                       "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {}}),
    };
    // meta/v1 MicroTime.
    let time = json!(now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string());
    let spec = &mut value["spec"];
    if spec["holderIdentity"] != identity {
        let transitions = spec["leaseTransitions"].as_i64().unwrap_or(0);
        let was_held = spec["holderIdentity"].is_string();
        spec["leaseTransitions"] = json!(transitions + i64::from(was_held));
        spec["acquireTime"] = time.clone();
        spec["holderIdentity"] = json!(identity);
    }
    spec["leaseDurationSeconds"] = json!(LEASE_DURATION_SECONDS);
    spec["renewTime"] = time;
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_count_changes_of_the_holder() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let object = |value: &Value| Object::from_value(value, 1).unwrap();
        let first = renewed(None, "kube-scheduler", "m1", at(0));
        assert_eq!(first["spec"]["leaseTransitions"], 0);
        assert_eq!(first["spec"]["acquireTime"], "1970-01-01T00:00:00.000000Z");
        let again = renewed(Some(&object(&first)), "kube-scheduler", "m1", at(10));
        assert_eq!(again["spec"]["acquireTime"], first["spec"]["acquireTime"]);
        assert_eq!(again["spec"]["renewTime"], "1970-01-01T00:00:10.000000Z");
        let taken = renewed(Some(&object(&again)), "kube-scheduler", "m2", at(20));
        assert_eq!(taken["spec"]["leaseTransitions"], 1);
        assert_eq!(taken["spec"]["acquireTime"], taken["spec"]["renewTime"]);
    }
}
