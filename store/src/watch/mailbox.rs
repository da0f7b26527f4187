//! Where one owner of watchers hears that there is something to look at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// The first and the last revision of events that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(super) first: i64,
    pub(super) last: i64,
}

impl News {
    pub(super) fn add(news: &mut Option<News>, more: News) {
        let first = news.map_or(more.first, |news| news.first);
        *news = Some(News { first, last: more.last });
    }
}

/// News of groups of watchers, each group at most once between two looks. As a waker, it
/// calls its owner.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    letters: Mutex<Letters>,
    /// There are letters.
    filled: AtomicBool,
    /// The owner was called by something else than news.
    called: AtomicBool,
    owner: AtomicWaker,
}

#[derive(Debug, Default)]
struct Letters {
    news: Vec<(usize, News)>,
    /// How often they were taken.
    turn: u64,
}

/// Where the news of a group lie that were put last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    turn: u64,
    place: usize,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts news of a group in; returns whether its owner has to be woken.
    pub(super) fn put(&self, mark: &mut Option<Mark>, group: usize, news: News) -> bool {
        let mut letters = self.lock();
        if let Some(Mark { turn, place }) = *mark
            && turn == letters.turn
            && let Some((_, found)) = letters.news.get_mut(place)
        {
            found.last = news.last;
            return false;
        }
        *mark = Some(Mark { turn: letters.turn, place: letters.news.len() });
        letters.news.push((group, news));
        !self.filled.swap(true, Ordering::AcqRel)
    }

    /// Takes what has come.
    pub(super) fn take(&self) -> Vec<(usize, News)> {
        let mut letters = self.lock();
        letters.turn += 1;
        self.filled.store(false, Ordering::Release);
        std::mem::take(&mut letters.news)
    }

    /// Whether news wait.
    pub(crate) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Whether its owner was called since this was asked last.
    pub(crate) fn was_called(&self) -> bool {
        self.called.load(Ordering::Acquire) && self.called.swap(false, Ordering::AcqRel)
    }

    /// Who is woken from now on.
    pub(crate) fn register(&self, owner: &Waker) {
        self.owner.register(owner);
    }

    pub(super) fn wake_owner(&self) {
        self.owner.wake();
    }

    /// Lets its owner look around although there is no news.
    pub(super) fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.owner.wake();
    }

    /// Returns once news wait, or its owner was called. Cancel-safe.
    pub(super) async fn wait(&self) {
        std::future::poll_fn(|context| {
            self.register(context.waker());
            if self.is_filled() || self.was_called() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Wake for Mailbox {
    fn wake(self: Arc<Self>) {
        self.call();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_lies_there_once_until_it_is_taken() {
        let mailbox = Mailbox::default();
        let (mut one, mut two) = (None, None);
        let news = |first, last| News { first, last };
        assert!(mailbox.put(&mut one, 1, news(5, 5)));
        assert!(!mailbox.put(&mut two, 2, news(5, 6)));
        assert!(!mailbox.put(&mut one, 1, news(8, 9)));
        assert_eq!(mailbox.take(), [(1, news(5, 9)), (2, news(5, 6))]);
        assert!(!mailbox.is_filled());
        assert!(mailbox.put(&mut two, 2, news(10, 10)));
        assert_eq!(mailbox.take(), [(2, news(10, 10))]);
    }
}
