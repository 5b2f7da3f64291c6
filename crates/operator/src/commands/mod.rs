//! The list of the commands: module, place in the command line, and dispatch of each. To add one, write its module and
//! name it in these three. A command imports no other command: what two of them share is a module beside `commands`.

mod accounts;
mod audit;
mod completions;
mod dlq;
mod doctor;
mod events;
mod logs;
mod man;
mod metrics;
mod orders;
mod payments;
mod prove;
mod replay;
mod secrets;
mod send;
mod signature;
mod statements;
mod tasks;
mod tenants;
mod trace;

use std::cell::OnceCell;

use anyhow::Result;
use clap::Subcommand;

use crate::output::OutputWriter;
use crate::session::StackSession;
use crate::stack_options::StackOptions;

#[derive(Debug, Subcommand)]
pub(crate) enum BillhookCommand {
    /// List, show, annotate, park, release and close stored events
    #[command(subcommand)]
    Events(Box<events::EventsCommand>),
    /// Reprocess stored events
    Replay(Box<replay::ReplayArgs>),
    /// Prove states by their stored events, and show what is different
    Prove(Box<prove::ProveArgs>),
    /// Rebuild states from their stored events
    Rebuild(Box<prove::RebuildArgs>),
    /// Show, review and repair orders
    #[command(subcommand)]
    Orders(orders::OrdersCommand),
    /// Show payments, and link them to their order or statement
    #[command(subcommand)]
    Payments(payments::PaymentsCommand),
    /// Show statements, and list those that need attention
    #[command(subcommand)]
    Statements(statements::StatementsCommand),
    /// Add, show, list, import and mute tenants
    #[command(subcommand)]
    Tenants(tenants::TenantsCommand),
    /// Show which connected accounts have the most events
    #[command(subcommand)]
    Accounts(accounts::AccountsCommand),
    /// Show the history of an event, order, statement, tenant or payment
    Trace(trace::TraceArgs),
    /// List, show, redrive and purge messages of a dead-letter queue
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Deliver a signed sample event
    Send(send::SendArgs),
    /// Explain why a signature is wrong
    #[command(subcommand)]
    Sig(signature::SigCommand),
    /// `billhook TASK run`, for every scheduled task
    #[command(flatten)]
    Task(tasks::TaskCommand),
    /// Show, rotate, replace and roll back secrets
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Check a deployed stack, and show how to fix each problem
    Doctor(doctor::DoctorArgs),
    /// Export counters for Prometheus
    #[command(subcommand)]
    Metrics(metrics::MetricsCommand),
    /// Show the logs of the functions
    Logs(logs::LogsArgs),
    /// Show who changed what with `billhook`
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Print shell completions
    Completions(completions::CompletionsArgs),
    /// Write the manual pages into a folder
    Man(man::ManArgs),
}

/// `command_tree` is the whole command line, which completions and manual pages describe.
pub(crate) async fn run_command(
    command: BillhookCommand,
    stack_options: &StackOptions,
    output: OutputWriter,
    command_tree: fn() -> clap::Command,
) -> Result<()> {
    let opened = OnceCell::new();
    let open = async || {
        let session = StackSession::open(stack_options).await?;
        Ok(opened.get_or_init(|| session))
    };
    let result = dispatch_command(command, open, output, command_tree).await;
    if let Some(session) = opened.get() {
        session.end_audit(&result).await;
    }
    result
}

async fn dispatch_command<'s>(
    command: BillhookCommand,
    open: impl AsyncFn() -> Result<&'s StackSession>,
    output: OutputWriter,
    command_tree: fn() -> clap::Command,
) -> Result<()> {
    match command {
        BillhookCommand::Events(command) => {
            events::run_events(*command, open().await?, output).await
        }
        BillhookCommand::Replay(replay) => replay::run_replay(*replay, open().await?, output).await,
        BillhookCommand::Prove(prove) => prove::run_prove(*prove, open().await?, output).await,
        BillhookCommand::Rebuild(rebuild) => {
            prove::run_rebuild(*rebuild, open().await?, output).await
        }
        BillhookCommand::Orders(command) => {
            orders::run_orders(command, open().await?, output).await
        }
        BillhookCommand::Payments(command) => {
            payments::run_payments(command, open().await?, output).await
        }
        BillhookCommand::Statements(command) => {
            statements::run_statements(command, open().await?, output).await
        }
        BillhookCommand::Tenants(command) => {
            tenants::run_tenants(command, open().await?, output).await
        }
        BillhookCommand::Accounts(command) => {
            accounts::run_accounts(command, open().await?, output).await
        }
        BillhookCommand::Trace(trace) => trace::run_trace(trace, open().await?, output).await,
        BillhookCommand::Dlq(command) => dlq::run_dlq(command, open().await?, output).await,
        BillhookCommand::Send(send) => send::run_send(send, open, output).await,
        BillhookCommand::Sig(sig) => signature::run_sig(sig, open, output).await,
        BillhookCommand::Task(command) => tasks::run_task(command, open().await?, output).await,
        BillhookCommand::Secrets(command) => {
            secrets::run_secrets(command, open().await?, output).await
        }
        BillhookCommand::Doctor(doctor) => doctor::run_doctor(doctor, open().await?, output).await,
        BillhookCommand::Metrics(command) => metrics::run_metrics(command, open().await?).await,
        BillhookCommand::Logs(logs) => logs::run_logs(logs, open().await?, output).await,
        BillhookCommand::Audit(command) => audit::run_audit(command, open().await?, output).await,
        BillhookCommand::Completions(completions) => {
            completions::run_completions(&completions, command_tree());
            Ok(())
        }
        BillhookCommand::Man(man) => man::run_man(&man, command_tree()),
    }
}
