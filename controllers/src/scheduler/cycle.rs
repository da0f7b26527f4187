//! One scheduler without its shell: sightings and outcomes in, next steps out.
//!
//! Always: a pod that is being bound is assumed in the cache and taken in the queue.

use std::sync::Arc;

use quorate_proto::object::Object;
use tokio::time::Instant;

use super::cache::Cache;
use super::framework::{Context, Decider, Decision, Wake};
use super::node::NodeFacts;
use super::pod::{PodError, PodInfo};
use super::preemption;
use super::queue::{Depth, Queue};

#[derive(Debug, Default)]
pub struct Core {
    cache: Cache,
    queue: Queue,
    decider: Decider,
}

/// What the shell is to do.
#[derive(Debug)]
pub enum Step {
    /// Bind, then call [`Core::bound`].
    Bind { pod: Arc<PodInfo>, node: String },
    /// Tell the pod's owner why it has no node.
    Explain { pod: Arc<PodInfo>, message: String },
}

/// What became of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Bound,
    /// The pod is gone.
    Gone,
    Failed,
}

impl Core {
    /// The newest state of a pod, `None` when there is none any more.
    ///
    /// # Errors
    /// When the pod cannot be read. It counts as gone then.
    pub fn pod_seen(&mut self, key: &str, object: Option<&Object>, now: Instant) -> Result<(), PodError> {
        let pod = object.map(PodInfo::from_object).transpose();
        let Ok(Some(pod)) = pod else {
            self.drop_pod(key, now);
            return pod.map(drop);
        };
        if pod.is_finished {
            self.drop_pod(key, now);
        } else if pod.is_bound() {
            self.queue.remove(key);
            let wake = self.cache.put_pod(Arc::new(pod));
            self.queue.wake(wake, now);
        } else if pod.is_terminating || !pod.is_ours {
            self.drop_pod(key, now);
        } else if self.cache.is_assumed(key, &pod.uid) {
            // An older sight of a pod that is being bound: once the binding is done, the
            // queue must not take it up again.
            if self.queue.contains(key) {
                self.queue.put(Arc::new(pod));
            }
        } else {
            let wake = self.cache.remove_pod(key);
            self.queue.put(Arc::new(pod));
            self.queue.wake(wake, now);
        }
        Ok(())
    }

    fn drop_pod(&mut self, key: &str, now: Instant) {
        self.queue.remove(key);
        let wake = self.cache.remove_pod(key);
        self.queue.wake(wake, now);
    }

    /// The newest state of a node.
    ///
    /// # Errors
    /// When the node cannot be read; what was known of it stays.
    pub fn node_seen(&mut self, name: &str, object: Option<&Object>, now: Instant) -> Result<(), serde_json::Error> {
        let wake = match object {
            Some(object) => self.cache.put_node(NodeFacts::from_object(object)?),
            None => self.cache.remove_node(name),
        };
        self.queue.wake(wake, now);
        Ok(())
    }

    pub fn namespace_seen(&mut self, name: &str, object: Option<&Object>, now: Instant) {
        match object {
            Some(object) => {
                let wake = self.cache.put_namespace(name, object.meta().labels.clone());
                self.queue.wake(wake, now);
            }
            None => self.cache.remove_namespace(name),
        }
    }

    /// A reign begins, with everything seen that was true before it: what an earlier one
    /// had under way is either visible or will never be.
    pub fn restart(&mut self) {
        self.cache.forget_all();
        self.queue.restart();
    }

    /// Decides about the next pod, if one waits.
    pub fn next(&mut self, now: Instant) -> Option<Step> {
        let (pod, _) = self.queue.pop(now)?;
        if let Some(need) = pod.unsupported {
            self.queue.wait(&pod.key, Wake::NOTHING, now);
            let message = format!("the pod needs {need}, which this scheduler does not support yet");
            return Some(Step::Explain { pod, message });
        }
        let context = Context::new(&pod, self.cache.cluster());
        match self.decider.decide(&context) {
            Decision::Node(index) => {
                let node = context.cluster.nodes[index].name().to_owned();
                self.cache.assume(Arc::clone(&pod), &node);
                Some(Step::Bind { pod, node })
            }
            Decision::Nowhere(diagnosis) => {
                let message = diagnosis.message(&pod, &preemption::outlook(&context, &diagnosis));
                self.queue.wait(&pod.key, diagnosis.wakes_on(), now);
                Some(Step::Explain { pod, message })
            }
        }
    }

    /// What became of a [`Step::Bind`] of this reign.
    pub fn bound(&mut self, pod: &PodInfo, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Bound => {
                self.queue.done(&pod.key);
                // Pods that want its company need not wait until it is seen.
                self.queue.wake(Wake::POD_BOUND, now);
            }
            Outcome::Gone | Outcome::Failed => {
                // Another pod of that name has its own assumption.
                if self.cache.is_assumed(&pod.key, &pod.uid) {
                    let wake = self.cache.forget(&pod.key);
                    self.queue.wake(wake, now);
                }
                if outcome == Outcome::Gone {
                    self.queue.done(&pod.key);
                } else {
                    self.queue.retry(&pod.key, now);
                }
            }
        }
    }

    /// When to call [`Core::next`] again although nothing was seen.
    pub fn next_time(&self) -> Option<Instant> {
        self.queue.next_time()
    }

    pub fn depth(&self) -> Depth {
        self.queue.depth()
    }
}
