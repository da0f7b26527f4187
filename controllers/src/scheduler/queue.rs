//! Pods that wait: to be looked at, for their pause after a failure to end, or for the
//! cluster to change.
//!
//! Always: a pod is in exactly one place. Times are handed in.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::framework::Wake;
use super::pod::{PodInfo, PodKey};

/// The first pause; it doubles with each failure.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that nothing has woken for so long is tried again: a hint may have been missed.
const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

/// Highest priority first, then who has waited longest.
type Rank = (Reverse<i32>, u64, PodKey);

#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<PodKey, Entry>,
    active: BTreeSet<Rank>,
    backoff: BTreeSet<(Instant, PodKey)>,
    /// By the time at which they are tried again regardless.
    unschedulable: BTreeSet<(Instant, PodKey)>,
    gated: usize,
    sequence: u64,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    /// How often it was looked at.
    attempts: u32,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Gated,
    Active {
        sequence: u64,
    },
    Backoff {
        until: Instant,
    },
    Unschedulable {
        wakes_on: Wake,
        retry_after: Instant,
        give_up_waiting: Instant,
    },
    /// Taken by [`Queue::pop`].
    Taken,
}

/// How many pods wait where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    pub gated: usize,
}

impl Queue {
    /// Takes in a pod, or a newer version of one that waits.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        let key = Arc::clone(&pod.key);
        let Some(entry) = self.entries.get_mut(&key) else {
            let gated = pod.is_gated;
            self.entries.insert(Arc::clone(&key), Entry { pod, attempts: 0, place: Place::Taken });
            if gated {
                self.gate(&key)
            } else {
                self.activate(&key)
            }
            return;
        };
        if entry.pod.uid != pod.uid {
            self.remove(&key);
            return self.put(pod);
        }
        let before = std::mem::replace(&mut entry.pod, Arc::clone(&pod));
        match entry.place {
            Place::Taken => {}
            _ if pod.is_gated => {
                self.detach(&key, before.priority);
                self.gate(&key);
            }
            Place::Gated => {
                self.detach(&key, before.priority);
                self.activate(&key);
            }
            // What its own user changed may be what it waited for.
            Place::Unschedulable { .. } if wants_something_else(&before, &pod) => {
                self.detach(&key, before.priority);
                self.activate(&key);
            }
            Place::Active { .. } if before.priority != pod.priority => {
                self.detach(&key, before.priority);
                self.activate(&key);
            }
            _ => {}
        }
    }

    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub fn remove(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let priority = self.entries.get(key)?.pod.priority;
        self.detach(key, priority);
        self.entries.remove(key).map(|entry| entry.pod)
    }

    /// The pod to look at now and how often it was tried before. It stays taken until
    /// [`Queue::done`], [`Queue::retry`] or [`Queue::wait`] says what became of it.
    pub fn pop(&mut self, now: Instant) -> Option<(Arc<PodInfo>, u32)> {
        self.flush(now);
        let (_, _, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key).expect("an active pod has an entry");
        entry.place = Place::Taken;
        let before = entry.attempts;
        entry.attempts = entry.attempts.saturating_add(1);
        Some((Arc::clone(&entry.pod), before))
    }

    /// The pod has its node.
    pub fn done(&mut self, key: &str) {
        if matches!(self.entries.get(key), Some(Entry { place: Place::Taken, .. })) {
            self.entries.remove(key);
        }
    }

    /// Something failed that has nothing to do with the cluster: again after a pause.
    pub fn retry(&mut self, key: &str, now: Instant) {
        self.leave(key, now, None);
    }

    /// No node fits: again when `wakes_on` happens.
    pub fn wait(&mut self, key: &str, wakes_on: Wake, now: Instant) {
        self.leave(key, now, Some(wakes_on));
    }

    fn leave(&mut self, key: &str, now: Instant, wakes_on: Option<Wake>) {
        let Some((key, entry)) = self.entries.get_key_value(key) else { return };
        if !matches!(entry.place, Place::Taken) {
            return;
        }
        let key = Arc::clone(key);
        let until = now + backoff(entry.attempts);
        match wakes_on {
            _ if entry.pod.is_gated => self.gate(&key),
            Some(wakes_on) => {
                let give_up_waiting = now + MAX_UNSCHEDULABLE;
                self.unschedulable.insert((give_up_waiting, Arc::clone(&key)));
                self.set_place(&key, Place::Unschedulable { wakes_on, retry_after: until, give_up_waiting });
            }
            None => self.pause(&key, until),
        }
    }

    /// The cluster changed: pods that it may help are tried again, after their pause.
    pub fn wake(&mut self, event: Wake, now: Instant) {
        if event == Wake::NOTHING {
            return;
        }
        let mut woken = Vec::new();
        for (_, key) in &self.unschedulable {
            if let Some(Entry { place: Place::Unschedulable { wakes_on, retry_after, .. }, .. }) = self.entries.get(key)
                && wakes_on.touches(event)
            {
                woken.push((Arc::clone(key), *retry_after));
            }
        }
        for (key, retry_after) in woken {
            self.detach(&key, 0);
            if retry_after <= now { self.activate(&key) } else { self.pause(&key, retry_after) }
        }
    }

    /// A new reign: everything is looked at again, and nothing is on its way any more.
    pub fn restart(&mut self) {
        let waiting: Vec<(PodKey, i32)> = self
            .entries
            .iter()
            .filter(|(_, entry)| !matches!(entry.place, Place::Gated | Place::Active { .. }))
            .map(|(key, entry)| (Arc::clone(key), entry.pod.priority))
            .collect();
        for (key, priority) in waiting {
            self.detach(&key, priority);
            self.activate(&key);
        }
        for entry in self.entries.values_mut() {
            entry.attempts = 0;
        }
    }

    /// When the next pause ends, if nothing is to be done before.
    pub fn next_time(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, PodKey)>| set.first().map(|(at, _)| *at);
        [first(&self.backoff), first(&self.unschedulable)].into_iter().flatten().min()
    }

    pub fn depth(&self) -> Depth {
        Depth {
            active: self.active.len(),
            backoff: self.backoff.len(),
            unschedulable: self.unschedulable.len(),
            gated: self.gated,
        }
    }

    /// Activates what has paused or waited long enough.
    fn flush(&mut self, now: Instant) {
        let is_due = |set: &BTreeSet<(Instant, PodKey)>| {
            set.first().filter(|(at, _)| *at <= now).map(|(_, key)| Arc::clone(key))
        };
        while let Some(key) = is_due(&self.backoff).or_else(|| is_due(&self.unschedulable)) {
            self.detach(&key, 0);
            self.activate(&key);
        }
    }

    fn activate(&mut self, key: &PodKey) {
        self.sequence += 1;
        let sequence = self.sequence;
        let entry = self.entries.get_mut(key).expect("only known pods move");
        entry.place = Place::Active { sequence };
        self.active.insert((Reverse(entry.pod.priority), sequence, Arc::clone(key)));
    }

    fn gate(&mut self, key: &PodKey) {
        self.gated += 1;
        self.set_place(key, Place::Gated);
    }

    fn pause(&mut self, key: &PodKey, until: Instant) {
        self.backoff.insert((until, Arc::clone(key)));
        self.set_place(key, Place::Backoff { until });
    }

    fn set_place(&mut self, key: &str, place: Place) {
        self.entries.get_mut(key).expect("only known pods move").place = place;
    }

    /// Takes a pod out of where it waits; `priority` is the one that it was ranked by.
    fn detach(&mut self, key: &str, priority: i32) {
        let Some((key, entry)) = self.entries.get_key_value(key) else { return };
        let key = Arc::clone(key);
        match entry.place {
            Place::Gated => self.gated -= 1,
            Place::Active { sequence } => {
                self.active.remove(&(Reverse(priority), sequence, Arc::clone(&key)));
            }
            Place::Backoff { until } => {
                self.backoff.remove(&(until, Arc::clone(&key)));
            }
            Place::Unschedulable { give_up_waiting, .. } => {
                self.unschedulable.remove(&(give_up_waiting, Arc::clone(&key)));
            }
            Place::Taken => {}
        }
        self.set_place(&key, Place::Taken);
    }
}

fn backoff(attempts: u32) -> Duration {
    INITIAL_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(MAX_BACKOFF)
}

/// Whether a change of the pod itself could let it fit; its status cannot.
fn wants_something_else(before: &PodInfo, after: &PodInfo) -> bool {
    before.requests != after.requests
        || before.labels != after.labels
        || before.tolerations != after.tolerations
        || before.node_selector != after.node_selector
        || before.required_nodes != after.required_nodes
        || before.priority != after.priority
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::pod::pod_named;

    fn put(queue: &mut Queue, name: &str, priority: i32) {
        queue.put(Arc::new(pod_named("d", name, json!({"priority": priority}))));
    }

    fn pop(queue: &mut Queue, now: Instant) -> String {
        queue.pop(now).map_or_else(|| "-".to_owned(), |(pod, _)| pod.name.clone())
    }

    #[test]
    fn priority_comes_first_then_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "a", 0);
        put(&mut queue, "b", 5);
        put(&mut queue, "c", 5);
        put(&mut queue, "b", 5);
        assert_eq!(["b", "c", "a", "-"].map(str::to_owned), [(); 4].map(|()| pop(&mut queue, now)));
    }

    #[test]
    fn pauses_double_up_to_ten_seconds() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        put(&mut queue, "a", 0);
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(pop(&mut queue, now), "a");
            queue.retry("d/a", now);
            assert_eq!(queue.next_time(), Some(now + Duration::from_secs(seconds)));
            assert_eq!(pop(&mut queue, now + Duration::from_millis(seconds * 1000 - 1)), "-");
            now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn only_a_relevant_change_wakes_and_not_before_the_pause_ends() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "a", 0);
        pop(&mut queue, now);
        queue.wait("d/a", Wake::NODE_TAINTS | Wake::NODE_ADDED, now);
        queue.wake(Wake::POD_GONE, now);
        assert_eq!(queue.depth(), Depth { unschedulable: 1, ..Depth::default() });
        queue.wake(Wake::NODE_TAINTS, now);
        assert_eq!(queue.depth(), Depth { backoff: 1, ..Depth::default() });
        assert_eq!(pop(&mut queue, now), "-");
        assert_eq!(pop(&mut queue, now + INITIAL_BACKOFF), "a");
        queue.wait("d/a", Wake::NODE_TAINTS, now);
        queue.wake(Wake::NODE_TAINTS, now + MAX_BACKOFF);
        assert_eq!(pop(&mut queue, now + MAX_BACKOFF), "a");
        queue.wait("d/a", Wake::NODE_TAINTS, now);
        assert_eq!(pop(&mut queue, now + MAX_UNSCHEDULABLE), "a", "hints may miss something");
    }

    #[test]
    fn gates_hold_a_pod_back() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.put(Arc::new(pod_named("d", "a", json!({"schedulingGates": [{"name": "g"}]}))));
        assert_eq!(queue.depth(), Depth { gated: 1, ..Depth::default() });
        queue.restart();
        assert_eq!(pop(&mut queue, now), "-");
        put(&mut queue, "a", 0);
        assert_eq!(queue.depth().gated, 0);
        assert_eq!(pop(&mut queue, now), "a");
    }

    #[test]
    fn what_is_taken_can_be_replaced_or_removed() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "a", 0);
        pop(&mut queue, now);
        put(&mut queue, "a", 0);
        assert_eq!(pop(&mut queue, now), "-", "it is taken already");
        queue.remove("d/a");
        queue.retry("d/a", now);
        assert_eq!(queue.depth(), Depth::default());
        put(&mut queue, "b", 0);
        pop(&mut queue, now);
        queue.restart();
        assert_eq!(pop(&mut queue, now), "b", "a new reign knows of no binding under way");
        queue.done("d/b");
        assert!(queue.entries.is_empty());
    }

    #[test]
    fn a_pods_own_change_wakes_it() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "a", 0);
        pop(&mut queue, now);
        queue.wait("d/a", Wake::NODE_ADDED, now);
        put(&mut queue, "a", 0);
        assert_eq!(pop(&mut queue, now), "-");
        queue.put(Arc::new(pod_named("d", "a", json!({"tolerations": [{"operator": "Exists"}]}))));
        assert_eq!(pop(&mut queue, now), "a");
    }
}
