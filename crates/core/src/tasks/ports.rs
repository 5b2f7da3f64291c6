//! The ports of the scheduled tasks: indexes that find work, Stripe's payments and events, and the checkpoints.
//! `adapters::dynamodb` and `cleanup_failed_payments::stripe` implement them, `testkit` has them in memory.

use std::collections::BTreeSet;
use std::future::Future;

use crate::entity::EntityKey;
use crate::entity::key::PaymentKey;
use crate::entity::key::StateKey;
use crate::error::DependencyError;
use crate::ids::{AccountId, CheckoutSessionId, EventId, OrderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::EventOutcome;
use crate::provider::signature::FetchedEvent;
use crate::provider::stripe::types::{IntentSnapshot, SessionStatus};
use crate::tasks::checkpoint::Checkpoint;
use crate::tasks::cleanup::{CancellablePayment, CancellableSession};
use crate::tasks::reconcile::ListingSpan;
use crate::time::Timestamp;

/// A page of orders from an index, which is only a hint.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FailedOrderPage {
    pub orders: Vec<OrderId>,
    /// The key of the last row read, if there may be more. A plain string, because the row may have a key that is no
    /// valid order id (a space, say). When such a row ended the listing, the orders behind it were never reached.
    pub next: Option<String>,
}

/// Cleanup: orders whose `status` column is `payment_failed`.
pub trait FindFailedOrders: Send + Sync {
    /// At most `limit` orders, behind the key `after`.
    fn failed_orders(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<FailedOrderPage, DependencyError>> + Send;
}

/// Why Stripe did not answer about a payment.
#[derive(Debug, thiserror::Error)]
pub enum PaymentCallError {
    /// 401 or 403: our key has no access to the account, for example because it was disconnected. Permanent.
    #[error("stripe refuses the account: {0}")]
    Refused(String),
    /// Anything else: the next run retries. The text names the payment.
    #[error("{0}")]
    Failed(String),
}

/// Cleanup: a payment at Stripe, and the calls that end it. Each call is safe to repeat (idempotent).
pub trait PaymentsAtStripe: Send + Sync {
    /// None if the account has no such PaymentIntent.
    fn read_intent(
        &self,
        payment: &CancellablePayment,
    ) -> impl Future<Output = Result<Option<IntentSnapshot>, PaymentCallError>> + Send;

    /// The Checkout Sessions of this payment, in any state: mostly one, or none if it was made without Checkout.
    fn list_sessions(
        &self,
        payment: &CancellablePayment,
    ) -> impl Future<Output = Result<Vec<(CheckoutSessionId, SessionStatus)>, PaymentCallError>> + Send;

    /// None if the account has no such session.
    fn read_session(
        &self,
        session: &CancellableSession,
    ) -> impl Future<Output = Result<Option<SessionStatus>, PaymentCallError>> + Send;

    /// Expires a session and returns its status afterwards: `complete` if the customer was faster, none if the account
    /// has no such session.
    fn expire_session(
        &self,
        session: &CancellableSession,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<Option<SessionStatus>, PaymentCallError>> + Send;

    /// Cancels a payment and returns its status afterwards: `succeeded` if the customer was faster. None if the account
    /// has no such PaymentIntent.
    fn cancel_payment(
        &self,
        payment: &CancellablePayment,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<Option<IntentSnapshot>, PaymentCallError>> + Send;
}

/// Whether a checkpoint was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointSaveResult {
    Saved,
    /// Another run completed a pass meanwhile, or the cursor was set back: this run's result must not overwrite it.
    Superseded,
}

/// Scheduled tasks: their checkpoints.
pub trait CheckpointStore: Send + Sync {
    /// The default for a job that never ran.
    fn load_checkpoint(
        &self,
        job: &str,
    ) -> impl Future<Output = Result<Checkpoint, DependencyError>> + Send;

    /// Saves `next` on condition that `done_through_s` is still as in `read` (optimistic lock).
    fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> impl Future<Output = Result<CheckpointSaveResult, DependencyError>> + Send;
}

/// An unfinished event, as the index has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedEvent {
    pub id: EventId,
    pub received_at: Timestamp,
}

/// A page of unfinished events, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct UnfinishedPage {
    pub events: Vec<UnfinishedEvent>,
    /// The last event read, if there may be more.
    pub next: Option<UnfinishedEvent>,
}

/// An event as `SlotIndex` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivedEvent {
    pub id: EventId,
    pub outcome: EventOutcome,
    /// What took its facts.
    pub entities: BTreeSet<StateKey>,
    /// When it arrived; none for a test event of `billhook doctor`, which is no delivery of the provider.
    pub delivered_at: Option<Timestamp>,
}

/// When events arrived: after the one time, and at or before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrivalSpan {
    pub after: Timestamp,
    pub until: Timestamp,
}

/// Sweep: one provider's unfinished events.
pub trait FindUnfinishedEvents: Send + Sync {
    /// All events that arrived on this day within the span, by `SlotIndex`. Only a hint: the index lags.
    fn arrived_events(
        &self,
        day: &str,
        span: ArrivalSpan,
    ) -> impl Future<Output = Result<Vec<ArrivedEvent>, DependencyError>> + Send;

    /// Puts an event that is still pending into `OpenIndex`, and returns whether it was not there. One that is done stays
    /// as it is.
    fn mark_open(&self, id: &EventId)
    -> impl Future<Output = Result<bool, DependencyError>> + Send;

    /// At most `limit` events that are in `OpenIndex` with this outcome, received at or before `until`, behind `after`.
    /// Only a hint: the index lags.
    fn unfinished_events(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> impl Future<Output = Result<UnfinishedPage, DependencyError>> + Send;

    /// How many events that are in `OpenIndex` with this outcome were received at or before `until`.
    fn count_unfinished(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> impl Future<Output = Result<usize, DependencyError>> + Send;

    /// The events' rows without payload, read consistently, each with its `processing_error`.
    fn load_with_reasons(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<Vec<(EventRecord, Option<String>)>, DependencyError>> + Send;
}

/// Sweep: the states in `OpenIndex`.
pub trait FindOpenStates: Send + Sync {
    /// At most `limit` payments of one of [`open_index_keys`](crate::entity::payment::state::open_index_keys) that are due
    /// at `until`. Only a hint: the index lags.
    fn open_payments(
        &self,
        index_key: &str,
        until: Timestamp,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<PaymentKey>, DependencyError>> + Send;

    /// The orders, statements and tenants whose row is missing or has a foreign column, and since when. Only a hint.
    fn troubled_entities(
        &self,
    ) -> impl Future<Output = Result<Vec<(EntityKey, Timestamp)>, DependencyError>> + Send;

    /// The orders, statements and tenants that were written within the span without an event that leads to them. Only a
    /// hint: the index lags.
    fn recent_entities(
        &self,
        span: ArrivalSpan,
    ) -> impl Future<Output = Result<BTreeSet<EntityKey>, DependencyError>> + Send;
}

/// Reconcile: which of Stripe's events are stored.
pub trait FindKnownEvents: Send + Sync {
    /// The subset of `ids` that is stored, read consistently.
    fn known_events(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<BTreeSet<EventId>, DependencyError>> + Send;
}

/// A page of connected accounts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccountsPage {
    pub accounts: BTreeSet<AccountId>,
    /// The accounts that a tenant had before, each with the tenant.
    pub previous: BTreeSet<(AccountId, TenantId)>,
    /// The key of the last tenant read, if there may be more.
    pub next: Option<String>,
}

/// Reconcile: the connected accounts of the tenants.
pub trait ListAccounts: Send + Sync {
    /// The accounts of at most `limit` tenants, behind the key `after`.
    fn accounts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<AccountsPage, DependencyError>> + Send;

    /// Keeps a note of each account that a tenant had before, because no index has them: the worker finds the tenant of a
    /// late event by it. What is noted already costs a read and no write.
    fn note_previous_accounts(
        &self,
        previous: &BTreeSet<(AccountId, TenantId)>,
    ) -> impl Future<Output = Result<(), DependencyError>> + Send;
}

/// A page of Stripe's events, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EventsPage {
    pub events: Vec<FetchedEvent>,
    /// Whether older ones follow.
    pub has_more: bool,
}

/// Why Stripe did not list its events.
#[derive(Debug, thiserror::Error)]
pub enum ListEventsError {
    /// 401 or 403: our key has no access to the account, for example because it was disconnected. Permanent.
    #[error("stripe refuses the account: {0}")]
    Refused(String),
    /// 400 or 404: Stripe no longer lists the event to resume after. The pass can start again without it.
    #[error("stripe does not know the event to go on after: {0}")]
    UnknownStartingEvent(String),
    /// Anything else: the next run retries.
    #[error("{0}")]
    Failed(String),
}

/// Reconcile: lists Stripe's events.
pub trait ListEvents: Send + Sync {
    /// One page of an account's events; no account is the platform.
    fn list_events(
        &self,
        account: Option<&AccountId>,
        types: &[&str],
        span: &ListingSpan,
    ) -> impl Future<Output = Result<EventsPage, ListEventsError>> + Send;

    /// Whether an event is the platform's own.
    fn is_event_of_platform(
        &self,
        event: &EventId,
    ) -> impl Future<Output = Result<bool, ListEventsError>> + Send;
}
