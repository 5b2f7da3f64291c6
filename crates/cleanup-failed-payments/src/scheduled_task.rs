//! What the scheduled tasks share: their shape, how a run fails as a whole, and when it has to end.

use std::future::Future;
use std::time::Duration;

use billhook_core::error::{DependencyError, error_chain};
use billhook_core::ports::Clock;
use billhook_core::tasks::definitions::TaskInput;
use billhook_core::time::Timestamp;
use serde::Serialize;

/// A task with its ports; `tasks` lists them.
pub trait ScheduledTask {
    /// Also the key of the task's checkpoint.
    const NAME: &'static str = <Self::Input as TaskInput>::TASK.name;
    type Input: TaskInput;
    /// What a run reports.
    type Summary: Serialize;

    /// One run, which ends before the deadline. What it did before an error stays done.
    fn run(
        &self,
        input: &Self::Input,
        deadline: Timestamp,
    ) -> impl Future<Output = Result<Self::Summary, TaskFailed>>;
}

/// Starts nothing new with less time left than this: one call to Stripe takes up to three attempts of 10 s and 1.5 s of
/// waits, and a write follows.
const TIME_TO_FINISH: Duration = Duration::from_secs(45);

/// A run failed as a whole: no single order, event or account is to blame.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing}: {cause}")]
pub struct TaskFailed {
    pub(crate) doing: &'static str,
    pub(crate) cause: String,
}

impl TaskFailed {
    /// With the whole chain of causes: a person who runs the task sees nothing else.
    pub fn because(doing: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            doing,
            cause: error_chain(cause),
        }
    }
}

/// Once in a run that would have asked Stripe. No warning: an environment that does not use Stripe logs it for ever.
pub(crate) fn log_missing_key() {
    tracing::info!(
        "stripe_key_missing: Stripe is not asked, because the App secret has no stripe_secret_key; put it there with `billhook secrets put stripe-key`"
    );
}

/// How far a pass came within its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PassEnd {
    Completed,
    /// By its deadline: the next run resumes it.
    Interrupted,
}

/// Fails the run as a whole; the next run resumes at the last checkpoint.
pub(crate) fn fail_task(doing: &'static str) -> impl Fn(DependencyError) -> TaskFailed {
    move |error| TaskFailed::because(doing, &error)
}

/// Whether too little time is left to start anything new.
pub(crate) fn lacks_time_to_start(clock: &impl Clock, deadline: Timestamp) -> bool {
    clock.now().after(TIME_TO_FINISH) > deadline
}
