//! The deciding half of billhook: everything that can be wrong about money or letters, as pure functions.
//!
//! No clock, no environment, no I/O: `now` and every row are arguments, and `ports` says what the edges bring.
#![warn(missing_docs)]

// Words that everything else is made of.
pub mod ids;
pub mod json;
pub mod money;
pub mod retry;
pub mod time;

// A delivery comes in.
pub mod event;
pub mod inbox;
pub mod pointer;
pub mod secret;
pub mod signature;

// What events mean: facts, merged, derived.
pub mod entity;
pub mod mail;
pub mod merge;
pub mod payment;
pub mod route;
pub mod tenant;
pub mod timeline;

// What is done with that.
pub mod cleanup;
pub mod endpoint;
pub mod jobs;
pub mod ports;
pub mod reconcile;
pub mod sweep;
pub mod worker;
