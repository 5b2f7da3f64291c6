//! Entity rows (orders, statements, tenants): how a row becomes an entity, and which columns an update of it writes.
//! It only converts between attributes and the neutral values of `billhook_core::entity::columns`; each kind reads and
//! writes its own columns there.
//!
//! Columns of the application are read leniently: a value that we cannot use counts as missing. Our own facts are read
//! strictly: if they cannot be read, the event is parked as `entity_unreadable`, because writing the row would destroy
//! them. Only our own columns are written, never the whole row.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::columns::{ColumnValue, EntitySchema, RowColumns, RowHistory};
use billhook_core::entity::schema::{FACTS_SCHEMA, LastDerived};
use billhook_core::entity::timeline::{ACTOR, DerivedEntry, TimelineEntry, merge_timelines};
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::attributes::{self, Item, number_value, read_text, string_value};

/// A row as it was read. The write's conditions compare with it.
#[derive(Debug)]
pub struct DynamoRow {
    pub(super) item: Item,
    /// Timeline entries of the application and the operator, which we write back unchanged.
    foreign_entries: Vec<AttributeValue>,
}

/// `None` removes the column.
type ColumnUpdates = Vec<(&'static str, Option<AttributeValue>)>;

struct ItemColumns<'a>(&'a Item);

impl RowColumns for ItemColumns<'_> {
    fn text(&self, column: &str) -> Option<&str> {
        read_text(self.0, column)
    }

    fn integer(&self, column: &str) -> Option<i64> {
        attributes::read_integer(self.0, column)
    }

    fn truth(&self, column: &str) -> Option<bool> {
        attributes::read_bool(self.0, column)
    }

    fn facts<F: DeserializeOwned + Default>(
        &self,
        column: &str,
    ) -> Result<(F, LastDerived), String> {
        let Some(stored) = self.0.get(column) else {
            return Ok(Default::default());
        };
        let AttributeValue::M(members) = stored else {
            return Err("the facts are not a map".to_owned());
        };
        if attributes::read_integer(members, "schema").unwrap_or(0) > FACTS_SCHEMA {
            // During a rollback an older function may meet facts of a newer one. It does not know all of their fields,
            // so writing the row would drop them.
            return Err(format!("the facts have a schema newer than {FACTS_SCHEMA}"));
        }
        let last_derived = members.get("derived").map_or_else(
            || Ok(LastDerived::default()),
            |derived| from_attribute(derived.clone()),
        )?;
        Ok((from_attribute(stored.clone())?, last_derived))
    }
}

fn from_attribute<T: DeserializeOwned>(value: AttributeValue) -> Result<T, String> {
    serde_dynamo::from_attribute_value(value)
        .map_err(|error| format!("the facts cannot be read: {error}"))
}

fn to_attribute<T: Serialize>(value: &T) -> Result<AttributeValue, CommitError> {
    serde_dynamo::to_attribute_value(value).map_err(|error| CommitError::Refused(error.to_string()))
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

/// The `Err` is the reason why the row cannot be read; its events are parked as `entity_unreadable`.
pub(super) fn read_entity(key: &EntityKey, item: Item) -> Result<(Entity, DynamoRow), String> {
    let entity = key.read_row(&ItemColumns(&item))?;
    let foreign_entries = match item.get("timeline") {
        Some(AttributeValue::L(entries)) => entries
            .iter()
            .filter(|entry| !is_derived_entry(entry))
            .cloned()
            .collect(),
        None => Vec::new(),
        Some(_) => return Err("the timeline is not a list".to_owned()),
    };
    Ok((
        entity,
        DynamoRow {
            item,
            foreign_entries,
        },
    ))
}

fn is_derived_entry(entry: &AttributeValue) -> bool {
    entry
        .as_m()
        .is_ok_and(|members| read_text(members, "actor") == Some(ACTOR))
}

/// The columns of billhook with their new values; `None` removes a column. The timeline is rewritten as a whole: our
/// entries derived again from the facts, merged with everybody else's as they were loaded.
pub(super) fn build_columns(
    schema: &EntitySchema,
    row: &DynamoRow,
    next: &EntityUpdate,
    now: Timestamp,
) -> Result<ColumnUpdates, CommitError> {
    let mut columns: ColumnUpdates = vec![("version", Some(number_value(next.version())))];
    let mut facts = to_attribute(&next.stored_facts())?;
    if let AttributeValue::M(members) = &mut facts {
        members.insert("schema".to_owned(), number_value(FACTS_SCHEMA));
        if schema.history == RowHistory::Recorded {
            members.insert("derived".to_owned(), to_attribute(next.last_derived())?);
            columns.push(("timeline", Some(build_timeline(row, next)?)));
        }
    }
    columns.push((schema.facts, Some(facts)));
    let projected = next.write_columns(now).into_iter();
    columns.extend(projected.map(|(name, value)| (name, value.map(column_attribute))));
    Ok(columns)
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
