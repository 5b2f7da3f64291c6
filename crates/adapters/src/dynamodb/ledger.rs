//! The worker's ledger: rows read consistently in batches, and written in one transaction whose conditions are the rows
//! as read (an optimistic lock).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem, Update};
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::error::DependencyError;
use billhook_core::ids::{
    AccountId, EventId, OrderId, PaymentIntentId, PieceId, ProviderId, StatementId, TenantId,
};
use billhook_core::ports::Clock;
use billhook_core::retry::Disposition;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{
    CommitError, CommitPart, Ledger, LoadedRows, PaymentKey, StoredEvent,
};

use super::attributes::{self, Item, read_text, string_value};
use super::batch_get::batch_get_rows;
use super::events::{build_event_update, load_event_items, read_stored_event};
use super::index::ColumnIndex;
use super::payments::{build_payment_update, read_payment_row};
use super::row::{LoadedRow, RowSchema};
use super::update::UpdateBuilder;
use super::{dependency_error, entities, orders, send_update, statements, tenants};
use crate::metrics;

/// A row beyond this is not written: the rest of DynamoDB's 400 KB is the application's.
const ROW_BYTES_MAX: usize = 300 * 1024;
/// How long a tenant is remembered. Misses never are.
const TENANT_KEPT: Duration = Duration::from_secs(60);
const TENANTS_KEPT_MAX: usize = 1_000;

/// The tables of one worker. Those of the other provider's half may be absent.
#[derive(Clone, Debug, Default)]
pub struct TableNames {
    /// The provider's events.
    pub events: String,
    /// The application's orders.
    pub orders: Option<String>,
    /// The application's statements.
    pub statements: String,
    /// The application's tenants.
    pub tenants: Option<String>,
    /// Which entity a payment belongs to.
    pub payments: Option<String>,
}

/// The ledger on DynamoDB.
#[derive(Debug)]
pub struct DynamoLedger<C> {
    pub(super) client: Client,
    pub(super) tables: TableNames,
    clock: C,
    tenants: Mutex<HashMap<AccountId, (Timestamp, Vec<TenantId>)>>,
}

impl<C: Clock> DynamoLedger<C> {
    /// Over a client and its tables.
    pub fn new(client: Client, tables: TableNames, clock: C) -> Self {
        Self {
            client,
            tables,
            clock,
            tenants: Mutex::default(),
        }
    }

    pub(super) fn orders_table(&self) -> Result<String, DependencyError> {
        require_table(self.tables.orders.as_ref(), "ORDERS_TABLE")
    }

    fn tenants_table(&self) -> Result<String, DependencyError> {
        require_table(self.tables.tenants.as_ref(), "TENANTS_TABLE")
    }

    fn payments_table(&self) -> Result<String, DependencyError> {
        require_table(self.tables.payments.as_ref(), "PAYMENTS_TABLE")
    }

    fn schema(&self, key: &EntityKey) -> Result<RowSchema, DependencyError> {
        Ok(match key {
            EntityKey::Order(_) => orders::order_schema(self.orders_table()?),
            EntityKey::Statement(_) => statements::statement_schema(self.tables.statements.clone()),
            EntityKey::Tenant(_) => tenants::tenant_schema(self.tenants_table()?),
        })
    }

    /// The keys that hold a value. Two are enough to know that it is not one.
    async fn lookup_keys(
        &self,
        table: &str,
        name: &str,
        column: &str,
        value: &str,
        key: &str,
    ) -> Result<Vec<String>, DependencyError> {
        let client = &self.client;
        let index = ColumnIndex {
            client,
            table,
            name,
            column,
            key,
        };
        index.find_keys(value, 2).await
    }

    fn entity_update(
        &self,
        entity: &Entity,
        row: &LoadedRow,
        next: &EntityUpdate,
        now: Timestamp,
    ) -> Result<Update, CommitError> {
        let schema = self.schema(&entity.key)?;
        let columns = entities::build_columns(entity, row, next, now)?;
        let before = attributes::item_size(&row.item);
        let bytes = columns.iter().fold(before, |bytes, (name, value)| {
            let size = |value| attributes::attribute_size(name, value);
            bytes - row.item.get(*name).map_or(0, size) + value.as_ref().map_or(0, size)
        });
        if bytes > ROW_BYTES_MAX {
            return Err(CommitError::Refused(format!(
                "{} would take {bytes} of {ROW_BYTES_MAX} bytes",
                entity.key
            )));
        }
        let mut update = UpdateBuilder::new();
        for (name, value) in columns {
            update.set(name, value);
        }
        for name in schema.guarded {
            update.require_as_loaded(name, row.item.get(*name));
        }
        update.require_as_loaded("version", row.item.get("version"));
        // The write itself carries that the row is still this tenant's, and still there.
        update.require_as_loaded(schema.tenant, row.item.get(schema.tenant));
        update.require_as_loaded(schema.key, row.item.get(schema.key));
        match row.item.get("timeline") {
            Some(AttributeValue::L(entries)) => update.require_size("timeline", entries.len()),
            other => update.require_as_loaded("timeline", other),
        }
        update.build(&schema.table, schema.key, entity.key.id())
    }
}

fn require_table(table: Option<&String>, variable: &str) -> Result<String, DependencyError> {
    table.cloned().ok_or_else(|| DependencyError {
        doing: "find the table".to_owned(),
        disposition: Disposition::Permanent,
        cause: format!("{variable} is not set for this function").into(),
    })
}

impl<C: Clock> Ledger for DynamoLedger<C> {
    type Row = LoadedRow;

    async fn load_events(
        &self,
        _: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<StoredEvent>, DependencyError> {
        let rows = load_event_items(&self.client, &self.tables.events, ids, None).await?;
        Ok(rows.iter().filter_map(read_stored_event).collect())
    }

    async fn load_rows(
        &self,
        entities: &BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> Result<LoadedRows<LoadedRow>, DependencyError> {
        let mut wanted: HashMap<String, Vec<Item>> = HashMap::new();
        for key in entities {
            let schema = self.schema(key)?;
            wanted.entry(schema.table).or_default().push(Item::from([(
                schema.key.to_owned(),
                string_value(key.id()),
            )]));
        }
        let by_row_key: BTreeMap<String, &PaymentKey> =
            payments.iter().map(|p| (p.row_key(), p)).collect();
        if !by_row_key.is_empty() {
            let table = self.payments_table()?;
            let keys = by_row_key
                .keys()
                .map(|key| Item::from([("payment_id".to_owned(), string_value(key))]));
            wanted.entry(table).or_default().extend(keys);
        }
        let mut rows = LoadedRows {
            entities: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            payments: BTreeMap::new(),
        };
        for (table, item) in batch_get_rows(&self.client, wanted, None).await? {
            if Some(&table) == self.tables.payments.as_ref() {
                let key = read_text(&item, "payment_id").and_then(|key| by_row_key.get(key));
                rows.payments
                    .extend(key.map(|key| ((*key).clone(), read_payment_row(&item))));
                continue;
            }
            let key = if table == self.tables.statements {
                read_text(&item, "statement_id")
                    .and_then(|id| StatementId::parse(id).ok())
                    .map(EntityKey::Statement)
            } else if Some(&table) == self.tables.tenants.as_ref() {
                read_text(&item, "tenant_id")
                    .and_then(|id| TenantId::parse(id).ok())
                    .map(EntityKey::Tenant)
            } else {
                read_text(&item, "id")
                    .and_then(|id| OrderId::parse(id).ok())
                    .map(EntityKey::Order)
            };
            let Some(key) = key else { continue };
            match entities::read_entity(&key, &self.schema(&key)?, item) {
                Ok(loaded) => {
                    rows.entities.insert(key, loaded);
                }
                Err(reason) => {
                    rows.unreadable.insert(key, reason);
                }
            }
        }
        Ok(rows)
    }

    async fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let orders = self.orders_table()?;
        let (index, intent) = ("PaymentIntentIndex", intent.as_str());
        let (orders, statements) = tokio::join!(
            self.lookup_keys(&orders, index, "stripePaymentIntentId", intent, "id"),
            self.lookup_keys(
                &self.tables.statements,
                index,
                "stripe_payment_intent_id",
                intent,
                "statement_id"
            ),
        );
        let orders = orders?
            .into_iter()
            .filter_map(|id| OrderId::parse(&id).ok())
            .map(EntityKey::Order);
        Ok(orders.chain(parse_statement_keys(statements?)).collect())
    }

    async fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        let table = &self.tables.statements;
        let found = self
            .lookup_keys(
                table,
                "LobLetterIndex",
                "lob_letter_id",
                piece.as_str(),
                "statement_id",
            )
            .await?;
        Ok(parse_statement_keys(found).collect())
    }

    async fn tenants_by_account(
        &self,
        account: &AccountId,
    ) -> Result<Vec<TenantId>, DependencyError> {
        let now = self.clock.now();
        if let Ok(known) = self.tenants.lock()
            && let Some((until, tenants)) = known.get(account)
            && now < *until
        {
            return Ok(tenants.clone());
        }
        let table = self.tenants_table()?;
        let column = tenants::ACCOUNT;
        let found = self
            .lookup_keys(&table, column, column, account.as_str(), "tenant_id")
            .await?;
        let tenants: Vec<_> = found
            .iter()
            .filter_map(|id| TenantId::parse(id).ok())
            .collect();
        if let (false, Ok(mut known)) = (tenants.is_empty(), self.tenants.lock()) {
            if known.len() >= TENANTS_KEPT_MAX {
                known.clear();
            }
            known.insert(account.clone(), (now.after(TENANT_KEPT), tenants.clone()));
        }
        Ok(tenants)
    }

    async fn commit(
        &self,
        provider: ProviderId,
        commits: &[CommitPart<'_, LoadedRow>],
    ) -> Result<(), CommitError> {
        let mut updates = Vec::new();
        for commit in commits {
            if let Some((entity, row, next)) = commit.entity {
                updates.push(self.entity_update(entity, row, next, commit.now)?);
            }
            for concluded in &commit.events {
                updates.push(build_event_update(
                    &self.tables.events,
                    concluded,
                    commit.now,
                )?);
            }
            for (payment, write) in &commit.payments {
                let table = self.payments_table()?;
                updates.push(build_payment_update(&table, payment, write)?);
            }
        }
        // One row alone needs no transaction, which costs twice.
        match <[Update; 1]>::try_from(updates) {
            Ok([update]) => self.update_one(update).await,
            Err(updates) => self.update_all(updates).await,
        }?;
        for commit in commits {
            let Some((entity, _, next)) = commit.entity else {
                continue;
            };
            metrics::count_entity_changes(provider, entity, next);
            let event_id = commit
                .events
                .first()
                .map_or("", |event| event.event.as_str());
            for edit in &next.discarded_edits {
                let (column, found, written) = (edit.column, &edit.found, &edit.written);
                tracing::warn!(entity = %entity.key, column, found, written, event_id, "edit_overruled");
            }
        }
        Ok(())
    }
}

impl<C: Clock> DynamoLedger<C> {
    async fn update_one(&self, update: Update) -> Result<(), CommitError> {
        let doing = format!("update a row of {}", update.table_name);
        match send_update(&self.client, update).await {
            Ok(()) => Ok(()),
            Err(error) => Err(classify_refusal(error.code().unwrap_or_default())
                .unwrap_or_else(|| dependency_error(doing, error).into())),
        }
    }

    async fn update_all(&self, updates: Vec<Update>) -> Result<(), CommitError> {
        let doing = format!("commit {} rows", updates.len());
        let actions = updates
            .into_iter()
            .map(|update| TransactWriteItem::builder().update(update).build());
        let sent = self
            .client
            .transact_write_items()
            .set_transact_items(Some(actions.collect()))
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
                // A changed row wins over a conflict: it must be read again in any case.
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

/// What an error code, or a cancellation reason, leaves to do; `None` where only a later try can tell.
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

fn parse_statement_keys(ids: Vec<String>) -> impl Iterator<Item = EntityKey> {
    ids.into_iter()
        .filter_map(|id| StatementId::parse(&id).ok())
        .map(EntityKey::Statement)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_sdk_dynamodb::config::BehaviorVersion;
    use billhook_core::entity::EntityFacts;
    use billhook_core::outcome::{EventVerdict, IgnoreReason, ParkReason};
    use billhook_core::provider::stripe::event::StripeEvent;
    use billhook_core::provider::stripe::payments::read_payment_facts;
    use serde_json::json;

    use billhook_core::worker::ports::{EventUpdate, PaymentWrite};

    use super::*;
    use crate::clock::SystemClock;

    fn ledger() -> DynamoLedger<SystemClock> {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .build();
        let tables = TableNames {
            events: "events".to_owned(),
            orders: Some("orders".to_owned()),
            statements: "statements".to_owned(),
            tenants: Some("tenants".to_owned()),
            payments: Some("payments".to_owned()),
        };
        DynamoLedger::new(Client::from_conf(config), tables, SystemClock)
    }

    fn row(json: serde_json::Value) -> Item {
        serde_dynamo::to_item(json).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_unix_s(1_781_000_000).unwrap()
    }

    /// An update as a reviewer wants to read it: values in place of their placeholders.
    fn shown(update: Result<Update, CommitError>) -> String {
        let update = update.unwrap();
        let values = update.expression_attribute_values.unwrap_or_default();
        let names: BTreeMap<_, _> = update
            .expression_attribute_names
            .unwrap_or_default()
            .into_iter()
            .collect();
        let show = |value: &AttributeValue| {
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
        // The longer placeholder first: `:v1` is the beginning of `:v12`.
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

    fn paid() -> EntityFacts {
        let event = json!({ "id": "evt_1", "type": "payment_intent.succeeded", "created": 1_781_000_000,
            "account": "acct_1", "data": { "object": { "id": "pi_1", "object": "payment_intent",
            "amount_received": 4100, "currency": "usd" } } });
        let event = StripeEvent::parse(event.to_string().as_bytes()).unwrap();
        let payment = read_payment_facts(&event).unwrap().unwrap();
        EntityFacts {
            payment,
            ..EntityFacts::default()
        }
    }

    fn next_write(
        ledger: &DynamoLedger<SystemClock>,
        key: &EntityKey,
        item: Item,
    ) -> Result<Update, CommitError> {
        let schema = ledger.schema(key).unwrap();
        let (entity, row) = entities::read_entity(key, &schema, item).unwrap();
        ledger.entity_update(&entity, &row, &entity.apply_facts(paid(), now()), now())
    }

    #[test]
    fn an_orders_write_holds_its_row_as_loaded() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let item = row(
            json!({ "id": "ord_1", "tenantId": "ten_1", "status": "pending", "amountTotal": 4200,
            "currency": "usd", "timeline": [{ "type": "note", "at": "2026-01-01", "actor": "application" }] }),
        );
        insta::assert_snapshot!(shown(next_write(&ledger(), &key, item)));
    }

    #[test]
    fn a_statements_write_leaves_its_mail_alone_while_only_money_is_known() {
        let key = EntityKey::Statement(StatementId::parse("st_1").unwrap());
        let item = row(
            json!({ "statement_id": "st_1", "amount_due": 4100, "currency": "usd", "version": 7,
            "mail_status": "mailed" }),
        );
        insta::assert_snapshot!(shown(next_write(&ledger(), &key, item)));
    }

    #[test]
    fn an_events_end_is_conditional_on_nobody_having_ended_it() {
        let ledger = ledger();
        let end = |verdict, waited| {
            let concluded = EventUpdate {
                event: EventId::parse("evt_1").unwrap(),
                tenant: Some(TenantId::parse("ten_1").unwrap()),
                verdict,
                waited,
            };
            shown(build_event_update(&ledger.tables.events, &concluded, now()))
        };
        insta::assert_snapshot!(
            [
                end(EventVerdict::Processed, false),
                end(EventVerdict::Processed, true),
                end(EventVerdict::Ignored(IgnoreReason::UnhandledType), false),
                end(EventVerdict::Parked(ParkReason::Unlinked), false),
            ]
            .join("\n")
        );
    }

    #[test]
    fn a_payments_row_is_linked_once_and_waits_until_then() {
        let table = ledger().payments_table().unwrap();
        let payment = PaymentKey {
            account: Some(AccountId::parse("acct_1").unwrap()),
            intent: PaymentIntentId::parse("pi_1").unwrap(),
        };
        let link = |version| PaymentWrite::Link {
            entity: EntityKey::Order(OrderId::parse("ord_1").unwrap()),
            version,
        };
        let wait = PaymentWrite::Wait {
            events: [EventId::parse("evt_1").unwrap()].into(),
            version: 2,
        };
        insta::assert_snapshot!(
            [link(0), link(3), wait]
                .map(|write| shown(build_payment_update(&table, &payment, &write)))
                .join("\n")
        );
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
            assert!(reason.contains("of 307200 bytes"), "{reason}");
        }
        // What is written over counts no more.
        let shrinks = large(ROW_BYTES_MAX - 4_000, 5_000);
        assert!(next_write(&ledger(), &key, shrinks).is_ok());
    }

    #[test]
    fn a_row_that_is_not_ours_to_read_says_why() {
        let key = EntityKey::Order(OrderId::parse("ord_1").unwrap());
        let schema = ledger().schema(&key).unwrap();
        for (item, reason) in [
            (json!({ "timeline": "none" }), "the timeline is no list"),
            (json!({ "stripe": "none" }), "the facts are no map"),
            (
                json!({ "stripe": { "schema": 3 } }),
                "the facts are of a newer form than 2",
            ),
        ] {
            assert_eq!(
                entities::read_entity(&key, &schema, row(item)).unwrap_err(),
                reason
            );
        }
    }
}
