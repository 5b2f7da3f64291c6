//! What one event of Stripe states. Few fields are read; what is there and wrong, and needed, parks the event.

use std::collections::BTreeMap;

use super::facts::{
    Charge, Dispute, DisputeState, Failure, PaymentFacts, Refund, RefundState, Review, Session,
};
use crate::event::stripe::{Event, Resource};
use crate::ids::{ChargeId, ObjectId, RefundId, UserId};
use crate::inbox::ParkReason;
use crate::json::{Field, Malformed, Object};
use crate::merge::{Greatest, Least, Seen, Stated};
use crate::money::{Currency, Money};

/// The types that have a meaning, and how each is read.
const MEANINGS: [(&str, Reader); 21] = [
    ("checkout.session.completed", session_completed),
    ("checkout.session.async_payment_succeeded", session_paid),
    ("checkout.session.async_payment_failed", session_failed),
    ("checkout.session.expired", session_expired),
    ("payment_intent.processing", intent_processing),
    ("payment_intent.succeeded", intent_succeeded),
    ("payment_intent.payment_failed", intent_failed),
    ("payment_intent.canceled", intent_canceled),
    ("charge.refunded", charge_refunded),
    ("charge.refund.updated", refund),
    ("refund.created", refund),
    ("refund.updated", refund),
    ("refund.failed", refund),
    ("charge.dispute.created", dispute),
    ("charge.dispute.updated", dispute),
    ("charge.dispute.closed", dispute),
    ("charge.dispute.funds_withdrawn", dispute),
    ("charge.dispute.funds_reinstated", dispute),
    ("radar.early_fraud_warning.created", warning),
    ("review.opened", review),
    ("review.closed", review),
];

type Reader = fn(&Resource, Stated, &mut PaymentFacts) -> Result<(), ParkReason>;

/// What the event states; `None` where its type has no meaning here.
pub fn facts(event: &Event) -> Option<Result<PaymentFacts, ParkReason>> {
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
    let mut facts = PaymentFacts {
        reference: user(resource.client_reference_id.value()),
        user: paying_user(resource),
        ..PaymentFacts::default()
    };
    if let Some(intent) = resource.intent()? {
        // Every event of an intent makes it known, so that the cleanup can ask for all of an order's.
        let payment = facts.payments.entry(key(intent.as_str())?).or_default();
        payment.account = event.account.clone().map(Least);
    }
    reader(resource, stated, &mut facts)?;
    Ok(facts)
}

/// A refund's metadata may name who gave the money back: only what the customer pays by says who pays.
fn paying_user(resource: &Resource) -> Option<Least<UserId>> {
    let kind = resource.object.value()?;
    if !["checkout.session", "payment_intent"].contains(&kind.as_str()) {
        return None;
    }
    let metadata = resource.metadata()?;
    user(metadata.user_id_camel.value().or(metadata.user_id.value()))
}

/// A hint is never a reason to park.
fn user(hint: Option<&String>) -> Option<Least<UserId>> {
    UserId::parse(hint?).ok().map(Least)
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
        seen: Seen::once(stated),
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

fn intent_processing(
    intent: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let payment = facts.payments.entry(key_of(intent)?).or_default();
    payment.processing = Some(Seen::once(stated));
    Ok(())
}

fn intent_canceled(
    intent: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let payment = facts.payments.entry(key_of(intent)?).or_default();
    payment.canceled = Some(stated);
    Ok(())
}

fn session_completed(
    session: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    match session.payment_status.value().map(String::as_str) {
        // Paid here says the same as the intent's own success; a delayed method is paid later, by that.
        Some("paid") => session_paid(session, stated.clone(), facts)?,
        Some("no_payment_required") if !session.amount_total.is_absent() => {
            session_paid(session, stated.clone(), facts)?;
        }
        // A session that only saves a card has no total.
        Some("unpaid" | "no_payment_required") => {}
        _ => return Err(ParkReason::FieldMalformed),
    }
    known_session(session, facts)?.completed = Some(stated);
    Ok(())
}

fn session_paid(
    session: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let total = money(&session.amount_total, &session.currency)?;
    known_session(session, facts)?;
    paid(facts, session_payment(session)?, stated, total);
    Ok(())
}

fn session_failed(
    session: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    known_session(session, facts)?;
    let payment = session_payment(session)?;
    let failure = Failure {
        seen: Seen::once(stated),
        code: None,
        decline_code: None,
    };
    let failures = &mut facts.payments.entry(payment.clone()).or_default().failures;
    failures.insert(payment, failure);
    Ok(())
}

fn session_expired(
    session: &Resource,
    stated: Stated,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    known_session(session, facts)?.expired = Some(stated);
    Ok(())
}

fn known_session<'f>(
    session: &Resource,
    facts: &'f mut PaymentFacts,
) -> Result<&'f mut Session, ParkReason> {
    let intent = session.intent()?.map(Least);
    let known = facts.sessions.entry(session.session()?);
    Ok(known.or_insert(Session {
        completed: None,
        expired: None,
        intent,
    }))
}

/// A session's payment is its intent's, where it has one.
fn session_payment(session: &Resource) -> Result<ObjectId, ParkReason> {
    match session.intent()? {
        Some(intent) => key(intent.as_str()),
        None => key(session.session()?.as_str()),
    }
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

fn refund(refund: &Resource, stated: Stated, facts: &mut PaymentFacts) -> Result<(), ParkReason> {
    let id = refund.id.value().ok_or(ParkReason::FieldMalformed)?;
    let id = RefundId::parse(id).map_err(|_| ParkReason::FieldMalformed)?;
    // Stripe's own library has it nullable; money that has left counts until it is said to have come back.
    let state = match refund.status.checked()? {
        Some(status) => RefundState::of(status).ok_or(ParkReason::FieldMalformed)?,
        None => RefundState::Pending,
    };
    let intent = refund.intent()?;
    let of = match (refund.charge.checked()?, &intent) {
        (Some(charge), _) => key(charge.as_str())?,
        (None, Some(intent)) => key(intent.as_str())?,
        (None, None) => key(id.as_str())?,
    };
    facts.refunds.insert(
        id,
        Refund {
            of: Least(of),
            intent: intent.map(Least),
            amount: Greatest(money(&refund.amount, &refund.currency)?),
            states: BTreeMap::from([(state, Seen::once(stated))]),
        },
    );
    Ok(())
}

fn dispute(dispute: &Resource, stated: Stated, facts: &mut PaymentFacts) -> Result<(), ParkReason> {
    // The state is the object's own, never the event's name.
    let status = dispute.status.value().ok_or(ParkReason::FieldMalformed)?;
    let states = BTreeMap::from([(DisputeState::of(status), Seen::once(stated))]);
    facts.disputes.insert(own_key(dispute)?, Dispute { states });
    Ok(())
}

fn warning(warning: &Resource, stated: Stated, facts: &mut PaymentFacts) -> Result<(), ParkReason> {
    facts.warnings.insert(own_key(warning)?, stated);
    Ok(())
}

fn review(review: &Resource, stated: Stated, facts: &mut PaymentFacts) -> Result<(), ParkReason> {
    let (opened, closed) = match review.open.value() {
        Some(true) => (Some(stated), None),
        Some(false) => (None, Some(stated)),
        None => return Err(ParkReason::FieldMalformed),
    };
    facts
        .reviews
        .insert(own_key(review)?, Review { opened, closed });
    Ok(())
}

fn own_key(object: &Resource) -> Result<ObjectId, ParkReason> {
    key(object.id.value().ok_or(ParkReason::FieldMalformed)?)
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
