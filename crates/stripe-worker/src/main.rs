//! `stripe-worker`: applies Stripe's stored events to orders, statements and tenants; the SQS handler for Stripe's
//! queue.
//!
//! It only connects parts: `billhook_core::worker` processes a batch, `billhook_core::provider::stripe` reads what an
//! event says, `billhook_core::entity::payment` derives states, and `billhook_adapters::dynamodb::ledger` reads and
//! writes rows.

use std::process::ExitCode;

use billhook_adapters::batch::{CONNECTIONS, handle_batch};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::StripeWorkerConfig;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, TableNames};
use billhook_adapters::lambda::{run_function, serve_events};
use billhook_adapters::report::report_fallback_scan;
use billhook_core::ids::ProviderId;
use billhook_core::worker::batch::Worker;

fn main() -> ExitCode {
    run_function(
        "stripe-worker",
        StripeWorkerConfig::from_env,
        async |config, aws| {
            aws.warm(CONNECTIONS, 0).await;
            let tables = TableNames {
                events: config.stripe_events_table,
                entities: config.entity_tables,
                payments: Some(config.payments_table),
            };
            let worker = Worker {
                provider: ProviderId::Stripe,
                live_mode: config.environment.live,
                ledger: DynamoLedger::new(
                    aws.dynamodb().clone(),
                    tables,
                    SystemClock,
                    report_fallback_scan,
                ),
                clock: SystemClock,
            };
            serve_events(async |event| handle_batch(&worker, event).await).await
        },
    )
}
