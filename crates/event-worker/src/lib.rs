//! The workers: each is the SQS handler of one provider's queue and applies that provider's stored events to orders,
//! statements and tenants. A worker is a binary that names its provider; everything else is the same.
//!
//! It only connects parts: `billhook_core::worker` processes a batch, `billhook_core::provider` reads what an event says,
//! `billhook_core::entity` derives states, and `billhook_adapters::dynamodb::ledger` reads and writes rows.

use std::process::ExitCode;

use billhook_adapters::batch::{CONNECTIONS, handle_batch};
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::WorkerConfig;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, LedgerSeals, StateSealCheck, TableNames};
use billhook_adapters::lambda::{run_function, serve_events};
use billhook_adapters::report::report_fallback_scan;
use billhook_adapters::secrets::SecretsManager;
use billhook_core::ids::ProviderId;
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::worker::batch::Worker;
use futures_util::future::join;

/// The whole `main` of a provider's worker; `function` is its name.
pub fn run_worker(function: &'static str, provider: ProviderId) -> ExitCode {
    run_function(
        function,
        move |lookup| WorkerConfig::from_env(provider, lookup),
        async move |config, aws| {
            let seals = LedgerSeals::new(
                &SecretsManager::new(&aws),
                config.seal_keys,
                config.state_seal,
                StateSealCheck::Required,
            );
            join(aws.warm(CONNECTIONS, 0), seals.warm()).await;
            let receives_max = config.receives_max;
            let tables = TableNames {
                events: config.events_table,
                entities: config.entities_table,
                application_tables: config.application_tables,
                rules: config.row_rules,
            };
            let worker = Worker {
                provider,
                rules: InterpretRules {
                    live_mode: config.environment.live,
                    order_ids: config.order_ids,
                },
                ledger: DynamoLedger::new(
                    aws.dynamodb().clone(),
                    tables,
                    seals,
                    SystemClock,
                    report_fallback_scan,
                ),
                clock: SystemClock,
            };
            serve_events(async |event| handle_batch(&worker, receives_max, event).await).await
        },
    )
}
