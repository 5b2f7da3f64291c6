//! `cleanup-failed-payments`: the scheduled tasks. `cleanup` cancels orders whose payment failed long ago, `sweep`
//! retries unfinished events (exponential backoff), `reconcile` fetches events that Stripe has and no delivery brought,
//! `proof` proves a sample of all states by their stored events.
//!
//! Guarantees of all: two runs at the same time are harmless, because every write has a condition (optimistic
//! lock); a run ends before its deadline and saves a checkpoint, from which the next run resumes; what an interrupted
//! run did stays done, and repeating it changes nothing. Not decided here: what is due, and what an input may say
//! (`billhook_core::tasks`). To add a task: its definition there, its module and its line in `tasks`, its schedule in
//! `template.yaml`.

mod scheduled_task;
pub mod stripe;
pub mod tasks;

pub use scheduled_task::{ScheduledTask, TaskFailed};
