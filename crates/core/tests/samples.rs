//! What is in `events` reads as this table says: the providers' payloads, and the workers' messages about them.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use billhook_core::ids::{AccountId, ProviderId};
use billhook_core::intake::message::ReceivedPointer;
use billhook_core::provider::envelope::EventEnvelope;
use billhook_core::provider::interpret::interpret;
use billhook_core::provider::read_envelope;
use serde_json::{Value, json};

/// File, and what a worker makes of it: the ids its claim names, or its verdict. Test events are read at a test stage,
/// live ones at a live stage.
const STRIPE: [(&str, &str); 39] = [
    ("charge_dispute_closed_lost", PAYMENT),
    ("charge_dispute_created", PAYMENT),
    ("charge_dispute_funds_reinstated", PAYMENT),
    ("charge_dispute_funds_withdrawn", PAYMENT),
    ("charge_failed", "ignored unhandled_type"),
    ("charge_refunded_full", ORDER),
    ("charge_refunded_partial", ORDER),
    ("charge_succeeded", "ignored unhandled_type"),
    ("checkout_session_async_payment_failed", ORDER),
    ("checkout_session_async_payment_succeeded", ORDER),
    ("checkout_session_completed_paid", ORDER),
    ("checkout_session_completed_subscription", "order#ord_2041"),
    ("checkout_session_completed_unpaid_delayed_method", ORDER),
    ("checkout_session_expired", "order#ord_2041"),
    ("connect_account_application_authorized", "its account"),
    ("connect_account_application_deauthorized", "its account"),
    ("connect_account_updated", "its account"),
    (
        "connect_payment_intent_succeeded_direct_charge",
        "order#ord_2041 pi_3RzCnctSAMPLE0001",
    ),
    ("connect_payout_failed", "ignored unhandled_type"),
    ("connect_payout_paid", "ignored unhandled_type"),
    (
        "connect_test_event_at_live_endpoint",
        "ignored unhandled_type",
    ),
    ("customer_subscription_created", "ignored unhandled_type"),
    ("customer_subscription_deleted", "ignored unhandled_type"),
    ("customer_subscription_updated", "ignored unhandled_type"),
    ("invoice_paid", "ignored unhandled_type"),
    ("invoice_payment_failed", "ignored unhandled_type"),
    ("payment_intent_canceled", ORDER),
    ("payment_intent_payment_failed", ORDER),
    ("payment_intent_processing", ORDER),
    ("payment_intent_requires_action", "ignored unhandled_type"),
    ("payment_intent_succeeded", ORDER),
    ("refund_created", ORDER),
    ("refund_failed", ORDER),
    ("refund_updated", ORDER),
    ("unknown_future_type", "ignored unhandled_type"),
    ("v2_thin_account_requirements_updated", "ignored thin_event"),
    ("v2_thin_billing_meter_error", "ignored thin_event"),
    ("v2_thin_event_destination_ping", "ignored thin_event"),
    (
        "v2_thin_unknown_type_no_related_object",
        "ignored thin_event",
    ),
];
/// Disputes name the payment only.
const PAYMENT: &str = "pi_3RzWhkK9mQ2tLf0SAMPLE01";
const ORDER: &str = "order#ord_2041 pi_3RzWhkK9mQ2tLf0SAMPLE01";

const LOB: [(&str, &str); 23] = [
    ("address_created", "ignored unhandled_type"),
    ("bank_account_verified", "ignored unhandled_type"),
    ("check_mailed", "chk_534f10783683daa0"),
    ("letter_certified_delivered", LETTER),
    ("letter_certified_issue", LETTER),
    ("letter_created", LETTER),
    ("letter_deleted", LETTER),
    ("letter_delivered", LETTER),
    ("letter_failed", LETTER),
    ("letter_in_local_area", LETTER),
    ("letter_in_transit", LETTER),
    ("letter_mailed", LETTER),
    ("letter_processed_for_delivery", LETTER),
    ("letter_processed_for_delivery_redacted", LETTER),
    ("letter_re-routed", LETTER),
    ("letter_rendered_pdf", LETTER),
    ("letter_rendered_thumbnails", LETTER),
    ("letter_return_envelope_in_transit", LETTER),
    ("letter_returned_to_sender", LETTER),
    ("letter_viewed", LETTER),
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
    match interpret(provider, live_mode, envelope.account.as_ref(), payload) {
        Ok(claim) => [
            claim.named_entity.map(|key| key.to_string()),
            claim.intent.map(|id| id.to_string()),
            claim.piece.map(|id| id.to_string()),
            claim.about_account.then(|| "its account".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" "),
        Err(verdict) => format!("{} {}", verdict.outcome(), verdict.reason().unwrap()),
    }
}

#[track_caller]
fn check(provider: ProviderId, expected: &[(&str, &str)]) {
    let payloads = payloads(provider);
    let listed: BTreeSet<&str> = expected.iter().map(|(file, _)| *file).collect();
    assert_eq!(
        payloads.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        listed
    );
    for (file, expected) in expected {
        let payload = &payloads[*file];
        let envelope = read_envelope(provider, payload).unwrap();
        let live = envelope.livemode.unwrap_or(false);
        assert_eq!(
            read(provider, live, &envelope, payload),
            *expected,
            "{file}"
        );
    }
}

#[test]
fn every_payload_of_stripe_reads_as_the_table_says() {
    check(ProviderId::Stripe, &STRIPE);
}

#[test]
fn every_payload_of_lob_reads_as_the_table_says() {
    check(ProviderId::Lob, &LOB);
}

#[test]
fn no_payload_of_stripe_passes_at_a_stage_of_the_other_mode() {
    for (file, payload) in payloads(ProviderId::Stripe) {
        let envelope = read_envelope(ProviderId::Stripe, &payload).unwrap();
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
    for provider in [ProviderId::Stripe, ProviderId::Lob] {
        let known: BTreeMap<String, EventEnvelope> = payloads(provider)
            .values()
            .map(|payload| read_envelope(provider, payload).unwrap())
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
                let Ok(message) = ReceivedPointer::parse(&body) else {
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
            let live = event["livemode"] == true;
            let account = event["account"]
                .as_str()
                .map(|id| AccountId::parse(id).unwrap());
            interpret(
                ProviderId::Stripe,
                live,
                account.as_ref(),
                event.to_string().as_bytes(),
            )
        };
        let Ok(now) = claim(&event) else { continue };
        let before = rendered_before_basil(&event);
        assert_ne!(before, event, "{name}");
        assert_eq!(claim(&before).unwrap(), now, "{name}");
        let mut after = event.clone();
        after["api_version"] = json!("2031-01-01.yew");
        after["data"]["object"]["invented_since"] = json!({ "amount_received": "of another kind" });
        assert_eq!(claim(&after).unwrap(), now, "{name}");
        let stored = read_envelope(ProviderId::Stripe, before.to_string().as_bytes()).unwrap();
        assert_eq!(stored.api_version.as_deref(), Some("2022-08-01"));
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}
