//! One connected account floods: its deliveries beyond the limit are answered 429, and nobody else notices.
#![cfg(test)]

use std::time::Duration;

use billhook_core::ids::PerProvider;
use billhook_core::time::Timestamp;
use billhook_testkit::events::{from_account, intent_succeeded, letter};
use billhook_testkit::memory::{FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use billhook_testkit::sign::{sign_lob, sign_stripe};
use serde_json::{Value, json};
use webhook_ingress::WebhookIngress;
use webhook_ingress::account_limiter::AccountLimiter;
use webhook_ingress::proxy::ProxyResponse;

const NOW_S: i64 = 1_781_000_000;
const SECRET: &str = "whsec_test";
const LIMIT: u32 = 5;

type InMemory<'a> = WebhookIngress<&'a MemoryTables, MemoryQueue, KnownKeys, FixedClock>;

fn ingress(tables: &MemoryTables, at_s: i64) -> InMemory<'_> {
    WebhookIngress {
        inbox: tables,
        queue: MemoryQueue::default(),
        keys: PerProvider::new(|_| KnownKeys::one(SECRET)),
        clock: FixedClock::at(Timestamp::from_unix_s(at_s).unwrap()),
        tolerance: Duration::from_secs(300),
        counts_types: true,
        account_limiter: AccountLimiter::new(LIMIT),
    }
}

fn deliver(ingress: &InMemory<'_>, event: &Value, secret: &str) -> ProxyResponse {
    let body = event.to_string();
    let header = sign_stripe(body.as_bytes(), secret, NOW_S);
    let headers = json!({ "Stripe-Signature": header });
    send(ingress, "/webhooks/stripe", &headers, &body)
}

fn send(ingress: &InMemory<'_>, path: &str, headers: &Value, body: &str) -> ProxyResponse {
    let request =
        json!({ "resource": path, "httpMethod": "POST", "headers": headers, "body": body });
    let request = serde_json::from_value(request).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(ingress.handle(request))
}

fn event(id: &str) -> Value {
    intent_succeeded(id, NOW_S, "pi_1", json!({ "order_id": "ord_1" }), 4200)
}

fn of(account: &str, id: &str) -> Value {
    from_account(event(id), account)
}

fn stored(tables: &MemoryTables) -> usize {
    tables.events.lock().unwrap().len()
}

#[test]
fn a_flood_of_one_account_is_held_back_and_everybody_else_is_accepted() {
    let tables = MemoryTables::default();
    let ingress = ingress(&tables, NOW_S);
    for n in 0..100_u32 {
        let answer = deliver(&ingress, &of("acct_flood", &format!("evt_f{n}")), SECRET);
        let expected = if n < LIMIT { 200 } else { 429 };
        assert_eq!(answer.status_code, expected, "{answer:?}");
        if n >= LIMIT {
            assert_eq!(answer.headers["Retry-After"], "60");
            assert!(answer.body.contains("account_limited"), "{answer:?}");
        }
    }
    // What is held back is not stored: the provider sends it again.
    assert_eq!(stored(&tables), 5);
    let accepted = |event: Value| deliver(&ingress, &event, SECRET).status_code == 200;
    assert!(accepted(of("acct_victim", "evt_v")));
    for n in 0..20 {
        assert!(accepted(event(&format!("evt_platform{n}"))));
    }
    for n in 0..20 {
        let at = NOW_S.to_string();
        let letter = letter(
            &format!("evt_l{n}"),
            "2026-06-09T10:13:20.000Z",
            "ltr_1",
            "mailed",
        );
        let body = letter.to_string();
        let headers = json!({ "Lob-Signature": sign_lob(body.as_bytes(), SECRET, &at), "Lob-Signature-Timestamp": at });
        let answer = send(&ingress, "/webhooks/lob", &headers, &body);
        assert_eq!(answer.status_code, 200, "{answer:?}");
    }
    assert_eq!(stored(&tables), 46);
}

#[test]
fn a_forged_body_cannot_use_up_the_budget_of_another_account() {
    let tables = MemoryTables::default();
    let ingress = ingress(&tables, NOW_S);
    for n in 0..100 {
        let forged = of("acct_victim", &format!("evt_{n}"));
        assert_eq!(deliver(&ingress, &forged, "whsec_forged").status_code, 400);
    }
    let genuine = of("acct_victim", "evt_genuine");
    assert_eq!(deliver(&ingress, &genuine, SECRET).status_code, 200);
}

#[test]
fn what_was_held_back_is_accepted_when_the_provider_sends_it_again() {
    let tables = MemoryTables::default();
    let mut limiter = AccountLimiter::new(LIMIT);
    let mut waiting: Vec<Value> = (0..12).map(|n| of("acct_1", &format!("evt_{n}"))).collect();
    for (after_s, left) in [(0, 7), (1, 7), (60, 2), (120, 0)] {
        let ingress = InMemory {
            account_limiter: limiter,
            ..ingress(&tables, NOW_S + after_s)
        };
        waiting.retain(|event| deliver(&ingress, event, SECRET).status_code == 429);
        assert_eq!(
            (waiting.len(), stored(&tables)),
            (left, 12 - left),
            "{after_s}"
        );
        limiter = ingress.account_limiter;
    }
}
