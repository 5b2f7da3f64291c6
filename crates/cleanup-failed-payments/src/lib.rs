//! `cleanup-failed-payments`: the scheduled tasks. `cleanup` cancels orders whose payment failed long ago, `sweep`
//! retries unfinished events (exponential backoff), `reconcile` fetches events that Stripe has and no delivery brought.
//!
//! Guarantees of all three: two runs at the same time are harmless, because every write has a condition (optimistic
//! lock); a run ends before its deadline and saves a checkpoint, from which the next run resumes; what an interrupted
//! run did stays done, and repeating it changes nothing. Not decided here: what is due (`billhook_core::tasks`).

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod cleanup;
pub mod reconcile;
pub mod stripe;
pub mod sweep;
mod task;

pub use task::TaskFailed;

/// The input of a run, from the schedule or a person. Unknown fields are an error: if a misspelt `dryrun` were ignored,
/// a run that was meant as a preview would cancel orders.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "InputFields")]
pub enum TaskInput {
    Cleanup(cleanup::CleanupOptions),
    Sweep,
    Reconcile,
}

impl Default for TaskInput {
    fn default() -> Self {
        Self::Cleanup(cleanup::CleanupOptions::default())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputFields {
    #[serde(default)]
    task: TaskName,
    dry_run: Option<bool>,
    minutes: Option<u64>,
    limit: Option<usize>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TaskName {
    #[default]
    Cleanup,
    Sweep,
    Reconcile,
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cleanup => "cleanup",
            Self::Sweep => "sweep",
            Self::Reconcile => "reconcile",
        })
    }
}

impl TryFrom<InputFields> for TaskInput {
    type Error = String;

    fn try_from(fields: InputFields) -> Result<Self, String> {
        let InputFields {
            task,
            dry_run,
            minutes,
            limit,
        } = fields;
        let given = [
            ("dry_run", dry_run.is_some()),
            ("minutes", minutes.is_some()),
            ("limit", limit.is_some()),
        ];
        let input = match task {
            TaskName::Cleanup => {
                return Ok(Self::Cleanup(cleanup::CleanupOptions {
                    dry_run: dry_run.unwrap_or(false),
                    minutes,
                    limit,
                }));
            }
            TaskName::Sweep => Self::Sweep,
            TaskName::Reconcile => Self::Reconcile,
        };
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((field, _)) => Err(format!(
                "task `{task}` takes no field `{field}`: expected `task` alone"
            )),
            None => Ok(input),
        }
    }
}

/// The summary that a run returns; as JSON it has the task's own fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TaskReport {
    Cleanup(cleanup::CleanupSummary),
    Sweep(sweep::SweepSummary),
    Reconcile(reconcile::ReconcileSummary),
}
