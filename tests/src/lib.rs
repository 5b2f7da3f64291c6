//! Shared by the end-to-end tests and `make run`: `world`, a deployed stack on the local AWS; `attacker`, a role of its own beside it; `demo`; `sam_local`, the
//! samples of `events/` in containers; `smoke`, the smoke test of AWS on the local one; `fuzz`, the fuzz targets; and `catalogue`, which writes the catalogue of event types into documents and template.

pub mod attacker;
pub mod catalogue;
pub mod demo;
pub mod fuzz;
pub mod sam_local;
pub mod smoke;
pub mod world;
