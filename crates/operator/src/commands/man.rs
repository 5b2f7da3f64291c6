//! `billhook man`: the manual pages.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  billhook man ~/.local/share/man/man1 && man billhook-replay")]
pub(crate) struct ManArgs {
    /// The folder; it must exist
    folder: PathBuf,
}

pub(crate) fn run_man(man: &ManArgs, command_tree: clap::Command) -> Result<()> {
    let folder = &man.folder;
    clap_mangen::generate_to(command_tree, folder)
        .with_context(|| format!("cannot write into {}", folder.display()))
}
