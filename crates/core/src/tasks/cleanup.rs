//! Which failed orders the cleanup cancels, and which payments it must end at Stripe first. Pure: the crate
//! `cleanup-failed-payments` asks Stripe, then writes on condition that the row is unchanged (optimistic lock).
//!
//! Guarantee: an order with money, or with a payment that may still bring money, is not cancelled. The decision uses
//! the merged facts, never the index or the `status` column alone.

use std::collections::BTreeSet;
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::entity::Entity;
use crate::entity::kind::StatedFacts;
use crate::entity::payment::status::OrderStatus;
use crate::ids::{AccountId, PaymentIntentId};
use crate::provider::stripe::types::{IntentStatus, SessionStatus};
use crate::time::Timestamp;

/// A payment that must be ended at Stripe before its order is cancelled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CancellablePayment {
    pub intent: PaymentIntentId,
    /// The connected account that the payment lives on; none is the platform.
    pub account: Option<AccountId>,
}

/// What to do with an order that the index lists as failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CleanupDecision {
    /// Cancel it, once none of these payments can be paid any more.
    Cancel(BTreeSet<CancellablePayment>),
    /// Its facts give another status: money arrived, it was cancelled before, or a person repaired it.
    NotFailed,
    /// The row says that it failed, and nothing that billhook knows does: the status that follows from the facts is
    /// written, so that it is decided once and not in every run.
    WrongStatus,
    /// Its last attempt is younger than the grace period: the customer may be trying another card.
    TooYoung,
}

/// Decides about one order from its facts. The index and the `status` column are only hints: the index lags, and a
/// person may have edited the column. An order that received 41.00 of the 42.00 due is `pending` by its facts, not
/// `payment_failed`, so it is not cancelled.
pub fn decide_cleanup(order: &Entity, grace: Duration, now: Timestamp) -> CleanupDecision {
    let update = order.apply_facts([], now);
    let (Some(payment), Some(facts)) = (update.payment(), update.linked_payment_facts()) else {
        return CleanupDecision::NotFailed;
    };
    // Of a row that is gone, in another one's place or in conflict nobody knows what it is about until a person decided.
    let is_doubtful = order.row().is_missing || facts.manual.is_row_doubtful();
    let is_failed = payment.status == OrderStatus::PaymentFailed;
    if is_doubtful || order.write_refusal().is_some() {
        return CleanupDecision::NotFailed;
    }
    if !is_failed {
        let said = order.columns().status.as_deref();
        let is_said = said == Some(OrderStatus::PaymentFailed.as_str());
        // Where rows may be older than billhook, nobody knows what an application knew.
        let may_be_older = order.row().rules.adopted_before.is_some();
        return match is_said && !may_be_older {
            true => CleanupDecision::WrongStatus,
            false => CleanupDecision::NotFailed,
        };
    }
    match payment.payment_failed_at {
        Some(failed_at) if failed_at.after(grace) <= now => {}
        Some(_) | None => return CleanupDecision::TooYoung,
    }
    // Another order has an equally good link to one of its payments: until a person decides, the money counts here too.
    if facts.conflicts().next().is_some() {
        return CleanupDecision::NotFailed;
    }
    // The application may have written a PaymentIntent into the column that no event has mentioned yet. Its account is
    // unknown, so we assume that of the order's other payments. Without this, the customer could still pay it after the
    // order is cancelled.
    let account = facts.payment_keys().next();
    let account = account.and_then(|first| first.account.clone());
    let in_column = order
        .payment_intent()
        .cloned()
        .map(|intent| CancellablePayment { intent, account });
    let in_column = in_column.filter(|in_column| !facts.knows_payment_intent(&in_column.intent));
    CleanupDecision::Cancel(
        facts
            .payment_keys()
            .filter_map(|key| {
                Some(CancellablePayment {
                    intent: key.payment.intent()?.clone(),
                    account: key.account.clone(),
                })
            })
            .chain(in_column)
            .collect(),
    )
}

/// The idempotency key of a call that ends a payment: the same for every attempt within a run, another one in the next
/// run. Stripe saves the answer under a key for 24 hours, failures too. Example: the cancel fails at 10:00 with a 500
/// that Stripe saves; under the same key, every later run of the day would get that saved failure instead of a cancel.
/// Hashed, because an order's id may have 255 characters, which is the longest key that Stripe accepts.
pub fn cleanup_idempotency_key(order: &Entity, payment: &CancellablePayment, run: Uuid) -> String {
    let (key, version, intent) = (order.key(), order.version(), &payment.intent);
    let digest = Sha256::digest(format!("{key}|{version}|{intent}|{run}"));
    format!("billhook-cleanup-{}", HEXLOWER.encode(&digest))
}

/// Whether a payment can still bring money, by its status at Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentEnd {
    /// The customer can still pay it: end it first.
    NotYet,
    /// It can never be paid.
    ForGood,
    /// It was paid, or may be in progress: the order must stay.
    PaidOrProcessing,
}

impl From<IntentStatus> for PaymentEnd {
    fn from(status: IntentStatus) -> Self {
        match status {
            IntentStatus::Canceled => Self::ForGood,
            IntentStatus::RequiresPaymentMethod
            | IntentStatus::RequiresConfirmation
            | IntentStatus::RequiresAction => Self::NotYet,
            // `requires_capture`: the money is authorised, and the merchant may still capture it. A status that Stripe
            // introduced after this code was written is treated as money too, because a wrong cancel cannot be undone.
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

/// The fact that the cleanup cancelled an order.
pub fn cancellation_fact(now: Timestamp) -> StatedFacts {
    StatedFacts::Cancelled(now)
}
