//! What every controller is made of: a client, informers, a work queue, a reconcile loop.

pub mod client;
