//! `billhook sweep run`: runs the scheduled task that retries unfinished events (exponential backoff).

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::output::OutputWriter;
use crate::scheduled_task::invoke_task;
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum SweepCommand {
    /// Run the task now
    Run,
}

pub(crate) async fn run_sweep(
    SweepCommand::Run: SweepCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    invoke_task(&json!({ "task": "sweep" }), session, output).await
}
