//! The worker's port: the ledger of events, entities and payments rows. It reads consistently and writes in one
//! transaction, each row on condition that it is as it was read (optimistic lock). `adapters::dynamodb::ledger`
//! implements it on DynamoDB, `testkit::memory` in memory; `commit` lists what each condition protects from.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use crate::entity::kind::DiscardedEdit;
use crate::entity::schema::UnreadableRow;
use crate::entity::{Entity, EntityChange, EntityKey, EntityUpdate};
use crate::error::DependencyError;
use crate::ids::{AccountId, EventId, PaymentIntentId, PaymentRef, PieceId, ProviderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::EventVerdict;
use crate::time::Timestamp;

/// The key of a payments row. It contains the account (tenant isolation): an account cannot link, or wait for, a
/// payment of another account by naming its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaymentKey {
    /// None is the platform's own account.
    pub account: Option<AccountId>,
    pub payment: PaymentRef,
}

impl PaymentKey {
    /// `acct_1#pi_1` or `platform#pi_1`.
    pub fn row_key(&self) -> String {
        let account = self.account.as_ref().map_or("platform", AccountId::as_str);
        format!("{account}#{}", self.payment)
    }
}

/// A payments row: the entity that a payment is linked to, or the events that wait for that link.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PaymentRow {
    /// Never changes once it is set.
    pub entity: Option<EntityKey>,
    /// Events parked as `unlinked`.
    pub waiting: BTreeSet<EventId>,
    /// Number of writes; 0 if the row does not exist.
    pub version: i64,
}

/// An event's row with its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    pub stored: EventRecord,
    pub payload: StoredPayload,
    /// Size of the whole row, which counts against a transaction's 4 MB.
    pub row_bytes: usize,
}

/// The state of a stored payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredPayload {
    /// The bytes match the row's digest (`payload_sha256`).
    Intact(Vec<u8>),
    /// The bytes do not match the digest: somebody wrote the row.
    Tampered,
    /// Missing, or cannot be decompressed.
    Unreadable,
}

/// Entities and payments rows, read consistently. A row that does not exist is in none of the maps.
#[derive(Debug)]
pub struct LoadedRows<R> {
    /// Each with its [`Ledger::Row`].
    pub entities: BTreeMap<EntityKey, (Entity, R)>,
    /// Entities that exist but cannot be read, with the reason.
    pub unreadable: BTreeMap<EntityKey, UnreadableRow>,
    pub payments: BTreeMap<PaymentKey, PaymentRow>,
}

impl<R> LoadedRows<R> {
    pub fn empty() -> Self {
        Self {
            entities: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            payments: BTreeMap::new(),
        }
    }
}

/// One unit of a transaction: an entity, its events and its payments rows. All of it is written, or nothing.
#[derive(Debug)]
pub struct CommitPart<'a, R> {
    /// Its state and the application's row, written on condition that both are as they were read. If no column changes,
    /// the application's row is only checked.
    pub entity: Option<(&'a Entity, &'a R, &'a EntityUpdate)>,
    pub events: Vec<EventUpdate>,
    pub payments: Vec<(PaymentKey, PaymentWrite)>,
    /// The time that is written into the rows.
    pub now: Timestamp,
}

impl<R> CommitPart<'_, R> {
    /// What it changes about its entity; none if it has no entity. Ask only once the transaction has succeeded: a lost
    /// race or a refused write changes nothing.
    pub fn entity_commit(&self) -> Option<EntityCommit> {
        let (entity, _, next) = self.entity?;
        Some(EntityCommit {
            entity: entity.key(),
            event: self.events.first().map(|update| update.event.clone()),
            changes: next.changes(entity),
            discarded_edits: next.discarded_edits().to_vec(),
        })
    }
}

/// What a transaction changed about an entity, for the log and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityCommit {
    pub entity: EntityKey,
    /// The first of its events; the cleanup commits without one.
    pub event: Option<EventId>,
    pub changes: Vec<EntityChange>,
    pub discarded_edits: Vec<DiscardedEdit>,
}

/// The outcome of one event, written on condition that the event is not processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventUpdate {
    pub event: EventId,
    /// The tenant of the event's account; an event of the platform has none.
    pub tenant: Option<TenantId>,
    /// The entities that took its facts; empty unless it is processed.
    pub entities: BTreeSet<EntityKey>,
    pub verdict: EventVerdict,
    /// The event waited for its payment to be linked. Such an event is processed even if the sweep has already ignored
    /// it as `never_linked`.
    pub waited: bool,
}

/// A write to a payments row that linked no entity and had `version` when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentWrite {
    /// Links the payment to this entity, for good.
    Link { entity: EntityKey, version: i64 },
    /// Adds these events to those that wait for the link.
    Wait {
        events: BTreeSet<EventId>,
        version: i64,
    },
}

/// Why a transaction was not written, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A condition failed, nothing is written: read again and decide again.
    #[error("a row changed since it was read")]
    LostRace,
    /// Throttled, or in conflict with another transaction; nothing is written. Retry later.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// The store will never accept this write: too large, or invalid. Permanent.
    #[error("the store refused the write: {0}")]
    Refused(String),
    /// Any other failure. Outcome unknown: the transaction may have been written.
    #[error(transparent)]
    Unavailable(#[from] DependencyError),
}

/// The worker's rows: read consistently, written conditionally.
pub trait Ledger: Send + Sync {
    /// What the adapter keeps of a loaded entity, beside the [`Entity`], for the conditions of its write.
    type Row: Send + Sync;

    /// How much of a transaction's 4 MB the rows of a loaded entity take.
    fn row_bytes(row: &Self::Row) -> usize;

    /// Events without a readable row are missing from the result.
    fn load_events(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<Vec<StoredEvent>, DependencyError>> + Send;

    /// Reads entities and payments rows together, so that a batch costs one call.
    fn load_rows(
        &self,
        entities: &BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> impl Future<Output = Result<LoadedRows<Self::Row>, DependencyError>> + Send;

    /// Entities whose column has this PaymentIntent, by the indexes. Only a hint: an index lags behind its table.
    fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> impl Future<Output = Result<Vec<EntityKey>, DependencyError>> + Send;

    /// Statements whose `lob_letter_id` is this piece, by the index. Only a hint.
    fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> impl Future<Output = Result<Vec<EntityKey>, DependencyError>> + Send;

    /// Tenants with this connected account: one, unless the data is wrong. The adapter may answer from a cache of 60 s.
    fn tenants_by_account(
        &self,
        account: &AccountId,
    ) -> impl Future<Output = Result<Vec<TenantId>, DependencyError>> + Send;

    /// Writes all parts in one transaction. A row must not occur twice in it.
    fn commit(
        &self,
        provider: ProviderId,
        commits: &[CommitPart<'_, Self::Row>],
    ) -> impl Future<Output = Result<(), CommitError>> + Send;
}
