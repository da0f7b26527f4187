//! The recorder of this process's metrics.

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use quorate_store::telemetry;

/// Installs the recorder, with the buckets that the store's dashboards expect.
pub(crate) fn install() -> Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in telemetry::buckets() {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), &buckets)
            .with_context(|| format!("cannot set the buckets of {name}"))?;
    }
    let handle = builder.install_recorder().context("cannot install the recorder of metrics")?;
    telemetry::describe();
    Ok(handle)
}
