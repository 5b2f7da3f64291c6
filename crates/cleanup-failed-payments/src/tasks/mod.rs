//! The scheduled tasks: the module and the report of each, and how it is connected to AWS and Stripe. No decisions.

pub mod cleanup;
mod deliveries;
pub mod proof;
pub mod reconcile;
pub mod sweep;
mod sweep_rows;

use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::CleanupConfig;
use billhook_adapters::dynamodb::events::DynamoInbox;
use billhook_adapters::dynamodb::jobs::JobsTable;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, LedgerSeals, StateSealCheck, TableNames};
use billhook_adapters::report::report_fallback_scan;
use billhook_adapters::secrets::{self, EventSealerCache, SecretsManager};
use billhook_adapters::sqs::{EventQueues, FifoQueue};
use billhook_adapters::stripe::StripeClient;
use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::tenant::TenantKind;
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::proof::prover::StateProver;
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::tasks::definitions::TaskInvocation;
use billhook_core::time::Timestamp;
use serde::Serialize;

use self::cleanup::{CleanupSummary, CleanupTask};
use self::proof::{ProofSummary, ProofTask};
use self::reconcile::{ReconcileSummary, ReconcileTask};
use self::sweep::{SweepSummary, SweepTask};
use crate::scheduled_task::{ScheduledTask as _, TaskFailed};
use crate::stripe::{StripePayments, stripe_calls_per_second};

/// The summary that a run returns; as JSON it has the task's own fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TaskReport {
    Cleanup(CleanupSummary),
    Sweep(SweepSummary),
    Reconcile(ReconcileSummary),
    Proof(ProofSummary),
}

/// Runs the task that the invocation names.
pub async fn run_task(
    config: &CleanupConfig,
    aws: &AwsClients,
    invocation: TaskInvocation,
    deadline: Timestamp,
) -> Result<TaskReport, TaskFailed> {
    let clock = SystemClock;
    // Never missing: the configuration requires the table of every kind.
    let tenants_table = config.application_tables.get(TenantKind::SCHEMA.table);
    let jobs = JobsTable {
        client: aws.dynamodb().clone(),
        table: config.jobs_table.clone(),
        tenants_table: tenants_table.cloned().unwrap_or_default(),
        entities_table: config.entities_table.clone(),
    };
    let queue = EventQueues(
        config
            .queue_urls
            .clone()
            .map(|url| FifoQueue::new(aws.sqs().clone(), url)),
    );
    let seals = LedgerSeals::new(
        &SecretsManager::new(aws),
        config.seal_keys.clone(),
        config.state_seal.clone(),
        StateSealCheck::Required,
    );
    let ledger = |provider| {
        let tables = TableNames {
            events: config.events_tables.of(provider).clone(),
            entities: config.entities_table.clone(),
            application_tables: config.application_tables.clone(),
            rules: config.row_rules,
        };
        DynamoLedger::new(
            aws.dynamodb().clone(),
            tables,
            seals.clone(),
            clock,
            report_fallback_scan,
        )
    };
    match invocation {
        TaskInvocation::Cleanup(input) => {
            let cleanup = CleanupTask {
                ledger: ledger(ProviderId::Stripe),
                payments: open_stripe(config, aws).await?,
                jobs,
                clock,
                grace: config.failed_payment_age,
            };
            cleanup.run(&input, deadline).await.map(TaskReport::Cleanup)
        }
        TaskInvocation::Sweep(input) => {
            let sweep = SweepTask {
                ledgers: PerProvider::new(ledger),
                queue,
                jobs,
                clock,
            };
            sweep.run(&input, deadline).await.map(TaskReport::Sweep)
        }
        TaskInvocation::Reconcile(input) => {
            let reconcile = ReconcileTask {
                inbox: DynamoInbox {
                    client: aws.dynamodb().clone(),
                    tables: config.events_tables.clone(),
                    sealer: EventSealerCache::new(
                        config.sealer.clone(),
                        SecretsManager::new(aws),
                        clock,
                    ),
                },
                queue,
                jobs,
                stripe: open_stripe(config, aws).await?,
                clock,
            };
            reconcile
                .run(&input, deadline)
                .await
                .map(TaskReport::Reconcile)
        }
        TaskInvocation::Proof(input) => {
            let proof = ProofTask {
                prover: StateProver {
                    // Every ledger reads all states.
                    states: ledger(ProviderId::Stripe),
                    events: PerProvider::new(ledger),
                    rules: InterpretRules {
                        live_mode: config.environment.live,
                        order_ids: config.order_ids.clone(),
                    },
                },
                jobs,
                clock,
                sample_percent: config.proof_sample_percent,
            };
            proof.run(&input, deadline).await.map(TaskReport::Proof)
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
