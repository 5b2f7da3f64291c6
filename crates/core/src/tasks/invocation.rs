//! Reads the input of the function `cleanup-failed-payments`: `{"task":"sweep"}`, or `{"dry_run":true}` for the cleanup,
//! which is the task if none is named.
//!
//! Guarantee: a field that the task does not have is an error, and so is a field that comes twice. If a misspelt
//! `dryrun` were ignored, a run that was meant as a preview would cancel orders.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::tasks::definitions::{
    CleanupInput, SCHEDULED_TASKS, TaskDefinition, TaskField, TaskFieldKind, TaskInput,
    TaskInvocation,
};

const TASK_MEMBER: &str = "task";

impl Default for TaskInvocation {
    fn default() -> Self {
        Self::Cleanup(CleanupInput::default())
    }
}

impl<'de> Deserialize<'de> for TaskInvocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let InputFields { task, given } = deserializer.deserialize_map(InputVisitor)?;
        if let Some(foreign) = all_fields()
            .filter(|field| given.contains_key(field.name))
            .find(|field| !has_field(&task, field.name))
        {
            let expected = match task.fields {
                [] => format!("`{TASK_MEMBER}` alone"),
                own => format!("one of {}", quote_members(own.iter())),
            };
            return Err(D::Error::custom(format_args!(
                "task `{}` takes no field `{}`: expected {expected}",
                task.name, foreign.name
            )));
        }
        match Self::read(task.name, given) {
            Some(read) => read.map_err(D::Error::custom),
            None => Err(unknown_task(task.name)),
        }
    }
}

/// The members of an input. Each is a field of some task, and has the right type.
struct InputFields {
    task: TaskDefinition,
    given: Map<String, Value>,
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = InputFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("struct InputFields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InputFields, A::Error> {
        let mut task = CleanupInput::TASK;
        let mut given = Map::new();
        let mut seen = BTreeSet::new();
        while let Some(member) = map.next_key::<String>()? {
            let field = all_fields().find(|field| field.name == member);
            if field.is_none() && member != TASK_MEMBER {
                return Err(A::Error::custom(format_args!(
                    "unknown field `{member}`, expected one of {}",
                    quote_members(all_fields())
                )));
            }
            if !seen.insert(member.clone()) {
                return Err(A::Error::custom(format_args!("duplicate field `{member}`")));
            }
            let value = match field.map(|field| field.kind) {
                None => {
                    let name = map.next_value::<String>()?;
                    let named = SCHEDULED_TASKS.iter().find(|task| task.name == name);
                    task = *named.ok_or_else(|| unknown_task(&name))?;
                    continue;
                }
                Some(TaskFieldKind::Flag) => map.next_value::<Option<bool>>()?.map(Value::from),
                Some(TaskFieldKind::Count) => map
                    .next_value::<Option<NonZeroU64>>()?
                    .map(|n| Value::from(n.get())),
            };
            given.extend(value.map(|value| (member, value)));
        }
        Ok(InputFields { task, given })
    }
}

fn unknown_task<E: Error>(name: &str) -> E {
    let names = SCHEDULED_TASKS.iter().map(|task| task.name);
    E::custom(format_args!(
        "unknown variant `{name}`, expected one of {}",
        quote_names(names)
    ))
}

fn all_fields() -> impl Iterator<Item = &'static TaskField> {
    SCHEDULED_TASKS.iter().flat_map(|task| task.fields)
}

fn has_field(task: &TaskDefinition, name: &str) -> bool {
    task.fields.iter().any(|field| field.name == name)
}

fn quote_members(fields: impl Iterator<Item = &'static TaskField>) -> String {
    quote_names(std::iter::once(TASK_MEMBER).chain(fields.map(|field| field.name)))
}

fn quote_names(names: impl Iterator<Item = &'static str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::definitions::{ReconcileInput, SweepInput};

    #[track_caller]
    fn check_refused(input: &str, told: &str) {
        let refused = serde_json::from_str::<TaskInvocation>(input);
        let told_now = refused.unwrap_err().to_string();
        assert!(told_now.contains(told), "{input}: {told_now}");
    }

    #[test]
    fn a_misspelt_input_is_refused_instead_of_cancelling_orders() {
        for (wrong, told) in [
            (
                r#"{"dryrun":true}"#,
                "unknown field `dryrun`, expected one of `task`, `dry_run`, `minutes`, `limit`",
            ),
            (
                r#"{"task":"clean"}"#,
                "unknown variant `clean`, expected one of `cleanup`, `sweep`, `reconcile`, `proof`",
            ),
            (
                r#"{"dry_run":true,"dry_run":false}"#,
                "duplicate field `dry_run`",
            ),
            (
                r#"{"minutes":0}"#,
                "invalid value: integer `0`, expected a nonzero u64",
            ),
            (
                r#"{"limit":0}"#,
                "invalid value: integer `0`, expected a nonzero u64",
            ),
            (r#"{"minutes":-1}"#, "invalid value: integer `-1`"),
            (r#"{"minutes":"60"}"#, "invalid type: string"),
            (r#"{"task":null}"#, "invalid type: null"),
            ("[]", "invalid type: sequence"),
        ] {
            check_refused(wrong, told);
        }
    }

    #[test]
    fn a_field_of_another_task_is_refused() {
        for task in ["sweep", "reconcile"] {
            for (field, value) in [("dry_run", "false"), ("minutes", "5"), ("limit", "1")] {
                check_refused(
                    &format!(r#"{{"{field}":{value},"task":"{task}"}}"#),
                    &format!("task `{task}` takes no field `{field}`: expected `task` alone"),
                );
            }
        }
    }

    #[test]
    fn the_task_is_the_named_one_or_the_cleanup_and_null_is_no_value() {
        for same in ["{}", r#"{"task":"cleanup"}"#, r#"{"dry_run":null}"#] {
            let read: TaskInvocation = serde_json::from_str(same).unwrap();
            assert_eq!(read, TaskInvocation::default(), "{same}");
        }
        for (input, read) in [
            (
                r#"{"task":"sweep","minutes":null}"#,
                TaskInvocation::Sweep(SweepInput {}),
            ),
            (
                r#"{"task":"reconcile"}"#,
                TaskInvocation::Reconcile(ReconcileInput {}),
            ),
        ] {
            assert_eq!(serde_json::from_str::<TaskInvocation>(input).unwrap(), read);
        }
    }

    /// The definition names the fields for help and errors, the input's type for serde.
    #[test]
    fn every_field_of_a_definition_reaches_its_input() {
        for task in SCHEDULED_TASKS {
            let read = |given: &str| -> TaskInvocation {
                serde_json::from_str(&format!(r#"{{"task":"{}"{given}}}"#, task.name)).unwrap()
            };
            for TaskField { name, kind, .. } in task.fields {
                let value = match kind {
                    TaskFieldKind::Flag => "true",
                    TaskFieldKind::Count => "7",
                };
                let given = read(&format!(r#","{name}":{value}"#));
                assert_ne!(given, read(""), "{}: {name} is not read", task.name);
            }
        }
    }

    #[test]
    fn names_are_unique_and_a_field_is_of_the_same_kind_in_every_task() {
        let names: BTreeSet<&str> = SCHEDULED_TASKS.iter().map(|task| task.name).collect();
        assert_eq!(names.len(), SCHEDULED_TASKS.len());
        for (one, other) in all_fields().flat_map(|one| all_fields().map(move |two| (one, two))) {
            assert!(
                one.name != other.name || one.kind == other.kind,
                "{}",
                one.name
            );
        }
    }
}
