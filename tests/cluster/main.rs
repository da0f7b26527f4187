//! Whole clusters as users run them: `quorate up`, stock kubectl, real containers.

mod apply;
mod bad_input;
mod chaos;
mod drill;
mod failover;
mod first_minutes;
mod members;
mod store_clients;
mod store_member;
mod store_process;
mod web;
