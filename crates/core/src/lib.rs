//! The deciding half of billhook: everything that can be wrong about money or letters, as pure functions.
//!
//! No clock, no environment, no I/O: `now` and every row are arguments, and `ports` says what the edges bring.
#![warn(missing_docs)]

// In reading order.
pub mod entity;
pub mod event;
/// What becomes of a webhook endpoint at Stripe, and of its secret.
pub mod endpoint;
/// What providers tell us.
/// One newtype per identifier.
pub mod ids;
pub mod inbox;
pub mod json;
pub mod mail;
pub mod merge;
pub mod money;
pub mod payment;
pub mod pointer;
pub mod ports;
pub mod retry;
pub mod route;
pub mod signature;
pub mod time;
pub mod timeline;
pub mod worker;
pub mod cleanup;
