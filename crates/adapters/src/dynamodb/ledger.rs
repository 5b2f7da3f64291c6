//! The worker's repository: reads events, entities, payments and invoices consistently in batches, and writes an entity together
//! with its events in one transaction, on condition that every row is as it was read (optimistic lock).
//!
//! Guarantees: all or nothing; a lost race is an error and changes nothing; a repeat after a lost answer is harmless: a
//! transaction carries the SDK's client token, and a single update fails its own condition or writes the same outcome
//! again. It does not retry a lost race: `billhook_core::worker` reads again and decides again. Each condition is
//! explained where it is set: here for entities, and in `events`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::{AttributeValue, ConditionCheck, Delete, TransactWriteItem, Update};
use billhook_core::entity::columns::EntitySchema;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::kind::EntityKind as _;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::schema::{STATE_COLUMNS, STATE_KEY, UnreadableRow, check_schema};
use billhook_core::entity::statement::{PIECE_COLUMN, StatementKind};
use billhook_core::entity::tenant::{ACCOUNT_COLUMN, AccountHits, TenantHit, TenantKind};
use billhook_core::entity::{ENTITY_SCHEMAS, Entity, EntityKey, EntityUpdate};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, EventId, PaymentIntentId, PieceId, ProviderId, TenantId};
use billhook_core::ports::Clock;
use billhook_core::retry::Disposition;
use billhook_core::seal::{SealPublicKeys, StateSealKeys};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{
    ChangedColumn, CommitError, CommitPart, EntityWrite, Ledger, LoadedRows, StateWrite,
    StoredEvent, TenantLookup,
};
use futures_util::future::{join, join_all};

use super::attributes::{self, Item, read_integer, read_text, string_value};
use super::batch_get::batch_get_rows;
use super::entities::{
    ColumnUpdates, DynamoRow, WrittenRows, build_state, build_write, changed_columns, read_entity,
    read_invoice, read_payment, read_tenant_row, timeline_events,
};
use super::events::{build_event_update, load_event_items, read_seal, read_stored_event};
use super::index::{ColumnIndex, ScanObserver};
use super::pages::{FactPages, join_pages, named_pages, page_key, split_pages};
use super::state_seal::{is_genuine, read_state_seal, seal_state};
use super::tenants::read_account_notes;
use super::update::UpdateBuilder;
use super::{dependency_error, send_update};
use crate::config::{ApplicationTables, SecretSource, table_variable};
use crate::secrets::{SealKeyCache, SecretsError, SecretsManager};

/// A larger row is not written, and its event is parked as `entity_too_large`. DynamoDB's limit is 400 KB; the rest is
/// for the application, whose own writes would fail if we filled the row.
const ROW_BYTES_MAX: usize = 300 * 1024;
/// Estimate of what a write of a state with pages takes: only changed pages are written. The first write takes more.
const PAGED_BYTES_MAX: usize = 512 * 1024;
/// How often rows are read again because another writer changed a state's pages between the two reads.
const READS_MAX: usize = 3;
/// Rows that an index is asked for: two are enough to know that a value is ambiguous, and an index that lags may return some
/// that do not have it any more.
const HITS_MAX: usize = 10;
/// How long a tenant that was found is cached: which row to read is remembered, and the row decides. Misses are not cached:
/// when a new tenant's row is written, the account's next event must find it. Neither is the tenant of a previous account:
/// another one may get the account.
const TENANT_CACHE_TTL: Duration = Duration::from_secs(60);
const TENANT_CACHE_MAX: usize = 1_000;

/// The tables of one worker. `lob-worker` has only `events` and the statements.
#[derive(Clone, Debug, Default)]
pub struct TableNames {
    pub events: String,
    /// The entities' states.
    pub entities: String,
    /// The application's tables.
    pub application_tables: ApplicationTables,
    /// What the deployment says about their rows.
    pub rules: RowRules,
}

#[cfg(test)]
impl TableNames {
    pub(super) fn of_tests() -> Self {
        let schemas = ENTITY_SCHEMAS.iter();
        Self {
            events: "events".to_owned(),
            entities: "entities".to_owned(),
            application_tables: schemas
                .map(|schema| (schema.table, schema.table.to_lowercase()))
                .collect(),
            rules: RowRules::default(),
        }
    }
}

/// What proves that billhook wrote a row.
#[derive(Clone, Debug)]
pub struct LedgerSeals {
    pub events: Arc<SealKeyCache<SecretsManager, SealPublicKeys>>,
    pub states: Arc<SealKeyCache<SecretsManager, StateSealKeys>>,
    pub check: StateSealCheck,
}

impl LedgerSeals {
    pub fn new(
        secrets: &SecretsManager,
        events: SecretSource,
        states: SecretSource,
        check: StateSealCheck,
    ) -> Self {
        Self {
            events: Arc::new(SealKeyCache::new(events, secrets.clone())),
            states: Arc::new(SealKeyCache::new(states, secrets.clone())),
            check,
        }
    }

    /// Reads the keys before the first rows need them. A failure is no failure: the first read tries again.
    pub async fn warm(&self) {
        let read = join(self.events.keys_for([]), self.states.keys_for([])).await;
        drop(read);
    }

    /// One key, for tests.
    #[cfg(test)]
    pub(super) fn of_tests() -> Self {
        use crate::aws::AwsClients;
        use crate::config::{EnvLookup, SecretLocation};

        let aws = AwsClients::from_env(&EnvLookup(&|name| {
            (!name.contains("ENDPOINT")).then(|| "test".to_owned())
        }));
        let here = |value: &str| SecretSource {
            variable: "test".to_owned(),
            location: SecretLocation::Here(value.into()),
        };
        let key = format!(r#"{{"key":"{}"}}"#, "k".repeat(64));
        let secrets = SecretsManager::new(&aws.unwrap());
        Self::new(&secrets, here("{}"), here(&key), StateSealCheck::Required)
    }
}

/// What happens where the key of the states' seals cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateSealCheck {
    /// Nothing is read.
    Required,
    /// States are read without a check, and cannot be written: for a person who may only read.
    IfReadable,
}

#[derive(Debug)]
pub struct DynamoLedger<C> {
    pub(super) client: Client,
    pub(super) tables: TableNames,
    pub(super) clock: C,
    pub(super) on_scan: ScanObserver,
    seals: LedgerSeals,
    tenants: Mutex<HashMap<AccountId, (Timestamp, BTreeSet<TenantHit>)>>,
}

impl<C: Clock> DynamoLedger<C> {
    pub fn new(
        client: Client,
        tables: TableNames,
        seals: LedgerSeals,
        clock: C,
        on_scan: ScanObserver,
    ) -> Self {
        Self {
            client,
            tables,
            clock,
            on_scan,
            seals,
            tenants: Mutex::default(),
        }
    }

    pub(super) fn application_table(&self, schema: &EntitySchema) -> Result<&str, DependencyError> {
        let table = self.tables.application_tables.get(schema.table);
        table
            .map(String::as_str)
            .ok_or_else(|| missing_table(&table_variable(schema)))
    }

    /// The entities whose column has this value, by an index. `provider` is whose events need the index.
    async fn find_by_column(
        &self,
        provider: ProviderId,
        schema: &EntitySchema,
        name: &str,
        column: &str,
        value: &str,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let ids = self.find_ids(provider, schema, name, column, value).await?;
        let keys = ids
            .iter()
            .filter_map(|id| EntityKey::of_kind(schema.word, id));
        Ok(keys.collect())
    }

    /// The keys of the rows whose column has this value, also those that are no valid ids.
    async fn find_ids(
        &self,
        provider: ProviderId,
        schema: &EntitySchema,
        name: &str,
        column: &str,
        value: &str,
    ) -> Result<Vec<String>, DependencyError> {
        let index = ColumnIndex {
            client: &self.client,
            on_scan: self.on_scan,
            provider,
            table: self.application_table(schema)?,
            name,
            column,
            key: schema.key,
        };
        index.find_keys(value, HITS_MAX).await
    }

    /// The tenants that have this account now, by the index.
    async fn find_present_tenants(
        &self,
        account: &AccountId,
    ) -> Result<BTreeSet<TenantHit>, DependencyError> {
        let (provider, index) = (ProviderId::Stripe, ACCOUNT_COLUMN);
        let schema = &TenantKind::SCHEMA;
        let ids = self
            .find_ids(provider, schema, index, index, account.as_str())
            .await?;
        let (readable, unreadable): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| TenantId::parse(id).is_ok());
        let readable = readable.iter().filter_map(|id| TenantId::parse(id).ok());
        let mut hits: BTreeSet<TenantHit> = readable.map(TenantHit::Tenant).collect();
        if unreadable.is_empty() {
            return Ok(hits);
        }
        // The worker reads rows by valid ids only, so these are read here.
        let keys = unreadable.iter();
        let keys = keys.map(|id| Item::from([(schema.key.to_owned(), string_value(id))]));
        let wanted = HashMap::from([(self.application_table(schema)?.to_owned(), keys.collect())]);
        let rows = batch_get_rows(&self.client, wanted, None).await?;
        let bears = |row: &Item| read_text(row, ACCOUNT_COLUMN) == Some(account.as_str());
        let ids = rows
            .iter()
            .filter(|(_, row)| bears(row))
            .filter_map(|(_, row)| read_text(row, schema.key));
        hits.extend(ids.map(|id| TenantHit::Unreadable(id.to_owned())));
        Ok(hits)
    }

    /// The tenants that had this account before, by the note of it.
    async fn find_previous_tenants(
        &self,
        account: &AccountId,
    ) -> Result<BTreeSet<TenantHit>, DependencyError> {
        let notes = read_account_notes(&self.client, &self.tables.entities, [account]).await?;
        let noted = notes.into_iter().map(|(_, tenant)| tenant);
        Ok(noted.map(TenantHit::Tenant).collect())
    }

    /// The write of an entity's two rows. Refused if one of them would be too large.
    fn entity_actions(
        &self,
        entity: &Entity,
        row: &DynamoRow,
        next: &EntityUpdate,
        now: Timestamp,
        seal: &StateSealKeys,
    ) -> Result<Vec<TransactWriteItem>, CommitError> {
        let key = entity.key();
        let WrittenRows { columns, state } = build_write(entity, row, next, now)?;
        let mut actions = self.state_actions(&key.clone().into(), Some(row), state, seal)?;
        let action = TransactWriteItem::builder();
        let projection = match columns {
            Some(columns) => action.update(self.projection_update(entity, row, columns)?),
            None => action.condition_check(self.projection_check(entity, row)?),
        };
        actions.push(projection.build());
        Ok(actions)
    }

    /// The state's row, and the pages of its facts that change.
    fn state_actions(
        &self,
        key: &StateKey,
        row: Option<&DynamoRow>,
        mut state: Item,
        seal: &StateSealKeys,
    ) -> Result<Vec<TransactWriteItem>, CommitError> {
        // An update names it in its key alone.
        state.insert(STATE_KEY.to_owned(), string_value(key.to_string()));
        seal_state(&mut state, seal);
        let none = FactPages::new();
        let known = row.map_or(&none, |row| &row.pages);
        let pages = split_pages(&mut state, known);
        let (name, version) = (key.to_string(), state.get("version").cloned());
        let action = TransactWriteItem::builder();
        let mut actions = vec![action.update(self.state_update(key, row, state)?).build()];
        for page in known.keys().filter(|page| !pages.contains_key(*page)) {
            let delete = Delete::builder()
                .table_name(&self.tables.entities)
                .key(STATE_KEY, string_value(page_key(page, &name)))
                .build();
            let delete = delete.map_err(|error| CommitError::Refused(error.to_string()))?;
            actions.push(TransactWriteItem::builder().delete(delete).build());
        }
        let is_new = |(page, facts): &(String, Item)| known.get(page) != Some(facts);
        for (page, facts) in pages.into_iter().filter(is_new) {
            let mut update = UpdateBuilder::new();
            update.set("facts", Some(AttributeValue::M(facts)));
            update.set("version", version.clone());
            let key = page_key(&page, &name);
            let update = update.build_unguarded(&self.tables.entities, STATE_KEY, &key)?;
            actions.push(TransactWriteItem::builder().update(update).build());
        }
        Ok(actions)
    }

    fn state_update(
        &self,
        key: &StateKey,
        row: Option<&DynamoRow>,
        state: Item,
    ) -> Result<Update, CommitError> {
        check_size(key, "state", attributes::item_size(&state))?;
        let mut update = UpdateBuilder::new();
        let loaded = row.and_then(|row| row.state.as_ref());
        // In a fixed order, for people who compare two requests.
        for column in STATE_COLUMNS {
            let value = state.get(column.name);
            let was = loaded.and_then(|loaded| loaded.get(column.name));
            if column.name != STATE_KEY && (value.is_some() || was.is_some()) {
                update.set(column.name, value.cloned());
            }
        }
        // Another billhook writer. Case: stripe-worker adds a statement's payment while lob-worker adds its letter.
        // Both read version 7 and write all facts back; without this condition the second write would drop the first
        // one's facts.
        let version = loaded.and_then(|loaded| loaded.get("version"));
        update.require_as_loaded("version", version);
        update.build(&self.tables.entities, STATE_KEY, &key.to_string())
    }

    fn projection_update(
        &self,
        entity: &Entity,
        row: &DynamoRow,
        columns: ColumnUpdates,
    ) -> Result<Update, CommitError> {
        let key = entity.key();
        // The size after the write: the row as loaded, minus the old values of our columns, plus the new ones.
        let before = attributes::item_size(&row.item);
        let bytes = columns.iter().fold(before, |bytes, (name, value)| {
            let size = |value| attributes::attribute_size(name, value);
            bytes - row.item.get(*name).map_or(0, size) + value.as_ref().map_or(0, size)
        });
        check_size(&key.clone().into(), "row", bytes)?;
        let mut update = UpdateBuilder::new();
        for (name, value) in columns {
            update.set(name, value);
        }
        require_row_as_loaded(&mut update, entity, row);
        let schema = key.schema();
        update.build(self.application_table(schema)?, schema.key, key.id())
    }

    /// For a write that changes no column: the state rests on this row all the same.
    fn projection_check(
        &self,
        entity: &Entity,
        row: &DynamoRow,
    ) -> Result<ConditionCheck, CommitError> {
        let mut check = UpdateBuilder::new();
        let key = entity.key();
        let schema = key.schema();
        require_row_as_loaded(&mut check, entity, row);
        check.build_check(self.application_table(schema)?, schema.key, key.id())
    }
}

fn check_size(key: &StateKey, what: &str, bytes: usize) -> Result<(), CommitError> {
    match bytes > ROW_BYTES_MAX {
        true => Err(CommitError::Refused(format!(
            "the {what} of {key} would take {bytes} bytes, the limit is {ROW_BYTES_MAX} bytes"
        ))),
        false => Ok(()),
    }
}

fn require_row_as_loaded(update: &mut UpdateBuilder, entity: &Entity, row: &DynamoRow) {
    let key = entity.key();
    let schema = key.schema();
    // Columns of the application and of people. Case: we read `amountTotal` 4200 and a payment of 4200 and derive
    // `completed`; in between the application corrects the amount to 4500. The write fails, and the next round flags
    // `amount_mismatch`. Or a person sets `status` to `cancelled` in between: an unconditional write would undo that.
    for name in schema.guarded {
        update.require_as_loaded(name, row.item.get(*name));
    }
    // A copy that the application put back between our read and our write.
    let version = entity.row().rules.version_column.as_str();
    update.require_as_loaded(version, row.item.get(version));
    // What an adopted row says besides becomes a fact with this write.
    if entity.row().opening.is_some() {
        for name in [schema.amount_refunded, schema.review_reasons]
            .into_iter()
            .flatten()
        {
            update.require_as_loaded(name, row.item.get(name));
        }
    }
    // Tenant isolation: the event's tenant was compared with the row's. If the row moves to another tenant in between,
    // the write must not happen. A tenant's row is its own.
    if schema.tenant != schema.key {
        update.require_as_loaded(schema.tenant, row.item.get(schema.tenant));
    }
    // The row still exists. DynamoDB's update creates a missing row, so an order that the application deleted in
    // between would come back with only our columns.
    update.require_as_loaded(schema.key, row.item.get(schema.key));
    // The timeline is written as a whole. If the application appended an entry in between, our write would drop it.
    match row.item.get("timeline") {
        Some(AttributeValue::L(entries)) => update.require_size("timeline", entries.len()),
        other => update.require_as_loaded("timeline", other),
    }
}

/// Whether the row may have been read after a write, and the state before it. A tenant's row comes with each of its payments;
/// one that billhook has never written, because the application has a `version` of its own there, would be read again with
/// each of them, and never say anything else.
fn is_maybe_read_too_late(entity: &Entity) -> bool {
    let is_own_version = matches!(entity, Entity::Tenant(_)) && entity.version() == 0;
    entity.standing() == RowStanding::Ahead && !is_own_version
}

fn state_key(item: &Item) -> Option<StateKey> {
    read_text(item, STATE_KEY).and_then(StateKey::parse)
}

fn seal_error(doing: &str, error: SecretsError) -> DependencyError {
    DependencyError {
        doing: doing.to_owned(),
        disposition: error.disposition(),
        cause: error.into(),
    }
}

fn missing_table(variable: &str) -> DependencyError {
    DependencyError {
        doing: "find the table".to_owned(),
        disposition: Disposition::Permanent,
        cause: format!("{variable} is not set for this function").into(),
    }
}

impl<C: Clock> Ledger for DynamoLedger<C> {
    type Row = DynamoRow;

    fn row_bytes(row: &DynamoRow) -> usize {
        let state = row.state.as_ref().map_or(0, attributes::item_size);
        // Of pages, a transaction writes only those that change.
        let state = match row.pages.is_empty() {
            true => state,
            false => state.min(PAGED_BYTES_MAX),
        };
        attributes::item_size(&row.item) + state
    }

    fn changed_columns(
        entity: &Entity,
        row: &DynamoRow,
        next: &EntityUpdate,
        now: Timestamp,
    ) -> Vec<ChangedColumn> {
        changed_columns(entity, row, next, now)
    }

    fn timeline_events(row: &DynamoRow) -> BTreeSet<EventId> {
        timeline_events(row)
    }

    async fn load_events(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<StoredEvent>, DependencyError> {
        let rows = load_event_items(&self.client, &self.tables.events, ids, None).await?;
        let keys = self.seals.events.keys_for(rows.iter().map(read_seal)).await;
        let keys = keys.map_err(|error| seal_error("check the seals of events", error))?;
        let read = |row| read_stored_event(provider, row, &keys);
        Ok(rows.iter().filter_map(read).collect())
    }

    async fn load_rows(
        &self,
        keys: &BTreeSet<StateKey>,
    ) -> Result<LoadedRows<DynamoRow>, DependencyError> {
        for read in 1..=READS_MAX {
            let Some(rows) = self.try_load_rows(keys).await? else {
                continue;
            };
            // Two tables are not read at one time: the row may have been read after a write, and the state before it.
            let mut entities = rows.entities.values();
            let is_ahead = entities.any(|(entity, _)| is_maybe_read_too_late(entity));
            if !is_ahead || read == READS_MAX {
                return Ok(rows);
            }
        }
        Err(DependencyError {
            doing: format!("read {} states", keys.len()),
            disposition: Disposition::RetryLater,
            cause: format!("their pages were changed by others {READS_MAX} times").into(),
        })
    }

    async fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let found = join_all(ENTITY_SCHEMAS.iter().filter_map(|schema| {
            let column = schema.payment_intent?;
            let (provider, index) = (ProviderId::Stripe, "PaymentIntentIndex");
            Some(self.find_by_column(provider, schema, index, column, intent.as_str()))
        }));
        let found: Result<Vec<_>, _> = found.await.into_iter().collect();
        Ok(found?.concat())
    }

    async fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let (provider, index, column) = (ProviderId::Lob, "LobLetterIndex", PIECE_COLUMN);
        let schema = &StatementKind::SCHEMA;
        self.find_by_column(provider, schema, index, column, piece.as_str())
            .await
    }

    async fn tenants_by_account(
        &self,
        account: &AccountId,
        lookup: TenantLookup,
    ) -> Result<AccountHits, DependencyError> {
        let now = self.clock.now();
        if lookup == TenantLookup::MayBeCached
            && let Ok(known) = self.tenants.lock()
            && let Some((until, tenants)) = known.get(account)
            && now < *until
        {
            return Ok(AccountHits {
                present: tenants.clone(),
                is_cached: true,
                ..AccountHits::default()
            });
        }
        let tenants = self.find_present_tenants(account).await?;
        let previous = match tenants.is_empty() {
            true => self.find_previous_tenants(account).await?,
            false => BTreeSet::new(),
        };
        if let (false, Ok(mut known)) = (tenants.is_empty(), self.tenants.lock()) {
            if known.len() >= TENANT_CACHE_MAX {
                known.clear();
            }
            known.insert(
                account.clone(),
                (now.after(TENANT_CACHE_TTL), tenants.clone()),
            );
        }
        Ok(AccountHits {
            present: tenants,
            previous,
            is_cached: false,
        })
    }

    async fn commit(
        &self,
        _: ProviderId,
        parts: &[&CommitPart<'_, DynamoRow>],
    ) -> Result<(), CommitError> {
        let mut actions = Vec::new();
        let action = |update| TransactWriteItem::builder().update(update).build();
        for part in parts {
            for EntityWrite { entity, row, next } in &part.entities {
                let seal = self.state_seal().await?;
                actions.extend(self.entity_actions(entity, row, next, part.now, &seal)?);
            }
            for StateWrite { row, next, .. } in &part.states {
                let state = build_state(*row, next)?;
                let seal = self.state_seal().await?;
                actions.extend(self.state_actions(&next.key(), *row, state, &seal)?);
            }
            for update in &part.events {
                let events = &self.tables.events;
                actions.push(action(build_event_update(events, update, part.now)?));
            }
        }
        // DynamoDB charges a transaction twice the write units. An ignored event changes one row only: as a single
        // update it costs half. A condition protects a single row just as well.
        if let [
            TransactWriteItem {
                update: Some(_), ..
            },
        ] = actions.as_slice()
        {
            let update = actions.pop().and_then(|action| action.update);
            return match update {
                Some(update) => self.update_one(update).await,
                None => Ok(()),
            };
        }
        self.write_all(actions).await
    }
}

impl<C: Clock> DynamoLedger<C> {
    /// `None` if another writer changed the pages of a state between the two reads.
    async fn try_load_rows(
        &self,
        keys: &BTreeSet<StateKey>,
    ) -> Result<Option<LoadedRows<DynamoRow>>, DependencyError> {
        let mut wanted: HashMap<String, Vec<Item>> = HashMap::new();
        let mut schemas: HashMap<&str, &EntitySchema> = HashMap::new();
        for key in keys {
            let state = Item::from([(STATE_KEY.to_owned(), string_value(key.to_string()))]);
            let states = wanted.entry(self.tables.entities.clone());
            states.or_default().push(state);
            if let StateKey::Entity(key) = key {
                let schema = key.schema();
                let table = self.application_table(schema)?;
                schemas.insert(table, schema);
                let row = Item::from([(schema.key.to_owned(), string_value(key.id()))]);
                wanted.entry(table.to_owned()).or_default().push(row);
            }
        }
        let mut rows = LoadedRows::empty();
        let mut entities: BTreeMap<EntityKey, (Option<Item>, Option<Item>)> = BTreeMap::new();
        let mut items = batch_get_rows(&self.client, wanted, None).await?;
        let Some(mut pages) = self.load_pages(&mut items).await? else {
            return Ok(None);
        };
        let mut pages_of = |key: &StateKey| pages.remove(key).unwrap_or_default();
        let of_states = items
            .iter()
            .filter(|(table, _)| *table == self.tables.entities);
        let seals = of_states.map(|(_, state)| read_state_seal(state));
        let seal_keys = self.state_seal_keys(seals).await?;
        let is_forged = |state: &Item| {
            seal_keys
                .as_ref()
                .is_some_and(|keys| !is_genuine(state, keys))
        };
        for (table, item) in items {
            if table == self.tables.entities {
                let Some(key) = state_key(&item) else {
                    continue;
                };
                // A newer release may seal in another way.
                if check_schema(read_integer(&item, "schema")).is_ok() && is_forged(&item) {
                    rows.unreadable.insert(key, UnreadableRow::Tampered);
                    continue;
                }
                let unreadable = match &key {
                    StateKey::Entity(key) => {
                        entities.entry(key.clone()).or_default().1 = Some(item);
                        None
                    }
                    StateKey::Payment(payment) => read_payment(payment, item)
                        .map(|(read, mut row)| {
                            row.pages = pages_of(&key);
                            rows.payments.insert(payment.clone(), (read, row))
                        })
                        .err(),
                    StateKey::Invoice(invoice) => read_invoice(invoice, item)
                        .map(|(read, mut row)| {
                            row.pages = pages_of(&key);
                            rows.invoices.insert(invoice.clone(), (read, row))
                        })
                        .err(),
                };
                rows.unreadable
                    .extend(unreadable.map(|reason| (key, reason)));
            } else {
                let key = schemas.get(table.as_str()).and_then(|schema| {
                    EntityKey::of_kind(schema.word, read_text(&item, schema.key)?)
                });
                if let Some(key) = key {
                    if let EntityKey::Tenant(tenant) = &key {
                        let columns = read_tenant_row(&item);
                        rows.tenants.insert(tenant.clone(), columns);
                    }
                    entities.entry(key).or_default().0 = Some(item);
                }
            }
        }
        for (key, (row, state)) in entities {
            // Its state is not to be believed, and a row without a state would be a new entity.
            if rows.unreadable.contains_key(&StateKey::Entity(key.clone())) {
                continue;
            }
            match read_entity(&key, &self.tables.rules, row, state) {
                Ok((entity, mut row)) => {
                    row.pages = pages_of(&key.clone().into());
                    rows.entities.insert(key, (entity, row));
                }
                Err(reason) => drop(rows.unreadable.insert(key.into(), reason)),
            }
        }
        Ok(Some(rows))
    }

    /// The key that seals states. What changes no state needs none.
    async fn state_seal(&self) -> Result<Arc<StateSealKeys>, DependencyError> {
        let keys = self.seals.states.keys_for([]).await;
        keys.map_err(|error| seal_error("seal states", error))
    }

    /// None if the states are not checked.
    async fn state_seal_keys(
        &self,
        seals: impl IntoIterator<Item = Option<&[u8]>>,
    ) -> Result<Option<Arc<StateSealKeys>>, DependencyError> {
        match (self.seals.states.keys_for(seals).await, self.seals.check) {
            (Ok(keys), _) => Ok(Some(keys)),
            (Err(_), StateSealCheck::IfReadable) => Ok(None),
            (Err(error), StateSealCheck::Required) => {
                Err(seal_error("check the seals of states", error))
            }
        }
    }

    /// Reads the pages of these states, and puts their facts back into them.
    async fn load_pages(
        &self,
        items: &mut [(String, Item)],
    ) -> Result<Option<BTreeMap<StateKey, FactPages>>, DependencyError> {
        let mut states: Vec<(StateKey, &mut Item)> = Vec::new();
        for (table, item) in items {
            let is_paged = *table == self.tables.entities && !named_pages(item).is_empty();
            if let (true, Some(key)) = (is_paged, state_key(item)) {
                states.push((key, item));
            }
        }
        if states.is_empty() {
            return Ok(Some(BTreeMap::new()));
        }
        let keys = states.iter().flat_map(|(key, state)| {
            let pages = named_pages(state).iter();
            pages.map(|page| {
                let key = page_key(page, &key.to_string());
                Item::from([(STATE_KEY.to_owned(), string_value(key))])
            })
        });
        let wanted = HashMap::from([(self.tables.entities.clone(), keys.collect())]);
        let read = batch_get_rows(&self.client, wanted, None).await?;
        let read = read.into_iter().filter_map(|(_, row)| {
            let key = read_text(&row, STATE_KEY)?.to_owned();
            Some((key, row))
        });
        let mut read: HashMap<String, Item> = read.collect();
        let mut pages = BTreeMap::new();
        for (key, state) in states {
            let Some(its) = join_pages(state, &mut read) else {
                return Ok(None);
            };
            pages.insert(key, its);
        }
        Ok(Some(pages))
    }

    pub(super) async fn update_one(&self, update: Update) -> Result<(), CommitError> {
        let doing = format!("update a row of {}", update.table_name);
        match send_update(&self.client, update).await {
            Ok(()) => Ok(()),
            Err(error) => Err(classify_refusal(error.code().unwrap_or_default())
                .unwrap_or_else(|| dependency_error(doing, error).into())),
        }
    }

    async fn write_all(&self, actions: Vec<TransactWriteItem>) -> Result<(), CommitError> {
        let doing = format!("commit {} rows", actions.len());
        let sent = self
            .client
            .transact_write_items()
            .set_transact_items(Some(actions))
            .send()
            .await;
        let error = match sent {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if let SdkError::ServiceError(answer) = &error {
            use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError as Failed;
            if let Failed::TransactionCanceledException(cancelled) = answer.err() {
                let reasons: BTreeSet<&str> = cancelled
                    .cancellation_reasons()
                    .iter()
                    .filter_map(|reason| reason.code())
                    .collect();
                // DynamoDB gives one reason per row, and they may differ. A changed row decides, because everything
                // must be read again anyway: the order that was too large may be smaller by then. If no row
                // changed and none is refused, the store is only busy, and the same transaction may succeed later.
                for code in [
                    "ConditionalCheckFailed",
                    "ValidationError",
                    "ItemCollectionSizeLimitExceeded",
                ] {
                    if let (true, Some(refusal)) = (reasons.contains(code), classify_refusal(code))
                    {
                        return Err(refusal);
                    }
                }
                let codes: Vec<&str> = reasons.into_iter().filter(|code| *code != "None").collect();
                return Err(CommitError::Busy(codes.join(", ")));
            }
        }
        Err(classify_refusal(error.code().unwrap_or_default())
            .unwrap_or_else(|| dependency_error(doing, error).into()))
    }
}

/// What to do about an error code or a cancellation reason. `None` means that the outcome is unknown, for example after
/// a time-out: the transaction may have happened.
fn classify_refusal(code: &str) -> Option<CommitError> {
    match code {
        "ConditionalCheckFailed" | "ConditionalCheckFailedException" => Some(CommitError::LostRace),
        "ValidationError"
        | "ValidationException"
        | "ItemCollectionSizeLimitExceeded"
        | "ItemCollectionSizeLimitExceededException" => Some(CommitError::Refused(code.to_owned())),
        "TransactionConflictException"
        | "TransactionInProgressException"
        | "ThrottlingException"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded" => Some(CommitError::Busy(code.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_sdk_dynamodb::config::BehaviorVersion;
    use billhook_core::entity::kind::StatedFacts;
    use billhook_core::ids::{OrderId, StatementId};
    use billhook_core::outcome::{EventVerdict, IgnoreReason, ParkReason};
    use billhook_core::provider::lob::event::LobEvent;
    use billhook_core::provider::lob::mail::read_mail_facts;
    use billhook_testkit::events::{account_facts, letter, linked_facts};
    use serde_json::json;

    use billhook_core::entity::key::PaymentKey;
    use billhook_core::entity::merge::MinRegister;
    use billhook_core::entity::payment::linked::LinkState;
    use billhook_core::entity::payment::state::{
        LinkSource, NoticeReport, PaymentFacts, PaymentState,
    };
    use billhook_core::entity::rules::VersionColumn;
    use billhook_core::worker::ports::{EventUpdate, NextState};

    use billhook_core::seal::SealKeys as _;

    use super::*;
    use crate::clock::SystemClock;

    fn ledger() -> DynamoLedger<SystemClock> {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .build();
        DynamoLedger::new(
            Client::from_conf(config),
            TableNames::of_tests(),
            LedgerSeals::of_tests(),
            SystemClock,
            |_| (),
        )
    }

    fn seal_key() -> StateSealKeys {
        let text = json!({ "key": "k".repeat(64) }).to_string();
        StateSealKeys::parse(&text).unwrap()
    }

    fn row(json: serde_json::Value) -> Item {
        serde_dynamo::to_item(json).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000).unwrap()
    }

    /// An update with values instead of placeholders, so that a reviewer can read the snapshot.
    fn shown(update: Result<Update, CommitError>) -> String {
        let update = update.unwrap();
        let values = update.expression_attribute_values.unwrap_or_default();
        let names: BTreeMap<_, _> = update
            .expression_attribute_names
            .unwrap_or_default()
            .into_iter()
            .collect();
        let show = |value: &AttributeValue| {
            if matches!(value, AttributeValue::B(_)) {
                return "a seal".to_owned();
            }
            let json: serde_json::Value =
                serde_dynamo::from_attribute_value(value.clone()).unwrap();
            json.to_string()
        };
        let mut text = format!(
            "{} {:?}\n{}\nIF {}\n",
            update.table_name,
            update.key.values().map(show).collect::<Vec<_>>(),
            update.update_expression,
            update.condition_expression.unwrap_or_default()
        );
        // Longer placeholders first, because `:v1` is a prefix of `:v12`.
        let mut placeholders: Vec<_> = values.keys().collect();
        placeholders.sort_by_key(|placeholder| std::cmp::Reverse(placeholder.len()));
        for placeholder in placeholders {
            text = text.replace(placeholder.as_str(), &show(&values[placeholder]));
        }
        for (placeholder, name) in names {
            assert_eq!(placeholder, format!("#{name}"));
        }
        text.replace(", #", ",\n  #").replace(" AND ", "\n  AND ")
    }

    /// The row that a write leaves, where there was none.
    fn written_row(actions: &[TransactWriteItem]) -> Item {
        let update = actions[0].update().unwrap();
        let mut row = update.key.clone();
        let sets = update.update_expression.strip_prefix("SET ").unwrap();
        let sets = sets.split(" REMOVE ").next().unwrap();
        for set in sets.split(", ") {
            let (name, value) = set.split_once(" = ").unwrap();
            let values = update.expression_attribute_values.as_ref().unwrap();
            row.insert(
                name.trim_start_matches('#').to_owned(),
                values[value].clone(),
            );
        }
        row
    }

    #[test]
    fn what_is_read_of_a_state_is_what_was_sealed() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let order = row(
            json!({ "id": "ord_1", "status": "pending", "amountTotal": 4100, "currency": "usd" }),
        );
        let (entity, loaded) = read_entity(&key, &RowRules::default(), Some(order), None).unwrap();
        let next = entity.apply_facts(paid(), now());
        let actions = ledger().entity_actions(&entity, &loaded, &next, now(), &seal_key());
        let read = written_row(&actions.unwrap());
        assert_eq!(read["entity"], string_value("order#ord_1"));
        assert!(is_genuine(&read, &seal_key()));
        let mut changed = read;
        changed.insert("version".to_owned(), string_value("9"));
        assert!(!is_genuine(&changed, &seal_key()));
    }

    fn paid() -> Vec<StatedFacts> {
        let event = json!({ "id": "evt_1", "type": "payment_intent.succeeded", "created": 1_781_000_000,
            "account": "acct_1", "data": { "object": { "id": "pi_1", "object": "payment_intent",
            "amount_received": 4100, "currency": "usd" } } });
        linked_facts([&event])
    }

    fn next_write(
        ledger: &DynamoLedger<SystemClock>,
        key: &EntityKey,
        item: Item,
    ) -> Result<Vec<TransactWriteItem>, CommitError> {
        let (entity, row) = read_entity(key, &RowRules::default(), Some(item), None).unwrap();
        ledger.entity_actions(
            &entity,
            &row,
            &entity.apply_facts(paid(), now()),
            now(),
            &seal_key(),
        )
    }

    /// Both writes of an entity.
    fn both(actions: Result<Vec<TransactWriteItem>, CommitError>) -> String {
        let actions = actions
            .unwrap()
            .into_iter()
            .map(|action| shown(Ok(action.update.unwrap())));
        actions.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn an_orders_write_holds_its_row_as_loaded() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let item = row(
            json!({ "id": "ord_1", "tenantId": "ten_1", "status": "pending", "amountTotal": 4200,
            "currency": "usd", "timeline": [{ "type": "note", "at": "2026-01-01", "actor": "application" }] }),
        );
        insta::assert_snapshot!(both(next_write(&ledger(), &key, item)));
    }

    #[test]
    fn a_statements_write_leaves_its_mail_alone_while_only_money_is_known() {
        let key = EntityKey::Statement(StatementId::parse("st_1").unwrap());
        let item = row(
            json!({ "statement_id": "st_1", "amount_due": 4100, "currency": "usd", "version": 7,
            "mail_status": "mailed" }),
        );
        insta::assert_snapshot!(both(next_write(&ledger(), &key, item)));
    }

    /// The write of an order by these rules, with its conditions.
    fn order_write(rules: &RowRules, columns: serde_json::Value) -> String {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let (entity, row) = read_entity(&key, rules, Some(row(columns)), None).unwrap();
        let next = entity.apply_facts(paid(), now());
        let actions = ledger().entity_actions(&entity, &row, &next, now(), &seal_key());
        shown(Ok(actions.unwrap().pop().unwrap().update.unwrap()))
    }

    #[test]
    fn an_orms_own_version_is_neither_written_nor_a_condition() {
        let rules = RowRules {
            version_column: VersionColumn::parse("billhookVersion").unwrap(),
            ..RowRules::default()
        };
        let columns = json!({ "id": "ord_1", "amountTotal": 4100, "currency": "usd", "version": 57,
            "billhookVersion": 0 });
        let write = order_write(&rules, columns);
        assert!(write.contains("SET #billhookVersion = 1"), "{write}");
        assert!(write.contains("AND #billhookVersion = 0"), "{write}");
        assert!(!write.contains("#version"), "{write}");
    }

    #[test]
    fn what_an_adopted_row_says_is_a_condition_of_its_first_write() {
        let rules = RowRules {
            adopted_before: Some(now()),
            ..RowRules::default()
        };
        let columns = |created_at: &str| {
            json!({ "id": "ord_1", "amountTotal": 4100, "currency": "usd", "status": "completed",
                "amountRefunded": 700, "createdAt": created_at })
        };
        let adopted = order_write(&rules, columns("2026-06-01"));
        let conditions = [
            "AND #amountRefunded = 700",
            "AND attribute_not_exists(#reviewReasons)",
        ];
        for condition in conditions {
            assert!(adopted.contains(condition), "{adopted}");
        }
        let later = order_write(&rules, columns("2026-07-01"));
        for condition in conditions {
            assert!(!later.contains(condition), "{later}");
        }
    }

    fn account_updated() -> StatedFacts {
        let event = json!({ "id": "evt_2", "type": "account.updated", "created": 1_781_000_000,
            "account": "acct_1", "data": { "object": { "id": "acct_1", "object": "account",
            "charges_enabled": true, "payouts_enabled": false } } });
        StatedFacts::Account(account_facts(&event))
    }

    fn returned() -> StatedFacts {
        let event = letter(
            "evt_3",
            "2026-06-09T10:13:20.000Z",
            "ltr_1",
            "returned_to_sender",
        );
        let event = LobEvent::parse(event.to_string().as_bytes()).unwrap();
        StatedFacts::Mail(read_mail_facts(&event).unwrap().unwrap())
    }

    #[test]
    fn a_tenants_write_has_no_timeline_and_only_the_accounts_columns() {
        let key = EntityKey::Tenant(TenantId::parse("ten_1").unwrap());
        let item = row(json!({ "tenant_id": "ten_1", "stripe_connected_account_id": "acct_1" }));
        let (entity, row) = read_entity(&key, &RowRules::default(), Some(item), None).unwrap();
        let next = entity.apply_facts([account_updated()], now());
        insta::assert_snapshot!(both(ledger().entity_actions(
            &entity,
            &row,
            &next,
            now(),
            &seal_key()
        )));
    }

    fn everything() -> Vec<StatedFacts> {
        [paid(), vec![returned(), account_updated()]].concat()
    }

    #[test]
    fn what_a_write_stores_reads_back_as_the_row_that_was_derived() {
        let rows = [
            (
                "order#ord_1",
                json!({ "id": "ord_1", "tenantId": "ten_1", "amountTotal": 4100, "currency": "usd" }),
            ),
            (
                "statement#st_1",
                json!({ "statement_id": "st_1", "amount_due": 4200, "currency": "usd",
                "lob_letter_id": "ltr_1" }),
            ),
            (
                "tenant#ten_1",
                json!({ "tenant_id": "ten_1", "stripe_connected_account_id": "acct_1", "version": 4 }),
            ),
        ];
        for (key, columns) in rows {
            let key = EntityKey::parse(key).unwrap();
            let mut item = row(columns);
            let (entity, loaded) =
                read_entity(&key, &RowRules::default(), Some(item.clone()), None).unwrap();
            let mut next = entity.apply_facts(everything(), now());
            next.record_events([(&EventId::parse("evt_1").unwrap(), Some(now()))]);
            let write = build_write(&entity, &loaded, &next, now()).unwrap();
            set_columns(&mut item, write.columns.unwrap());
            let (again, loaded) =
                read_entity(&key, &RowRules::default(), Some(item), Some(write.state)).unwrap();
            assert_eq!(again, next.with_row_written());
            assert_ne!(again, entity);

            // The same facts once more change no column, so the application's row is only checked.
            let same = again.apply_facts(everything(), now());
            let actions = ledger().entity_actions(&again, &loaded, &same, now(), &seal_key());
            let [state, projection] = <[_; 2]>::try_from(actions.unwrap()).unwrap();
            assert!(state.update.is_some() && projection.update.is_none());
            let check = projection.condition_check.unwrap();
            assert!(check.condition_expression().contains("#version = :"));
        }
    }

    /// Pages have no condition, so none is ever written without the state's row, which has one.
    #[test]
    fn a_large_state_is_written_in_pages_under_the_version_of_its_row() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let item = row(json!({ "id": "ord_1", "amountTotal": 4200, "currency": "usd" }));
        let (entity, loaded) = read_entity(&key, &RowRules::default(), Some(item), None).unwrap();
        let refunds: Vec<_> = (0..600)
            .map(|n| {
                let (id, refund) = (format!("evt_{n}"), format!("re_{n}"));
                billhook_testkit::events::refund(&id, 1, &refund, ("pi_1", "ch_1"), 1, "succeeded")
            })
            .collect();
        let next = entity.apply_facts(linked_facts(&refunds), now());
        let actions = ledger().entity_actions(&entity, &loaded, &next, now(), &seal_key());
        let [state, pages @ .., row] = &actions.unwrap()[..] else {
            panic!("the state's row and the application's");
        };
        let condition = |action: &TransactWriteItem| {
            let update = action.update.as_ref().unwrap();
            update.condition_expression.clone()
        };
        let of_state = condition(state);
        assert_eq!(of_state.as_deref(), Some("attribute_not_exists(#version)"));
        assert!(
            condition(row).is_some() && pages.len() >= 2,
            "{}",
            pages.len()
        );
        assert!(pages.iter().all(|page| condition(page).is_none()));
        let unguarded = UpdateBuilder::new().build("table", "id", "ord_1");
        assert!(matches!(unguarded, Err(CommitError::Refused(_))));
    }

    fn set_columns(item: &mut Item, columns: ColumnUpdates) {
        for (name, value) in columns {
            match value {
                Some(value) => item.insert(name.to_owned(), value),
                None => item.remove(name),
            };
        }
    }

    #[test]
    fn an_edit_that_became_a_fact_is_written_although_no_column_changes() {
        let key = EntityKey::parse("order#ord_1").unwrap();
        let mut item = row(json!({ "id": "ord_1", "amountTotal": 4100, "currency": "usd" }));
        let (entity, loaded) =
            read_entity(&key, &RowRules::default(), Some(item.clone()), None).unwrap();
        let next = entity.apply_facts(paid(), now());
        let write = build_write(&entity, &loaded, &next, now()).unwrap();
        set_columns(&mut item, write.columns.unwrap());
        for name in ["status", "paymentStatus"] {
            item.insert(name.to_owned(), string_value("refunded"));
        }
        let (edited, loaded) = read_entity(
            &key,
            &RowRules::default(),
            Some(item.clone()),
            Some(write.state),
        )
        .unwrap();
        // Written once: then the row and the state agree.
        let next = edited.apply_facts([], now());
        let write = build_write(&edited, &loaded, &next, now()).unwrap();
        set_columns(&mut item, write.columns.unwrap());
        let (again, loaded) =
            read_entity(&key, &RowRules::default(), Some(item), Some(write.state)).unwrap();
        let write = build_write(&again, &loaded, &again.apply_facts([], now()), now()).unwrap();
        assert_eq!(write.columns, None);
    }

    #[test]
    fn what_a_newer_release_added_to_the_facts_survives_our_write() {
        let key = EntityKey::parse("order#ord_1").unwrap();
        let item = row(json!({ "id": "ord_1", "amountTotal": 4100, "currency": "usd" }));
        let (entity, loaded) =
            read_entity(&key, &RowRules::default(), Some(item.clone()), None).unwrap();
        let next = entity.apply_facts(paid(), now());
        let mut state = build_write(&entity, &loaded, &next, now()).unwrap().state;
        let mut newer: serde_json::Value = serde_dynamo::from_item(state).unwrap();
        newer["facts"]["coupons"] = json!({ "co_1": 500 });
        newer["facts"]["payments"]["payment#acct_1#pi_1"]["mandate"] = json!("mandate_1");
        newer["issued"] = json!({ "fulfil": 1 });
        state = serde_dynamo::to_item(&newer).unwrap();
        let (entity, loaded) =
            read_entity(&key, &RowRules::default(), Some(item), Some(state)).unwrap();
        let next = entity.apply_facts(paid(), now());
        let write = build_write(&entity, &loaded, &next, now()).unwrap();
        let written: serde_json::Value = serde_dynamo::from_item(write.state).unwrap();
        assert_eq!(written["facts"], newer["facts"]);
        // An attribute of the row that we do not know is in no expression of ours.
        let actions = ledger().entity_actions(&entity, &loaded, &next, now(), &seal_key());
        let [state, _] = <[_; 2]>::try_from(actions.unwrap()).unwrap();
        let expression = state.update.unwrap().update_expression;
        assert!(!expression.contains("issued"), "{expression}");
    }

    #[test]
    fn an_events_end_is_conditional_on_nobody_having_ended_it() {
        let ledger = ledger();
        let end = |verdict| {
            let update = EventUpdate {
                event: EventId::parse("evt_1").unwrap(),
                tenant: Some(TenantId::parse("ten_1").unwrap()),
                entities: match verdict {
                    EventVerdict::Processed => [StateKey::parse("order#ord_1").unwrap()].into(),
                    _ => BTreeSet::new(),
                },
                verdict,
            };
            shown(build_event_update(&ledger.tables.events, &update, now()))
        };
        insta::assert_snapshot!(
            [
                end(EventVerdict::Processed),
                end(EventVerdict::Ignored(IgnoreReason::UnhandledType)),
                end(EventVerdict::Parked(ParkReason::OrderUnknown)),
            ]
            .join("\n")
        );
    }

    #[test]
    fn a_payments_write_holds_its_version_and_keeps_what_it_does_not_know() {
        let key = PaymentKey::parse("payment#acct_1#pi_1").unwrap();
        let mut first = PaymentState::new(key.clone()).next_state(
            PaymentFacts::default(),
            None,
            BTreeSet::new(),
        );
        first.note_open(now(), NoticeReport::ByWriter);
        let write = |row: Option<&DynamoRow>, next: PaymentState| {
            let next = NextState::Payment(next);
            let state = build_state(row, &next).unwrap();
            ledger().state_update(&next.key(), row, state)
        };
        let created = shown(write(None, first.clone()));
        let opened = first.open.clone();
        let mut stored = build_state(None, &NextState::Payment(first)).unwrap();
        stored.insert(STATE_KEY.to_owned(), string_value(key.to_string()));
        let mut newer: serde_json::Value = serde_dynamo::from_item(stored).unwrap();
        newer["facts"]["mandate"] = json!("mandate_1");
        let item = serde_dynamo::to_item(&newer).unwrap();
        let (read, row) = read_payment(&key, item).unwrap();
        // A recheck compares it, to see whether the payment has to leave the index.
        assert_eq!(read.open, opened);
        let mut facts = read.facts.clone();
        let order = EntityKey::parse("order#ord_1").unwrap();
        let sources = [(LinkSource::Metadata, MinRegister(now()))];
        facts.links.insert(order.clone(), sources.into());
        let mut next = read.next_state(facts, None, BTreeSet::new());
        next.record_copy(&order, LinkState::Linked);
        next.note_open(now(), NoticeReport::ByWriter);
        let written = shown(write(Some(&row), next));
        insta::assert_snapshot!([created, written].join("\n"));
    }

    #[test]
    fn a_row_that_would_grow_too_large_is_refused_by_its_size() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let large = |notes, updated: usize| {
            row(
                json!({ "id": "ord_1", "notes": "x".repeat(notes), "updatedAt": "x".repeat(updated) }),
            )
        };
        for item in [large(ROW_BYTES_MAX, 0), large(ROW_BYTES_MAX - 200, 0)] {
            let refused = next_write(&ledger(), &key, item);
            let Err(CommitError::Refused(reason)) = refused else {
                panic!("{refused:?}");
            };
            assert!(reason.contains("the limit is 307200 bytes"), "{reason}");
        }
        // A value that is overwritten no longer counts.
        let shrinks = large(ROW_BYTES_MAX - 4_000, 5_000);
        assert!(next_write(&ledger(), &key, shrinks).is_ok());
    }

    #[test]
    fn a_row_that_is_not_ours_to_read_says_why() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        for (item, state, reason) in [
            (
                json!({}),
                Some(json!({ "schema": 1, "version": 1, "facts": "none" })),
                "the state cannot be read: Expected map",
            ),
            (
                json!({}),
                Some(json!({ "schema": 99, "version": 1, "facts": "a form of its own" })),
                "its state has schema version 99; this release reads up to 1",
            ),
        ] {
            let read = read_entity(&key, &RowRules::default(), Some(row(item)), state.map(row));
            assert_eq!(read.unwrap_err().to_string(), reason);
        }
    }
}
