//! A payload as it may be shown: the fields that billhook reads, by the same code that reads them, and nothing else. So
//! a field that a provider adds, or a name, address or card, is never shown by accident.

use billhook_core::ids::ProviderId;
use billhook_core::provider::trim_payload;
use billhook_core::worker::ports::StoredPayload;
use serde_json::{Value, json};

pub(crate) fn shown(provider: ProviderId, payload: &StoredPayload, raw: bool) -> Value {
    match payload {
        StoredPayload::Intact(body) => {
            let body = if raw {
                Some(body.clone())
            } else {
                trim_payload(provider, body).ok()
            };
            body.and_then(|body| serde_json::from_slice(&body).ok())
                .unwrap_or_else(|| json!("(no event that billhook can read)"))
        }
        StoredPayload::Tampered => {
            json!("(not what was verified: its digest differs from payload_sha256)")
        }
        StoredPayload::Unreadable => json!("(missing)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_are_read_are_shown() {
        let body = br#"{"id":"evt_1","type":"payment_intent.succeeded","livemode":false,"created":1781000000,
            "data":{"object":{"id":"pi_1","object":"payment_intent","amount_received":4200,"currency":"usd",
            "receipt_email":"jo@example.com","shipping":{"name":"Jo Doe"},
            "metadata":{"order_id":"ord_1","birthday":"1990-01-01"}}}}"#;
        let payload = StoredPayload::Intact(body.to_vec());
        let redacted = shown(ProviderId::Stripe, &payload, false).to_string();
        for kept in ["evt_1", "pi_1", "4200", "ord_1"] {
            assert!(redacted.contains(kept), "{redacted}");
        }
        for hidden in ["jo@example.com", "Jo Doe", "birthday", "1990", "shipping"] {
            assert!(!redacted.contains(hidden), "{redacted}");
        }
        let raw = shown(ProviderId::Stripe, &payload, true).to_string();
        assert!(raw.contains("jo@example.com"));
    }
}
