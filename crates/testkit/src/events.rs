//! Builders for webhook bodies of Stripe and Lob, reduced to what tests and the demonstration need. Bodies in their
//! full shape are in `events/`; `sign` signs them.

use std::collections::BTreeMap;
use std::time::Duration;

use billhook_core::entity::Entity;
use billhook_core::entity::account::AccountFacts;
use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::merge::Merge as _;
use billhook_core::entity::payment::facts::MoneyFacts;
use billhook_core::entity::payment::linked::PaymentCopy;
use billhook_core::ids::{AccountId, CorrelationId, ProviderId};
use billhook_core::intake::inbox::{EventSource, NewEvent};
use billhook_core::provider::envelope::EventEnvelope;
use billhook_core::provider::lob::signature::parse_signature_headers;
use billhook_core::provider::read_envelope;
use billhook_core::provider::signature::{FetchedEvent, KeyScope, SigningKey, Verified};
use billhook_core::provider::stripe::event::{StripeEvent, StripeObject};
use billhook_core::provider::stripe::event_types::{StripeFacts, read_facts};
use billhook_core::provider::stripe::signature::parse_signature_header;
use billhook_core::time::Timestamp;
use serde_json::{Value, json};

use crate::sign::{sign_lob, sign_stripe};

/// A body as it is after its verification: there is no other way to one, so this signs it and verifies that.
#[expect(clippy::expect_used, reason = "the signature is made here")]
pub fn verified(provider: ProviderId, body: &[u8]) -> Verified<'_> {
    let now = Timestamp::from_unix_s(1_781_000_000).expect("a time");
    let signature = match provider {
        ProviderId::Stripe => {
            parse_signature_header(Some(&sign_stripe(body, "whsec_test", now.unix_s())))
        }
        ProviderId::Lob => {
            let at = now.unix_s().to_string();
            parse_signature_headers(Some(&sign_lob(body, "whsec_test", &at)), Some(&at))
        }
        // Its tests sign with its private key themselves.
        #[cfg(feature = "third-provider")]
        ProviderId::Parcel => {
            Err(billhook_core::provider::signature::SignatureFailure::HeaderMissing)
        }
    };
    let signature = signature.expect("a header");
    let keys: Vec<_> = SigningKey::from_value("test", "whsec_test", KeyScope::AllEvents)
        .into_iter()
        .collect();
    let verified = signature.verify(body, &keys, now, Duration::ZERO);
    verified.expect("a signature").0
}

/// The envelope of a delivered body.
#[expect(clippy::expect_used, reason = "for bodies that are events")]
pub fn envelope(provider: ProviderId, body: &[u8]) -> EventEnvelope {
    read_envelope(&verified(provider, body)).expect("an event")
}

/// A delivered body, ready to be stored.
pub fn new_event(
    provider: ProviderId,
    body: &[u8],
    correlation_id: CorrelationId,
    received_at: Timestamp,
) -> NewEvent<'_> {
    NewEvent {
        source: EventSource::Delivery(provider),
        envelope: envelope(provider, body),
        body: verified(provider, body),
        correlation_id,
        received_at,
    }
}

/// An event as a list of Stripe's API has it.
#[expect(
    clippy::disallowed_methods,
    reason = "the local Stripe stands for Stripe's API"
)]
pub fn fetched(body: String, account: Option<&AccountId>) -> FetchedEvent {
    FetchedEvent::from_stripe_api(body, account.cloned())
}

/// The facts of a Stripe event about a connected account.
#[expect(
    clippy::expect_used,
    clippy::panic,
    reason = "for events that have such facts"
)]
pub fn account_facts(event: &Value) -> AccountFacts {
    let event = StripeEvent::parse(event.to_string().as_bytes()).expect("an event");
    match read_facts(&event) {
        Some(StripeFacts::Account(facts)) => facts.expect("facts"),
        other => panic!("no facts about an account: {other:?}"),
    }
}

/// The facts of a Stripe event about a payment.
#[expect(
    clippy::expect_used,
    clippy::panic,
    reason = "for events that have such facts"
)]
pub fn money_facts(event: &Value) -> MoneyFacts {
    let event = StripeEvent::parse(event.to_string().as_bytes()).expect("an event");
    match read_facts(&event) {
        Some(StripeFacts::Payment(facts)) => facts.expect("facts"),
        other => panic!("no facts about a payment: {other:?}"),
    }
}

/// What an order or statement knows of its payments after these events, which are all about payments of its own: the
/// copies that the worker would write.
#[expect(clippy::expect_used, reason = "for events about payments")]
pub fn linked_facts<'a>(events: impl IntoIterator<Item = &'a Value>) -> Vec<StatedFacts> {
    let mut copies: BTreeMap<PaymentKey, PaymentCopy> = BTreeMap::new();
    for event in events {
        let parsed = StripeEvent::parse(event.to_string().as_bytes()).expect("an event");
        let names = parsed.resource().map(StripeObject::payment_names);
        let names = names.expect("an object").expect("names");
        let key = PaymentKey {
            account: parsed.account.clone(),
            payment: names.into_iter().next().expect("a payment"),
        };
        let copy = copies.entry(key).or_insert_with(|| PaymentCopy::linked(0));
        copy.version += 1;
        copy.facts.merge(money_facts(event));
    }
    let stated = copies.into_iter();
    let stated = stated.map(|(key, copy)| StatedFacts::Payment(key, Box::new(copy)));
    stated.collect()
}

/// The copy that the worker would write after one more event about a payment of this order or statement.
#[must_use]
pub fn linked_facts_after(entity: &Entity, event: &Value) -> Vec<StatedFacts> {
    let known = entity.linked_payment_facts();
    let stated = linked_facts([event])
        .into_iter()
        .map(|stated| match stated {
            StatedFacts::Payment(key, copy) => {
                let known = known.and_then(|facts| facts.payments.get(&key));
                let mut copy = *copy;
                if let Some(known) = known {
                    copy.version += known.version;
                    copy.facts.merge(known.facts.clone());
                }
                StatedFacts::Payment(key, Box::new(copy))
            }
            other => other,
        });
    stated.collect()
}

/// A Stripe event of the platform's own account around an object.
pub fn stripe(id: &str, event_type: &str, created: i64, object: Value) -> Value {
    json!({
        "id": id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": created,
        "livemode": false,
        "pending_webhooks": 1,
        "request": { "id": null, "idempotency_key": null },
        "type": event_type,
        "data": { "object": object },
    })
}

/// Turns it into an event of a connected account.
#[must_use]
pub fn from_account(mut event: Value, account: &str) -> Value {
    if let Some(members) = event.as_object_mut() {
        members.insert("account".to_owned(), json!(account));
    }
    event
}

/// `payment_intent.succeeded`.
pub fn intent_succeeded(
    id: &str,
    created: i64,
    intent: &str,
    metadata: Value,
    amount: i64,
) -> Value {
    let object = json!({
        "id": intent, "object": "payment_intent", "status": "succeeded", "amount": amount,
        "amount_received": amount, "currency": "usd", "metadata": metadata,
    });
    stripe(id, "payment_intent.succeeded", created, object)
}

/// `payment_intent.payment_failed`.
pub fn intent_failed(id: &str, created: i64, intent: &str, metadata: Value, charge: &str) -> Value {
    let object = json!({
        "id": intent, "object": "payment_intent", "status": "requires_payment_method", "amount": 4200,
        "amount_received": 0, "currency": "usd", "metadata": metadata, "latest_charge": charge,
        "last_payment_error": { "code": "card_declined", "decline_code": "insufficient_funds", "charge": charge },
    });
    stripe(id, "payment_intent.payment_failed", created, object)
}

/// `checkout.session.completed`; `payment_status` says whether it is paid.
pub fn session_completed(
    id: &str,
    created: i64,
    session: &str,
    intent: Option<&str>,
    metadata: Value,
    payment_status: &str,
) -> Value {
    let object = json!({
        "id": session, "object": "checkout.session", "status": "complete", "payment_status": payment_status,
        "payment_intent": intent, "amount_total": 4200, "currency": "usd", "metadata": metadata,
    });
    stripe(id, "checkout.session.completed", created, object)
}

/// `charge.refunded`; `refunded` is the charge's cumulative figure.
pub fn charge_refunded(
    id: &str,
    created: i64,
    charge: &str,
    intent: Option<&str>,
    refunded: i64,
) -> Value {
    let object = json!({
        "id": charge, "object": "charge", "payment_intent": intent, "amount": 4200, "amount_captured": 4200,
        "amount_refunded": refunded, "refunded": refunded == 4200, "currency": "usd", "metadata": {},
    });
    stripe(id, "charge.refunded", created, object)
}

/// A PaymentIntent event with another state: `processing`, `canceled`.
pub fn intent_is(id: &str, created: i64, intent: &str, metadata: Value, status: &str) -> Value {
    let object = json!({
        "id": intent, "object": "payment_intent", "status": status, "amount": 4200, "amount_received": 0,
        "currency": "usd", "metadata": metadata,
    });
    stripe(id, &format!("payment_intent.{status}"), created, object)
}

/// A refund with its own id and state.
pub fn refund(
    id: &str,
    created: i64,
    refund: &str,
    of: (&str, &str),
    amount: i64,
    status: &str,
) -> Value {
    let (intent, charge) = of;
    let object = json!({
        "id": refund, "object": "refund", "payment_intent": intent, "charge": charge, "amount": amount,
        "currency": "usd", "status": status, "metadata": {},
    });
    stripe(id, "refund.updated", created, object)
}

/// A dispute about a payment.
pub fn dispute(id: &str, created: i64, dispute: &str, intent: &str, status: &str) -> Value {
    let object = json!({
        "id": dispute, "object": "dispute", "payment_intent": intent, "charge": "ch_1", "amount": 4200,
        "currency": "usd", "status": status, "metadata": {},
    });
    stripe(id, "charge.dispute.updated", created, object)
}

/// A Lob event about a letter, with redacted metadata, which is Lob's default.
pub fn letter(id: &str, created: &str, letter: &str, stage: &str) -> Value {
    json!({
        "id": id,
        "object": "event",
        "reference_id": letter,
        "date_created": created,
        "event_type": {
            "id": format!("letter.{stage}"), "enabled_for_test": false, "resource": "letters", "object": "event_type",
        },
        "body": {
            "id": letter, "object": "letter", "to": "REDACTED", "from": "REDACTED",
            "metadata": { "statement_id": "REDACTED" },
            "expected_delivery_date": "2026-11-27", "tracking_number": null, "tracking_events": [],
        },
    })
}
