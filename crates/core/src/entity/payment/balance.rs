//! The balance of an order or statement: what each of its payments received and gave back, and whether that covers the
//! amount due.
//!
//! Payments add up: two of 21.00 pay 42.00. A payment counts once, however many events tell it, and not at all once all
//! of it went back. Part of a payment that went back changes nothing: what was paid for stays paid for.
//! `refunds` has the arithmetic of one payment, `disputes` what the bank took; `derive` makes the columns.

use std::collections::BTreeSet;

use crate::entity::merge::FactSource;
use crate::entity::payment::disputes::{DisputedPayment, derive_disputes};
use crate::entity::payment::facts::{IntentFacts, MoneyFacts, SessionAmounts};
use crate::entity::payment::refunds::{PaymentRefunds, derive_refunds, find_counted_currency};
use crate::entity::payment::timeline::TimelineBuilder;
use crate::ids::PaymentRef;
use crate::money::{Currency, Money};
use crate::time::Timestamp;

/// What became of the money of one payment, in the currency in which it was received.
pub(super) struct PaymentBalance<'f> {
    pub(super) id: &'f PaymentRef,
    pub(super) facts: &'f MoneyFacts,
    /// Its success, by the first event that says so.
    pub(super) success: Option<&'f FactSource>,
    /// What was received, if all events agree.
    pub(super) received: Option<Money>,
    pub(super) refunds: PaymentRefunds<'f>,
    pub(super) dispute: DisputedPayment,
}

/// A payment that succeeded, and what it pays.
#[derive(Clone, Copy)]
pub(super) struct PaymentSuccess<'b, 'f> {
    pub(super) payment: &'b PaymentBalance<'f>,
    pub(super) stated: &'f FactSource,
    /// Of the amount due, in its currency; `None` if nobody can say.
    pub(super) pays: Option<i64>,
    /// A person takes it for what was due.
    pub(super) is_accepted: bool,
}

/// How the payments stand to one amount due.
pub(super) struct DueCoverage<'b, 'f> {
    /// The payment with which they reached it, if they did and anything is left.
    pub(super) covered_by: Option<PaymentSuccess<'b, 'f>>,
    /// The payment with which they ever reached it.
    pub(super) was_covered_by: Option<PaymentSuccess<'b, 'f>>,
    /// What the payments pay together that did not go back.
    pub(super) sum: i64,
}

impl<'f> PaymentBalance<'f> {
    pub(super) fn new(
        id: &'f PaymentRef,
        facts: &'f MoneyFacts,
        fallback: Currency,
        timeline: &mut TimelineBuilder,
    ) -> Self {
        let received = find_received(facts);
        let successes = facts.payments.values();
        let successes = successes.filter_map(|payment| payment.succeeded.as_ref());
        let currency = find_counted_currency(facts, received).unwrap_or(fallback);
        let refunds = derive_refunds(id, facts, received, currency, timeline);
        let dispute = derive_disputes(facts, &refunds, timeline);
        Self {
            id,
            facts,
            success: successes.min_by_key(|stated| (stated.at, &stated.event)),
            received,
            refunds,
            dispute,
        }
    }

    /// All of it went back, so nothing follows from it any more.
    pub(super) fn is_refunded_in_full(&self) -> bool {
        self.refunds.is_everything()
    }

    /// Nothing of it is ours any more: it went back, or the bank has it.
    pub(super) fn is_refunded_or_lost(&self) -> bool {
        self.is_refunded_in_full() || self.dispute.is_lost
    }

    /// Whether money may have come that nobody knows of: then not all went back.
    fn may_have_money(&self) -> bool {
        let is_going_on =
            |payment: &IntentFacts| payment.is_authorized() || payment.is_processing();
        let has_moved = self.refunds.has_refunds
            || !self.facts.disputes.is_empty()
            || self.facts.payments.values().any(is_going_on);
        self.refunds.captured.amount == 0 && has_moved
    }

    /// What it pays of this amount; `None` if its events disagree or it has another currency.
    ///
    /// A Checkout Session whose items are the amount due pays it, whatever its own discount, shipping and tax made of it.
    pub(super) fn pays(&self, due: Money, accepts_adjustments: bool) -> Option<i64> {
        let received = self.received?;
        let sessions = self.facts.sessions.values();
        let mut paid = sessions.flat_map(|session| &session.paid);
        let is_adjusted =
            |paid: &SessionAmounts| paid.total == received && paid.adjusted_from() == Some(due);
        if accepts_adjustments && paid.any(is_adjusted) {
            return Some(due.amount);
        }
        (received.currency == due.currency).then_some(received.amount)
    }
}

/// What one payment received. The session of a subscription has an invoice, which several PaymentIntents may pay: its
/// total counts until they reach it.
fn find_received(facts: &MoneyFacts) -> Option<Money> {
    let succeeded = facts.payments.iter();
    let succeeded = succeeded.filter(|(_, payment)| payment.succeeded.is_some());
    let is_session = |id: &PaymentRef| matches!(id, PaymentRef::Session(_));
    let (sessions, own): (Vec<_>, Vec<_>) = succeeded.partition(|(id, _)| is_session(id));
    let agreed = |id: &PaymentRef| {
        let amounts: BTreeSet<Money> = facts.received_amounts(id);
        let mut amounts = amounts.into_iter();
        amounts.next().filter(|_| amounts.next().is_none())
    };
    let mut total: Option<Money> = None;
    for (id, _) in own {
        let received = agreed(id)?;
        total = Some(match total {
            None => received,
            Some(total) => total.saturating_add(received).ok()?,
        });
    }
    for (id, _) in sessions {
        let charged = agreed(id)?;
        total = Some(match total {
            Some(total) if total.currency != charged.currency => return None,
            Some(total) => total.max(charged),
            None => charged,
        });
    }
    total
}

/// Whether everything that came went back, of each payment by itself. With sums, a paid order became `refunded`: `pi_1`
/// received 42.00, none of it refunded; `re_3` of 42.00 belonged to `pi_3`, whose success had not arrived; 42.00 of 42.00
/// looked like everything.
pub(super) fn is_everything_back(
    balances: &[PaymentBalance<'_>],
    successes: &[PaymentSuccess<'_, '_>],
) -> bool {
    let stands = |balance: &PaymentBalance<'_>| {
        balance.refunds.captured.amount > 0 && !balance.is_refunded_in_full()
    };
    // Of a session that was free nothing can go back.
    let is_free = |success: &PaymentSuccess<'_, '_>| {
        success.payment.refunds.captured.amount == 0 && success.pays > Some(0)
    };
    balances.iter().any(PaymentBalance::is_refunded_in_full)
        && !balances.iter().any(PaymentBalance::may_have_money)
        && !balances.iter().any(stands)
        && !successes.iter().any(is_free)
}

/// A payment comes with its success, and leaves when all of it went back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PaymentStep {
    Comes,
    Leaves,
}

/// Adds up what the payments pay, by Stripe's time. Once the amount is reached it stays reached until nothing is left:
/// what was given back of it afterwards was given back of a paid order.
pub(super) fn find_coverage<'b, 'f>(
    due: Money,
    successes: &[PaymentSuccess<'b, 'f>],
) -> DueCoverage<'b, 'f> {
    let mut steps: Vec<(Timestamp, PaymentStep, &PaymentSuccess<'b, 'f>)> = Vec::new();
    for success in successes {
        let came = success.stated.at;
        steps.push((came, PaymentStep::Comes, success));
        if success.payment.is_refunded_in_full() {
            let went = success.payment.refunds.last_at().unwrap_or(came).max(came);
            steps.push((went, PaymentStep::Leaves, success));
        }
    }
    steps.sort_by_key(|(at, step, success)| (*at, *step, success.payment.id));
    let mut coverage = DueCoverage {
        covered_by: None,
        was_covered_by: None,
        sum: 0,
    };
    let mut count = 0_usize;
    for (_, step, success) in steps {
        let pays = match success.pays {
            Some(pays) => pays,
            None if success.is_accepted => 0,
            None => continue,
        };
        match step {
            PaymentStep::Comes => {
                count = count.saturating_add(1);
                coverage.sum = coverage.sum.saturating_add(pays);
                if coverage.sum >= due.amount || success.is_accepted {
                    coverage.covered_by = coverage.covered_by.or(Some(*success));
                    coverage.was_covered_by = coverage.was_covered_by.or(Some(*success));
                }
            }
            PaymentStep::Leaves => {
                count = count.saturating_sub(1);
                coverage.sum = coverage.sum.saturating_sub(pays);
                if count == 0 {
                    coverage.covered_by = None;
                }
            }
        }
    }
    coverage
}
