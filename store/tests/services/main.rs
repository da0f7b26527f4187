//! The client port beside its keys: locks, elections, the JSON gateway, health.

#![allow(clippy::disallowed_methods)] // Threads of the test wait for members that are not theirs to pause.

#[path = "../common/mod.rs"]
mod common;

mod gateway;
mod locks;
