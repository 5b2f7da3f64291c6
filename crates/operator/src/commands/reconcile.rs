//! `billhook reconcile run`: runs the scheduled task that fetches the events that Stripe has and no delivery brought.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::output::OutputWriter;
use crate::scheduled_task::invoke_task;
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum ReconcileCommand {
    /// Run the task now
    Run,
}

pub(crate) async fn run_reconcile(
    ReconcileCommand::Run: ReconcileCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    invoke_task(&json!({ "task": "reconcile" }), session, output).await
}
