//! `billhook statements`: show statements, list those that need manual action, and a person's decisions about them.

use anyhow::Result;
use billhook_core::entity::EntityKey;
use billhook_core::ids::StatementId;
use clap::{Args, Subcommand};

use crate::application_tables::STATEMENTS;
use crate::confirm::ChangeArgs;
use crate::entity_repair::{payment_record_facts, repair_entity};
use crate::output::{OutputWriter, print_notice};
use crate::review::{accept_amounts, clear_review};
use crate::row_json::RowDetail;
use crate::row_standing::show_row;
use crate::session::StackSession;

#[derive(Debug, Subcommand)]
pub(crate) enum StatementsCommand {
    /// Show a statement and its timeline
    #[command(after_help = "Example:\n  billhook statements show st_1")]
    Show(StatementsShowArgs),
    /// List statements that need attention or require a review; reads the whole table
    #[command(after_help = "Example:\n  billhook statements attention")]
    Attention(StatementsAttentionArgs),
    /// Clear and accept the reviews of a statement
    #[command(subcommand)]
    Review(StatementsReviewCommand),
    /// Record that a statement was paid outside Stripe
    #[command(
        after_help = "From then on the statement counts as paid in full, and a later payment at Stripe, or one of the same amount, as too much (paid_twice, overpaid).\n\n\
        Example:\n  billhook statements mark-paid st_1 --reason 'check 1207'"
    )]
    MarkPaid(StatementRepairArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum StatementsReviewCommand {
    /// Clear the current review reasons; a new reason opens the review again
    #[command(
        after_help = "Example:\n  billhook statements review clear st_1 --reason 'dispute answered'"
    )]
    Clear(StatementRepairArgs),
    /// Accept what was paid as what was due: ends `amount_mismatch`, `overpaid` and `due_changed`
    #[command(
        after_help = "Example:\n  billhook statements review accept st_1 --reason 'the rest is waived'"
    )]
    Accept(StatementRepairArgs),
}

#[derive(Args, Debug)]
pub(crate) struct StatementRepairArgs {
    /// The statement id
    #[arg(value_parser = StatementId::parse)]
    id: StatementId,
    #[command(flatten)]
    change: ChangeArgs,
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
            let key = EntityKey::Statement(StatementId::parse(&show.id)?);
            let row = STATEMENTS.find_row(session, &show.id, RowDetail::by_flag(show.raw));
            show_row(session, output, &key, row.await?).await?;
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
                "amount_paid",
                "review_reasons",
                "dispute_due_by",
            ];
            output.print_list(&columns, &rows);
        }
        StatementsCommand::Review(StatementsReviewCommand::Clear(clear)) => {
            clear_review(session, &EntityKey::Statement(clear.id), clear.change).await?;
        }
        StatementsCommand::Review(StatementsReviewCommand::Accept(accept)) => {
            accept_amounts(session, &EntityKey::Statement(accept.id), accept.change).await?;
        }
        StatementsCommand::MarkPaid(paid) => {
            let key = EntityKey::Statement(paid.id);
            repair_entity(
                session,
                &key,
                "mark-paid",
                paid.change,
                payment_record_facts,
            )
            .await?;
            print_notice(&format!("recorded a payment outside Stripe for {key}"));
        }
    }
    Ok(())
}
