//! The deciding half of billhook: everything that can be wrong about money or letters, as pure functions.
//!
//! No clock, no environment, no I/O: `now` and every row are arguments. What a part needs from the world is a port
//! (a trait) beside its consumer; `billhook_adapters` implements the ports on AWS, `billhook_testkit` in memory.

// Leaves: words that everything else is made of.
pub mod error;
pub mod ids;
pub mod json;
pub mod money;
pub mod outcome;
pub mod ports;
pub mod retry;
pub mod time;

// A delivery comes in: who signed it, and where it is kept.
pub mod intake;
pub mod provider;

// What events mean: facts, merged, derived.
pub mod entity;

// What is done with that: a batch of events, on a schedule, and for the webhook endpoints at Stripe.
pub mod endpoint;
pub mod tasks;
pub mod worker;
