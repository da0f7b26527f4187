//! The client port beside its keys: locks, elections, the JSON gateway, health.

#[path = "../common/mod.rs"]
mod common;

mod gateway;
mod locks;
