//! Members in this process: what they promise each other and those who use them.

#![allow(clippy::disallowed_methods)] // Threads of the tests wait for members that are not theirs to pause.

mod auth;
mod cluster;
mod common;
mod contract;
mod etcdctl;
mod gateway;
mod house;
mod killed;
mod locks;
mod membership;
mod snapshot;
mod writes;
