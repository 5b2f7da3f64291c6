//! The payment's state machine: `paymentStatus` as a function of the strongest evidence and of the disputes.
//!
//! [`PaymentEvidence`] is an order of strength, not of time: stronger evidence is never undone by weaker evidence that
//! arrives late. `derive` finds the evidence; `entity::order` maps it to an order's `status`.

use crate::entity::payment::facts::DisputeState;

/// An order's `paymentStatus`, a statement's `payment_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// No payment, or one that does not match the amount due.
    Unpaid,
    Processing,
    /// An attempt failed, none succeeded.
    Failed,
    /// A payment of exactly the amount due succeeded.
    Paid,
    /// Everything captured was refunded; a partial refund does not change the status.
    Refunded,
    /// The customer's bank demands the money back.
    Disputed,
    /// The customer's bank took the money back.
    ChargedBack,
}

impl PaymentStatus {
    pub const ALL: [Self; 7] = [
        Self::Unpaid,
        Self::Processing,
        Self::Failed,
        Self::Paid,
        Self::Refunded,
        Self::Disputed,
        Self::ChargedBack,
    ];

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

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

/// The strongest evidence in the facts, weakest first; the declared order decides, through `Ord`.
///
/// Why strength and not "the last event wins": Stripe delivers out of order and for days. A card is declined at 10:00,
/// a second attempt succeeds at 10:05, and the event of the decline is delivered at 10:20. If the last event won, the
/// paid order would become `payment_failed`, and the cleanup would try to cancel it an hour later. Here the decline is
/// one more timeline entry.
///
/// Only facts about the same money take evidence away: a refund that fails removes its own amount, and a payment that
/// reports a second, different amount no longer matches. That is not weaker evidence but a changed fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PaymentEvidence {
    /// No payment, or a payment that does not match the amount due.
    Nothing,
    /// A failed attempt, and no successful payment.
    Failed,
    /// Above `Failed`: if one attempt failed and another one is in progress, the order may still be paid.
    Processing,
    /// The cleanup or a person cancelled the order. Only a payment of the amount due or a full refund beats it.
    Cancelled,
    /// A payment of the amount due succeeded.
    Paid,
    /// Everything captured was refunded, or a person set the row to `refunded`.
    RefundedInFull,
}

/// Maps evidence and the worst dispute to the status. A dispute says who holds the money; once everything was refunded
/// there is no money left to dispute, so `Refunded` comes first. A dispute shows even before the payment's own success
/// arrived, because a bank only disputes money that was paid.
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
