//! All I/O that more than one function uses: environment variables, AWS, Stripe, the clock, log and metrics.
//! These are the adapters of the ports that `billhook_core` defines (hexagonal architecture).
//!
//! Nothing here decides about money or letters; `billhook_core` does. Each error of an outside call has a disposition:
//! retry later, outcome unknown, or permanent. To see how a function starts, read `lambda`; for the database,
//! `dynamodb`.

// How a function starts and runs.
pub mod aws;
pub mod clock;
pub mod config;
pub mod lambda;
pub mod metrics;
pub mod telemetry;

// What a function talks to.
pub mod batch;
pub mod dynamodb;
mod http;
pub mod report;
pub mod secrets;
pub mod sqs;
pub mod stripe;
