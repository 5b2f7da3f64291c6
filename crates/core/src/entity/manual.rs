//! What people and the application decided about an order or statement outside of Stripe and Lob, as facts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entity::merge::{MaxRegister, MinRegister, merge_fields};
use crate::ids::PaymentRef;
use crate::money::Money;
use crate::time::Timestamp;

/// The review reason of a row that was flagged without saying why.
pub(super) const FLAGGED_BY_HAND: &str = "flagged_by_hand";
/// The review reason of a row that is in another one's place.
pub(super) const ROW_REPLACED: &str = "row_replaced";
/// The review reason of an edit in an older copy of the row.
pub(super) const ROW_CONFLICT: &str = "row_conflict";

/// Manual edits that stand (repairs), with the time at which billhook found them. `entity::edits` says how.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ManualEdits {
    /// When a status column was set to `refunded`. A set of times, as all that a person may say more than once.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub refunded: BTreeSet<Timestamp>,
    /// Cleared for good, by full reason: clearing `dispute_open:dp_1` does not clear `dispute_open:dp_2`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cleared: BTreeMap<String, MinRegister<Timestamp>>,
    /// A set of times, so that a row which was flagged, cleared and flagged again is flagged.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub flagged: BTreeSet<Timestamp>,
    /// Payments outside Stripe that somebody attests, by the time at which they were recorded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub recorded: BTreeMap<String, MinRegister<PaymentRecord>>,
    /// When a status column was set to paid, and nobody said why.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub found_paid: BTreeSet<Timestamp>,
    /// The payments whose amount a person accepts as what was due, though it is not.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accepted: BTreeMap<PaymentRef, MaxRegister<AcceptedAmount>>,
    /// What was due when it was paid, by the time at which another amount was found.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub paid_dues: BTreeMap<Timestamp, MinRegister<Money>>,
    /// Edits in older copies of the row, by the time at which the row was restored.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub conflicts: BTreeMap<Timestamp, BTreeSet<FoundEdit>>,
    /// When another row was found in the place of the known one.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub replaced: BTreeSet<Timestamp>,
}

/// A payment outside Stripe, such as cash, that somebody attests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PaymentRecord {
    pub at: Timestamp,
    /// Who says so: a person, or the `actor` of the timeline's entry.
    pub by: String,
    pub reason: String,
    /// It stands in the row's timeline already, as an entry of the application.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_entry: bool,
}

/// A person's decision that a payment is enough.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AcceptedAmount {
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
    /// What was due then; for another amount it does not count.
    pub due: Money,
}

/// A column with another value than billhook wrote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FoundEdit {
    /// By the name in the stored `derived`, such as `paymentStatus`.
    pub column: String,
    pub found: String,
    pub written: String,
}

/// A manual edit that the next write overwrites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscardedEdit {
    /// The name in the stored `derived`, such as `paymentStatus`.
    pub column: &'static str,
    pub found: String,
    pub written: String,
}

merge_fields!(ManualEdits {
    refunded,
    cleared,
    flagged,
    recorded,
    found_paid,
    accepted,
    paid_dues,
    conflicts,
    replaced
});

impl ManualEdits {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether somebody says that it was paid outside Stripe.
    pub fn is_paid(&self) -> bool {
        self.paid_at().is_some()
    }

    /// When it was paid outside Stripe, first.
    pub(super) fn paid_at(&self) -> Option<Timestamp> {
        let recorded = self.recorded.values().map(|record| record.0.at);
        recorded.min().or(self.found_paid.first().copied())
    }

    /// When a payment outside Stripe was recorded, first.
    pub(super) fn recorded_at(&self) -> Option<Timestamp> {
        self.recorded.values().map(|record| record.0.at).min()
    }

    /// When it was paid outside Stripe, as somebody said last.
    pub(super) fn last_paid_at(&self) -> Option<Timestamp> {
        let recorded = self.recorded.values().map(|record| record.0.at);
        recorded.max().max(self.found_paid.last().copied())
    }

    /// When somebody said that it was refunded, if nobody said since that it was paid.
    pub(super) fn refunded_at(&self) -> Option<Timestamp> {
        let refunded = self.refunded.last().copied();
        refunded.filter(|_| refunded > self.last_paid_at())
    }

    /// Whether a person still has to say whether the row is the one that the payments are for.
    pub(super) fn is_row_replaced(&self) -> bool {
        let reason = |at: &Timestamp| format!("{ROW_REPLACED}:{at}");
        let mut replaced = self.replaced.iter();
        replaced.any(|at| !self.cleared.contains_key(&reason(at)))
    }

    /// Whether a review about the row itself is open.
    pub fn is_row_doubtful(&self) -> bool {
        let reason = |at: &Timestamp| format!("{ROW_CONFLICT}:{at}");
        let mut conflicts = self.conflicts.keys();
        self.is_row_replaced() || conflicts.any(|at| !self.cleared.contains_key(&reason(at)))
    }

    /// What was said about the row that is there now, and not about one that was there before.
    pub(super) fn of_current_row(&self) -> Self {
        let mut current = self.clone();
        let Some(since) = self.replaced.last() else {
            return current;
        };
        for times in [
            &mut current.refunded,
            &mut current.found_paid,
            &mut current.flagged,
        ] {
            times.retain(|at| at > since);
        }
        current.recorded.retain(|_, record| record.0.at > *since);
        current
            .accepted
            .retain(|_, accepted| accepted.0.at > *since);
        current.paid_dues.retain(|at, _| at > since);
        current.conflicts.retain(|at, _| at > since);
        current
    }
}
