//! Wiring: configuration, clients, run.

use std::process::ExitCode;

use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::CleanupConfig;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, Tables};
use billhook_adapters::lambda::{deadline, run, serve};
use billhook_adapters::secrets::{self, SecretsManager};
use billhook_adapters::stripe::Stripe;
use cleanup_failed_payments::stripe::Payments;
use cleanup_failed_payments::{Cleanup, Failed, Input};
use lambda_runtime::LambdaEvent;

fn main() -> ExitCode {
    run(
        "cleanup-failed-payments",
        CleanupConfig::from_env,
        async |config, aws| {
            let secrets = SecretsManager::new(&aws);
            let tables = Tables {
                orders: Some(config.orders_table.clone()),
                ..Tables::default()
            };
            serve(async |event: LambdaEvent<Option<Input>>| {
                // The key is read anew each run, four times an hour: a replaced one is known at once.
                let key =
                    secrets::stripe_key(&secrets, &config.stripe_key, config.stage.live).await;
                let key = key.map_err(|error| Failed::because("read Stripe's key", &error))?;
                let stripe = key
                    .map(|key| Stripe::new(&config.stripe_api_base, key, config.stage.live))
                    .transpose();
                let cleanup = Cleanup {
                    ledger: DynamoLedger::new(aws.dynamodb().clone(), tables.clone(), SystemClock),
                    payments: Payments(
                        stripe.map_err(|error| Failed::because("use Stripe's key", &error))?,
                    ),
                    clock: SystemClock,
                    grace: config.failed_payment_age,
                };
                cleanup
                    .run(&event.payload.unwrap_or_default(), deadline(&event.context))
                    .await
            })
            .await
        },
    )
}
