//! What tests need and nothing else uses: a dev-dependency, never part of a function.

/// Bodies as the providers send them.
pub mod events;
/// The ports in memory, with planned failures.
pub mod memory;
//!
//! Read in this order: `sign` makes the signatures, `stripe` is a Stripe on this machine.
/// Signatures as the providers make them.
pub mod sign;
/// A Stripe that runs here.
pub mod stripe;
