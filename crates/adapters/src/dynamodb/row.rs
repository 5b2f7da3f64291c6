//! What the three kinds of entity rows have in common: their schema, the row as loaded, and how a value becomes an
//! attribute.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::payment::derive::DerivedPayment;
use billhook_core::entity::schema::FACTS_SCHEMA;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;

use super::attributes::{Item, number_value, string_value};

/// What the write's condition needs of a loaded row beside the entity: the attributes as they stood.
#[derive(Debug)]
pub struct LoadedRow {
    pub(super) item: Item,
    /// Timeline entries that others wrote.
    pub(super) foreign_entries: Vec<AttributeValue>,
}

/// The names of a table and of its columns.
pub(super) struct RowSchema {
    pub(super) table: String,
    pub(super) key: &'static str,
    pub(super) tenant: &'static str,
    pub(super) amount: Option<&'static str>,
    pub(super) intent: Option<&'static str>,
    pub(super) facts: &'static str,
    /// The columns that a person or the application may change and the decision rests on: the write's condition.
    pub(super) guarded: &'static [&'static str],
}

/// The columns of a write; `None` removes one.
pub(super) type ColumnUpdates = Vec<(&'static str, Option<AttributeValue>)>;

pub(super) fn from_attribute<T: serde::de::DeserializeOwned>(
    value: AttributeValue,
) -> Result<T, String> {
    serde_dynamo::from_attribute_value(value)
        .map_err(|error| format!("the facts cannot be read: {error}"))
}

pub(super) fn to_attribute<T: serde::Serialize>(value: &T) -> Result<AttributeValue, CommitError> {
    serde_dynamo::to_attribute_value(value).map_err(|error| CommitError::Refused(error.to_string()))
}

/// A member of the stored facts; an empty map where it was never written.
pub(super) fn stored_part(members: &Item, name: &str) -> AttributeValue {
    let part = members.get(name).cloned();
    part.unwrap_or_else(|| AttributeValue::M(HashMap::new()))
}

/// The number of the stored form, beside the facts.
pub(super) fn schema_member() -> (String, AttributeValue) {
    ("schema".to_owned(), number_value(FACTS_SCHEMA))
}

/// Whether a review is required, and the reasons. DynamoDB takes no empty set, so that without reasons the column goes.
pub(super) fn review_columns(
    payment: &DerivedPayment,
) -> (Option<AttributeValue>, Option<AttributeValue>) {
    let reasons: Vec<String> = payment.review_reasons.iter().cloned().collect();
    let requires_review = Some(AttributeValue::Bool(!reasons.is_empty()));
    (
        requires_review,
        (!reasons.is_empty()).then_some(AttributeValue::Ss(reasons)),
    )
}

pub(super) fn time_value(at: Timestamp) -> AttributeValue {
    string_value(at.to_string())
}
