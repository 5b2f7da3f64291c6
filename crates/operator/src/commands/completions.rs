//! `billhook completions`: the script that completes commands and options in a shell.

use clap::Args;

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  billhook completions bash > ~/.local/share/bash-completion/completions/billhook"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

pub(crate) fn run_completions(completions: &CompletionsArgs, mut command_tree: clap::Command) {
    clap_complete::generate(
        completions.shell,
        &mut command_tree,
        "billhook",
        &mut std::io::stdout(),
    );
}
