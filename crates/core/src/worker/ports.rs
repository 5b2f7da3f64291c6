//! What the worker needs from the world: the ledger of events, entities and payments, read consistently and written
//! in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use crate::entity::{Entity, EntityKey, EntityUpdate};
use crate::error::DependencyError;
use crate::ids::{AccountId, EventId, PaymentIntentId, PieceId, ProviderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::EventVerdict;
use crate::time::Timestamp;

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
