//! Money: the facts of payments and how they merge ([`facts`]), and what an order or statement is by them
//! ([`mod@derive`], with the refund arithmetic of [`refunds`] and the entries of [`timeline`]).

pub mod derive;
pub mod facts;
pub mod refunds;
pub mod status;
pub mod timeline;
