//! Money: what Stripe's events state ([`mod@read`]), how statements merge ([`facts`]), and what an order or statement is
//! by them ([`mod@derive`], with the arithmetic of [`refunds`] and what a person shall see, [`story`]).

pub mod derive;
pub mod facts;
pub mod read;
pub mod refunds;
pub mod story;
