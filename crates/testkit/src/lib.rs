//! What tests need and nothing else uses: a dev-dependency, never part of a function.

pub mod events;
pub mod memory;
pub mod sign;
pub mod stripe;
//! What tests and local runs need, and nothing that is deployed.
pub mod local;
