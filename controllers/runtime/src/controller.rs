//! The reconcile loop: keys come in, the reconciler reads everything and acts.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_proto::status::Status;
use tokio_util::sync::CancellationToken;

use crate::activation::Reign;
use crate::client::Result;
use crate::informer::Informer;
use crate::workqueue::WorkQueue;

/// In the store's answer to a write of a reign that is over.
const DEPOSED: &str = "fence is no longer current";

/// When to look at a key again although nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    Never,
    After(Duration),
}

/// What one controller does about one key.
pub trait Reconciler: Send + Sync + 'static {
    /// Brings what `key` names closer to what is wanted. It reads everything anew, may
    /// run twice, and may be dropped at any await. An error means: again, later.
    fn reconcile<'a>(&'a self, reign: &'a Reign, key: &'a str) -> BoxFuture<'a, Result<Requeue>>;

    /// Every key there is work for, now.
    fn keys(&self) -> Vec<String>;

    /// A new reign begins: forget what an earlier one expected.
    fn begin(&self) {}
}

/// A reconciler with its queue, its workers, and the caches that it reads.
pub struct Controller {
    name: &'static str,
    queue: WorkQueue<String>,
    workers: usize,
    reconciler: Arc<dyn Reconciler>,
    informers: Vec<Informer>,
}

impl Controller {
    /// `name` labels logs and metrics; it is also the name of the queue. The controller
    /// works once every one of `informers` is as new as its reign.
    pub fn new(
        name: &'static str,
        queue: WorkQueue<String>,
        workers: usize,
        reconciler: Arc<dyn Reconciler>,
        informers: Vec<Informer>,
    ) -> Self {
        assert!(workers > 0, "a controller has workers");
        // Nobody works before the first reign: keys would only pile up.
        queue.pause();
        Self { name, queue, workers, reconciler, informers }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One reign: returns when `cancel` is cancelled. The caller waits for the end of one
    /// reign before it begins the next.
    pub(crate) async fn act(&self, reign: Reign, cancel: CancellationToken) {
        let caught_up = async {
            for informer in &self.informers {
                informer.refreshed().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = caught_up => {}
        }
        self.reconciler.begin();
        self.queue.resume();
        for key in self.reconciler.keys() {
            self.queue.add(key);
        }
        tracing::info!(controller = self.name, fence = %reign.fence, "active");
        let workers = (0..self.workers).map(|_| self.work(&reign, &cancel));
        futures::future::join_all(workers).await;
        self.queue.pause();
    }

    async fn work(&self, reign: &Reign, cancel: &CancellationToken) {
        loop {
            let key = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                key = self.queue.get() => key,
            };
            let Some(key) = key else { return };
            let reconcile = AssertUnwindSafe(self.reconciler.reconcile(reign, &key)).catch_unwind();
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                outcome = reconcile => outcome,
            };
            self.settle(
                &key,
                outcome.unwrap_or_else(|_| {
                    metrics::counter!("controller_reconcile_panics_total", "controller" => self.name).increment(1);
                    Err(Status::internal("the reconcile panicked"))
                }),
            );
            self.queue.done(&key);
        }
    }

    fn settle(&self, key: &str, outcome: Result<Requeue>) {
        let key = key.to_owned();
        match outcome {
            Ok(requeue) => {
                self.queue.forget(&key);
                if let Requeue::After(delay) = requeue {
                    self.queue.add_after(key, delay);
                }
            }
            Err(error) => {
                // A stale cache is everyday life, and so is the end of a reign, which the
                // store knows first; everything else is worth a line.
                let is_stale = error.is_conflict() || error.is_already_exists() || error.is_not_found();
                if is_stale || error.message.contains(DEPOSED) {
                    tracing::debug!(controller = self.name, key, %error, "reconcile again");
                } else {
                    tracing::warn!(controller = self.name, key, %error, "a reconcile failed; trying again");
                }
                self.queue.add_rate_limited(key);
            }
        }
    }
}
