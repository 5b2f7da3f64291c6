//! The words of Stripe's API that billhook relies on: the API version, the handled event types, and statuses. A word
//! that is not here is valid: Stripe adds words over time, so an unknown one is kept and is never an error.
//!
//! Source: Stripe API reference 2026-10-28.endive and the event types of the official Python library 16.1.0.

/// For billhook's calls and its endpoints. An endpoint that somebody else created may send another version.
pub const API_VERSION: &str = "2026-10-28.endive";

/// The event types that change a row; endpoints subscribe to these by default. All others are ignored as
/// `unhandled_type`.
pub const HANDLED_TYPES: &[&str] = &[
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "payment_intent.processing",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "charge.refunded",
    "charge.refund.updated",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "radar.early_fraud_warning.created",
    "review.opened",
    "review.closed",
    "account.updated",
    "account.application.authorized",
    "account.application.deauthorized",
];

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A word that Stripe added later.
            Other(String),
        }

        impl $name {
            pub fn parse(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }

            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }
    )*};
}

words! {
    /// The `status` of a PaymentIntent. The cleanup reads it before it cancels.
    IntentStatus {
        /// Not paid; the customer may try another method. Also after a failed attempt.
        RequiresPaymentMethod = "requires_payment_method",
        RequiresConfirmation = "requires_confirmation",
        /// The customer has to act, for example confirm with 3-D Secure.
        RequiresAction = "requires_action",
        Processing = "processing",
        /// Authorised, not captured: the customer's money is blocked but not ours.
        RequiresCapture = "requires_capture",
        Canceled = "canceled",
        Succeeded = "succeeded",
    }
    /// The `status` of a Checkout Session.
    SessionStatus {
        /// The customer may still pay.
        Open = "open",
        /// The customer finished; the payment itself may still be processing.
        Complete = "complete",
        Expired = "expired",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_written_and_new_ones_are_kept() {
        for word in [
            "requires_payment_method",
            "requires_confirmation",
            "requires_action",
            "processing",
            "requires_capture",
            "canceled",
            "succeeded",
            "invented_tomorrow",
        ] {
            assert_eq!(IntentStatus::parse(word).as_str(), word);
        }
        assert_eq!(IntentStatus::parse("canceled"), IntentStatus::Canceled);
        assert_eq!(
            SessionStatus::parse("paused"),
            SessionStatus::Other("paused".to_owned())
        );
    }

    #[test]
    fn an_endpoint_can_subscribe_to_every_handled_type_once() {
        let mut sorted = HANDLED_TYPES.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), HANDLED_TYPES.len());
    }
}
