//! All I/O.

pub mod dynamodb;
//! Everything that touches the world: variables, AWS, Stripe, the clock, the log.
//!
//! Nothing here decides about money or letters; that is `billhook_core`. Read in this order:
/// What a function knows of where it runs.
pub mod config;
