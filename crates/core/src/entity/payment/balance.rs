//! The balance of an order or statement: what each of its payments received and gave back, and whether that covers the
//! amount due.
//!
//! Payments add up: two of 21.00 pay 42.00. A payment counts once, however many events tell it, and not at all once all
//! of it went back. Part of a payment that went back changes nothing: what was paid for stays paid for.
//! `refunds` has the arithmetic of one payment, `disputes` what the bank took; `derive` makes the columns.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::entity::merge::FactSource;
use crate::entity::payment::disputes::{DisputedPayment, derive_disputes};
use crate::entity::payment::facts::{IntentFacts, MoneyFacts};
use crate::entity::payment::linked::LinkedPaymentFacts;
use crate::entity::payment::refunds::{PaymentRefunds, derive_refunds};
use crate::entity::payment::timeline::TimelineBuilder;
use crate::ids::PaymentRef;
use crate::money::{Currency, Money};
use crate::time::Timestamp;

/// What became of the money of one payment.
pub(super) struct PaymentBalance<'f> {
    pub(super) id: &'f PaymentRef,
    pub(super) facts: &'f MoneyFacts,
    /// Its success, by the first event that says so.
    pub(super) success: Option<&'f FactSource>,
    /// All amounts that events reported as received, normally one.
    received: BTreeSet<Money>,
    pub(super) money: PaymentRefunds<'f>,
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
    /// The payment with which they reached it, if they did and anything is left of it.
    pub(super) covered_by: Option<PaymentSuccess<'b, 'f>>,
    /// Whether they ever reached it.
    pub(super) was_covered: bool,
    /// What the payments that stand pay together.
    pub(super) sum: i64,
}

impl<'f> PaymentBalance<'f> {
    fn new(
        id: &'f PaymentRef,
        facts: &'f MoneyFacts,
        currency: Currency,
        timeline: &mut TimelineBuilder,
    ) -> Self {
        let payments = facts.payments.iter();
        let received: BTreeSet<Money> = payments
            .filter(|(_, payment)| payment.succeeded.is_some())
            .flat_map(|(id, _)| facts.received_amounts(id))
            .collect();
        let successes = facts.payments.values();
        let successes = successes.filter_map(|payment| payment.succeeded.as_ref());
        let money = derive_refunds(id, facts, received.last().copied(), currency, timeline);
        let dispute = derive_disputes(facts, &money, timeline);
        Self {
            id,
            facts,
            success: successes.min_by_key(|stated| (stated.at, &stated.event)),
            received,
            money,
            dispute,
        }
    }

    /// What was received, if all events agree.
    pub(super) fn received(&self) -> Option<Money> {
        let mut amounts = self.received.iter().copied();
        let received = amounts.next();
        received.filter(|_| amounts.next().is_none())
    }

    /// All of it went back, so nothing follows from it any more.
    pub(super) fn is_back(&self) -> bool {
        self.money.is_everything()
    }

    /// Nothing of it is ours any more: it went back, or the bank has it.
    pub(super) fn is_gone(&self) -> bool {
        self.is_back() || self.dispute.is_lost
    }

    /// Whether money may have come that nobody knows of: then not all went back.
    fn is_uncertain(&self) -> bool {
        let is_going_on =
            |payment: &IntentFacts| payment.is_authorized() || payment.is_processing();
        let is_foreign = |received: &Money| received.currency != self.money.captured.currency;
        let is_unknown = self.money.captured.amount == 0;
        let has_moved = !self.facts.refunds.is_empty()
            || !self.facts.disputes.is_empty()
            || self.facts.payments.values().any(is_going_on);
        (is_unknown && has_moved) || self.received.iter().any(is_foreign)
    }

    /// What it pays of this amount; `None` if its events disagree or it has another currency.
    ///
    /// A Checkout Session whose items are the amount due pays it, whatever its own discount, shipping and tax made of it.
    pub(super) fn pays(&self, due: Money, accepts_adjustments: bool) -> Option<i64> {
        let received = self.received()?;
        let mut payments = self.facts.payments.keys();
        let is_adjusted = payments.any(|id| {
            let mut sessions = self.facts.paid_amounts(id);
            sessions.any(|paid| paid.total == received && paid.adjusted_from() == Some(due))
        });
        if accepts_adjustments && is_adjusted {
            return Some(due.amount);
        }
        (received.currency == due.currency).then_some(received.amount)
    }
}

/// The balances of all linked payments, in the order of their success; those without one come last.
pub(super) fn find_balances<'f>(
    linked: &'f LinkedPaymentFacts,
    currency: Currency,
    timeline: &mut TimelineBuilder,
) -> Vec<PaymentBalance<'f>> {
    let mut balances: Vec<_> = linked
        .counted_copies()
        .map(|(key, facts)| PaymentBalance::new(&key.payment, facts, currency, timeline))
        .collect();
    balances.sort_by_key(|balance| {
        let at = balance.success.map(|stated| stated.at);
        (at.is_none(), at, balance.id)
    });
    balances
}

/// Whether everything that was captured went back, of each payment by itself. With sums, a paid order became `refunded`:
/// `pi_1` received 42.00, none of it refunded; `re_3` of 42.00 belonged to `pi_3`, whose success had not arrived; 42.00 of
/// 42.00 looked like everything.
pub(super) fn is_everything_back(balances: &[PaymentBalance<'_>]) -> bool {
    let stands =
        |balance: &PaymentBalance<'_>| balance.money.captured.amount > 0 && !balance.is_back();
    balances.iter().any(PaymentBalance::is_back)
        && !balances.iter().any(PaymentBalance::is_uncertain)
        && !balances.iter().any(stands)
}

/// Adds up what the payments pay, by Stripe's time. A payment leaves the sum when all of it went back. Once the amount is
/// reached it stays reached until nothing is left: what was given back of it afterwards was given back of a paid order.
pub(super) fn find_coverage<'b, 'f>(
    due: Money,
    successes: &[PaymentSuccess<'b, 'f>],
) -> DueCoverage<'b, 'f> {
    let came = successes
        .iter()
        .map(|success| (success.stated.at, Reverse(true), success));
    let went = successes.iter().filter(|success| success.payment.is_back());
    let went = went.map(|success| {
        let at = success.payment.money.last_at();
        let at = at.map_or(success.stated.at, |at| at.max(success.stated.at));
        (at, Reverse(false), success)
    });
    let mut steps: Vec<(Timestamp, Reverse<bool>, &PaymentSuccess<'b, 'f>)> =
        came.chain(went).collect();
    steps.sort_by_key(|(at, comes, success)| (*at, *comes, success.payment.id));
    let mut coverage = DueCoverage {
        covered_by: None,
        was_covered: false,
        sum: 0,
    };
    let mut standing = 0_usize;
    for (_, Reverse(comes), success) in steps {
        let pays = match success.pays {
            Some(pays) => pays,
            None if success.is_accepted => 0,
            None => continue,
        };
        if comes {
            standing = standing.saturating_add(1);
            coverage.sum = coverage.sum.saturating_add(pays);
            if coverage.sum >= due.amount || success.is_accepted {
                coverage.covered_by = coverage.covered_by.or(Some(*success));
                coverage.was_covered = true;
            }
            continue;
        }
        standing = standing.saturating_sub(1);
        coverage.sum = coverage.sum.saturating_sub(pays);
        if standing == 0 {
            coverage.covered_by = None;
        }
    }
    coverage
}
