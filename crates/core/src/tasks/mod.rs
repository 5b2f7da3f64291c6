//! Scheduled tasks, as decisions: which orders the cleanup gives up, which events the sweep retries, what reconcile asks
//! Stripe for, and the checkpoints they go on from. `cleanup-failed-payments` carries them out.

pub mod checkpoint;
pub mod cleanup;
pub mod ports;
pub mod reconcile;
pub mod sweep;
