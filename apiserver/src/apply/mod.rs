//! Field ownership: who has set which field of an object, and what server-side apply
//! makes of that. All functions are pure: values in, values out, the time included.
//!
//! Source: the behaviour of structured-merge-diff v6 and of apimachinery's
//! `managedfields` in Kubernetes 1.35, down to the texts that clients show.

mod applied;
mod check;
mod compare;
mod conflict;
mod element;
mod fields;
mod last_applied;
mod managers;
mod merge;
mod remove;
mod scope;
mod set;
mod shape;
mod update;

pub(crate) use applied::applied;
pub(crate) use scope::Scope;
pub(crate) use update::{created, same_owners, updated};
