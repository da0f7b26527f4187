//! Which events are new, which repeat one, and which are too many.
//!
//! The limits are those of client-go's correlator, so that nobody sees more or fewer
//! events than from upstream's controllers.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::{EventType, Note, Reference};

/// Repetitions further apart than that are events of their own.
const WINDOW: SignedDuration = SignedDuration::from_secs(600);
/// More different messages than that with one reason are told as one.
const MAX_SIMILAR: usize = 10;
/// What one object may say at once.
const BURST: f64 = 25.0;
/// How fast an object earns further events.
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Objects and events that are remembered at most.
const MEMORY: usize = 4096;

/// What to do about one note.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Create { name: String, message: String },
    Repeat { name: String, message: String, count: u32, first: Timestamp },
    Drop,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    component: String,
    about: Reference,
    event_type: EventType,
    reason: String,
}

#[derive(Default)]
pub(super) struct Correlator {
    similar: HashMap<Kind, (HashSet<String>, Timestamp)>,
    written: HashMap<(Kind, String), Written>,
    allowance: HashMap<(String, Reference), (f64, Timestamp)>,
}

struct Written {
    name: String,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

impl Correlator {
    /// Decides about one note; notes come in the order of their times.
    pub(super) fn observe(&mut self, note: &Note) -> Action {
        self.forget_old(note.at);
        // Which version of the object said it does not make an event another one.
        let about = Reference { resource_version: String::new(), ..note.about.clone() };
        if !self.may_say(&note.component, &about, note.at) {
            return Action::Drop;
        }
        let kind = Kind {
            component: note.component.to_string(),
            about,
            event_type: note.event_type,
            reason: note.reason.clone(),
        };
        let (messages, last) = self.similar.entry(kind.clone()).or_insert_with(|| (HashSet::new(), note.at));
        *last = note.at;
        if messages.len() <= MAX_SIMILAR {
            messages.insert(note.message.clone());
        }
        let (identity, message) = if messages.len() > MAX_SIMILAR {
            (String::new(), format!("(combined from similar events): {}", note.message))
        } else {
            (note.message.clone(), note.message.clone())
        };
        match self.written.get_mut(&(kind.clone(), identity.clone())) {
            Some(written) => {
                written.count += 1;
                written.last = note.at;
                Action::Repeat { name: written.name.clone(), message, count: written.count, first: written.first }
            }
            None => {
                let name = format!("{}.{:x}", note.about.name, note.at.as_nanosecond());
                let written = Written { name: name.clone(), count: 1, first: note.at, last: note.at };
                self.written.insert((kind, identity), written);
                Action::Create { name, message }
            }
        }
    }

    fn may_say(&mut self, component: &str, about: &Reference, now: Timestamp) -> bool {
        let (tokens, at) = self.allowance.entry((component.to_owned(), about.clone())).or_insert((BURST, now));
        let earned = now.duration_since(*at).as_secs_f64().max(0.0) * REFILL_PER_SECOND;
        *tokens = (*tokens + earned).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    fn forget_old(&mut self, now: Timestamp) {
        let is_recent = |at: Timestamp| now.duration_since(at) <= WINDOW;
        if self.written.len() + self.similar.len() + self.allowance.len() > MEMORY {
            self.written.retain(|_, written| is_recent(written.last));
            self.similar.retain(|_, (_, last)| is_recent(*last));
            self.allowance.retain(|_, (_, at)| is_recent(*at));
        }
        // A flood of different events within the window: forgetting only costs repetitions.
        if self.written.len() > MEMORY {
            self.written.clear();
            self.similar.clear();
        }
        if self.allowance.len() > MEMORY {
            self.allowance.clear();
        }
        self.similar.retain(|_, (_, last)| is_recent(*last));
        self.written.retain(|_, written| is_recent(written.last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str, seconds: i64) -> Note {
        Note {
            about: Reference { name: "web".to_owned(), resource_version: seconds.to_string(), ..Reference::default() },
            event_type: EventType::Normal,
            reason: "Pulled".to_owned(),
            message: message.to_owned(),
            component: "kubelet".into(),
            host: "n1".into(),
            fence: None,
            at: Timestamp::from_second(1_000_000 + seconds).unwrap(),
        }
    }

    #[test]
    fn a_repetition_counts_up_the_first() {
        let mut correlator = Correlator::default();
        let Action::Create { name, .. } = correlator.observe(&note("a", 0)) else { panic!("the first is new") };
        assert!(name.starts_with("web."));
        let again = correlator.observe(&note("a", 60));
        assert!(matches!(&again, Action::Repeat { name: same, count: 2, .. } if *same == name), "{again:?}");
        assert!(matches!(correlator.observe(&note("b", 61)), Action::Create { .. }));
        assert!(matches!(correlator.observe(&note("a", 661)), Action::Create { .. }), "the window has passed");
    }

    #[test]
    fn many_similar_events_become_one() {
        let mut correlator = Correlator::default();
        for index in 0..10 {
            assert!(matches!(correlator.observe(&note(&format!("m{index}"), index)), Action::Create { .. }));
        }
        let Action::Create { message, .. } = correlator.observe(&note("m10", 10)) else { panic!("combined") };
        assert_eq!(message, "(combined from similar events): m10");
        assert!(matches!(correlator.observe(&note("m11", 11)), Action::Repeat { count: 2, .. }));
    }

    #[test]
    fn a_flood_is_cut_off_and_may_go_on_later() {
        let mut correlator = Correlator::default();
        let written = (0..40).filter(|_| correlator.observe(&note("a", 0)) != Action::Drop).count();
        assert_eq!(written, 25);
        assert_ne!(correlator.observe(&note("a", 301)), Action::Drop);
    }
}
