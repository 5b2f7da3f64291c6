//! Entities: orders, statements and tenants. An entity is a state (facts and a version, in a table of billhook's own) and
//! a projection of it (the columns that billhook derives into the application's row).
//!
//! Each kind of entity is one file: `order`, `statement`, `tenant`. `kind` says what a kind has to define, and has the
//! one path by which facts change a row. This module only lists the kinds. It guarantees nothing about concurrent
//! writers; `worker` writes under an optimistic lock. Read next: `merge`, `kind`, then `payment::derive` and
//! `mail::derive`.
//!
//! To add a kind: `docs/CONTRIBUTING.md`.

pub mod account;
pub mod columns;
mod edits;
pub mod inspect;
pub mod invoice;
pub mod key;
pub mod kind;
pub mod mail;
pub mod manual;
pub mod merge;
pub mod opening;
pub mod order;
pub mod payment;
pub mod projection;
pub mod rules;
pub mod schema;
pub mod statement;
pub mod tenant;
pub mod timeline;

use serde::{Serialize, Serializer};

use crate::entity::account::{AccountFacts, DerivedAccount};
use crate::entity::columns::{ColumnWrites, EntitySchema, RowColumns, VERSION};
use crate::entity::inspect::{ColumnFault, FaultKind, find_column_faults};
pub use crate::entity::key::EntityKey;
use crate::entity::kind::{EntityKind, EntityState, StateUpdate, StatedFacts};
use crate::entity::mail::derive::DerivedMail;
use crate::entity::mail::facts::MailFacts;
use crate::entity::manual::{DiscardedEdit, FLAGGED_BY_HAND};
use crate::entity::order::OrderKind;
use crate::entity::payment::derive::DerivedPayment;
use crate::entity::payment::linked::{LinkedPaymentFacts, PaymentCopy};
use crate::entity::payment::status::{OrderStatus, PaymentStatus};
use crate::entity::projection::{LoadedRow, RowFinding, RowStanding};
use crate::entity::rules::{RowRules, VersionColumn};
use crate::entity::schema::{
    GuardedColumns, LastDerived, RECENT, RowTrouble, StateHistory, StoredState, UnreadableRow,
};
use crate::entity::statement::StatementKind;
use crate::entity::tenant::{TenantColumns, TenantKind};
use crate::entity::timeline::DerivedEntry;
use crate::ids::{AccountId, CheckoutSessionId, EventId, PaymentIntentId, PieceId, TenantId};
use crate::money::Money;
use crate::outcome::ParkReason;
use crate::time::Timestamp;

/// An entity as the worker loaded it.
#[derive(Clone, Debug, PartialEq)]
pub enum Entity {
    Order(EntityState<OrderKind>),
    Statement(EntityState<StatementKind>),
    Tenant(EntityState<TenantKind>),
}

/// An entity after new facts.
#[derive(Clone, Debug, PartialEq)]
pub enum EntityUpdate {
    Order(StateUpdate<OrderKind>),
    Statement(StateUpdate<StatementKind>),
    Tenant(StateUpdate<TenantKind>),
}

/// The same for every kind: `$with` sees the content of the variant, and its kind as the type `Kind`.
macro_rules! for_entity {
    ($enum:ident, $value:expr, $content:pat => $with:expr) => {
        for_entity!(@ $enum, $value, $content => $with, [
            Order: OrderKind,
            Statement: StatementKind,
            Tenant: TenantKind,
        ])
    };
    (@ $enum:ident, $value:expr, $content:pat => $with:expr, [$($variant:ident: $kind:ty,)+]) => {
        match $value {
            $($enum::$variant($content) => {
                #[allow(dead_code, reason = "not every use needs the kind")]
                type Kind = $kind;
                $with
            })+
        }
    };
}

/// Something that a write changes about an entity, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntityChange {
    Completed,
    Cancelled,
    PaymentFailed,
    RefundedInFull,
    /// The row needs review now and did not before; a second reason is no change.
    RequiresReview,
    /// Less or more than what was due. Also for a second mismatch, because that adds a reason.
    AmountMismatch,
    PaidAfterCancel,
    /// A letter failed, was rejected, came back or has an issue.
    NeedsAttention,
}

macro_rules! implement_kinds {
    ($($variant:ident: $kind:ty,)+) => {
        $(impl From<EntityState<$kind>> for Entity {
            fn from(state: EntityState<$kind>) -> Self {
                Self::$variant(state)
            }
        }

        impl From<StateUpdate<$kind>> for EntityUpdate {
            fn from(update: StateUpdate<$kind>) -> Self {
                Self::$variant(update)
            }
        })+

        /// The tables of all kinds.
        pub const ENTITY_SCHEMAS: &[EntitySchema] = &[$(<$kind>::SCHEMA),+];
    };
}

implement_kinds! {
    Order: OrderKind,
    Statement: StatementKind,
    Tenant: TenantKind,
}

/// Why a name cannot be that of the version's column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVersionColumn {
    #[error("must be a letter and then at most 63 letters, digits or underscores, got {0:?}")]
    Malformed(String),
    #[error("must not be {0}, which is another column of billhook's")]
    Taken(String),
}

impl VersionColumn {
    const BYTES_MAX: usize = 64;

    /// The name must be free in the tables of all kinds, and fit into an expression of DynamoDB. It lives as long as the
    /// process, as the names of all other columns do, because a configuration is read once.
    pub fn parse(name: &str) -> Result<Self, InvalidVersionColumn> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let begins = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic());
        if !begins || !name.bytes().all(is_word) || name.len() > Self::BYTES_MAX {
            return Err(InvalidVersionColumn::Malformed(name.to_owned()));
        }
        if name == VERSION {
            return Ok(Self::default());
        }
        let mut columns = ENTITY_SCHEMAS.iter().flat_map(|schema| schema.columns);
        if columns.any(|column| column.name == name) {
            return Err(InvalidVersionColumn::Taken(name.to_owned()));
        }
        Ok(Self::of_valid_name(name.to_owned().leak()))
    }
}

impl EntityKey {
    pub fn schema(&self) -> &'static EntitySchema {
        for_entity!(EntityKey, self, _ => &Kind::SCHEMA)
    }

    /// Why an event of Stripe is parked whose row does not exist.
    pub fn unknown_reason(&self) -> ParkReason {
        for_entity!(EntityKey, self, _ => Kind::UNKNOWN)
    }

    /// Reads the entity of this key from the application's row and its state.
    pub fn read(
        &self,
        rules: &RowRules,
        row: Option<&impl RowColumns>,
        state: Option<&impl StoredState>,
    ) -> Result<Entity, UnreadableRow> {
        for_entity!(EntityKey, self, id => {
            Ok(EntityState::<Kind>::read(id.clone(), rules, row, state)?.into())
        })
    }
}

/// What billhook could not use of a row that the application made.
pub fn find_row_faults(
    schema: &EntitySchema,
    rules: &RowRules,
    row: &impl RowColumns,
) -> Vec<ColumnFault> {
    let id = row.text(schema.key).unwrap_or_default();
    match EntityKey::of_kind(schema.word, id) {
        Some(key) => for_entity!(EntityKey, key, _ => find_column_faults::<Kind>(rules, row)),
        None => vec![ColumnFault {
            column: schema.key,
            kind: FaultKind::Id,
            found: None,
        }],
    }
}

impl Entity {
    pub fn key(&self) -> EntityKey {
        match self {
            Self::Order(state) => EntityKey::Order(state.id.clone()),
            Self::Statement(state) => EntityKey::Statement(state.id.clone()),
            Self::Tenant(state) => EntityKey::Tenant(state.id.clone()),
        }
    }

    pub fn version(&self) -> i64 {
        for_entity!(Entity, self, state => state.version)
    }

    /// `None` if the row belongs to the platform itself.
    pub fn tenant(&self) -> Option<&TenantId> {
        for_entity!(Entity, self, state => state.tenant.as_ref())
    }

    /// Why nothing may be written, if so: the row belongs to another tenant than its state, or has been written by more
    /// than the state knows.
    pub fn write_refusal(&self) -> Option<ParkReason> {
        for_entity!(Entity, self, state => state.write_refusal())
    }

    /// How the application's row stands to what billhook wrote.
    pub fn standing(&self) -> RowStanding {
        for_entity!(Entity, self, state => state.standing())
    }

    pub fn row(&self) -> &LoadedRow {
        for_entity!(Entity, self, state => &state.row)
    }

    pub fn columns(&self) -> &GuardedColumns {
        for_entity!(Entity, self, state => &state.columns)
    }

    pub fn last_derived(&self) -> &LastDerived {
        for_entity!(Entity, self, state => &state.last_derived)
    }

    /// `None` if this kind has no payments.
    pub fn linked_payment_facts(&self) -> Option<&LinkedPaymentFacts> {
        for_entity!(Entity, self, state => Kind::linked_payment_facts(&state.facts))
    }

    /// `None` if this kind has no letters.
    pub fn mail_facts(&self) -> Option<&MailFacts> {
        match self {
            Self::Statement(statement) => Some(&statement.facts.mail),
            Self::Order(_) | Self::Tenant(_) => None,
        }
    }

    /// `None` if this kind has no connected account.
    pub fn account_facts(&self) -> Option<&AccountFacts> {
        match self {
            Self::Tenant(tenant) => Some(&tenant.facts),
            Self::Order(_) | Self::Statement(_) => None,
        }
    }

    /// The tenant of the application's row at the last write.
    pub fn state_tenant(&self) -> Option<&TenantId> {
        for_entity!(Entity, self, state => state.history.tenant.as_ref())
    }

    /// A payment's copy as this entity stores it.
    #[must_use]
    pub fn take_copy(&self, mut copy: PaymentCopy) -> PaymentCopy {
        for_entity!(Entity, self, state => state.drop_own_reference(&mut copy));
        copy
    }

    /// The entity as if nobody had edited the row since billhook wrote it.
    #[must_use]
    pub fn unedited(&self) -> Self {
        for_entity!(Entity, self, state => state.unedited().into())
    }

    /// Whether the application said something else than by editing a column of billhook: another amount, or a recorded
    /// payment.
    pub fn has_unseen_statement(&self) -> bool {
        for_entity!(Entity, self, state => state.has_unseen_statement())
    }

    /// Whether another letter of the statement may have been the one that counts when billhook wrote the row.
    pub fn may_be_of_another_piece(&self) -> bool {
        for_entity!(Entity, self, state => state.may_be_of_another_piece())
    }

    /// The entity as if billhook had written the row that is there, from its facts and these: for a state that was lost or
    /// is older than its row. What the row says beside the facts is found as an edit.
    #[must_use]
    pub fn rebased(&self, stated: Vec<StatedFacts>, now: Timestamp) -> Self {
        for_entity!(Entity, self, state => state.rebased(stated, now).into())
    }

    /// The entity with other facts of its letters or its account.
    #[must_use]
    pub fn with_own_facts(
        mut self,
        mail: Option<&MailFacts>,
        account: Option<&AccountFacts>,
    ) -> Self {
        match &mut self {
            Self::Statement(statement) => {
                if let Some(mail) = mail {
                    statement.facts.mail = mail.clone();
                }
            }
            Self::Tenant(tenant) => {
                if let Some(account) = account {
                    tenant.facts = account.clone();
                }
            }
            Self::Order(_) => {}
        }
        self
    }

    /// What the application asks for.
    pub fn amount_due(&self) -> Option<Money> {
        for_entity!(Entity, self, state => Kind::identify(&state.given).due)
    }

    /// The PaymentIntent in the row's column.
    pub fn payment_intent(&self) -> Option<&PaymentIntentId> {
        for_entity!(Entity, self, state => Kind::payment_intent(&state.given))
    }

    /// The Checkout Session in an order's row.
    pub fn checkout_session(&self) -> Option<&CheckoutSessionId> {
        match self {
            Self::Order(order) => order.given.session.as_ref(),
            Self::Statement(_) | Self::Tenant(_) => None,
        }
    }

    /// The connected account in a tenant's row.
    pub fn connected_account(&self) -> Option<&AccountId> {
        match self {
            Self::Tenant(tenant) => tenant.given.account.as_ref(),
            Self::Order(_) | Self::Statement(_) => None,
        }
    }

    /// The connected accounts in a tenant's row: the one that it has, and those that it had before.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountId> {
        let tenant = match self {
            Self::Tenant(tenant) => Some(&tenant.given),
            Self::Order(_) | Self::Statement(_) => None,
        };
        tenant.into_iter().flat_map(TenantColumns::accounts)
    }

    /// The printed piece in the row's column.
    pub fn piece(&self) -> Option<&PieceId> {
        for_entity!(Entity, self, state => Kind::piece(&state.given))
    }

    /// The state, in the form in which it is stored.
    pub fn to_row(&self) -> StoredForm<'_> {
        StoredForm(self)
    }

    /// The version of billhook's last write of the application's row.
    pub fn last_version(&self) -> Option<i64> {
        let last = for_entity!(Entity, self, state => state.history.written.last_key_value());
        last.map(|(version, _)| *version)
    }

    /// What is wrong with the application's row, until a person acts.
    fn trouble(&self) -> Option<RowTrouble> {
        let trouble = for_entity!(Entity, self, state => state.history.trouble);
        trouble.map(|(trouble, _)| trouble)
    }

    pub fn trouble_since(&self) -> Option<Timestamp> {
        let trouble = for_entity!(Entity, self, state => state.history.trouble);
        trouble.map(|(_, since)| since)
    }

    /// When it was last written without an event that leads the sweep to its row.
    pub fn recent(&self) -> Option<Timestamp> {
        let open = for_entity!(Entity, self, state => state.history.open());
        open.filter(|(reason, _)| *reason == RECENT)
            .map(|(_, at)| at)
    }

    /// The events that were merged, the newest last.
    pub fn event_ids(&self) -> &[EventId] {
        for_entity!(Entity, self, state => &state.history.event_ids)
    }

    /// Facts → merge → derive → project; see [`EntityState::apply_facts`].
    pub fn apply_facts(
        &self,
        stated: impl IntoIterator<Item = StatedFacts>,
        now: Timestamp,
    ) -> EntityUpdate {
        for_entity!(Entity, self, state => state.apply_facts(stated, now).into())
    }

    /// As the ledger would load it after a write: with what is found in columns that the write left alone.
    #[must_use]
    pub fn with_columns_found(mut self, found: &GuardedColumns) -> Self {
        for_entity!(Entity, &mut self, state => {
            state.columns = state.columns.clone().or_found(found);
        });
        self
    }

    /// The row as it was before billhook wrote it.
    #[must_use]
    pub fn without_history(&self) -> Self {
        for_entity!(Entity, self, state => EntityState::<Kind> {
            version: 0,
            columns: GuardedColumns::default(),
            row: LoadedRow {
                rules: state.row.rules,
                ..LoadedRow::default()
            },
            last_derived: LastDerived::default(),
            facts: Default::default(),
            history: StateHistory::default(),
            ..state.clone()
        }.into())
    }
}

impl EntityUpdate {
    /// How the row stood that this write rests on.
    pub fn standing(&self) -> &RowStanding {
        for_entity!(EntityUpdate, self, update => &update.standing)
    }

    /// What an operator should know of the row.
    pub fn row_findings(&self) -> &[RowFinding] {
        for_entity!(EntityUpdate, self, update => &update.row_findings)
    }

    /// Whether the row has to be written even if no column changes.
    pub fn must_write_row(&self) -> bool {
        for_entity!(EntityUpdate, self, update => update.must_write_row)
    }

    /// The row as billhook writes it; of the guarded columns it has only those that are written.
    pub fn next(&self) -> Entity {
        for_entity!(EntityUpdate, self, update => update.next.clone().into())
    }

    pub fn version(&self) -> i64 {
        for_entity!(EntityUpdate, self, update => update.next.version)
    }

    pub fn last_derived(&self) -> &LastDerived {
        for_entity!(EntityUpdate, self, update => &update.next.last_derived)
    }

    /// Manual edits that are not repairs and are overwritten; logged as `edit_overruled`.
    pub fn discarded_edits(&self) -> &[DiscardedEdit] {
        for_entity!(EntityUpdate, self, update => &update.discarded_edits)
    }

    pub fn linked_payment_facts(&self) -> Option<&LinkedPaymentFacts> {
        for_entity!(EntityUpdate, self, update => Kind::linked_payment_facts(&update.next.facts))
    }

    /// `None` if this kind has no payments.
    pub fn payment(&self) -> Option<&DerivedPayment> {
        for_entity!(EntityUpdate, self, update => Kind::payment(&update.derived))
    }

    /// `None` if this kind has no letters.
    pub fn mail(&self) -> Option<&DerivedMail> {
        for_entity!(EntityUpdate, self, update => Kind::mail(&update.derived))
    }

    /// `None` if this kind has no connected account.
    pub fn account(&self) -> Option<&DerivedAccount> {
        for_entity!(EntityUpdate, self, update => Kind::account(&update.derived))
    }

    /// The derived entries, not sorted.
    pub fn timeline(&self) -> Vec<DerivedEntry> {
        for_entity!(EntityUpdate, self, update => Kind::timeline(&update.derived))
    }

    /// All columns to write but the version, the timeline and the time of the write, which every kind writes alike.
    pub fn write_columns(&self) -> ColumnWrites {
        for_entity!(EntityUpdate, self, update => {
            let mut columns = Kind::write_columns(&update.derived, &update.next.last_derived);
            columns.retain(|(column, _)| update.may_write(column));
            columns
        })
    }

    /// Whether billhook writes a column of the row. A value that is none of ours stays; and of a row that is in another
    /// one's place only the review is written, until a person decided.
    pub fn may_write(&self, column: &str) -> bool {
        for_entity!(EntityUpdate, self, update => update.may_write(column))
    }

    /// Whether the row is missing now and was not, has a foreign column now and had none, or the reverse.
    pub fn changes_trouble(&self, was: &Entity) -> bool {
        self.next().trouble() != was.trouble()
    }

    /// The sweep comes to the row by the arrival of an event of this update.
    pub fn note_arrival(&mut self) {
        for_entity!(EntityUpdate, self, update => update.next.history.recent = None);
    }

    /// Remembers the events of this update.
    pub fn record_events<'a>(
        &mut self,
        events: impl IntoIterator<Item = (&'a EventId, Option<Timestamp>)>,
    ) {
        for_entity!(EntityUpdate, self, update => update.next.history.record_events(events));
    }

    /// The entity once the application's row is written too, and not only its state.
    #[must_use]
    pub fn with_row_written(&self) -> Entity {
        for_entity!(EntityUpdate, self, update => {
            update.with_row_written().into()
        })
    }

    /// What this write changes. Columns are compared with the row as it was read, not as billhook last derived it: if a
    /// person already set `status` to `cancelled`, the write repeats the word and counts nothing.
    pub fn changes(&self, was: &Entity) -> Vec<EntityChange> {
        let next = self.last_derived();
        // What an adopted row said already is no change.
        let adopted = was.row().opening.as_ref();
        let adopted = adopted.map(|opening| was.apply_facts([], opening.adopted_before));
        let adopted = adopted.as_ref().map(EntityUpdate::last_derived);
        let known = adopted.unwrap_or_else(|| was.last_derived());
        // What an older copy says is no state that anything was in.
        let old = match (adopted, self.standing()) {
            (Some(adopted), _) => &adopted.columns,
            (None, RowStanding::Stale { .. }) => &was.last_derived().columns,
            (None, _) => was.columns(),
        };
        let new = &next.columns;
        let became = |new: &Option<String>, old: &Option<String>, word: &str| {
            new.as_deref() == Some(word) && new != old
        };
        let status = |status: OrderStatus| became(&new.status, &old.status, status.as_str());
        let payment = |status: PaymentStatus| {
            became(&new.payment_status, &old.payment_status, status.as_str())
        };
        let holds = |new: Option<bool>, old: Option<bool>| new == Some(true) && old != new;
        let added = |hint: &&String| !known.review_reasons.contains(hint);
        let added = next.review_reasons.iter().filter(added);
        let added: Vec<&str> = added.filter_map(|hint| hint.split(':').next()).collect();
        let reason = |reason: &str| added.contains(&reason);
        // Whoever flags a row by hand knows of it.
        let is_told = |reason: &&str| *reason != FLAGGED_BY_HAND;
        [
            (EntityChange::Completed, status(OrderStatus::Completed)),
            (EntityChange::Cancelled, status(OrderStatus::Cancelled)),
            (EntityChange::PaymentFailed, payment(PaymentStatus::Failed)),
            (
                EntityChange::RefundedInFull,
                payment(PaymentStatus::Refunded),
            ),
            (
                EntityChange::RequiresReview,
                added.iter().any(is_told) || holds(new.requires_review, old.requires_review),
            ),
            (
                EntityChange::AmountMismatch,
                reason("amount_mismatch") || reason("overpaid"),
            ),
            (EntityChange::PaidAfterCancel, reason("paid_after_cancel")),
            (
                EntityChange::NeedsAttention,
                holds(new.needs_attention, old.needs_attention),
            ),
        ]
        .into_iter()
        .filter_map(|(change, is_new)| is_new.then_some(change))
        .collect()
    }
}

/// A state in the form in which it is stored.
#[derive(Debug)]
pub struct StoredForm<'a>(&'a Entity);

impl Serialize for StoredForm<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        for_entity!(Entity, self.0, state => state.state_row().serialize(serializer))
    }
}
