//! What an order or statement is, by its merged facts. A function of the facts and of what was due; never of the order
//! in which they came.

use std::collections::BTreeSet;

use serde_json::json;

use crate::entity::merge::{FactSource, latest_state};
use crate::entity::order::{OrderStatus, derive_order_status};
use crate::entity::payment::facts::{DisputeState, IntentFacts, PaymentFacts};
use crate::entity::payment::refunds::derive_refunds;
use crate::entity::payment::status::{PaymentEvidence, PaymentStatus, derive_payment_status};
use crate::entity::payment::timeline::{
    TimelineBuilder, add_disputes_and_reviews, add_failures, add_manual_edits, add_sessions,
};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{CheckoutSessionId, ObjectId, PaymentIntentId, UserId};
use crate::money::Money;
use crate::time::Timestamp;

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
    add_failures(facts, &mut story);
    add_sessions(facts, &mut story);
    add_disputes_and_reviews(facts, &mut story);
    let (amount_refunded, refunded_in_full) = derive_refunds(facts, due, &mut story);
    if let Some(at) = &facts.cancelled {
        story.add_note("cancelled", "cancel", at.0, None);
    }
    add_manual_edits(facts, &mut story);

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
