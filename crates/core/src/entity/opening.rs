//! The opening state of an adopted row: what the application's row said when billhook first wrote it, if the application
//! made it before billhook was given the table.
//!
//! The application decided it by what it knew, and nobody can prove it, because the events are gone. So it is believed
//! wherever Stripe and Lob state nothing, raises no review, and has no entry in the timeline. It is stored as a fact with
//! the first write: a later release, or another `AdoptedBefore`, does not change what was believed.
//! `payment::derive` and `statement` say what beats which word.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::entity::mail::facts::MailStage;
use crate::entity::payment::facts::DisputeState;
use crate::entity::payment::status::{OrderStatus, PaymentEvidence, PaymentStatus};
use crate::ids::{PaymentIntentId, PaymentRef};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpeningState {
    /// The parameter `AdoptedBefore` at that time.
    pub adopted_before: Timestamp,
    /// The words as they were, also those that are none of billhook's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount_refunded: Option<i64>,
    /// Empty if the row did not require a review.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub review_reasons: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail_status: Option<String>,
    /// The payment that the row named, which its words are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<PaymentIntentId>,
    /// The piece that `mail_status` was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub piece: Option<String>,
}

impl OpeningState {
    fn order_status(&self) -> Option<OrderStatus> {
        self.status.as_deref().and_then(OrderStatus::parse)
    }

    fn payment(&self) -> Option<PaymentStatus> {
        self.payment_status
            .as_deref()
            .and_then(PaymentStatus::parse)
    }

    /// What the row says about the payment. The stronger of its two words counts: an application may have kept only one
    /// of the columns up to date.
    pub(super) fn payment_evidence(&self) -> PaymentEvidence {
        let of_status = match self.order_status() {
            Some(OrderStatus::Refunded) => PaymentEvidence::RefundedInFull,
            Some(OrderStatus::Completed) => PaymentEvidence::Paid,
            Some(OrderStatus::PaymentFailed) => PaymentEvidence::Failed,
            Some(OrderStatus::Pending | OrderStatus::Cancelled) | None => PaymentEvidence::Nothing,
        };
        let of_payment = match self.payment() {
            Some(PaymentStatus::Refunded) => PaymentEvidence::RefundedInFull,
            // A bank demands only money back that was paid.
            Some(PaymentStatus::Paid | PaymentStatus::Disputed | PaymentStatus::ChargedBack) => {
                PaymentEvidence::Paid
            }
            Some(PaymentStatus::Processing) => PaymentEvidence::Processing,
            Some(PaymentStatus::Authorized) => PaymentEvidence::Authorized,
            Some(PaymentStatus::PartiallyPaid) => PaymentEvidence::PartlyPaid,
            Some(PaymentStatus::Failed) => PaymentEvidence::Failed,
            Some(PaymentStatus::Unpaid) | None => PaymentEvidence::Nothing,
        };
        of_status.max(of_payment)
    }

    /// Whether its words are about this payment, which succeeded at that time: it is the one that the row named; or, if
    /// the row named none, it is older than the adoption.
    pub(super) fn is_about(&self, payment: &PaymentRef, succeeded_at: Timestamp) -> bool {
        match &self.intent {
            Some(named) => payment.intent() == Some(named),
            None => succeeded_at < self.adopted_before,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.order_status() == Some(OrderStatus::Cancelled)
    }

    pub(super) fn dispute(&self) -> Option<DisputeState> {
        match self.payment()? {
            PaymentStatus::Disputed => Some(DisputeState::Open),
            PaymentStatus::ChargedBack => Some(DisputeState::Lost),
            PaymentStatus::Unpaid
            | PaymentStatus::PartiallyPaid
            | PaymentStatus::Processing
            | PaymentStatus::Authorized
            | PaymentStatus::Failed
            | PaymentStatus::Paid
            | PaymentStatus::Refunded => None,
        }
    }

    pub(super) fn mail_stage(&self) -> Option<MailStage> {
        self.mail_status.as_deref().and_then(MailStage::parse)
    }
}
