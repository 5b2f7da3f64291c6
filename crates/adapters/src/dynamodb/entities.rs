//! Entity rows (orders, statements, tenants): how a row becomes an entity, and which columns an update of it writes.
//!
//! Columns of the application are read leniently: a value that we cannot use counts as missing. Our own facts are read
//! strictly: if they cannot be read, the event is parked as `entity_unreadable`, because writing the row would destroy
//! them. Only our own columns are written, never the whole row. `orders`, `statements` and `tenants` name the columns.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::schema::{FACTS_SCHEMA, GuardedColumns, LastDerived};
use billhook_core::entity::timeline::{ACTOR, DerivedEntry, TimelineEntry, merge_timelines};
use billhook_core::entity::{Entity, EntityFacts, EntityKey, EntityUpdate};
use billhook_core::ids::{AccountId, CheckoutSessionId, PaymentIntentId, PieceId, TenantId};
use billhook_core::money::{Currency, Money};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;

use super::attributes::{self, Item, number_value, read_text, string_value};
use super::row::{ColumnUpdates, DynamoRow, RowSchema, from_attribute, stored_part, to_attribute};
use super::{orders, statements, tenants};

/// The `Err` is the reason why the row cannot be read; its events are parked as `entity_unreadable`.
pub(super) fn read_entity(
    key: &EntityKey,
    schema: &RowSchema,
    item: Item,
) -> Result<(Entity, DynamoRow), String> {
    let facts_and_derived = match item.get(schema.facts) {
        None => (EntityFacts::default(), LastDerived::default()),
        Some(value) => read_facts(key, value)?,
    };
    let foreign_entries = match item.get("timeline") {
        Some(AttributeValue::L(entries)) => entries
            .iter()
            .filter(|entry| !is_derived_entry(entry))
            .cloned()
            .collect(),
        None => Vec::new(),
        Some(_) => return Err("the timeline is not a list".to_owned()),
    };
    let due = schema
        .amount
        .and_then(|amount| attributes::read_integer(&item, amount))
        .zip(read_text(&item, "currency"))
        .and_then(|(amount, currency)| {
            Some(Money {
                amount,
                currency: Currency::parse(currency).ok()?,
            })
        });
    let columns = match key {
        EntityKey::Order(_) => orders::read_columns(&item),
        EntityKey::Statement(_) => statements::read_columns(&item),
        EntityKey::Tenant(_) => GuardedColumns::default(),
    };
    let entity = Entity {
        key: key.clone(),
        version: attributes::read_integer(&item, "version").unwrap_or(0),
        tenant: read_text(&item, schema.tenant).and_then(|id| TenantId::parse(id).ok()),
        due,
        intent: schema
            .intent
            .and_then(|intent| read_text(&item, intent))
            .and_then(|id| PaymentIntentId::parse(id).ok()),
        session: read_text(&item, "stripeCheckoutSessionId")
            .and_then(|id| CheckoutSessionId::parse(id).ok()),
        user: read_text(&item, "userId").map(str::to_owned),
        piece: read_text(&item, "lob_letter_id").and_then(|id| PieceId::parse(id).ok()),
        account: read_text(&item, "stripe_connected_account_id")
            .and_then(|id| AccountId::parse(id).ok()),
        columns,
        derived: facts_and_derived.1,
        facts: facts_and_derived.0,
    };
    Ok((
        entity,
        DynamoRow {
            item,
            foreign_entries,
        },
    ))
}

fn read_facts(
    key: &EntityKey,
    stored: &AttributeValue,
) -> Result<(EntityFacts, LastDerived), String> {
    let AttributeValue::M(members) = stored else {
        return Err("the facts are not a map".to_owned());
    };
    if attributes::read_integer(members, "schema").unwrap_or(0) > FACTS_SCHEMA {
        // During a rollback an older function may meet facts of a newer one. It does not know all of their fields, so
        // writing the row would drop them.
        return Err(format!("the facts have a schema newer than {FACTS_SCHEMA}"));
    }
    let derived = from_attribute(stored_part(members, "derived"))?;
    let facts = match key {
        EntityKey::Order(_) => orders::read_facts(stored)?,
        EntityKey::Statement(_) => statements::read_facts(members)?,
        EntityKey::Tenant(_) => tenants::read_facts(stored)?,
    };
    Ok((facts, derived))
}

fn is_derived_entry(entry: &AttributeValue) -> bool {
    entry
        .as_m()
        .is_ok_and(|members| read_text(members, "actor") == Some(ACTOR))
}

/// The columns of billhook with their new values; `None` removes a column. The timeline is rewritten as a whole: our
/// entries derived again from the facts, merged with everybody else's as they were loaded.
pub(super) fn build_columns(
    entity: &Entity,
    row: &DynamoRow,
    next: &EntityUpdate,
    now: Timestamp,
) -> Result<ColumnUpdates, CommitError> {
    let merged = merge_timelines(next.timeline(), row.foreign_entries.clone(), |entry| {
        entry
            .as_m()
            .ok()
            .and_then(|members| read_text(members, "at"))
            .map(str::to_owned)
    });
    let mut entries = Vec::new();
    for entry in merged {
        entries.push(match entry {
            TimelineEntry::Derived(entry) => build_entry_value(&entry)?,
            TimelineEntry::Foreign(entry) => entry,
        });
    }
    let derived = to_attribute(&next.derived)?;
    let mut columns: ColumnUpdates = vec![(
        "version",
        Some(number_value(entity.version.saturating_add(1))),
    )];
    let timeline = ("timeline", Some(AttributeValue::L(entries)));
    match entity.key {
        EntityKey::Tenant(_) => columns.extend(tenants::build_columns(next)?),
        EntityKey::Order(_) => {
            columns.push(timeline);
            columns.extend(orders::build_columns(next, derived, now)?);
        }
        EntityKey::Statement(_) => {
            columns.push(timeline);
            columns.extend(statements::build_columns(next, derived)?);
        }
    }
    Ok(columns)
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
