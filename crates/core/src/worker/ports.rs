//! The worker's port: the ledger of events, entities, payments and invoices. It reads consistently and writes in one
//! transaction, each row on condition that it is as it was read (optimistic lock). `adapters::dynamodb::ledger`
//! implements it on DynamoDB, `testkit::memory` in memory; `commit` lists what each condition protects from.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use crate::entity::invoice::InvoiceState;
use crate::entity::key::{InvoiceKey, PaymentKey, StateKey};
use crate::entity::manual::DiscardedEdit;
use crate::entity::payment::deadlines::PaymentDeadline;
use crate::entity::payment::opened_disputes::OpenedDispute;
use crate::entity::payment::state::PaymentState;
use crate::entity::projection::RowFinding;
use crate::entity::schema::UnreadableRow;
use crate::entity::tenant::{AccountHits, TenantColumns};
use crate::entity::{Entity, EntityChange, EntityKey, EntityUpdate};
use crate::error::DependencyError;
use crate::ids::{AccountId, EventId, PaymentIntentId, PieceId, ProviderId, TenantId};
use crate::intake::inbox::EventRecord;
use crate::outcome::EventVerdict;
use crate::time::Timestamp;

/// An event's row with its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    pub stored: EventRecord,
    pub payload: StoredPayload,
    /// Size of the whole row, which counts against a transaction's 4 MB.
    pub row_bytes: usize,
    /// It is `ignored` by a person's decision, whatever its facts
    /// ([`is_by_person`](crate::outcome::IgnoreReason::is_by_person)).
    pub is_set_aside: bool,
}

/// The state of a stored payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredPayload {
    /// The row's seal proves them (`seal`).
    Intact(Vec<u8>),
    /// The row has no genuine seal: somebody else wrote or changed it.
    Tampered,
    /// Missing, or cannot be decompressed.
    Unreadable,
}

/// Entities, payments and invoices, read consistently. One that has no row is in none of the maps.
#[derive(Debug)]
pub struct LoadedRows<R> {
    /// Each with its [`Ledger::Row`].
    pub entities: BTreeMap<EntityKey, (Entity, R)>,
    pub payments: BTreeMap<PaymentKey, (PaymentState, R)>,
    pub invoices: BTreeMap<InvoiceKey, (InvoiceState, R)>,
    /// Those that exist but cannot be read, with the reason.
    pub unreadable: BTreeMap<StateKey, UnreadableRow>,
    /// What the rows of the tenants among them say about accounts, whether or not their states can be read.
    pub tenants: BTreeMap<TenantId, TenantColumns>,
}

/// How a tenant is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TenantLookup {
    /// What was found in the last 60 s is good enough: the rows are read anyway, and decide.
    MayBeCached,
    /// No row confirmed what was remembered.
    Fresh,
}

impl<R> LoadedRows<R> {
    pub fn empty() -> Self {
        Self {
            entities: BTreeMap::new(),
            payments: BTreeMap::new(),
            invoices: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }

    pub fn extend(&mut self, more: Self) {
        self.entities.extend(more.entities);
        self.payments.extend(more.payments);
        self.invoices.extend(more.invoices);
        self.unreadable.extend(more.unreadable);
        self.tenants.extend(more.tenants);
    }

    pub fn payment(&self, key: &PaymentKey) -> Option<&PaymentState> {
        self.payments.get(key).map(|(payment, _)| payment)
    }
}

/// One unit of a transaction. All of it is written, or nothing.
#[derive(Debug)]
pub struct CommitPart<'a, R> {
    /// Each: its state and the application's row, written on condition that both are as they were read. If no column
    /// changes, the application's row is only checked.
    pub entities: Vec<EntityWrite<'a, R>>,
    /// Payments and invoices, each on condition that its version is one less.
    pub states: Vec<StateWrite<'a, R>>,
    pub events: Vec<EventUpdate>,
    /// The time that is written into the rows.
    pub now: Timestamp,
}

#[derive(Debug)]
pub struct EntityWrite<'a, R> {
    pub entity: &'a Entity,
    pub row: &'a R,
    pub next: EntityUpdate,
}

/// The write of a row that only billhook has.
#[derive(Debug)]
pub struct StateWrite<'a, R> {
    /// As it was read; `None` if there was no row.
    pub row: Option<&'a R>,
    pub next: NextState,
    /// What a payment has that it had not when it was read.
    pub opened_disputes: Vec<OpenedDispute>,
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are payments")]
pub enum NextState {
    Payment(PaymentState),
    Invoice(InvoiceState),
}

impl NextState {
    pub fn key(&self) -> StateKey {
        match self {
            Self::Payment(payment) => payment.key.clone().into(),
            Self::Invoice(invoice) => invoice.key.clone().into(),
        }
    }

    pub fn version(&self) -> i64 {
        match self {
            Self::Payment(payment) => payment.version,
            Self::Invoice(invoice) => invoice.version,
        }
    }
}

impl<R> CommitPart<'_, R> {
    /// What it changes about its entities. Ask only once the transaction has succeeded: a lost race or a refused write
    /// changes nothing.
    pub fn entity_commits(&self) -> impl Iterator<Item = EntityCommit> {
        let event = self.events.first().map(|update| update.event.clone());
        self.entities.iter().map(move |write| EntityCommit {
            entity: write.entity.key(),
            event: event.clone(),
            changes: write.next.changes(write.entity),
            discarded_edits: write.next.discarded_edits().to_vec(),
            row_findings: write.next.row_findings().to_vec(),
        })
    }

    /// What somebody has to hear of the payments that it writes.
    pub fn notices(&self) -> impl Iterator<Item = PaymentNotice> {
        let payments = self.states.iter().filter_map(|write| match &write.next {
            NextState::Payment(payment) => Some((payment, &write.opened_disputes)),
            NextState::Invoice(_) => None,
        });
        payments.flat_map(|(payment, opened_disputes)| {
            let of = |subject| PaymentNotice {
                payment: payment.key.clone(),
                subject,
            };
            let deadlines = payment.near_deadlines(self.now);
            let unclaimed = payment.unclaimed_since(self.now);
            deadlines
                .map(NoticeSubject::NearDeadline)
                .chain(unclaimed.map(|since| NoticeSubject::Unclaimed { since }))
                .chain(opened_disputes.iter().cloned().map(NoticeSubject::Opened))
                .map(of)
        })
    }
}

/// Something about a payment that somebody has to hear of, for the log and the metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaymentNotice {
    pub payment: PaymentKey,
    pub subject: NoticeSubject,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeSubject {
    Opened(OpenedDispute),
    NearDeadline(PaymentDeadline),
    /// It has money, and no order or statement has been linked to it since then.
    Unclaimed {
        since: Timestamp,
    },
}

/// What a transaction changed about an entity, for the log and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityCommit {
    pub entity: EntityKey,
    /// The first of its events; the cleanup commits without one.
    pub event: Option<EventId>,
    pub changes: Vec<EntityChange>,
    pub discarded_edits: Vec<DiscardedEdit>,
    pub row_findings: Vec<RowFinding>,
}

/// A column of the application's row, before and after a write, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedColumn {
    pub column: String,
    pub found: Option<String>,
    pub next: Option<String>,
}

/// The outcome of one event, written on condition that the event is not processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventUpdate {
    pub event: EventId,
    /// The tenant of the event's account; an event of the platform has none.
    pub tenant: Option<TenantId>,
    /// The rows that took its facts.
    pub entities: BTreeSet<StateKey>,
    pub verdict: EventVerdict,
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

    /// The columns of the application's row that a write of the entity changes, without its version and the time of the
    /// write, which every write changes.
    fn changed_columns(
        entity: &Entity,
        row: &Self::Row,
        next: &EntityUpdate,
        now: Timestamp,
    ) -> Vec<ChangedColumn>;

    /// Whether a write of the entity writes the application's row.
    fn changes_row(entity: &Entity, row: &Self::Row, next: &EntityUpdate, now: Timestamp) -> bool {
        !entity.row().is_missing
            && (next.must_write_row() || !Self::changed_columns(entity, row, next, now).is_empty())
    }

    /// The events that billhook's entries in the row's timeline name.
    fn timeline_events(row: &Self::Row) -> BTreeSet<EventId>;

    /// Events without a readable row are missing from the result.
    fn load_events(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> impl Future<Output = Result<Vec<StoredEvent>, DependencyError>> + Send;

    /// Reads them together, so that a batch costs one call.
    fn load_rows(
        &self,
        keys: &BTreeSet<StateKey>,
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

    /// The tenants that may have this connected account. Only a hint: the caller reads their rows
    /// ([`find_account_tenant`](crate::entity::tenant::find_account_tenant)).
    fn tenants_by_account(
        &self,
        account: &AccountId,
        lookup: TenantLookup,
    ) -> impl Future<Output = Result<AccountHits, DependencyError>> + Send;

    /// Writes all parts in one transaction. A row must not occur twice in it.
    fn commit(
        &self,
        provider: ProviderId,
        parts: &[&CommitPart<'_, Self::Row>],
    ) -> impl Future<Output = Result<(), CommitError>> + Send;
}
