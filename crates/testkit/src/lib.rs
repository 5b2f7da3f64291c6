//! What tests and local runs need, and nothing that is deployed.

#[cfg(feature = "custom-resource")]
pub mod custom_resource;
pub mod emf;
pub mod events;
pub mod function;
pub mod local;
pub mod memory;
pub mod proxy;
pub mod random;
pub mod sign;
pub mod sim;
pub mod stripe;
