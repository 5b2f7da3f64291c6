//! What follows of itself when a provider is added to `ProviderId::ALL`: here `Parcel`, which the feature
//! `third-provider` adds. `make third-provider` runs this, and shows which tests then fail until they are told.

#![cfg(test)]

use billhook_core::provider::interpret::InterpretRules;
use std::collections::BTreeSet;
use std::time::Duration;

use billhook_adapters::config::{CleanupConfig, EnvLookup, IngressConfig};
use billhook_adapters::metrics;
use billhook_core::entity::EntityKey;
use billhook_core::ids::{EventId, PerProvider, ProviderId, StatementId};
use billhook_core::outcome::EventOutcome;
use billhook_core::tasks::definitions::SweepInput;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{ReceivedMessage, Worker};
use billhook_testkit::memory::{self, FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use cleanup_failed_payments::ScheduledTask as _;
use cleanup_failed_payments::tasks::sweep::SweepTask;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use webhook_ingress::WebhookIngress;
use webhook_ingress::proxy::{ProxyRequest, ProxyResponse};

const NOW_S: i64 = 1_781_000_000;
const EVENT: &str = "0198f000-0000-4000-8000-000000000001";

fn now() -> Timestamp {
    Timestamp::from_unix_s(NOW_S).unwrap()
}

fn body() -> Vec<u8> {
    let event = json!({ "data": {
        "id": EVENT, "event_type": "parcel.mailed", "occurred_at": "2026-06-09T10:13:00Z",
        "parcel_id": "prc_1", "statement_id": "st_1",
    } });
    event.to_string().into_bytes()
}

fn key_pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn signed_by(pair: &Ed25519KeyPair, body: &[u8]) -> ProxyRequest {
    let signed = [format!("{NOW_S}|").as_bytes(), body].concat();
    let signature = data_encoding::BASE64.encode(pair.sign(&signed).as_ref());
    let event = json!({
        "resource": "/webhooks/parcel", "httpMethod": "POST", "isBase64Encoded": false,
        "headers": { "Parcel-Signature-Ed25519": signature, "PARCEL-TIMESTAMP": NOW_S.to_string() },
        "body": String::from_utf8(body.to_vec()).unwrap(),
    });
    serde_json::from_value(event).unwrap()
}

async fn deliver(
    tables: &MemoryTables,
    queue: &MemoryQueue,
    request: ProxyRequest,
) -> ProxyResponse {
    let public = data_encoding::BASE64.encode(key_pair(1).public_key().as_ref());
    let ingress = WebhookIngress {
        inbox: tables,
        queue,
        keys: PerProvider::new(|provider| match provider {
            ProviderId::Parcel => KnownKeys::one(&public),
            ProviderId::Stripe | ProviderId::Lob => KnownKeys::one("whsec_other"),
        }),
        clock: FixedClock::at(now()),
        tolerance: Duration::from_secs(300),
        counts_types: true,
        account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
    };
    ingress.handle(request).await
}

#[tokio::test]
async fn ingress_accepts_what_the_provider_signed_and_nothing_else() {
    let (tables, queue) = (MemoryTables::default(), MemoryQueue::default());
    let changed = String::from_utf8(body()).unwrap().replace("prc_1", "prc_2");
    let mut forged = signed_by(&key_pair(1), &body());
    forged.body = Some(changed);
    for refused in [signed_by(&key_pair(2), &body()), forged] {
        let answer = deliver(&tables, &queue, refused).await;
        assert_eq!(answer.status_code, 400, "{}", answer.body);
        assert!(tables.events.lock().unwrap().is_empty());
    }
    let accepted = deliver(&tables, &queue, signed_by(&key_pair(1), &body())).await;
    assert_eq!(accepted.status_code, 200, "{}", accepted.body);
    let answer: Value = serde_json::from_str(&accepted.body).unwrap();
    assert_eq!(answer["event_id"], EVENT);
    let sent = queue.sent.lock().unwrap();
    let [(provider, _, _, message)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(*provider, ProviderId::Parcel);
    assert_eq!(
        serde_json::from_str::<Value>(message).unwrap()["source"],
        "parcel"
    );
}

#[tokio::test]
async fn its_worker_applies_the_event_and_takes_no_other_providers_ids() {
    let (tables, queue) = (MemoryTables::default(), MemoryQueue::default());
    let key = EntityKey::Statement(StatementId::parse("st_1").unwrap());
    let statement = memory::entity(&key);
    tables.entities.lock().unwrap().insert(key, statement);
    deliver(&tables, &queue, signed_by(&key_pair(1), &body())).await;
    let worker = Worker {
        provider: ProviderId::Parcel,
        rules: InterpretRules::default(),
        ledger: &tables,
        clock: FixedClock::at(now()),
    };
    let messages = [EVENT, "evt_1"].map(|id| ReceivedMessage {
        message_id: format!("m-{id}"),
        body: json!({ "event_id": id }).to_string(),
        receive_count: 1,
        is_last_receive: false,
    });
    let deadline = now().after(Duration::from_secs(10));
    let report = worker
        .process_batch(&messages, deadline, std::future::pending())
        .await;
    let done = report
        .messages
        .iter()
        .filter(|message| message.result.is_ok());
    assert_eq!(done.count(), 1);
    let events = tables.events.lock().unwrap();
    let row = &events[&EventId::parse(EVENT).unwrap()];
    assert_eq!(row.stored.outcome, EventOutcome::Processed);
}

#[tokio::test]
async fn the_sweep_retries_its_events_and_counts_those_that_are_stuck() {
    let (tables, queue) = (
        PerProvider::<MemoryTables>::default(),
        MemoryQueue::default(),
    );
    deliver(
        tables.of(ProviderId::Parcel),
        &queue,
        signed_by(&key_pair(1), &body()),
    )
    .await;
    queue.sent.lock().unwrap().clear();
    let later = now().after(Duration::from_secs(2 * 60 * 60));
    let clock = FixedClock::at(later);
    let sweep = SweepTask {
        ledgers: PerProvider::new(|provider| tables.of(provider)),
        queue: &queue,
        jobs: tables.of(ProviderId::Stripe),
        clock: &clock,
    };
    let deadline = later.after(Duration::from_secs(900));
    let summary = sweep.run(&SweepInput {}, deadline).await.unwrap();
    // It counts as stuck what an earlier run found.
    assert_eq!((summary.stuck, summary.sent), (0, 1));
    let again = sweep.run(&SweepInput {}, deadline).await.unwrap();
    assert_eq!((again.stuck, again.sent), (1, 0));
    let sent = queue.sent.lock().unwrap();
    assert_eq!(sent[0].0, ProviderId::Parcel);
}

#[test]
fn functions_refuse_to_start_without_its_table_and_queue() {
    let faults = [
        IngressConfig::from_env(&EnvLookup(&|_| None))
            .unwrap_err()
            .to_string(),
        CleanupConfig::from_env(&EnvLookup(&|_| None))
            .unwrap_err()
            .to_string(),
    ];
    for faults in faults {
        for missing in [
            "PARCEL_EVENTS_TABLE is missing",
            "PARCEL_EVENTS_QUEUE_URL is missing",
        ] {
            assert!(faults.contains(missing), "{faults}");
        }
    }
}

#[test]
fn the_metrics_that_every_provider_has_ask_for_its_alarms() {
    let names = metrics::ALL.iter().flat_map(|metric| metric.alarm_names());
    let own = names.filter_map(|name| Some(name.strip_prefix("parcel-")?.to_owned()));
    let expected = [
        "index-fallback",
        "no-deliveries",
        "none-accepted",
        "overdue",
        "parked",
        "refused",
        "row-trouble",
        "secret-unreadable",
        "stuck-events",
        "tampered",
        "worker-failures",
    ];
    assert_eq!(
        own.collect::<BTreeSet<_>>(),
        expected.map(str::to_owned).into()
    );
}
