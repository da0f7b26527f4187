//! What every controller is made of: a client, informers, a work queue, a reconcile loop.

pub mod activation;
pub mod client;
pub mod controller;
pub mod events;
pub mod expectations;
pub mod http;
pub mod informer;
pub mod manager;
pub mod owner;
pub mod resources;
pub mod vital;
pub mod workqueue;
