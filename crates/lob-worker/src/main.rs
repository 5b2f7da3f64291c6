//! `lob-worker`: applies Lob's stored events to the letters of statements; the SQS handler for Lob's queue.
//!
//! It only connects parts: `billhook_core::worker` processes a batch, `billhook_core::provider::lob` reads what an
//! event says, `billhook_core::entity::mail` derives states, and `billhook_adapters::dynamodb::ledger` reads and writes
//! rows.

use std::process::ExitCode;

use billhook_adapters::batch::{CONNECTIONS, handle_batch};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::LobWorkerConfig;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, TableNames};
use billhook_adapters::lambda::{run_function, serve_events};
use billhook_adapters::report::report_fallback_scan;
use billhook_core::ids::ProviderId;
use billhook_core::worker::batch::Worker;

fn main() -> ExitCode {
    run_function(
        "lob-worker",
        LobWorkerConfig::from_env,
        async |config, aws| {
            aws.warm(CONNECTIONS, 0).await;
            let tables = TableNames {
                events: config.lob_events_table,
                entities: config.entity_tables,
                ..TableNames::default()
            };
            let worker = Worker {
                provider: ProviderId::Lob,
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
