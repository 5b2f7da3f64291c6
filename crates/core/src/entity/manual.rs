//! What people and the application decided about an order or statement outside of Stripe and Lob, as facts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::entity::merge::{MinRegister, merge_fields};
use crate::time::Timestamp;

/// Manual edits that stand (repairs), with the time at which billhook found them. `entity::kind` says how.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ManualEdits {
    /// A status column was set to `refunded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<MinRegister<Timestamp>>,
    /// Cleared for good, by full reason: clearing `dispute_open:dp_1` does not clear `dispute_open:dp_2`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cleared: BTreeMap<String, MinRegister<Timestamp>>,
    /// A set of times, so that a row which was flagged, cleared and flagged again is flagged.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub flagged: BTreeSet<Timestamp>,
    /// Payments outside Stripe that somebody attests, by the time at which they were recorded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub recorded: BTreeMap<String, MinRegister<PaymentRecord>>,
    /// A status column was set to paid, and nobody said why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_paid: Option<MinRegister<Timestamp>>,
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

/// A column with another value than billhook wrote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FoundEdit {
    /// By the name in the stored `derived`, such as `paymentStatus`.
    pub column: String,
    pub found: String,
    pub written: String,
}

merge_fields!(ManualEdits {
    refunded,
    cleared,
    flagged,
    recorded,
    found_paid,
    conflicts,
    replaced
});

impl ManualEdits {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether somebody says that it was paid outside Stripe.
    pub fn is_paid(&self) -> bool {
        self.found_paid.is_some() || !self.recorded.is_empty()
    }

    /// When it was paid outside Stripe.
    pub(super) fn paid_at(&self) -> Option<Timestamp> {
        let recorded = self.recorded.values().map(|record| record.0.at);
        let found = self.found_paid.as_ref().map(|at| at.0);
        recorded.min().or(found)
    }
}
