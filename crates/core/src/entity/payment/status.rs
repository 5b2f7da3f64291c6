//! The status of a payment: a function of the strongest evidence and of its disputes.

use crate::entity::payment::facts::DisputeState;

/// An order's `paymentStatus`, a statement's `derive_payment_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// Nothing was paid yet.
    Unpaid,
    /// Money is on its way.
    Processing,
    /// An attempt failed, none succeeded.
    Failed,
    /// Paid in full.
    Paid,
    /// Given back in full.
    Refunded,
    /// The customer's bank asks for it back.
    Disputed,
    /// The customer's bank took it back.
    ChargedBack,
}

impl PaymentStatus {
    /// The word in the row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unpaid => "unpaid",
            Self::Processing => "processing",
            Self::Failed => "failed",
            Self::Paid => "paid",
            Self::Refunded => "refunded",
            Self::Disputed => "disputed",
            Self::ChargedBack => "charged_back",
        }
    }
}

/// The strongest thing that the facts show, weakest first: a stronger one is never undone by a weaker one that comes
/// late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PaymentEvidence {
    /// No payment, or money that does not fit what was due.
    Nothing,
    /// A failed attempt, and no money.
    Failed,
    /// Money on its way.
    Processing,
    /// Given up by the cleanup.
    Cancelled,
    /// The amount that was due.
    Paid,
    /// All that was captured went back.
    RefundedInFull,
}

/// The same for payments. A dispute says who holds the money; once all of it went back there is nothing to hold.
pub(super) fn derive_payment_status(
    payment_evidence: PaymentEvidence,
    dispute: Option<DisputeState>,
) -> PaymentStatus {
    match (payment_evidence, dispute) {
        (PaymentEvidence::RefundedInFull, _) => PaymentStatus::Refunded,
        (_, Some(DisputeState::Lost)) => PaymentStatus::ChargedBack,
        (_, Some(DisputeState::Open)) => PaymentStatus::Disputed,
        (PaymentEvidence::Nothing | PaymentEvidence::Cancelled, _) => PaymentStatus::Unpaid,
        (PaymentEvidence::Failed, _) => PaymentStatus::Failed,
        (PaymentEvidence::Processing, _) => PaymentStatus::Processing,
        (PaymentEvidence::Paid, _) => PaymentStatus::Paid,
    }
}
