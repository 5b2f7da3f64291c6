//! `billhook cleanup|sweep|reconcile run`: the scheduled tasks by hand.

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::output::Output;
use crate::session::Session;
use crate::signed::LAMBDA;

#[derive(Debug, Subcommand)]
pub(crate) enum Cleanup {
    /// Cancel orders whose payment failed long ago, now
    #[command(after_help = "Example:\n  billhook cleanup run --dry-run")]
    Run(CleanupRun),
}

#[derive(Args, Debug)]
pub(crate) struct CleanupRun {
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// How long the payment has to have failed; the stack's setting, if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
    /// At most so many orders
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Run it now
    Run,
}

impl Cleanup {
    pub(crate) fn input(&self) -> Value {
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

/// Runs the scheduled function and shows what it answers.
pub(crate) async fn run(input: &Value, session: &Session, output: Output) -> Result<()> {
    let function = session.stack.output("CleanupFailedPaymentsFunction")?;
    let path = format!("/2015-03-31/functions/{function}/invocations");
    let json = [("content-type", "application/json")];
    let answer = session
        .caller
        .post(LAMBDA, &path, &json, input.to_string())
        .await?;
    let answer: Value =
        serde_json::from_str(&answer).context("the function's answer is no JSON")?;
    if let Some(message) = answer.get("errorMessage").and_then(Value::as_str) {
        bail!("{function} failed: {message}");
    }
    output.one(&answer);
    Ok(())
}
