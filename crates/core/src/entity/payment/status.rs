//! The state machines of a payment and of its order: `paymentStatus` and an order's `status` as functions of the
//! strongest evidence, never of the order of arrival.
//!
//! [`PaymentEvidence`] is an order of strength, not of time: stronger evidence is never undone by weaker evidence that
//! arrives late. No code moves an order from one status to another: the same evidence gives the same status, whatever
//! the status was before. A dispute never changes an order's `status`; `paymentStatus` shows it. `derive` finds the
//! evidence; the full table of events and states is in `docs/SEMANTICS.md`.

use crate::entity::payment::facts::DisputeState;

/// An order's `paymentStatus`, a statement's `payment_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// No payment, or one that does not match the amount due.
    Unpaid,
    /// What was received is less than the amount due.
    PartiallyPaid,
    Processing,
    /// The amount is blocked at the customer's bank, and not ours until it is captured.
    Authorized,
    /// An attempt failed, none succeeded.
    Failed,
    /// The payments that succeeded reach the amount due.
    Paid,
    /// Everything captured was refunded; a partial refund does not change the status.
    Refunded,
    /// The customer's bank demands the money back.
    Disputed,
    /// The customer's bank took the money back.
    ChargedBack,
}

impl PaymentStatus {
    pub const ALL: [Self; 9] = [
        Self::Unpaid,
        Self::PartiallyPaid,
        Self::Processing,
        Self::Authorized,
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
            Self::PartiallyPaid => "partially_paid",
            Self::Processing => "processing",
            Self::Authorized => "authorized",
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
    /// An amount is authorised, and has not ended uncaptured.
    Authorized,
    /// Payments succeeded that are less than the amount due. Above `Failed` and the others, because we hold money.
    PartlyPaid,
    /// The cleanup or a person cancelled the order. Only payments of the amount due or a full refund beat it.
    Cancelled,
    /// The payments that succeeded reach the amount due.
    Paid,
    /// Everything captured was refunded, or a person set the row to `refunded`.
    RefundedInFull,
}

/// Maps evidence to the status, with the worst dispute about money without which the amount due is not covered. A dispute
/// says who holds the money; once everything was refunded there is no money left to dispute, so `Refunded` comes first. A
/// dispute shows even before the payment's own success arrived, because a bank only disputes money that was paid.
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
        (PaymentEvidence::Authorized, _) => PaymentStatus::Authorized,
        (PaymentEvidence::PartlyPaid, _) => PaymentStatus::PartiallyPaid,
        (PaymentEvidence::Paid, _) => PaymentStatus::Paid,
    }
}

/// An order's `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    /// No payment yet, a payment in progress, or payments that do not reach the amount due.
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
        PaymentEvidence::Nothing
        | PaymentEvidence::Processing
        | PaymentEvidence::Authorized
        | PaymentEvidence::PartlyPaid => OrderStatus::Pending,
        PaymentEvidence::Failed => OrderStatus::PaymentFailed,
        PaymentEvidence::Cancelled => OrderStatus::Cancelled,
        PaymentEvidence::Paid => OrderStatus::Completed,
        PaymentEvidence::RefundedInFull => OrderStatus::Refunded,
    }
}
