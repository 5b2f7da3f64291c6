//! Stripe's words that billhook relies on. Each is spelt once, here; a word that is not here is legal and ignored.
//!
//! Source: Stripe API reference 2026-10-28.endive and the event types of the official Python library 16.1.0.

/// The API version that billhook's calls and its endpoints ask for.
pub const API_VERSION: &str = "2026-10-28.endive";

/// The event types that change anything; endpoints subscribe to these unless told otherwise. All others are ignored.
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
            /// A word that Stripe added since.
            Other(String),
        }

        impl $name {
            /// Reads Stripe's word; one that is not known is kept.
            pub fn parse(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }

            /// Stripe's word.
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
    /// Where a `PaymentIntent` stands.
    IntentStatus {
        /// Not paid; another method may be tried.
        RequiresPaymentMethod = "requires_payment_method",
        /// Has a method and waits to be confirmed.
        RequiresConfirmation = "requires_confirmation",
        /// Waits for the customer.
        RequiresAction = "requires_action",
        /// Money is on its way.
        Processing = "processing",
        /// Authorised, not captured.
        RequiresCapture = "requires_capture",
        /// Ended without payment.
        Canceled = "canceled",
        /// Paid.
        Succeeded = "succeeded",
    }
    /// Where a Checkout Session stands.
    SessionStatus {
        /// The customer may still pay.
        Open = "open",
        /// Gone through; the payment itself may still be processing.
        Complete = "complete",
        /// Nobody can pay with it any more.
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
