//! Stripe: its signature, its events, and the facts they state about payments and accounts.

pub mod account;
pub mod event;
pub mod payments;
pub mod signature;
pub mod types;
