//! `billhook TASK run`, for every scheduled task of the list: invokes the task now. It runs in its Lambda function, with
//! the function's permissions and not the operator's.

use anyhow::{Context as _, Result, bail};
use billhook_core::tasks::definitions::{
    SCHEDULED_TASKS, TaskDefinition, TaskField, TaskFieldKind,
};
use clap::{
    Arg, ArgAction, ArgMatches, Args as _, Command, Error, FromArgMatches, Subcommand, value_parser,
};
use serde_json::{Map, Value};

use crate::aws_request::LAMBDA;
use crate::confirm::ChangeArgs;
use crate::output::OutputWriter;
use crate::session::StackSession;

/// A run of one task. Not derived by clap, because the commands and their options come from the list.
#[derive(Debug)]
pub(crate) struct TaskCommand {
    /// What the function is invoked with.
    input: Value,
    /// What a run changes, and its confirmation.
    change: Option<(&'static str, ChangeArgs)>,
}

impl Subcommand for TaskCommand {
    fn augment_subcommands(command: Command) -> Command {
        command.subcommands(SCHEDULED_TASKS.iter().map(build_task_command))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        SCHEDULED_TASKS.iter().any(|task| task.name == name)
    }
}

impl FromArgMatches for TaskCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let named = matches.subcommand().and_then(|(name, of_task)| {
            let task = SCHEDULED_TASKS.iter().find(|task| task.name == name)?;
            let (_, of_run) = of_task.subcommand()?;
            let change = task.changes.map(|changes| {
                let change = ChangeArgs::from_arg_matches(of_run);
                change.map(|change| (changes, change))
            });
            Some(change.transpose().map(|change| Self {
                input: build_input(task, of_run),
                change,
            }))
        });
        match named {
            Some(command) => command,
            None => Err(Error::new(clap::error::ErrorKind::MissingSubcommand)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn build_task_command(task: &TaskDefinition) -> Command {
    let run = Command::new("run")
        .about(task.run_help)
        .args(task.fields.iter().map(build_option));
    let run = match task.changes {
        Some(_) => ChangeArgs::augment_args(run),
        None => run,
    };
    let run = match task.run_example {
        Some(example) => run.after_help(format!("Example:\n  {example}")),
        None => run,
    };
    Command::new(task.name)
        .about(task.meaning)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(run)
}

const DRY_RUN: &str = "dry_run";

fn build_option(field: &TaskField) -> Arg {
    // clap takes only names that live for ever; the command line is built once.
    let long: &'static str = field.name.replace('_', "-").leak();
    let option = Arg::new(field.name).long(long).help(field.meaning);
    match field.kind {
        TaskFieldKind::Flag => option.action(ArgAction::SetTrue),
        TaskFieldKind::Count => {
            let value: &'static str = field.name.to_uppercase().leak();
            option
                .value_name(value)
                .value_parser(value_parser!(u32).range(1..))
        }
    }
}

/// `task`, and the fields that were given.
fn build_input(task: &TaskDefinition, of_run: &ArgMatches) -> Value {
    let given = task.fields.iter().filter_map(|field| {
        let value = match field.kind {
            TaskFieldKind::Flag => of_run.get_flag(field.name).then_some(Value::from(true)),
            TaskFieldKind::Count => of_run.get_one::<u32>(field.name).copied().map(Value::from),
        };
        Some((field.name.to_owned(), value?))
    });
    let mut input: Map<String, Value> = given.collect();
    input.insert("task".to_owned(), Value::from(task.name));
    Value::Object(input)
}

pub(crate) async fn run_task(
    command: TaskCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    let TaskCommand { input, change } = command;
    let is_dry_run = input.get(DRY_RUN) == Some(&Value::Bool(true));
    if let Some((changes, change)) = change.filter(|_| !is_dry_run) {
        change.confirm(session, changes, None).await?;
    }
    let function = session.stack.output("CleanupFailedPaymentsFunction")?;
    let path = format!("/2015-03-31/functions/{function}/invocations");
    let json = [("content-type", "application/json")];
    let answer = session
        .aws
        .post_text(LAMBDA, &path, &json, input.to_string())
        .await?;
    let answer: Value =
        serde_json::from_str(&answer).context("the response of the function is not JSON")?;
    if let Some(message) = answer.get("errorMessage").and_then(Value::as_str) {
        bail!("{function} failed: {message}");
    }
    output.print_object(&answer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use billhook_core::tasks::definitions::TaskInvocation;
    use serde_json::json;

    use super::*;

    fn read_command(line: &str) -> Value {
        let command = TaskCommand::augment_subcommands(Command::new("billhook"));
        let matches = command.get_matches_from(line.split(' '));
        TaskCommand::from_arg_matches(&matches).unwrap().input
    }

    #[test]
    fn options_are_fields_of_the_input() {
        for (line, input) in [
            (
                "billhook sweep run --reason late --yes",
                json!({ "task": "sweep" }),
            ),
            ("billhook cleanup run", json!({ "task": "cleanup" })),
            ("billhook proof run", json!({ "task": "proof" })),
            (
                "billhook cleanup run --dry-run --minutes 30 --limit 10",
                json!({ "task": "cleanup", "dry_run": true, "minutes": 30, "limit": 10 }),
            ),
        ] {
            assert_eq!(read_command(line), input, "{line}");
        }
    }

    #[test]
    fn the_function_accepts_every_option_of_every_task() {
        for task in SCHEDULED_TASKS {
            let mut line = format!("billhook {} run", task.name);
            for field in task.fields {
                let value = match field.kind {
                    TaskFieldKind::Flag => "",
                    TaskFieldKind::Count => " 7",
                };
                line += &format!(" --{}{value}", field.name.replace('_', "-"));
            }
            let input = read_command(&line);
            assert_eq!(input.as_object().unwrap().len(), 1 + task.fields.len());
            let read = serde_json::from_value::<TaskInvocation>(input);
            assert!(read.is_ok(), "{line}: {read:?}");
        }
    }
}
