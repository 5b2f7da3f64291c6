//! What can be asked for, and who answers.

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use serde_json::json;

use crate::dlq;
use crate::doctor;
use crate::events;
use crate::functions;
use crate::logs;
use crate::metrics;
use crate::orders;
use crate::output::{Format, Output};
use crate::replay;
use crate::secrets;
use crate::send;
use crate::session::Session;
use crate::tenants;
use crate::trace;

const EXIT_CODES: &str = "Exit codes:\n  0    done, or a preview was shown\n  1    failed; the text says what to do\n  \
    2    the command line is wrong\n  3    what was asked for is not there\n  \
    4    the answer is no: access is not granted, a signature is wrong, a check found something\n  \
    130  ended by Ctrl-C; what to run to go on was printed\n\n\
    Credentials are found the usual way: variables, profile, SSO, role. Everything else about the stack is read from its outputs.\n\
    NO_COLOR turns colour off.";

/// The operator's tool of billhook: what became of webhooks, and what to do about it.
#[derive(Debug, Parser)]
#[command(name = "billhook", version, after_help = EXIT_CODES, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    place: Where,
    /// How answers are written
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "table",
        env = "BILLHOOK_OUTPUT",
        hide_env_values = true
    )]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// Which stack.
#[derive(Args, Debug)]
pub(crate) struct Where {
    /// The CloudFormation stack, as billhook-prod
    #[arg(long, global = true, env = "BILLHOOK_STACK")]
    pub(crate) stack: Option<String>,
    /// The profile of AWS's configuration files
    #[arg(long, global = true)]
    pub(crate) profile: Option<String>,
    /// The region
    #[arg(long, global = true)]
    pub(crate) region: Option<String>,
    /// Another endpoint for all services, as of a local AWS
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Events: list, show, annotate, park, release
    #[command(subcommand)]
    Events(Box<events::Command>),
    /// Have stored events decided again, one or many
    Replay(Box<replay::Replay>),
    /// Orders: show, review, repair
    #[command(subcommand)]
    Orders(orders::Orders),
    /// Statements: show, attention
    #[command(subcommand)]
    Statements(orders::Statements),
    /// Tenants: add, show, list, import
    #[command(subcommand)]
    Tenants(tenants::Command),
    /// The whole story of an id, in order
    Trace(trace::Trace),
    /// Dead letters: list, show, redrive, purge
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Deliver a signed sample event
    Send(send::Send),
    /// Signatures: explain
    #[command(subcommand)]
    Sig(send::Sig),
    /// The cleanup of failed payments
    #[command(subcommand)]
    Cleanup(functions::Cleanup),
    /// The sweep, which looks at open events again
    #[command(subcommand)]
    Sweep(functions::Task),
    /// The comparison with what Stripe knows
    #[command(subcommand)]
    Reconcile(functions::Task),
    /// Secrets: status, rotate, put, rollback
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Look a deployed stack over, one line for each check with what to do
    Doctor(doctor::Doctor),
    /// Counters: export
    #[command(subcommand)]
    Metrics(metrics::Command),
    /// Show the functions' logs, filtered and followed
    Logs(logs::Logs),
    /// Print the completions of a shell
    #[command(
        after_help = "Example:\n  billhook completions bash > ~/.local/share/bash-completion/completions/billhook"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages into a folder
    #[command(
        after_help = "Example:\n  billhook man ~/.local/share/man/man1 && man billhook-replay"
    )]
    Man {
        /// Where to
        folder: std::path::PathBuf,
    },
}

pub(crate) async fn run(cli: Cli) -> Result<()> {
    let output = Output::new(cli.output);
    let open = || Session::open(&cli.place);
    match cli.command {
        Command::Events(command) => events::run(*command, &open().await?, output).await,
        Command::Replay(replay) => replay::run(*replay, &open().await?, output).await,
        Command::Orders(command) => orders::orders(command, &open().await?, output).await,
        Command::Statements(command) => orders::statements(command, &open().await?, output).await,
        Command::Tenants(command) => tenants::run(command, &open().await?, output).await,
        Command::Trace(trace) => trace::run(trace, &open().await?, output).await,
        Command::Dlq(command) => dlq::run(command, &open().await?, output).await,
        Command::Send(send) => send::send(send, open, output).await,
        Command::Sig(sig) => send::sig(sig, open, output).await,
        Command::Cleanup(cleanup) => functions::run(&cleanup.input(), &open().await?, output).await,
        Command::Sweep(functions::Task::Run) => {
            functions::run(&json!({ "task": "sweep" }), &open().await?, output).await
        }
        Command::Reconcile(functions::Task::Run) => {
            functions::run(&json!({ "task": "reconcile" }), &open().await?, output).await
        }
        Command::Secrets(command) => secrets::run(command, &open().await?, output).await,
        Command::Doctor(doctor) => doctor::run(doctor, &open().await?, output).await,
        Command::Metrics(command) => metrics::run(command, &open().await?).await,
        Command::Logs(logs) => logs::run(logs, &open().await?, output).await,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "billhook",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Command::Man { folder } => clap_mangen::generate_to(Cli::command(), &folder)
            .with_context(|| format!("cannot write into {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command, those that only hold others left out.
    fn leaves(command: &clap::Command, found: &mut Vec<clap::Command>) {
        if command.has_subcommands() {
            for inner in command.get_subcommands() {
                leaves(inner, found);
            }
        } else {
            found.push(command.clone());
        }
    }

    /// A line of a document, as a shell would hand it over.
    #[track_caller]
    fn check(line: &str) {
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
        if let Err(error) = Cli::try_parse_from(&words) {
            assert!(!error.use_stderr(), "{line}: {error}");
        }
    }

    #[test]
    fn the_command_line_is_sound_and_each_example_is_one_of_it() {
        Cli::command().debug_assert();
        let mut all = Vec::new();
        leaves(&Cli::command(), &mut all);
        let mut examples = 0;
        for mut command in all {
            let help = command.render_long_help().to_string();
            for line in help.lines().filter(|line| line.starts_with("  billhook ")) {
                check(line);
                examples += 1;
            }
        }
        assert!(examples > 30, "{examples}");
    }

    #[test]
    fn every_command_of_the_documents_is_one_of_the_line() {
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
                check(line);
                commands += 1;
            }
        }
        assert!(commands > 40, "{commands}");
    }
}
