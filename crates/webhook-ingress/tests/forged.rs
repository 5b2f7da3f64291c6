//! Forged requests, unsigned or wrongly signed, in every state of our side: they are refused, and whoever is on call hears
//! nothing of them. The exception is documented: while a secret cannot be read, nobody can tell a forgery in the provider's
//! format from a genuine delivery, so both are answered 503, and the provider's comes again.
#![cfg(test)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use billhook_adapters::{metrics, telemetry};
use billhook_core::ids::PerProvider;
use billhook_core::provider::signature::SigningKeys;
use billhook_core::time::Timestamp;
use billhook_testkit::memory::{Fault, FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use billhook_testkit::sign::{sign_lob, sign_stripe};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use webhook_ingress::proxy::ProxyRequest;
use webhook_ingress::{BODY_BYTES_MAX, WebhookIngress};

const NOW_S: i64 = 1_781_000_000;
const OURS: &str = "whsec_ours";
const FORGERS: &str = "whsec_forged";
const EVENT: &[u8] =
    br#"{"id":"evt_1","type":"payment_intent.succeeded","data":{"object":{"id":"pi_1"}}}"#;

fn now() -> Timestamp {
    Timestamp::from_unix_s(NOW_S).unwrap()
}

/// The states of our side, by name.
fn states() -> Vec<(&'static str, SigningKeys, bool, bool)> {
    let known = KnownKeys::one(OURS).cached;
    let unreadable = SigningKeys {
        unreadable: vec!["arn:secret cannot be read".to_owned()],
        ..SigningKeys::default()
    };
    let missing = SigningKeys {
        missing: vec!["arn:secret: signing_secret is not set".to_owned()],
        ..SigningKeys::default()
    };
    let one_unreadable = SigningKeys {
        unreadable: unreadable.unreadable.clone(),
        ..known.clone()
    };
    vec![
        ("all is well", known.clone(), false, false),
        ("no secret is stored", missing.clone(), false, false),
        (
            "the provider is not used",
            SigningKeys::default(),
            true,
            true,
        ),
        ("the secret is unreadable", unreadable.clone(), false, false),
        ("one secret is unreadable", one_unreadable, false, false),
        ("the table is missing", known.clone(), true, false),
        ("the queue is missing", known, false, true),
        ("no secret, table and queue", missing, true, true),
        ("nothing of ours can be reached", unreadable, true, true),
    ]
}

fn request(path: &str, headers: &Value, body: &[u8]) -> Value {
    json!({ "resource": path, "httpMethod": "POST", "headers": headers, "isBase64Encoded": true,
        "body": data_encoding::BASE64.encode(body) })
}

fn stripe(header: &str, body: &[u8]) -> Value {
    request(
        "/webhooks/stripe",
        &json!({ "Stripe-Signature": header }),
        body,
    )
}

/// Requests that no provider sends, whatever our secrets are.
fn impossible_requests() -> Vec<(&'static str, Value)> {
    let forged = |at: i64, body: &[u8]| stripe(&sign_stripe(body, FORGERS, at), body);
    let lob = |at: &str, signature: &str| {
        let headers = json!({ "Lob-Signature": signature, "Lob-Signature-Timestamp": at });
        request("/webhooks/lob", &headers, EVENT)
    };
    let old = (NOW_S - 301).to_string();
    let mut put = forged(NOW_S, EVENT);
    put["httpMethod"] = json!("PUT");
    let mut no_base64 = forged(NOW_S, EVENT);
    no_base64["body"] = json!("%%%");
    let mut two = forged(NOW_S, EVENT);
    two["multiValueHeaders"] = json!({ "stripe-signature": ["t=1,v1=00", "t=2,v1=00"] });
    vec![
        ("no header", request("/webhooks/stripe", &json!({}), EVENT)),
        ("no Lob header", request("/webhooks/lob", &json!({}), EVENT)),
        (
            "Lob's header alone",
            request("/webhooks/stripe", &json!({ "Lob-Signature": "00" }), EVENT),
        ),
        ("nonsense", stripe("nonsense", EVENT)),
        (
            "v0 only",
            stripe(&format!("t={NOW_S},v0={}", "a".repeat(64)), EVENT),
        ),
        (
            "no timestamp",
            stripe(&format!("v1={}", "a".repeat(64)), EVENT),
        ),
        (
            "timestamp in words",
            stripe(&format!("t=now,v1={}", "a".repeat(64)), EVENT),
        ),
        (
            "signature too short",
            stripe(&format!("t={NOW_S},v1=abc"), EVENT),
        ),
        (
            "signature in upper case",
            stripe(&format!("t={NOW_S},v1={}", "A".repeat(64)), EVENT),
        ),
        ("two headers", two),
        ("too old", forged(NOW_S - 301, EVENT)),
        ("too new", forged(NOW_S + 301, EVENT)),
        ("Lob's, too old", lob(&old, &sign_lob(EVENT, FORGERS, &old))),
        ("Lob's, no hex", lob(&NOW_S.to_string(), "zz")),
        ("no body", forged(NOW_S, b"")),
        ("no object", forged(NOW_S, b"hello")),
        ("half an object", forged(NOW_S, b"{\"id\":\"evt_1\"")),
        ("too large", forged(NOW_S, &vec![b'{'; BODY_BYTES_MAX + 1])),
        ("no base64", no_base64),
        ("another method", put),
        (
            "another path",
            request("/webhooks/nobody", &json!({}), EVENT),
        ),
        ("no path", json!({})),
    ]
}

/// Requests that a provider could have sent, had it another secret than those that we know.
fn possible_requests() -> Vec<(&'static str, Value)> {
    let at = NOW_S.to_string();
    let lob =
        json!({ "Lob-Signature": sign_lob(EVENT, FORGERS, &at), "Lob-Signature-Timestamp": at });
    vec![
        (
            "Stripe's",
            stripe(&sign_stripe(EVENT, FORGERS, NOW_S), EVENT),
        ),
        ("Lob's", request("/webhooks/lob", &lob, EVENT)),
    ]
}

/// The status, and the lines that were written.
fn answer(
    (keys, no_table, no_queue): (&SigningKeys, bool, bool),
    request: &Value,
) -> (u16, Vec<Value>) {
    let tables = MemoryTables::default();
    let queue = MemoryQueue::default();
    if no_table {
        tables.writes.then([Some(Fault::Before); 9]);
    }
    if no_queue {
        queue.plan.then([Some(Fault::Before); 9]);
    }
    let ingress = WebhookIngress {
        inbox: &tables,
        queue,
        keys: PerProvider::new(|_| KnownKeys {
            cached: keys.clone(),
            fresh: Some(keys.clone()),
        }),
        clock: FixedClock::at(now()),
        tolerance: Duration::from_secs(300),
        counts_types: true,
        account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
    };
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let write = move |line: &[u8]| sink.lock().unwrap().extend_from_slice(line);
    let stage = metrics::MetricEnvironment::new("billhook", "test");
    let lines = telemetry::build_subscriber(
        "webhook-ingress",
        stage.clone(),
        LevelFilter::TRACE,
        FixedClock::at(now()),
        write,
    );
    let request: ProxyRequest = serde_json::from_value(request.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let response =
        tracing::subscriber::with_default(lines, || runtime.block_on(ingress.handle(request)));
    let mut text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
    text.push_str(&metrics::drain_lines(&stage, now()));
    assert!(
        tables.events.lock().unwrap().is_empty(),
        "something was stored"
    );
    assert_eq!(
        *ingress.queue.calls.lock().unwrap(),
        0,
        "something was sent"
    );
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (response.status_code, lines.collect())
}

#[test]
fn a_forged_request_is_refused_and_pages_nobody_whatever_is_missing_on_our_side() {
    let mut wrong = Vec::new();
    for (state, keys, no_table, no_queue) in states() {
        let could_match = !keys.unreadable.is_empty();
        let impossible = impossible_requests().into_iter();
        let impossible = impossible.map(|case| (case, false));
        let possible = possible_requests().into_iter();
        let possible = possible.map(|case| (case, could_match));
        for ((forgery, request), is_left_open) in impossible.chain(possible) {
            let (status, lines) = answer((&keys, no_table, no_queue), &request);
            let is_right = match is_left_open {
                true => status == 503,
                false => (400..500).contains(&status),
            };
            if !is_right {
                wrong.push(format!("{forgery}, {state}: answered {status}"));
            }
            for line in &lines {
                if line["level"] == "ERROR" {
                    wrong.push(format!("{forgery}, {state}: an ERROR line"));
                }
                let counted = metrics::ALL.iter().filter(|of| line.get(of.name).is_some());
                for alarmed in counted.filter(|of| !of.alarm_names().is_empty()) {
                    wrong.push(format!("{forgery}, {state}: {} has an alarm", alarmed.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What we owe whoever is on call: a delivery that is proven and cannot be stored.
#[test]
fn a_genuine_delivery_that_we_cannot_store_is_an_error_that_counts() {
    let genuine = stripe(&sign_stripe(EVENT, OURS, NOW_S), EVENT);
    let keys = KnownKeys::one(OURS).cached;
    let (status, lines) = answer((&keys, true, false), &genuine);
    assert_eq!(status, 503);
    let is_error = |line: &&Value| line["level"] == "ERROR" && line["WebhookSuccess"] == 0;
    assert_eq!(lines.iter().filter(is_error).count(), 1, "{lines:?}");
}
