//! `lob-worker`: turns Lob's stored events into the state of statements' mail.
//!
//! Only wiring. What events mean is `billhook_core::mail`, how a batch is settled `billhook_core::worker`, how rows are
//! read and written `billhook_adapters::dynamodb::ledger`.

use std::process::ExitCode;

use billhook_adapters::batch::{CONNECTIONS, handle_batch};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::LobWorkerConfig;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, TableNames};
use billhook_adapters::lambda::{run_function, serve_events};
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
                statements: config.statements_table,
                ..TableNames::default()
            };
            let worker = Worker {
                provider: ProviderId::Lob,
                live_mode: config.environment.live,
                ledger: DynamoLedger::new(aws.dynamodb().clone(), tables, SystemClock),
                clock: SystemClock,
            };
            serve_events(async |event| handle_batch(&worker, event).await).await
        },
    )
}
