//! Reads Stripe's objects as they are now into the facts that their events would state: a PaymentIntent, its charges,
//! refunds, disputes and Checkout Sessions, as Stripe's API returned them. `comparison` compares the facts with the
//! stored ones.
//!
//! The readers are those of the events (`event_types`), so a difference is never one of interpretation: the status of an
//! object says which event it would have sent last. What only an event knows is missing here: earlier states, failed
//! attempts, and when a state began. In its place a fact is dated with the latest time that its object gives.
//!
//! Source of the fields that only this module reads (`created`, `canceled_at`, `expires_at`): `stripe-python` 16.1.0
//! `_payment_intent.py`, `checkout/_session.py`, `_charge.py`, `_refund.py`, `_dispute.py`.

use std::fmt;

use serde_json::value::RawValue;

use crate::entity::merge::{FactSource, Merge};
use crate::entity::payment::facts::MoneyFacts;
use crate::ids::EventId;
use crate::json::{LenientField, lenient_struct, parse_body};
use crate::outcome::ParkReason;
use crate::provider::stripe::event::StripeObject;
use crate::provider::stripe::event_types::{
    PaymentReader, read_charge, read_charge_captured, read_dispute, read_intent_canceled,
    read_intent_processing, read_intent_succeeded, read_object_facts, read_refund,
    read_session_completed, read_session_expired, session_entry,
};
use crate::provider::stripe::types::{IntentStatus, SessionStatus};
use crate::time::Timestamp;

/// Stands where a fact needs an event's id. It is never stored.
const NO_EVENT: &str = "evt_none";

/// A payment as Stripe's API returned it: the objects, each as Stripe wrote it.
#[derive(Clone, Default)]
pub struct PaymentAtStripe {
    /// The PaymentIntent; none of a payment that is known by its charge or session only.
    pub intents: Vec<Box<RawValue>>,
    /// Those of failed attempts too.
    pub charges: Vec<Box<RawValue>>,
    pub refunds: Vec<Box<RawValue>>,
    pub disputes: Vec<Box<RawValue>>,
    pub sessions: Vec<Box<RawValue>>,
}

/// Only the numbers of objects, because the objects contain personal data.
impl fmt::Debug for PaymentAtStripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PaymentAtStripe")
            .field("intents", &self.intents.len())
            .field("charges", &self.charges.len())
            .field("refunds", &self.refunds.len())
            .field("disputes", &self.disputes.len())
            .field("sessions", &self.sessions.len())
            .finish()
    }
}

/// An object of Stripe's API that we cannot read; as an event it would have been parked for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the {kind} {id} as Stripe's API returned it: {}", reason.as_str())]
pub struct UnreadableObject {
    pub kind: &'static str,
    /// `?` if it has none that we can read.
    pub id: String,
    pub reason: ParkReason,
}

lenient_struct! {
    /// The times of an object, in Unix seconds, that events do not need.
    ObjectTimes {
        created: i64,
        /// PaymentIntents, in status `canceled`.
        canceled_at: i64,
        /// Sessions.
        expires_at: i64,
    }
}

/// An object and its times.
struct DatedObject {
    object: StripeObject,
    times: ObjectTimes,
}

/// Reads all objects of a payment. Facts are dated with the latest time that Stripe gives for them: a refund or dispute
/// with its creation, a success with the creation of the payment's newest charge, a cancellation with `canceled_at`.
pub fn read_payment_at_stripe(payment: &PaymentAtStripe) -> Result<MoneyFacts, UnreadableObject> {
    let charges = parse_objects("charge", &payment.charges)?;
    // A PaymentIntent may be days older than its success, and says nowhere when it succeeded; a session neither. The
    // charge that succeeded is the payment's last one.
    let charged_at = charges.iter().filter_map(|c| time_of(&c.times.created));
    let charged_at = charged_at.max();
    let mut facts = MoneyFacts::default();
    for intent in parse_objects("payment_intent", &payment.intents)? {
        let status = intent.object.status.value().map(String::as_str);
        let status = status.map(IntentStatus::parse);
        let (reader, at): (Option<PaymentReader>, _) = match status {
            Some(IntentStatus::Succeeded) => (Some(read_intent_succeeded), charged_at),
            Some(IntentStatus::Processing) => (Some(read_intent_processing), charged_at),
            Some(IntentStatus::Canceled) => (
                Some(read_intent_canceled),
                time_of(&intent.times.canceled_at),
            ),
            // Not paid: no event of these statuses states a fact. Nor do we guess what a new status means.
            Some(
                IntentStatus::RequiresPaymentMethod
                | IntentStatus::RequiresConfirmation
                | IntentStatus::RequiresAction
                | IntentStatus::RequiresCapture
                | IntentStatus::Other(_),
            ) => (None, None),
            None => return Err(intent.unreadable("payment_intent", ParkReason::FieldMalformed)),
        };
        facts.merge(intent.read("payment_intent", at, reader)?);
    }
    for session in parse_objects("checkout.session", &payment.sessions)? {
        let status = session.object.status.value().map(String::as_str);
        let (reader, at): (PaymentReader, _) = match status.map(SessionStatus::parse) {
            Some(SessionStatus::Complete) => (read_session_completed, charged_at),
            Some(SessionStatus::Expired) => {
                (read_session_expired, time_of(&session.times.expires_at))
            }
            Some(SessionStatus::Open | SessionStatus::Other(_)) => (read_session_exists, None),
            None => return Err(session.unreadable("checkout.session", ParkReason::FieldMalformed)),
        };
        facts.merge(session.read("checkout.session", at, Some(reader))?);
    }
    for charge in &charges {
        let object = &charge.object;
        let has_status = |word: &str| object.status.value().is_some_and(|status| status == word);
        let is_captured = object.captured.value() == Some(&true) && has_status("succeeded");
        let reader: Option<PaymentReader> = match object.amount_refunded.value() {
            // One of the old Charges API is the payment itself.
            _ if is_captured && object.payment_intent.is_absent() => Some(read_charge_captured),
            // Of the others only refunds are compared.
            Some(0) => None,
            _ => Some(read_charge),
        };
        facts.merge(charge.read("charge", None, reader)?);
    }
    for refund in parse_objects("refund", &payment.refunds)? {
        facts.merge(refund.read("refund", None, Some(read_refund))?);
    }
    for dispute in parse_objects("dispute", &payment.disputes)? {
        facts.merge(dispute.read("dispute", None, Some(read_dispute))?);
    }
    Ok(facts)
}

impl DatedObject {
    /// `at` is when the object's state began, if anything says so; its creation counts otherwise, and if it is later.
    fn read(
        &self,
        kind: &'static str,
        at: Option<Timestamp>,
        reader: Option<PaymentReader>,
    ) -> Result<MoneyFacts, UnreadableObject> {
        let unreadable = |reason| self.unreadable(kind, reason);
        let malformed = || unreadable(ParkReason::FieldMalformed);
        let created = time_of(&self.times.created).ok_or_else(malformed)?;
        let stated = FactSource {
            at: at.map_or(created, |at| at.max(created)),
            event: EventId::parse(NO_EVENT).map_err(|_| malformed())?,
        };
        read_object_facts(&self.object, stated, reader).map_err(unreadable)
    }

    fn unreadable(&self, kind: &'static str, reason: ParkReason) -> UnreadableObject {
        let id = self.object.id.value().map_or("?", String::as_str);
        UnreadableObject {
            kind,
            id: id.to_owned(),
            reason,
        }
    }
}

fn parse_objects(
    kind: &'static str,
    objects: &[Box<RawValue>],
) -> Result<Vec<DatedObject>, UnreadableObject> {
    let parse_object = |raw: &RawValue| {
        let raw = raw.get().as_bytes();
        let parsed = parse_body(raw).and_then(|object| {
            let times = parse_body(raw)?;
            Ok(DatedObject { object, times })
        });
        parsed.map_err(|_| UnreadableObject {
            kind,
            id: "?".to_owned(),
            reason: ParkReason::PayloadUnreadable,
        })
    };
    objects.iter().map(|raw| parse_object(raw)).collect()
}

fn time_of(seconds: &LenientField<i64>) -> Option<Timestamp> {
    let seconds = *seconds.value()?;
    Timestamp::from_unix_s(seconds).ok()
}

/// An open session states nothing, but it is there.
fn read_session_exists(
    session: &StripeObject,
    _: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    session_entry(session, facts).map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::entity::merge::latest_state;
    use crate::entity::payment::facts::RefundState;
    use crate::ids::PaymentRef;

    fn raw(objects: Value) -> Vec<Box<RawValue>> {
        let objects = objects.as_array().unwrap().iter();
        let raw = |object: &Value| RawValue::from_string(object.to_string()).unwrap();
        objects.map(raw).collect()
    }

    /// A member of the PaymentIntent's facts, as it is stored.
    fn stored_member(intent: Value, charges: Value, member: &str) -> Value {
        let mut object = json!({ "id": "pi_1", "object": "payment_intent", "created": 1_000, "currency": "usd",
            "amount_received": 0 });
        object
            .as_object_mut()
            .unwrap()
            .extend(intent.as_object().unwrap().clone());
        let read = read_payment_at_stripe(&PaymentAtStripe {
            intents: raw(json!([object])),
            charges: raw(charges),
            ..PaymentAtStripe::default()
        });
        let facts = serde_json::to_value(read.unwrap()).unwrap();
        facts["payments"]["pi_1"][member].clone()
    }

    #[test]
    fn an_intents_status_says_which_event_it_would_have_sent_and_the_newest_time_dates_it() {
        let charges = json!([
            { "id": "ch_1", "object": "charge", "created": 1_500, "amount_refunded": 0 },
            { "id": "ch_2", "object": "charge", "created": 2_000, "amount_refunded": 0 },
        ]);
        let at = |text: &str| json!(format!("1970-01-01T00:{text}.000Z"));
        let paid = json!({ "status": "succeeded", "amount_received": 4200 });
        for (intent, charges, member, expected) in [
            (paid.clone(), json!([]), "succeeded", at("16:40")),
            (paid, charges.clone(), "succeeded", at("33:20")),
            (
                json!({ "status": "canceled", "canceled_at": 1_200 }),
                charges.clone(),
                "canceled",
                at("20:00"),
            ),
            (
                json!({ "status": "canceled" }),
                charges.clone(),
                "canceled",
                at("16:40"),
            ),
            (
                json!({ "status": "processing" }),
                charges,
                "processing",
                at("33:20"),
            ),
        ] {
            assert_eq!(
                stored_member(intent.clone(), charges, member)["at"],
                expected,
                "{intent}"
            );
        }
        for status in [
            "requires_payment_method",
            "requires_confirmation",
            "requires_action",
            "requires_capture",
            "invented_tomorrow",
        ] {
            for member in ["succeeded", "canceled", "processing", "received"] {
                let stored = stored_member(json!({ "status": status }), json!([]), member);
                assert_eq!(stored, Value::Null, "{status} {member}");
            }
        }
    }

    #[test]
    fn all_objects_of_a_payment_are_read_as_their_events_are() {
        let payment = PaymentAtStripe {
            intents: raw(
                json!([{ "id": "pi_1", "object": "payment_intent", "created": 1_000, "status": "succeeded",
                "amount_received": 4200, "currency": "usd", "latest_charge": "ch_1" }]),
            ),
            charges: raw(json!([
                { "id": "ch_0", "object": "charge", "created": 1_400, "payment_intent": "pi_1", "status": "failed",
                    "amount_captured": 0, "amount_refunded": 0, "currency": "usd" },
                { "id": "ch_1", "object": "charge", "created": 1_500, "payment_intent": "pi_1",
                    "amount_captured": 4200, "amount_refunded": 1000, "currency": "usd" },
            ])),
            refunds: raw(
                json!([{ "id": "re_1", "object": "refund", "created": 1_600, "charge": "ch_1",
                "payment_intent": "pi_1", "status": "succeeded", "amount": 1000, "currency": "usd" }]),
            ),
            disputes: raw(
                json!([{ "id": "du_1", "object": "dispute", "created": 1_700, "status": "lost",
                "payment_intent": "pi_1" }]),
            ),
            sessions: raw(json!([
                { "id": "cs_1", "object": "checkout.session", "created": 900, "status": "complete",
                    "payment_status": "paid", "amount_total": 4200, "currency": "usd", "payment_intent": "pi_1" },
                { "id": "cs_2", "object": "checkout.session", "created": 900, "status": "expired", "expires_at": 950 },
                { "id": "cs_3", "object": "checkout.session", "created": 900, "status": "open", "expires_at": 990 },
            ])),
        };
        let money = read_payment_at_stripe(&payment).unwrap();
        assert_eq!(money.payments.len(), 1);
        let intent = &money.payments[&PaymentRef::parse("pi_1").unwrap()];
        let received: Vec<String> = intent.received.iter().map(ToString::to_string).collect();
        assert_eq!(received, ["4200 usd"]);
        let charges: Vec<_> = money.charges.keys().map(|id| id.as_str()).collect();
        assert_eq!(charges, ["ch_1"]);
        let states: Vec<_> = money
            .refunds
            .values()
            .map(|refund| latest_state(&refund.states))
            .collect();
        assert_eq!(states, [Some(RefundState::Succeeded)]);
        assert_eq!(money.disputes.len(), 1);
        let sessions: Vec<_> = money
            .sessions
            .iter()
            .map(|(id, session)| {
                (
                    id.as_str(),
                    session.completed.is_some(),
                    session.expired.is_some(),
                )
            })
            .collect();
        assert_eq!(
            sessions,
            [
                ("cs_1", true, false),
                ("cs_2", false, true),
                ("cs_3", false, false)
            ]
        );
        let shown = format!("{payment:?}");
        assert!(
            shown.contains("charges: 2") && !shown.contains("ch_1"),
            "{shown}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named_and_not_skipped() {
        let of = |kind: &str, object: Value| {
            let mut payment = PaymentAtStripe::default();
            let objects = raw(json!([object]));
            match kind {
                "intent" => payment.intents = objects,
                "charge" => payment.charges = objects,
                "refund" => payment.refunds = objects,
                "dispute" => payment.disputes = objects,
                _ => payment.sessions = objects,
            }
            let refused = read_payment_at_stripe(&payment).unwrap_err();
            format!(
                "{} {} {}",
                refused.kind,
                refused.id,
                refused.reason.as_str()
            )
        };
        for (kind, object, expected) in [
            (
                "intent",
                json!({ "id": "pi_1", "object": "payment_intent", "created": 1 }),
                "payment_intent pi_1 field_malformed",
            ),
            (
                "intent",
                json!({ "id": "pi_1", "object": "payment_intent", "status": "canceled" }),
                "payment_intent pi_1 field_malformed",
            ),
            (
                "intent",
                json!({ "id": "pi_1", "object": "payment_intent", "status": "succeeded", "created": 1 }),
                "payment_intent pi_1 amount_malformed",
            ),
            (
                "session",
                json!({ "id": "cs_1", "created": 1 }),
                "checkout.session cs_1 field_malformed",
            ),
            (
                "session",
                json!({ "id": "cs_1", "created": 1, "status": "complete", "payment_status": "new" }),
                "checkout.session cs_1 field_malformed",
            ),
            (
                "charge",
                json!({ "id": "ch_1", "created": 1 }),
                "charge ch_1 amount_malformed",
            ),
            (
                "refund",
                json!({ "id": "re_1", "created": 1, "status": "new" }),
                "refund re_1 field_malformed",
            ),
            (
                "dispute",
                json!({ "created": 1, "status": "won" }),
                "dispute ? field_malformed",
            ),
            ("dispute", json!("du_1"), "dispute ? payload_unreadable"),
        ] {
            assert_eq!(of(kind, object.clone()), expected, "{object}");
        }
    }
}
