//! The deciding half of billhook: everything that can be wrong about money or letters, as pure functions.
//!
//! Read in this order:
#![warn(missing_docs)]

/// One newtype per identifier.
pub mod ids;
/// Amounts in minor units, with their currency.
pub mod money;
/// The small traits that the edges implement.
pub mod ports;
/// What to do after a failure.
pub mod retry;
/// Who called, and the secrets that prove it.
pub mod signature;
/// What happened when, to the millisecond.
pub mod time;
