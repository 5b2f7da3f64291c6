//! What the rows of orders, statements and tenants have in common: their schema (names of table and columns), the row
//! as it was loaded (for the optimistic lock), and the conversion of facts to attributes and back.
//!
//! Read `entities` for how a row becomes an entity, and `ledger` for the conditions of its write.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use billhook_core::entity::payment::derive::DerivedPayment;
use billhook_core::entity::schema::FACTS_SCHEMA;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;

use super::attributes::{Item, number_value, string_value};

/// A row as it was read. The write's conditions compare with it.
#[derive(Debug)]
pub struct DynamoRow {
    pub(super) item: Item,
    /// Timeline entries of the application and the operator, which we write back unchanged.
    pub(super) foreign_entries: Vec<AttributeValue>,
}

/// Names of a table and of its columns; a table without such a column has `None`.
pub(super) struct RowSchema {
    pub(super) table: String,
    pub(super) key: &'static str,
    pub(super) tenant: &'static str,
    pub(super) amount: Option<&'static str>,
    pub(super) intent: Option<&'static str>,
    pub(super) facts: &'static str,
    /// Columns that a person or the application may change and that our decision depends on: the write fails if one of
    /// them is not as it was read.
    pub(super) guarded: &'static [&'static str],
}

/// `None` removes the column.
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

/// A member of the stored facts; an empty map if it was never written.
pub(super) fn stored_part(members: &Item, name: &str) -> AttributeValue {
    let part = members.get(name).cloned();
    part.unwrap_or_else(|| AttributeValue::M(HashMap::new()))
}

/// The version of the facts' format, which is stored with them.
pub(super) fn schema_member() -> (String, AttributeValue) {
    ("schema".to_owned(), number_value(FACTS_SCHEMA))
}

/// The columns `requiresReview` and `reviewReasons`. DynamoDB rejects an empty set, so the second column is removed if
/// there is no reason.
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
