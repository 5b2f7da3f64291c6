//! `lob-worker`: applies Lob's stored events to the letters of statements.

use std::process::ExitCode;

use billhook_core::ids::ProviderId;

fn main() -> ExitCode {
    event_worker::run_worker("lob-worker", ProviderId::Lob)
}
