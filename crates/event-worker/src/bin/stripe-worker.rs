//! `stripe-worker`: applies Stripe's stored events to orders, statements and tenants.

use std::process::ExitCode;

use billhook_core::ids::ProviderId;

fn main() -> ExitCode {
    event_worker::run_worker("stripe-worker", ProviderId::Stripe)
}
