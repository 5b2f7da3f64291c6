//! Intake: the idempotent receiver and the event store, for ingress, reconcile and replay. `accept` stores and queues,
//! `inbox` is what is stored, `message` is what is queued.

pub mod accept;
pub mod inbox;
pub mod message;
pub mod ports;
