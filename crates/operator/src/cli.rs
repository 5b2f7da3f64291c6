//! The command line: global options and exit codes around the list of `commands`.

use anyhow::Result;
use clap::{CommandFactory as _, Parser};

use crate::commands::{BillhookCommand, run_command};
use crate::output::{OutputFormat, OutputWriter};
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
