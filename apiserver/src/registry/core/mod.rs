//! Kinds of the core group, and those of other groups that belong to them.

pub(super) mod config;
pub(super) mod endpoints;
pub(super) mod namespace;
pub(super) mod node;
pub(super) mod pod;
pub(super) mod pod_spec;
pub(super) mod pod_update;
pub(super) mod service;
pub(super) mod volume;
