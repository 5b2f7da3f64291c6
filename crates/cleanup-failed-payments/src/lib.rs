//! `cleanup-failed-payments`: what is done by the clock. `cleanup` gives up orders whose payment failed long ago, `sweep`
//! looks again at events that are not done, `reconcile` takes in what Stripe has and we do not.
//!
//! Guarantees of all three: two runs at once are harmless; a run ends before its deadline, keeps how far it came, and
//! the next goes on there; what a run that is cut did stands. What is due is decided in `billhook_core`.

use std::fmt;
use std::time::Duration;

use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ports::Clock;
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};

pub mod cleanup;
pub mod reconcile;
pub mod stripe;
pub mod sweep;

/// Nothing is begun with less left than this: three tries of a call to Stripe, 10 s each, and a write.
const TIME_TO_FINISH: Duration = Duration::from_secs(45);

/// What the schedule or a person asks for. What is not known is refused, because a misspelt `dry_run` would cancel
/// orders.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "InputFields")]
pub enum TaskInput {
    /// Give up stale failed orders.
    Cleanup(cleanup::CleanupOptions),
    /// Look again at open events.
    Sweep,
    /// Compare with Stripe.
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

/// What a run did; as JSON the task's own form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TaskReport {
    /// Of `cleanup`.
    Cleanup(cleanup::CleanupSummary),
    /// Of `sweep`.
    Sweep(sweep::SweepSummary),
    /// Of `reconcile`.
    Reconcile(reconcile::ReconcileSummary),
}

/// A run that could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing}: {cause}")]
pub struct TaskFailed {
    doing: &'static str,
    cause: String,
}

impl TaskFailed {
    /// With the whole chain of causes, because whoever ran it by hand sees nothing else.
    pub fn because(doing: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            doing,
            cause: error_chain(cause),
        }
    }

    fn no_key() -> Self {
        Self {
            doing: "ask Stripe",
            cause: "the App secret has no stripe_secret_key; put it there with `aws secretsmanager put-secret-value`"
                .to_owned(),
        }
    }
}

/// Fails the run as a whole; the next one goes on where this one came to.
fn fail_task(doing: &'static str) -> impl Fn(DependencyError) -> TaskFailed {
    move |error| TaskFailed::because(doing, &error)
}

/// Whether nothing more may be begun.
fn is_past_deadline(clock: &impl Clock, deadline: Timestamp) -> bool {
    clock.now().after(TIME_TO_FINISH) > deadline
}
