//! Intake: the idempotent receiver in front of the event store. It stores each event once (deduplication) and queues a
//! pointer to it; ingress and reconcile accept events through it, sweep and replay use its messages.
//!
//! Read `accept` first: it has the order of the two calls. `inbox` defines the stored event, `index_keys` where the
//! indexes have it, `message` the pointer, `ports` what `adapters` must implement. What an event means is decided later, in `provider` and `worker`.

pub mod accept;
pub mod inbox;
pub mod index_keys;
pub mod message;
pub mod ports;
