//! All I/O.

pub mod dynamodb;
