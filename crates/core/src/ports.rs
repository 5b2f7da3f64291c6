//! What the pure half needs from the world, named for the need. `adapters` implements these on AWS, `testkit` in
//! memory.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use uuid::Uuid;

use crate::cleanup::CancellablePayment;
use crate::entity::{Entity, EntityKey, EntityUpdate};
use crate::event::stripe_types::{IntentStatus, SessionStatus};
use crate::ids::{
    AccountId, CheckoutSessionId, EventId, OrderId, PaymentIntentId, PieceId, ProviderId, TenantId,
};
use crate::inbox::{EventOutcome, EventRecord, EventVerdict, NewEvent, RecordResult};
use crate::jobs::Checkpoint;
use crate::reconcile::ListingSpan;
use crate::retry::Disposition;
use crate::signature::SigningKeys;
use crate::time::Timestamp;

/// The two things a pure function cannot make: the moment, and an identifier nobody else has.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// A `UUIDv7` of this moment.
    fn new_id(&self) -> Uuid;
}

/// Waiting, apart from the clock, because few need it.
pub trait Pause: Send + Sync {
    /// Returns after `span`.
    fn pause(&self, span: Duration) -> impl Future<Output = ()> + Send;
}

/// The signing secrets of one provider, read through a cache.
pub trait ReadSigningKeys: Send + Sync {
    /// What is known now; fetched where nothing fresh enough is held. Never fails: what could not be read, and why, is
    /// part of the answer, because the keys that could be read may still prove a delivery.
    fn signing_keys(&self) -> impl Future<Output = SigningKeys> + Send;
    /// After a mismatch: the current values again, unless they were fetched less than 10 s ago (then `None`).
    fn refresh_after_mismatch(&self) -> impl Future<Output = Option<SigningKeys>> + Send;
    /// What was read last, without asking anybody.
    fn cached_keys(&self) -> impl Future<Output = SigningKeys> + Send;
}

/// A call to a store or queue that failed: what was being done to what, and what is left to do.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct DependencyError {
    /// Such as `put evt_1 into billhook-dev-stripe-events`.
    pub doing: String,
    /// Whether a repeat may help.
    pub disposition: Disposition,
    /// The cause, printed once at the edge.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// Ingress and reconcile: keeps an event, once.
pub trait RecordEvent: Send + Sync {
    /// One conditional write. The failed condition brings back the row that is there.
    fn record(
        &self,
        event: &NewEvent<'_>,
    ) -> impl Future<Output = Result<RecordResult, DependencyError>> + Send;
}

/// Ingress, sweep, reconcile and replay: puts a pointer on a provider's queue.
pub trait SendMessage: Send + Sync {
    /// Returns once the queue has it, or knows its deduplication id from the last 5 minutes.
    fn send(
        &self,
        provider: ProviderId,
        group: &str,
        deduplication_id: &str,
        body: &str,
    ) -> impl Future<Output = Result<(), DependencyError>> + Send;
}

/// The name of a payments row: a PaymentIntent belongs to one account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaymentKey {
    /// None is the platform.
    pub account: Option<AccountId>,
    /// The payment.
    pub intent: PaymentIntentId,
}

impl PaymentKey {
    /// The row's key, `acct_1#pi_1` or `platform#pi_1`.
    pub fn row_key(&self) -> String {
        let account = self.account.as_ref().map_or("platform", AccountId::as_str);
        format!("{account}#{}", self.intent)
    }
}

/// A payments row: which entity a payment belongs to, or which events wait to learn it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PaymentRow {
    /// Once linked, for good.
    pub entity: Option<EntityKey>,
    /// Parked events.
    pub waiting: BTreeSet<EventId>,
    /// How often it was written; 0 for a row that is not there.
    pub version: i64,
}

/// An event's row with its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// What stands beside the payload.
    pub stored: EventRecord,
    /// The payload, if it is the one that was verified.
    pub payload: StoredPayload,
    /// What the whole row takes of a transaction.
    pub row_bytes: usize,
}

/// The state of a stored payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredPayload {
    /// As it was verified.
    Intact(Vec<u8>),
    /// Its digest differs from the row's.
    Tampered,
    /// Missing, or not what it was compressed to.
    Unreadable,
}

/// Entities and payments rows that were found, each as it is at this moment.
#[derive(Debug)]
pub struct LoadedRows<R> {
    /// Present ones only, each with the edge's own memory of the row.
    pub entities: BTreeMap<EntityKey, (Entity, R)>,
    /// Those that are there and cannot be read, with the reason.
    pub unreadable: BTreeMap<EntityKey, String>,
    /// Present ones only.
    pub payments: BTreeMap<PaymentKey, PaymentRow>,
}

/// What belongs together in a transaction: all of it is written, or nothing.
#[derive(Debug)]
pub struct CommitPart<'a, R> {
    /// The entity moves from the version read to the next.
    pub entity: Option<(&'a Entity, &'a R, &'a EntityUpdate)>,
    /// Each event moves from not processed to its verdict.
    pub events: Vec<EventUpdate>,
    /// Payments rows move from the version read to the next.
    pub payments: Vec<(PaymentKey, PaymentWrite)>,
    /// The moment written into the rows.
    pub now: Timestamp,
}

/// The end of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventUpdate {
    /// Which.
    pub event: EventId,
    /// Whose, where an account says so.
    pub tenant: Option<TenantId>,
    /// How.
    pub verdict: EventVerdict,
    /// The event waited for its payment's link: then also an `ignored` one is taken in.
    pub waited: bool,
}

/// What becomes of a payments row that had `version` when it was read and no entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentWrite {
    /// The payment belongs to this entity, for good.
    Link {
        /// To which.
        entity: EntityKey,
        /// As read.
        version: i64,
    },
    /// These events wait for the link.
    Wait {
        /// Which.
        events: BTreeSet<EventId>,
        /// As read.
        version: i64,
    },
}

/// Why a transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A row is not as it was read: read again and decide again.
    #[error("a row changed since it was read")]
    LostRace,
    /// Throttled, or in conflict with another transaction: the same again, later.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// The store will never take it: too large, or invalid.
    #[error("the store refuses the write: {0}")]
    Refused(String),
    /// Anything else; it may have happened.
    #[error(transparent)]
    Unavailable(#[from] DependencyError),
}

/// Workers: the rows, consistently read and conditionally written.
pub trait Ledger: Send + Sync {
    /// What the edge remembers of a loaded row beside the [`Entity`], for the condition of its write.
    type Row: Send + Sync;

    /// The events that are there.
    fn load_events(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<Vec<StoredEvent>, DependencyError>> + Send;

    /// The entities and payments rows that are there.
    fn load_rows(
        &self,
        entities: &BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> impl Future<Output = Result<LoadedRows<Self::Row>, DependencyError>> + Send;

    /// The entities whose column names this payment, by the indexes: nominated only.
    fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> impl Future<Output = Result<Vec<EntityKey>, DependencyError>> + Send;

    /// The statements whose column names this piece, by the index: nominated only.
    fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> impl Future<Output = Result<Vec<EntityKey>, DependencyError>> + Send;

    /// The tenants that have this account.
    fn tenants_by_account(
        &self,
        account: &AccountId,
    ) -> impl Future<Output = Result<Vec<TenantId>, DependencyError>> + Send;

    /// All of these in one transaction, which takes no row twice.
    fn commit(
        &self,
        provider: ProviderId,
        commits: &[CommitPart<'_, Self::Row>],
    ) -> impl Future<Output = Result<(), CommitError>> + Send;
}

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
