//! The order's state machine: its status is a function of the evidence, never of the order of arrival.

use crate::entity::payment::status::PaymentEvidence;

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

/// The transition table, mirrored in `docs/SEMANTICS.md`. A cancel says nothing of payments, so there the payment's
/// own evidence counts.
pub fn derive_order_status(evidence: PaymentEvidence) -> OrderStatus {
    match evidence {
        PaymentEvidence::Nothing | PaymentEvidence::Processing => OrderStatus::Pending,
        PaymentEvidence::Failed => OrderStatus::PaymentFailed,
        PaymentEvidence::Cancelled => OrderStatus::Cancelled,
        PaymentEvidence::Paid => OrderStatus::Completed,
        PaymentEvidence::RefundedInFull => OrderStatus::Refunded,
    }
}
