//! The scheduled tasks: name, meaning, schedule and input of each, and the one list of them. To add a task, define its
//! input here and name it in the list.
//!
//! Everything that has to know every task reads the list: the function's input (`invocation`), the commands
//! `billhook TASK run`, and the tests of `template.yaml`, of the sample invocations and of the documents. The crate
//! `cleanup-failed-payments` has what a task does.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What is known of a task without running it.
#[derive(Clone, Copy, Debug)]
pub struct TaskDefinition {
    /// `task` in the function's input, the operator's command, and the key of the task's checkpoint.
    pub name: &'static str,
    /// The help of `billhook NAME`.
    pub meaning: &'static str,
    /// When it runs, as `template.yaml` says it.
    pub schedule: &'static str,
    /// What an input may have besides `task`.
    pub fields: &'static [TaskField],
    /// What a run changes, which a person is asked about before; none if it only reads.
    pub changes: Option<&'static str>,
    /// The help of `billhook NAME run`.
    pub run_help: &'static str,
    pub run_example: Option<&'static str>,
}

/// A member of a task's input, and an option of its command: `dry_run` is `--dry-run`.
#[derive(Clone, Copy, Debug)]
pub struct TaskField {
    pub name: &'static str,
    pub kind: TaskFieldKind,
    /// The help of the option.
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFieldKind {
    Flag,
    /// A whole number from 1: with 0 minutes of grace an order would be cancelled while its customer tries again.
    Count,
}

/// A task's own input, which stands for the task. Its serde names are those of `TASK.fields`.
pub trait TaskInput: Default + Serialize + DeserializeOwned {
    const TASK: TaskDefinition;
}

const RUN_NOW: &str = "Run the task now";

/// What a person may change for one run; the schedule sends none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CleanupInput {
    /// Ask Stripe, count what would be done, and neither end nor write anything.
    pub dry_run: bool,
    /// Grace period, instead of the configured one.
    pub minutes: Option<u64>,
    /// Orders to scan, instead of as many as there is time for.
    pub limit: Option<usize>,
}

impl TaskInput for CleanupInput {
    const TASK: TaskDefinition = TaskDefinition {
        name: "cleanup",
        meaning: "Cancel orders whose payment failed (cleanup)",
        schedule: "rate(15 minutes)",
        fields: &[
            TaskField {
                name: "dry_run",
                kind: TaskFieldKind::Flag,
                meaning: "Only count the orders that would be cancelled",
            },
            TaskField {
                name: "minutes",
                kind: TaskFieldKind::Count,
                meaning: "Minutes since the failed attempt; the default is the setting of the stack",
            },
            TaskField {
                name: "limit",
                kind: TaskFieldKind::Count,
                meaning: "Cancel at most this many orders",
            },
        ],
        changes: Some(
            "payments that failed too long ago would be ended at Stripe, and their orders cancelled; --dry-run counts them",
        ),
        run_help: "Cancel orders whose last payment attempt failed too long ago",
        run_example: Some("billhook cleanup run --dry-run"),
    };
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepInput {}

impl TaskInput for SweepInput {
    const TASK: TaskDefinition = TaskDefinition {
        name: "sweep",
        meaning: "Retry unfinished events (sweep)",
        schedule: "rate(10 minutes)",
        fields: &[],
        changes: Some(
            "unfinished events would be sent again, open payments rechecked and rows restored, as every 10 minutes",
        ),
        run_help: RUN_NOW,
        run_example: None,
    };
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileInput {}

impl TaskInput for ReconcileInput {
    const TASK: TaskDefinition = TaskDefinition {
        name: "reconcile",
        meaning: "Fetch events from Stripe that were never delivered (reconciliation)",
        schedule: "rate(1 hour)",
        fields: &[],
        changes: Some(
            "events that Stripe lists and no delivery brought would be stored and processed, as every hour",
        ),
        run_help: RUN_NOW,
        run_example: None,
    };
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofInput {}

impl TaskInput for ProofInput {
    const TASK: TaskDefinition = TaskDefinition {
        name: "proof",
        meaning: "Prove a sample of all states by their stored events (nightly proof)",
        // UTC: midnight to 5 in the morning in America.
        schedule: "cron(40 8 * * ? *)",
        fields: &[],
        changes: None,
        run_help: "Prove the sample of this day now, after the rest of a night that was interrupted",
        run_example: None,
    };
}

macro_rules! list_tasks {
    ($($task:ident($input:ty),)+) => {
        /// What the function is invoked with, by a schedule or a person: a task and its input.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum TaskInvocation {
            $($task($input),)+
        }

        /// Every scheduled task, in the order in which help and errors name them.
        pub const SCHEDULED_TASKS: &[TaskDefinition] = &[$(<$input>::TASK,)+];

        impl TaskInvocation {
            /// None if no task has this name.
            pub(super) fn read(
                task: &str,
                fields: Map<String, Value>,
            ) -> Option<Result<Self, serde_json::Error>> {
                $(if task == <$input>::TASK.name {
                    return Some(serde_json::from_value(Value::Object(fields)).map(Self::$task));
                })+
                None
            }
        }
    };
}

list_tasks! {
    Cleanup(CleanupInput),
    Sweep(SweepInput),
    Reconcile(ReconcileInput),
    Proof(ProofInput),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn check_fields<I: TaskInput>() {
        let input = serde_json::to_value(I::default()).unwrap();
        let members: BTreeSet<&str> = input
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let fields = I::TASK.fields.iter().map(|field| field.name).collect();
        assert_eq!(members, fields, "{}", I::TASK.name);
    }

    #[test]
    fn a_member_of_an_input_is_a_field_that_people_can_give() {
        check_fields::<CleanupInput>();
        check_fields::<SweepInput>();
        check_fields::<ReconcileInput>();
        check_fields::<ProofInput>();
    }
}
