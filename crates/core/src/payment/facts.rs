//! What an event of Stripe states, and how statements add up.
//!
//! Facts carry the provider's own ids and merge by them, because two different events may describe one change, and
//! amounts are kept as the provider's cumulative figures, never as differences.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::event::stripe::{Event, Resource};
use crate::ids::{AccountId, ChargeId, CheckoutSessionId, ObjectId, PaymentIntentId};
use crate::inbox::ParkReason;
use crate::json::{Field, Malformed, Object};
use crate::merge::{Greatest, Least, Stated, merge_fields};
use crate::money::{Currency, Money};
use crate::time::Timestamp;

/// Everything known of the payments for one order or statement.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PaymentFacts {
    /// By PaymentIntent; by Checkout Session where that has none (nothing to pay, or a subscription's).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub payments: BTreeMap<ObjectId, Payment>,
    /// Finished Checkout Sessions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sessions: BTreeMap<CheckoutSessionId, Session>,
    /// Charges, as far as money went back.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub charges: BTreeMap<ChargeId, Charge>,
    /// When the cleanup, or a person, gave the order up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<Least<Timestamp>>,
    /// What people changed by hand.
    #[serde(skip_serializing_if = "Manual::is_none")]
    pub manual: Manual,
}

/// A person's repairs, with the moments at which they were found.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Manual {
    /// The order was set to refunded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<Least<Timestamp>>,
    /// Review reasons that were cleared; others flag again.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cleared: BTreeMap<String, Least<Timestamp>>,
    /// A review was asked for.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub flagged: BTreeSet<Timestamp>,
}

/// One way of paying.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Payment {
    /// The connected account it lives on; none for the platform's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Least<AccountId>>,
    /// It was paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<Stated>,
    /// The amounts that were said to be received: one, unless the provider contradicts itself.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub received: BTreeSet<Money>,
    /// Attempts that failed, by their charge where one was made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<ObjectId, Failure>,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When.
    #[serde(flatten)]
    pub stated: Stated,
    /// Such as `card_declined`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Least<String>>,
    /// Such as `insufficient_funds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<Least<String>>,
}

/// A finished Checkout Session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// When it was completed, paid or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Stated>,
    /// The payment it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Least<PaymentIntentId>>,
}

/// A charge of which money went back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    /// The payment it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Least<PaymentIntentId>>,
    /// When money first went back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<Stated>,
    /// What was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<Greatest<Money>>,
    /// What has gone back so far: cumulative, so the greatest is the newest.
    pub amount_refunded: Greatest<i64>,
}

merge_fields!(PaymentFacts {
    payments,
    sessions,
    charges,
    cancelled,
    manual
});
merge_fields!(Manual {
    refunded,
    cleared,
    flagged
});
merge_fields!(Payment {
    account,
    succeeded,
    received,
    failures
});
merge_fields!(Failure {
    stated,
    code,
    decline_code
});
merge_fields!(Session { completed, intent });
merge_fields!(Charge {
    intent,
    refunded,
    captured,
    amount_refunded
});

impl Manual {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl PaymentFacts {
    /// Whether this PaymentIntent is already known here.
    pub fn bears(&self, intent: &PaymentIntentId) -> bool {
        self.payments
            .keys()
            .any(|key| key.as_str() == intent.as_str())
    }
}

/// The types that have a meaning, and how each is read.
const MEANINGS: [(&str, Reader); 4] = [
    ("payment_intent.succeeded", intent_succeeded),
    ("payment_intent.payment_failed", intent_failed),
    ("checkout.session.completed", session_completed),
    ("charge.refunded", charge_refunded),
];

type Reader = fn(&Resource, Stated, &mut PaymentFacts) -> Result<(), ParkReason>;

/// What the event states; `None` where its type has no meaning here.
pub fn read(event: &Event) -> Option<Result<PaymentFacts, ParkReason>> {
    let (_, reader) = MEANINGS
        .iter()
        .find(|(event_type, _)| *event_type == event.event_type.as_str())?;
    Some(read_with(*reader, event))
}

fn read_with(reader: Reader, event: &Event) -> Result<PaymentFacts, ParkReason> {
    let resource = event.resource().ok_or(ParkReason::FieldMalformed)?;
    let stated = Stated {
        at: event.created().ok_or(ParkReason::FieldMalformed)?,
        event: event.id.clone(),
    };
    let mut facts = PaymentFacts::default();
    if let Some(intent) = resource.intent()? {
        // Every event of an intent makes it known, so that the cleanup can ask for all of an order's.
        let payment = facts.payments.entry(key(intent.as_str())?).or_default();
        payment.account = event.account.clone().map(Least);
    }
    reader(resource, stated, &mut facts)?;
    Ok(facts)
}

fn intent_succeeded(
    intent: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let received = money(&intent.amount_received, &intent.currency)?;
    paid(facts, key_of(intent)?, stated, received);
    Ok(())
}

fn intent_failed(
    intent: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let error = intent.last_payment_error.value().map(|Object(error)| error);
    let payment = key_of(intent)?;
    let attempt = error
        .and_then(|e| e.charge.value())
        .or_else(|| intent.latest_charge.value())
        .map_or(Ok(payment.clone()), |charge| key(charge.as_str()))?;
    let failure = Failure {
        stated,
        code: error.and_then(|e| e.code.value().cloned()).map(Least),
        decline_code: error
            .and_then(|e| e.decline_code.value().cloned())
            .map(Least),
    };
    facts
        .payments
        .entry(payment)
        .or_default()
        .failures
        .insert(attempt, failure);
    Ok(())
}

fn session_completed(
    session: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let id = session.session()?;
    let intent = session.intent()?;
    match session.payment_status.value().map(String::as_str) {
        // Paid here says the same as the intent's own success; a delayed method is paid later, by that.
        Some("paid" | "no_payment_required") => {
            let total = money(&session.amount_total, &session.currency)?;
            let payment = key(intent.as_ref().map_or(id.as_str(), PaymentIntentId::as_str))?;
            paid(facts, payment, stated.clone(), total);
        }
        Some("unpaid") => {}
        _ => return Err(ParkReason::FieldMalformed),
    }
    let completed = Some(stated);
    facts.sessions.insert(
        id,
        Session {
            completed,
            intent: intent.map(Least),
        },
    );
    Ok(())
}

fn charge_refunded(
    charge: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let id = charge.id.value().ok_or(ParkReason::FieldMalformed)?;
    let id = ChargeId::parse(id).map_err(|_| ParkReason::FieldMalformed)?;
    let captured = money(&charge.amount_captured, &charge.currency)?;
    let refunded = money(&charge.amount_refunded, &charge.currency)?;
    facts.charges.insert(
        id,
        Charge {
            intent: charge.intent()?.map(Least),
            refunded: Some(stated),
            captured: Some(Greatest(captured)),
            amount_refunded: Greatest(refunded.amount),
        },
    );
    Ok(())
}

fn paid(facts: &mut PaymentFacts, payment: ObjectId, stated: Stated, received: Money) {
    let payment = facts.payments.entry(payment).or_default();
    payment.succeeded = Some(stated);
    payment.received.insert(received);
}

fn key_of(intent: &Resource) -> Result<ObjectId, ParkReason> {
    let intent = intent.intent()?.ok_or(ParkReason::FieldMalformed)?;
    key(intent.as_str())
}

fn key(id: &str) -> Result<ObjectId, ParkReason> {
    ObjectId::parse(id).map_err(|_| ParkReason::FieldMalformed)
}

fn money(amount: &Field<i64>, currency: &Field<String>) -> Result<Money, ParkReason> {
    let amount = amount.value().copied().filter(|amount| *amount >= 0);
    let currency = currency.value().and_then(|code| Currency::parse(code).ok());
    match (amount, currency) {
        (Some(amount), Some(currency)) => Ok(Money { amount, currency }),
        _ => Err(ParkReason::AmountMalformed),
    }
}

impl From<Malformed> for ParkReason {
    fn from(_: Malformed) -> Self {
        Self::FieldMalformed
    }
}
