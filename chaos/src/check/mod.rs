//! Verdicts over a history: which promise was broken, and what proves it.

pub mod convergence;
pub mod durability;
pub mod leader;
pub mod lease;
pub mod linearizable;
mod log;
mod model;
pub mod reads;
#[cfg(test)]
mod scenario;
mod search;
#[cfg(test)]
mod simulator;
pub mod watch;

pub use log::Log;

/// How many proofs a checker gives at most for one promise: the first ones tell, the rest
/// follow from them.
const MAX_PROOFS: usize = 5;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its short name, such as `W3`.
    pub promise: &'static str,
    pub proof: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.promise, self.proof)
    }
}

/// What a checker has found so far.
#[derive(Default)]
struct Findings(Vec<Broken>);

impl Findings {
    fn add(&mut self, promise: &'static str, proof: impl FnOnce() -> String) {
        if self.0.iter().filter(|broken| broken.promise == promise).count() < MAX_PROOFS {
            self.0.push(Broken { promise, proof: proof() });
        }
    }
}
