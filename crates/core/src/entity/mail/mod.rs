//! Letters: the facts of printed pieces and how they merge ([`facts`]), and a statement's mail status by them
//! ([`mod@derive`]).

pub mod derive;
pub mod facts;
