//! What an order or statement knows of its payments: a copy of each payment's facts, beside what people and the cleanup
//! stated about the order itself.
//!
//! The payment's own state is the source (`state`). A newer copy replaces the older one as a whole, so a payment that was
//! linked to the wrong order takes its facts along when it is linked to another one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entity::key::{EntityKey, PaymentKey};
use crate::entity::manual::ManualEdits;
use crate::entity::merge::{MaxRegister, Merge, MinRegister, merge_fields};
use crate::entity::opening::OpeningState;
use crate::entity::payment::facts::MoneyFacts;
use crate::ids::{InvoiceId, PaymentIntentId};
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
    pub entity: EntityKey,
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

    /// Also one that is linked to another one by now.
    pub fn knows_payment_intent(&self, intent: &PaymentIntentId) -> bool {
        let mut keys = self.payments.keys();
        keys.any(|key| key.payment.intent() == Some(intent))
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

    /// The linked payments whose money counts.
    ///
    /// A session of a subscription states an amount, and so does the payment of the invoice that the session made: that
    /// is one payment, so the session's amount counts only while none of the invoice's payments succeeded, whatever they
    /// are linked to.
    pub fn counted_copies(&self) -> impl Iterator<Item = (&PaymentKey, &MoneyFacts)> {
        let is_intent = |key: &PaymentKey| key.payment.intent().is_some();
        let paid: BTreeSet<&InvoiceId> = self
            .payments
            .iter()
            .filter(|(key, copy)| is_intent(key) && copy.is_paid)
            .flat_map(|(_, copy)| &copy.invoices)
            .collect();
        let linked = self.payments.iter();
        let linked = linked.filter(|(_, copy)| copy.link == LinkState::Linked);
        let counted = linked.filter(move |(key, copy)| {
            is_intent(key) || !copy.invoices.iter().any(|invoice| paid.contains(invoice))
        });
        counted.map(|(key, copy)| (key, &copy.facts))
    }

    /// The facts of all payments that are linked to it, together.
    pub fn merge_linked_facts(&self) -> MoneyFacts {
        let mut facts = MoneyFacts::default();
        for copy in self.payments.values() {
            if copy.link == LinkState::Linked {
                facts.merge(copy.facts.clone());
            }
        }
        facts
    }
}
