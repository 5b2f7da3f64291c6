//! Letters: the facts of printed pieces ([`facts`]), and the projection of the facts into a statement's `mail_status`
//! ([`mod@derive`]). `provider::lob::mail` reads the facts from events.

pub mod derive;
pub mod facts;
