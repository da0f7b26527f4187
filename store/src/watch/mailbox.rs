//! Where the watchers of one owner are announced that have something to look at.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Tokens of watchers, each at most once between two looks of its watcher.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    tokens: Mutex<Vec<u64>>,
    notify: Notify,
}

impl Mailbox {
    pub(super) fn put(&self, token: u64) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        self.notify.notify_one();
    }

    /// Takes what has come.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets `wait` return although nothing has come.
    pub(crate) fn again(&self) {
        self.notify.notify_one();
    }

    /// Returns once something has come since the last call. Cancel-safe.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }
}
