//! `billhook`: what the person on call does about a deployed stack, each task one command.
//!
//! Deciding stays where it is, in `billhook_core`; here are the command line, thin reads and writes, and plain text.
//! `cli` says what can be asked for, `session` reaches the stack, the other modules are the commands.

mod audit;
mod cli;
mod dlq;
mod doctor;
mod endpoints;
mod entity;
mod events;
mod filter;
mod functions;
mod input;
mod job;
mod logs;
mod metrics;
mod moment;
mod orders;
mod output;
mod payload;
mod replay;
mod secrets;
mod send;
mod session;
mod signed;
mod stack;
mod store;
mod tenants;
mod trace;
mod what_if;
mod xml;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;
use crate::output::Output;

/// Why a command ends without having done what was asked, where that is no failure of the tool.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("{0}")]
    NotThere(String),
    #[error("{0}")]
    No(String),
    #[error("{0}")]
    Interrupted(String),
}

impl Stop {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NotThere(_) => 3,
            Self::No(_) => 4,
            Self::Interrupted(_) => 130,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(cli)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Output::tell(&format!("billhook: {error:#}"));
            ExitCode::from(error.downcast_ref().map_or(1, Stop::exit_code))
        }
    }
}
