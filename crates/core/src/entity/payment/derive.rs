//! Projection of payment facts: derives the statuses, amounts, review reasons and timeline of an order or statement.
//!
//! This is the state machine of a payment, written as a pure function of the merged facts and of the amount due instead
//! of as transitions. Out-of-order delivery and duplicates cannot change the result, because the function does not see
//! the order of arrival. It does not read the row's columns; manual edits come in as facts (`entity::edits`), and so does
//! what an adopted row said at first (`opening`).
//! Read next: `status` (what evidence beats what), `refunds` (the arithmetic), `timeline` (what people see).

use std::collections::BTreeSet;

use serde_json::json;

use crate::entity::merge::{FactSource, MinRegister, SeenInterval, latest_state};
use crate::entity::opening::OpeningState;
use crate::entity::payment::facts::{DisputeState, IntentFacts, MoneyFacts};
use crate::entity::payment::linked::LinkedPaymentFacts;
use crate::entity::payment::refunds::{RefundTotal, derive_refunds};
use crate::entity::payment::status::{
    OrderStatus, PaymentEvidence, PaymentStatus, derive_order_status, derive_payment_status,
};
use crate::entity::payment::timeline::{
    TimelineBuilder, add_disputes_and_reviews, add_failures, add_manual_edits, add_sessions,
    payment_key,
};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{CheckoutSessionId, PaymentIntentId, PaymentRef, UserId};
use crate::money::Money;
use crate::time::Timestamp;

/// Thousands of refunds may fail, and the row has a size limit: the first 100 reasons are enough for a person, and the next
/// appear when these are cleared.
pub const REVIEW_REASONS_MAX: usize = 100;

/// The worst of the current states of all disputes: lost before open. Two disputes, one won and one lost, mean that
/// money is gone. Inquiries and ended disputes do not count.
fn find_gravest_dispute(facts: &MoneyFacts) -> Option<DisputeState> {
    let disputes = facts
        .disputes
        .values()
        .filter_map(|dispute| latest_state(&dispute.states));
    disputes
        .filter(|state| matches!(state, DisputeState::Open | DisputeState::Lost))
        .max()
}

/// Whether this payment is authorised, and has not failed or been canceled at the same time or later.
fn is_authorized(payment: &IntentFacts) -> bool {
    is_going_on(payment, payment.authorized.as_ref())
}

fn find_authorized_until(facts: &MoneyFacts) -> Option<Timestamp> {
    let charges = facts.charges.iter().filter(|(id, charge)| {
        let payment = match &charge.intent {
            Some(MinRegister(intent)) => PaymentRef::Intent(intent.clone()),
            None => PaymentRef::Charge((*id).clone()),
        };
        facts.payments.get(&payment).is_some_and(is_authorized)
    });
    let ends = charges.filter_map(|(_, charge)| charge.capture_before.as_ref());
    ends.map(|end| end.0).min()
}

/// Whether this payment is in progress: it was processing, and has not failed or been canceled at the same time or
/// later, by Stripe's timestamps.
///
/// This compares times, because an attempt may fail and the next one be processing. `ch_1` fails at 10:00, processing
/// at 10:01, `ch_2` fails at 10:02: in progress from 10:01, failed from 10:02, in whatever order the three arrive.
/// Within one second the failure or the cancellation wins.
fn is_processing(payment: &IntentFacts) -> bool {
    is_going_on(payment, payment.processing.as_ref())
}

fn is_going_on(payment: &IntentFacts, seen: Option<&SeenInterval>) -> bool {
    let failed = payment.failures.last_at();
    let ended = failed
        .into_iter()
        .chain(payment.canceled.as_ref().map(|stated| stated.at))
        .max();
    let last = seen.map(|seen| seen.last_at.0);
    last.is_some() && last > ended
}

/// The columns of an order or statement that follow from payment facts. Amounts are in the minor unit.
#[derive(Clone, Debug, PartialEq)]
pub struct DerivedPayment {
    /// Orders only; a statement has no such column.
    pub status: OrderStatus,
    pub payment_status: PaymentStatus,
    /// Why the row needs review, as `reason:fact id`. The id makes the same word about another fact a new reason. The
    /// first `REVIEW_REASONS_MAX` of them.
    pub review_reasons: BTreeSet<String>,
    /// The amount due if it was paid, else 0. A second payment does not change it; `paid_twice` reports that one.
    pub amount_paid: i64,
    /// At most what was captured.
    pub amount_refunded: i64,
    /// When the first matching payment succeeded, by Stripe's timestamp.
    pub paid_at: Option<Timestamp>,
    /// Until when the authorised amount can be captured; the earliest, if several are authorised.
    pub authorized_until: Option<Timestamp>,
    /// When the last attempt failed, by Stripe's timestamp; the cleanup counts its grace period from here.
    pub payment_failed_at: Option<Timestamp>,
    /// The first PaymentIntent that succeeded, else the smallest known id: the choice must not depend on which event
    /// arrived first.
    pub intent: Option<PaymentIntentId>,
    /// The smallest id among the completed sessions, else among all, for the same reason.
    pub session: Option<CheckoutSessionId>,
    /// Who pays: `client_reference_id` before metadata. A hint, not a proof.
    pub user: Option<UserId>,
    /// The row was adopted: a column of which nothing is known stays as the application left it.
    pub is_adopted: bool,
    pub timeline: Vec<DerivedEntry>,
}

/// A status column was set to paid without a payment.
const PAID_UNPROVEN: &str = "paid_unproven";

/// The first reasons, and before all others those about the row itself: until they are cleared, the others cannot be
/// believed.
fn first_reasons(reasons: BTreeSet<String>) -> BTreeSet<String> {
    let (of_row, others): (BTreeSet<_>, BTreeSet<_>) = reasons
        .into_iter()
        .partition(|reason| reason.starts_with("row_"));
    of_row
        .into_iter()
        .chain(others)
        .take(REVIEW_REASONS_MAX)
        .collect()
}

/// The last time at which money went back.
fn last_refund_at(facts: &MoneyFacts) -> Option<Timestamp> {
    let refunds = facts
        .refunds
        .values()
        .flat_map(|refund| refund.states.values());
    let refunds = refunds.map(|seen| seen.last_at.0);
    let charges = facts
        .charges
        .values()
        .filter_map(|charge| charge.refunded.as_ref());
    refunds.chain(charges.map(|stated| stated.at)).max()
}

/// Derives the columns. `due` is the amount that the application asks for; without it no payment matches.
pub fn derive_payment(linked: &LinkedPaymentFacts, due: Option<Money>) -> DerivedPayment {
    let mut timeline = TimelineBuilder::default();
    let cancelled_at = linked.cancelled_at();
    let opening = linked.opening_state();
    let opening_evidence = opening.map_or(PaymentEvidence::Nothing, OpeningState::payment_evidence);
    let is_paid_at_first = opening_evidence >= PaymentEvidence::Paid;
    let is_cancelled_at_first = opening.is_some_and(OpeningState::is_cancelled);
    let facts = &linked.merge_linked_facts();
    let successes = find_successes(facts);
    // `all`, not `any`: if two events report 42.00 and 41.00 for one payment, we do not know which is true, so the
    // payment does not match and needs review.
    let fits = |payment: &IntentFacts| {
        due.is_some_and(|due| payment.received.iter().all(|received| *received == due))
    };
    let manual = &linked.manual.of_current_row();
    // A payment outside Stripe pays everything, so that any money at Stripe is a second payment.
    let is_recorded = !manual.recorded.is_empty();
    let fitting = || successes.iter().filter(|(_, payment, _)| fits(payment));
    // The payment that an adopted row was paid by at first, as opposed to one that came in addition.
    let is_known_at_first = |id: &PaymentRef, stated: &FactSource| {
        opening.is_some_and(|row| row.is_about(id, stated.at))
    };
    let paid_by = fitting()
        .find(|(id, _, stated)| is_known_at_first(id, stated))
        .or_else(|| fitting().next());
    let is_paid_in_addition =
        is_paid_at_first && fitting().any(|(id, _, stated)| !is_known_at_first(id, stated));
    // An adopted order that was cancelled although it was paid: the application knew of the payment.
    let is_cancelled_though_paid = is_cancelled_at_first
        && is_paid_at_first
        && !is_paid_in_addition
        && !manual.is_paid()
        && !manual.is_refunded();

    for (id, payment, stated) in &successes {
        let first = payment.received.first();
        let meta = json!({
            payment_key(id): id.as_str(),
            "amount": first.map(|money| money.amount),
            "currency": first.map(|money| money.currency),
        });
        timeline.add("payment_succeeded", id.as_str(), stated, meta);
        if !fits(payment) {
            timeline.add_review("amount_mismatch", id.as_str(), stated);
        } else if is_recorded
            || paid_by.is_some_and(|(paid_id, ..)| paid_id != id)
            || (is_paid_at_first && !is_known_at_first(id, stated))
        {
            timeline.add_review("paid_twice", id.as_str(), stated);
        }
        // Flagged whether the payment succeeded before or after the cancellation: the cancellation has our time and the
        // payment has Stripe's, and the application may already have acted on `cancelled` in both cases.
        let knew_of_it = is_paid_at_first && is_known_at_first(id, stated);
        if cancelled_at.is_some() || (is_cancelled_at_first && !knew_of_it) {
            timeline.add_review("paid_after_cancel", id.as_str(), stated);
        }
    }
    add_failures(facts, &mut timeline);
    add_sessions(facts, &mut timeline);
    add_disputes_and_reviews(facts, &mut timeline);
    let refunds = derive_refunds(facts, due, &mut timeline);
    if let Some(at) = cancelled_at {
        timeline.add_note("cancelled", "cancel", at, json!({}));
        if let Some(paid) = manual.paid_at() {
            timeline.add_review_without_event("paid_after_cancel", &paid.to_string(), paid);
        }
    }
    // Paid again after everything went back, or paid without any payment of Stripe's: only a person can know.
    let found_after_refund = manual.found_paid.last().copied() > last_refund_at(facts);
    // What is paid in addition to what an adopted row was paid by says nothing about the latter.
    let of_first = find_refunds_of_first(linked, opening, due);
    let is_first_back = of_first.map_or(!is_paid_in_addition, |of_first| of_first.is_everything);
    let is_everything =
        refunds.is_everything && (opening_evidence != PaymentEvidence::Paid || is_first_back);
    let is_paid_again = is_everything && found_after_refund;
    if let (Some(at), false) = (manual.found_paid.last(), is_recorded)
        && (is_paid_again || (paid_by.is_none() && opening_evidence != PaymentEvidence::Paid))
    {
        timeline.add_review_without_event(PAID_UNPROVEN, &at.to_string(), *at);
    }
    // They have no entry: nobody knows when they came up.
    let first_reasons_of_row = opening.into_iter().flat_map(|row| &row.review_reasons);
    timeline.reasons.extend(first_reasons_of_row.cloned());
    add_manual_edits(manual, &mut timeline);
    // Nobody can clear it: as long as it stands, the money counts nowhere. Only a relink ends it.
    for (payment, since) in linked.conflicts() {
        timeline.add_review_without_event("link_conflict", payment.payment.as_str(), since);
    }

    let payment_failed_at = facts
        .payments
        .values()
        .filter_map(|payment| payment.failures.last_at())
        .max();
    let is_all_back = is_everything && !is_recorded && !is_paid_again;
    // A refund that was made before the adoption is older than what anybody says since.
    let was_refunded = opening_evidence == PaymentEvidence::RefundedInFull
        && !manual.is_paid()
        && !is_paid_in_addition;
    let payment_evidence = if manual.is_refunded() || is_all_back || was_refunded {
        PaymentEvidence::RefundedInFull
    } else if paid_by.is_some() || manual.is_paid() || opening_evidence == PaymentEvidence::Paid {
        PaymentEvidence::Paid
    } else if !successes.is_empty() {
        // A payment succeeded, but of another amount: neither paid nor failed. If it counted as failed, an order for
        // which we hold money would become a candidate for the cleanup.
        PaymentEvidence::Nothing
    } else if facts.payments.values().any(is_authorized) {
        PaymentEvidence::Authorized
    } else if facts.payments.values().any(is_processing) {
        PaymentEvidence::Processing
    } else if payment_failed_at.is_some() {
        PaymentEvidence::Failed
    } else {
        // Nothing but what an adopted row said: an attempt that failed, or one in progress.
        opening_evidence
    };
    // A cancellation beats a failed attempt and loses to a payment. The cleanup ends every payment that the order knows
    // of before it cancels, but there may be others: cancelled at 10:00, and at 10:05 the event of a second
    // PaymentIntent arrives that succeeded. The order becomes `completed` with `paid_after_cancel`, because `cancelled`
    // would hide that we hold the money.
    let cancel_evidence = match cancelled_at.is_some() || is_cancelled_at_first {
        true => PaymentEvidence::Cancelled,
        false => PaymentEvidence::Nothing,
    };
    let order_evidence = match is_cancelled_though_paid && !is_all_back {
        true => cancel_evidence,
        false => payment_evidence.max(cancel_evidence),
    };
    // A dispute takes Stripe's money back, and not what was paid outside Stripe. What an adopted row said of a dispute
    // counts until Stripe states one.
    let is_dispute_stated = !facts.disputes.is_empty();
    let dispute = match opening.and_then(OpeningState::dispute) {
        Some(dispute) if !is_dispute_stated && !manual.is_paid() => Some(dispute),
        _ => find_gravest_dispute(facts),
    };
    let dispute = dispute.filter(|_| !is_recorded);
    DerivedPayment {
        status: derive_order_status(order_evidence),
        payment_status: derive_payment_status(payment_evidence, dispute),
        review_reasons: first_reasons(timeline.reasons),
        amount_paid: match due {
            Some(due) if paid_by.is_some() || manual.is_paid() => due.amount,
            _ => 0,
        },
        amount_refunded: match opening.and_then(|opening| opening.amount_refunded) {
            // Two cumulative figures of the same money: the greater counts.
            Some(at_first) => {
                let since = of_first.map_or(refunds.amount, |of_first| of_first.amount);
                refunds
                    .amount
                    .saturating_add(at_first.saturating_sub(since).max(0))
            }
            None => refunds.amount,
        },
        paid_at: paid_by
            .map(|(_, _, stated)| stated.at)
            .or_else(|| manual.paid_at()),
        authorized_until: match payment_evidence {
            PaymentEvidence::Authorized => find_authorized_until(facts),
            _ => None,
        },
        payment_failed_at,
        intent: successes
            .iter()
            .map(|(id, ..)| *id)
            .chain(facts.payments.keys())
            .find_map(|id| id.intent().cloned()),
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
        is_adopted: opening.is_some(),
        timeline: timeline.entries,
    }
}

/// The refunds of the payment that an adopted row named at first; `None` if it named none.
fn find_refunds_of_first(
    linked: &LinkedPaymentFacts,
    opening: Option<&OpeningState>,
    due: Option<Money>,
) -> Option<RefundTotal> {
    let intent = opening?.intent.as_ref()?;
    let mut its = LinkedPaymentFacts::default();
    let payments = linked.payments.iter();
    let payments = payments.filter(|(key, _)| key.payment.intent() == Some(intent));
    its.payments
        .extend(payments.map(|(key, copy)| (key.clone(), copy.clone())));
    let facts = its.merge_linked_facts();
    Some(derive_refunds(&facts, due, &mut TimelineBuilder::default()))
}

/// The payments that succeeded, by Stripe's timestamp, then by id. The first matching one is the one that paid; every
/// further one is `paid_twice`.
fn find_successes(facts: &MoneyFacts) -> Vec<(&PaymentRef, &IntentFacts, &FactSource)> {
    let mut successes: Vec<_> = facts
        .payments
        .iter()
        .filter_map(|(id, payment)| Some((id, payment, payment.succeeded.as_ref()?)))
        .collect();
    successes.sort_by_key(|(id, _, stated)| (stated.at, *id));
    successes
}
