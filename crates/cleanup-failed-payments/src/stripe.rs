//! Stripe's API behind the ports of the scheduled tasks: payments and sessions for the cleanup, events for reconcile,
//! at a rate limit that leaves the application its share. `billhook_adapters::stripe` makes the calls, with their
//! retries.

use billhook_adapters::stripe::{CancelResult, StripeClient, StripeError};
use billhook_core::error::error_chain;
use billhook_core::ids::{AccountId, CheckoutSessionId, EventId};
use billhook_core::provider::stripe::types::{IntentSnapshot, IntentStatus, SessionStatus};
use billhook_core::tasks::cleanup::{CancellablePayment, CancellableSession};
use billhook_core::tasks::ports::{
    EventsPage, ListEvents, ListEventsError, PaymentCallError, PaymentsAtStripe,
};
use billhook_core::tasks::reconcile::ListingSpan;

/// Rate limit: calls started per second. Stripe allows an account 100 per second in live mode and 25 in test mode, and
/// 25 on one endpoint, and the application uses the same allowance. 60 and 20 leave it 40 and 5. Of 60 at most 20 are
/// of one kind, because the cleanup makes three different calls per payment.
pub fn stripe_calls_per_second(live_mode: bool) -> u32 {
    if live_mode { 60 } else { 20 }
}

#[derive(Clone, Debug)]
pub struct StripePayments(pub StripeClient);

/// The text, and whether the account refuses our key.
fn call_error(error: &StripeError) -> PaymentCallError {
    let text = error_chain(error);
    match error.is_access_refused() {
        true => PaymentCallError::Refused(text),
        false => PaymentCallError::Failed(text),
    }
}

fn account_name(account: Option<&AccountId>) -> Option<&str> {
    account.map(AccountId::as_str)
}

impl PaymentsAtStripe for StripePayments {
    async fn read_intent(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        let account = account_name(payment.account.as_ref());
        let found = self
            .0
            .get_payment_intent(payment.intent.as_str(), account)
            .await;
        found.map_err(|error| call_error(&error))
    }

    async fn list_sessions(
        &self,
        payment: &CancellablePayment,
    ) -> Result<Vec<(CheckoutSessionId, SessionStatus)>, PaymentCallError> {
        let account = account_name(payment.account.as_ref());
        let listed = self
            .0
            .list_checkout_sessions(payment.intent.as_str(), account)
            .await;
        let listed = listed.map_err(|error| call_error(&error))?.into_iter();
        listed
            .map(|session| {
                let id = CheckoutSessionId::parse(&session.id);
                let id = id.map_err(|error| PaymentCallError::Failed(error_chain(&error)))?;
                Ok((id, session.status))
            })
            .collect()
    }

    async fn read_session(
        &self,
        session: &CancellableSession,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        let account = account_name(session.account.as_ref());
        let found = self
            .0
            .get_checkout_session(session.session.as_str(), account)
            .await;
        found.map_err(|error| call_error(&error))
    }

    async fn expire_session(
        &self,
        session: &CancellableSession,
        idempotency_key: &str,
    ) -> Result<Option<SessionStatus>, PaymentCallError> {
        let account = account_name(session.account.as_ref());
        let expired = self
            .0
            .expire_checkout_session(session.session.as_str(), account, idempotency_key)
            .await;
        expired.map_err(|error| call_error(&error))
    }

    async fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        idempotency_key: &str,
    ) -> Result<Option<IntentSnapshot>, PaymentCallError> {
        let account = account_name(payment.account.as_ref());
        let cancelled = self
            .0
            .cancel_payment_intent(payment.intent.as_str(), account, idempotency_key)
            .await;
        Ok(match cancelled.map_err(|error| call_error(&error))? {
            CancelResult::Done => Some(IntentSnapshot {
                status: IntentStatus::Canceled,
                next_action: None,
                created: None,
            }),
            CancelResult::StateForbids(intent) => Some(intent),
            CancelResult::Missing => None,
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
                _ if error.is_access_refused() => ListEventsError::Refused(text),
                StripeError::Refused(refusal) if matches!(refusal.status, 400 | 404) => {
                    ListEventsError::UnknownStartingEvent(text)
                }
                _ => ListEventsError::Failed(text),
            }
        })
    }
}
