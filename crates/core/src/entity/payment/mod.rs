//! Payments: the facts about money ([`facts`]), the payment as an entity with its links ([`state`]), the copies in an
//! order or statement ([`linked`]), the state machine of a payment ([`status`]), and the projection of the facts into an
//! order's or statement's columns ([`mod@derive`]: what adds up to the amount due in `balance`, refund arithmetic in
//! [`refunds`], what banks took in `disputes`, entries in [`timeline`]). Of the
//! columns, [`access`] decides whether what was paid for may be handed out. [`deadlines`] lists until when somebody has to
//! act, and [`opened_disputes`] what somebody has to hear of at once.
//!
//! Read `facts`, then `state`, then `derive`. Nothing here reads an event; `provider::stripe::event_types` does.

// Amounts are added by the methods of `Money` only.
#![deny(clippy::arithmetic_side_effects)]

pub mod access;
mod balance;
pub mod deadlines;
pub mod derive;
mod disputes;
pub mod facts;
pub mod linked;
pub mod opened_disputes;
pub mod refunds;
pub mod state;
pub mod status;
pub mod timeline;
