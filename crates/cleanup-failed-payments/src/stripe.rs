//! Stripe's API behind the ports of the scheduled tasks: payments and sessions for the cleanup, events for reconcile,
//! at a rate limit that leaves the application its share. `billhook_adapters::stripe` makes the calls, with their
//! retries.

use billhook_adapters::stripe::{CancelResult, StripeClient, StripeError};
use billhook_core::error::error_chain;
use billhook_core::ids::{AccountId, CheckoutSessionId, EventId};
use billhook_core::provider::stripe::types::{IntentStatus, SessionStatus};
use billhook_core::tasks::cleanup::CancellablePayment;
use billhook_core::tasks::ports::{EventsPage, ListEvents, ListEventsError, PaymentsAtStripe};
use billhook_core::tasks::reconcile::ListingSpan;

/// Rate limit: calls started per second. Stripe allows an account 100 per second in live mode and 25 in test mode, and
/// 25 on one endpoint, and the application uses the same allowance. 60 and 20 leave it 40 and 5. Of 60 at most 20 are
/// of one kind, because the cleanup makes three different calls per payment.
pub fn stripe_calls_per_second(live_mode: bool) -> u32 {
    if live_mode { 60 } else { 20 }
}

#[derive(Clone, Debug)]
pub struct StripePayments(pub StripeClient);

fn account_of(payment: &CancellablePayment) -> Option<&str> {
    payment.account.as_ref().map(AccountId::as_str)
}

impl PaymentsAtStripe for StripePayments {
    type Error = StripeError;

    async fn read_payment_status(
        &self,
        payment: &CancellablePayment,
    ) -> Result<IntentStatus, StripeError> {
        let intent = payment.intent.as_str();
        let intent = self
            .0
            .get_payment_intent(intent, account_of(payment))
            .await?;
        Ok(intent.status)
    }

    async fn find_open_session(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<CheckoutSessionId>, StripeError> {
        let intent = payment.intent.as_str();
        let sessions = self
            .0
            .list_checkout_sessions(intent, account_of(payment))
            .await?;
        let open = sessions
            .into_iter()
            .find(|session| session.status == SessionStatus::Open);
        Ok(open.and_then(|session| CheckoutSessionId::parse(&session.id).ok()))
    }

    async fn expire_session(
        &self,
        payment: &CancellablePayment,
        session: &CheckoutSessionId,
        idempotency_key: &str,
    ) -> Result<SessionStatus, StripeError> {
        self.0
            .expire_checkout_session(session.as_str(), account_of(payment), idempotency_key)
            .await
    }

    async fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        idempotency_key: &str,
    ) -> Result<IntentStatus, StripeError> {
        let intent = payment.intent.as_str();
        let cancelled = self
            .0
            .cancel_payment_intent(intent, account_of(payment), idempotency_key)
            .await?;
        Ok(match cancelled {
            CancelResult::Done => IntentStatus::Canceled,
            CancelResult::StateForbids(status) => status,
        })
    }
}

impl ListEvents for StripePayments {
    async fn is_event_of_platform(&self, event: &EventId) -> Result<bool, ListEventsError> {
        let answer = self.0.has_event(event).await;
        answer.map_err(|error| ListEventsError::Failed(error_chain(&error)))
    }

    async fn list_events(
        &self,
        account: Option<&AccountId>,
        types: &[&str],
        span: &ListingSpan,
    ) -> Result<EventsPage, ListEventsError> {
        let after = span.after.as_deref();
        let page = self
            .0
            .list_events(account, types, span.from_s, span.until_s, after)
            .await;
        page.map_err(|error| {
            let text = error_chain(&error);
            match error {
                StripeError::Refused(refusal) => match refusal.status {
                    401 | 403 => ListEventsError::Refused(text),
                    400 | 404 => ListEventsError::UnknownStartingEvent(text),
                    _ => ListEventsError::Failed(text),
                },
                _ => ListEventsError::Failed(text),
            }
        })
    }
}
