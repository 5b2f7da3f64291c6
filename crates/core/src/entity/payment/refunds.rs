//! How much went back. Cumulative figures and refunds by id are two views of the same money, so they are never added:
//! per charge the larger counts.

use std::collections::BTreeMap;

use serde_json::json;

use crate::entity::merge::{FactSource, latest_state};
use crate::entity::payment::facts::{
    ChargeFacts, IntentFacts, PaymentFacts, RefundFacts, RefundState,
};
use crate::entity::payment::timeline::TimelineBuilder;
use crate::money::{Currency, Money};

/// What is known of one charge's refunds; of a payment's, where they name no charge.
#[derive(Default)]
struct RefundTally<'f> {
    payment: &'f str,
    captured: Option<i64>,
    cumulative: i64,
    cumulative_stated: Option<&'f FactSource>,
    /// Of its refunds by id.
    last: Option<&'f FactSource>,
    /// Refunds by id that are pending, wait for the customer, or succeeded.
    counted: i64,
    /// Refunds by id that failed or were canceled: the cumulative figure may still hold them.
    undone: i64,
}

impl RefundTally<'_> {
    fn refunded(&self) -> i64 {
        self.counted
            .max(self.cumulative.saturating_sub(self.undone))
            .max(0)
    }
}

/// One refund as the timeline tells it.
struct TimelineRefund<'f> {
    stated: &'f FactSource,
    /// What the id is, in `meta`.
    key: &'static str,
    id: &'f str,
    amount: i64,
    currency: Currency,
}

/// What went back in all, at most what was captured, and whether that is everything. Amounts of another currency than
/// was due are told and reviewed, and added to nothing.
pub(super) fn derive_refunds(
    facts: &PaymentFacts,
    due: Option<Money>,
    story: &mut TimelineBuilder,
) -> (i64, bool) {
    let Some(currency) = find_counted_currency(facts, due) else {
        return (0, false);
    };
    let mut told = Vec::new();
    let tallies = tally_refunds(facts, currency, &mut told, story);
    let received = |payment: &IntentFacts| payment.received.last().copied();
    let mut captured: BTreeMap<&str, i64> = BTreeMap::new();
    let mut refunded: BTreeMap<&str, i64> = BTreeMap::new();
    for (id, tally) in &tallies {
        let mut amount = tally.refunded();
        let unexplained = amount.saturating_sub(tally.counted);
        if let (Some(stated), true) = (tally.cumulative_stated, unexplained > 0) {
            told.push(TimelineRefund {
                stated,
                key: "chargeId",
                id,
                amount: unexplained,
                currency,
            });
        }
        if let Some(most) = tally.captured {
            add_amount(&mut captured, tally.payment, most);
            if let (Some(stated), true) = (tally.cumulative_stated, amount > most) {
                story.add_review("refund_exceeds_captured", id, stated);
            }
            amount = amount.min(most);
        }
        add_amount(&mut refunded, tally.payment, amount);
    }
    for (id, payment) in &facts.payments {
        let received = received(payment).filter(|money| money.currency == currency);
        let known = captured.entry(id.as_str()).or_default();
        *known = received.map_or(0, |money| money.amount).max(*known);
    }
    // A refund that came before anything says what was captured counts in full until then.
    for (payment, amount) in &mut refunded {
        let most = captured.get(payment).copied().filter(|most| *most > 0);
        let Some(most) = most.filter(|most| most < amount) else {
            continue;
        };
        *amount = most;
        let last = tallies.values().filter(|tally| tally.payment == *payment);
        if let Some(stated) = last.filter_map(|tally| tally.last).max() {
            story.add_review("refund_exceeds_captured", payment, stated);
        }
    }
    // Each payment for itself: what went back of one gives nothing back of another, and one of which it is not known what
    // was captured, or in what we do not count, may not be back in full.
    let is_back = |payment: &str, most: i64| refunded.get(payment).copied().unwrap_or(0) == most;
    let is_foreign = |payment| received(payment).is_some_and(|money| money.currency != currency);
    let all_back = captured
        .iter()
        .all(|(payment, most)| is_back(payment, *most))
        && refunded
            .keys()
            .all(|payment| captured.contains_key(payment))
        && !facts.payments.values().any(is_foreign);
    let (captured, refunded) = (sum_amounts(&captured), sum_amounts(&refunded));
    let is_full = captured > 0 && all_back;
    add_refund_entries(told, is_full.then_some(captured), currency, story);
    (refunded, is_full)
}

/// The currency that is counted: of what was due, else of whatever is known first.
fn find_counted_currency(facts: &PaymentFacts, due: Option<Money>) -> Option<Currency> {
    let charged = facts.charges.values().filter_map(captured_amount);
    let received = facts
        .payments
        .values()
        .filter_map(|payment| payment.received.first().copied());
    let refunded = facts.refunds.values().map(|refund| refund.amount.0);
    let mut known = due
        .into_iter()
        .chain(charged)
        .chain(received)
        .chain(refunded);
    known.next().map(|money| money.currency)
}

fn captured_amount(charge: &ChargeFacts) -> Option<Money> {
    charge.captured.as_ref().map(|money| money.0)
}

fn tally_refunds<'f>(
    facts: &'f PaymentFacts,
    currency: Currency,
    told: &mut Vec<TimelineRefund<'f>>,
    story: &mut TimelineBuilder,
) -> BTreeMap<&'f str, RefundTally<'f>> {
    let mut tallies: BTreeMap<&str, RefundTally<'_>> = BTreeMap::new();
    for (id, charge) in &facts.charges {
        let Some((captured, stated)) = captured_amount(charge).zip(charge.refunded.as_ref()) else {
            continue;
        };
        if captured.currency != currency {
            told.push(TimelineRefund {
                stated,
                key: "chargeId",
                id: id.as_str(),
                amount: charge.amount_refunded.0,
                currency: captured.currency,
            });
            story.add_review("refund_currency_mismatch", id.as_str(), stated);
            continue;
        }
        let tally = tallies.entry(id.as_str()).or_default();
        tally.payment = charge
            .intent
            .as_ref()
            .map_or(id.as_str(), |intent| intent.0.as_str());
        tally.captured = Some(captured.amount);
        tally.cumulative = charge.amount_refunded.0;
        tally.cumulative_stated = Some(stated);
    }
    for (id, refund) in &facts.refunds {
        let Some(state) = latest_state(&refund.states) else {
            continue;
        };
        let firsts = refund
            .states
            .iter()
            .map(|(state, seen)| (*state, &seen.first));
        let begun = firsts
            .clone()
            .filter(|(state, _)| state.counts_as_refunded())
            .map(|(_, stated)| stated);
        let Some(stated) = begun
            .min()
            .or_else(|| firsts.map(|(_, stated)| stated).min())
        else {
            continue;
        };
        let Money {
            amount,
            currency: of,
        } = refund.amount.0;
        if state.counts_as_refunded() {
            told.push(TimelineRefund {
                stated,
                key: "refundId",
                id: id.as_str(),
                amount,
                currency: of,
            });
        }
        if let Some(failed) = refund.states.get(&RefundState::Failed) {
            let meta = json!({ "refundId": id.as_str(), "amount": amount, "currency": of });
            story.add("refund_failed", id.as_str(), &failed.first, meta);
            story.add_review("refund_failed", id.as_str(), &failed.first);
        }
        if of != currency {
            story.add_review("refund_currency_mismatch", id.as_str(), stated);
            continue;
        }
        let of = find_refunded_charge(facts, refund);
        let tally = tallies.entry(of).or_default();
        if tally.payment.is_empty() {
            tally.payment = refund
                .intent
                .as_ref()
                .map_or(of, |intent| intent.0.as_str());
        }
        tally.last = tally.last.max(Some(stated));
        let sum = if state.counts_as_refunded() {
            &mut tally.counted
        } else {
            &mut tally.undone
        };
        *sum = sum.saturating_add(amount);
    }
    tallies
}

/// The charge that a refund is of. One that names none is its payment's only charge, if that is known.
fn find_refunded_charge<'f>(facts: &'f PaymentFacts, refund: &'f RefundFacts) -> &'f str {
    let of = refund.of.0.as_str();
    let intent = refund.intent.as_ref().map(|intent| intent.0.as_str());
    if intent != Some(of) {
        return of;
    }
    let is_its =
        |charge: &ChargeFacts| charge.intent.as_ref().map(|intent| intent.0.as_str()) == intent;
    let mut charges = facts.charges.iter().filter(|(_, charge)| is_its(charge));
    match (charges.next(), charges.next()) {
        (Some((charge, _)), None) => charge.as_str(),
        _ => of,
    }
}

fn add_amount<'k>(sums: &mut BTreeMap<&'k str, i64>, key: &'k str, amount: i64) {
    let sum = sums.entry(key).or_default();
    *sum = sum.saturating_add(amount);
}

fn sum_amounts(amounts: &BTreeMap<&str, i64>) -> i64 {
    amounts
        .values()
        .fold(0_i64, |sum, amount| sum.saturating_add(*amount))
}

/// One entry per refund, in the order of their moments; `refund_full` is the one that completes the captured amount.
fn add_refund_entries(
    mut told: Vec<TimelineRefund<'_>>,
    complete_at: Option<i64>,
    currency: Currency,
    story: &mut TimelineBuilder,
) {
    told.retain(|refund| refund.amount > 0);
    told.sort_by_key(|refund| (refund.stated.at, refund.id));
    let counts = |refund: &TimelineRefund<'_>| refund.currency == currency;
    let mut sum = 0_i64;
    let completing = complete_at.and_then(|complete_at| {
        let reached = told.iter().position(|refund| {
            sum = sum.saturating_add(if counts(refund) { refund.amount } else { 0 });
            sum >= complete_at
        });
        reached.or_else(|| told.iter().rposition(counts))
    });
    for (at, refund) in told.iter().enumerate() {
        let kind = if completing == Some(at) {
            "refund_full"
        } else {
            "refund_partial"
        };
        let meta =
            json!({ refund.key: refund.id, "amount": refund.amount, "currency": refund.currency });
        story.add(kind, refund.id, refund.stated, meta);
    }
}
