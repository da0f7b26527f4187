//! What a controller did that its cache does not show yet.
//!
//! A controller that creates pods and looks again before its informer has seen them would
//! create them twice. It notes what it expects to see, and does nothing until it saw it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// As upstream: after that long a change that was not seen never happened.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Open expectations by the key of the controlling object.
#[derive(Default)]
pub struct Expectations {
    open: Mutex<HashMap<String, Expected>>,
}

struct Expected {
    creations: usize,
    /// By the key of the dependent: deletions may be seen more than once.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// Whether the cache shows everything that was done for `key`, or never will.
    pub fn are_satisfied(&self, key: &str) -> bool {
        self.with(|open| match open.get(key) {
            None => true,
            Some(expected) => {
                (expected.creations == 0 && expected.deletions.is_empty()) || expected.since.elapsed() > TIMEOUT
            }
        })
    }

    /// Expects so many additions for `key` to be seen, and nothing else any more.
    pub fn expect_creations(&self, key: &str, creations: usize) {
        self.set(key, creations, HashSet::new());
    }

    /// Expects these dependents of `key` to be seen to go, and nothing else any more.
    pub fn expect_deletions(&self, key: &str, dependents: impl IntoIterator<Item = String>) {
        self.set(key, 0, dependents.into_iter().collect());
    }

    /// An addition was seen, or will not happen.
    pub fn creation_observed(&self, key: &str) {
        self.creations_skipped(key, 1);
    }

    /// So many creations were not tried or failed.
    pub fn creations_skipped(&self, key: &str, skipped: usize) {
        self.with(|open| {
            if let Some(expected) = open.get_mut(key) {
                expected.creations = expected.creations.saturating_sub(skipped);
            }
        });
    }

    /// A dependent was seen to go, or will not go.
    pub fn deletion_observed(&self, key: &str, dependent: &str) {
        self.with(|open| {
            if let Some(expected) = open.get_mut(key) {
                expected.deletions.remove(dependent);
            }
        });
    }

    /// The controlling object is gone.
    pub fn forget(&self, key: &str) {
        self.with(|open| open.remove(key));
    }

    /// A new reign begins: what an earlier one expected is in its caches or never happened.
    pub fn clear(&self) {
        self.with(HashMap::clear);
    }

    fn set(&self, key: &str, creations: usize, deletions: HashSet<String>) {
        self.with(|open| open.insert(key.to_owned(), Expected { creations, deletions, since: Instant::now() }));
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Expected>) -> T) -> T {
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_happens_until_everything_was_seen() {
        let expectations = Expectations::default();
        assert!(expectations.are_satisfied("a/r"));
        expectations.expect_creations("a/r", 3);
        expectations.creation_observed("a/r");
        assert!(!expectations.are_satisfied("a/r"));
        expectations.creations_skipped("a/r", 2);
        assert!(expectations.are_satisfied("a/r"));

        expectations.expect_deletions("a/r", ["a/x".to_owned(), "a/y".to_owned()]);
        expectations.deletion_observed("a/r", "a/x");
        expectations.deletion_observed("a/r", "a/x");
        assert!(!expectations.are_satisfied("a/r"));
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.are_satisfied("a/r"));
    }
}
