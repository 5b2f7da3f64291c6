//! Golden tests of log lines and metrics: everything that a function writes about a delivery, line by line. No emulator
//! reads metric lines, so `billhook_testkit::emf` validates them here.
#![cfg(test)]

use billhook_core::provider::interpret::InterpretRules;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lambda_events::event::sqs::SqsEvent;
use billhook_adapters::{batch, metrics, telemetry};
use billhook_core::entity::EntityKey;
use billhook_core::entity::key::PaymentKey;
use billhook_core::ids::{OrderId, PerProvider, ProviderId};
use billhook_core::intake::message::PaymentPointer;
use billhook_core::intake::ports::SendMessage as _;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{RECEIVES_MAX, Worker};
use billhook_testkit::emf;
use billhook_testkit::events::{charge_refunded, intent_succeeded, letter};
use billhook_testkit::memory::{self, Fault, FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use billhook_testkit::sign::{sign_lob, sign_stripe};
use lambda_runtime::{Context, LambdaEvent};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use webhook_ingress::WebhookIngress;

const NOW_S: i64 = 1_781_000_000;
const SECRET: &str = "whsec_golden";

/// One stage in memory, and everything that its functions wrote.
struct Stage {
    ingress: WebhookIngress<&'static MemoryTables, MemoryQueue, KnownKeys, FixedClock>,
    tables: &'static MemoryTables,
    seen: Arc<Mutex<Vec<u8>>>,
}

fn now() -> Timestamp {
    Timestamp::from_unix_s(NOW_S).unwrap()
}

impl Stage {
    fn new() -> Self {
        let tables: &MemoryTables = Box::leak(Box::default());
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let order = memory::entity(&key);
        tables.entities.lock().unwrap().insert(key, order);
        Self {
            ingress: WebhookIngress {
                inbox: tables,
                queue: MemoryQueue::default(),
                keys: PerProvider::new(|_| KnownKeys::one(SECRET)),
                clock: FixedClock::at(now()),
                tolerance: Duration::from_secs(300),
                counts_types: true,
                account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
            },
            tables,
            seen: Arc::default(),
        }
    }

    /// Runs one invocation of a function, as `lambda::serve` does, and keeps what it writes.
    fn invocation<T>(&self, function: &'static str, work: impl Future<Output = T>) -> T {
        let seen = Arc::clone(&self.seen);
        let write = move |line: &[u8]| seen.lock().unwrap().extend_from_slice(line);
        let stage = metrics::MetricEnvironment::new("billhook", "test");
        let level = LevelFilter::INFO;
        let clock = FixedClock::at(now());
        let lines = telemetry::build_subscriber(function, stage.clone(), level, clock, write);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let done = tracing::subscriber::with_default(lines, || runtime.block_on(work));
        let metrics = metrics::drain_lines(&stage, now());
        self.seen
            .lock()
            .unwrap()
            .extend_from_slice(metrics.as_bytes());
        done
    }

    /// Delivers an event of a provider; the status of the answer.
    fn deliver(&self, provider: ProviderId, secret: &str, event: &Value) -> u16 {
        let body = event.to_string();
        let at = NOW_S.to_string();
        let headers = match provider {
            ProviderId::Stripe => {
                json!({ "Stripe-Signature": sign_stripe(body.as_bytes(), secret, NOW_S) })
            }
            ProviderId::Lob => json!({
                "Lob-Signature": sign_lob(body.as_bytes(), secret, &at),
                "Lob-Signature-Timestamp": at,
            }),
        };
        let request = json!({ "resource": format!("/webhooks/{provider}"), "httpMethod": "POST", "headers": headers, "body": body });
        let request = serde_json::from_value(request).unwrap();
        self.invocation("webhook-ingress", self.ingress.handle(request))
            .status_code
    }

    /// Lets a worker work off what is queued, 1.5 s later, at its so many-th receive.
    fn process_batch(&self, provider: ProviderId, receive_count: u32) {
        let sent = std::mem::take(&mut *self.ingress.queue.sent.lock().unwrap());
        let records: Vec<Value> = sent
            .iter()
            .enumerate()
            .map(|(n, (.., body))| {
                let attributes = json!({ "ApproximateReceiveCount": receive_count.to_string() });
                json!({ "messageId": format!("m-{n}"), "body": body, "attributes": attributes })
            })
            .collect();
        let batch: SqsEvent = serde_json::from_value(json!({ "Records": records })).unwrap();
        let mut context = Context::default();
        context.deadline = u64::MAX;
        let worker = Worker {
            provider,
            rules: InterpretRules::default(),
            ledger: self.tables,
            clock: FixedClock::at(now().after(Duration::from_millis(1500))),
        };
        let (function, settling) = match provider {
            ProviderId::Stripe => (
                "stripe-worker",
                batch::handle_batch(&worker, RECEIVES_MAX, LambdaEvent::new(batch, context)),
            ),
            ProviderId::Lob => (
                "lob-worker",
                batch::handle_batch(&worker, RECEIVES_MAX, LambdaEvent::new(batch, context)),
            ),
        };
        self.invocation(function, settling).unwrap();
    }

    /// Every line that was written. Each is a log line with the contract's fields, metrics as they are listed, or both.
    fn seen(&self) -> String {
        let text = String::from_utf8(self.seen.lock().unwrap().clone()).unwrap();
        for line in text.lines() {
            let parsed: Value = serde_json::from_str(line).unwrap();
            let counted = parsed.get("_aws").is_some();
            if !counted || parsed.get("message").is_some() {
                for field in ["timestamp", "level", "message", "function"] {
                    assert!(parsed[field].is_string(), "{field} of {line}");
                }
                let message = parsed["message"].as_str().unwrap();
                // A recheck belongs to no delivery: its line is found by its payment.
                let expected = match message.starts_with("payment_recheck") {
                    true => parsed["entity"].as_str().unwrap().to_owned(),
                    false => format!(
                        "correlation_id={}",
                        parsed["correlation_id"].as_str().unwrap()
                    ),
                };
                assert!(message.contains(&expected), "{line}");
            }
            if !counted {
                continue;
            }
            for (namespace, name, unit, sets) in emf::check(line).unwrap() {
                let metric = metrics::ALL.iter().find(|metric| metric.name == name);
                let metric = metric.unwrap_or_else(|| panic!("{name} is not listed"));
                assert_eq!(
                    (namespace.as_str(), unit.as_str()),
                    ("billhook/Webhooks", metric.unit.as_str())
                );
                let listed: Vec<BTreeSet<String>> = metric
                    .dimensions
                    .sets()
                    .iter()
                    .map(|set| set.iter().map(|name| (*name).to_owned()).collect())
                    .collect();
                assert_eq!(sets, listed, "{name}");
            }
        }
        text
    }
}

fn paid(order: &str) -> Value {
    let metadata = json!({ "order_id": order, "tenant_id": "ten_hint" });
    intent_succeeded("evt_1", NOW_S, "pi_1", metadata, 4200)
}

#[test]
fn a_delivery_and_its_duplicate() {
    let stage = Stage::new();
    assert_eq!(
        stage.deliver(ProviderId::Stripe, SECRET, &paid("ord_1")),
        200
    );
    stage.process_batch(ProviderId::Stripe, 1);
    assert_eq!(
        stage.deliver(ProviderId::Stripe, SECRET, &paid("ord_1")),
        200
    );
    insta::assert_snapshot!(stage.seen());
}

#[test]
fn a_bad_signature() {
    let stage = Stage::new();
    assert_eq!(
        stage.deliver(ProviderId::Stripe, "whsec_forged", &paid("ord_1")),
        400
    );
    insta::assert_snapshot!(stage.seen());
}

#[test]
fn a_delivery_before_the_secret_is_stored() {
    let mut stage = Stage::new();
    stage.ingress.keys = PerProvider::new(|_| KnownKeys::default());
    assert_eq!(
        stage.deliver(ProviderId::Stripe, SECRET, &paid("ord_1")),
        400
    );
    insta::assert_snapshot!(stage.seen());
}

/// The alarms `refused` and `none-accepted` read `WebhookSuccess`.
#[test]
fn what_no_secret_of_ours_signed_is_no_delivery_that_was_not_accepted() {
    let stage = Stage::new();
    let deliver = |headers: Value| {
        let request = json!({ "resource": "/webhooks/stripe", "httpMethod": "POST", "headers": headers, "body": "{}" });
        let request = serde_json::from_value(request).unwrap();
        let answered = stage.invocation("webhook-ingress", stage.ingress.handle(request));
        assert_eq!(answered.status_code, 400);
        std::mem::take(&mut *stage.seen.lock().unwrap())
    };
    let counted = |headers: Value| {
        let seen = String::from_utf8(deliver(headers)).unwrap();
        assert!(seen.contains(r#""WebhookInvalidSignature":1"#), "{seen}");
        seen.contains(r#""WebhookSuccess":0"#)
    };
    assert!(!counted(json!({})));
    assert!(!counted(json!({ "Stripe-Signature": "nonsense" })));
    let forged = sign_stripe(b"{}", "whsec_forged", NOW_S);
    assert!(!counted(json!({ "Stripe-Signature": forged })));
    let late = sign_stripe(b"{}", SECRET, NOW_S - 301);
    assert!(counted(json!({ "Stripe-Signature": late })));
}

#[test]
fn a_delivery_that_we_could_not_take_in() {
    let stage = Stage::new();
    stage.ingress.queue.plan.then([Some(Fault::Before)]);
    assert_eq!(
        stage.deliver(ProviderId::Stripe, SECRET, &paid("ord_1")),
        503
    );
    insta::assert_snapshot!(stage.seen());
}

#[test]
fn a_parked_event_that_waits_and_one_that_wants_a_person() {
    let stage = Stage::new();
    let letter = letter("evt_2", "2026-06-09T10:13:20.000Z", "ltr_1", "mailed");
    assert_eq!(stage.deliver(ProviderId::Lob, SECRET, &letter), 200);
    stage.process_batch(ProviderId::Lob, 1);
    let mut live = paid("ord_1");
    live["livemode"] = json!(true);
    assert_eq!(stage.deliver(ProviderId::Stripe, SECRET, &live), 200);
    stage.process_batch(ProviderId::Stripe, 1);
    insta::assert_snapshot!(stage.seen());
}

#[test]
fn a_recheck_says_which_payment_it_is_about_and_is_no_failed_event() {
    let stage = Stage::new();
    let refund = charge_refunded("evt_1", NOW_S, "ch_1", Some("pi_1"), 100);
    assert_eq!(stage.deliver(ProviderId::Stripe, SECRET, &refund), 200);
    stage.process_batch(ProviderId::Stripe, 1);
    for (receive_count, failures) in [(1, 0), (2, 5), (3, 5)] {
        stage
            .tables
            .writes
            .then(vec![Some(Fault::Before); failures]);
        let payment = PaymentKey::parse("payment#platform#pi_1").unwrap();
        let queue = &stage.ingress.queue;
        let group = PaymentPointer::group(&payment);
        let body = PaymentPointer::message_for(&payment);
        let sent = queue.send(ProviderId::Stripe, &group, "recheck", &body);
        stage.invocation("cleanup-failed-payments", sent).unwrap();
        stage.process_batch(ProviderId::Stripe, receive_count);
    }
    insta::assert_snapshot!(stage.seen());
}

#[test]
fn a_failed_event() {
    let stage = Stage::new();
    assert_eq!(
        stage.deliver(ProviderId::Stripe, SECRET, &paid("ord_1")),
        200
    );
    stage.tables.writes.then([Some(Fault::Before); 5]);
    stage.process_batch(ProviderId::Stripe, 3);
    insta::assert_snapshot!(stage.seen());
}
