//! Which objects to look at again. Bounded by their number: each is named once.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Item {
    /// By `namespace/name`.
    Pod(String),
    Node(String),
    Namespace(String),
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    items: Mutex<(Vec<Item>, HashSet<Item>)>,
    filled: Notify,
}

impl Inbox {
    pub(super) fn put(&self, item: Item) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let (order, known) = &mut *items;
        if known.insert(item.clone()) {
            order.push(item);
            self.filled.notify_one();
        }
    }

    /// Everything named since the last call, in the order of its first mention.
    pub(super) fn take(&self) -> Vec<Item> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.1.clear();
        std::mem::take(&mut items.0)
    }

    /// Waits until something was put since the last wait. Cancel-safe.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}
