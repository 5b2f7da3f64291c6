//! Money: what Stripe's events state ([`facts`]), and what an order or statement is by them ([`mod@derive`]).

pub mod derive;
pub mod facts;
