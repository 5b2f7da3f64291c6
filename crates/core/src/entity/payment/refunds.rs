//! Refund arithmetic: how much of each charge, payment and order was refunded, and whether that is everything.
//!
//! Stripe reports a refund twice: `refund.*` events carry the refund's own id, amount and state, and `charge.refunded`
//! carries the charge's cumulative `amount_refunded`. These are two views of the same money, so we never add them: per
//! charge the larger one counts. A charge of 100.00 with `re_1` of 30.00 and `re_2` of 70.00, and a cumulative figure
//! of 100.00, was refunded 100.00 and not 200.00. If only `re_1` has arrived, 100.00 is right too: the cumulative
//! figure is ahead. If the cumulative figure still says 30.00, `re_1` and `re_2` together are ahead.
//!
//! Guarantee: the result depends on the set of facts and on the amount due, never on the order of arrival. Not
//! guaranteed: that the figure is final; it may go down when a refund fails. The rules for operators are in
//! `docs/SEMANTICS.md`, Refund arithmetic; `derive` turns the result into statuses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::entity::merge::{FactSource, latest_state};
use crate::entity::payment::facts::{ChargeFacts, MoneyFacts, RefundFacts, RefundState};
use crate::entity::payment::timeline::TimelineBuilder;
use crate::ids::{ChargeId, PaymentRef, RefundId};
use crate::money::{Currency, Money};
use crate::time::Timestamp;

/// The refunds of one charge, or of one payment if its refunds name no charge. All amounts are in the counted currency.
struct RefundTally<'f> {
    captured: Option<Money>,
    /// What was authorised and not captured.
    released: Money,
    /// Stripe says that everything captured went back.
    is_full: bool,
    /// The greatest `amount_refunded` of all `charge.refunded` events of this charge.
    cumulative: Money,
    cumulative_stated: Option<&'f FactSource>,
    /// The source of the newest refund by id: it dates the review reason if the payment's refunds exceed the capture.
    last: Option<&'f FactSource>,
    /// Refunds by id that are pending, wait for the customer, or succeeded.
    counted: Money,
    /// Refunds by id that failed or were canceled: the cumulative figure may still contain them.
    undone: Money,
}

impl RefundTally<'_> {
    fn new(currency: Currency) -> Self {
        let zero = Money::zero(currency);
        Self {
            captured: None,
            released: zero,
            is_full: false,
            cumulative: zero,
            cumulative_stated: None,
            last: None,
            counted: zero,
            undone: zero,
        }
    }

    // Why `undone` is subtracted: `cumulative` keeps its greatest value, so it may still contain a refund that failed
    // since. Example: re_1 of 10.00 and re_2 of 5.00, and 3.00 that we know only from the cumulative figure of 18.00.
    // Then re_1 fails: by id 5.00 count, the cumulative figure without re_1 is 8.00, so 8.00 were refunded.
    //
    // Why the larger of the two, and not the cumulative figure alone: it may be older than the newest refund by id, or
    // it may never have contained the failed refund. Example: re_1 of 10.00 failed, then re_2 of 5.00 succeeded, and
    // the only cumulative figure is 5.00: 5.00 - 10.00 is negative, but re_2 counts. Until the event of re_2 arrives,
    // the figure here is 0, which is too low.
    //
    // Why `released` is subtracted: before basil Stripe adds what was not captured to the figure when it releases it.
    // Example: 6.00 of 10.00 were captured and 2.00 given back: the figure is 6.00. Since basil it is 2.00, and a figure
    // below the released amount cannot contain it. One above may be either; if it is since basil, the events of the
    // refunds by id say more, and whichever is greater counts.
    fn refunded(&self) -> Money {
        let zero = Money::zero(self.counted.currency);
        if let (Some(captured), true) = (self.captured, self.is_full && self.undone == zero) {
            return captured.max(self.counted);
        }
        let released = Some(self.released).filter(|released| *released <= self.cumulative);
        let given_back = self.cumulative.checked_sub(released.unwrap_or(zero));
        let still = given_back.and_then(|given_back| given_back.checked_sub(self.undone));
        // None is negative and all are in one currency, so the difference exists.
        self.counted.max(still.unwrap_or(self.counted)).max(zero)
    }
}

/// What was captured of one payment, and what of it went back.
pub(super) struct PaymentRefunds<'f> {
    /// Zero if no event says it.
    pub(super) captured: Money,
    /// At most what was captured, if that is known.
    pub(super) refunded: Money,
    pub(super) entries: Vec<TimelineRefund<'f>>,
    /// When Stripe last said anything of a refund; the release of what was not captured is none.
    pub(super) last_stated_at: Option<Timestamp>,
    /// Stripe said something of a refund.
    pub(super) has_refunds: bool,
}

impl PaymentRefunds<'_> {
    pub(super) fn is_everything(&self) -> bool {
        self.captured.amount > 0 && self.refunded == self.captured
    }

    /// When the last of it went back.
    pub(super) fn last_at(&self) -> Option<Timestamp> {
        self.entries.iter().map(|entry| entry.stated.at).max()
    }
}

/// One refund entry of the timeline, before we know whether it is `refund_full` or `refund_partial`.
pub(super) struct TimelineRefund<'f> {
    stated: &'f FactSource,
    /// The name of the id in the entry's `meta`: `refundId` or `chargeId`.
    key: &'static str,
    id: &'f str,
    money: Money,
}

/// The refunds of one payment. An amount in another currency than the payment's gets a timeline entry and a review
/// reason, and is added to nothing: if 42.00 usd were paid and Stripe reports a refund of 4,200 jpy, the amount refunded
/// is 0.
pub(super) fn derive_refunds<'f>(
    payment: &'f PaymentRef,
    facts: &'f MoneyFacts,
    received: Option<Money>,
    currency: Currency,
    timeline: &mut TimelineBuilder,
) -> PaymentRefunds<'f> {
    let mut entries = Vec::new();
    let tallies = tally_refunds(facts, currency, &mut entries, timeline);
    let zero = Money::zero(currency);
    let releases = find_releases(facts);
    let failed = find_refunds_not_made_good(facts, &releases, &entries);
    let (mut captured, mut refunded) = (zero, zero);
    for (id, tally) in &tallies {
        let mut amount = tally.refunded();
        // The part that no refund by id explains gets one entry under the charge, so that the entries add up to the
        // amount: cumulative 18.00, re_1 10.00 and re_2 5.00 give three entries: 10.00, 5.00 and 3.00.
        let unexplained = amount.checked_sub(tally.counted);
        if let (Some(stated), Ok(money)) = (tally.cumulative_stated, unexplained)
            && money > zero
        {
            entries.push(TimelineRefund {
                stated,
                key: "chargeId",
                id,
                money,
            });
        }
        if let Some(most) = tally.captured {
            add_amount(&mut captured, most);
            if let (Some(stated), true) = (tally.cumulative_stated, amount > most) {
                timeline.add_review("refund_exceeds_captured", id, stated);
            }
            amount = amount.min(most);
        }
        add_amount(&mut refunded, amount);
    }
    // The captured amount has two sources: the payment's success says what it received, its charges say what they
    // captured. They are the same money, and either may arrive first, so the greater one counts.
    let received = received.filter(|money| money.currency == currency);
    captured = received.unwrap_or(zero).max(captured);
    // A refund that arrives before any event says what was captured (captured is 0 here) counts in full, because money
    // left. Nothing is refunded in full by that. Example: re_1 of 42.00 first: 42.00 refunded. Then the payment arrives
    // with 40.00 received: the limit is 40.00, and the excess needs review.
    if captured > zero && refunded > captured {
        refunded = captured;
        if let Some(stated) = tallies.values().filter_map(|tally| tally.last).max() {
            timeline.add_review("refund_exceeds_captured", payment.as_str(), stated);
        }
    }
    let by_id = facts
        .refunds
        .iter()
        .filter(|(id, _)| !releases.contains(id));
    let by_id = by_id.flat_map(|(_, refund)| refund.states.values());
    let by_id = by_id.map(|seen| seen.last_at.0);
    let money = PaymentRefunds {
        captured,
        refunded,
        has_refunds: !entries.is_empty() || facts.refunds.keys().any(|id| !releases.contains(id)),
        last_stated_at: by_id
            .chain(entries.iter().map(|entry| entry.stated.at))
            .max(),
        entries,
    };
    if !money.is_everything() {
        for (id, stated) in failed {
            timeline.add_review("refund_failed", id, stated);
        }
    }
    money
}

/// What was refunded of one charge: the larger of its refunds by id and its cumulative figure, as in
/// [`derive_refunds`], but without a limit. It is the same whether or not the cumulative figure still contains a refund
/// that failed.
pub(crate) fn derive_charge_refunded(
    facts: &MoneyFacts,
    charge: &ChargeId,
    currency: Currency,
) -> Money {
    let mut timeline = TimelineBuilder::default();
    let tallies = tally_refunds(facts, currency, &mut Vec::new(), &mut timeline);
    let tally = tallies.get(charge.as_str());
    tally.map_or(Money::zero(currency), RefundTally::refunded)
}

/// The currency in which we count: that of the given amount, else that of the first charge, payment, refund by id or
/// dispute. Without an amount due no payment matches, but what was refunded still has to be shown.
pub(super) fn find_counted_currency(facts: &MoneyFacts, given: Option<Money>) -> Option<Currency> {
    let charged = facts.charges.values().filter_map(captured_amount);
    let received = facts.payments.keys();
    let received = received.filter_map(|id| facts.received_amounts(id).first().copied());
    let refunded = facts.refunds.values().map(|refund| refund.amount.0);
    let disputed = facts.disputes.values();
    let disputed = disputed.filter_map(|dispute| dispute.amount.as_ref().map(|amount| amount.0));
    let mut known = given
        .into_iter()
        .chain(charged)
        .chain(received)
        .chain(refunded)
        .chain(disputed);
    known.next().map(|money| money.currency)
}

fn captured_amount(charge: &ChargeFacts) -> Option<Money> {
    charge.captured.as_ref().map(|money| money.0)
}

/// What was authorised and not captured; zero as far as it is not known.
fn released_amount(charge: &ChargeFacts, captured: Money) -> Money {
    let authorised = charge.amount.as_ref().map_or(captured, |amount| amount.0);
    let released = authorised.checked_sub(captured);
    let zero = Money::zero(captured.currency);
    released.map_or(zero, |released| released.max(zero))
}

/// The refunds by which Stripe releases what was not captured: they give nothing back. Before basil it makes one whenever
/// an authorisation ends or is captured in part; only of an expired one its `reason` says so.
fn find_releases(facts: &MoneyFacts) -> BTreeSet<&RefundId> {
    let by_reason = facts
        .refunds
        .iter()
        .filter(|(_, refund)| refund.release.is_some())
        .map(|(id, _)| id);
    let mut releases: BTreeSet<&RefundId> = by_reason.collect();
    for (id, charge) in &facts.charges {
        let Some(captured) = captured_amount(charge) else {
            continue;
        };
        let is_its = |refund: &RefundFacts| find_refunded_charge(facts, refund) == id.as_str();
        let its = facts.refunds.iter().filter(|(_, refund)| is_its(refund));
        if captured.amount == 0 {
            releases.extend(its.map(|(id, _)| id));
        } else if charge.before_basil.is_some() {
            let released = released_amount(charge, captured);
            let first_at =
                |refund: &RefundFacts| refund.states.values().map(|seen| seen.first.at).min();
            let as_much = its.filter(|(_, refund)| refund.amount.0 == released);
            releases.extend(
                as_much
                    .min_by_key(|(id, refund)| (first_at(refund), *id))
                    .map(|(id, _)| id),
            );
        }
    }
    releases
}

fn tally_refunds<'f>(
    facts: &'f MoneyFacts,
    currency: Currency,
    refund_entries: &mut Vec<TimelineRefund<'f>>,
    timeline: &mut TimelineBuilder,
) -> BTreeMap<&'f str, RefundTally<'f>> {
    let mut tallies: BTreeMap<&str, RefundTally<'_>> = BTreeMap::new();
    for (id, charge) in &facts.charges {
        let Some(captured) = captured_amount(charge) else {
            continue;
        };
        let refunded = Money {
            amount: charge.amount_refunded.0,
            ..captured
        };
        if captured.currency != currency {
            let released = released_amount(charge, captured);
            let is_given_back = captured.amount > 0 && refunded != released;
            if let Some(stated) = charge.refunded.as_ref().filter(|_| is_given_back) {
                refund_entries.push(TimelineRefund {
                    stated,
                    key: "chargeId",
                    id: id.as_str(),
                    money: refunded,
                });
                timeline.add_review("refund_currency_mismatch", id.as_str(), stated);
            }
            continue;
        }
        let tally = tallies
            .entry(id.as_str())
            .or_insert_with(|| RefundTally::new(currency));
        tally.captured = Some(captured);
        tally.released = released_amount(charge, captured);
        tally.is_full = charge.refunded_in_full.is_some();
        tally.cumulative = match captured.amount {
            // Nothing was ours that could have been given back.
            0 => Money::zero(currency),
            _ => refunded,
        };
        tally.cumulative_stated = charge.refunded.as_ref();
    }
    let releases = find_releases(facts);
    let refunds = facts.refunds.iter();
    for (id, refund) in refunds.filter(|(id, _)| !releases.contains(id)) {
        let Some(state) = latest_state(&refund.states) else {
            continue;
        };
        let firsts = refund
            .states
            .iter()
            .map(|(state, seen)| (*state, &seen.first));
        // A refund is dated with its first event in a state that counts, so that a later `succeeded` does not move the
        // entry that `pending` made. If we only know that it failed or was canceled, that dates it.
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
        let money = refund.amount.0;
        if state.counts_as_refunded() {
            refund_entries.push(TimelineRefund {
                stated,
                key: "refundId",
                id: id.as_str(),
                money,
            });
        }
        if let Some(failed) = refund.states.get(&RefundState::Failed) {
            let meta = json!({ "refundId": id.as_str(), "amount": money.amount, "currency": money.currency });
            timeline.add("refund_failed", id.as_str(), &failed.first, meta);
        }
        if money.currency != currency {
            timeline.add_review("refund_currency_mismatch", id.as_str(), stated);
            continue;
        }
        let of = find_refunded_charge(facts, refund);
        let tally = tallies
            .entry(of)
            .or_insert_with(|| RefundTally::new(currency));
        tally.last = tally.last.max(Some(stated));
        let sum = if state.counts_as_refunded() {
            &mut tally.counted
        } else {
            &mut tally.undone
        };
        add_amount(sum, money);
    }
    tallies
}

/// The refunds that failed and that no later refund of the payment made good: each later one makes good the earliest failure
/// before it.
fn find_refunds_not_made_good<'f>(
    facts: &'f MoneyFacts,
    releases: &BTreeSet<&RefundId>,
    entries: &[TimelineRefund<'_>],
) -> Vec<(&'f str, &'f FactSource)> {
    let refunds = facts.refunds.iter();
    let failures = refunds.filter(|(id, _)| !releases.contains(id));
    let mut failures: Vec<_> = failures
        .filter_map(|(id, refund)| {
            let failed = refund.states.get(&RefundState::Failed)?;
            Some((&failed.first, id.as_str(), refund.amount.0))
        })
        .collect();
    failures.sort_by_key(|(stated, id, _)| (stated.at, *id));
    let later = entries.iter().filter(|entry| entry.key == "refundId");
    let mut later: Vec<_> = later.collect();
    later.sort_by_key(|entry| (entry.stated.at, entry.id));
    let mut missing = Vec::new();
    for (failed, id, amount) in failures {
        let mut made_good = Money::zero(amount.currency);
        let mut used = BTreeSet::new();
        for entry in later.iter().filter(|entry| entry.stated.at >= failed.at) {
            if made_good < amount && entry.id != id {
                add_amount(&mut made_good, entry.money);
                used.insert(entry.id);
            }
        }
        match made_good >= amount {
            true => later.retain(|entry| !used.contains(entry.id)),
            false => missing.push((id, failed)),
        }
    }
    missing
}

/// The key of the tally that a refund belongs to: its charge. If it names no charge but its payment has exactly one
/// known charge, it belongs to that one: in a tally of its own, a refund of 10.00 and the charge's cumulative 10.00
/// would add up to 20.00.
fn find_refunded_charge<'f>(facts: &'f MoneyFacts, refund: &'f RefundFacts) -> &'f str {
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

/// Adds an amount to a sum in the counted currency; one in another currency is left out, because the caller has added
/// the review reason `refund_currency_mismatch` for it.
///
/// It saturates, because failing would keep every later event out of the row. An amount has at most 2^53 minor units,
/// so a sum of fewer than a thousand is exact.
fn add_amount(sum: &mut Money, amount: Money) {
    if let Ok(total) = sum.saturating_add(amount) {
        *sum = total;
    }
}

/// Adds one entry per refund. `complete_at` is the captured amount if the order was refunded in full.
///
/// `refund_full` is the first entry, by the provider's time, with which the running sum reaches the captured amount.
/// Example: `pi_1` and `pi_2` of 42.00 each; `ch_2` refunded at 10:03, `ch_1` at 10:09. `ch_2` is `refund_partial`,
/// `ch_1` is `refund_full`, whichever event arrived first. Only entries in the counted currency move the sum.
pub(super) fn add_refund_entries(
    mut refund_entries: Vec<&TimelineRefund<'_>>,
    complete_at: Option<Money>,
    currency: Currency,
    timeline: &mut TimelineBuilder,
) {
    refund_entries.retain(|refund| refund.money.amount > 0);
    refund_entries.sort_by_key(|refund| (refund.stated.at, refund.id));
    let counts = |refund: &&TimelineRefund<'_>| refund.money.currency == currency;
    let mut sum = Money::zero(currency);
    let completing = complete_at.and_then(|complete_at| {
        let reached = refund_entries.iter().position(|refund| {
            add_amount(&mut sum, refund.money);
            sum >= complete_at
        });
        reached.or_else(|| refund_entries.iter().rposition(counts))
    });
    for (at, refund) in refund_entries.iter().enumerate() {
        let kind = if completing == Some(at) {
            "refund_full"
        } else {
            "refund_partial"
        };
        let meta = json!({ refund.key: refund.id, "amount": refund.money.amount, "currency": refund.money.currency });
        timeline.add(kind, refund.id, refund.stated, meta);
    }
}
