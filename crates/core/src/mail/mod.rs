//! Post: what Lob's events state of a printed piece ([`facts`]), and what a statement's mail is by them ([`mod@derive`]).

pub mod derive;
pub mod facts;
