//! How many objects there are, for dashboards.

use std::time::Duration;

use super::Registry;
use crate::schema::resources;

/// Upstream counts once a minute; counting is cheap here.
const INTERVAL: Duration = Duration::from_secs(30);

/// Until dropped, sets `apiserver_storage_objects` and `apiserver_resource_objects`, the name it has since 1.34.
pub(super) async fn run(registry: &Registry) {
    registry.cache().ready().await;
    loop {
        for def in resources().iter().filter(|def| !def.storage_prefix.is_empty()) {
            let Ok(cache) = registry.cache().of(def) else { continue };
            // Gauges are floating point; counts of objects are far below 2^53.
            let count = cache.len() as f64;
            metrics::gauge!("apiserver_storage_objects", "resource" => def.group_resource()).set(count);
            metrics::gauge!("apiserver_resource_objects", "group" => def.group, "resource" => def.resource).set(count);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
