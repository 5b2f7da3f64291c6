//! Test support, never deployed: fakes of the ports with planned failures (fault injection), builders of the providers'
//! events and signatures, a local Stripe, a local AWS to which the real template is deployed, and a deterministic
//! simulation.
//!
//! For a unit test of a handler read `memory`, for the wire `proxy`, for whole systems `sim` and `local`.

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
