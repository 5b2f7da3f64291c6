//! The simulated tables: conditional writes, all-or-nothing transactions, and indexes that lag by up to 3 s (eventual
//! consistency).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use billhook_core::entity::invoice::InvoiceState;
use billhook_core::entity::key::{InvoiceKey, PaymentKey, StateKey};
use billhook_core::entity::payment::facts::MoneyFacts;
use billhook_core::entity::payment::linked::LinkedPaymentFacts;
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::tenant::{AccountHits, TenantColumns, TenantHit};
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, EventId, PaymentIntentId, PieceId, ProviderId, TenantId};
use billhook_core::intake::inbox::{EventRecord, NewEvent, RecordResult};
use billhook_core::intake::ports::RecordEvent;
use billhook_core::outcome::EventOutcome;
use billhook_core::tasks::checkpoint::Checkpoint;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{
    ChangedColumn, CommitError, CommitPart, EventUpdate, Ledger, LoadedRows, NextState,
    StoredEvent, StoredPayload, TenantLookup,
};

use super::application::RowEdit;
use super::{Call, Mutant, Port, Service, World};
use crate::memory::{self, MemoryTables, changed_columns, is_as_read, refusal};

/// The longest delay of an index.
const LAG: Duration = Duration::from_secs(3);
/// For the mutant with short retention.
const KEPT_TOO_SHORT: Duration = Duration::from_secs(10);

/// All versions of a row.
#[derive(Clone, Debug)]
pub struct Row<T>(Vec<(Timestamp, T)>);

impl<T> Row<T> {
    /// The current version.
    pub fn current(&self) -> Option<&T> {
        self.0.last().map(|(_, row)| row)
    }

    /// The version at a time in the past.
    pub fn as_of(&self, then: Timestamp) -> Option<&T> {
        let before = self.0.iter().rev().find(|(at, _)| *at <= then);
        before.map(|(_, row)| row)
    }
}

#[derive(Clone, Debug)]
pub struct Table<K, T>(BTreeMap<K, Row<T>>);

impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, T> Table<K, T> {
    /// A consistent read.
    pub fn get(&self, key: &K) -> Option<&T> {
        self.0.get(key)?.current()
    }

    pub fn put(&mut self, now: Timestamp, key: K, row: T) {
        let versions = self.0.entry(key).or_insert_with(|| Row(Vec::new()));
        versions.0.push((now, row));
    }

    /// All current rows.
    pub fn all(&self) -> impl Iterator<Item = (&K, &T)> {
        let rows = self.0.iter();
        rows.filter_map(|(key, row)| Some((key, row.current()?)))
    }

    /// The newest version at a time in the past for which this holds, or else the first one.
    pub fn copy_as_of(&self, key: &K, then: Timestamp, is_it: impl Fn(&T) -> bool) -> Option<&T> {
        let versions = &self.0.get(key)?.0;
        let mut before = versions.iter().rev().filter(|(at, _)| *at <= then);
        let found = before.find(|(_, row)| is_it(row));
        found.or(versions.first()).map(|(_, row)| row)
    }

    /// All rows at a time in the past.
    pub fn all_as_of(&self, then: Timestamp) -> impl Iterator<Item = (&K, &T)> {
        let rows = self.0.iter();
        rows.filter_map(move |(key, row)| Some((key, row.as_of(then)?)))
    }

    fn remove(&mut self, key: &K) {
        self.0.remove(key);
    }
}

#[derive(Clone, Debug)]
pub struct EventRow {
    pub stored: EventRecord,
    pub payload: Vec<u8>,
    /// `processing_error`.
    pub error: Option<String>,
    /// The outcome under which it is in `OpenIndex`.
    pub open: Option<EventOutcome>,
    /// The orders, statements and tenants that took its facts.
    pub entities: BTreeSet<StateKey>,
}

/// An order's, a statement's or a tenant's row.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityRow {
    pub entity: Entity,
    /// `amountRefunded`.
    pub amount_paid: i64,
    pub amount_refunded: i64,
    /// Event id, type and fact of each timeline entry.
    pub timeline: Vec<(String, String, Option<String>)>,
}

/// A write that happened, for the checks.
#[derive(Clone, Debug)]
pub struct Written {
    pub at: Timestamp,
    pub by: String,
    /// Before and after.
    pub entities: Vec<(EntityRow, EntityRow)>,
    pub states: Vec<NextState>,
    /// The events whose outcome was written: before and after.
    pub events: Vec<(ProviderId, EventRecord, EventOutcome)>,
}

#[derive(Debug, Default)]
pub struct Store {
    /// By provider and id.
    pub events: Table<(&'static str, EventId), EventRow>,
    /// Orders, statements and tenants.
    pub entities: Table<EntityKey, EntityRow>,
    pub payments: Table<PaymentKey, PaymentState>,
    pub invoices: Table<InvoiceKey, InvoiceState>,
    /// By tenant.
    pub accounts: Table<TenantId, AccountId>,
    /// The accounts that each tenant had before, as its row says.
    pub previous_accounts: BTreeMap<TenantId, BTreeSet<AccountId>>,
    /// The notes of them that billhook keeps.
    pub account_notes: BTreeSet<(AccountId, TenantId)>,
    /// By job.
    pub jobs: BTreeMap<String, Checkpoint>,
    /// Every event that was stored as new.
    pub recorded: Vec<(&'static str, EventId)>,
    pub written: Vec<Written>,
    /// What people wrote into rows.
    pub edits: Vec<RowEdit>,
}

impl Store {
    /// All rows as they are now, with the events of one provider, for reads that nothing disturbs.
    pub fn to_tables(&self, provider: ProviderId) -> MemoryTables {
        let events = self.events.all();
        let events = events.filter(|((of, _), _)| *of == provider.as_str());
        let events = events.map(|((_, id), row)| {
            let row = memory::EventRow {
                stored: row.stored.clone(),
                payload: row.payload.clone(),
                error: row.error.clone(),
                attempts: 0,
                open: row.open,
                entities: row.entities.clone(),
            };
            (id.clone(), row)
        });
        let entities = self.entities.all();
        let entities = entities.map(|(key, row)| (key.clone(), row.entity.clone()));
        let payments = self.payments.all();
        let payments = payments.map(|(key, row)| (key.clone(), row.clone()));
        let invoices = self.invoices.all();
        let invoices = invoices.map(|(key, row)| (key.clone(), row.clone()));
        let tenants = self.accounts.all();
        let tenants = tenants.map(|(tenant, account)| (account.clone(), tenant.clone()));
        let previous = self.previous_accounts.iter();
        let previous = previous.flat_map(|(tenant, accounts)| {
            let accounts = accounts.iter().cloned();
            accounts.map(|account| (account, tenant.clone()))
        });
        MemoryTables {
            events: Mutex::new(events.collect()),
            entities: Mutex::new(entities.collect()),
            payments: Mutex::new(payments.collect()),
            invoices: Mutex::new(invoices.collect()),
            tenants: Mutex::new(tenants.collect()),
            previous_accounts: Mutex::new(previous.collect()),
            account_notes: Mutex::new(self.account_notes.clone()),
            ..MemoryTables::default()
        }
    }

    /// Adds a row as the application does.
    pub fn add(&mut self, now: Timestamp, entity: Entity) {
        let row = EntityRow {
            entity,
            amount_paid: 0,
            amount_refunded: 0,
            timeline: Vec::new(),
        };
        self.entities.put(now, row.entity.key(), row);
    }

    pub fn events_of(&self, provider: ProviderId) -> impl Iterator<Item = &EventRow> {
        let all = self.events.all();
        let its = all.filter(move |((of, _), _)| *of == provider.as_str());
        its.map(|(_, row)| row)
    }
}

fn reads(name: &'static str) -> Call {
    Call {
        service: Service::Tables,
        name,
        writes: false,
    }
}

fn writes(name: &'static str) -> Call {
    Call {
        service: Service::Tables,
        name,
        writes: true,
    }
}

impl World {
    /// A time in the past whose state an index may still show.
    pub(super) fn lagging(&mut self) -> Timestamp {
        let lag = self.rng.span(Duration::ZERO, LAG);
        self.now().before(lag)
    }

    fn record(&mut self, provider: ProviderId, row: &EventRow) -> RecordResult {
        let key = (provider.as_str(), row.stored.id.clone());
        let now = self.now();
        if let Some(known) = self.store.events.get(&key) {
            let came = known.stored.received_at.unwrap_or(now);
            if self.mutant == Some(Mutant::EventsExpire) && came.after(KEPT_TOO_SHORT) < now {
                self.store.events.remove(&key);
            } else {
                let known = known.stored.clone();
                self.sometimes("delivered again");
                return RecordResult::Known(known);
            }
        }
        self.store.recorded.push(key.clone());
        self.store.events.put(now, key, row.clone());
        RecordResult::New
    }

    fn kept(&self, row: &EventRow) -> StoredEvent {
        let mut payload = row.payload.clone();
        if self.mutant == Some(Mutant::RefundsRenamed) {
            let text = String::from_utf8_lossy(&payload);
            let own = format!("\"id\":\"re_{}_", row.stored.id);
            payload = text.replace("\"id\":\"re_", &own).into_bytes();
        }
        if self.mutant == Some(Mutant::RecipientForgotten) {
            let text = String::from_utf8_lossy(&payload);
            payload = text
                .replace("\"transfer_data\"", "\"transfer\"")
                .into_bytes();
        }
        if self.mutant == Some(Mutant::AmountMisread) {
            let text = String::from_utf8_lossy(&payload);
            payload = text.replace("\"amount\":", "\"amount\":1").into_bytes();
        }
        StoredEvent {
            stored: row.stored.clone(),
            is_set_aside: false,
            row_bytes: payload.len(),
            payload: StoredPayload::Intact(payload),
        }
    }

    fn loaded(&self, row: &EntityRow) -> Entity {
        let mut entity = row.entity.clone();
        if self.mutant == Some(Mutant::CopyBelieved)
            && let Entity::Order(order) = &mut entity
        {
            let last = order.history.written.last_key_value();
            order.row.version = last.map(|(version, _)| *version);
        }
        if self.mutant == Some(Mutant::EditForgotten)
            && let Some(facts) = linked_facts_mut(&mut entity)
        {
            facts.manual = Default::default();
        }
        if self.mutant == Some(Mutant::FactsForgotten) {
            if let Entity::Statement(statement) = &mut entity {
                statement.facts.mail = Default::default();
            }
            if let Some(facts) = linked_facts_mut(&mut entity) {
                *facts = LinkedPaymentFacts::default();
            }
        }
        entity
    }

    /// What a tenant's row says about accounts.
    fn tenant_columns(&self, tenant: &TenantId) -> TenantColumns {
        let accounts = &self.store.accounts;
        if self.mutant == Some(Mutant::AnyTenant) {
            return TenantColumns {
                previous: accounts.all().map(|(_, account)| account.clone()).collect(),
                ..TenantColumns::default()
            };
        }
        let then = match self.mutant {
            Some(Mutant::RowLags) => self.now().before(LAG),
            _ => self.now(),
        };
        let row = accounts.0.get(tenant).and_then(|row| row.as_of(then));
        TenantColumns {
            account: row.cloned(),
            previous: self
                .store
                .previous_accounts
                .get(tenant)
                .cloned()
                .unwrap_or_default(),
            is_muted: false,
        }
    }

    fn loaded_payment(&self, payment: &PaymentState) -> PaymentState {
        let mut payment = payment.clone();
        match self.mutant {
            Some(Mutant::FactsForgotten) => payment.facts.money = MoneyFacts::default(),
            Some(Mutant::SuccessForgotten) => {
                for of in payment.facts.money.payments.values_mut() {
                    of.succeeded = None;
                    of.received.clear();
                }
            }
            Some(Mutant::RelinkForgotten) => payment.facts.relink = None,
            Some(Mutant::RivalForgotten) => {
                let mut seen = 0;
                payment.facts.links.retain(|_, _| {
                    seen += 1;
                    seen == 1
                });
            }
            Some(Mutant::AliasForgotten) => payment.alias_of = None,
            Some(Mutant::AgeForgotten) => payment.open_since = None,
            _ => {}
        }
        payment
    }

    fn loaded_invoice(&self, invoice: &InvoiceState) -> InvoiceState {
        let mut invoice = invoice.clone();
        if self.mutant == Some(Mutant::InvoiceForgotten) {
            invoice.facts.orders.clear();
        }
        invoice
    }

    fn stands(&self, provider: ProviderId, commit: &OwnCommit) -> bool {
        if self.mutant == Some(Mutant::Unconditional) {
            return true;
        }
        let entities = commit.entities.iter().all(|(read, _)| {
            let row = self.store.entities.get(&read.key());
            row.is_some_and(|row| is_as_read(&row.entity, read))
        });
        let states = commit.states.iter().all(|next| {
            let version = match next.key() {
                StateKey::Payment(key) => self.store.payments.get(&key).map(|row| row.version),
                StateKey::Invoice(key) => self.store.invoices.get(&key).map(|row| row.version),
                StateKey::Entity(_) => None,
            };
            // A payment whose state was lost begins above its copies.
            version.is_none_or(|version| version + 1 == next.version())
        });
        let events = commit.events.iter().all(|concluded| {
            let key = (provider.as_str(), concluded.event.clone());
            let row = self.store.events.get(&key);
            row.is_some_and(|row| !row.stored.processed)
        });
        entities && states && events
    }

    fn commit(
        &mut self,
        provider: ProviderId,
        by: &str,
        commits: &[OwnCommit],
    ) -> Result<(), CommitError> {
        if !commits.iter().all(|commit| self.stands(provider, commit)) {
            self.sometimes("lost race");
            self.tell(|| format!("{by:<14} lost a race"));
            return Err(CommitError::LostRace);
        }
        if commits.len() > 1 {
            self.sometimes("several entities in one transaction");
        }
        for commit in commits {
            self.write(provider, by, commit);
        }
        Ok(())
    }

    fn write(&mut self, provider: ProviderId, by: &str, commit: &OwnCommit) {
        let now = self.now();
        let mut written = Written {
            at: now,
            by: by.to_owned(),
            entities: Vec::new(),
            states: commit.states.clone(),
            events: Vec::new(),
        };
        for concluded in &commit.events {
            let key = (provider.as_str(), concluded.event.clone());
            let Some(mut row) = self.store.events.get(&key).cloned() else {
                continue;
            };
            let before = row.stored.clone();
            row.stored.outcome = concluded.verdict.outcome();
            row.stored.processed = row.stored.outcome.is_done();
            row.error = concluded.verdict.reason().map(str::to_owned);
            row.open = Some(row.stored.outcome).filter(|outcome| !outcome.is_done());
            row.entities.extend(concluded.entities.iter().cloned());
            written.events.push((provider, before, row.stored.outcome));
            let (id, outcome) = (row.stored.id.clone(), row.stored.outcome);
            let reason = row.error.clone().unwrap_or_default();
            self.tell(|| format!("{by:<14} {id} is {outcome} {reason}"));
            self.store.events.put(now, key, row);
        }
        // A fault between the two writes.
        let is_torn = self.mutant == Some(Mutant::TornCommit) && self.rng.chance(200);
        for (read, next) in commit.entities.iter().filter(|_| !is_torn) {
            written.entities.extend(self.move_entity(now, read, next));
            let columns = &next.last_derived().columns;
            let text = format!("{:?} {:?}", columns.status, columns.payment_status);
            self.tell(|| format!("{by:<14} {} is {text}", read.key()));
        }
        for next in &commit.states {
            self.tell(|| format!("{by:<14} {} has version {}", next.key(), next.version()));
            match next {
                NextState::Payment(next) => {
                    self.store.payments.put(now, next.key.clone(), next.clone());
                }
                NextState::Invoice(next) => {
                    self.store.invoices.put(now, next.key.clone(), next.clone());
                }
            }
        }
        self.store.written.push(written);
    }

    fn move_entity(
        &mut self,
        now: Timestamp,
        read: &Entity,
        next: &EntityUpdate,
    ) -> Option<(EntityRow, EntityRow)> {
        let key = read.key();
        let before = self.store.entities.get(&key)?.clone();
        let mut amount_refunded = amount_refunded_of(next);
        if self.mutant == Some(Mutant::RefundsAdded) {
            amount_refunded += before.amount_refunded;
        }
        let is_missing = *next.standing() == RowStanding::Missing;
        let row = EntityRow {
            entity: match is_missing {
                true => next.next(),
                false => next.with_row_written(),
            },
            amount_paid: amount_paid_of(next).unwrap_or(before.amount_paid),
            amount_refunded,
            timeline: timeline_of(next),
        };
        self.store.entities.put(now, key, row.clone());
        Some((before, row))
    }
}

/// `None` if it stays as it is.
pub fn amount_paid_of(next: &EntityUpdate) -> Option<i64> {
    let received = next.payment()?.received?;
    Some(received.amount)
}

pub fn amount_refunded_of(next: &EntityUpdate) -> i64 {
    next.payment().map_or(0, |payment| payment.amount_refunded)
}

fn timeline_of(next: &EntityUpdate) -> Vec<(String, String, Option<String>)> {
    let entries = next.timeline().into_iter().map(|entry| {
        let event = entry.event.map(|event| event.to_string());
        (entry.kind, entry.fact, event)
    });
    entries.collect()
}

fn linked_facts_mut(entity: &mut Entity) -> Option<&mut LinkedPaymentFacts> {
    if let Entity::Order(order) = entity {
        return Some(&mut order.facts);
    }
    if let Entity::Statement(statement) = entity {
        return Some(&mut statement.facts.payment);
    }
    None
}

/// A transaction that may still take effect after its caller has ended.
struct OwnCommit {
    entities: Vec<(Entity, EntityUpdate)>,
    states: Vec<NextState>,
    events: Vec<EventUpdate>,
}

impl RecordEvent for Port {
    async fn record(&self, event: &NewEvent<'_>) -> Result<RecordResult, DependencyError> {
        let provider = event.envelope.provider;
        let row = EventRow {
            stored: event.to_record(),
            payload: event.body.raw_body().to_vec(),
            error: None,
            open: None,
            entities: BTreeSet::new(),
        };
        let id = row.stored.id.to_string();
        if self.sim.world().mutant == Some(Mutant::PanicsOnUnicode) {
            assert!(row.payload.is_ascii(), "deliberate defect");
        }
        let recorded = self.call(writes("record"), &id, move |world| {
            world.record(provider, &row)
        });
        Ok(recorded.await?)
    }
}

impl Ledger for Port {
    /// The application's row of an entity.
    type Row = Option<EntityRow>;

    fn row_bytes(_: &Self::Row) -> usize {
        0
    }

    fn changed_columns(
        entity: &Entity,
        row: &Self::Row,
        next: &EntityUpdate,
        _: Timestamp,
    ) -> Vec<ChangedColumn> {
        let Some(row) = row else {
            return Vec::new();
        };
        let mut changed = changed_columns(entity, next);
        let mut compare = |column: &str, is_changed: bool| {
            changed.extend(is_changed.then(|| ChangedColumn {
                column: column.to_owned(),
                found: None,
                next: None,
            }));
        };
        compare("timeline", row.timeline != timeline_of(next));
        compare(
            "amountPaid",
            amount_paid_of(next).is_some_and(|paid| row.amount_paid != paid),
        );
        compare(
            "amountRefunded",
            row.amount_refunded != amount_refunded_of(next),
        );
        changed
    }

    fn timeline_events(_: &Self::Row) -> BTreeSet<EventId> {
        BTreeSet::new()
    }

    async fn load_events(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<StoredEvent>, DependencyError> {
        let ids = ids.clone();
        let found = self.call(reads("events"), "", move |world| {
            let keys = ids.iter().map(|id| (provider.as_str(), id.clone()));
            let rows = keys.filter_map(|key| world.store.events.get(&key));
            rows.map(|row| world.kept(row)).collect()
        });
        Ok(found.await?)
    }

    async fn load_rows(
        &self,
        keys: &BTreeSet<StateKey>,
    ) -> Result<LoadedRows<Self::Row>, DependencyError> {
        let keys = keys.clone();
        let found = self.call(reads("rows"), "", move |world| {
            let mut rows = LoadedRows::empty();
            for key in &keys {
                if let StateKey::Entity(EntityKey::Tenant(tenant)) = key {
                    let columns = world.tenant_columns(tenant);
                    rows.tenants.insert(tenant.clone(), columns);
                }
                match key {
                    StateKey::Entity(key) => {
                        let row = world.store.entities.get(key);
                        let row =
                            row.map(|row| (key.clone(), (world.loaded(row), Some(row.clone()))));
                        rows.entities.extend(row);
                    }
                    StateKey::Payment(key) => {
                        let row = world.store.payments.get(key);
                        let row = row.map(|row| (key.clone(), (world.loaded_payment(row), None)));
                        rows.payments.extend(row);
                    }
                    StateKey::Invoice(key) => {
                        let row = world.store.invoices.get(key);
                        let row = row.map(|row| (key.clone(), (world.loaded_invoice(row), None)));
                        rows.invoices.extend(row);
                    }
                }
            }
            rows
        });
        Ok(found.await?)
    }

    async fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let own = intent.clone();
        self.entities_with(intent.as_str(), move |entity| {
            entity.payment_intent() == Some(&own)
        })
        .await
    }

    async fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let own = piece.clone();
        self.entities_with(piece.as_str(), move |entity| entity.piece() == Some(&own))
            .await
    }

    async fn tenants_by_account(
        &self,
        account: &AccountId,
        _: TenantLookup,
    ) -> Result<AccountHits, DependencyError> {
        let own = account.clone();
        let found = self.call(reads("tenants_of"), account.as_str(), move |world| {
            let then = world.lagging();
            let hit = |tenant: &TenantId| TenantHit::Tenant(tenant.clone());
            let mut hits = AccountHits::default();
            if world.mutant == Some(Mutant::AnyTenant) {
                let mut all = world.store.accounts.all_as_of(then);
                hits.previous
                    .extend(all.next().map(|(tenant, _)| hit(tenant)));
                return hits;
            }
            let all = world.store.accounts.all_as_of(then);
            let its = all.filter(|(_, account)| **account == own);
            hits.present.extend(its.map(|(tenant, _)| hit(tenant)));
            if hits.present.is_empty() {
                world.sometimes("index miss");
                let notes = world.store.account_notes.iter();
                let is_known = world.mutant != Some(Mutant::PreviousForgotten);
                let its = notes.filter(|(account, _)| is_known && *account == own);
                hits.previous.extend(its.map(|(_, tenant)| hit(tenant)));
            }
            if !hits.previous.is_empty() {
                world.sometimes("previous account");
            }
            hits
        });
        Ok(found.await?)
    }

    async fn commit(
        &self,
        provider: ProviderId,
        parts: &[&CommitPart<'_, Self::Row>],
    ) -> Result<(), CommitError> {
        if let Some(refusal) = refusal(parts) {
            return Err(CommitError::Refused(refusal.to_owned()));
        }
        let own: Vec<OwnCommit> = parts
            .iter()
            .map(|part| OwnCommit {
                entities: part
                    .entities
                    .iter()
                    .map(|write| (write.entity.clone(), write.next.clone()))
                    .collect(),
                states: part.states.iter().map(|write| write.next.clone()).collect(),
                events: part.events.clone(),
            })
            .collect();
        let moved = own.iter().flat_map(|own| &own.entities);
        let of: Vec<String> = moved.map(|(read, _)| read.key().to_string()).collect();
        let of = of.join(" ");
        let by = self.name().to_owned();
        let mut is_done = false;
        let answer = self.call(writes("commit"), &of, move |world| {
            // The SDK's second attempt carries the client token of the first.
            if !is_done {
                world.commit(provider, &by, &own)?;
            }
            is_done = true;
            Ok(())
        });
        match answer.await {
            Ok(Err(error)) => {
                self.fault();
                Err(error)
            }
            Ok(Ok(())) => Ok(()),
            Err(lost) if lost.is_throttled => Err(CommitError::Busy(lost.told())),
            Err(lost) => Err(DependencyError::from(lost).into()),
        }
    }
}

impl Port {
    async fn entities_with(
        &self,
        of: &str,
        is_it: impl Fn(&Entity) -> bool + Send + 'static,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let found = self.call(reads("index"), of, move |world| {
            let then = world.lagging();
            let all = world.store.entities.all_as_of(then);
            let its = all.filter(|(_, row)| !row.entity.row().is_missing && is_it(&row.entity));
            let its: Vec<EntityKey> = its.map(|(key, _)| key.clone()).collect();
            if its.is_empty() {
                world.sometimes("index miss");
            }
            its
        });
        Ok(found.await?)
    }

    pub(super) async fn read<T>(
        &self,
        name: &'static str,
        of: &str,
        look: impl FnMut(&mut World) -> T + Send + 'static,
    ) -> Result<T, DependencyError> {
        Ok(self.call(reads(name), of, look).await?)
    }

    pub(super) async fn write<T>(
        &self,
        name: &'static str,
        of: &str,
        effect: impl FnMut(&mut World) -> T + Send + 'static,
    ) -> Result<T, DependencyError> {
        Ok(self.call(writes(name), of, effect).await?)
    }
}
