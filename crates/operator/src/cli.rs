//! The command line: global options and exit codes around the list of `commands`.

use anyhow::Result;
use clap::{CommandFactory as _, Parser};

use crate::commands::{BillhookCommand, run_command};
use crate::output::{OutputFormat, OutputWriter};
use crate::stack_options::StackOptions;

const EXIT_CODES: &str = "Exit codes:\n  0    success, or a preview was shown\n  1    failure; the error message says what to do\n  \
    2    the command line is invalid\n  3    the requested object does not exist\n  \
    4    the answer is negative: access is not granted, a signature is wrong, a check failed,\n       or a change was not confirmed\n  \
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

pub(crate) async fn run_command_line(cli: CommandLine) -> Result<()> {
    let output = OutputWriter::new(cli.output);
    run_command(
        cli.command,
        &cli.stack_options,
        output,
        CommandLine::command,
    )
    .await
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Every command that has no subcommands, by its words.
    fn collect_leaf_commands(
        words: &str,
        command: &clap::Command,
        found: &mut BTreeMap<String, clap::Command>,
    ) {
        if command.has_subcommands() {
            for inner in command.get_subcommands() {
                let words = format!("{words} {}", inner.get_name());
                collect_leaf_commands(words.trim_start(), inner, found);
            }
        } else {
            found.insert(words.to_owned(), command.clone());
        }
    }

    fn leaf_commands() -> BTreeMap<String, clap::Command> {
        let mut all = BTreeMap::new();
        collect_leaf_commands("", &CommandLine::command(), &mut all);
        all
    }

    /// Commands that change nothing, in the stack or at a provider.
    const READING: [&str; 24] = [
        "accounts top",
        "audit list",
        "completions",
        "dlq list",
        "dlq show",
        // Its test event is of a type that nothing handles.
        "doctor",
        "events list",
        "events show",
        "logs",
        "man",
        "metrics export",
        "orders access",
        "orders review list",
        "orders show",
        "payments show",
        "payments unclaimed",
        "proof run",
        "secrets status",
        "sig explain",
        "statements attention",
        "statements show",
        "tenants list",
        "tenants show",
        "trace",
    ];
    /// Commands that change something: `--yes` does it, `--reason` says why. Without `--yes` they ask (`confirm_change`), or
    /// show what they would do (`announce_preview`).
    const CHANGING: [&str; 32] = [
        "cleanup run",
        "dlq purge",
        "dlq redrive",
        "events annotate",
        "events close",
        "events park",
        "events release",
        "orders backfill-payment-intent",
        "orders mark-paid",
        "orders mark-refunded",
        "orders review accept",
        "orders review clear",
        "payments relink",
        "prove",
        "rebuild",
        "reconcile run",
        "replay",
        "secrets put",
        "secrets revoke",
        "secrets rollback",
        "secrets rotate",
        "secrets split",
        "send",
        "statements mark-paid",
        "statements review accept",
        "statements review clear",
        "sweep run",
        "tenants add",
        "tenants change-account",
        "tenants import",
        "tenants mute",
        "tenants unmute",
    ];

    #[test]
    fn every_command_only_reads_or_asks_before_it_changes_something() {
        let all = leaf_commands();
        let named: BTreeSet<&str> = READING.into_iter().chain(CHANGING).collect();
        assert_eq!(named.len(), READING.len() + CHANGING.len());
        let known: BTreeSet<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(known, named, "name each command in READING or in CHANGING");
        for (name, command) in &all {
            let has = |wanted: &str| {
                let mut options = command.get_arguments();
                options.any(|option| option.get_long() == Some(wanted))
            };
            let changes = CHANGING.contains(&name.as_str());
            assert_eq!(has("yes"), changes, "{name}: --yes");
            // The text of a note is its reason.
            let is_note = name == "events annotate";
            assert_eq!(has("reason"), changes && !is_note, "{name}: --reason");
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
        let mut examples = 0;
        for mut command in leaf_commands().into_values() {
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
