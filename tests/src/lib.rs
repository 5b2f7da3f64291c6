//! Shared by the end-to-end tests and `make run`: `world`, a deployed stack on the local AWS; `demo`; and `fuzz`, the
//! fuzz targets.

pub mod demo;
pub mod fuzz;
pub mod world;
