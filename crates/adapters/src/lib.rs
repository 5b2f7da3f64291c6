//! Everything that touches the world: variables, AWS, Stripe, the clock, the log.
//!
//! Nothing here decides about money or letters; that is `billhook_core`.
//! Nothing here decides about money or letters; that is `billhook_core`. Start with `config` and `lambda`.

// How a function starts.
pub mod aws;
pub mod clock;
pub mod config;

// What it talks to.
pub mod batch;
pub mod dynamodb;
pub mod sqs;
pub mod stripe;
/// From process start to the last event.
pub mod lambda;
/// The sending half of a queue.
/// Log lines.
pub mod telemetry;
