//! What is in `events` reads as this table says: the providers' payloads, and the workers' messages about them.
#![cfg(test)]

use billhook_core::provider::interpret::InterpretRules;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use billhook_core::ids::{AccountId, ProviderId};
use billhook_core::intake::message::ReceivedPointer;
use billhook_core::provider::envelope::EventEnvelope;
use billhook_core::provider::interpret::EventSubject;
use billhook_core::provider::{catalogue, interpret};
use billhook_testkit::events::envelope;
use serde_json::{Value, json};

/// File, and what a worker makes of it: the ids its claim names, or its verdict; a file that is not here names [`ORDER`].
/// Test events are read at a test stage, live ones at a live stage.
const STRIPE: &[(&str, &str)] = &[
    ("charge_dispute_closed_lost", PAYMENT),
    ("charge_dispute_created", PAYMENT),
    ("charge_dispute_funds_reinstated", PAYMENT),
    ("charge_dispute_funds_withdrawn", PAYMENT),
    ("charge_dispute_updated", PAYMENT),
    ("charge_failed", INTENT),
    ("checkout_session_async_payment_failed", SESSION),
    ("checkout_session_async_payment_succeeded", SESSION),
    ("checkout_session_completed_paid", SESSION),
    (
        "checkout_session_completed_subscription",
        concat!(
            "order#ord_2041 cs_test_a1SampleSession0000000000000000000000000000000000000001 ",
            "in_1RzWhkK9mQ2tLfSAMPLE001"
        ),
    ),
    ("checkout_session_completed_unpaid_delayed_method", SESSION),
    (
        "checkout_session_expired",
        "order#ord_2041 cs_test_a1SampleSession0000000000000000000000000000000000000001",
    ),
    ("connect_account_application_authorized", "its account"),
    ("connect_account_application_deauthorized", "its account"),
    ("connect_account_updated", "its account"),
    (
        "connect_payment_intent_succeeded_direct_charge",
        "order#ord_2041 pi_3RzCnctSAMPLE0001 ch_3RzCnctSAMPLE0001",
    ),
    ("connect_payout_failed", "ignored unhandled_type"),
    ("connect_payout_paid", "ignored unhandled_type"),
    (
        "connect_test_event_at_live_endpoint",
        "order#ord_2041 pi_3RzCnctTEST0001 ch_3RzCnctTEST0001",
    ),
    ("customer_subscription_created", "ignored unhandled_type"),
    ("customer_subscription_deleted", "ignored unhandled_type"),
    ("customer_subscription_updated", "ignored unhandled_type"),
    ("invoice_paid", "ignored unhandled_type"),
    ("invoice_payment_failed", "ignored unhandled_type"),
    ("payment_intent_amount_capturable_updated", INTENT),
    ("payment_intent_canceled", INTENT),
    ("payment_intent_payment_failed", INTENT),
    ("payment_intent_processing", INTENT),
    ("payment_intent_requires_action", "ignored unhandled_type"),
    ("radar_early_fraud_warning_created", PAYMENT),
    ("review_closed", PAYMENT),
    ("review_opened", PAYMENT),
    ("unknown_future_type", "ignored unhandled_type"),
    ("v2_thin_account_requirements_updated", "ignored thin_event"),
    ("v2_thin_billing_meter_error", "ignored thin_event"),
    ("v2_thin_event_destination_ping", "ignored thin_event"),
    (
        "v2_thin_unknown_type_no_related_object",
        "ignored thin_event",
    ),
];
/// Disputes, warnings and reviews name the payment only.
const PAYMENT: &str = "pi_3RzWhkK9mQ2tLf0SAMPLE01 ch_3RzWhkK9mQ2tLf0SAMPLE01";
const ORDER: &str = "order#ord_2041 pi_3RzWhkK9mQ2tLf0SAMPLE01 ch_3RzWhkK9mQ2tLf0SAMPLE01";
/// Until it has succeeded.
const INTENT: &str = "order#ord_2041 pi_3RzWhkK9mQ2tLf0SAMPLE01";
const SESSION: &str = concat!(
    "order#ord_2041 pi_3RzWhkK9mQ2tLf0SAMPLE01 ",
    "cs_test_a1SampleSession0000000000000000000000000000000000000001"
);

/// As [`STRIPE`]; a file that is not here names [`LETTER`].
const LOB: &[(&str, &str)] = &[
    ("address_created", "ignored unhandled_type"),
    ("bank_account_verified", "ignored unhandled_type"),
    ("check_mailed", "chk_534f10783683daa0"),
    ("postcard_created", "psc_208e45b48d271294"),
    ("postcard_delivered", "psc_208e45b48d271294"),
    ("self_mailer_returned_to_sender", "sfm_8ffbe811dea49dcf"),
];
const LETTER: &str = "ltr_4a1b2c3d4e5f6071";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../events")
        .join(name)
}

/// The files of a folder, by name without `.json`.
fn files(name: &str) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (stem, fs::read(&path).unwrap())
        })
        .collect()
}

fn payloads(provider: ProviderId) -> BTreeMap<String, Vec<u8>> {
    files(&format!("payloads/{provider}"))
}

fn read(provider: ProviderId, live_mode: bool, envelope: &EventEnvelope, payload: &[u8]) -> String {
    let rules = InterpretRules {
        live_mode,
        ..InterpretRules::default()
    };
    match interpret(provider, &rules, envelope.account.as_ref(), payload) {
        Ok(claim) => {
            let named = claim.named_entity.map(|key| key.to_string());
            let subjects: Vec<String> = match claim.subject {
                EventSubject::Payment(payment) => {
                    let names = payment.names.iter().map(ToString::to_string);
                    let invoice = payment.invoice.map(|invoice| invoice.to_string());
                    names.chain(invoice).collect()
                }
                EventSubject::Piece(piece, _) => piece.iter().map(ToString::to_string).collect(),
                EventSubject::Account(_) => vec!["its account".to_owned()],
            };
            named
                .into_iter()
                .chain(subjects)
                .collect::<Vec<_>>()
                .join(" ")
        }
        Err(verdict) => format!("{} {}", verdict.outcome(), verdict.reason().unwrap()),
    }
}

/// Every file reads as the table says, or else as `usual`.
#[track_caller]
fn check(provider: ProviderId, special: &[(&str, &str)], usual: &str) {
    let mut special = BTreeMap::from_iter(special.iter().copied());
    for (file, payload) in payloads(provider) {
        let envelope = envelope(provider, &payload);
        let live = envelope.livemode.unwrap_or(false);
        let expected = special.remove(&*file).unwrap_or(usual);
        let found = read(provider, live, &envelope, &payload);
        assert_eq!(found, expected, "{file}");
    }
    assert!(special.is_empty(), "no such file: {special:?}");
}

#[test]
fn every_payload_of_stripe_reads_as_the_table_says() {
    check(ProviderId::Stripe, STRIPE, ORDER);
}

#[test]
fn every_payload_of_lob_reads_as_the_table_says() {
    check(ProviderId::Lob, LOB, LETTER);
}

#[test]
fn every_type_of_the_catalogue_has_a_sample_that_a_worker_processes() {
    for provider in ProviderId::ALL {
        let payloads = payloads(*provider);
        for entry in catalogue(*provider) {
            let payload = &payloads[entry.sample];
            let envelope = envelope(*provider, payload);
            let read = read(*provider, false, &envelope, payload);
            let is_processed = !read.starts_with("ignored") && !read.starts_with("parked");
            assert!(is_processed, "{entry:?}: {read}");
            // Lob has more stages than we have samples of.
            if *provider == ProviderId::Stripe {
                assert_eq!(envelope.event_type.as_str(), entry.event_type);
            }
        }
    }
}

#[test]
fn no_payload_of_stripe_passes_at_a_stage_of_the_other_mode() {
    for (file, payload) in payloads(ProviderId::Stripe) {
        let envelope = envelope(ProviderId::Stripe, &payload);
        let (other, expected) = match envelope.livemode {
            Some(true) => (false, "parked live_event_on_test_stage"),
            Some(false) | None => (true, "ignored test_event_on_live_stage"),
        };
        assert_eq!(
            read(ProviderId::Stripe, other, &envelope, &payload),
            expected,
            "{file}"
        );
    }
}

#[test]
fn every_message_points_at_a_payload_of_its_group() {
    for provider in ProviderId::ALL {
        let known: BTreeMap<String, EventEnvelope> = payloads(*provider)
            .values()
            .map(|payload| envelope(*provider, payload))
            .map(|envelope| (envelope.id.to_string(), envelope))
            .collect();
        let mut unreadable = Vec::new();
        for (file, sample) in files(&format!("{provider}-worker")) {
            let sample: Value = serde_json::from_slice(&sample).unwrap();
            for record in sample["Records"].as_array().unwrap() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                assert!(
                    text(&record["eventSourceARN"]).ends_with(&format!("-{provider}-events.fifo"))
                );
                let body = text(&record["body"]);
                let Some(ReceivedPointer::Event(message)) =
                    ReceivedPointer::parse(*provider, &body)
                else {
                    unreadable.push(file.clone());
                    continue;
                };
                let envelope = &known[message.event_id.as_str()];
                let body: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(body["event_type"], envelope.event_type.as_str(), "{file}");
                assert_eq!(
                    body.get("connected_account_id").and_then(Value::as_str),
                    envelope.account.as_ref().map(|account| account.as_str()),
                    "{file}"
                );
                let group = text(&record["attributes"]["MessageGroupId"]);
                assert_eq!(group, envelope.group, "{file}");
            }
        }
        assert_eq!(unreadable, ["with-unreadable"], "{provider}");
    }
}

/// The same event as an endpoint of a version before 2025-03-31 ("basil") gets it: what Stripe has removed since is
/// there, references are expanded, and what is new is not. Source: Stripe's API changelog, read 2026-11.
fn rendered_before_basil(event: &Value) -> Value {
    let mut event = event.clone();
    event["api_version"] = json!("2022-08-01");
    let object = &mut event["data"]["object"];
    match object["object"].as_str().unwrap() {
        "payment_intent" => {
            let charge = object.as_object_mut().unwrap().remove("latest_charge");
            object["charges"] =
                json!({ "object": "list", "data": [{ "id": charge, "object": "charge" }] });
            object["invoice"] = Value::Null;
        }
        "charge" => {
            object["refunds"] = json!({ "object": "list", "data": [{ "id": "re_1", "object": "refund", "amount": 1 }] });
            object["invoice"] = json!("in_1");
        }
        _ => {
            if let Some(intent) = object["payment_intent"].as_str().map(str::to_owned) {
                object["payment_intent"] = json!({ "id": intent, "object": "payment_intent" });
            }
        }
    }
    event
}

#[test]
fn payloads_of_older_and_newer_api_versions_state_the_same() {
    let mut compared = 0;
    for (name, payload) in payloads(ProviderId::Stripe) {
        let event: Value = serde_json::from_slice(&payload).unwrap();
        let claim = |event: &Value| {
            let rules = InterpretRules {
                live_mode: event["livemode"] == true,
                ..InterpretRules::default()
            };
            let account = event["account"]
                .as_str()
                .map(|id| AccountId::parse(id).unwrap());
            interpret(
                ProviderId::Stripe,
                &rules,
                account.as_ref(),
                event.to_string().as_bytes(),
            )
        };
        let Ok(now) = claim(&event) else { continue };
        let before = rendered_before_basil(&event);
        assert_ne!(before, event, "{name}");
        let mut of_before = claim(&before).unwrap();
        if let (EventSubject::Payment(before), EventSubject::Payment(now)) =
            (&mut of_before.subject, &now.subject)
        {
            // Since basil only sessions name their invoice; a PaymentIntent had no `latest_charge` in old versions.
            before.invoice.clone_from(&now.invoice);
            assert!(now.names.starts_with(&before.names), "{name}");
            before.names.clone_from(&now.names);
        }
        assert_eq!(of_before, now, "{name}");
        let mut after = event.clone();
        after["api_version"] = json!("2031-01-01.yew");
        after["data"]["object"]["invented_since"] = json!({ "amount_received": "of another kind" });
        assert_eq!(claim(&after).unwrap(), now, "{name}");
        let stored = envelope(ProviderId::Stripe, before.to_string().as_bytes());
        assert_eq!(stored.api_version.as_deref(), Some("2022-08-01"));
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}
