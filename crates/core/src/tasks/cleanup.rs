//! Which failed orders are given up, and why. Pure: `cleanup-failed-payments` asks Stripe first and then writes.

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::entity::merge::MinRegister;
use crate::entity::order::OrderStatus;
use crate::entity::payment::facts::PaymentFacts;
use crate::entity::{Entity, EntityFacts};
use crate::ids::{AccountId, PaymentIntentId};
use crate::provider::stripe::types::{IntentStatus, SessionStatus};
use crate::time::Timestamp;

/// A payment to be ended at Stripe before its order is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CancellablePayment {
    /// Which.
    pub intent: PaymentIntentId,
    /// Where it lives; none is the platform.
    pub account: Option<AccountId>,
}

/// What the row says about a candidate that an index nominated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CleanupDecision {
    /// Give it up, once these can no longer be paid.
    Cancel(BTreeSet<CancellablePayment>),
    /// It has another status by its facts: money, an earlier cancel, a person's repair.
    NotFailed,
    /// Its last attempt is younger than the grace.
    TooYoung,
}

/// Decides about one order. The facts decide, never the index or the column: money that does not fit what was due has
/// another status too.
pub fn decide_cleanup(order: &Entity, grace: Duration, now: Timestamp) -> CleanupDecision {
    let next = order.apply_facts(EntityFacts::default(), now);
    if next.payment.status != OrderStatus::PaymentFailed {
        return CleanupDecision::NotFailed;
    }
    match next.payment.payment_failed_at {
        Some(failed_at) if failed_at.after(grace) <= now => {}
        Some(_) | None => return CleanupDecision::TooYoung,
    }
    let payments = next.facts.payment.payments.iter();
    // One that the application put into its column and that no event told of yet lives where the others do.
    let accounts = || {
        next.facts
            .payment
            .payments
            .values()
            .map(|payment| &payment.account)
    };
    let account = accounts()
        .next()
        .cloned()
        .flatten()
        .map(|account| account.0);
    let noted = order
        .intent
        .clone()
        .map(|intent| CancellablePayment { intent, account });
    let noted = noted.filter(|noted| !next.facts.payment.has_payment_intent(&noted.intent));
    CleanupDecision::Cancel(
        payments
            .filter_map(|(id, payment)| {
                let intent = PaymentIntentId::parse(id.as_str()).ok()?;
                Some(CancellablePayment {
                    intent,
                    account: payment.account.clone().map(|account| account.0),
                })
            })
            .chain(noted)
            .collect(),
    )
}

/// The key of a call that ends a payment: the same for every try of that call, another in the next run, because Stripe
/// repeats a saved answer, a failure too, for 24 h. Hashed, since an order's id may be as long as a key.
pub fn cleanup_idempotency_key(order: &Entity, payment: &CancellablePayment, run: Uuid) -> String {
    let (key, version, intent) = (&order.key, order.version, &payment.intent);
    let digest = Sha256::digest(format!("{key}|{version}|{intent}|{run}"));
    format!("billhook-cleanup-{}", HEXLOWER.encode(&digest))
}

/// What Stripe's word means for a payment that is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentEnd {
    /// It can still be made.
    NotYet,
    /// It can never be made again.
    ForGood,
    /// It was made, or may be being made.
    PaidOrProcessing,
}

impl From<IntentStatus> for PaymentEnd {
    fn from(status: IntentStatus) -> Self {
        match status {
            IntentStatus::Canceled => Self::ForGood,
            IntentStatus::RequiresPaymentMethod
            | IntentStatus::RequiresConfirmation
            | IntentStatus::RequiresAction => Self::NotYet,
            // Money that is authorised waits for the merchant to capture it; a state made after this was written is not
            // ours to end.
            IntentStatus::Succeeded
            | IntentStatus::Processing
            | IntentStatus::RequiresCapture
            | IntentStatus::Other(_) => Self::PaidOrProcessing,
        }
    }
}

impl From<SessionStatus> for PaymentEnd {
    fn from(status: SessionStatus) -> Self {
        match status {
            SessionStatus::Expired => Self::ForGood,
            SessionStatus::Open => Self::NotYet,
            SessionStatus::Complete | SessionStatus::Other(_) => Self::PaidOrProcessing,
        }
    }
}

/// The fact that an order was given up.
pub fn cancellation_fact(now: Timestamp) -> EntityFacts {
    EntityFacts {
        payment: PaymentFacts {
            cancelled: Some(MinRegister(now)),
            ..PaymentFacts::default()
        },
        ..EntityFacts::default()
    }
}
