//! Lob: its signature, its events, and the facts they state about letters.

pub mod event;
pub mod mail;
pub mod signature;
