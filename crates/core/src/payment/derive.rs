//! What an order or statement is, by its merged facts. A function of the facts and of what was due; never of the order
//! in which they came.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, json};

use super::facts::{Charge, Payment, PaymentFacts};
use crate::ids::{CheckoutSessionId, ObjectId, PaymentIntentId};
use crate::merge::Stated;
use crate::money::Money;
use crate::time::Timestamp;
use crate::timeline::Entry;

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

/// An order's `paymentStatus`, a statement's `payment_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// Nothing was paid yet.
    Unpaid,
    /// An attempt failed, none succeeded.
    Failed,
    /// Paid in full.
    Paid,
    /// Given back in full.
    Refunded,
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
            Self::Failed => "failed",
            Self::Paid => "paid",
            Self::Refunded => "refunded",
        }
    }
}

/// The strongest thing that the facts show, weakest first: a stronger one is never undone by a weaker one that comes
/// late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// No payment, or money that does not fit what was due.
    Nothing,
    /// A failed attempt, and no money.
    Failed,
    /// Given up by the cleanup.
    Cancelled,
    /// The amount that was due.
    Paid,
    /// All that was captured went back.
    RefundedInFull,
}

/// The transition table, mirrored in `docs/SEMANTICS.md`. A cancel says nothing of payments, so there the payment's
/// own evidence counts.
pub fn order_status(evidence: Evidence) -> OrderStatus {
    match evidence {
        Evidence::Nothing => OrderStatus::Pending,
        Evidence::Failed => OrderStatus::PaymentFailed,
        Evidence::Cancelled => OrderStatus::Cancelled,
        Evidence::Paid => OrderStatus::Completed,
        Evidence::RefundedInFull => OrderStatus::Refunded,
    }
}

fn payment_status(payment_evidence: Evidence) -> PaymentStatus {
    match payment_evidence {
        Evidence::Nothing | Evidence::Cancelled => PaymentStatus::Unpaid,
        Evidence::Failed => PaymentStatus::Failed,
        Evidence::Paid => PaymentStatus::Paid,
        Evidence::RefundedInFull => PaymentStatus::Refunded,
    }
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
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
    /// The least finished session.
    pub session: Option<CheckoutSessionId>,
    /// One entry per fact.
    pub timeline: Vec<Entry>,
}

/// Derives it. `due` is what the application asked for; without it no payment fits.
pub fn derive(facts: &PaymentFacts, due: Option<Money>) -> Standing {
    let mut story = Story::default();
    let successes = successes(facts);
    let fits = |payment: &Payment| {
        due.is_some_and(|due| payment.received.iter().all(|received| *received == due))
    };
    let mut fitting = successes.iter().filter(|(_, payment, _)| fits(payment));
    let paid_by = fitting.next();

    for (id, payment, stated) in &successes {
        let first = payment.received.first();
        story.tell(
            "payment_succeeded",
            id.as_str(),
            stated,
            json!({
                "paymentIntentId": id.as_str(),
                "amount": first.map(|money| money.amount),
                "currency": first.map(|money| money.currency),
            }),
        );
        if !fits(payment) {
            story.review("amount_mismatch", id.as_str(), stated);
        } else if paid_by.is_some_and(|(paid_id, ..)| paid_id != id) {
            story.review("paid_twice", id.as_str(), stated);
        }
        if facts.cancelled.is_some() {
            story.review("paid_after_cancel", id.as_str(), stated);
        }
    }
    for payment in facts.payments.values() {
        for (attempt, failure) in &payment.failures {
            story.tell(
                "payment_failed",
                attempt.as_str(),
                &failure.stated,
                json!({
                    "code": failure.code.as_ref().map(|code| &code.0),
                    "declineCode": failure.decline_code.as_ref().map(|code| &code.0),
                }),
            );
        }
    }
    for (id, session) in &facts.sessions {
        if let Some(completed) = &session.completed {
            story.tell(
                "checkout_completed",
                id.as_str(),
                completed,
                json!({ "checkoutSessionId": id.as_str() }),
            );
        }
    }
    let (amount_refunded, refunded_in_full) = refunds(facts, due, &mut story);
    if let Some(at) = &facts.cancelled {
        story.note("cancelled", "cancel", at.0, None);
    }
    manual(facts, &mut story);

    let payment_failed_at = facts
        .payments
        .values()
        .flat_map(|payment| payment.failures.values())
        .map(|failure| failure.stated.at)
        .max();
    let payment_evidence = if refunded_in_full || facts.manual.refunded.is_some() {
        Evidence::RefundedInFull
    } else if paid_by.is_some() {
        Evidence::Paid
    } else if payment_failed_at.is_some() && successes.is_empty() {
        Evidence::Failed
    } else {
        Evidence::Nothing
    };
    let cancel_evidence = facts
        .cancelled
        .as_ref()
        .map_or(Evidence::Nothing, |_| Evidence::Cancelled);
    Standing {
        status: order_status(payment_evidence.max(cancel_evidence)),
        payment_status: payment_status(payment_evidence),
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
        session: facts.sessions.keys().next().cloned(),
        timeline: story.timeline,
    }
}

/// The payments that succeeded, first ones first.
fn successes(facts: &PaymentFacts) -> Vec<(&ObjectId, &Payment, &Stated)> {
    let mut successes: Vec<_> = facts
        .payments
        .iter()
        .filter_map(|(id, payment)| Some((id, payment, payment.succeeded.as_ref()?)))
        .collect();
    successes.sort_by_key(|(id, _, stated)| (stated.at, *id));
    successes
}

/// What went back in all, and whether that is everything. A charge that was never seen by itself counts with what its
/// payment received. Amounts of another currency than was due are told and reviewed, and added to nothing.
fn refunds(facts: &PaymentFacts, due: Option<Money>, story: &mut Story) -> (i64, bool) {
    let captured_by_charge = |charge: &Charge| charge.captured.as_ref().map(|money| money.0);
    let received = |payment: &Payment| payment.received.last().copied();
    let of_charges = facts.charges.values().filter_map(captured_by_charge);
    let mut all = due
        .into_iter()
        .chain(of_charges)
        .chain(facts.payments.values().filter_map(received));
    let Some(currency) = all.next().map(|money| money.currency) else {
        return (0, false);
    };
    let counted = |money: Option<Money>| {
        money
            .filter(|money| money.currency == currency)
            .map_or(0, |money| money.amount)
    };

    let mut captured: BTreeMap<&str, i64> = BTreeMap::new();
    for (id, charge) in &facts.charges {
        let payment = charge
            .intent
            .as_ref()
            .map_or(id.as_str(), |intent| intent.0.as_str());
        let sum = captured.entry(payment).or_default();
        *sum = sum.saturating_add(counted(captured_by_charge(charge)));
    }
    for (id, payment) in &facts.payments {
        let known = captured.entry(id.as_str()).or_default();
        *known = counted(received(payment)).max(*known);
    }
    let captured = captured
        .values()
        .fold(0_i64, |sum, amount| sum.saturating_add(*amount));

    let mut by_time: Vec<_> = facts
        .charges
        .iter()
        .filter_map(|(id, charge)| {
            let captured = captured_by_charge(charge)?;
            Some((
                charge.refunded.as_ref()?,
                id,
                charge.amount_refunded.0,
                captured,
            ))
        })
        .filter(|(_, _, refunded, _)| *refunded > 0)
        .collect();
    by_time.sort_by_key(|(stated, id, ..)| (stated.at, *id));
    let mut refunded = 0_i64;
    let mut told_full = false;
    for (stated, id, stated_amount, of) in by_time {
        let amount = stated_amount.min(of.amount);
        if amount < stated_amount {
            story.review("refund_exceeds_captured", id.as_str(), stated);
        }
        if of.currency != currency {
            story.review("refund_currency_mismatch", id.as_str(), stated);
        }
        refunded = refunded.saturating_add(counted(Some(Money { amount, ..of })));
        let full = refunded > 0 && refunded >= captured && !told_full;
        told_full |= full;
        let kind = if full {
            "refund_full"
        } else {
            "refund_partial"
        };
        let meta = json!({ "chargeId": id.as_str(), "amount": amount, "currency": of.currency });
        story.tell(kind, id.as_str(), stated, meta);
    }
    (refunded, told_full)
}

/// Timeline entries and review reasons as they are found.
#[derive(Default)]
struct Story {
    timeline: Vec<Entry>,
    reasons: BTreeSet<String>,
}

impl Story {
    fn tell(&mut self, kind: &str, fact: &str, stated: &Stated, meta: serde_json::Value) {
        let meta = match meta {
            serde_json::Value::Object(members) => members
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect(),
            _ => Map::new(),
        };
        self.timeline.push(Entry {
            at: stated.at,
            kind: kind.to_owned(),
            fact: fact.to_owned(),
            told_by: "stripe",
            event: Some(stated.event.clone()),
            meta,
        });
    }

    fn review(&mut self, reason: &str, fact: &str, stated: &Stated) {
        let reason = format!("{reason}:{fact}");
        self.tell(
            "review_flagged",
            &reason,
            stated,
            json!({ "reason": reason }),
        );
        self.reasons.insert(reason);
    }

    /// An entry that no event states.
    fn note(&mut self, kind: &str, fact: &str, at: Timestamp, reason: Option<&str>) {
        self.timeline.push(Entry {
            at,
            kind: kind.to_owned(),
            fact: fact.to_owned(),
            told_by: "billhook",
            event: None,
            meta: reason
                .map(|reason| ("reason".to_owned(), json!(reason)))
                .into_iter()
                .collect(),
        });
    }
}

/// What people decided: it is told, and it stands.
fn manual(facts: &PaymentFacts, story: &mut Story) {
    for at in &facts.manual.flagged {
        let reason = format!("flagged_by_hand:{at}");
        story.note("review_flagged", &reason, *at, Some(&reason));
        story.reasons.insert(reason);
    }
    if let Some(at) = &facts.manual.refunded {
        story.note("refund_full", "by_hand", at.0, Some("by_hand"));
    }
    for (reason, at) in &facts.manual.cleared {
        story.note("review_cleared", reason, at.0, Some(reason));
        story.reasons.remove(reason);
    }
}
