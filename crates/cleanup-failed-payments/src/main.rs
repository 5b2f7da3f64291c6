//! Connects the scheduled tasks to AWS and Stripe, and runs the one that the input names. No decisions; `lib` has the
//! input.

use std::process::ExitCode;

use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::CleanupConfig;
use billhook_adapters::dynamodb::events::DynamoInbox;
use billhook_adapters::dynamodb::jobs::JobsTable;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, TableNames};
use billhook_adapters::lambda::{invocation_deadline, run_function, serve_events};
use billhook_adapters::secrets::{self, SecretsManager};
use billhook_adapters::sqs::{EventQueues, FifoQueue};
use billhook_adapters::stripe::StripeClient;
use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::tenant::TenantKind;
use billhook_core::time::Timestamp;
use cleanup_failed_payments::cleanup::CleanupTask;
use cleanup_failed_payments::reconcile::ReconcileTask;
use cleanup_failed_payments::stripe::{StripePayments, stripe_calls_per_second};
use cleanup_failed_payments::sweep::SweepTask;
use cleanup_failed_payments::{TaskFailed, TaskInput, TaskReport};
use lambda_runtime::LambdaEvent;

fn main() -> ExitCode {
    run_function(
        "cleanup-failed-payments",
        CleanupConfig::from_env,
        async |config, aws| {
            serve_events(async |event: LambdaEvent<Option<TaskInput>>| {
                let deadline = invocation_deadline(&event.context);
                run_task(&config, &aws, event.payload.unwrap_or_default(), deadline).await
            })
            .await
        },
    )
}

async fn run_task(
    config: &CleanupConfig,
    aws: &AwsClients,
    input: TaskInput,
    deadline: Timestamp,
) -> Result<TaskReport, TaskFailed> {
    let clock = SystemClock;
    // Never missing: the configuration requires the table of every kind.
    let tenants_table = config.entity_tables.get(TenantKind::SCHEMA.table);
    let jobs = JobsTable {
        client: aws.dynamodb().clone(),
        table: config.jobs_table.clone(),
        tenants_table: tenants_table.cloned().unwrap_or_default(),
    };
    let queue = EventQueues {
        stripe: FifoQueue::new(aws.sqs().clone(), config.stripe_events_queue_url.clone()),
        lob: FifoQueue::new(aws.sqs().clone(), config.lob_events_queue_url.clone()),
    };
    let ledger = |events: &String| {
        let tables = TableNames {
            events: events.clone(),
            entities: config.entity_tables.clone(),
            payments: Some(config.payments_table.clone()),
        };
        DynamoLedger::new(aws.dynamodb().clone(), tables, clock)
    };
    match input {
        TaskInput::Cleanup(options) => {
            let cleanup = CleanupTask {
                ledger: ledger(&config.stripe_events_table),
                payments: open_stripe(config, aws).await?,
                jobs,
                clock,
                grace: config.failed_payment_age,
            };
            cleanup
                .run(&options, deadline)
                .await
                .map(TaskReport::Cleanup)
        }
        TaskInput::Sweep => {
            let sweep = SweepTask {
                stripe: ledger(&config.stripe_events_table),
                lob: ledger(&config.lob_events_table),
                queue,
                jobs,
                clock,
                live_mode: config.environment.live,
            };
            sweep.run(deadline).await.map(TaskReport::Sweep)
        }
        TaskInput::Reconcile => {
            let reconcile = ReconcileTask {
                inbox: DynamoInbox {
                    client: aws.dynamodb().clone(),
                    stripe_table: config.stripe_events_table.clone(),
                    lob_table: config.lob_events_table.clone(),
                },
                queue,
                jobs,
                stripe: open_stripe(config, aws).await?,
                clock,
            };
            reconcile.run(deadline).await.map(TaskReport::Reconcile)
        }
    }
}

/// None if no key is stored. Each run reads the key again, so that a replaced key works at once.
async fn open_stripe(
    config: &CleanupConfig,
    aws: &AwsClients,
) -> Result<Option<StripePayments>, TaskFailed> {
    let live = config.environment.live;
    let secrets = SecretsManager::new(aws);
    let key = secrets::read_stripe_key(&secrets, &config.stripe_key, live).await;
    let key = key.map_err(|error| TaskFailed::because("read Stripe's key", &error))?;
    let stripe = key
        .map(|key| StripeClient::new(&config.stripe_api_base, key, live))
        .transpose()
        .map_err(|error| TaskFailed::because("use Stripe's key", &error))?;
    Ok(stripe.map(|stripe| StripePayments(stripe.with_rate_limit(stripe_calls_per_second(live)))))
}
