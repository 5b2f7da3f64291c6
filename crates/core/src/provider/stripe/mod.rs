//! Stripe: signature header ([`signature`]), event format ([`event`]), Stripe's words ([`types`]), and the facts that
//! events state about payments ([`payments`]) and connected accounts ([`account`]).

pub mod account;
pub mod event;
pub mod payments;
pub mod signature;
pub mod types;
