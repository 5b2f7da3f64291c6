//! Ending a payment at Stripe: asked first, by its Checkout Session where it has one.

use billhook_adapters::stripe::{Canceled, Stripe, StripeError};
use billhook_core::cleanup::OpenPayment;
use billhook_core::event::stripe_types::{IntentStatus, SessionStatus};
use billhook_core::ids::AccountId;
use billhook_core::ports::{EndPayment, Ended};

/// Stripe, or nothing while its key is not set: then no payment can be ended, and no order given up.
#[derive(Debug)]
pub struct Payments(pub Option<Stripe>);

impl EndPayment for Payments {
    type Error = StripeError;

    async fn end(
        &self,
        payment: &OpenPayment,
        idempotency_key: &str,
    ) -> Result<Ended, StripeError> {
        let stripe = self.0.as_ref().ok_or(StripeError::NoKey)?;
        let account = payment.account.as_ref().map(AccountId::as_str);
        let intent = payment.intent.as_str();
        if let Some(ended) = ended(stripe.payment_intent(intent, account).await?.status) {
            return Ok(ended);
        }
        // Stripe refuses to cancel the intent of an open session; the session's end is the intent's.
        for session in stripe.checkout_sessions_of(intent, account).await? {
            if session.status == SessionStatus::Open {
                let key = format!("{idempotency_key}-{}", session.id);
                return Ok(
                    match stripe
                        .expire_checkout_session(&session.id, account, &key)
                        .await?
                    {
                        SessionStatus::Expired => Ended::ForGood,
                        SessionStatus::Open | SessionStatus::Complete | SessionStatus::Other(_) => {
                            Ended::PaidOrProcessing
                        }
                    },
                );
            }
        }
        Ok(
            match stripe
                .cancel_payment_intent(intent, account, idempotency_key)
                .await?
            {
                Canceled::Done => Ended::ForGood,
                // Faster than we: whatever is not cancelled may bring money.
                Canceled::StateForbids(status) => ended(status).unwrap_or(Ended::PaidOrProcessing),
            },
        )
    }
}

/// `None` while it can still be paid.
fn ended(status: IntentStatus) -> Option<Ended> {
    match status {
        IntentStatus::Canceled => Some(Ended::ForGood),
        // Money that is authorised waits for the merchant to capture it.
        IntentStatus::Succeeded | IntentStatus::Processing | IntentStatus::RequiresCapture => {
            Some(Ended::PaidOrProcessing)
        }
        IntentStatus::RequiresPaymentMethod
        | IntentStatus::RequiresConfirmation
        | IntentStatus::RequiresAction => None,
        // A state made after this was written: not ours to end.
        IntentStatus::Other(_) => Some(Ended::PaidOrProcessing),
    }
}
