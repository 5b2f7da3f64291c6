//! Payments: the facts ([`facts`]), the state machine of a payment ([`status`]), and the projection of the facts into
//! an order's or statement's columns ([`mod@derive`], refund arithmetic in [`refunds`], entries in [`timeline`]).
//!
//! Read `facts`, then `derive`. Nothing here reads an event; `provider::stripe::payments` does.

// Amounts are added by the methods of `Money` only.
#![deny(clippy::arithmetic_side_effects)]

pub mod derive;
pub mod facts;
pub mod refunds;
pub mod status;
pub mod timeline;
