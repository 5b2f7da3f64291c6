//! What the scheduled tasks need from the world: indexes to find work by, Stripe, and their checkpoints.

use std::collections::BTreeSet;
use std::future::Future;

use crate::error::DependencyError;
use crate::ids::{AccountId, CheckoutSessionId, EventId, OrderId};
use crate::intake::inbox::EventRecord;
use crate::outcome::EventOutcome;
use crate::provider::stripe::types::{IntentStatus, SessionStatus};
use crate::tasks::checkpoint::Checkpoint;
use crate::tasks::cleanup::CancellablePayment;
use crate::tasks::reconcile::ListingSpan;
use crate::time::Timestamp;

/// A page of orders that an index nominates, and where the next one begins.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FailedOrderPage {
    /// The orders.
    pub orders: Vec<OrderId>,
    /// The key of the last row read, if there may be more; it need not be an order's id as we take them.
    pub next: Option<String>,
}

/// Cleanup: the orders whose status column says that a payment failed.
pub trait FindFailedOrders: Send + Sync {
    /// At most `limit` of them, after `after`.
    fn failed_orders(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<FailedOrderPage, DependencyError>> + Send;
}

/// Cleanup: what Stripe knows of a payment, and how it is ended there. Each call is harmless to repeat.
pub trait PaymentsAtStripe: Send + Sync {
    /// What went wrong; its text names the payment.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Where the payment stands.
    fn status(
        &self,
        payment: &CancellablePayment,
    ) -> impl Future<Output = Result<IntentStatus, Self::Error>> + Send;

    /// The session it can be made in, if it belongs to one that is open.
    fn open_session(
        &self,
        payment: &CancellablePayment,
    ) -> impl Future<Output = Result<Option<CheckoutSessionId>, Self::Error>> + Send;

    /// Ends a session, and answers where it stands then.
    fn expire(
        &self,
        payment: &CancellablePayment,
        session: &CheckoutSessionId,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<SessionStatus, Self::Error>> + Send;

    /// Ends a payment, and answers where it stands then.
    fn cancel(
        &self,
        payment: &CancellablePayment,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<IntentStatus, Self::Error>> + Send;
}

/// Scheduled tasks: how far they came.
pub trait CheckpointStore: Send + Sync {
    /// As it was kept last; nothing for a job that never ran.
    fn load_checkpoint(
        &self,
        job: &str,
    ) -> impl Future<Output = Result<Checkpoint, DependencyError>> + Send;

    /// Keeps it if `created_s` stands as it was read, and answers whether it did: else another run came to its end, or
    /// somebody set it back, and what this run came to means nothing.
    fn save_checkpoint(
        &self,
        job: &str,
        read: &Checkpoint,
        next: &Checkpoint,
    ) -> impl Future<Output = Result<bool, DependencyError>> + Send;
}

/// An event that is not done, as the index has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedEvent {
    /// Which.
    pub id: EventId,
    /// When it came.
    pub received_at: Timestamp,
}

/// A page of open events, the oldest first, and where the next one begins.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct UnfinishedPage {
    /// The events.
    pub events: Vec<UnfinishedEvent>,
    /// The last one read, if there may be more.
    pub next: Option<UnfinishedEvent>,
}

/// Sweep: one provider's events that are not done.
pub trait FindUnfinishedEvents: Send + Sync {
    /// At most `limit` of those with this outcome that came until then, after `after`.
    fn unfinished_events(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> impl Future<Output = Result<UnfinishedPage, DependencyError>> + Send;

    /// How many of this outcome came until then.
    fn count_unfinished(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> impl Future<Output = Result<usize, DependencyError>> + Send;

    /// Those that are there, consistently read without their payload, with their `processing_error`.
    fn load_with_reasons(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<Vec<(EventRecord, Option<String>)>, DependencyError>> + Send;
}

/// Reconcile: which of Stripe's events are there.
pub trait FindKnownEvents: Send + Sync {
    /// Those of these that are there, consistently read.
    fn known_events(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<BTreeSet<EventId>, DependencyError>> + Send;
}

/// A page of connected accounts, and where the next one begins.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccountsPage {
    /// Each once.
    pub accounts: BTreeSet<AccountId>,
    /// The key of the last tenant read, if there may be more.
    pub next: Option<String>,
}

/// Reconcile: the accounts of the tenants.
pub trait ListAccounts: Send + Sync {
    /// Those of at most `limit` tenants, after `after`.
    fn accounts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<AccountsPage, DependencyError>> + Send;
}

/// A page of Stripe's events, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EventsPage {
    /// Each event's JSON as Stripe wrote it.
    pub bodies: Vec<String>,
    /// Whether older ones follow.
    pub has_more: bool,
}

/// Why Stripe did not list its events.
#[derive(Debug, thiserror::Error)]
pub enum ListEventsError {
    /// 401 or 403: the key is not, or no longer, the account's.
    #[error("stripe refuses the account: {0}")]
    Refused(String),
    /// The event that the question began after is not listed any more.
    #[error("stripe does not know the event to go on after: {0}")]
    Unplaced(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Reconcile: asks Stripe for its events.
pub trait ListEvents: Send + Sync {
    /// One page of an account's; none is the platform.
    fn list_events(
        &self,
        account: Option<&AccountId>,
        types: &[&str],
        span: &ListingSpan,
    ) -> impl Future<Output = Result<EventsPage, ListEventsError>> + Send;
}
