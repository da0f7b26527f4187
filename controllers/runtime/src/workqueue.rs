//! Keys to be looked at: each at most once at a time, later when it failed.
//!
//! Always: a key that is being worked on is not handed out again before `done`; a key
//! added meanwhile is handed out once more afterwards.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// As upstream's controllers begin.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// Upstream goes up to 1000 s; half a minute is soon enough to spare nobody a wait.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A queue of keys for any number of workers. Cheap to clone.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<K> {
    name: &'static str,
    state: Mutex<State<K>>,
    look_again: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// What is in `ready`, or was added while it was being worked on; with the time of that.
    dirty: HashMap<K, Instant>,
    working: HashMap<K, Instant>,
    /// By due time and a sequence number that tells equal times apart.
    delayed: BTreeMap<(Instant, u64), K>,
    delayed_until: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
    is_paused: bool,
    is_shut_down: bool,
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// `name` is the label of the queue's metrics.
    pub fn new(name: &'static str) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            working: HashMap::new(),
            delayed: BTreeMap::new(),
            delayed_until: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
            is_paused: false,
            is_shut_down: false,
        };
        Self { shared: Arc::new(Shared { name, state: Mutex::new(state), look_again: Notify::new() }) }
    }

    /// Adds a key unless it waits already.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        self.shared.add(&mut state, key, Instant::now());
    }

    /// Adds a key once `delay` has passed; an earlier delay of the same key stands.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.lock();
        if state.is_closed() {
            return;
        }
        let due = Instant::now() + delay;
        if let Some(at) = state.delayed_until.get(&key).copied() {
            if at.0 <= due {
                return;
            }
            state.delayed.remove(&at);
        }
        state.sequence += 1;
        let at = (due, state.sequence);
        state.delayed.insert(at, key.clone());
        state.delayed_until.insert(key, at);
        drop(state);
        self.shared.look_again.notify_one();
    }

    /// Adds a key that failed, later after each failure in a row.
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures += 1;
            *failures
        };
        metrics::counter!("workqueue_retries_total", "name" => self.shared.name).increment(1);
        self.add_after(key, backoff(failures));
    }

    /// Ends the row of failures of a key.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// How often the key failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key; it is the caller's until [`WorkQueue::done`]. `None` after
    /// [`WorkQueue::shut_down`]. Cancel-safe.
    pub async fn get(&self) -> Option<K> {
        loop {
            let notified = self.shared.look_again.notified();
            let due = {
                let mut state = self.lock();
                let now = Instant::now();
                self.shared.move_due(&mut state, now);
                if state.is_shut_down {
                    return None;
                }
                if let Some(key) = state.ready.pop_front() {
                    let added = state.dirty.remove(&key).expect("what is ready is dirty");
                    state.working.insert(key.clone(), now);
                    self.shared.report_depth(&state);
                    metrics::histogram!("workqueue_queue_duration_seconds", "name" => self.shared.name)
                        .record(now.duration_since(added).as_secs_f64());
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        // One wake-up may stand for several keys: pass it on.
                        self.shared.look_again.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.keys().next().map(|(due, _)| *due)
            };
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, notified).await;
                }
                None => notified.await,
            }
        }
    }

    /// Gives a key back; when it was added meanwhile, it is ready again.
    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        if let Some(since) = state.working.remove(key) {
            metrics::histogram!("workqueue_work_duration_seconds", "name" => self.shared.name)
                .record(since.elapsed().as_secs_f64());
            if state.dirty.contains_key(key) {
                state.ready.push_back(key.clone());
                self.shared.look_again.notify_one();
            }
        }
    }

    /// How many keys are ready.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything and takes nothing until [`WorkQueue::resume`]: nobody works now,
    /// and whoever resumes adds every key.
    pub fn pause(&self) {
        let mut state = self.lock();
        state.ready.clear();
        state.dirty.clear();
        state.working.clear();
        state.delayed.clear();
        state.delayed_until.clear();
        state.failures.clear();
        state.is_paused = true;
        self.shared.report_depth(&state);
    }

    pub fn resume(&self) {
        self.lock().is_paused = false;
    }

    /// Ends every present and future [`WorkQueue::get`].
    pub fn shut_down(&self) {
        self.lock().is_shut_down = true;
        self.shared.look_again.notify_waiters();
        // One who is between his look and his wait finds the permit.
        self.shared.look_again.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> Shared<K> {
    fn add(&self, state: &mut State<K>, key: K, now: Instant) {
        if state.is_closed() || state.dirty.contains_key(&key) {
            return;
        }
        metrics::counter!("workqueue_adds_total", "name" => self.name).increment(1);
        state.dirty.insert(key.clone(), now);
        if !state.working.contains_key(&key) {
            state.ready.push_back(key);
            self.report_depth(state);
            self.look_again.notify_one();
        }
    }

    fn move_due(&self, state: &mut State<K>, now: Instant) {
        while let Some(entry) = state.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            state.delayed_until.remove(&key);
            self.add(state, key, now);
        }
    }

    fn report_depth(&self, state: &State<K>) {
        metrics::gauge!("workqueue_depth", "name" => self.name).set(state.ready.len() as f64);
    }
}

impl<K> State<K> {
    fn is_closed(&self) -> bool {
        self.is_paused || self.is_shut_down
    }
}

/// The delay after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    (FIRST_BACKOFF * (1 << doublings)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_on_by_one_at_a_time() {
        let queue = WorkQueue::new("test");
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.get()).await.is_err());
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_kept_and_the_earliest_stands() {
        let queue = WorkQueue::new("test");
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(7));
        queue.add_after("a", Duration::from_secs(3));
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("late"));
        assert!(start.elapsed() >= Duration::from_secs(9));
        assert!(queue.is_empty());
    }

    #[test]
    fn failures_wait_longer_each_time_up_to_a_limit() {
        let expected = [(1, 5), (2, 10), (5, 80), (13, 20_480), (14, 30_000), (u32::MAX, 30_000)];
        for (failures, millis) in expected {
            assert_eq!(backoff(failures), Duration::from_millis(millis), "{failures}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_worker_gets_something_and_all_end() {
        let queue = WorkQueue::new("test");
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while let Some(key) = queue.get().await {
                        seen.push(key);
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        queue.done(&key);
                    }
                    seen
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        for key in 0..9 {
            queue.add(key);
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        queue.shut_down();
        let mut all = Vec::new();
        for worker in workers {
            let seen = worker.await.unwrap();
            assert_eq!(seen.len(), 3);
            all.extend(seen);
        }
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_queue_takes_nothing() {
        let queue = WorkQueue::new("test");
        queue.add("before");
        queue.add_rate_limited("failed");
        queue.pause();
        queue.add("during");
        queue.resume();
        assert!(queue.is_empty());
        assert_eq!(queue.failures(&"failed"), 0);
        queue.add("after");
        assert_eq!(queue.get().await, Some("after"));
    }
}
