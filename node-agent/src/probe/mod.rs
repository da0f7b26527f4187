//! Probes: a task for each one of each running container, and what they have found.

pub mod action;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use quorate_runtime::events::{EventRecorder, EventType, Reference};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::cri::Cri;
use action::Target;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    fn of(self, container: &core::Container) -> Option<&core::Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

type Key = (String, Purpose);

/// The verdicts of one pod's probes, by container id.
#[derive(Default)]
struct Verdicts {
    by_key: Mutex<BTreeMap<Key, bool>>,
}

/// The probes of one pod.
pub struct Probes {
    cri: Cri,
    recorder: EventRecorder,
    /// Woken when a verdict changes.
    wake: Arc<Notify>,
    verdicts: Arc<Verdicts>,
    tasks: BTreeMap<Key, AbortHandle>,
}

/// A running container, as probes need it.
pub struct Probed<'a> {
    pub container: &'a core::Container,
    pub container_id: &'a str,
    pub address: &'a str,
    pub about: Reference,
}

impl Probes {
    pub fn new(cri: Cri, recorder: EventRecorder, wake: Arc<Notify>) -> Self {
        Self { cri, recorder, wake, verdicts: Arc::default(), tasks: BTreeMap::new() }
    }

    /// The last verdict; `None` before the first.
    pub fn verdict(&self, container_id: &str, purpose: Purpose) -> Option<bool> {
        let verdicts = self.verdicts.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.get(&(container_id.to_owned(), purpose)).copied()
    }

    /// Whether the startup probe still has to succeed.
    pub fn is_starting(&self, container: &core::Container, container_id: &str) -> bool {
        container.startup_probe.is_some() && self.verdict(container_id, Purpose::Startup) != Some(true)
    }

    /// A container without a readiness probe is ready while it runs.
    pub fn is_ready(&self, container: &core::Container, container_id: &str) -> bool {
        container.readiness_probe.is_none() || self.verdict(container_id, Purpose::Readiness) == Some(true)
    }

    /// Upstream's words, when a probe wants the container restarted.
    pub fn unhealthy(&self, container: &core::Container, container_id: &str) -> Option<String> {
        [(Purpose::Startup, "startup"), (Purpose::Liveness, "liveness")].into_iter().find_map(|(purpose, word)| {
            (self.verdict(container_id, purpose) == Some(false))
                .then(|| format!("Container {} failed {word} probe, will be restarted", container.name))
        })
    }

    /// Starts what is missing and ends what probes containers that are not in `probed`.
    pub fn sync(&mut self, probed: &[Probed<'_>]) {
        let mut wanted = BTreeSet::new();
        for target in probed {
            let starting = self.is_starting(target.container, target.container_id);
            for purpose in [Purpose::Startup, Purpose::Readiness, Purpose::Liveness] {
                let Some(probe) = purpose.of(target.container) else { continue };
                // The others wait for the startup probe, which ends with its first success.
                if starting == (purpose == Purpose::Startup) {
                    let key = (target.container_id.to_owned(), purpose);
                    wanted.insert(key.clone());
                    if !self.tasks.contains_key(&key) {
                        let task = self.start(target, purpose, probe.clone(), key.clone());
                        self.tasks.insert(key, task);
                    }
                }
            }
        }
        self.tasks.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        let alive: BTreeSet<&str> = probed.iter().map(|target| target.container_id).collect();
        self.verdicts
            .by_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(id, _), _| alive.contains(id.as_str()));
    }

    fn start(&self, target: &Probed<'_>, purpose: Purpose, probe: core::Probe, key: Key) -> AbortHandle {
        let task = Task {
            cri: self.cri.clone(),
            recorder: self.recorder.clone(),
            wake: Arc::clone(&self.wake),
            verdicts: Arc::clone(&self.verdicts),
            container_id: target.container_id.to_owned(),
            address: target.address.to_owned(),
            ports: target.container.ports.clone().unwrap_or_default(),
            about: target.about.clone(),
            purpose,
            probe,
            key,
        };
        tokio::spawn(task.run()).abort_handle()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

struct Task {
    cri: Cri,
    recorder: EventRecorder,
    wake: Arc<Notify>,
    verdicts: Arc<Verdicts>,
    container_id: String,
    address: String,
    ports: Vec<core::ContainerPort>,
    about: Reference,
    purpose: Purpose,
    probe: core::Probe,
    key: Key,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
}

impl Task {
    async fn run(self) {
        tokio::time::sleep(seconds(self.probe.initial_delay_seconds, 0)).await;
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let mut tally = Tally::new(self.probe.success_threshold, self.probe.failure_threshold);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = self.look().await;
            if let Err(why) = &result {
                let message = format!("{} probe failed: {why}", self.purpose.title());
                self.recorder.record(self.about.clone(), EventType::Warning, "Unhealthy", message);
            }
            if let Some(verdict) = tally.count(result.is_ok()) {
                self.verdicts.by_key.lock().unwrap_or_else(PoisonError::into_inner).insert(self.key.clone(), verdict);
                self.wake.notify_one();
            }
        }
    }

    async fn look(&self) -> Result<(), String> {
        let timeout = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let target = Target {
            cri: &self.cri,
            container_id: &self.container_id,
            address: &self.address,
            ports: &self.ports,
            timeout,
        };
        let look = async {
            if let Some(action) = &self.probe.exec {
                // The runtime watches the time of a command, and kills it.
                return target.exec(action.command.clone().unwrap_or_default()).await;
            }
            let network = async {
                if let Some(action) = &self.probe.http_get {
                    target.http(action).await
                } else if let Some(action) = &self.probe.tcp_socket {
                    target.tcp(action).await
                } else if let Some(action) = &self.probe.grpc {
                    target.grpc(action).await
                } else {
                    Err("missing probe handler".to_owned())
                }
            };
            let late = |_| Err(format!("no answer within {}s", timeout.as_secs()));
            tokio::time::timeout(timeout, network).await.unwrap_or_else(late)
        };
        look.await
    }
}

/// Counts results in a row until a threshold makes a verdict of them.
struct Tally {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    in_a_row: i32,
    verdict: Option<bool>,
}

impl Tally {
    fn new(success_threshold: Option<i32>, failure_threshold: Option<i32>) -> Self {
        Self {
            success_threshold: success_threshold.unwrap_or(1).max(1),
            failure_threshold: failure_threshold.unwrap_or(3).max(1),
            last: None,
            in_a_row: 0,
            verdict: None,
        }
    }

    /// Returns the verdict when this result changes it.
    fn count(&mut self, success: bool) -> Option<bool> {
        self.in_a_row = if self.last == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        let changed = self.in_a_row >= threshold && self.verdict != Some(success);
        changed.then(|| {
            self.verdict = Some(success);
            success
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(success: i32, failure: i32, results: &str, expected: &[(usize, bool)]) {
        let mut tally = Tally::new(Some(success), Some(failure));
        let found: Vec<_> =
            results.chars().enumerate().filter_map(|(at, c)| Some((at, tally.count(c == '+')?))).collect();
        assert_eq!(found, expected, "{results}");
    }

    #[test]
    fn thresholds_make_verdicts() {
        check(1, 3, "+--+---", &[(0, true), (6, false)]);
        check(2, 1, "+-++", &[(1, false), (3, true)]);
        check(1, 1, "++--++", &[(0, true), (2, false), (4, true)]);
        check(1, 3, "--", &[]);
    }
}
