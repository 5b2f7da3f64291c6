//! `billhook cleanup run`: runs the scheduled task that cancels orders whose payment failed long ago, or only counts
//! them (dry run).

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::output::OutputWriter;
use crate::scheduled_task::invoke_task;
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

impl CleanupCommand {
    fn build_input(&self) -> Value {
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

pub(crate) async fn run_cleanup(
    command: CleanupCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    invoke_task(&command.build_input(), session, output).await
}
