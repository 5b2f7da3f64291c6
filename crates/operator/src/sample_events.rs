//! Sample events of both providers for test deliveries, taken from `events/payloads`, with a new id and the current
//! time.

use anyhow::{Context as _, Result, anyhow, bail};
use billhook_adapters::clock::SystemClock;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use serde_json::{Value, json};

macro_rules! samples {
    ($provider:literal: $($name:literal)*) => {
        &[$(include_str!(concat!("../../../events/payloads/", $provider, "/", $name, ".json")),)*]
    };
}

const STRIPE: &[&str] = samples!("stripe":
    "checkout_session_completed_paid" "checkout_session_async_payment_succeeded"
    "checkout_session_async_payment_failed" "checkout_session_expired" "payment_intent_processing"
    "payment_intent_succeeded" "payment_intent_payment_failed" "payment_intent_canceled" "charge_refunded_full"
    "refund_created" "refund_updated" "refund_failed" "charge_dispute_created" "charge_dispute_closed_lost"
    "charge_dispute_funds_withdrawn" "charge_dispute_funds_reinstated" "connect_account_updated"
    "connect_account_application_authorized" "connect_account_application_deauthorized");
const LOB: &[&str] = samples!("lob":
    "letter_created" "letter_rendered_pdf" "letter_rendered_thumbnails" "letter_mailed" "letter_in_transit"
    "letter_in_local_area" "letter_processed_for_delivery" "letter_delivered" "letter_returned_to_sender"
    "letter_re-routed" "letter_failed" "letter_deleted" "letter_viewed" "postcard_created" "postcard_delivered");

/// An event of a type that no worker handles: its id and its body.
pub(crate) fn build_test_event(provider: ProviderId, event_type: &str) -> Result<(String, String)> {
    let known = load_samples(provider);
    let (_, sample) = known.first().context("there are no samples")?;
    let id = format!("evt_{}", SystemClock.new_id().simple());
    let member = match provider {
        ProviderId::Stripe => "type",
        ProviderId::Lob => "event_type.id",
    };
    let set = format!("{member}={event_type}");
    let body = build_sample_body(provider, sample, &id, SystemClock.now(), &[set])?;
    Ok((id, body))
}

pub(crate) fn load_samples(provider: ProviderId) -> Vec<(String, Value)> {
    let texts = match provider {
        ProviderId::Stripe => STRIPE,
        ProviderId::Lob => LOB,
    };
    let parsed = texts
        .iter()
        .filter_map(|text| serde_json::from_str(text).ok());
    parsed
        .filter_map(|sample: Value| {
            let name = match provider {
                ProviderId::Stripe => sample.get("type")?.as_str()?,
                ProviderId::Lob => sample.get("event_type")?.get("id")?.as_str()?,
            };
            Some((name.to_owned(), sample))
        })
        .collect()
}

pub(crate) fn build_sample_body(
    provider: ProviderId,
    sample: &Value,
    id: &str,
    now: Timestamp,
    sets: &[String],
) -> Result<String> {
    let mut body = sample.clone();
    let created = match provider {
        ProviderId::Stripe => ("created", json!(now.unix_s())),
        ProviderId::Lob => ("date_created", json!(now.to_string())),
    };
    for (name, value) in [("id", json!(id)), created] {
        set_member(&mut body, name, value)?;
    }
    for set in sets {
        let (path, value) = set
            .split_once('=')
            .ok_or_else(|| anyhow!("--set {set}: expected PATH=VALUE"))?;
        set_member(
            &mut body,
            path,
            serde_json::from_str(value).unwrap_or_else(|_| json!(value)),
        )?;
    }
    Ok(body.to_string())
}

fn set_member(body: &mut Value, path: &str, value: Value) -> Result<()> {
    let mut place = body;
    for name in path.split('.') {
        if place.is_null() {
            *place = json!({});
        }
        let Some(members) = place.as_object_mut() else {
            bail!("--set {path}: the parent of {name} is not an object");
        };
        place = members.entry(name).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use billhook_core::provider::read_envelope;

    fn now() -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000).unwrap()
    }

    #[test]
    fn every_sample_has_a_type_and_accepts_values() {
        for (provider, texts) in [(ProviderId::Stripe, STRIPE), (ProviderId::Lob, LOB)] {
            let known = load_samples(provider);
            assert_eq!(known.len(), texts.len());
            for (name, sample) in &known {
                let body = build_sample_body(provider, sample, "evt_new", now(), &[]).unwrap();
                let envelope = read_envelope(provider, body.as_bytes()).unwrap();
                assert_eq!(
                    (envelope.id.as_str(), envelope.event_type.as_str()),
                    ("evt_new", name.as_str())
                );
            }
        }
        let mut body = json!({ "data": {}, "n": 1 });
        set_member(&mut body, "data.object.amount", json!(7)).unwrap();
        assert_eq!(body["data"]["object"]["amount"], 7);
        assert!(set_member(&mut body, "n.x", json!(1)).is_err());
    }
}
