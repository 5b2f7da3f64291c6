//! Wiring: configuration, clients, run.

use std::process::ExitCode;

use billhook_adapters::aws::Aws;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::CleanupConfig;
use billhook_adapters::dynamodb::inbox::Inbox;
use billhook_adapters::dynamodb::jobs::Jobs;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, Tables};
use billhook_adapters::lambda::{deadline, run, serve};
use billhook_adapters::secrets::{self, SecretsManager};
use billhook_adapters::sqs::{Queue, Queues};
use billhook_adapters::stripe::Stripe;
use billhook_core::time::Timestamp;
use cleanup_failed_payments::cleanup::Cleanup;
use cleanup_failed_payments::reconcile::Reconcile;
use cleanup_failed_payments::stripe::{AtStripe, calls_per_second};
use cleanup_failed_payments::sweep::Sweep;
use cleanup_failed_payments::{Failed, Input, Report};
use lambda_runtime::LambdaEvent;

fn main() -> ExitCode {
    run(
        "cleanup-failed-payments",
        CleanupConfig::from_env,
        async |config, aws| {
            serve(async |event: LambdaEvent<Option<Input>>| {
                let deadline = deadline(&event.context);
                done(&config, &aws, event.payload.unwrap_or_default(), deadline).await
            })
            .await
        },
    )
}

async fn done(
    config: &CleanupConfig,
    aws: &Aws,
    input: Input,
    deadline: Timestamp,
) -> Result<Report, Failed> {
    let clock = SystemClock;
    let jobs = Jobs {
        client: aws.dynamodb().clone(),
        table: config.jobs_table.clone(),
        tenants_table: config.tenants_table.clone(),
    };
    let queue = Queues {
        stripe: Queue::new(aws.sqs().clone(), config.stripe_events_queue_url.clone()),
        lob: Queue::new(aws.sqs().clone(), config.lob_events_queue_url.clone()),
    };
    let ledger = |events: &String| {
        let tables = Tables {
            events: events.clone(),
            orders: Some(config.orders_table.clone()),
            statements: config.statements_table.clone(),
            tenants: Some(config.tenants_table.clone()),
            payments: Some(config.payments_table.clone()),
        };
        DynamoLedger::new(aws.dynamodb().clone(), tables, clock)
    };
    match input {
        Input::Cleanup(options) => {
            let cleanup = Cleanup {
                ledger: ledger(&config.stripe_events_table),
                payments: at_stripe(config, aws).await?,
                jobs,
                clock,
                grace: config.failed_payment_age,
            };
            cleanup.run(&options, deadline).await.map(Report::Cleanup)
        }
        Input::Sweep => {
            let sweep = Sweep {
                stripe: ledger(&config.stripe_events_table),
                lob: ledger(&config.lob_events_table),
                queue,
                jobs,
                clock,
                live_mode: config.stage.live,
            };
            sweep.run(deadline).await.map(Report::Sweep)
        }
        Input::Reconcile => {
            let reconcile = Reconcile {
                inbox: Inbox {
                    client: aws.dynamodb().clone(),
                    stripe_table: config.stripe_events_table.clone(),
                    lob_table: config.lob_events_table.clone(),
                },
                queue,
                jobs,
                stripe: at_stripe(config, aws).await?,
                clock,
            };
            reconcile.run(deadline).await.map(Report::Reconcile)
        }
    }
}

/// Nothing while no key is set. The key is read anew each run: a replaced one is known at once.
async fn at_stripe(config: &CleanupConfig, aws: &Aws) -> Result<Option<AtStripe>, Failed> {
    let live = config.stage.live;
    let secrets = SecretsManager::new(aws);
    let key = secrets::stripe_key(&secrets, &config.stripe_key, live).await;
    let key = key.map_err(|error| Failed::because("read Stripe's key", &error))?;
    let stripe = key
        .map(|key| Stripe::new(&config.stripe_api_base, key, live))
        .transpose()
        .map_err(|error| Failed::because("use Stripe's key", &error))?;
    Ok(stripe.map(|stripe| AtStripe(stripe.paced(calls_per_second(live)))))
}
