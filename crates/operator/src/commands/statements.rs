//! `billhook statements`: show statements and list those that need manual action.

use anyhow::Result;
use billhook_core::ids::StatementId;
use clap::{Args, Subcommand};

use crate::application_tables::STATEMENTS;
use crate::output::OutputWriter;
use crate::row_json::RowDetail;
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum StatementsCommand {
    /// Show a statement and its timeline
    #[command(after_help = "Example:\n  billhook statements show st_1")]
    Show(StatementsShowArgs),
    /// List statements that need attention or require a review; reads the whole table
    #[command(after_help = "Example:\n  billhook statements attention")]
    Attention(StatementsAttentionArgs),
}

#[derive(Args, Debug)]
pub(crate) struct StatementsShowArgs {
    /// The statement id
    id: String,
    /// Show every column, personal data included
    #[arg(long)]
    raw: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StatementsAttentionArgs {
    /// Show at most this many statements
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

pub(crate) async fn run_statements(
    command: StatementsCommand,
    session: &StackSession,
    output: OutputWriter,
) -> Result<()> {
    match command {
        StatementsCommand::Show(show) => {
            StatementId::parse(&show.id)?;
            output.print_object(
                &STATEMENTS
                    .read_row(session, &show.id, RowDetail::by_flag(show.raw))
                    .await?,
            );
        }
        StatementsCommand::Attention(list) => {
            let rows = STATEMENTS
                .scan_rows(session, &["needs_attention", "requires_review"], list.limit)
                .await?;
            let columns = [
                "statement_id",
                "tenant_id",
                "mail_status",
                "attention_reason",
                "payment_status",
                "review_reasons",
            ];
            output.print_list(&columns, &rows);
        }
    }
    Ok(())
}
