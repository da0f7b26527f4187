//! Verdicts over a history: which promise was broken, and what proves it.

pub mod linearizable;
mod model;
#[cfg(test)]
mod simulator;
