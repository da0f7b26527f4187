//! Gives every pod a node. Caches are warm on every master; only the leader decides.
//!
//! Always: at most one task owns the cache and the queue; a binding carries the fence of
//! the reign that decided it.

mod bind;
pub mod cache;
pub mod cycle;
pub mod framework;
mod inbox;
pub mod node;
pub mod plugins;
pub mod pod;
mod preemption;
pub mod queue;
pub mod resources;
pub mod terms;
#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_proto::fence::Fence;
use quorate_runtime::activation::{Leadership, Reign};
use quorate_runtime::client::Client;
use quorate_runtime::events::EventRecorder;
use quorate_runtime::informer::{Informer, Informers};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use cycle::{Core, Outcome, Step};
use inbox::{Inbox, Item};
use pod::{PodInfo, SCHEDULER_NAME};

#[derive(Clone, Debug)]
pub struct Config {
    /// Bindings and explanations on their way at once.
    pub max_writes: usize,
}

impl Default for Config {
    fn default() -> Self {
        // Enough to fill one of the store's batches; more only waits there.
        Self { max_writes: 64 }
    }
}

/// The shell around [`Core`].
pub struct Scheduler {
    client: Arc<dyn Client>,
    events: EventRecorder,
    config: Config,
    pods: Informer,
    nodes: Informer,
    namespaces: Informer,
    inbox: Arc<Inbox>,
    core: Core,
    writes: JoinSet<Written>,
}

/// What a task reports when it ends.
struct Written {
    fence: Fence,
    pod: Arc<PodInfo>,
    started: Instant,
    /// `None` for an explanation.
    outcome: Option<Outcome>,
}

enum Role {
    Follower,
    /// Leads, and waits for caches as new as its reign.
    CatchingUp {
        reign: Reign,
        caught_up: BoxFuture<'static, ()>,
    },
    Leader {
        reign: Reign,
    },
}

impl Scheduler {
    /// A scheduler over shared informers. Its cache fills from now on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(client: Arc<dyn Client>, informers: &Informers, events: &EventRecorder, config: Config) -> Self {
        assert!(config.max_writes > 0, "a scheduler that may not write schedules nothing");
        let inbox = Arc::new(Inbox::default());
        let watch = |resource, item: fn(String) -> Item| {
            let informer = informers.informer(&resource);
            let inbox = Arc::clone(&inbox);
            informer.on_change(move |change| inbox.put(item(change.key())));
            informer
        };
        // Nodes first: pods find theirs then.
        let nodes = watch(quorate_runtime::resources::nodes(), Item::Node);
        let namespaces = watch(quorate_runtime::resources::namespaces(), Item::Namespace);
        let pods = watch(quorate_runtime::resources::pods(), Item::Pod);
        Self {
            client,
            events: events.component(SCHEDULER_NAME),
            config,
            pods,
            nodes,
            namespaces,
            inbox,
            core: Core::default(),
            writes: JoinSet::new(),
        }
    }

    /// Runs until `cancel` is cancelled or the store that sends `leadership` is gone.
    /// Writes on their way are then dropped: whether they took effect, the API shows.
    pub async fn run(mut self, mut leadership: Leadership, cancel: CancellationToken) {
        let mut role = self.role_of(*leadership.borrow_and_update());
        loop {
            self.take_in();
            if let Role::Leader { reign } = &role {
                self.act(reign);
            }
            self.report_depth();
            // While all writes are under way, the end of one comes next.
            let may_act = matches!(role, Role::Leader { .. }) && self.writes.len() < self.config.max_writes;
            let next_time = self.core.next_time().filter(|_| may_act);
            let pause = async {
                match next_time {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let caught_up = async {
                match &mut role {
                    Role::CatchingUp { caught_up, .. } => caught_up.await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    role = self.role_of(*leadership.borrow_and_update());
                }
                Some(written) = self.writes.join_next() => {
                    // Tasks catch their own panics, so that there is always an answer.
                    if let Ok(written) = written {
                        self.settle(&role, written);
                    }
                }
                () = caught_up => role = self.begin(role),
                () = self.inbox.filled() => {}
                () = pause => {}
            }
        }
    }

    fn role_of(&self, leadership: Option<Fence>) -> Role {
        let Some(fence) = leadership else { return Role::Follower };
        let informers = [self.nodes.clone(), self.namespaces.clone(), self.pods.clone()];
        informers.iter().for_each(Informer::refresh);
        let caught_up = async move {
            for informer in &informers {
                informer.refreshed().await;
            }
        };
        Role::CatchingUp {
            reign: Reign::new(fence, Arc::clone(&self.client), &self.events),
            caught_up: caught_up.boxed(),
        }
    }

    fn begin(&mut self, role: Role) -> Role {
        let Role::CatchingUp { reign, .. } = role else { return role };
        self.take_in();
        self.core.restart();
        tracing::info!(fence = %reign.fence, "the scheduler is active");
        Role::Leader { reign }
    }

    /// Looks at everything that changed.
    fn take_in(&mut self) {
        let now = Instant::now();
        for item in self.inbox.take() {
            match item {
                Item::Pod(key) => {
                    if let Err(error) = self.core.pod_seen(&key, self.pods.lister().get(&key).as_deref(), now) {
                        tracing::error!(pod = key, %error, "a pod cannot be scheduled");
                    }
                }
                Item::Node(name) => {
                    if let Err(error) = self.core.node_seen(&name, self.nodes.lister().get(&name).as_deref(), now) {
                        tracing::error!(node = name, %error, "a node cannot be used");
                    }
                }
                Item::Namespace(name) => {
                    self.core.namespace_seen(&name, self.namespaces.lister().get(&name).as_deref(), now)
                }
            }
        }
    }

    /// Decides as long as writes may be started.
    fn act(&mut self, reign: &Reign) {
        while self.writes.len() < self.config.max_writes {
            let started = Instant::now();
            let Some(step) = self.core.next(started) else { return };
            let reign = reign.clone();
            let fence = reign.fence;
            match step {
                Step::Bind { pod, node } => {
                    self.writes.spawn(async move {
                        let bound = AssertUnwindSafe(bind::bind(&reign, &pod, &node)).catch_unwind().await;
                        Written { fence, pod, started, outcome: Some(bound.unwrap_or(Outcome::Failed)) }
                    });
                }
                Step::Explain { pod, message } => {
                    attempted("unschedulable", started);
                    self.writes.spawn(async move {
                        // Nothing depends on it; a panic has been reported by the hook.
                        let _ = AssertUnwindSafe(bind::explain(&reign, &pod, &message)).catch_unwind().await;
                        Written { fence, pod, started, outcome: None }
                    });
                }
            }
        }
    }

    fn settle(&mut self, role: &Role, written: Written) {
        let Some(outcome) = written.outcome else { return };
        attempted(if outcome == Outcome::Bound { "scheduled" } else { "error" }, written.started);
        // Another reign has forgotten what this one had under way.
        if matches!(role, Role::Leader { reign } if reign.fence == written.fence) {
            self.core.bound(&written.pod, outcome, Instant::now());
        }
    }

    fn report_depth(&self) {
        let depth = self.core.depth();
        for (queue, pods) in [
            ("active", depth.active),
            ("backoff", depth.backoff),
            ("unschedulable", depth.unschedulable),
            ("gated", depth.gated),
        ] {
            metrics::gauge!("scheduler_pending_pods", "queue" => queue).set(pods as f64);
        }
    }
}

fn attempted(result: &'static str, started: Instant) {
    metrics::counter!("scheduler_schedule_attempts_total", "profile" => SCHEDULER_NAME, "result" => result)
        .increment(1);
    metrics::histogram!("scheduler_scheduling_attempt_duration_seconds", "profile" => SCHEDULER_NAME, "result" => result)
        .record(started.elapsed().as_secs_f64());
}
