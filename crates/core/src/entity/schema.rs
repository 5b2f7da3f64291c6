//! The stored form of an entity: the columns that billhook guards, and what it remembers of the last write.

use serde::{Deserialize, Serialize};

use crate::entity::order::OrderStatus;
use crate::entity::payment::derive::DerivedPayment;
use crate::entity::payment::status::PaymentStatus;
use crate::ids::{CheckoutSessionId, PaymentIntentId, UserId};

/// The number of the stored form of facts: one more whenever a kind of fact is added, so that a function that is not
/// updated yet parks the event instead of dropping what it does not know.
pub const FACTS_SCHEMA: i64 = 2;

/// The columns that billhook owns and a person may edit. They are part of the write's condition, and of the row's
/// memory of what was last derived: a difference between the two is a person's repair.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GuardedColumns {
    /// Orders only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_status: Option<String>,
    /// Both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requires_review: Option<bool>,
    /// Statements only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mail_status: Option<String>,
    /// Statements only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_attention: Option<bool>,
}

impl GuardedColumns {
    /// The columns that payments decide, the same for orders and statements.
    pub(super) fn of_payment(payment: &DerivedPayment) -> Self {
        Self {
            payment_status: Some(payment.payment_status.as_str().to_owned()),
            requires_review: Some(!payment.review_reasons.is_empty()),
            ..Self::default()
        }
    }

    /// What a column that was never written counts as.
    pub(super) fn initial(column: &str) -> Option<String> {
        let word = match column {
            "status" => OrderStatus::Pending.as_str(),
            "paymentStatus" => PaymentStatus::Unpaid.as_str(),
            "needsAttention" => "false",
            _ => return None,
        };
        Some(word.to_owned())
    }

    /// Those of which an edit may be overruled: one of the review always stands.
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

/// What was last derived, as the row remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LastDerived {
    /// The columns as written.
    #[serde(flatten)]
    pub columns: GuardedColumns,
    /// The reasons that then stood.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub review_reasons: Vec<String>,
    /// The payment that was written into the entity's column, so that one put there by the application is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<PaymentIntentId>,
    /// The same for the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<CheckoutSessionId>,
    /// The same for an order's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
}
