//! The sample invocations in `events/webhook-ingress` are answered as `events/answers.json` says, at the moment they were
//! signed.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::provider::signature::{KeyScope, SigningKey, SigningKeys};
use billhook_core::time::Timestamp;
use billhook_testkit::memory::{FixedClock, KnownKeys, MemoryQueue, MemoryTables};
use serde_json::Value;
use webhook_ingress::WebhookIngress;
use webhook_ingress::proxy::{ProxyRequest, ProxyResponse};

/// The samples were signed at 2026-06-09T10:13:20Z.
const NOW_S: i64 = 1_781_000_000;
const STRIPE: &str = "whsec_sample_apigw_secret_0001";
/// Signs beside `STRIPE` while a secret is replaced.
const STRIPE_OLD: &str = "whsec_sample_apigw_secret_0000_old";
const LOB: &str = "sample_lob_webhook_secret_0001";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/webhook-ingress")
}

fn request(file: &str) -> ProxyRequest {
    serde_json::from_slice(&fs::read(folder().join(file)).unwrap()).unwrap()
}

fn keys(secrets: &[&str]) -> KnownKeys {
    KnownKeys {
        cached: SigningKeys {
            keys: secrets
                .iter()
                .filter_map(|secret| SigningKey::from_value("sample", secret, KeyScope::AllEvents))
                .collect(),
            ..SigningKeys::default()
        },
        fresh: None,
    }
}

/// The answer, and how many events were stored and messages sent.
fn answer(request: ProxyRequest, stripe: &[&str], now_s: i64) -> (ProxyResponse, usize, usize) {
    let tables = MemoryTables::default();
    let ingress = WebhookIngress {
        inbox: &tables,
        queue: MemoryQueue::default(),
        keys: PerProvider::new(|provider| match provider {
            ProviderId::Stripe => keys(stripe),
            _ => keys(&[LOB]),
        }),
        clock: FixedClock::at(Timestamp::from_unix_s(now_s).unwrap()),
        tolerance: Duration::from_secs(300),
        counts_types: true,
        account_limiter: webhook_ingress::account_limiter::AccountLimiter::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let response = runtime.block_on(ingress.handle(request));
    let stored = tables.events.lock().unwrap().len();
    let sent = ingress.queue.sent.lock().unwrap().len();
    (response, stored, sent)
}

#[test]
fn every_sample_is_answered_as_expected() {
    let mut files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = fs::read(folder().join("../answers.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    for (name, expected) in expected["webhook-ingress"].as_object().unwrap() {
        let file = format!("{name}.json");
        assert!(files.remove(&file), "there is no {file}");
        let expected = expected.get("signed_now").unwrap_or(&expected["answer"]);
        let (response, stored, sent) = answer(request(&file), &[STRIPE], NOW_S);
        assert_eq!(expected["statusCode"], response.status_code, "{file}");
        let body: Value = serde_json::from_str(&response.body).unwrap();
        for (member, value) in expected["body"].as_object().unwrap() {
            assert_eq!(&body[member], value, "{file}: {member}");
        }
        let accepted = usize::from(body.get("event_id").is_some());
        assert_eq!((stored, sent), (accepted, accepted), "{file}");
    }
    assert_eq!(files, BTreeSet::new(), "answers.json lacks them");
}

#[test]
fn a_body_in_base64_and_the_same_as_text_are_one_event() {
    let [encoded, plain] = ["stripe-paid.json", "stripe-paid-plain-text.json"].map(request);
    assert!(encoded.is_base64_encoded && !plain.is_base64_encoded);
    let decoded = data_encoding::BASE64
        .decode(encoded.body.unwrap().as_bytes())
        .unwrap();
    assert_eq!(decoded, plain.body.unwrap().into_bytes());
}

#[test]
fn either_of_two_secrets_proves_the_delivery_that_both_signed() {
    for known in [STRIPE, STRIPE_OLD] {
        let two = request("stripe-connect-two-signatures.json");
        assert_eq!(answer(two, &[known], NOW_S).0.status_code, 200, "{known}");
    }
    let one = request("stripe-paid.json");
    assert_eq!(answer(one, &[STRIPE_OLD], NOW_S).0.status_code, 400);
}

#[test]
fn a_sample_is_proven_for_300_s_either_side_of_its_moment() {
    for file in ["stripe-paid.json", "lob-delivery.json"] {
        // Lob's timestamp has 123 ms more.
        for (off_s, status) in [(-299, 200), (300, 200), (-301, 400), (301, 400)] {
            let (response, ..) = answer(request(file), &[STRIPE], NOW_S + off_s);
            assert_eq!(response.status_code, status, "{file} {off_s}");
        }
    }
}
