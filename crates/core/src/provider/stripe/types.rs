//! The words of Stripe's API that billhook relies on: the API version and statuses; `event_types` has the event types. A
//! word that is not here is valid: Stripe adds words over time, so an unknown one is kept and is never an error.
//!
//! Source: Stripe API reference 2026-10-28.endive, read 2026-11.

use crate::time::Timestamp;

/// For billhook's calls and its endpoints. An endpoint that somebody else created may send another version.
pub const API_VERSION: &str = "2026-10-28.endive";

/// What Stripe says about a PaymentIntent when it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentSnapshot {
    pub status: IntentStatus,
    /// Only of one in `requires_action`.
    pub next_action: Option<NextActionType>,
    pub created: Option<Timestamp>,
}

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
    /// The `next_action.type` of a PaymentIntent: here only those that put the customer before a page (a redirect, or 3-D
    /// Secure), which is left or done within minutes. All others, such as `oxxo_display_details`,
    /// `display_bank_transfer_instructions` or a QR code, give the customer something to pay with later.
    NextActionType {
        RedirectToUrl = "redirect_to_url",
        /// Mostly 3-D Secure in the application's own page.
        UseStripeSdk = "use_stripe_sdk",
        AlipayHandleRedirect = "alipay_handle_redirect",
        WechatPayRedirectToAndroidApp = "wechat_pay_redirect_to_android_app",
        WechatPayRedirectToIosApp = "wechat_pay_redirect_to_ios_app",
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
}
