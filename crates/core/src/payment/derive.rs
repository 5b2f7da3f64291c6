//! What an order or statement is, by its merged facts. A function of the facts and of what was due; never of the order
//! in which they came.

use std::collections::BTreeSet;

use serde_json::json;

use super::facts::{DisputeState, IntentFacts, PaymentFacts};
use super::refunds::derive_refunds;
use super::story::{self, TimelineBuilder};
use crate::ids::{CheckoutSessionId, ObjectId, PaymentIntentId, UserId};
use crate::merge::{FactSource, latest_state};
use crate::money::Money;
use crate::time::Timestamp;
use crate::timeline::DerivedEntry;

/// An order's `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    /// Nothing was paid yet.
    Pending,
    /// The last word is a failed attempt.
    PaymentFailed,
    /// Paid in full.
    Completed,
    /// Given back in full.
    Refunded,
    /// Given up by the cleanup.
    Cancelled,
}

/// An order's `paymentStatus`, a statement's `derive_payment_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// Nothing was paid yet.
    Unpaid,
    /// Money is on its way.
    Processing,
    /// An attempt failed, none succeeded.
    Failed,
    /// Paid in full.
    Paid,
    /// Given back in full.
    Refunded,
    /// The customer's bank asks for it back.
    Disputed,
    /// The customer's bank took it back.
    ChargedBack,
}

impl OrderStatus {
    /// The word in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::PaymentFailed => "payment_failed",
            Self::Completed => "completed",
            Self::Refunded => "refunded",
            Self::Cancelled => "cancelled",
        }
    }
}

impl PaymentStatus {
    /// The word in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unpaid => "unpaid",
            Self::Processing => "processing",
            Self::Failed => "failed",
            Self::Paid => "paid",
            Self::Refunded => "refunded",
            Self::Disputed => "disputed",
            Self::ChargedBack => "charged_back",
        }
    }
}

/// The strongest thing that the facts show, weakest first: a stronger one is never undone by a weaker one that comes
/// late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PaymentEvidence {
    /// No payment, or money that does not fit what was due.
    Nothing,
    /// A failed attempt, and no money.
    Failed,
    /// Money on its way.
    Processing,
    /// Given up by the cleanup.
    Cancelled,
    /// The amount that was due.
    Paid,
    /// All that was captured went back.
    RefundedInFull,
}

/// The transition table, mirrored in `docs/SEMANTICS.md`. A cancel says nothing of payments, so there the payment's
/// own evidence counts.
pub fn derive_order_status(evidence: PaymentEvidence) -> OrderStatus {
    match evidence {
        PaymentEvidence::Nothing | PaymentEvidence::Processing => OrderStatus::Pending,
        PaymentEvidence::Failed => OrderStatus::PaymentFailed,
        PaymentEvidence::Cancelled => OrderStatus::Cancelled,
        PaymentEvidence::Paid => OrderStatus::Completed,
        PaymentEvidence::RefundedInFull => OrderStatus::Refunded,
    }
}

/// The same for payments. A dispute says who holds the money; once all of it went back there is nothing to hold.
fn derive_payment_status(
    payment_evidence: PaymentEvidence,
    dispute: Option<DisputeState>,
) -> PaymentStatus {
    match (payment_evidence, dispute) {
        (PaymentEvidence::RefundedInFull, _) => PaymentStatus::Refunded,
        (_, Some(DisputeState::Lost)) => PaymentStatus::ChargedBack,
        (_, Some(DisputeState::Open)) => PaymentStatus::Disputed,
        (PaymentEvidence::Nothing | PaymentEvidence::Cancelled, _) => PaymentStatus::Unpaid,
        (PaymentEvidence::Failed, _) => PaymentStatus::Failed,
        (PaymentEvidence::Processing, _) => PaymentStatus::Processing,
        (PaymentEvidence::Paid, _) => PaymentStatus::Paid,
    }
}

/// The gravest of the disputes as they stand: a lost one, else an open one.
fn find_gravest_dispute(facts: &PaymentFacts) -> Option<DisputeState> {
    let standing = facts
        .disputes
        .values()
        .filter_map(|dispute| latest_state(&dispute.states));
    standing
        .filter(|state| matches!(state, DisputeState::Open | DisputeState::Lost))
        .max()
}

/// Money is on its way: nothing later says that it failed or was given up.
fn is_processing(payment: &IntentFacts) -> bool {
    let failed = payment
        .failures
        .values()
        .map(|failure| failure.seen.last_at.0);
    let ended = failed
        .chain(payment.canceled.as_ref().map(|stated| stated.at))
        .max();
    let processing = payment.processing.as_ref().map(|seen| seen.last_at.0);
    processing.is_some() && processing > ended
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq)]
pub struct DerivedPayment {
    /// Of an order.
    pub status: OrderStatus,
    /// Of an order or statement.
    pub payment_status: PaymentStatus,
    /// Why a person should look, `reason:fact id`; none, when empty.
    pub review_reasons: BTreeSet<String>,
    /// The amount due, once it was paid.
    pub amount_paid: i64,
    /// What went back, at most what was captured.
    pub amount_refunded: i64,
    /// When it was paid first.
    pub paid_at: Option<Timestamp>,
    /// When an attempt failed last.
    pub payment_failed_at: Option<Timestamp>,
    /// The payment that counts: the first that succeeded, else the least known.
    pub intent: Option<PaymentIntentId>,
    /// The least finished session, else the least known.
    pub session: Option<CheckoutSessionId>,
    /// Who pays, as far as it was hinted.
    pub user: Option<UserId>,
    /// One entry per fact.
    pub timeline: Vec<DerivedEntry>,
}

/// Derives it. `due` is what the application asked for; without it no payment fits.
pub fn derive_payment(facts: &PaymentFacts, due: Option<Money>) -> DerivedPayment {
    let mut story = TimelineBuilder::default();
    let successes = find_successes(facts);
    let fits = |payment: &IntentFacts| {
        due.is_some_and(|due| payment.received.iter().all(|received| *received == due))
    };
    let mut fitting = successes.iter().filter(|(_, payment, _)| fits(payment));
    let paid_by = fitting.next();

    for (id, payment, stated) in &successes {
        let first = payment.received.first();
        let is_intent = PaymentIntentId::parse(id.as_str()).is_ok();
        let key = if is_intent {
            "paymentIntentId"
        } else {
            "checkoutSessionId"
        };
        let meta = json!({
            key: id.as_str(),
            "amount": first.map(|money| money.amount),
            "currency": first.map(|money| money.currency),
        });
        story.add("payment_succeeded", id.as_str(), stated, meta);
        if !fits(payment) {
            story.add_review("amount_mismatch", id.as_str(), stated);
        } else if paid_by.is_some_and(|(paid_id, ..)| paid_id != id) {
            story.add_review("paid_twice", id.as_str(), stated);
        }
        if facts.cancelled.is_some() {
            story.add_review("paid_after_cancel", id.as_str(), stated);
        }
    }
    story::add_failures(facts, &mut story);
    story::add_sessions(facts, &mut story);
    story::add_disputes_and_reviews(facts, &mut story);
    let (amount_refunded, refunded_in_full) = derive_refunds(facts, due, &mut story);
    if let Some(at) = &facts.cancelled {
        story.add_note("cancelled", "cancel", at.0, None);
    }
    story::add_manual_edits(facts, &mut story);

    let payment_failed_at = facts
        .payments
        .values()
        .flat_map(|payment| payment.failures.values())
        .map(|failure| failure.seen.last_at.0)
        .max();
    let payment_evidence = if refunded_in_full || facts.manual.refunded.is_some() {
        PaymentEvidence::RefundedInFull
    } else if paid_by.is_some() {
        PaymentEvidence::Paid
    } else if !successes.is_empty() {
        // Money that does not fit: neither paid nor failed.
        PaymentEvidence::Nothing
    } else if facts.payments.values().any(is_processing) {
        PaymentEvidence::Processing
    } else if payment_failed_at.is_some() {
        PaymentEvidence::Failed
    } else {
        PaymentEvidence::Nothing
    };
    let cancel_evidence = facts
        .cancelled
        .as_ref()
        .map_or(PaymentEvidence::Nothing, |_| PaymentEvidence::Cancelled);
    DerivedPayment {
        status: derive_order_status(payment_evidence.max(cancel_evidence)),
        payment_status: derive_payment_status(payment_evidence, find_gravest_dispute(facts)),
        review_reasons: story.reasons,
        amount_paid: paid_by.and(due).map_or(0, |due| due.amount),
        amount_refunded,
        paid_at: paid_by.map(|(_, _, stated)| stated.at),
        payment_failed_at,
        intent: successes
            .iter()
            .map(|(id, ..)| *id)
            .chain(facts.payments.keys())
            .find_map(|id| PaymentIntentId::parse(id.as_str()).ok()),
        session: facts
            .sessions
            .iter()
            .min_by_key(|(id, session)| (session.completed.is_none(), *id))
            .map(|(id, _)| id.clone()),
        user: facts
            .reference
            .as_ref()
            .or(facts.user.as_ref())
            .map(|hint| hint.0.clone()),
        timeline: story.timeline,
    }
}

/// The payments that succeeded, first ones first.
fn find_successes(facts: &PaymentFacts) -> Vec<(&ObjectId, &IntentFacts, &FactSource)> {
    let mut successes: Vec<_> = facts
        .payments
        .iter()
        .filter_map(|(id, payment)| Some((id, payment, payment.succeeded.as_ref()?)))
        .collect();
    successes.sort_by_key(|(id, _, stated)| (stated.at, *id));
    successes
}
