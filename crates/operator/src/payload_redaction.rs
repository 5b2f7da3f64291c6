//! Redaction of personal data: shows of a payload only the fields that billhook reads, by the same code that reads
//! them.
//!
//! It is an allow-list, so that a field which a provider adds next year, or a name, address or card, is never shown or
//! pasted into a ticket by accident.

use billhook_core::ids::ProviderId;
use billhook_core::provider::interpret::InterpretRules;
use billhook_core::provider::redact_payload;
use billhook_core::worker::ports::StoredPayload;
use serde_json::{Value, json};

use crate::row_json::RowDetail;

pub(crate) fn render_payload(
    provider: ProviderId,
    rules: &InterpretRules,
    payload: &StoredPayload,
    detail: RowDetail,
) -> Value {
    match payload {
        StoredPayload::Intact(body) => {
            let body = match detail {
                RowDetail::Raw => Some(body.clone()),
                RowDetail::Known => redact_payload(provider, rules, body).ok(),
            };
            body.and_then(|body| serde_json::from_slice(&body).ok())
                .unwrap_or_else(|| json!("(not an event that billhook can read)"))
        }
        StoredPayload::Tampered => {
            json!("(tampered: the row has no genuine seal)")
        }
        StoredPayload::Unreadable => json!("(missing)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_payload_has_only_fields_that_billhook_reads() {
        let body = br#"{"id":"evt_1","type":"payment_intent.succeeded","livemode":false,"created":1781000000,
            "data":{"object":{"id":"pi_1","object":"payment_intent","amount_received":4200,"currency":"usd",
            "receipt_email":"jo@example.com","shipping":{"name":"Jo Doe"},
            "metadata":{"order_id":"ord_1","birthday":"1990-01-01"}}}}"#;
        let payload = StoredPayload::Intact(body.to_vec());
        let rules = InterpretRules::default();
        let redacted =
            render_payload(ProviderId::Stripe, &rules, &payload, RowDetail::Known).to_string();
        for kept in ["evt_1", "pi_1", "4200", "ord_1"] {
            assert!(redacted.contains(kept), "{redacted}");
        }
        for hidden in ["jo@example.com", "Jo Doe", "birthday", "1990", "shipping"] {
            assert!(!redacted.contains(hidden), "{redacted}");
        }
        let raw = render_payload(ProviderId::Stripe, &rules, &payload, RowDetail::Raw).to_string();
        assert!(raw.contains("jo@example.com"));
    }
}
