//! `billhook`: the command line for whoever operates a deployed stack. Each task is one command.
//!
//! No rule about money or letters is decided here: the commands read rows, send pointers and write notes, and
//! `billhook_core` decides. `cli` has the global options, `commands` lists the commands and has one module for each,
//! `session` reaches the stack, and the other modules are what several commands share. Imports go from `cli` to the
//! commands to the shared modules, never back.

mod account_holders;
mod application_tables;
mod audit;
mod aws_request;
mod aws_xml;
mod cli;
mod commands;
mod confirm;
mod dry_run;
mod entity_repair;
mod event_filter;
mod event_lookup;
mod events_table;
mod exit;
mod intent_backfill;
mod interrupt;
mod log_lines;
mod misplaced_secrets;
mod output;
mod payload_redaction;
mod payment_lookup;
mod proof_repair;
mod proof_run;
mod provider_argument;
mod replay_job;
mod replay_run;
mod review;
mod row_json;
mod row_standing;
mod sample_events;
mod secret_input;
mod session;
mod stack;
mod stack_options;
mod stripe_endpoints;
mod tenant_mute;
mod tenant_write;
mod time_argument;
mod unclaimed;
mod webhook_delivery;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::CommandLine;
use crate::exit::CommandExit;
use crate::output::print_notice;

fn main() -> ExitCode {
    let cli = CommandLine::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cli::run_command_line(cli)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_notice(&format!("billhook: {error:#}"));
            ExitCode::from(error.downcast_ref().map_or(1, CommandExit::exit_code))
        }
    }
}
