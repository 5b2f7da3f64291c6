//! The command line: the clap tree of subcommands, global options and exit codes, and the dispatch to `commands`.

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    cleanup, completions, dlq, doctor, events, logs, man, metrics, orders, reconcile, replay,
    secrets, send, signature, statements, sweep, tenants, trace,
};
use crate::output::{OutputFormat, OutputWriter};
use crate::session::StackSession;
use crate::stack_options::StackOptions;

const EXIT_CODES: &str = "Exit codes:\n  0    success, or a preview was shown\n  1    failure; the error message says what to do\n  \
    2    the command line is invalid\n  3    the requested object does not exist\n  \
    4    the answer is negative: access is not granted, a signature is wrong, a check failed\n  \
    130  interrupted by Ctrl-C; the message says how to continue\n\n\
    The tool finds AWS credentials as the AWS CLI does: environment variables, profile, SSO, role. It reads everything else \
    from the outputs of the stack.\nNO_COLOR turns colour off.";

/// Operate a billhook stack: find out what happened to webhooks, and repair what failed
#[derive(Debug, Parser)]
#[command(name = "billhook", version, after_help = EXIT_CODES, max_term_width = 120)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    stack_options: StackOptions,
    /// Output format
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "table",
        env = "BILLHOOK_OUTPUT",
        hide_env_values = true
    )]
    output: OutputFormat,
    #[command(subcommand)]
    command: BillhookCommand,
}

#[derive(Debug, Subcommand)]
enum BillhookCommand {
    /// List, show, annotate, park and release stored events
    #[command(subcommand)]
    Events(Box<events::EventsCommand>),
    /// Reprocess stored events
    Replay(Box<replay::ReplayArgs>),
    /// Show, review and repair orders
    #[command(subcommand)]
    Orders(orders::OrdersCommand),
    /// Show statements, and list those that need attention
    #[command(subcommand)]
    Statements(statements::StatementsCommand),
    /// Add, show, list and import tenants
    #[command(subcommand)]
    Tenants(tenants::TenantsCommand),
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
    /// Cancel orders whose payment failed (cleanup)
    #[command(subcommand)]
    Cleanup(cleanup::CleanupCommand),
    /// Retry unfinished events (sweep)
    #[command(subcommand)]
    Sweep(sweep::SweepCommand),
    /// Fetch events from Stripe that were never delivered (reconciliation)
    #[command(subcommand)]
    Reconcile(reconcile::ReconcileCommand),
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
    /// Print shell completions
    Completions(completions::CompletionsArgs),
    /// Write the manual pages into a folder
    Man(man::ManArgs),
}

pub(crate) async fn run_command(cli: CommandLine) -> Result<()> {
    let output = OutputWriter::new(cli.output);
    let open = || StackSession::open(&cli.stack_options);
    match cli.command {
        BillhookCommand::Events(command) => {
            events::run_events(*command, &open().await?, output).await
        }
        BillhookCommand::Replay(replay) => {
            replay::run_replay(*replay, &open().await?, output).await
        }
        BillhookCommand::Orders(command) => {
            orders::run_orders(command, &open().await?, output).await
        }
        BillhookCommand::Statements(command) => {
            statements::run_statements(command, &open().await?, output).await
        }
        BillhookCommand::Tenants(command) => {
            tenants::run_tenants(command, &open().await?, output).await
        }
        BillhookCommand::Trace(trace) => trace::run_trace(trace, &open().await?, output).await,
        BillhookCommand::Dlq(command) => dlq::run_dlq(command, &open().await?, output).await,
        BillhookCommand::Send(send) => send::run_send(send, open, output).await,
        BillhookCommand::Sig(sig) => signature::run_sig(sig, open, output).await,
        BillhookCommand::Cleanup(command) => {
            cleanup::run_cleanup(command, &open().await?, output).await
        }
        BillhookCommand::Sweep(command) => sweep::run_sweep(command, &open().await?, output).await,
        BillhookCommand::Reconcile(command) => {
            reconcile::run_reconcile(command, &open().await?, output).await
        }
        BillhookCommand::Secrets(command) => {
            secrets::run_secrets(command, &open().await?, output).await
        }
        BillhookCommand::Doctor(doctor) => doctor::run_doctor(doctor, &open().await?, output).await,
        BillhookCommand::Metrics(command) => metrics::run_metrics(command, &open().await?).await,
        BillhookCommand::Logs(logs) => logs::run_logs(logs, &open().await?, output).await,
        BillhookCommand::Completions(completions) => {
            completions::run_completions(&completions, CommandLine::command());
            Ok(())
        }
        BillhookCommand::Man(man) => man::run_man(&man, CommandLine::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command that has no subcommands.
    fn collect_leaf_commands(command: &clap::Command, found: &mut Vec<clap::Command>) {
        if command.has_subcommands() {
            for inner in command.get_subcommands() {
                collect_leaf_commands(inner, found);
            }
        } else {
            found.push(command.clone());
        }
    }

    /// Parses a line of a document as a shell would pass it.
    #[track_caller]
    fn check_command_line(line: &str) {
        let line = line.replace('…', "1");
        let line = line.split(['|', '>', '&', '#']).next().unwrap_or_default();
        let mut words = Vec::new();
        for (number, part) in line.split('\'').enumerate() {
            if number % 2 == 1 {
                words.push(part);
            } else {
                words.extend(part.split_whitespace());
            }
        }
        if let Err(error) = CommandLine::try_parse_from(&words) {
            assert!(!error.use_stderr(), "{line}: {error}");
        }
    }

    #[test]
    fn the_command_line_is_valid_and_so_is_every_example() {
        CommandLine::command().debug_assert();
        let mut all = Vec::new();
        collect_leaf_commands(&CommandLine::command(), &mut all);
        let mut examples = 0;
        for mut command in all {
            let help = command.render_long_help().to_string();
            for line in help.lines().filter(|line| line.starts_with("  billhook ")) {
                check_command_line(line);
                examples += 1;
            }
        }
        assert!(examples > 30, "{examples}");
    }

    #[test]
    fn every_command_in_the_documents_is_valid() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut files = vec![root.join("README.md"), root.join("docs/SEMANTICS.md")];
        let runbook = std::fs::read_dir(root.join("docs/runbook")).unwrap();
        files.extend(runbook.map(|file| file.unwrap().path()));
        let mut commands = 0;
        for file in files {
            let text = std::fs::read_to_string(file).unwrap();
            let blocks = text.split("```sh\n").skip(1);
            let blocks = blocks.filter_map(|block| block.split("```").next());
            for line in blocks
                .flat_map(str::lines)
                .filter(|line| line.starts_with("billhook "))
            {
                check_command_line(line);
                commands += 1;
            }
        }
        assert!(commands > 40, "{commands}");
    }
}
