//! Drills: one thing of a running cluster is broken on purpose, clients are watched from
//! outside, the thing is mended, and what was lost is compared with what was promised.
//!
//! Always: what undoes a fault is armed, in a process of its own, before the fault.

mod act;
mod api;
pub mod budget;
pub mod compare;
mod converge;
mod disk;
pub mod html;
pub mod junit;
mod measure;
mod nodes;
mod preflight;
mod probe;
pub mod report;
pub mod run;
pub mod sample;
pub mod scenario;
mod store;
pub mod target;
mod verdict;
pub mod watchdog;
