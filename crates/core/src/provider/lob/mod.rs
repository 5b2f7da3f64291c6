//! Lob: signature headers ([`signature`]), event format ([`event`]), and the facts that events state about letters
//! ([`mail`]).

pub mod event;
pub mod mail;
pub mod signature;
