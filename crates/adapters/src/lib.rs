//! Everything that touches the world: variables, AWS, Stripe, the clock, the log.
//!
//! Nothing here decides about money or letters; that is `billhook_core`.

// How a function starts.
pub mod aws;
pub mod clock;
pub mod config;
pub mod lambda;
/// Secrets, what people write there, and the cache of signing keys.
pub mod secrets;
/// The sending half of a queue.
pub mod sqs;
/// Log lines.
pub mod telemetry;

// What it talks to.
pub mod batch;
pub mod dynamodb;
pub mod sqs;
pub mod stripe;
