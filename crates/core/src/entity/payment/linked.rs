//! What an order or statement knows of its payments: a copy of each payment's facts, beside what people and the cleanup
//! stated about the order itself.
//!
//! The payment's own state is the source (`state`). A newer copy replaces the older one as a whole, so a payment that was
//! linked to the wrong order takes its facts along when it is linked to another one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entity::key::{EntityKey, PaymentKey};
use crate::entity::manual::ManualEdits;
use crate::entity::merge::{MaxRegister, Merge, MinRegister, merge_fields};
use crate::entity::opening::OpeningState;
use crate::entity::payment::facts::{IntentFacts, MoneyFacts};
use crate::ids::{AccountId, CheckoutSessionId, InvoiceId, PaymentIntentId, PaymentRef};
use crate::time::Timestamp;

/// The payment facts of one order or statement.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinkedPaymentFacts {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub payments: BTreeMap<PaymentKey, PaymentCopy>,
    /// When the cleanup or a person cancelled the order, by our clock.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cancelled: BTreeSet<Timestamp>,
    #[serde(skip_serializing_if = "ManualEdits::is_none")]
    pub manual: ManualEdits,
    /// What an adopted row said when billhook first wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opening: Option<MinRegister<OpeningState>>,
}

/// A payment as an order or statement knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentCopy {
    /// The version of the payment's state that this is a copy of.
    pub version: i64,
    pub link: LinkState,
    /// The invoices that the payment pays, or that its session made.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub invoices: BTreeSet<InvoiceId>,
    /// No event states what a person decided: a payment whose own state is lost gets it back from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relink: Option<MaxRegister<RelinkDecision>>,
    /// Whether the payment succeeded. Set even if another order is linked to it, because the session that made its invoice
    /// then counts as paid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_paid: bool,
    /// Empty if the payment is linked to another order or statement.
    #[serde(default)]
    pub facts: MoneyFacts,
}

/// How a payment is linked to an order or statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is this one's, and so are its facts.
    Linked,
    /// Another one has an equally good link, since this time. A person decides (`relink`).
    Conflict(Timestamp),
    /// It is linked to another one.
    Elsewhere,
}

/// A person's decision about which order or statement a payment is linked to. Decisions are numbered; the one with the
/// greatest number wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RelinkDecision {
    pub number: i64,
    /// None if it belongs to no order and no statement, such as a payment of another shop on the same account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<EntityKey>,
    /// The person's AWS identity.
    pub actor: String,
    pub reason: String,
}

impl PaymentCopy {
    /// Of a payment that is linked and of which nothing is known yet.
    pub fn linked(version: i64) -> Self {
        Self {
            version,
            link: LinkState::Linked,
            invoices: BTreeSet::new(),
            relink: None,
            is_paid: false,
            facts: MoneyFacts::default(),
        }
    }
}

impl Merge for PaymentCopy {
    /// The newer copy replaces the older one: the state of a version is always the same.
    fn merge(&mut self, other: Self) {
        if other.version > self.version {
            *self = other;
        }
    }
}

merge_fields!(LinkedPaymentFacts {
    payments,
    cancelled,
    manual,
    opening
});

impl LinkedPaymentFacts {
    /// When the order was cancelled that is there now, and not one that was in its place before.
    pub(in crate::entity) fn cancelled_at(&self) -> Option<Timestamp> {
        let since = self.manual.replaced.last();
        let mut cancelled = self.cancelled.iter();
        cancelled
            .find(|at| since.is_none_or(|since| *at > since))
            .copied()
    }

    /// The opening state of the row that is there now, and not of one that was in its place before.
    pub(in crate::entity) fn opening_state(&self) -> Option<&OpeningState> {
        let is_first = self.manual.replaced.is_empty();
        let opening = self.opening.as_ref();
        opening.filter(|_| is_first).map(|opening| &opening.0)
    }

    /// Whether anybody said anything about it since billhook knows it.
    pub(in crate::entity) fn has_facts(&self) -> bool {
        let Self {
            payments,
            cancelled,
            manual,
            opening: _,
        } = self;
        !payments.is_empty() || !cancelled.is_empty() || !manual.is_none()
    }

    /// Whether Stripe stated anything about a payment that is linked to it, or once was: what was written then has to be
    /// removed. A session that only expired states nothing.
    pub fn has_stripe_facts(&self) -> bool {
        self.payments
            .values()
            .any(|copy| copy.link != LinkState::Linked || !copy.facts.states_nothing())
    }

    /// The payments that are linked to it, conflicts included.
    pub fn payment_keys(&self) -> impl Iterator<Item = &PaymentKey> {
        let payments = self.payments.iter();
        payments
            .filter(|(_, copy)| copy.link != LinkState::Elsewhere)
            .map(|(key, _)| key)
    }

    /// The payments of which a person decided that they belong here.
    pub(super) fn decided_payments(&self) -> BTreeSet<&PaymentRef> {
        let decided = self.payments.iter();
        let decided = decided.filter(|(_, copy)| copy.relink.is_some());
        decided.map(|(key, _)| &key.payment).collect()
    }

    /// Also one that is linked to another one by now.
    pub fn knows_payment_intent(&self, intent: &PaymentIntentId) -> bool {
        let mut keys = self.payments.keys();
        keys.any(|key| key.payment.intent() == Some(intent))
    }

    /// Also of a payment that is linked to another one by now.
    pub fn knows_session(&self, session: &CheckoutSessionId) -> bool {
        let mut copies = self.payments.values();
        copies.any(|copy| copy.facts.sessions.contains_key(session))
    }

    /// The sessions of linked payments of which no event says that they were completed or expired, with their account.
    pub fn unfinished_sessions(
        &self,
    ) -> impl Iterator<Item = (Option<&AccountId>, &CheckoutSessionId)> {
        let linked = self.payments.iter();
        let linked = linked.filter(|(_, copy)| copy.link == LinkState::Linked);
        linked.flat_map(|(key, copy)| {
            let open =
                copy.facts.sessions.iter().filter(|(_, session)| {
                    session.completed.is_none() && session.expired.is_none()
                });
            open.map(|(id, _)| (key.account.as_ref(), id))
        })
    }

    /// The payments to which another one has an equally good link, and since when.
    pub fn conflicts(&self) -> impl Iterator<Item = (&PaymentKey, Timestamp)> {
        self.payments
            .iter()
            .filter_map(|(key, copy)| match copy.link {
                LinkState::Conflict(since) => Some((key, since)),
                LinkState::Linked | LinkState::Elsewhere => None,
            })
    }

    /// When an edit was made that is found together with new facts: nobody knew of those yet, and of all others one did.
    /// Example: a person sets `refunded` at 10:00, a payment succeeds at 10:05, and both are found at 10:06.
    pub(in crate::entity) fn date_edit(&self, new: &Self, now: Timestamp) -> Timestamp {
        let known: BTreeSet<(&str, Timestamp)> = self
            .payments
            .values()
            .flat_map(|copy| copy.facts.money_times())
            .collect();
        let stated = new
            .payments
            .values()
            .flat_map(|copy| copy.facts.money_times());
        let first_new = stated
            .filter(|time| !known.contains(time))
            .map(|(_, at)| at)
            .min();
        let last_known = known.iter().map(|(_, at)| *at).max();
        let moment = Duration::from_millis(1);
        let before_new = first_new.map(|at| at.before(moment));
        let after_known = last_known.map(|at| at.after(moment));
        before_new
            .max(after_known)
            .map_or(now, |at| match first_new {
                Some(_) => at.min(now),
                None => now,
            })
    }

    /// The linked payments whose money counts, each with all facts about it.
    ///
    /// A session of a subscription states an amount, and so do the payments of the invoice that the session made: that is
    /// one payment. If they are linked to another order, the session's amount counts nowhere once one of them succeeded.
    pub(super) fn counted_payments(&self) -> Vec<(PaymentRef, MoneyFacts)> {
        let is_intent = |key: &PaymentKey| key.payment.intent().is_some();
        let shares =
            |one: &PaymentCopy, other: &PaymentCopy| !one.invoices.is_disjoint(&other.invoices);
        let intents = || {
            self.payments
                .iter()
                .filter(|(key, copy)| is_intent(key) && copy.is_paid)
        };
        let linked = || {
            self.payments
                .iter()
                .filter(|(_, copy)| copy.link == LinkState::Linked)
        };
        let session_of = |copy: &PaymentCopy| {
            let mut sessions = linked().filter(|(key, _)| !is_intent(key));
            sessions.find(|(_, session)| shares(session, copy))
        };
        let mut counted: Vec<(PaymentRef, MoneyFacts)> = Vec::new();
        for (key, copy) in linked() {
            let own = || (key.payment.clone(), self.facts_of(key, copy));
            if is_intent(key) {
                if !copy.is_paid || session_of(copy).is_none() {
                    counted.push(own());
                }
                continue;
            }
            let its: Vec<_> = intents().filter(|(_, paid)| shares(copy, paid)).collect();
            let here = its
                .iter()
                .filter(|(_, paid)| paid.link == LinkState::Linked);
            let here: Vec<_> = here.collect();
            match here.first() {
                Some((first, _)) => {
                    let mut facts = self.facts_of(key, copy);
                    for (_, paid) in &here {
                        facts.merge(paid.facts.clone());
                    }
                    counted.push((first.payment.clone(), facts));
                }
                None if its.is_empty() => counted.push(own()),
                None => {}
            }
        }
        counted
    }

    /// The facts of all payments that are linked to it, together.
    pub fn merge_linked_facts(&self) -> MoneyFacts {
        let mut facts = MoneyFacts::default();
        for (key, copy) in &self.payments {
            if copy.link == LinkState::Linked {
                facts.merge(self.facts_of(key, copy));
            }
        }
        facts
    }

    /// The facts of one copy. A subscription's session that completed unpaid names no payment, only the invoice that it
    /// made: it is in progress until a payment of that invoice succeeds, fails or is canceled.
    fn facts_of(&self, key: &PaymentKey, copy: &PaymentCopy) -> MoneyFacts {
        let mut facts = copy.facts.clone();
        if key.payment.intent().is_some() || copy.invoices.is_empty() {
            return facts;
        }
        let of_invoice = || {
            let intents = self.payments.iter();
            let intents = intents.filter(|(key, _)| key.payment.intent().is_some());
            intents
                .map(|(_, of)| of)
                .filter(|of| !of.invoices.is_disjoint(&copy.invoices))
        };
        let is_paid = of_invoice().any(|of| of.is_paid);
        let payments = of_invoice().flat_map(|of| of.facts.payments.values());
        let ended = payments.filter_map(IntentFacts::ended_at).max();
        for payment in facts.payments.values_mut() {
            let since = payment.processing.as_ref().map(|seen| seen.last_at.0);
            if is_paid || ended >= since {
                payment.processing = None;
            }
        }
        facts
    }
}
