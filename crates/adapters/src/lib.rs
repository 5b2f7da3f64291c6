//! Everything that touches the world: variables, AWS, Stripe, the clock, the log.
//!
//! Nothing here decides about money or letters; that is `billhook_core`.

// How a function starts.
pub mod aws;
pub mod clock;
pub mod config;
pub mod lambda;
pub mod metrics;
pub mod telemetry;

// What it talks to.
pub mod batch;
pub mod dynamodb;
mod http;
pub mod secrets;
pub mod sqs;
pub mod stripe;
