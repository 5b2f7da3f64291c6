//! The queue's messages: a pointer to a stored event, or to a payment that the worker is to check again. Neither has a
//! payload.
//!
//! Guarantee: a message cannot forge an event. A worker takes only ids from it, and facts only from the events table,
//! whose payload passed the signature check. A forged message can at most have a stored event reprocessed.

use serde::{Deserialize, Serialize};

use crate::entity::key::PaymentKey;
use crate::ids::{AccountId, CorrelationId, EventId, ProviderId};
use crate::intake::inbox::{EventRecord, EventSource};
use crate::provider::envelope::{EventType, message_group};

/// The message as we write it. Everything except a person's `actor` and `reason` is ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventPointer<'a> {
    source: EventSource,
    event_id: &'a EventId,
    event_type: &'a EventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_account_id: Option<&'a AccountId>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    by: Option<ReplayedBy<'a>>,
}

/// Who had an event reprocessed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayedBy<'a> {
    /// The person's AWS identity.
    pub actor: &'a str,
    pub reason: &'a str,
}

/// The message as we read it. Only the id is required, and unknown members are ignored, so that a message which a person
/// writes manually works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceivedPointer {
    Event(ReceivedEvent),
    /// A payment to recheck without an event.
    Payment(PaymentKey),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ReceivedEvent {
    pub event_id: EventId,
    /// Of the delivery or replay that sent the message.
    #[serde(default)]
    pub correlation_id: Option<String>,
}

/// The message that has a payment rechecked without an event, as we write and read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentPointer {
    source: RecheckSource,
    payment: PaymentKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecheckSource {
    Recheck,
}

impl PaymentPointer {
    pub fn message_for(payment: &PaymentKey) -> String {
        let pointer = Self {
            source: RecheckSource::Recheck,
            payment: payment.clone(),
        };
        // Cannot fail: the value contains only strings and enums.
        serde_json::to_string(&pointer).unwrap_or_default()
    }

    /// The message group: that of the payment's events, so that the worker does not meet itself.
    pub fn group(payment: &PaymentKey) -> String {
        let PaymentKey { account, payment } = payment;
        message_group(ProviderId::Stripe, account.as_ref(), payment.as_str())
    }
}

impl EventPointer<'_> {
    pub fn message_for(stored: &EventRecord, source: EventSource) -> String {
        Self::encode(stored, source, stored.correlation_id, None)
    }

    /// The message by which a person has a stored event reprocessed. It has its own correlation id, so that the log of
    /// the replay and that of the delivery stay apart.
    pub fn replay_message(
        stored: &EventRecord,
        correlation_id: CorrelationId,
        by: ReplayedBy<'_>,
    ) -> String {
        Self::encode(
            stored,
            EventSource::ManualReplay,
            Some(correlation_id),
            Some(by),
        )
    }

    fn encode(
        stored: &EventRecord,
        source: EventSource,
        correlation_id: Option<CorrelationId>,
        by: Option<ReplayedBy<'_>>,
    ) -> String {
        let pointer = EventPointer {
            source,
            event_id: &stored.id,
            event_type: &stored.event_type,
            correlation_id: correlation_id.as_ref().map(CorrelationId::to_string),
            connected_account_id: stored.account.as_ref(),
            by,
        };
        // Cannot fail: the value contains only strings and enums.
        serde_json::to_string(&pointer).unwrap_or_default()
    }
}

impl ReceivedPointer {
    /// None if the body is not JSON, or names no payment and no event in the form of this provider's ids.
    pub fn parse(provider: ProviderId, body: &str) -> Option<Self> {
        if let (ProviderId::Stripe, Ok(pointer)) = (provider, serde_json::from_str(body)) {
            let PaymentPointer { payment, .. } = pointer;
            return Some(Self::Payment(payment));
        }
        let pointer: ReceivedEvent = serde_json::from_str(body).ok()?;
        let is_own = provider.parse_event_id(pointer.event_id.as_str()).is_ok();
        is_own.then_some(Self::Event(pointer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_read_as_it_is_written_and_only_of_stripe() {
        let payment = PaymentKey::parse("payment#acct_1#pi_1").unwrap();
        let message = PaymentPointer::message_for(&payment);
        assert_eq!(
            message,
            r#"{"source":"recheck","payment":"payment#acct_1#pi_1"}"#
        );
        let parsed = ReceivedPointer::parse(ProviderId::Stripe, &message);
        assert_eq!(parsed, Some(ReceivedPointer::Payment(payment)));
        assert_eq!(ReceivedPointer::parse(ProviderId::Lob, &message), None);
    }

    #[test]
    fn a_message_written_by_hand_is_enough() {
        let by_hand = r#"{"source":"manual_replay","event_id":"evt_1","reason":"asked by support","event_type":7}"#;
        let parsed = ReceivedPointer::parse(ProviderId::Stripe, by_hand).unwrap();
        let expected = ReceivedEvent {
            event_id: EventId::parse("evt_1").unwrap(),
            correlation_id: None,
        };
        assert_eq!(parsed, ReceivedPointer::Event(expected));
        for unreadable in [
            "",
            "evt_1",
            "{}",
            r#"{"event_id":"pi_1"}"#,
            r#"{"event_id":null}"#,
        ] {
            let parsed = ReceivedPointer::parse(ProviderId::Stripe, unreadable);
            assert!(parsed.is_none(), "{unreadable}");
        }
    }
}
