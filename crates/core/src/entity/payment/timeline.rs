//! Collects the timeline entries and review reasons of a payment while `derive` and `refunds` find them.
//!
//! A review reason has the form `<word>:<fact>`, and each reason has one `review_flagged` entry. The words are those of
//! the table in `docs/SEMANTICS.md`, Review. `entity::timeline` merges the entries with those of other writers.

use std::collections::BTreeSet;

use serde_json::{Map, json};

use crate::entity::manual::{FLAGGED_BY_HAND, ManualEdits, ROW_CONFLICT, ROW_REPLACED};
use crate::entity::merge::{FactSource, MaxRegister, MinRegister};
use crate::entity::payment::facts::MoneyFacts;
use crate::entity::timeline::DerivedEntry;
use crate::ids::PaymentRef;
use crate::time::Timestamp;

#[derive(Default)]
pub(super) struct TimelineBuilder {
    pub(super) entries: Vec<DerivedEntry>,
    pub(super) reasons: BTreeSet<String>,
}

impl TimelineBuilder {
    pub(super) fn add(
        &mut self,
        kind: &str,
        fact: &str,
        stated: &FactSource,
        meta: serde_json::Value,
    ) {
        self.entries.push(DerivedEntry {
            at: stated.at,
            kind: kind.to_owned(),
            fact: fact.to_owned(),
            stated_by: "stripe",
            event: Some(stated.event.clone()),
            meta: members_of(meta),
        });
    }

    pub(super) fn add_review(&mut self, reason: &str, fact: &str, stated: &FactSource) {
        let reason = format!("{reason}:{fact}");
        self.add(
            "review_flagged",
            &reason,
            stated,
            json!({ "reason": reason }),
        );
        self.reasons.insert(reason);
    }

    /// Adds a reason that no event states.
    pub(super) fn add_review_without_event(&mut self, reason: &str, fact: &str, at: Timestamp) {
        let reason = format!("{reason}:{fact}");
        self.add_note("review_flagged", &reason, at, json!({ "reason": reason }));
        self.reasons.insert(reason);
    }

    /// Adds an entry that no event states: a manual edit or a cancellation.
    pub(super) fn add_note(
        &mut self,
        kind: &str,
        fact: &str,
        at: Timestamp,
        meta: serde_json::Value,
    ) {
        self.entries.push(DerivedEntry {
            at,
            kind: kind.to_owned(),
            fact: fact.to_owned(),
            stated_by: "billhook",
            event: None,
            meta: members_of(meta),
        });
    }
}

/// Without those that are null.
fn members_of(meta: serde_json::Value) -> Map<String, serde_json::Value> {
    match meta {
        serde_json::Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
        _ => Map::new(),
    }
}

/// Adds failed attempts. A delayed payment that fails is reported twice: `checkout.session.async_payment_failed` names
/// only the payment and no code, `payment_intent.payment_failed` names the charge. If there is a failure with a charge, the
/// one without charge and code counts as the same attempt and gets no entry.
pub(super) fn add_failures(facts: &MoneyFacts, timeline: &mut TimelineBuilder) {
    for (id, payment) in &facts.payments {
        let mut attempts = payment.failures.iter();
        let by_charge = attempts.any(|(attempt, _)| attempt != id);
        for (attempt, failure) in payment.failures.iter() {
            if by_charge && attempt == id && failure.code.is_none() {
                continue;
            }
            let meta = json!({
                "code": failure.code,
                "declineCode": failure.decline_code,
            });
            timeline.add("payment_failed", attempt.as_str(), &failure.stated, meta);
        }
        // One entry each also after the payment succeeded or failed: the timeline is history, not state.
        for (kind, seen) in [
            ("payment_authorized", &payment.authorized),
            ("payment_processing", &payment.processing),
        ] {
            if let Some(seen) = seen {
                let meta = json!({ payment_key(id): id.as_str() });
                timeline.add(kind, id.as_str(), &seen.first, meta);
            }
        }
    }
}

/// The name of a payment's id in an entry's `meta`.
pub(super) fn payment_key(id: &PaymentRef) -> &'static str {
    match id {
        PaymentRef::Intent(_) => "paymentIntentId",
        PaymentRef::Session(_) => "checkoutSessionId",
        PaymentRef::Charge(_) => "chargeId",
    }
}

pub(super) fn add_sessions(facts: &MoneyFacts, timeline: &mut TimelineBuilder) {
    for (id, session) in &facts.sessions {
        for (kind, ended) in [
            ("checkout_completed", &session.completed),
            ("checkout_expired", &session.expired),
        ] {
            if let Some(stated) = ended {
                let meta = json!({ "checkoutSessionId": id.as_str() });
                timeline.add(kind, id.as_str(), stated, meta);
            }
        }
    }
}

/// Adds fraud warnings and Stripe's reviews of one payment. A fraud warning has no end and stays until it is cleared, or
/// all of the payment went back.
pub(super) fn add_warnings_and_reviews(
    facts: &MoneyFacts,
    is_back: bool,
    timeline: &mut TimelineBuilder,
) {
    if is_back {
        return;
    }
    for (id, stated) in &facts.warnings {
        timeline.add_review("fraud_warning", id.as_str(), stated);
    }
    for (id, review) in &facts.reviews {
        if let (Some(opened), None) = (&review.opened, &review.closed) {
            timeline.add_review("stripe_review", id.as_str(), opened);
        }
    }
}

/// Adds manual edits. Clearing removes reasons that were added before.
pub(super) fn add_manual_edits(manual: &ManualEdits, timeline: &mut TimelineBuilder) {
    for at in &manual.flagged {
        timeline.add_review_without_event(FLAGGED_BY_HAND, &at.to_string(), *at);
    }
    for (entry, MinRegister(record)) in &manual.recorded {
        if !record.is_entry {
            let meta = json!({ "by": record.by, "reason": record.reason });
            timeline.add_note("payment_recorded", entry, record.at, meta);
        }
    }
    for (at, edits) in &manual.conflicts {
        let reason = format!("{ROW_CONFLICT}:{at}");
        let meta = json!({ "reason": reason, "edits": edits });
        timeline.add_note("review_flagged", &reason, *at, meta);
        timeline.reasons.insert(reason);
    }
    for at in &manual.replaced {
        timeline.add_review_without_event(ROW_REPLACED, &at.to_string(), *at);
    }
    for (payment, MaxRegister(accepted)) in &manual.accepted {
        let meta = json!({ payment_key(payment): payment.as_str(), "by": accepted.by, "reason": accepted.reason });
        timeline.add_note("amount_accepted", payment.as_str(), accepted.at, meta);
    }
    if let Some(at) = manual.refunded.first() {
        timeline.add_note(
            "refund_full",
            "by_hand",
            *at,
            json!({ "reason": "by_hand" }),
        );
    }
    for (reason, at) in &manual.cleared {
        timeline.add_note("review_cleared", reason, at.0, json!({ "reason": reason }));
        timeline.reasons.remove(reason);
    }
}
