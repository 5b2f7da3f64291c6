//! The catalogue of Stripe's event types, and the handlers that read the payment facts from one event each; those about
//! accounts are in `account`. `entity::payment` merges the facts and derives the columns.
//!
//! To add an event type, add its row to `catalogue!` and, if no reader fits, a reader here; docs/CONTRIBUTING.md has
//! the other places. Source: the event types of the official Python library 16.1.0.
//!
//! Rule: a field that a fact needs and that is missing or malformed parks the event (`field_malformed`,
//! `amount_malformed`); a field that is only a hint counts as missing. An event states only what its object says at
//! that time, never a difference to an earlier event, so that any subset of events in any order can be merged.

use std::collections::{BTreeMap, BTreeSet};

use crate::entity::account::AccountFacts;
use crate::entity::merge::{FactSource, MaxRegister, MinRegister, SeenInterval};
use crate::entity::payment::facts::{
    ChargeFacts, DisputeFacts, DisputeState, FailedAttempt, IntentFacts, MoneyFacts, RefundFacts,
    RefundState, ReviewFacts, SessionAmounts, SessionFacts, SessionParts, UserHints,
};
use crate::ids::{ChargeId, ObjectId, PaymentRef, RefundId, UserId};
use crate::json::{LenientField, MalformedField, NestedObject};
use crate::money::{Currency, Money};
use crate::outcome::ParkReason;
use crate::provider::interpret::CatalogueEntry;
use crate::provider::stripe::account::{
    AccountReader, read_account_authorized, read_account_deauthorized, read_account_facts,
    read_account_updated,
};
use crate::provider::stripe::event::{StripeEvent, StripeObject, USER_KEYS};
use crate::time::Timestamp;

macro_rules! catalogue {
    ($($event_type:literal => $kind:ident($reader:ident), $sample:literal, $meaning:literal;)*) => {
        /// The catalogue: every event type that changes an entity, and what reads it.
        pub(super) const EVENT_TYPES: &[(CatalogueEntry, FactReader)] = &[$((
            CatalogueEntry { event_type: $event_type, meaning: $meaning, sample: $sample },
            FactReader::$kind($reader),
        ),)*];

        /// The types of the catalogue, to which endpoints subscribe and for which `reconcile` asks.
        pub const HANDLED_TYPES: &[&str] = &[$($event_type,)*];
    };
}

// One row for each event type: what reads it, a sample in `events/payloads/stripe`, and its meaning. Several types share
// one reader, because the object says what happened and not the type: `refund.created`, `refund.updated` and
// `refund.failed` all carry the refund with its current `status`.
catalogue! {
    "checkout.session.completed" =>
        Payment(read_session_completed), "checkout_session_completed_paid",
        "the session is finished; it is paid if its `payment_status` is `paid`, or is `no_payment_required` and the session has an `amount_total`; if it is `unpaid`, the payment is in progress";
    "checkout.session.async_payment_succeeded" =>
        Payment(read_session_paid), "checkout_session_async_payment_succeeded",
        "the session's delayed payment succeeded: `amount_total`";
    "checkout.session.async_payment_failed" =>
        Payment(read_session_failed), "checkout_session_async_payment_failed",
        "the session's delayed payment failed";
    "checkout.session.expired" =>
        Payment(read_session_expired), "checkout_session_expired",
        "the session can no longer be paid";
    "payment_intent.processing" =>
        Payment(read_intent_processing), "payment_intent_processing",
        "the payment is in progress";
    "payment_intent.succeeded" =>
        Payment(read_intent_succeeded), "payment_intent_succeeded",
        "the payment succeeded: `amount_received`";
    "payment_intent.payment_failed" =>
        Payment(read_intent_failed), "payment_intent_payment_failed",
        "an attempt failed: its charge, code and decline code";
    "payment_intent.canceled" =>
        Payment(read_intent_canceled), "payment_intent_canceled",
        "the payment can no longer succeed";
    "charge.refunded" =>
        Payment(read_charge), "charge_refunded_full",
        "how much of this charge was authorised, captured and refunded so far, and whether that is everything";
    "charge.refund.updated" =>
        Payment(read_refund), "charge_refund_updated",
        "as `refund.updated`";
    "refund.created" =>
        Payment(read_refund), "refund_created",
        "as `refund.updated`";
    "refund.updated" =>
        Payment(read_refund), "refund_updated",
        "the refund's amount and state";
    "refund.failed" =>
        Payment(read_refund), "refund_failed",
        "as `refund.updated`";
    "charge.dispute.created" =>
        Payment(read_dispute), "charge_dispute_created",
        "as `charge.dispute.updated`";
    "charge.dispute.updated" =>
        Payment(read_dispute), "charge_dispute_updated",
        "the dispute's state, from its `status`; the name of the event is not used";
    "charge.dispute.closed" =>
        Payment(read_dispute), "charge_dispute_closed_lost",
        "as `charge.dispute.updated`";
    "charge.dispute.funds_withdrawn" =>
        Payment(read_dispute), "charge_dispute_funds_withdrawn",
        "as `charge.dispute.updated`";
    "charge.dispute.funds_reinstated" =>
        Payment(read_dispute), "charge_dispute_funds_reinstated",
        "as `charge.dispute.updated`";
    "radar.early_fraud_warning.created" =>
        Payment(read_fraud_warning), "radar_early_fraud_warning_created",
        "the card network suspects fraud";
    "review.opened" =>
        Payment(read_review), "review_opened",
        "Stripe holds the payment for a review, or has ended the review: its `open`";
    "review.closed" =>
        Payment(read_review), "review_closed",
        "as `review.opened`";
    "account.updated" =>
        Account(read_account_updated), "connect_account_updated",
        "whether the connected account may take payments, and whether it may pay out";
    "account.application.authorized" =>
        Account(read_account_authorized), "connect_account_application_authorized",
        "the account is connected";
    "account.application.deauthorized" =>
        Account(read_account_deauthorized), "connect_account_application_deauthorized",
        "the account is disconnected";
    "payment_intent.amount_capturable_updated" =>
        Payment(read_intent_authorized), "payment_intent_amount_capturable_updated",
        "the amount is authorised and can be captured";
    "charge.captured" =>
        Payment(read_charge_captured), "charge_captured",
        "how much of this charge was authorised and captured; without a PaymentIntent also that the payment succeeded";
    "charge.expired" =>
        Payment(read_charge_expired), "charge_expired",
        "the authorisation ended uncaptured: the payment can no longer succeed";
    "charge.succeeded" =>
        Payment(read_charge_succeeded), "charge_succeeded",
        "the charge is another name of its PaymentIntent, and until when it can be captured; without a PaymentIntent that the payment succeeded, or is authorised: `captured`";
    "charge.failed" =>
        Payment(read_charge_failed), "charge_failed",
        "without a PaymentIntent, that the attempt failed; else nothing, because `payment_intent.payment_failed` says it";
}

/// What reads the facts of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum FactReader {
    Payment(PaymentReader),
    Account(AccountReader),
}

pub(super) type PaymentReader =
    fn(&StripeObject, FactSource, &mut MoneyFacts) -> Result<(), ParkReason>;

/// The facts of a Stripe event. `Err` if a field that they need is missing or malformed.
#[derive(Clone, Debug, PartialEq)]
pub enum StripeFacts {
    Payment(Result<MoneyFacts, ParkReason>),
    Account(Result<AccountFacts, ParkReason>),
}

/// `None` if the catalogue does not have the event's type.
pub fn read_facts(event: &StripeEvent) -> Option<StripeFacts> {
    let event_type = event.event_type.as_str();
    let (_, reader) = EVENT_TYPES
        .iter()
        .find(|(entry, _)| entry.event_type == event_type)?;
    Some(match reader {
        FactReader::Payment(reader) => StripeFacts::Payment(read_payment_facts(event, *reader)),
        FactReader::Account(reader) => StripeFacts::Account(read_account_facts(event, *reader)),
    })
}

fn read_payment_facts(
    event: &StripeEvent,
    reader: PaymentReader,
) -> Result<MoneyFacts, ParkReason> {
    let resource = event.resource().ok_or(ParkReason::FieldMalformed)?;
    let stated = FactSource {
        at: event.created().ok_or(ParkReason::FieldMalformed)?,
        event: event.id.clone(),
    };
    let mut facts = read_object_facts(resource, stated.clone(), Some(reader))?;
    if event.is_before_basil() {
        let was_released = |charge: &&mut ChargeFacts| charge.amount > charge.captured;
        for charge in facts.charges.values_mut().filter(was_released) {
            charge.before_basil = Some(stated.clone());
        }
    }
    Ok(facts)
}

/// The facts of one object, whether an event carried it or Stripe's API returned it (`objects`). Without a reader: that
/// the object's payment exists.
pub(super) fn read_object_facts(
    resource: &StripeObject,
    stated: FactSource,
    reader: Option<PaymentReader>,
) -> Result<MoneyFacts, ParkReason> {
    let mut facts = MoneyFacts {
        users: UserHints {
            reference: parse_user_hint(resource.client_reference_id.value().map(String::as_str)),
            metadata: read_paying_user(resource),
        },
        ..MoneyFacts::default()
    };
    if let Some(intent) = resource.intent()? {
        // Every event of a PaymentIntent adds the payment, even without any fact about it: the cleanup asks Stripe
        // about every payment of an order before it cancels, and must not miss one.
        facts
            .payments
            .entry(PaymentRef::Intent(intent))
            .or_default();
    }
    if let Some(reader) = reader {
        reader(resource, stated, &mut facts)?;
    }
    let payments = facts.payments.values_mut();
    for payment in payments.filter(|payment| payment.succeeded.is_some()) {
        payment.payer = facts.users.clone();
    }
    Ok(facts)
}

/// The user from the metadata of a session, a PaymentIntent, or a charge without one, only. Metadata of a refund may name the support agent who
/// made the refund, and that agent once became an order's `userId`.
fn read_paying_user(resource: &StripeObject) -> Option<MinRegister<UserId>> {
    let kind = resource.object.value()?;
    let is_payment = match kind.as_str() {
        "checkout.session" | "payment_intent" => true,
        // Of the old Charges API.
        "charge" => resource.payment_intent.is_absent(),
        _ => false,
    };
    if !is_payment {
        return None;
    }
    let metadata = resource.metadata()?;
    parse_user_hint(metadata.first(USER_KEYS))
}

/// A hint is never a reason to park an event, so an invalid id counts as missing.
fn parse_user_hint(hint: Option<&str>) -> Option<MinRegister<UserId>> {
    UserId::parse(hint?).ok().map(MinRegister)
}

pub(super) fn read_intent_succeeded(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let received = parse_money(&intent.amount_received, &intent.currency)?;
    add_success(facts, intent_payment_ref(intent)?, stated, received);
    Ok(())
}

fn read_intent_failed(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let error = intent
        .last_payment_error
        .value()
        .map(|NestedObject(error)| error);
    let payment = intent_payment_ref(intent)?;
    // The charge tells two attempts of one payment apart. The error names the charge of its attempt; one that names none,
    // such as a failed 3-D Secure check, made no charge, and `latest_charge` is that of an attempt before. Such attempts of
    // the payment share one entry.
    let attempt = match error {
        Some(error) => error.charge.value(),
        None => intent.latest_charge.value(),
    };
    let attempt = attempt.map_or(Ok(payment.clone()), |charge| {
        PaymentRef::parse(charge.as_str()).map_err(|_| ParkReason::FieldMalformed)
    })?;
    let failure = FailedAttempt {
        stated,
        code: error.and_then(|e| e.code.value().cloned()),
        decline_code: error.and_then(|e| e.decline_code.value().cloned()),
    };
    facts
        .payments
        .entry(payment)
        .or_default()
        .failures
        .insert(attempt, failure);
    Ok(())
}

pub(super) fn read_intent_processing(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    intent_entry(intent, facts)?.processing = Some(SeenInterval::once(stated));
    Ok(())
}

fn read_intent_authorized(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    // The type also comes when nothing can be captured any more.
    let status = intent.status.value().ok_or(ParkReason::FieldMalformed)?;
    let is_authorized = status == "requires_capture";
    let payment = intent_entry(intent, facts)?;
    payment.authorized = is_authorized.then(|| SeenInterval::once(stated));
    Ok(())
}

pub(super) fn read_intent_canceled(
    intent: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    intent_entry(intent, facts)?.canceled = Some(stated);
    Ok(())
}

pub(super) fn read_session_completed(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    match session.payment_status.value().map(String::as_str) {
        // A paid session and `payment_intent.succeeded` state one fact under the PaymentIntent's id and count once.
        // With a delayed payment method the session completes as `unpaid`, and the success comes days later by its own
        // event.
        Some("paid") => read_session_paid(session, stated.clone(), facts)?,
        Some("no_payment_required") if !session.amount_total.is_absent() => {
            read_session_paid(session, stated.clone(), facts)?;
        }
        // A voucher, bank debit or transfer: the customer did what was asked, and the money is on its way. Case: an order
        // with a declined card and then a voucher counted as failed, and the cleanup ended the voucher before the
        // customer went to the shop with it.
        Some("unpaid") => {
            let payment = facts.payments.entry(session_payment_ref(session)?);
            payment.or_default().processing = Some(SeenInterval::once(stated.clone()));
        }
        // A session that only saves a card also says `no_payment_required`, but has no total: nothing was paid, and an
        // order must not become paid by it.
        Some("no_payment_required") => {}
        _ => return Err(ParkReason::FieldMalformed),
    }
    session_entry(session, facts)?.completed = Some(stated);
    Ok(())
}

fn read_session_paid(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let total = parse_money(&session.amount_total, &session.currency)?;
    let parts = read_session_parts(session);
    let paid = &mut session_entry(session, facts)?.paid;
    paid.insert(SessionAmounts { total, parts });
    let payment = facts.payments.entry(session_payment_ref(session)?);
    payment.or_default().succeeded = Some(stated);
    Ok(())
}

/// How the total follows from the items; none if the session does not say.
fn read_session_parts(session: &StripeObject) -> Option<SessionParts> {
    let part = |amount: &LenientField<i64>| amount.value().copied().filter(|part| *part >= 0);
    let NestedObject(details) = session.total_details.value()?;
    Some(SessionParts {
        subtotal: part(&session.amount_subtotal)?,
        discount: part(&details.amount_discount)?,
        tax: part(&details.amount_tax)?,
        shipping: part(&details.amount_shipping).unwrap_or_default(),
    })
}

fn read_session_failed(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    session_entry(session, facts)?;
    let payment = session_payment_ref(session)?;
    let failure = FailedAttempt {
        stated,
        code: None,
        decline_code: None,
    };
    let failures = &mut facts.payments.entry(payment.clone()).or_default().failures;
    failures.insert(payment, failure);
    Ok(())
}

pub(super) fn read_session_expired(
    session: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    session_entry(session, facts)?.expired = Some(stated);
    Ok(())
}

pub(super) fn session_entry<'f>(
    session: &StripeObject,
    facts: &'f mut MoneyFacts,
) -> Result<&'f mut SessionFacts, ParkReason> {
    let intent = session.intent()?.map(MinRegister);
    let known = facts.sessions.entry(session.session()?);
    Ok(known.or_insert(SessionFacts {
        completed: None,
        paid: BTreeSet::new(),
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

pub(super) fn read_charge(
    charge: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let id = charge_id(charge)?;
    let is_captured = charge.captured.value().copied();
    let captured = match &charge.amount_captured {
        LenientField::Absent if is_captured == Some(false) => LenientField::Value(0),
        amount => amount.clone(),
    };
    let captured = parse_money(&captured, &charge.currency)?;
    let refunded = parse_money(&charge.amount_refunded, &charge.currency)?;
    let is_refunded = charge.refunded.value().is_some_and(|is_full| *is_full);
    let amount = parse_money(&charge.amount, &charge.currency).ok();
    facts.charges.insert(
        id,
        ChargeFacts {
            intent: charge.intent()?.map(MinRegister),
            amount: amount.map(MaxRegister),
            captured: Some(MaxRegister(captured)),
            capture_before: capture_before(charge),
            before_basil: None,
            refunded: (refunded.amount > 0).then(|| stated.clone()),
            refunded_in_full: (is_refunded && captured.amount > 0).then_some(stated),
            amount_refunded: MaxRegister(refunded.amount),
        },
    );
    Ok(())
}

/// The charge as the payment itself: one of Stripe's old Charges API, without a PaymentIntent.
fn own_payment<'f>(
    charge: &StripeObject,
    facts: &'f mut MoneyFacts,
) -> Result<Option<(PaymentRef, &'f mut IntentFacts)>, ParkReason> {
    let id = charge_payment_ref(charge)?;
    if matches!(id, PaymentRef::Intent(_)) {
        return Ok(None);
    }
    let payment = facts.payments.entry(id.clone()).or_default();
    Ok(Some((id, payment)))
}

/// The payment of a charge: its PaymentIntent, or itself.
fn charge_payment_ref(charge: &StripeObject) -> Result<PaymentRef, ParkReason> {
    Ok(match charge.intent()? {
        Some(intent) => PaymentRef::Intent(intent),
        None => PaymentRef::Charge(charge_id(charge)?),
    })
}

fn charge_id(charge: &StripeObject) -> Result<ChargeId, ParkReason> {
    let id = charge.id.value().ok_or(ParkReason::FieldMalformed)?;
    ChargeId::parse(id).map_err(|_| ParkReason::FieldMalformed)
}

pub(super) fn read_charge_captured(
    charge: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    read_charge(charge, stated.clone(), facts)?;
    let captured = parse_money(&charge.amount_captured, &charge.currency)?;
    if let Some((payment, _)) = own_payment(charge, facts)? {
        add_success(facts, payment, stated, captured);
    }
    Ok(())
}

fn read_charge_expired(
    charge: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let payment = charge_payment_ref(charge)?;
    facts.payments.entry(payment).or_default().canceled = Some(stated);
    Ok(())
}

fn read_charge_succeeded(
    charge: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let is_captured = charge.captured.value().copied();
    let own = own_payment(charge, facts)?;
    match (own, is_captured) {
        // Its PaymentIntent says everything else.
        (None, Some(true) | None) => Ok(()),
        (None, Some(false)) => read_charge(charge, stated, facts),
        (Some(_), Some(true)) => read_charge_captured(charge, stated, facts),
        (Some((_, payment)), Some(false)) => {
            payment.authorized = Some(SeenInterval::once(stated.clone()));
            read_charge(charge, stated, facts)
        }
        (Some(_), None) => Err(ParkReason::FieldMalformed),
    }
}

fn read_charge_failed(
    charge: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    let outcome = charge.outcome.value().map(|NestedObject(outcome)| outcome);
    let failure = FailedAttempt {
        stated,
        code: charge.failure_code.value().cloned(),
        decline_code: outcome.and_then(|outcome| outcome.reason.value().cloned()),
    };
    if let Some((id, payment)) = own_payment(charge, facts)? {
        payment.failures.insert(id, failure);
    }
    Ok(())
}

/// Until when an authorised charge can be captured.
fn capture_before(charge: &StripeObject) -> Option<MaxRegister<Timestamp>> {
    let NestedObject(details) = charge.payment_method_details.value()?;
    let NestedObject(card) = details.card.value()?;
    let until = Timestamp::from_unix_s(*card.capture_before.value()?).ok()?;
    Some(MaxRegister(until))
}

pub(super) fn read_refund(
    refund: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
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
    let reason = refund.reason.value().map(String::as_str);
    facts.refunds.insert(
        id,
        RefundFacts {
            release: (reason == Some("expired_uncaptured_charge")).then(|| stated.clone()),
            of: MinRegister(of),
            intent: intent.map(MinRegister),
            amount: MaxRegister(parse_money(&refund.amount, &refund.currency)?),
            states: BTreeMap::from([(state, SeenInterval::once(stated))]),
        },
    );
    Ok(())
}

pub(super) fn read_dispute(
    dispute: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    // The dispute's `status` decides and not the type: `charge.dispute.closed` comes with `won`, `lost` or
    // `warning_closed`, so the type does not say how the dispute ended.
    let status = dispute.status.value().ok_or(ParkReason::FieldMalformed)?;
    let at = stated.at;
    let states = BTreeMap::from([(
        DisputeState::parse_status(status),
        SeenInterval::once(stated),
    )]);
    let must_respond = status.ends_with("needs_response");
    let respond_by = respond_by(dispute).filter(|_| must_respond);
    facts.disputes.insert(
        object_key(dispute)?,
        DisputeFacts {
            states,
            amount: parse_money(&dispute.amount, &dispute.currency)
                .ok()
                .map(MaxRegister),
            reason: dispute.reason.value().cloned().map(MinRegister),
            respond_by: Some(MaxRegister((at, respond_by))),
        },
    );
    Ok(())
}

/// The due date of the answer to a dispute.
fn respond_by(dispute: &StripeObject) -> Option<Timestamp> {
    let NestedObject(evidence) = dispute.evidence_details.value()?;
    Timestamp::from_unix_s(*evidence.due_by.value()?).ok()
}

fn read_fraud_warning(
    warning: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
) -> Result<(), ParkReason> {
    facts.warnings.insert(object_key(warning)?, stated);
    Ok(())
}

fn read_review(
    review: &StripeObject,
    stated: FactSource,
    facts: &mut MoneyFacts,
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

fn add_success(facts: &mut MoneyFacts, payment: PaymentRef, stated: FactSource, received: Money) {
    let payment = facts.payments.entry(payment).or_default();
    payment.succeeded = Some(stated);
    payment.received.insert(received);
}

fn intent_entry<'f>(
    intent: &StripeObject,
    facts: &'f mut MoneyFacts,
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
