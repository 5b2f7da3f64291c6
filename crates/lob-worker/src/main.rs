//! `lob-worker`: turns Lob's stored events into the state of statements' mail.
//!
//! Only wiring. What events mean is `billhook_core::mail`, how a batch is settled `billhook_core::worker`, how rows are
//! read and written `billhook_adapters::dynamodb::ledger`.

use std::process::ExitCode;

use billhook_adapters::batch::{CONNECTIONS, settle};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::LobWorkerConfig;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, Tables};
use billhook_adapters::lambda::{run, serve};
use billhook_core::ids::Provider;
use billhook_core::worker::Worker;

fn main() -> ExitCode {
    run(
        "lob-worker",
        LobWorkerConfig::from_env,
        async |config, aws| {
            aws.warm(CONNECTIONS, 0).await;
            let tables = Tables {
                events: config.lob_events_table,
                statements: config.statements_table,
                ..Tables::default()
            };
            let worker = Worker {
                provider: Provider::Lob,
                live_mode: config.stage.live,
                ledger: DynamoLedger::new(aws.dynamodb().clone(), tables, SystemClock),
                clock: SystemClock,
            };
            serve(async |event| settle(&worker, event).await).await
        },
    )
}
