//! What probes saw: one sample for each answer, on the clock of the run.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The clock of a run: milliseconds since it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_ms(self) -> f64 {
        self.0.elapsed().as_secs_f64() * 1e3
    }
}

/// What is asked again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A put of one key through one master's store, at a steady rate.
    Write,
    /// A linearizable read of that key, likewise.
    Read,
    /// A put that was sent right before the fault; each has a key of its own.
    InFlight,
    /// One attempt of a client that creates one API object after another through the endpoint.
    Client,
    /// A pod, from its creation until it is bound to a node.
    Pod,
    /// A Deployment, from its creation until its ReplicaSet is there.
    Controller,
    /// A watch of the API that was opened, or opened again after it broke.
    Watch,
    /// One of many that all were open on the victim, likewise.
    Herd,
}

impl Probe {
    pub const ALL: [Self; 8] =
        [Self::Write, Self::Read, Self::InFlight, Self::Client, Self::Pod, Self::Controller, Self::Watch, Self::Herd];

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "store write",
            Self::Read => "store read",
            Self::InFlight => "write in flight",
            Self::Client => "client by the endpoint",
            Self::Pod => "pod bound",
            Self::Controller => "controller action",
            Self::Watch => "watch opened",
            Self::Herd => "one of many watches opened",
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    /// No server acted on it, and its client knows.
    Unreachable,
    /// It was answered with an error, or the connection broke, or no answer came in time.
    Failed,
}

/// One answer, or the lack of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub probe: Probe,
    /// The master that was asked, or `endpoint`.
    pub via: String,
    /// When it was asked.
    pub at_ms: f64,
    pub took_ms: f64,
    pub outcome: Outcome,
    /// The term that the answer names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// Of a client's retry: it is not the first attempt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Sample {
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// When the answer came.
    pub fn end_ms(&self) -> f64 {
        self.at_ms + self.took_ms
    }
}

/// What a master said of itself at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Leader,
    Follower,
    /// It answers, and knows no leader.
    Leaderless,
    /// It does not answer.
    Silent,
}

/// A stretch in which a master said the same of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleSpan {
    pub master: String,
    pub role: Role,
    /// 0 while it is silent.
    pub term: u64,
    pub from_ms: f64,
    pub to_ms: f64,
}

/// Adds what a master said at `at_ms` to its spans, which are in the order of time.
pub(crate) fn extend(spans: &mut Vec<RoleSpan>, master: &str, role: Role, term: u64, at_ms: f64) {
    if let Some(last) = spans.iter_mut().rev().find(|span| span.master == master) {
        last.to_ms = at_ms;
        if last.role == role && last.term == term {
            return;
        }
    }
    spans.push(RoleSpan { master: master.to_owned(), role, term, from_ms: at_ms, to_ms: at_ms });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_end_where_the_next_begins() {
        let mut spans = Vec::new();
        for (at, master, role, term) in [
            (0.0, "m1", Role::Leader, 2),
            (1.0, "m2", Role::Follower, 2),
            (50.0, "m1", Role::Leader, 2),
            (100.0, "m1", Role::Silent, 0),
            (110.0, "m2", Role::Leader, 3),
            (150.0, "m1", Role::Silent, 0),
        ] {
            extend(&mut spans, master, role, term, at);
        }
        let seen: Vec<_> =
            spans.iter().map(|span| (span.master.as_str(), span.role.clone(), span.from_ms, span.to_ms)).collect();
        let expected = [
            ("m1", Role::Leader, 0.0, 100.0),
            ("m2", Role::Follower, 1.0, 110.0),
            ("m1", Role::Silent, 100.0, 150.0),
            ("m2", Role::Leader, 110.0, 110.0),
        ];
        assert_eq!(seen, expected);
    }
}
