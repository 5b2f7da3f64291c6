//! The order's state machine: `status` as a function of the strongest evidence, never of the order of arrival.
//!
//! No code moves an order from one status to another: the same evidence gives the same status, whatever the status was
//! before. A dispute never changes an order's `status`; `paymentStatus` shows it. The full table of events and states
//! is in `docs/SEMANTICS.md`; `entity::payment::status` says why stronger evidence wins.

use crate::entity::payment::status::PaymentEvidence;

/// An order's `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    /// No payment yet, a payment in progress, or a payment that does not match the amount due.
    Pending,
    /// An attempt failed, no payment succeeded or is in progress. The cleanup cancels these.
    PaymentFailed,
    /// A payment of the amount due succeeded.
    Completed,
    /// Everything captured was refunded.
    Refunded,
    /// Cancelled by the cleanup, or by a person who set the column.
    Cancelled,
}

impl OrderStatus {
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::PaymentFailed,
        Self::Completed,
        Self::Refunded,
        Self::Cancelled,
    ];

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

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

/// Maps evidence to the status; mirrored in `docs/SEMANTICS.md`, Payment.
///
/// Only the status of an order sees a cancellation: `paymentStatus` is derived from the payment's own evidence, so that
/// a cancelled order still shows `failed`, and a late payment makes it `completed` and `paid`.
pub fn derive_order_status(evidence: PaymentEvidence) -> OrderStatus {
    match evidence {
        PaymentEvidence::Nothing | PaymentEvidence::Processing => OrderStatus::Pending,
        PaymentEvidence::Failed => OrderStatus::PaymentFailed,
        PaymentEvidence::Cancelled => OrderStatus::Cancelled,
        PaymentEvidence::Paid => OrderStatus::Completed,
        PaymentEvidence::RefundedInFull => OrderStatus::Refunded,
    }
}
