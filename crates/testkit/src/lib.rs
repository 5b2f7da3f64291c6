//! What tests need and nothing else uses: a dev-dependency, never part of a function.

/// Bodies as the providers send them.
pub mod events;
/// The ports in memory, with planned failures.
pub mod memory;
