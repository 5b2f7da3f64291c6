//! The handlers of Stripe's event types (`EVENT_READERS`): each reads the payment facts from one event.
//! `entity::payment` merges them and derives the columns.
//!
//! Rule: a field that a fact needs and that is missing or malformed parks the event (`field_malformed`,
//! `amount_malformed`); a field that is only a hint counts as missing. An event states only what its object says at
//! that time, never a difference to an earlier event, so that any subset of events in any order can be merged.

use std::collections::BTreeMap;

use crate::entity::merge::{FactSource, MaxRegister, MinRegister, SeenInterval};
use crate::entity::payment::facts::{
    ChargeFacts, DisputeFacts, DisputeState, FailedAttempt, IntentFacts, PaymentFacts, RefundFacts,
    RefundState, ReviewFacts, SessionFacts,
};
use crate::ids::{ChargeId, ObjectId, PaymentRef, RefundId, UserId};
use crate::json::{LenientField, MalformedField, NestedObject};
use crate::money::{Currency, Money};
use crate::outcome::ParkReason;
use crate::provider::stripe::event::{StripeEvent, StripeObject};

/// The handled types about payments. Several types share one reader, because the object says what happened and not the
/// type: `refund.created`, `refund.updated` and `refund.failed` all carry the refund with its current `status`.
const EVENT_READERS: [(&str, FactReader); 21] = [
    ("checkout.session.completed", read_session_completed),
    (
        "checkout.session.async_payment_succeeded",
        read_session_paid,
    ),
    ("checkout.session.async_payment_failed", read_session_failed),
    ("checkout.session.expired", read_session_expired),
    ("payment_intent.processing", read_intent_processing),
    ("payment_intent.succeeded", read_intent_succeeded),
    ("payment_intent.payment_failed", read_intent_failed),
    ("payment_intent.canceled", read_intent_canceled),
    ("charge.refunded", read_charge_refunded),
    ("charge.refund.updated", read_refund),
    ("refund.created", read_refund),
    ("refund.updated", read_refund),
    ("refund.failed", read_refund),
    ("charge.dispute.created", read_dispute),
    ("charge.dispute.updated", read_dispute),
    ("charge.dispute.closed", read_dispute),
    ("charge.dispute.funds_withdrawn", read_dispute),
    ("charge.dispute.funds_reinstated", read_dispute),
    ("radar.early_fraud_warning.created", read_fraud_warning),
    ("review.opened", read_review),
    ("review.closed", read_review),
];

type FactReader = fn(&StripeObject, FactSource, &mut PaymentFacts) -> Result<(), ParkReason>;

/// The facts of the event; `None` if its type is not about payments.
pub fn read_payment_facts(event: &StripeEvent) -> Option<Result<PaymentFacts, ParkReason>> {
    let (_, reader) = EVENT_READERS
        .iter()
        .find(|(event_type, _)| *event_type == event.event_type.as_str())?;
    Some(apply_reader(*reader, event))
}

fn apply_reader(reader: FactReader, event: &StripeEvent) -> Result<PaymentFacts, ParkReason> {
    let resource = event.resource().ok_or(ParkReason::FieldMalformed)?;
    let stated = FactSource {
        at: event.created().ok_or(ParkReason::FieldMalformed)?,
        event: event.id.clone(),
    };
    let mut facts = PaymentFacts {
        reference: parse_user_hint(resource.client_reference_id.value()),
        user: read_paying_user(resource),
        ..PaymentFacts::default()
    };
    if let Some(intent) = resource.intent()? {
        // Every event of a PaymentIntent adds the payment, even without any fact about it: the cleanup asks Stripe
        // about every payment of an order before it cancels, and must not miss one.
        let payment = facts
            .payments
            .entry(PaymentRef::Intent(intent))
            .or_default();
        payment.account = event.account.clone().map(MinRegister);
    }
    reader(resource, stated, &mut facts)?;
    Ok(facts)
}

/// The user from the metadata of a session or PaymentIntent only. Metadata of a refund may name the support agent who
/// made the refund, and that agent once became an order's `userId`.
fn read_paying_user(resource: &StripeObject) -> Option<MinRegister<UserId>> {
    let kind = resource.object.value()?;
    if !["checkout.session", "payment_intent"].contains(&kind.as_str()) {
        return None;
    }
    let metadata = resource.metadata()?;
    parse_user_hint(metadata.user_id_camel.value().or(metadata.user_id.value()))
}

/// A hint is never a reason to park an event, so an invalid id counts as missing.
fn parse_user_hint(hint: Option<&String>) -> Option<MinRegister<UserId>> {
    UserId::parse(hint?).ok().map(MinRegister)
}

fn read_intent_succeeded(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let received = parse_money(&intent.amount_received, &intent.currency)?;
    add_success(facts, intent_payment_ref(intent)?, stated, received);
    Ok(())
}

fn read_intent_failed(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let error = intent
        .last_payment_error
        .value()
        .map(|NestedObject(error)| error);
    let payment = intent_payment_ref(intent)?;
    // The charge tells two attempts of one payment apart. The error names the charge of its attempt; `latest_charge` is
    // the fallback, and without both all attempts of the payment share one entry.
    let attempt = error
        .and_then(|e| e.charge.value())
        .or_else(|| intent.latest_charge.value())
        .map_or(Ok(payment.clone()), |charge| {
            PaymentRef::parse(charge.as_str()).map_err(|_| ParkReason::FieldMalformed)
        })?;
    let failure = FailedAttempt {
        seen: SeenInterval::once(stated),
        code: error.and_then(|e| e.code.value().cloned()).map(MinRegister),
        decline_code: error
            .and_then(|e| e.decline_code.value().cloned())
            .map(MinRegister),
    };
    facts
        .payments
        .entry(payment)
        .or_default()
        .failures
        .insert(attempt, failure);
    Ok(())
}

fn read_intent_processing(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    intent_entry(intent, facts)?.processing = Some(SeenInterval::once(stated));
    Ok(())
}

fn read_intent_canceled(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    intent_entry(intent, facts)?.canceled = Some(stated);
    Ok(())
}

fn read_session_completed(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    match session.payment_status.value().map(String::as_str) {
        // A paid session and `payment_intent.succeeded` state one fact under the PaymentIntent's id and count once.
        // With a delayed payment method the session completes as `unpaid`, and the success comes days later by its own
        // event.
        Some("paid") => read_session_paid(session, stated.clone(), facts)?,
        Some("no_payment_required") if !session.amount_total.is_absent() => {
            read_session_paid(session, stated.clone(), facts)?;
        }
        // A session that only saves a card also says `no_payment_required`, but has no total: nothing was paid, and an
        // order must not become paid by it.
        Some("unpaid" | "no_payment_required") => {}
        _ => return Err(ParkReason::FieldMalformed),
    }
    session_entry(session, facts)?.completed = Some(stated);
    Ok(())
}

fn read_session_paid(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let total = parse_money(&session.amount_total, &session.currency)?;
    session_entry(session, facts)?;
    add_success(facts, session_payment_ref(session)?, stated, total);
    Ok(())
}

fn read_session_failed(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    session_entry(session, facts)?;
    let payment = session_payment_ref(session)?;
    let failure = FailedAttempt {
        seen: SeenInterval::once(stated),
        code: None,
        decline_code: None,
    };
    let failures = &mut facts.payments.entry(payment.clone()).or_default().failures;
    failures.insert(payment, failure);
    Ok(())
}

fn read_session_expired(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    session_entry(session, facts)?.expired = Some(stated);
    Ok(())
}

fn session_entry<'f>(
    session: &StripeObject,
    facts: &'f mut PaymentFacts,
) -> Result<&'f mut SessionFacts, ParkReason> {
    let intent = session.intent()?.map(MinRegister);
    let known = facts.sessions.entry(session.session()?);
    Ok(known.or_insert(SessionFacts {
        completed: None,
        expired: None,
        intent,
    }))
}

/// The id under which a session's payment is stored: its PaymentIntent's, or its own if it has none.
fn session_payment_ref(session: &StripeObject) -> Result<PaymentRef, ParkReason> {
    Ok(match session.intent()? {
        Some(intent) => PaymentRef::Intent(intent),
        None => PaymentRef::Session(session.session()?),
    })
}

fn read_charge_refunded(
    charge: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let id = charge.id.value().ok_or(ParkReason::FieldMalformed)?;
    let id = ChargeId::parse(id).map_err(|_| ParkReason::FieldMalformed)?;
    let captured = parse_money(&charge.amount_captured, &charge.currency)?;
    let refunded = parse_money(&charge.amount_refunded, &charge.currency)?;
    facts.charges.insert(
        id,
        ChargeFacts {
            intent: charge.intent()?.map(MinRegister),
            refunded: Some(stated),
            captured: Some(MaxRegister(captured)),
            amount_refunded: MaxRegister(refunded.amount),
        },
    );
    Ok(())
}

fn read_refund(
    refund: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    let id = refund.id.value().ok_or(ParkReason::FieldMalformed)?;
    let id = RefundId::parse(id).map_err(|_| ParkReason::FieldMalformed)?;
    // `status` may be null (stripe-python 16.1.0). It then counts as pending, because the money has left: if we
    // parked or ignored the event, the order would show as paid in full. An unknown status parks the event.
    let state = match refund.status.checked()? {
        Some(status) => RefundState::parse_status(status).ok_or(ParkReason::FieldMalformed)?,
        None => RefundState::Pending,
    };
    let intent = refund.intent()?;
    // A refund may name no charge. It then belongs to its payment, and `refunds` looks for the payment's only charge.
    let of = match (refund.charge.checked()?, &intent) {
        (Some(charge), _) => parse_object_id(charge.as_str())?,
        (None, Some(intent)) => parse_object_id(intent.as_str())?,
        (None, None) => parse_object_id(id.as_str())?,
    };
    facts.refunds.insert(
        id,
        RefundFacts {
            of: MinRegister(of),
            intent: intent.map(MinRegister),
            amount: MaxRegister(parse_money(&refund.amount, &refund.currency)?),
            states: BTreeMap::from([(state, SeenInterval::once(stated))]),
        },
    );
    Ok(())
}

fn read_dispute(
    dispute: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    // The dispute's `status` decides and not the type: `charge.dispute.closed` comes with `won`, `lost` or
    // `warning_closed`, so the type does not say how the dispute ended.
    let status = dispute.status.value().ok_or(ParkReason::FieldMalformed)?;
    let states = BTreeMap::from([(
        DisputeState::parse_status(status),
        SeenInterval::once(stated),
    )]);
    facts
        .disputes
        .insert(object_key(dispute)?, DisputeFacts { states });
    Ok(())
}

fn read_fraud_warning(
    warning: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    facts.warnings.insert(object_key(warning)?, stated);
    Ok(())
}

fn read_review(
    review: &StripeObject,
    stated: FactSource,
    facts: &mut PaymentFacts,
) -> Result<(), ParkReason> {
    // As with disputes, the object's `open` decides and not the type.
    let (opened, closed) = match review.open.value() {
        Some(true) => (Some(stated), None),
        Some(false) => (None, Some(stated)),
        None => return Err(ParkReason::FieldMalformed),
    };
    facts
        .reviews
        .insert(object_key(review)?, ReviewFacts { opened, closed });
    Ok(())
}

fn object_key(object: &StripeObject) -> Result<ObjectId, ParkReason> {
    parse_object_id(object.id.value().ok_or(ParkReason::FieldMalformed)?)
}

fn add_success(facts: &mut PaymentFacts, payment: PaymentRef, stated: FactSource, received: Money) {
    let payment = facts.payments.entry(payment).or_default();
    payment.succeeded = Some(stated);
    payment.received.insert(received);
}

fn intent_entry<'f>(
    intent: &StripeObject,
    facts: &'f mut PaymentFacts,
) -> Result<&'f mut IntentFacts, ParkReason> {
    let payment = intent_payment_ref(intent)?;
    Ok(facts.payments.entry(payment).or_default())
}

fn intent_payment_ref(intent: &StripeObject) -> Result<PaymentRef, ParkReason> {
    let intent = intent.intent()?.ok_or(ParkReason::FieldMalformed)?;
    Ok(PaymentRef::Intent(intent))
}

fn parse_object_id(id: &str) -> Result<ObjectId, ParkReason> {
    ObjectId::parse(id).map_err(|_| ParkReason::FieldMalformed)
}

/// An amount in the minor unit, 0 to 2^53, with its currency. Anything else parks the event as `amount_malformed`:
/// rounding an amount or assuming a currency would be a guess about money.
fn parse_money(
    amount: &LenientField<i64>,
    currency: &LenientField<String>,
) -> Result<Money, ParkReason> {
    let amount = amount.value().copied().filter(|amount| *amount >= 0);
    let currency = currency.value().and_then(|code| Currency::parse(code).ok());
    match (amount, currency) {
        (Some(amount), Some(currency)) => Ok(Money { amount, currency }),
        _ => Err(ParkReason::AmountMalformed),
    }
}

impl From<MalformedField> for ParkReason {
    fn from(_: MalformedField) -> Self {
        Self::FieldMalformed
    }
}
