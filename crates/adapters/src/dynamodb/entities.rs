//! Entities (orders, statements, tenants): how the application's row and the state's row become an entity, and what a
//! write of them contains. It only converts between attributes and the neutral values of
//! `billhook_core::entity::columns`; each kind reads and writes its own columns there.
//!
//! The application's columns are read leniently: a value that we cannot use counts as missing. Our state is read
//! strictly: if it cannot be read, the event is parked as `entity_unreadable`, because writing it would destroy the
//! facts. Only attributes that we know are written, never a whole row, and members that we do not know stay.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::columns::{
    ColumnType, ColumnValue, EntitySchema, RowColumns, TimelineFields,
};
use billhook_core::entity::inspect::ColumnFault;
use billhook_core::entity::invoice::InvoiceState;
use billhook_core::entity::key::{InvoiceKey, PaymentKey};
use billhook_core::entity::payment::state::PaymentState;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::rules::RowRules;
use billhook_core::entity::schema::{StoredState, UnreadableRow, check_schema};
use billhook_core::entity::tenant::{TenantColumns, read_tenant_columns};
use billhook_core::entity::timeline::{ACTOR, DerivedEntry, TimelineEntry, merge_timelines};
use billhook_core::entity::{Entity, EntityKey, EntityUpdate, find_row_faults};
use billhook_core::ids::EventId;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{ChangedColumn, CommitError, NextState};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::attributes::{self, Item, number_value, read_text, string_value};
use super::pages::FactPages;

/// The rows of an entity, payment or invoice as they were read. The write's conditions compare with them.
#[derive(Debug, Default)]
pub struct DynamoRow {
    /// The application's row; empty if there is none.
    pub(super) item: Item,
    /// Timeline entries of the application and the operator, which we write back unchanged.
    foreign_entries: Vec<AttributeValue>,
    /// The state's row; `None` if billhook has not written the entity yet.
    pub(super) state: Option<Item>,
    /// The rows that have the state's facts, if they are too large for its own.
    pub(super) pages: FactPages,
}

impl DynamoRow {
    fn of_state(state: Item) -> Self {
        Self {
            state: Some(state),
            ..Self::default()
        }
    }
}

/// `None` removes the column.
pub(super) type ColumnUpdates = Vec<(&'static str, Option<AttributeValue>)>;

struct ItemColumns<'a>(&'a Item);

impl RowColumns for ItemColumns<'_> {
    fn column_type(&self, column: &str) -> Option<ColumnType> {
        Some(match self.0.get(column)? {
            AttributeValue::Null(_) => return None,
            AttributeValue::S(_) => ColumnType::Text,
            AttributeValue::N(_) => ColumnType::Integer,
            AttributeValue::Bool(_) => ColumnType::Bool,
            AttributeValue::Ss(_) => ColumnType::TextSet,
            AttributeValue::L(_) => ColumnType::List,
            AttributeValue::M(_) => ColumnType::Map,
            AttributeValue::B(_) => ColumnType::Bytes,
            _ => ColumnType::Other,
        })
    }

    fn text(&self, column: &str) -> Option<&str> {
        read_text(self.0, column)
    }

    fn integer(&self, column: &str) -> Option<i64> {
        attributes::read_integer(self.0, column)
    }

    fn number(&self, column: &str) -> Option<String> {
        self.0.get(column)?.as_n().ok().cloned()
    }

    fn truth(&self, column: &str) -> Option<bool> {
        attributes::read_bool(self.0, column)
    }

    fn texts(&self, column: &str) -> BTreeSet<String> {
        match self.0.get(column) {
            Some(AttributeValue::Ss(texts)) => texts.iter().cloned().collect(),
            Some(AttributeValue::L(list)) => {
                let texts = list.iter().filter_map(|text| text.as_s().ok());
                texts.cloned().collect()
            }
            _ => BTreeSet::new(),
        }
    }

    fn has_own_entries(&self) -> bool {
        let entries = self.0.get("timeline").and_then(|list| list.as_l().ok());
        entries.is_some_and(|entries| entries.iter().any(is_derived_entry))
    }

    fn timeline_entries(&self, kind: &str) -> Vec<TimelineFields> {
        let entries = self.0.get("timeline").and_then(|list| list.as_l().ok());
        let entries = entries.into_iter().flatten();
        let entries = entries.filter_map(|entry| entry.as_m().ok());
        let of_kind = entries.filter(|entry| read_text(entry, "type") == Some(kind));
        let text = |entry: &Item, name| read_text(entry, name).map(str::to_owned);
        of_kind
            .map(|entry| TimelineFields {
                at: text(entry, "at"),
                actor: text(entry, "actor"),
                actor_id: text(entry, "actorId"),
                reason: entry
                    .get("meta")
                    .and_then(|meta| text(meta.as_m().ok()?, "reason")),
            })
            .collect()
    }
}

struct LoadedState<'a>(&'a Item);

impl StoredState for LoadedState<'_> {
    fn read<R: DeserializeOwned>(&self) -> Result<R, UnreadableRow> {
        check_schema(attributes::read_integer(self.0, "schema"))?;
        serde_dynamo::from_item(self.0.clone())
            .map_err(|error| UnreadableRow::Broken(format!("the state cannot be read: {error}")))
    }
}

fn to_attribute<T: Serialize>(value: &T) -> Result<AttributeValue, CommitError> {
    serde_dynamo::to_attribute_value(value).map_err(|error| CommitError::Refused(error.to_string()))
}

fn to_item<T: Serialize>(value: &T) -> Result<Item, CommitError> {
    serde_dynamo::to_item(value).map_err(|error| CommitError::Refused(error.to_string()))
}

fn column_attribute(value: ColumnValue) -> AttributeValue {
    match value {
        ColumnValue::Text(text) => string_value(text),
        ColumnValue::Integer(integer) => number_value(integer),
        ColumnValue::Bool(truth) => AttributeValue::Bool(truth),
        ColumnValue::TextSet(texts) => AttributeValue::Ss(texts.into_iter().collect()),
        ColumnValue::Time(at) => string_value(at.to_string()),
    }
}

/// What billhook could not use of a row that the application made.
pub fn find_item_faults(schema: &EntitySchema, rules: &RowRules, item: &Item) -> Vec<ColumnFault> {
    find_row_faults(schema, rules, &ItemColumns(item))
}

/// Which accounts a tenant's row says that it has, whether or not its state can be read.
pub fn read_tenant_row(row: &Item) -> TenantColumns {
    read_tenant_columns(&ItemColumns(row))
}

pub(super) fn read_entity(
    key: &EntityKey,
    rules: &RowRules,
    item: Option<Item>,
    state: Option<Item>,
) -> Result<(Entity, DynamoRow), UnreadableRow> {
    let entity = key.read(
        rules,
        item.as_ref().map(ItemColumns).as_ref(),
        state.as_ref().map(LoadedState).as_ref(),
    )?;
    let item = item.unwrap_or_default();
    let entries = item.get("timeline").and_then(|list| list.as_l().ok());
    let others = entries
        .into_iter()
        .flatten()
        .filter(|entry| !is_derived_entry(entry));
    Ok((
        entity,
        DynamoRow {
            foreign_entries: others.cloned().collect(),
            item,
            state,
            pages: FactPages::new(),
        },
    ))
}

pub(super) fn read_payment(
    key: &PaymentKey,
    state: Item,
) -> Result<(PaymentState, DynamoRow), UnreadableRow> {
    let payment = PaymentState::read(key.clone(), &LoadedState(&state))?;
    Ok((payment, DynamoRow::of_state(state)))
}

pub(super) fn read_invoice(
    key: &InvoiceKey,
    state: Item,
) -> Result<(InvoiceState, DynamoRow), UnreadableRow> {
    let invoice = InvoiceState::read(key.clone(), &LoadedState(&state))?;
    Ok((invoice, DynamoRow::of_state(state)))
}

/// The attributes of a row that only billhook has.
pub(super) fn build_state(row: Option<&DynamoRow>, next: &NextState) -> Result<Item, CommitError> {
    let mut state = stored_item(next)?;
    if let Some(loaded) = row.and_then(|row| row.state.as_ref()) {
        let known = match next {
            NextState::Payment(next) => {
                let was = PaymentState::read(next.key.clone(), &LoadedState(loaded));
                was.map(NextState::Payment)
            }
            NextState::Invoice(next) => {
                let was = InvoiceState::read(next.key.clone(), &LoadedState(loaded));
                was.map(NextState::Invoice)
            }
        };
        let known = known.map_err(|error| CommitError::Refused(error.to_string()))?;
        keep_unknown_members(loaded, &stored_item(&known)?, &mut state);
    }
    Ok(state)
}

fn stored_item(state: &NextState) -> Result<Item, CommitError> {
    match state {
        NextState::Payment(payment) => to_item(&payment.to_row()),
        NextState::Invoice(invoice) => to_item(&invoice.to_row()),
    }
}

fn is_derived_entry(entry: &AttributeValue) -> bool {
    entry
        .as_m()
        .is_ok_and(|members| read_text(members, "actor") == Some(ACTOR))
}

/// What a write of an entity contains.
pub(super) struct WrittenRows {
    /// The columns of the application's row; `None` if none of them changes.
    pub(super) columns: Option<ColumnUpdates>,
    /// The attributes of the state's row.
    pub(super) state: Item,
}

/// The columns of billhook in the application's row with their new values. The timeline is rewritten as a whole: our
/// entries derived again from the facts, merged with everybody else's as they were loaded.
fn build_columns(
    entity: &Entity,
    row: &DynamoRow,
    next: &EntityUpdate,
    now: Timestamp,
) -> Result<ColumnUpdates, CommitError> {
    let mut columns = ColumnUpdates::new();
    let version = entity.row().rules.version_column.as_str();
    if next.may_write(version) {
        columns.push((version, Some(number_value(next.version()))));
    }
    if entity.key().schema().has_timeline() && next.may_write("timeline") {
        columns.push(("timeline", Some(build_timeline(row, next)?)));
    }
    let updated_at = entity.key().schema().updated_at;
    if next.may_write(updated_at) {
        columns.push((updated_at, Some(string_value(now.to_string()))));
    }
    let projected = next.write_columns().into_iter();
    columns.extend(projected.map(|(name, value)| (name, value.map(column_attribute))));
    Ok(columns)
}

/// The columns with another value than the row has. Every write changes its version and the time of the write, and they
/// say nothing about the entity.
fn new_columns<'c>(
    entity: &Entity,
    row: &DynamoRow,
    columns: &'c ColumnUpdates,
) -> Vec<&'c (&'static str, Option<AttributeValue>)> {
    let bookkeeping = [
        entity.row().rules.version_column.as_str(),
        entity.key().schema().updated_at,
    ];
    let is_new = |(name, value): &&(&str, Option<AttributeValue>)| {
        !bookkeeping.contains(name) && row.item.get(*name) != value.as_ref()
    };
    columns.iter().filter(is_new).collect()
}

/// The columns of the application's row that a write changes, as people read them.
pub(super) fn changed_columns(
    entity: &Entity,
    row: &DynamoRow,
    next: &EntityUpdate,
    now: Timestamp,
) -> Vec<ChangedColumn> {
    let Ok(columns) = build_columns(entity, row, next, now) else {
        return Vec::new();
    };
    let changed = new_columns(entity, row, &columns).into_iter();
    let changed = changed.map(|(name, value)| {
        let found = row.item.get(*name);
        let (found, next) = match (found, value) {
            (Some(AttributeValue::L(found)), Some(AttributeValue::L(next))) => {
                (describe_others(found, next), describe_others(next, found))
            }
            (found, next) => (found.map(show_attribute), next.as_ref().map(show_attribute)),
        };
        ChangedColumn {
            column: (*name).to_owned(),
            found,
            next,
        }
    });
    changed.collect()
}

/// The entries of a timeline that the other one does not have.
fn describe_others(entries: &[AttributeValue], others: &[AttributeValue]) -> Option<String> {
    let own = entries.iter().filter(|entry| !others.contains(entry));
    let shown: Vec<String> = own.map(show_attribute).collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn show_attribute(value: &AttributeValue) -> String {
    match value {
        AttributeValue::S(text) => text.clone(),
        AttributeValue::N(number) => number.clone(),
        AttributeValue::Bool(truth) => truth.to_string(),
        AttributeValue::Ss(texts) => {
            let texts: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
            texts.into_iter().collect::<Vec<_>>().join(", ")
        }
        AttributeValue::L(entries) => describe_others(entries, &[]).unwrap_or_default(),
        AttributeValue::M(members) => {
            let at = |name| read_text(members, name).unwrap_or("?");
            format!("{} at {}", at("type"), at("at"))
        }
        AttributeValue::Null(_) => "null".to_owned(),
        _ => "a value of another type".to_owned(),
    }
}

/// The events that billhook's entries in the timeline name.
pub(super) fn timeline_events(row: &DynamoRow) -> BTreeSet<EventId> {
    let entries = row.item.get("timeline").and_then(|list| list.as_l().ok());
    let own = entries
        .into_iter()
        .flatten()
        .filter(|entry| is_derived_entry(entry));
    let named = own.filter_map(|entry| read_text(entry.as_m().ok()?, "eventId"));
    named.filter_map(|id| EventId::parse(id).ok()).collect()
}

pub(super) fn build_write(
    entity: &Entity,
    row: &DynamoRow,
    next: &EntityUpdate,
    now: Timestamp,
) -> Result<WrittenRows, CommitError> {
    let columns = match next.standing() {
        RowStanding::Missing => ColumnUpdates::new(),
        _ => build_columns(entity, row, next, now)?,
    };
    // A manual edit that became a fact is written too, so that it is found once.
    let is_edited = next.must_write_row();
    let is_new = !new_columns(entity, row, &columns).is_empty();
    let columns = (is_edited || is_new).then_some(columns);
    let stored = match columns {
        Some(_) => next.with_row_written(),
        None => next.next(),
    };
    let mut state = to_item(&stored.to_row())?;
    if let Some(loaded) = &row.state {
        keep_unknown_members(loaded, &to_item(&entity.to_row())?, &mut state);
    }
    Ok(WrittenRows { columns, state })
}

/// Keeps what a newer release wrote into the maps of a state under the same number: members that were loaded and that
/// this release does not know, wherever their surroundings still exist. Whole attributes that it does not know are in no
/// expression of ours, so they stay in any case.
fn keep_unknown_members(loaded: &Item, known: &Item, next: &mut Item) {
    for (name, next) in next {
        if let (
            Some(AttributeValue::M(was)),
            Some(AttributeValue::M(known)),
            AttributeValue::M(next),
        ) = (loaded.get(name), known.get(name), next)
        {
            keep_unknown(was, known, next);
        }
    }
}

fn keep_unknown(loaded: &Item, known: &Item, next: &mut Item) {
    for (name, was) in loaded {
        match (known.get(name), next.get_mut(name)) {
            (None, None) => {
                next.insert(name.clone(), was.clone());
            }
            (Some(AttributeValue::M(known)), Some(AttributeValue::M(next))) => {
                if let AttributeValue::M(was) = was {
                    keep_unknown(was, known, next);
                }
            }
            _ => {}
        }
    }
}

fn build_timeline(row: &DynamoRow, next: &EntityUpdate) -> Result<AttributeValue, CommitError> {
    let merged = merge_timelines(next.timeline(), row.foreign_entries.clone(), |entry| {
        entry
            .as_m()
            .ok()
            .and_then(|members| read_text(members, "at"))
            .map(str::to_owned)
    });
    let entries = merged.into_iter().map(|entry| match entry {
        TimelineEntry::Derived(entry) => build_entry_value(&entry),
        TimelineEntry::Foreign(entry) => Ok(entry),
    });
    Ok(AttributeValue::L(entries.collect::<Result<_, _>>()?))
}

fn build_entry_value(entry: &DerivedEntry) -> Result<AttributeValue, CommitError> {
    let mut members = HashMap::from([
        ("type".to_owned(), string_value(&entry.kind)),
        ("at".to_owned(), string_value(entry.at.to_string())),
        ("actor".to_owned(), string_value(ACTOR)),
        ("actorType".to_owned(), string_value("system")),
        ("actorId".to_owned(), string_value(entry.stated_by)),
        ("meta".to_owned(), to_attribute(&entry.meta)?),
    ]);
    if let Some(event) = &entry.event {
        members.insert("eventId".to_owned(), string_value(event.as_str()));
    }
    Ok(AttributeValue::M(members))
}
