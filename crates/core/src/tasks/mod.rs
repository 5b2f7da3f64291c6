//! The scheduled tasks: their list (`definitions`), and their decisions: which orders the cleanup cancels, which events
//! the sweep retries and when (exponential backoff), what reconcile asks Stripe for, which states the nightly proof
//! takes, and the checkpoints from which a run resumes.
//!
//! No I/O: the crate `cleanup-failed-payments` executes the decisions through `ports`.

pub mod checkpoint;
pub mod cleanup;
pub mod definitions;
pub mod invocation;
pub mod ports;
pub mod proof;
pub mod reconcile;
pub mod sweep;
