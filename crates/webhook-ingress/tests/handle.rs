//! The HTTP contract, through `handle` as whole proxy events, with a clock that stands where the test says.
#![cfg(test)]

use std::time::Duration;

use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::outcome::EventOutcome;
use billhook_core::provider::read_envelope;
use billhook_core::provider::signature::{KeyScope, SigningKey, SigningKeys};
use billhook_core::time::Timestamp;
use billhook_testkit::events::{intent_succeeded, verified};
use billhook_testkit::memory::{Fault, FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use proptest::prelude::*;
use serde_json::{Value, json};
use webhook_ingress::proxy::{ProxyRequest, ProxyResponse};
use webhook_ingress::{BODY_BYTES_MAX, WebhookIngress};

const NOW_S: i64 = 1_781_000_000;
const SECRET: &str = "whsec_test";

type InMemory<'a> = WebhookIngress<&'a MemoryTables, MemoryQueue, KnownKeys, FixedClock>;

fn at<'a>(tables: &'a MemoryTables, now: Timestamp, secret: &str) -> InMemory<'a> {
    let keys = |secret: &str| match secret.trim().is_empty() {
        true => KnownKeys::default(),
        false => KnownKeys::one(secret),
    };
    WebhookIngress {
        inbox: tables,
        queue: MemoryQueue::default(),
        keys: PerProvider::new(|_| keys(secret)),
        clock: FixedClock::at(now),
        tolerance: Duration::from_secs(300),
        counts_types: true,
        account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
    }
}

fn ingress(tables: &MemoryTables) -> InMemory<'_> {
    at(tables, Timestamp::from_unix_s(NOW_S).unwrap(), SECRET)
}

fn signature(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(&[timestamp.as_bytes(), b".", body].concat());
    HEXLOWER.encode(&mac.finalize().into_bytes())
}

/// As API Gateway sends it with `BinaryMediaTypes: */*`.
fn request(path: &str, headers: &[(&str, &str)], body: &[u8]) -> ProxyRequest {
    let headers: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let event = json!({
        "resource": path,
        "path": format!("/base{path}"),
        "httpMethod": "POST",
        "headers": headers,
        "multiValueHeaders": headers.iter().map(|(k, v)| (k.clone(), json!([v]))).collect::<serde_json::Map<_, _>>(),
        "requestContext": { "resourcePath": path, "stage": "v1", "identity": { "sourceIp": "127.0.0.1" } },
        "queryStringParameters": null,
        "body": BASE64.encode(body),
        "isBase64Encoded": true,
    });
    serde_json::from_value(event).unwrap()
}

fn signed(body: &[u8]) -> ProxyRequest {
    let header = format!(
        "t={NOW_S},v1={}",
        signature(SECRET, &NOW_S.to_string(), body)
    );
    request("/webhooks/stripe", &[("Stripe-Signature", &header)], body)
}

fn paid() -> Vec<u8> {
    intent_succeeded("evt_1", NOW_S, "pi_1", json!({ "order_id": "ord_1" }), 4200)
        .to_string()
        .into_bytes()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn body(response: &ProxyResponse) -> Value {
    serde_json::from_str(&response.body).unwrap()
}

#[track_caller]
fn check_refused(response: &ProxyResponse, status: u16, code: &str) {
    assert_eq!(response.status_code, status, "{response:?}");
    let body = body(response);
    assert_eq!(body["error"], code);
    assert_eq!(
        body["correlation_id"],
        json!(response.headers["X-Correlation-ID"])
    );
    assert!(!body["message"].as_str().unwrap().is_empty());
}

fn calls(tables: &MemoryTables, ingress: &InMemory<'_>) -> usize {
    tables.calls.lock().unwrap().values().sum::<usize>() + *ingress.queue.calls.lock().unwrap()
}

#[test]
fn an_accepted_delivery_is_kept_and_queued_in_two_calls() {
    let tables = MemoryTables::default();
    let ingress = ingress(&tables);
    let response = run(ingress.handle(signed(&paid())));
    assert_eq!(response.status_code, 200);
    let correlation_id = response.headers["X-Correlation-ID"].clone();
    assert_eq!(
        body(&response),
        json!({ "received": true, "duplicate": false, "event_id": "evt_1", "correlation_id": correlation_id })
    );
    assert_eq!(calls(&tables, &ingress), 2);
    let sent = ingress.queue.sent.lock().unwrap();
    let (provider, group, deduplication_id, message) = &sent[0];
    assert_eq!(
        (*provider, deduplication_id.as_str()),
        (ProviderId::Stripe, "evt_1")
    );
    assert_eq!(group.len(), 64);
    assert_eq!(
        serde_json::from_str::<Value>(message).unwrap(),
        json!({ "source": "stripe", "event_id": "evt_1", "event_type": "payment_intent.succeeded", "correlation_id": correlation_id })
    );
    let events = tables.events.lock().unwrap();
    assert_eq!(events.values().next().unwrap().payload, paid());
}

#[test]
fn a_repeat_is_answered_by_what_the_row_says() {
    for (processed, outcome, duplicate, calls_made, sent_again) in [
        (true, EventOutcome::Processed, true, 1, false),
        (true, EventOutcome::Ignored, true, 1, false),
        // The message may never have arrived: the same one, which the queue swallows if it did.
        (false, EventOutcome::Pending, false, 2, false),
        (false, EventOutcome::Parked, false, 2, true),
        (false, EventOutcome::Failed, false, 2, true),
        (false, EventOutcome::Processed, false, 2, true),
    ] {
        let tables = MemoryTables::default();
        let ingress = ingress(&tables);
        run(ingress.handle(signed(&paid())));
        for row in tables.events.lock().unwrap().values_mut() {
            row.stored.processed = processed;
            row.stored.outcome = outcome;
        }
        let before = calls(&tables, &ingress);
        let response = run(ingress.handle(signed(&paid())));
        assert_eq!(response.status_code, 200);
        assert_eq!(body(&response)["duplicate"], json!(duplicate), "{outcome}");
        assert_eq!(calls(&tables, &ingress) - before, calls_made, "{outcome}");
        let sent = ingress.queue.sent.lock().unwrap();
        assert_eq!(sent.len(), if sent_again { 2 } else { 1 }, "{outcome}");
        assert!(
            sent.iter()
                .skip(1)
                .all(|message| message.2.starts_with("evt_1.r."))
        );
    }
}

#[test]
fn a_write_repeated_by_the_sdk_is_not_taken_for_a_duplicate() {
    let tables = MemoryTables::default();
    tables.writes.then([Some(Fault::Repeated)]);
    let ingress = ingress(&tables);
    let response = run(ingress.handle(signed(&paid())));
    assert_eq!(body(&response)["duplicate"], json!(false));
    assert_eq!(ingress.queue.sent.lock().unwrap().len(), 1);
}

#[test]
fn what_is_ours_to_answer_for_is_503_and_the_next_delivery_heals_it() {
    for (store, queue) in [
        (Some(Fault::Before), None),
        (Some(Fault::AnswerLost), None),
        (None, Some(Fault::Before)),
        (None, Some(Fault::AnswerLost)),
    ] {
        let tables = MemoryTables::default();
        let ingress = ingress(&tables);
        tables.writes.then([store]);
        ingress.queue.plan.then(queue.map(Some));
        let response = run(ingress.handle(signed(&paid())));
        check_refused(&response, 503, "unavailable");
        assert_eq!(response.headers["Retry-After"], "5");
        let response = run(ingress.handle(signed(&paid())));
        assert_eq!(
            (response.status_code, &body(&response)["duplicate"]),
            (200, &json!(false))
        );
        assert_eq!(
            ingress.queue.sent.lock().unwrap().len(),
            1,
            "{store:?} {queue:?}"
        );
    }
}

#[test]
fn an_unreadable_secret_is_our_fault_where_it_might_have_matched_and_one_never_stored_is_not() {
    let no_keys = KnownKeys::default();
    let missing = |mut keys: KnownKeys| {
        let not_set = "arn:…:StripePlatformWebhook: signing_secret is not set";
        keys.cached.missing.push(not_set.to_owned());
        keys
    };
    let unreadable = |mut keys: KnownKeys| {
        keys.cached
            .unreadable
            .push("arn:…:StripeWebhook is out of reach".to_owned());
        keys
    };
    for (keys, expected) in [
        (no_keys, 400),
        (missing(KnownKeys::default()), 400),
        (missing(KnownKeys::one("whsec_other")), 400),
        (missing(KnownKeys::one(SECRET)), 200),
        (unreadable(missing(KnownKeys::default())), 503),
        (unreadable(KnownKeys::one("whsec_other")), 503),
        (unreadable(KnownKeys::one(SECRET)), 200),
        (KnownKeys::one("whsec_other"), 400),
    ] {
        let tables = MemoryTables::default();
        let ingress = WebhookIngress {
            keys: PerProvider::new(|_| keys.clone()),
            ..ingress(&tables)
        };
        assert_eq!(run(ingress.handle(signed(&paid()))).status_code, expected);
    }
}

#[test]
fn a_mismatch_looks_for_a_newer_secret_once() {
    let tables = MemoryTables::default();
    let keys = |_| KnownKeys {
        fresh: Some(SigningKeys {
            keys: SigningKey::from_value("new", SECRET, KeyScope::AllEvents)
                .into_iter()
                .collect(),
            ..SigningKeys::default()
        }),
        ..KnownKeys::one("whsec_old")
    };
    let ingress = WebhookIngress {
        keys: PerProvider::new(keys),
        ..ingress(&tables)
    };
    assert_eq!(run(ingress.handle(signed(&paid()))).status_code, 200);
}

#[test]
fn all_failures_of_proof_get_one_answer_and_leave_nothing() {
    let good = format!(
        "t={NOW_S},v1={}",
        signature(SECRET, &NOW_S.to_string(), &paid())
    );
    let old = format!(
        "t={0},v1={1}",
        NOW_S - 301,
        signature(SECRET, &(NOW_S - 301).to_string(), &paid())
    );
    let new = format!(
        "t={0},v1={1}",
        NOW_S + 301,
        signature(SECRET, &(NOW_S + 301).to_string(), &paid())
    );
    let tables = MemoryTables::default();
    let ingress = ingress(&tables);
    let mut bodies = std::collections::BTreeSet::new();
    for headers in [
        vec![],
        vec![("Stripe-Signature", "nonsense")],
        vec![("Stripe-Signature", &*old)],
        vec![("Stripe-Signature", &*new)],
        vec![
            ("Stripe-Signature", &*good),
            ("stripe-signature", "t=1,v1=00"),
        ],
        vec![("Lob-Signature", &*good)],
    ] {
        let response = run(ingress.handle(request("/webhooks/stripe", &headers, &paid())));
        check_refused(&response, 400, "signature_invalid");
        let mut body = body(&response);
        body["correlation_id"] = Value::Null;
        bodies.insert((
            body.to_string(),
            response.headers.keys().copied().collect::<Vec<_>>(),
        ));
    }
    assert_eq!(bodies.len(), 1);
    assert_eq!(calls(&tables, &ingress), 0);
}

/// Whoever has the secret of one of Stripe's endpoints forges no event of the other kind.
#[test]
fn the_secret_of_one_kind_of_endpoint_proves_no_event_of_the_other() {
    let event = |id: &str, account: Value| {
        let mut event = intent_succeeded(id, NOW_S, "pi_1", json!({"order_id": "o"}), 4200);
        event["account"] = account;
        event.to_string().into_bytes()
    };
    let bodies = [
        (event("evt_platform", Value::Null), KeyScope::Platform),
        (
            event("evt_account", json!("acct_a")),
            KeyScope::ConnectedAccounts,
        ),
    ];
    for (body, proven_by) in &bodies {
        for scope in [
            KeyScope::AllEvents,
            KeyScope::Platform,
            KeyScope::ConnectedAccounts,
        ] {
            let tables = MemoryTables::default();
            let mut ingress = ingress(&tables);
            ingress.keys = PerProvider::new(|_| {
                let mut known = KnownKeys::one(SECRET);
                known.cached.keys[0].scope = scope;
                known
            });
            let answer = run(ingress.handle(signed(body)));
            if scope == KeyScope::AllEvents || scope == *proven_by {
                assert_eq!(answer.status_code, 200, "{scope:?} {answer:?}");
            } else {
                check_refused(&answer, 400, "signature_invalid");
                assert_eq!(calls(&tables, &ingress), 0, "{scope:?}");
            }
        }
    }
}

#[test]
fn header_names_are_matched_in_any_case_and_in_either_map() {
    let good = format!(
        "t={NOW_S},v1={}",
        signature(SECRET, &NOW_S.to_string(), &paid())
    );
    for name in ["stripe-signature", "STRIPE-SIGNATURE", "Stripe-Signature"] {
        let tables = MemoryTables::default();
        let request = request("/webhooks/stripe", &[(name, &good)], &paid());
        for request in [
            ProxyRequest {
                headers: None,
                ..request.clone()
            },
            ProxyRequest {
                multi_value_headers: None,
                ..request.clone()
            },
            request,
        ] {
            assert_eq!(
                run(ingress(&tables).handle(request)).status_code,
                200,
                "{name}"
            );
        }
    }
}

#[test]
fn paths_methods_and_sizes_are_answered_as_promised() {
    let tables = MemoryTables::default();
    let ingress = ingress(&tables);
    let get = |path: &str, method: &str| ProxyRequest {
        http_method: Some(method.to_owned()),
        ..request(path, &[], b"")
    };
    for path in ["/webhooks/stripe", "/webhooks/lob"] {
        for method in ["GET", "PUT", "DELETE", "OPTIONS", "post"] {
            let response = run(ingress.handle(get(path, method)));
            check_refused(&response, 405, "method_not_allowed");
            assert_eq!(response.headers["Allow"], "POST");
        }
    }
    for path in [
        "/",
        "/webhooks",
        "/webhooks/stripe/",
        "/webhooks/stripex",
        "/Health",
    ] {
        check_refused(&run(ingress.handle(get(path, "POST"))), 404, "not_found");
    }
    let health = run(ingress.handle(get("/health", "GET")));
    assert_eq!(
        (health.status_code, body(&health)["status"].clone()),
        (200, json!("ok"))
    );
    let largest = vec![b' '; BODY_BYTES_MAX];
    check_refused(
        &run(ingress.handle(signed(&largest))),
        400,
        "body_malformed",
    );
    let larger = vec![b' '; BODY_BYTES_MAX + 1];
    check_refused(&run(ingress.handle(signed(&larger))), 413, "body_too_large");
    assert_eq!(calls(&tables, &ingress), 0);
}

#[test]
fn a_genuine_body_that_is_no_event_is_malformed_and_says_where() {
    let tables = MemoryTables::default();
    let deep = format!(
        r#"{{"id":"evt_1","type":"x","data":{}{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    let long = format!(r#"{{"id":"evt_{}","type":"x"}}"#, "1".repeat(10_000));
    for malformed in [
        &b""[..],
        b"   ",
        b"not json",
        b"[]",
        b"{}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{\"id\":\"evt_1\",\"type\":\"x\"}",
        br#"{"id":"evt_1"}"#,
        br#"{"id":"pi_1","type":"x"}"#,
        br#"{"id":"evt_1","id":"evt_2","type":"x"}"#,
        br#"{"id":"evt_1","type":"x","account":"other"}"#,
        br#"{"id":"evt_1","type":"x","account":7}"#,
        deep.as_bytes(),
        long.as_bytes(),
    ] {
        let response = run(ingress(&tables).handle(signed(malformed)));
        check_refused(&response, 400, "body_malformed");
    }
    assert!(tables.events.lock().unwrap().is_empty());
}

#[test]
fn the_published_stripe_vectors_end_through_handle_as_they_should() {
    let all: Value = serde_json::from_str(include_str!(
        "../../core/tests/vectors/stripe-signature-vectors.json"
    ))
    .unwrap();
    for vector in all["vectors"].as_array().unwrap() {
        let tables = MemoryTables::default();
        let now = Timestamp::from_unix_s(vector["now"].as_i64().unwrap()).unwrap();
        let raw_body = BASE64
            .decode(vector["body_b64"].as_str().unwrap().as_bytes())
            .unwrap();
        let headers: Vec<_> = vector["header"]
            .as_str()
            .map(|header| ("Stripe-Signature", header))
            .into_iter()
            .collect();
        let secret = vector["secret"].as_str().unwrap();
        let response =
            run(at(&tables, now, secret).handle(request("/webhooks/stripe", &headers, &raw_body)));
        let readable = read_envelope(&verified(ProviderId::Stripe, &raw_body)).is_ok();
        let proven = match vector["recommended"].as_str().unwrap() {
            "accept" => true,
            "choice" => {
                ["whitespace_body", "utf8_bom_body"].contains(&vector["name"].as_str().unwrap())
            }
            // Refused as no event, after its signature.
            _ => vector["name"] == "empty_body",
        };
        let expected = match (proven, readable) {
            (true, true) => (200, Value::Null),
            (true, false) => (400, json!("body_malformed")),
            (false, _) => (400, json!("signature_invalid")),
        };
        let error = body(&response)["error"].clone();
        assert_eq!(
            (response.status_code, error),
            expected,
            "{}",
            vector["name"]
        );
        assert_eq!(
            tables.events.lock().unwrap().len(),
            usize::from(expected.0 == 200)
        );
    }
}

#[test]
fn the_lob_vectors_end_through_handle_as_they_should() {
    let all: Value = serde_json::from_str(include_str!(
        "../../core/tests/vectors/lob-signature-vectors.json"
    ))
    .unwrap();
    for vector in all["vectors"].as_array().unwrap() {
        let tables = MemoryTables::default();
        let now = Timestamp::from_unix_ms(vector["now_ms"].as_i64().unwrap()).unwrap();
        let raw_body = BASE64
            .decode(vector["body_b64"].as_str().unwrap().as_bytes())
            .unwrap();
        let names = ["Lob-Signature", "Lob-Signature-Timestamp"];
        let headers: Vec<_> = names
            .iter()
            .filter_map(|name| Some((*name, vector["headers"][name].as_str()?)))
            .collect();
        let secret = vector["secret"].as_str().unwrap();
        let response =
            run(at(&tables, now, secret).handle(request("/webhooks/lob", &headers, &raw_body)));
        let accepted = ["accept", "choice"].contains(&vector["expected"].as_str().unwrap());
        // One vector's body is genuine and no event.
        let readable = read_envelope(&verified(ProviderId::Lob, &raw_body)).is_ok();
        let expected = if accepted && readable { 200 } else { 400 };
        assert_eq!(
            response.status_code, expected,
            "{}: {}",
            vector["name"], response.body
        );
        let not_proven = body(&response)["error"] == "signature_invalid";
        assert_eq!(not_proven, !accepted, "{}", vector["name"]);
    }
}

proptest! {
    #[test]
    fn every_changed_bit_of_body_or_signature_is_refused(byte in 0_usize..400, bit in 0_u8..8) {
        let tables = MemoryTables::default();
        let mut changed = paid();
        let at = byte % changed.len();
        changed[at] ^= 1 << bit;
        let header = format!("t={NOW_S},v1={}", signature(SECRET, &NOW_S.to_string(), &paid()));
        let response = run(ingress(&tables).handle(request("/webhooks/stripe", &[("Stripe-Signature", &header)], &changed)));
        prop_assert_eq!(response.status_code, 400);
        let mut header = header.into_bytes();
        let at = header.len() - 1 - byte % 64;
        header[at] ^= 1 << (bit % 4);
        if let Ok(header) = String::from_utf8(header) {
            let response = run(ingress(&tables).handle(request("/webhooks/stripe", &[("Stripe-Signature", &header)], &paid())));
            prop_assert_eq!(response.status_code, 400);
        }
    }

    #[test]
    fn no_bytes_cause_a_panic_or_a_5xx(raw in prop::collection::vec(any::<u8>(), 0..500), text in ".{0,200}") {
        let tables = MemoryTables::default();
        let status = run(ingress(&tables).handle(signed(&raw))).status_code;
        prop_assert!([200, 400].contains(&status));
        let status = run(ingress(&tables).handle(request("/webhooks/lob", &[("Lob-Signature", &text), ("Lob-Signature-Timestamp", &text)], &raw))).status_code;
        prop_assert_eq!(status, 400);
        let unflagged = ProxyRequest { body: Some(text), is_base64_encoded: true, ..signed(&raw) };
        prop_assert_eq!(run(ingress(&tables).handle(unflagged)).status_code, 400);
    }
}
