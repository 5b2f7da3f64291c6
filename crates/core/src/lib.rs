//! The decisions of billhook, an idempotent webhook processor: everything that can be wrong about money or letters, as
//! pure functions.
//!
//! No clock, no environment variables, no I/O: `now` and every row are arguments. What a module needs from the outside
//! is a port (a trait) beside its consumer; `billhook_adapters` implements the ports on AWS, `billhook_testkit` in
//! memory.
//!
//! Read in this order: `provider` (verify and read an event), `intake` (event store, deduplication), `entity` (merge
//! facts, derive states), `worker` (process a batch with an optimistic lock), `proof` (states against events), `tasks`
//! (cleanup, sweep, reconcile, nightly proof), `endpoint` (webhook endpoints and secret rotation). docs/ARCHITECTURE.md
//! has the picture.

// What everything else uses.
pub mod error;
pub mod ids;
pub mod json;
pub mod money;
pub mod outcome;
pub mod ports;
pub mod retry;
pub mod seal;
pub mod time;

// Accept a delivery: verify it, store it, queue it.
pub mod intake;
pub mod provider;

// What events mean: facts, merged into an entity's state, from which its columns are derived.
pub mod entity;

// What uses that: batches of events, proofs of states, scheduled tasks, the webhook endpoints at Stripe.
pub mod endpoint;
pub mod proof;
pub mod tasks;
pub mod worker;
