//! The stored form of an entity state: the columns under the optimistic lock, and what billhook derived last.
//!
//! The difference between the two is how `entity::kind` finds manual edits. The layout of the rows is in
//! `docs/data-model.md`; each kind (`entity::order` …) reads and writes its own columns.

use serde::{Deserialize, Serialize};

use crate::entity::payment::derive::DerivedPayment;
use crate::ids::{CheckoutSessionId, PaymentIntentId, UserId};

/// The version of the stored facts. Add one whenever their form changes; `tests/forms.rs` has the form of each number.
///
/// Reason: during a deployment old and new functions write the same rows. An old function would read the row, not know
/// the new fact and drop it when it writes the row back. With a greater number in the row it parks the event as
/// `entity_unreadable` instead.
pub const FACTS_SCHEMA: i64 = 2;

/// The columns that billhook owns and a person may edit. They are part of the write's condition (optimistic lock), and
/// the row also has them as billhook last derived them: a difference between the two is a manual edit.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GuardedColumns {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requires_review: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mail_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_attention: Option<bool>,
}

impl GuardedColumns {
    pub(super) fn of_payment(payment: &DerivedPayment) -> Self {
        Self {
            payment_status: Some(payment.payment_status.as_str().to_owned()),
            requires_review: Some(!payment.review_reasons.is_empty()),
            ..Self::default()
        }
    }

    /// The columns in which an edit can be overwritten; an edit of `requiresReview` always stands.
    pub(super) fn by_name(&self) -> [(&'static str, Option<String>); 4] {
        let truth = |truth: Option<bool>| truth.map(|truth| truth.to_string());
        [
            ("status", self.status.clone()),
            ("paymentStatus", self.payment_status.clone()),
            ("mailStatus", self.mail_status.clone()),
            ("needsAttention", truth(self.needs_attention)),
        ]
    }
}

/// What billhook derived at its last write, stored in the row beside the facts.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LastDerived {
    #[serde(flatten)]
    pub columns: GuardedColumns,
    /// The review reasons at that time: the ones that a person who clears the flag has seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub review_reasons: Vec<String>,
    /// The PaymentIntent that billhook wrote into the column. Another value there is the application's and stays; the
    /// same goes for `session` and `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<PaymentIntentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<CheckoutSessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
}
