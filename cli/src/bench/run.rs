//! One load against one cluster, from the first connection to what it cost.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_store::telemetry::process_cpu_seconds;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::pace::{Pace, Plan};
use super::recorder::{Measured, Recorder, millis};
use super::search::REACHED;
use super::servers::{Cost, Readings};
use super::target::Target;
use super::watch::Watches;
use super::work::{Client, Work};

/// After a failure a client pauses, so that a server that refuses everything does not take
/// the whole machine.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// How long operations that are under way may take after the load was stopped.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// One run of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Which of the report's clusters, and in which pair of runs.
    pub(crate) cluster: usize,
    pub(crate) pair: usize,
    /// Operations that were due in a second, in an open loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate_due: Option<f64>,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    /// What an operation cost the servers; what they do not tell is null.
    pub(crate) servers: Cost,
    /// The CPU time of this program itself for one operation.
    pub(crate) client_cpu_micros: Option<f64>,
}

/// Runs `work` against `target`.
///
/// # Errors
/// When the cluster does not take what the load needs, or nothing at all succeeded.
pub(crate) async fn run(
    target: &Target,
    work: &Arc<Work>,
    plan: Plan,
    clients: usize,
    told: &str,
    stop: &CancellationToken,
) -> Result<Run> {
    let opened = async {
        work.prepare(target).await?;
        Load::open(target, work, clients).await
    };
    let load = tokio::select! {
        load = opened => load?,
        () = stop.cancelled() => return Ok(Run::default()),
    };
    let recorder = Arc::new(work.recorder());
    let before = Readings::take(target).await;
    let (begin, cpu) = (Instant::now(), process_cpu_seconds());
    let pace = Arc::new(Pace::new(plan, begin, stop.clone()));
    let timeline = Mutex::new(Vec::new());
    let given_up = async {
        stop.cancelled().await;
        time::sleep(STOP_PATIENCE).await;
    };
    let mut clients_done = Vec::new();
    tokio::select! {
        () = recorder.sample(&timeline, told) => {}
        () = given_up => {}
        done = load.run(target, work, &recorder, &pace) => clients_done = done?,
    }
    let elapsed = begin.elapsed();
    let spent = process_cpu_seconds().zip(cpu).map(|(after, before)| after - before);
    let after = Readings::take(target).await;
    futures::future::join_all(clients_done.into_iter().map(Client::end)).await;
    let timeline = timeline.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let measured = recorder.measured(elapsed, timeline);
    ensure!(
        measured.operations > 0 || stop.is_cancelled(),
        "not one operation succeeded: {}",
        measured.errors.keys().next().map_or("none was begun", String::as_str)
    );
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let client_cpu_micros = spent.map(|seconds| seconds * 1e6 / measured.operations.max(1) as f64);
    let servers = before.until(&after, measured.operations, &target.servers);
    Ok(Run { rate_due: plan.rate, measured, servers, client_cpu_micros, ..Run::default() })
}

impl Run {
    /// Whether the servers kept up with what was due, without a failure, and 99 % of all
    /// operations took no longer than `p99`.
    pub(crate) fn keeps(&self, p99: Duration) -> bool {
        // Where watchers count, it is the writes that are due.
        let writes = self.measured.kinds.iter().find(|kind| kind.name == "put");
        let done = writes.map_or(self.measured.rate, |kind| kind.rate);
        let reached = self.rate_due.is_none_or(|due| done >= due * REACHED);
        let kept = self.measured.kinds.iter().all(|kind| kind.latency_ms.p99 <= millis(p99));
        reached && kept && self.measured.failed() == 0
    }
}

/// What the servers hold now.
pub(crate) async fn cost_now(target: &Target) -> Cost {
    let now = Readings::take(target).await;
    now.until(&now, 0, &target.servers)
}

/// Clients that are ready to begin.
enum Load {
    Unary(Vec<Client>),
    Watch(Watches, usize),
}

impl Load {
    async fn open(target: &Target, work: &Arc<Work>, clients: usize) -> Result<Self> {
        if let Work::Watch(watch) = &**work {
            return Ok(Self::Watch(Watches::open(watch, target).await?, clients));
        }
        let made = (0..clients).map(|number| Client::new(work, target, number, clients));
        Ok(Self::Unary(futures::future::try_join_all(made).await?))
    }

    /// Returns the clients that have something to give back.
    async fn run(
        self,
        target: &Target,
        work: &Work,
        recorder: &Arc<Recorder>,
        pace: &Arc<Pace>,
    ) -> Result<Vec<Client>> {
        let clients = match (self, work) {
            (Self::Watch(watches, clients), Work::Watch(work)) => {
                return watches.load(work, target, recorder, pace, clients).await.map(|()| Vec::new());
            }
            (Self::Watch(..), _) => unreachable!("watches are opened for a load of watches"),
            (Self::Unary(clients), _) => clients,
        };
        // Those that are dropped under way end, too.
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(operate(client, Arc::clone(recorder), Arc::clone(pace)));
        }
        let mut done = Vec::new();
        while let Some(client) = tasks.join_next().await {
            done.push(client?);
        }
        Ok(done)
    }
}

/// Operates until the load ends.
async fn operate(mut client: Client, recorder: Arc<Recorder>, pace: Arc<Pace>) -> Client {
    while let Some(turn) = pace.turn().await {
        match client.operate(turn.number).await {
            Ok(kind) => recorder.succeeded(kind, turn.began.elapsed()),
            Err(status) => {
                recorder.failed(&status);
                time::sleep(FAILURE_PAUSE).await;
            }
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::super::recorder::{Kind, Latency};
    use super::*;

    #[test]
    fn a_promise_is_kept_at_the_rate_that_was_due() {
        let run = |rate: f64, p99: f64, failed: u64| {
            let latency_ms = Latency { p99, ..Latency::default() };
            let kinds = vec![Kind { name: "put".to_owned(), rate, latency_ms, ..Kind::default() }];
            let errors = (0..failed).map(|_| ("gone".to_owned(), failed)).collect();
            Run {
                rate_due: Some(1_000.0),
                measured: Measured { rate, kinds, errors, ..Measured::default() },
                ..Run::default()
            }
        };
        let promise = Duration::from_millis(10);
        assert!(run(999.0, 10.0, 0).keeps(promise));
        assert!(!run(999.0, 10.1, 0).keeps(promise), "too slow");
        assert!(!run(900.0, 1.0, 0).keeps(promise), "the servers did not keep up");
        assert!(!run(999.0, 1.0, 1).keeps(promise), "an operation failed");
    }
}
