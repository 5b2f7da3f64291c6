//! The whole system on the local AWS: what the end-to-end tests and `make run` share.

pub mod demo;
pub mod fuzz;
pub mod world;
