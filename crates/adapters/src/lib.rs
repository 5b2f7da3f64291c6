//! All I/O.

pub mod dynamodb;
//! Everything that touches the world: variables, AWS, Stripe, the clock, the log.
//!
//! Nothing here decides about money or letters; that is `billhook_core`. Read in this order:

/// The AWS clients, and how they are opened early.
pub mod aws;
/// The wall clock and fresh identifiers.
pub mod clock;
/// What a function knows of where it runs.
pub mod config;
/// The sending half of a queue.
pub mod sqs;
//! All I/O: each module speaks to one neighbour and decides nothing.
/// Stripe's API.
pub mod stripe;
