//! Shared by the end-to-end tests and `make run`: `world`, a deployed stack on the local AWS; `demo`; `sam_local`, the
//! samples of `events/` in containers; `fuzz`, the fuzz targets; and `catalogue`, which writes the catalogue of event types into documents and template.

pub mod catalogue;
pub mod demo;
pub mod fuzz;
pub mod sam_local;
pub mod world;
