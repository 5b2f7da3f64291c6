//! `billhook cleanup|sweep|reconcile run`: invokes a scheduled task now. The task itself runs in its Lambda function,
//! with the function's permissions and not the operator's.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::aws_request::LAMBDA;
use crate::output::OutputWriter;
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum CleanupCommand {
    /// Cancel orders whose last payment attempt failed too long ago
    #[command(after_help = "Example:\n  billhook cleanup run --dry-run")]
    Run(CleanupRunArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CleanupRunArgs {
    /// Only count the orders that would be cancelled
    #[arg(long)]
    dry_run: bool,
    /// Minutes since the failed attempt; the default is the setting of the stack
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
    /// Cancel at most this many orders
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduledTaskCommand {
    /// Run the task now
    Run,
}

impl CleanupCommand {
    pub(crate) fn build_input(&self) -> Value {
        let Self::Run(run) = self;
        let given = [
            ("dry_run", run.dry_run.then_some(json!(true))),
            ("minutes", run.minutes.map(|minutes| json!(minutes))),
            ("limit", run.limit.map(|limit| json!(limit))),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(given.collect())
    }
}

pub(crate) async fn run_scheduled_task(
    input: &Value,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
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
