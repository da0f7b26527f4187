//! What a member says of itself in its metrics.

use std::time::Duration;

use metrics::gauge;

use super::{Inner, SERVER_VERSION, Store};
use crate::raft::{Role, View};
use crate::telemetry;

impl Store {
    /// The metrics of the process, if it keeps any.
    pub(crate) fn metrics_text(&self) -> Option<String> {
        let metrics = self.inner.config.metrics.as_ref()?;
        self.inner.measure();
        Some((metrics.0)())
    }
}

impl Inner {
    /// Sets the gauges that nothing else keeps up to date.
    pub(super) fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        let number = |value: u64| value as f64;
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        let revision = |value: i64| value as f64;
        let view = self.raft.view();
        measure_view(&view, self.config.quorum_patience());
        let (size, in_use) = (number(self.engine.size_bytes()), number(self.engine.size_in_use_bytes()));
        gauge!("etcd_mvcc_db_total_size_in_bytes").set(size);
        gauge!("etcd_debugging_mvcc_db_total_size_in_bytes").set(size);
        gauge!("etcd_mvcc_db_total_size_in_use_in_bytes").set(in_use);
        gauge!("etcd_debugging_mvcc_current_revision").set(revision(self.engine.revision()));
        gauge!("etcd_debugging_mvcc_compact_revision").set(revision(self.engine.compact_revision()));
        gauge!("etcd_server_is_learner").set(number(u64::from(view.reign.role == Role::Learner)));
        gauge!("etcd_server_id", "server_id" => format!("{:x}", self.identity.member_id)).set(1.0);
        gauge!("etcd_server_version", "server_version" => SERVER_VERSION).set(1.0);
        let minor = SERVER_VERSION.rsplit_once('.').map_or(SERVER_VERSION, |(minor, _)| minor);
        gauge!("etcd_cluster_version", "cluster_version" => minor).set(1.0);
        if self.config.quota_bytes > 0 {
            gauge!("etcd_server_quota_backend_bytes").set(number(self.config.quota_bytes));
        }
        for (name, share) in [("0.5", 0.5), ("0.99", 0.99), ("1", 1.0)] {
            // As a summary says that there is nothing to tell.
            let seconds = self.wal.sync_quantile(share).map_or(f64::NAN, |took| took.as_secs_f64());
            gauge!("quorate_store_wal_fsync_seconds", "quantile" => name).set(seconds);
        }
        telemetry::measure_process();
    }
}

/// Where the log is, and who leads.
pub(super) fn measure_view(view: &View, patience: Duration) {
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    let number = |value: u64| value as f64;
    let leader = view.reign.known_leader(view.quorum_age, patience);
    gauge!("etcd_server_has_leader").set(number(u64::from(leader.is_some())));
    gauge!("etcd_server_is_leader").set(number(u64::from(view.reign.leads() && leader.is_some())));
    gauge!("etcd_server_proposals_committed_total").set(number(view.committed));
    gauge!("etcd_server_proposals_applied_total").set(number(view.applied));
}
