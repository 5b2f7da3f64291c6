//! Disputes of one payment: how much of it the customer's bank demands or has taken, and the review reasons.
//! `deadlines` has the due dates.
//!
//! A dispute belongs to its payment, so another payment that covers the amount due is not touched by it.

use serde_json::{Value, json};

use crate::entity::merge::{FactSource, MaxRegister, MinRegister, latest_state};
use crate::entity::payment::facts::{DisputeFacts, DisputeState, MoneyFacts};
use crate::entity::payment::refunds::PaymentRefunds;
use crate::entity::payment::timeline::TimelineBuilder;

/// What the disputes say about the whole of a payment. A dispute about a part is only a review reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct DisputedPayment {
    /// The bank has everything that was not refunded.
    pub(super) is_lost: bool,
    /// The bank demands it.
    pub(super) is_open: bool,
}

/// Adds the entries and reasons of a payment's disputes. Only a state that needs action now gives a reason, so
/// `dispute_open` disappears by itself when the dispute is won.
pub(super) fn derive_disputes(
    facts: &MoneyFacts,
    money: &PaymentRefunds<'_>,
    timeline: &mut TimelineBuilder,
) -> DisputedPayment {
    let rest = money.captured.amount.saturating_sub(money.refunded.amount);
    // What was captured may not be known yet; then a dispute is about all of it.
    let part_of = |dispute: &DisputeFacts| {
        let amount = dispute.amount.as_ref().map(|amount| amount.0);
        let amount = amount.filter(|amount| amount.currency == money.captured.currency)?;
        (amount.amount < rest).then_some(amount.amount)
    };
    let mut found = DisputedPayment::default();
    let (mut lost, mut open) = (0_i64, 0_i64);
    for (id, dispute) in &facts.disputes {
        let id = id.as_str();
        let part = part_of(dispute);
        add_entries(id, dispute, timeline);
        let state = latest_state(&dispute.states);
        let word = match (state, part) {
            (Some(DisputeState::Inquiry), _) => "inquiry_open",
            (Some(DisputeState::Open), None) => "dispute_open",
            (Some(DisputeState::Open), Some(_)) => "partial_dispute_open",
            (Some(DisputeState::Lost), None) => "dispute_lost",
            (Some(DisputeState::Lost), Some(_)) => "partial_dispute_lost",
            (
                Some(DisputeState::InquiryClosed | DisputeState::Prevented | DisputeState::Won),
                _,
            )
            | (None, _) => continue,
        };
        if let Some(first) = first_stated(dispute) {
            timeline.add_review(word, &name_episode(id, dispute), first);
        }
        let amount = part.unwrap_or(rest.max(1));
        match state {
            Some(DisputeState::Lost) => lost = lost.saturating_add(amount),
            Some(DisputeState::Open) => open = open.saturating_add(amount),
            _ => {}
        }
    }
    found.is_lost = lost > 0 && lost >= rest;
    found.is_open = open > 0 && lost.saturating_add(open) >= rest;
    found
}

fn first_stated(dispute: &DisputeFacts) -> Option<&FactSource> {
    let first = dispute.states.values().map(|seen| &seen.first);
    first.min_by_key(|stated| (stated.at, &stated.event))
}

fn add_entries(id: &str, dispute: &DisputeFacts, timeline: &mut TimelineBuilder) {
    let Some(opened) = first_stated(dispute) else {
        return;
    };
    let amount = dispute.amount.as_ref().map(|amount| amount.0);
    let due = dispute
        .respond_by
        .as_ref()
        .and_then(|MaxRegister((_, due))| *due);
    let meta = json!({
        "disputeId": id,
        "amount": amount.map(|amount| amount.amount),
        "currency": amount.map(|amount| amount.currency),
        "reason": dispute.reason.as_ref().map(|MinRegister(reason)| reason),
        "dueBy": due.map_or(Value::Null, |due| json!(due.to_string())),
    });
    timeline.add("dispute_opened", id, opened, meta);
    for (state, kind) in [
        (DisputeState::Won, "dispute_won"),
        (DisputeState::Lost, "dispute_lost"),
    ] {
        if let Some(seen) = dispute.states.get(&state) {
            timeline.add(kind, id, &seen.first, json!({ "disputeId": id }));
        }
    }
}

/// The dispute, and the time at which its last state ended if it comes back to a state: an appeal opens it again, and it
/// may be lost a second time. A person who cleared the first has not seen the second.
fn name_episode(id: &str, dispute: &DisputeFacts) -> String {
    let Some(state) = latest_state(&dispute.states) else {
        return id.to_owned();
    };
    let begun = dispute.states.get(&state).map(|seen| seen.first.at);
    let others = dispute.states.iter().filter(|(other, _)| **other != state);
    let others = others.map(|(_, seen)| seen.last_at.0);
    let left = others.filter(|left| Some(*left) > begun).max();
    left.map_or_else(|| id.to_owned(), |left| format!("{id}@{left}"))
}
