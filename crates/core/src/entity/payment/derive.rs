//! Projection of payment facts: derives the statuses, amounts, review reasons and timeline of an order or statement.
//!
//! This is the state machine of a payment, written as a pure function of the merged facts and of the amount due instead
//! of as transitions. Out-of-order delivery and duplicates cannot change the result, because the function does not see
//! the order of arrival. It does not read the row's columns; manual edits come in as facts (`entity::edits`), and so does
//! what an adopted row said at first (`opening`).
//! Read next: `status` (what evidence beats what), `refunds` (the arithmetic), `timeline` (what people see).

use std::collections::BTreeSet;

use serde_json::json;

use crate::entity::manual::ManualEdits;
use crate::entity::merge::Merge as _;
use crate::entity::opening::OpeningState;
use crate::entity::payment::balance::{
    DueCoverage, PaymentBalance, PaymentSuccess, find_coverage, is_everything_back,
};
use crate::entity::payment::deadlines::{DeadlineObject, list_deadlines};
use crate::entity::payment::facts::{DisputeState, MoneyFacts, UserHints};
use crate::entity::payment::linked::LinkedPaymentFacts;
use crate::entity::payment::refunds::{add_refund_entries, find_counted_currency};
use crate::entity::payment::status::{
    OrderStatus, PaymentEvidence, PaymentStatus, derive_order_status, derive_payment_status,
};
use crate::entity::payment::timeline::{
    TimelineBuilder, add_failures, add_manual_edits, add_sessions, add_warnings_and_reviews,
    payment_key,
};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{CheckoutSessionId, PaymentIntentId, PaymentRef, UserId};
use crate::money::{Currency, Money};
use crate::time::Timestamp;

/// Thousands of refunds may fail, and the row has a size limit: the first 100 reasons are enough for a person, and the next
/// appear when these are cleared.
pub const REVIEW_REASONS_MAX: usize = 100;

/// A status column was set to paid without a payment.
const PAID_UNPROVEN: &str = "paid_unproven";

/// What an order or statement takes as paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PaymentRules<'a> {
    /// A part of the amount due needs no review: patients pay statements in instalments.
    pub takes_instalments: bool,
    /// A Checkout Session pays what its items cost only if that is its total.
    pub refuses_adjustments: bool,
    /// The row has a column for the user who paid.
    pub has_user: bool,
    /// The PaymentIntent that the application wrote into the row: it expects the money of no other one.
    pub expected_intent: Option<&'a PaymentIntentId>,
    /// The Checkout Session that the application wrote into the row.
    pub expected_session: Option<&'a CheckoutSessionId>,
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
    /// What was received by Stripe; `None` if nothing was, and a person or the application says that it was paid by other
    /// means: then these columns are theirs.
    pub received: Option<ReceivedTotal>,
    /// At most what was captured.
    pub amount_refunded: i64,
    /// The earliest date by which a dispute has to be answered.
    pub dispute_due_by: Option<Timestamp>,
    /// Until when the authorised amount can be captured; the earliest, if several are authorised.
    pub authorized_until: Option<Timestamp>,
    /// When the last attempt failed, by Stripe's timestamp; the cleanup counts its grace period from here.
    pub payment_failed_at: Option<Timestamp>,
    /// The first PaymentIntent whose money we have, else the first that succeeded, else the smallest known id: the choice
    /// must not depend on which event arrived first.
    pub intent: Option<PaymentIntentId>,
    /// The smallest id among the completed sessions, else among all, for the same reason.
    pub session: Option<CheckoutSessionId>,
    /// Who pays: a hint of the payment that counts, of any event only while nothing is paid. `client_reference_id` before
    /// metadata.
    pub user: Option<UserId>,
    /// The row was adopted: a column of which nothing is known stays as the application left it.
    pub is_adopted: bool,
    pub timeline: Vec<DerivedEntry>,
}

/// What was received by Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReceivedTotal {
    /// Of all payments, in the currency of the amount due. What went back counts too: `amount_refunded` has it.
    pub amount: i64,
    /// When the payments reached the amount due, by Stripe's timestamp.
    pub paid_at: Option<Timestamp>,
}

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

/// Derives the columns. `due` is the amount that the application asks for; without it no payment matches.
pub fn derive_payment(
    linked: &LinkedPaymentFacts,
    due: Option<Money>,
    rules: PaymentRules<'_>,
) -> DerivedPayment {
    let mut timeline = TimelineBuilder::default();
    let facts = &linked.merge_linked_facts();
    let manual = &linked.manual.of_current_row();
    let opening = linked.opening_state();
    let counted = linked.counted_payments();
    let earliest_due = manual.paid_dues.values().next().map(|due| due.0);
    let currency = find_counted_currency(facts, due.or(earliest_due));
    let balances = find_balances(&counted, currency, &mut timeline);
    let payments = RowPayments {
        manual,
        due,
        rules,
        opening,
        balances: &balances,
    };
    let successes = payments.find_successes(due);
    let paid_for = payments.find_paid_for(&successes);
    let paid_by = paid_for.covered_by;
    let is_recorded = !manual.recorded.is_empty();
    let refunded_at = manual.refunded_at();
    let cancelled_at = linked.cancelled_at();
    let opening_evidence = opening.map_or(PaymentEvidence::Nothing, OpeningState::payment_evidence);
    let is_paid_at_first = opening_evidence >= PaymentEvidence::Paid;
    let is_cancelled_at_first = opening.is_some_and(OpeningState::is_cancelled);
    let is_paid_in_addition = is_paid_at_first
        && successes.iter().any(|success| {
            let pays = due.is_some() && success.pays == due.map(|due| due.amount);
            pays && !payments.is_known_at_first(success)
        });
    // An adopted order that was cancelled although it was paid: the application knew of the payment.
    let is_cancelled_though_paid = is_cancelled_at_first
        && is_paid_at_first
        && !is_paid_in_addition
        && !manual.is_paid()
        && refunded_at.is_none();

    for success in &successes {
        add_success(success, &mut timeline);
        // Nobody has to do anything about money that is not here any more.
        if success.payment.is_refunded_or_lost() {
            continue;
        }
        let (id, stated) = (success.payment.id.as_str(), success.stated);
        // Flagged whether the payment succeeded before or after the cancellation: the cancellation has our time and the
        // payment has Stripe's, and the application may already have acted on `cancelled` in both cases.
        let was_known = is_paid_at_first && payments.is_known_at_first(success);
        if cancelled_at.is_some() || (is_cancelled_at_first && !was_known) {
            timeline.add_review("paid_after_cancel", id, stated);
        }
        if refunded_at.is_some_and(|at| stated.at > at) {
            timeline.add_review("paid_after_refund", id, stated);
        }
    }
    payments.add_amount_reasons(&successes, &paid_for, &mut timeline);
    // What comes beside a payment outside Stripe is too much anyway.
    if !is_paid_at_first && !is_recorded && payments.is_expected_live() {
        let decided = linked.decided_payments();
        payments.add_unexpected(&successes, &decided, &mut timeline);
    }
    add_failures(facts, &mut timeline);
    add_sessions(facts, &mut timeline);
    for balance in &balances {
        let is_back = balance.is_refunded_in_full();
        add_warnings_and_reviews(balance.facts, is_back, &mut timeline);
    }
    let refunds = payments.add_up_refunds(currency, &successes, &mut timeline);
    let user = payments.find_user(&mut timeline);
    if let Some(at) = cancelled_at {
        timeline.add_note("cancelled", "cancel", at, json!({}));
        if let Some(paid) = manual.paid_at() {
            timeline.add_review_without_event("paid_after_cancel", &paid.to_string(), paid);
        }
    }
    // Paid again after everything went back, or paid without any payment of Stripe's: only a person can know.
    let refunds_stated = balances
        .iter()
        .filter_map(|balance| balance.refunds.last_stated_at);
    let found_after_refund = manual.found_paid.last().copied() > refunds_stated.max();
    // What is paid in addition to what an adopted row was paid by says nothing about the latter.
    let of_first = payments.find_refunds_of_first();
    let is_first_back = of_first.map_or(!is_paid_in_addition, |of_first| of_first.is_everything);
    let is_everything =
        refunds.is_everything && (opening_evidence != PaymentEvidence::Paid || is_first_back);
    let is_paid_again = is_everything && found_after_refund;
    if let (Some(at), false) = (manual.found_paid.last(), is_recorded)
        && (is_paid_again
            || (paid_for.was_covered_by.is_none() && opening_evidence != PaymentEvidence::Paid))
    {
        timeline.add_review_without_event(PAID_UNPROVEN, &at.to_string(), *at);
    }
    if let (Some(paid), None) = (manual.last_paid_at(), paid_by) {
        payments.add_later_failures(paid, &mut timeline);
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
    let payment_evidence = if refunded_at.is_some() || is_all_back || was_refunded {
        PaymentEvidence::RefundedInFull
    } else if paid_by.is_some() || manual.is_paid() || opening_evidence == PaymentEvidence::Paid {
        PaymentEvidence::Paid
    } else if paid_for.sum > 0 || opening_evidence == PaymentEvidence::PartlyPaid {
        PaymentEvidence::PartlyPaid
    } else if successes
        .iter()
        .any(|success| !success.payment.is_refunded_in_full())
    {
        // A payment succeeded, but nobody can say what it pays: neither paid nor failed. If it counted as failed, an order
        // for which we hold money would become a candidate for the cleanup.
        PaymentEvidence::Nothing
    } else if facts
        .payments
        .values()
        .any(|payment| payment.is_authorized())
    {
        PaymentEvidence::Authorized
    } else if facts
        .payments
        .values()
        .any(|payment| payment.is_processing())
    {
        PaymentEvidence::Processing
    } else if !successes.is_empty() {
        PaymentEvidence::Nothing
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
        _ => payments.find_gravest_dispute(),
    };
    let dispute = dispute.filter(|_| !is_recorded);
    let deadlines = list_deadlines(facts);
    let earliest = |is_its: fn(&DeadlineObject) -> bool| {
        let mut its = deadlines.iter().filter(|deadline| is_its(&deadline.object));
        its.next().map(|deadline| deadline.due)
    };
    let is_of_others = paid_by.is_none() && manual.is_paid();
    let is_unknown = successes.is_empty() && opening.is_some();
    let here = successes
        .iter()
        .filter(|success| !success.payment.is_refunded_or_lost());
    DerivedPayment {
        status: derive_order_status(order_evidence),
        payment_status: derive_payment_status(payment_evidence, dispute),
        review_reasons: first_reasons(timeline.reasons),
        received: match is_of_others || is_unknown {
            true => None,
            false => Some(ReceivedTotal {
                amount: payments.add_up_received(currency),
                paid_at: paid_for.was_covered_by.map(|success| success.stated.at),
            }),
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
        dispute_due_by: earliest(|object| matches!(object, DeadlineObject::Dispute(_))),
        authorized_until: match payment_evidence {
            PaymentEvidence::Authorized => {
                earliest(|object| matches!(object, DeadlineObject::Authorization(_)))
            }
            _ => None,
        },
        payment_failed_at,
        intent: here
            .chain(&successes)
            .map(|success| success.payment.id)
            .chain(facts.payments.keys())
            .find_map(|id| id.intent().cloned()),
        session: facts
            .sessions
            .iter()
            .min_by_key(|(id, session)| (session.completed.is_none(), *id))
            .map(|(id, _)| id.clone()),
        user,
        is_adopted: opening.is_some(),
        timeline: timeline.entries,
    }
}

/// The balances of the payments, in the order of their success; those without one come last.
fn find_balances<'f>(
    counted: &'f [(PaymentRef, MoneyFacts)],
    currency: Option<Currency>,
    timeline: &mut TimelineBuilder,
) -> Vec<PaymentBalance<'f>> {
    let fallback = currency.unwrap_or(Currency::NONE);
    let mut balances: Vec<_> = counted
        .iter()
        .map(|(id, facts)| PaymentBalance::new(id, facts, fallback, timeline))
        .collect();
    balances.sort_by_key(|balance| {
        let at = balance.success.map(|stated| stated.at);
        (at.is_none(), at, balance.id)
    });
    balances
}

/// Whether the payments reach this amount.
pub(in crate::entity) fn is_covered(
    linked: &LinkedPaymentFacts,
    due: Money,
    rules: PaymentRules<'_>,
) -> bool {
    let manual = &linked.manual.of_current_row();
    let counted = linked.counted_payments();
    let mut timeline = TimelineBuilder::default();
    let balances = find_balances(&counted, Some(due.currency), &mut timeline);
    let payments = RowPayments {
        manual,
        due: Some(due),
        rules,
        opening: linked.opening_state(),
        balances: &balances,
    };
    let successes = payments.of_first(payments.find_successes(Some(due)));
    find_coverage(due, &successes).covered_by.is_some()
}

/// How the payments stand to what is due, and to what was due when it was paid.
struct PaidFor<'b, 'f> {
    covered_by: Option<PaymentSuccess<'b, 'f>>,
    was_covered_by: Option<PaymentSuccess<'b, 'f>>,
    /// Of what is due now.
    sum: i64,
    /// What was due when it was paid, until another amount was found at that time.
    earlier: Option<(Timestamp, Money)>,
    /// The amount due was changed after it was paid, and the payments are not what is due now.
    is_due_changed: bool,
}

/// What was refunded of several payments.
#[derive(Clone, Copy, Default)]
struct RefundTotal {
    amount: i64,
    is_everything: bool,
}

/// The payments of one row, and what it asks for.
struct RowPayments<'b, 'f> {
    /// What was said about the row that is there now.
    manual: &'b ManualEdits,
    due: Option<Money>,
    rules: PaymentRules<'b>,
    opening: Option<&'f OpeningState>,
    balances: &'b [PaymentBalance<'f>],
}

impl<'b, 'f> RowPayments<'b, 'f> {
    /// The payments that succeeded, by Stripe's timestamp, then by id, and what they pay of this amount.
    fn find_successes(&self, due: Option<Money>) -> Vec<PaymentSuccess<'b, 'f>> {
        let accepts_adjustments = !self.rules.refuses_adjustments;
        let accepted = &self.manual.accepted;
        let successes = self.balances.iter().filter_map(|payment| {
            let accepted = accepted.get(payment.id).map(|accepted| accepted.0.due);
            Some(PaymentSuccess {
                payment,
                stated: payment.success?,
                pays: due.and_then(|due| payment.pays(due, accepts_adjustments)),
                is_accepted: due.is_some() && accepted == due,
            })
        });
        successes.collect()
    }

    /// If an adopted row was paid at first, those that it was paid by.
    fn of_first(&self, successes: Vec<PaymentSuccess<'b, 'f>>) -> Vec<PaymentSuccess<'b, 'f>> {
        let known = successes
            .iter()
            .filter(|success| self.is_known_at_first(success));
        let known: Vec<_> = known.copied().collect();
        match self.is_paid_at_first() && !known.is_empty() {
            true => known,
            false => successes,
        }
    }

    fn is_paid_at_first(&self) -> bool {
        let evidence = self.opening.map(OpeningState::payment_evidence);
        evidence >= Some(PaymentEvidence::Paid)
    }

    /// The payment that an adopted row was paid by at first, as opposed to one that came in addition.
    fn is_known_at_first(&self, success: &PaymentSuccess<'_, '_>) -> bool {
        let is_about = |row: &OpeningState| row.is_about(success.payment.id, success.stated.at);
        self.opening.is_some_and(is_about)
    }

    /// What was due when it was paid, by the payments of that time; the newest that they covered.
    fn find_earlier_due(&self) -> Option<(Timestamp, Money, DueCoverage<'b, 'f>)> {
        let mut dues = self.manual.paid_dues.iter().rev().map(|(until, due)| {
            let mut successes = self.of_first(self.find_successes(Some(due.0)));
            successes.retain(|success| success.stated.at <= *until);
            (*until, due.0, find_coverage(due.0, &successes))
        });
        dues.find(|(.., coverage)| coverage.covered_by.is_some())
    }

    fn find_paid_for(&self, successes: &[PaymentSuccess<'b, 'f>]) -> PaidFor<'b, 'f> {
        let now = self
            .due
            .map(|due| find_coverage(due, &self.of_first(successes.to_vec())));
        let earlier = self.find_earlier_due();
        let sum = now.as_ref().map_or(0, |now| now.sum);
        // A part that went back may be the difference.
        let here = successes
            .iter()
            .filter(|success| !success.payment.is_refunded_in_full());
        let part_back = here.fold(0_i64, |sum, success| {
            sum.saturating_add(success.payment.refunds.refunded.amount)
        });
        let is_as_due = |due: Money| [sum, sum.saturating_sub(part_back)].contains(&due.amount);
        let is_due_changed = earlier.is_some() && !self.due.is_some_and(is_as_due);
        let of_earlier = earlier.as_ref().map(|(.., coverage)| coverage);
        let covered_now = now.as_ref().and_then(|now| now.covered_by);
        let was_covered_now = now.as_ref().and_then(|now| now.was_covered_by);
        PaidFor {
            covered_by: covered_now.or(of_earlier.and_then(|earlier| earlier.covered_by)),
            was_covered_by: was_covered_now
                .or(of_earlier.and_then(|earlier| earlier.was_covered_by)),
            sum,
            earlier: earlier.as_ref().map(|(until, due, _)| (*until, *due)),
            is_due_changed,
        }
    }

    /// The reasons about amounts: too little, too much, or nobody can say.
    fn add_amount_reasons(
        &self,
        successes: &[PaymentSuccess<'_, '_>],
        paid_for: &PaidFor<'_, '_>,
        timeline: &mut TimelineBuilder,
    ) {
        let earlier = paid_for.earlier.filter(|_| paid_for.is_due_changed);
        if let Some((at, _)) = earlier {
            let now = self.due.map_or_else(
                || "none".to_owned(),
                |due| format!("{}_{}", due.amount, due.currency),
            );
            timeline.add_review_without_event("due_changed", &now, at);
        }
        let recorded_at = self.manual.recorded_at();
        let mut sum = 0_i64;
        let here = successes
            .iter()
            .filter(|success| !success.payment.is_refunded_or_lost());
        for success in here {
            let (id, stated) = (success.payment.id.as_str(), success.stated);
            if success.is_accepted {
                sum = sum.saturating_add(success.pays.unwrap_or_default());
                continue;
            }
            // Of a payment before the change, what was due then; of a later one, the greater of both.
            let due = match (earlier, self.due) {
                (Some((until, earlier)), _) if stated.at <= until => Some(earlier),
                (Some((_, earlier)), Some(now)) => Some(earlier.max(now)),
                (_, now) => now,
            };
            let accepts_adjustments = !self.rules.refuses_adjustments;
            let pays = due.and_then(|due| success.payment.pays(due, accepts_adjustments));
            let (Some(due), Some(pays)) = (due, pays) else {
                timeline.add_review("amount_mismatch", id, stated);
                continue;
            };
            let before = sum;
            sum = sum.saturating_add(pays);
            let is_whole = pays == due.amount;
            // A payment outside Stripe, or one that an adopted row was paid by, pays everything: what comes later, or is as
            // much as was due, is too much.
            let is_beside_record = recorded_at.is_some_and(|at| is_whole || stated.at > at);
            let is_in_addition =
                is_beside_record || (self.is_paid_at_first() && !self.is_known_at_first(success));
            let is_over = is_in_addition || sum > due.amount;
            if is_over && is_whole && (before > 0 || is_in_addition) {
                timeline.add_review("paid_twice", id, stated);
            } else if is_over {
                timeline.add_review("overpaid", id, stated);
            } else if earlier.is_none() && self.is_too_little(paid_for) {
                timeline.add_review("amount_mismatch", id, stated);
            }
        }
    }

    /// Whether the application wrote a PaymentIntent into the row that may still be paid, as far as is known.
    fn is_expected_live(&self) -> bool {
        let Some(expected) = self.rules.expected_intent else {
            return false;
        };
        let expected = PaymentRef::Intent(expected.clone());
        let mut balances = self.balances.iter();
        // The payments of an invoice have one balance.
        let known = balances.find_map(|balance| {
            let payment = balance.facts.payments.get(&expected)?;
            Some((balance, payment))
        });
        known.is_none_or(|(balance, payment)| {
            let is_under_way = payment.is_processing() || payment.is_authorized();
            let has_ended = payment.canceled.is_some() || payment.failures.last().is_some();
            (is_under_way || !has_ended) && !balance.facts.has_money()
        })
    }

    /// The payments that completed the order although the application expects another one: another shop on the account may
    /// use the same numbers.
    fn add_unexpected(
        &self,
        successes: &[PaymentSuccess<'_, '_>],
        decided: &BTreeSet<&PaymentRef>,
        timeline: &mut TimelineBuilder,
    ) {
        for success in successes {
            let payment = success.payment;
            let sessions = &payment.facts.sessions;
            let is_of_session = |session| sessions.contains_key(session);
            let is_expected = payment.id.intent() == self.rules.expected_intent
                || self.rules.expected_session.is_some_and(is_of_session)
                || decided.contains(payment.id);
            if !is_expected && !payment.is_refunded_or_lost() {
                timeline.add_review("unexpected_payment", payment.id.as_str(), success.stated);
            }
        }
    }

    /// Whether the payments are less than what is due, and nobody expects that: of an order, or because a payment went back
    /// since it was paid.
    fn is_too_little(&self, paid_for: &PaidFor<'_, '_>) -> bool {
        let is_short = self.due.is_some_and(|due| paid_for.sum < due.amount);
        let is_instalment = self.rules.takes_instalments && paid_for.was_covered_by.is_none();
        let is_accepted = paid_for
            .covered_by
            .is_some_and(|success| success.is_accepted);
        is_short && !is_instalment && !is_accepted && self.manual.recorded.is_empty()
    }

    /// A failed attempt after a person said that it was paid: somebody tries to pay again.
    fn add_later_failures(&self, paid: Timestamp, timeline: &mut TimelineBuilder) {
        for balance in self
            .balances
            .iter()
            .filter(|balance| balance.success.is_none())
        {
            let failures = balance.facts.payments.values();
            let last = failures.filter_map(|payment| payment.failures.last()).max();
            if let Some(stated) = last.filter(|stated| stated.at > paid) {
                timeline.add_review("failed_after_paid", balance.id.as_str(), stated);
            }
        }
    }

    /// Adds the entries of all refunds.
    fn add_up_refunds(
        &self,
        currency: Option<Currency>,
        successes: &[PaymentSuccess<'_, '_>],
        timeline: &mut TimelineBuilder,
    ) -> RefundTotal {
        let Some(currency) = currency else {
            return RefundTotal::default();
        };
        let (mut captured, mut refunded) = (0_i64, 0_i64);
        for balance in self.balances {
            let money = &balance.refunds;
            if money.captured.currency == currency {
                captured = captured.saturating_add(money.captured.amount);
                refunded = refunded.saturating_add(money.refunded.amount);
            }
        }
        let is_everything = is_everything_back(self.balances, successes);
        let complete_at = is_everything.then_some(Money {
            amount: captured,
            currency,
        });
        let entries = self
            .balances
            .iter()
            .flat_map(|balance| &balance.refunds.entries);
        add_refund_entries(entries.collect(), complete_at, currency, timeline);
        RefundTotal {
            amount: refunded,
            is_everything,
        }
    }

    /// The refunds of the payment that an adopted row named at first; `None` if it named none.
    fn find_refunds_of_first(&self) -> Option<RefundTotal> {
        let intent = self.opening?.intent.as_ref()?;
        let its = self
            .balances
            .iter()
            .find(|balance| balance.id.intent() == Some(intent));
        Some(
            its.map_or_else(RefundTotal::default, |balance| RefundTotal {
                amount: balance.refunds.refunded.amount,
                is_everything: balance.is_refunded_in_full(),
            }),
        )
    }

    /// What was received in the counted currency. A payment of which two amounts were reported is left out: nobody knows
    /// which is true, and it needs review.
    fn add_up_received(&self, currency: Option<Currency>) -> i64 {
        let received = self.balances.iter().filter_map(|balance| balance.received);
        received
            .filter(|received| Some(received.currency) == currency)
            .fold(0, |sum, received| sum.saturating_add(received.amount))
    }

    /// The worst dispute without whose money the amount due is not covered: lost before open. Inquiries, ended disputes
    /// and disputes about a part of a payment do not count.
    fn find_gravest_dispute(&self) -> Option<DisputeState> {
        let dues = self.manual.paid_dues.values().map(|due| due.0);
        let dues: Vec<Money> = dues.chain(self.due).collect();
        let is_covered_by = |stands: &dyn Fn(&PaymentBalance<'_>) -> bool| {
            dues.iter().any(|due| {
                let mut standing = self.find_successes(Some(*due));
                standing.retain(|success| {
                    !success.payment.is_refunded_in_full() && stands(success.payment)
                });
                find_coverage(*due, &standing).covered_by.is_some()
            })
        };
        let disputes = || self.balances.iter().map(|balance| balance.dispute);
        if disputes().any(|dispute| dispute.is_lost)
            && !is_covered_by(&|balance| !balance.dispute.is_lost)
        {
            return Some(DisputeState::Lost);
        }
        let is_untouched =
            |balance: &PaymentBalance<'_>| !balance.dispute.is_open && !balance.dispute.is_lost;
        let is_open = disputes().any(|dispute| dispute.is_open);
        (is_open && !is_covered_by(&is_untouched)).then_some(DisputeState::Open)
    }

    /// Who pays: the hint of the first payment that we have the money of, else of the first that succeeded; of any event
    /// only while nothing is paid. Another hint beside it needs review, because whoever makes a session writes it.
    fn find_user(&self, timeline: &mut TimelineBuilder) -> Option<UserId> {
        let paid = self.balances.iter();
        let paid = paid.filter_map(|balance| Some((balance, balance.success?)));
        let mut paid: Vec<_> = paid.collect();
        paid.sort_by_key(|(balance, _)| balance.is_refunded_or_lost());
        if paid.is_empty() {
            let mut users = UserHints::default();
            for balance in self.balances {
                users.merge(balance.facts.users.clone());
            }
            return users.best().cloned();
        }
        let payers = paid.iter();
        let mut payers = payers.map(|(balance, since)| (find_payer(balance.facts), *since));
        let (payer, since) = payers.find(|(payer, _)| payer.best().is_some())?;
        for balance in self.balances.iter().filter(|_| self.rules.has_user) {
            let users = &balance.facts.users;
            let is_payer = |user| payer.all().any(|payer| payer == user);
            let is_other = users.best().is_some() && !users.all().any(is_payer);
            let stated = balance.facts.first_stated();
            let later = stated.filter(|stated| stated.at > since.at);
            if let (Some(stated), true) = (later, is_other && !balance.is_refunded_or_lost()) {
                timeline.add_review("user_conflict", balance.id.as_str(), stated);
            }
        }
        payer.best().cloned()
    }
}

/// Who paid, by the events that say that it succeeded; if they do not say, by any event of the payment.
fn find_payer(facts: &MoneyFacts) -> UserHints {
    let mut payer = UserHints::default();
    for payment in facts.payments.values() {
        payer.merge(payment.payer.clone());
    }
    match payer.best() {
        Some(_) => payer,
        None => facts.users.clone(),
    }
}

fn add_success(success: &PaymentSuccess<'_, '_>, timeline: &mut TimelineBuilder) {
    let id = success.payment.id;
    let received = success.payment.received;
    let sessions = success.payment.facts.sessions.values();
    let paid = sessions.flat_map(|session| &session.paid).next();
    let parts = paid.and_then(|paid| paid.parts);
    let not_zero = |amount: i64| Some(amount).filter(|amount| *amount != 0);
    let meta = json!({
        payment_key(id): id.as_str(),
        "amount": received.map(|money| money.amount),
        "currency": received.map(|money| money.currency),
        "subtotal": parts.map(|parts| parts.subtotal),
        "discount": parts.and_then(|parts| not_zero(parts.discount)),
        "tax": parts.and_then(|parts| not_zero(parts.tax)),
        "shipping": parts.and_then(|parts| not_zero(parts.shipping)),
    });
    timeline.add("payment_succeeded", id.as_str(), success.stated, meta);
}
