//! Columns of an entity's row, without DynamoDB: what a kind says about its table, and the values that it reads and
//! writes. `adapters::dynamodb::entities` converts the values to attributes and back.

use std::collections::BTreeSet;

use crate::time::Timestamp;

/// The column of billhook's version, as the schemas name it; `rules::VersionColumn` says its name in the tables.
pub const VERSION: &str = "version";

/// The table of an entity kind.
#[derive(Clone, Copy, Debug)]
pub struct EntitySchema {
    /// The kind in keys and messages: `order` in `order#ord_1`.
    pub word: &'static str,
    /// The table without its prefix. The stack's output for `Orders` is `OrdersTable`.
    pub table: &'static str,
    pub key: &'static str,
    /// The column of the tenant that the row belongs to (tenant isolation).
    pub tenant: &'static str,
    /// The column of the PaymentIntent; the table's `PaymentIntentIndex` is on it.
    pub payment_intent: Option<&'static str>,
    /// The indexes of the table that functions and the operator's tool query; `billhook doctor` looks at them.
    pub indexes: &'static [EntityIndex],
    /// The column of the time at which the application made the row.
    pub created_at: Option<&'static str>,
    /// The column of the time of the last write, billhook's and the application's.
    pub updated_at: &'static str,
    /// The column of the amount due; its currency is in `currency`.
    pub amount_due: Option<&'static str>,
    /// With the review reasons, what an adopted row says besides its guarded columns (`opening`). Both are part of the
    /// condition of its first write.
    pub amount_refunded: Option<&'static str>,
    pub review_reasons: Option<&'static str>,
    /// Columns that a person or the application may change and that our decision depends on: the write fails if one of
    /// them is not as it was read (optimistic lock). In the order of the write's conditions.
    pub guarded: &'static [&'static str],
    /// Every column that billhook knows. The application may have others.
    pub columns: &'static [EntityColumn],
}

impl EntitySchema {
    /// Whether the row has a timeline, which billhook writes together with the other columns.
    pub fn has_timeline(&self) -> bool {
        self.columns.iter().any(|column| column.name == "timeline")
    }
}

/// An index of the table. A query reads only the table's key from it, so any projection will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityIndex {
    pub name: &'static str,
    /// Its hash key, a text. Ours have no range key, because a row without that column is not in the index.
    pub key: &'static str,
}

/// A column, as `docs/data-model.md` shows it (tested in `crates/core/tests/docs.rs`).
#[derive(Clone, Copy, Debug)]
pub struct EntityColumn {
    pub name: &'static str,
    pub kind: ColumnType,
    pub owner: ColumnOwner,
    pub meaning: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnType {
    /// Times are texts too.
    Text,
    Integer,
    Bool,
    TextSet,
    List,
    Map,
    Bytes,
    /// A type that no column of ours has.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnOwner {
    Application,
    Billhook,
    Both,
}

pub(super) const fn describe_column(
    name: &'static str,
    kind: ColumnType,
    owner: ColumnOwner,
    meaning: &'static str,
) -> EntityColumn {
    EntityColumn {
        name,
        kind,
        owner,
        meaning,
    }
}

/// The value that billhook writes into a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnValue {
    Text(String),
    Integer(i64),
    Bool(bool),
    /// Not empty: DynamoDB rejects an empty set.
    TextSet(BTreeSet<String>),
    Time(Timestamp),
}

impl ColumnValue {
    pub(super) fn text(text: &str) -> Option<Self> {
        Some(Self::Text(text.to_owned()))
    }

    /// Removes the column if there is none.
    pub(super) fn text_set(texts: &BTreeSet<String>) -> Option<Self> {
        (!texts.is_empty()).then(|| Self::TextSet(texts.clone()))
    }
}

/// The columns of one write; `None` removes the column.
pub type ColumnWrites = Vec<(&'static str, Option<ColumnValue>)>;

/// A row of the application, read leniently: a column that is missing, NULL or of another type is `None`.
pub trait RowColumns {
    /// `None` if the column is missing or NULL, as ORMs write what they do not know.
    fn column_type(&self, column: &str) -> Option<ColumnType>;
    fn text(&self, column: &str) -> Option<&str>;
    /// `None` for a fraction too: amounts are integers in the currency's minor unit.
    fn integer(&self, column: &str) -> Option<i64>;
    /// Any number as it is written, such as `1700000000.123`.
    fn number(&self, column: &str) -> Option<String>;
    fn truth(&self, column: &str) -> Option<bool>;
    /// The texts of a set, or of a list as ORMs write a set back.
    fn texts(&self, column: &str) -> BTreeSet<String>;
    /// Whether the timeline has an entry of billhook's.
    fn has_own_entries(&self) -> bool;
    /// The entries of this type in the timeline, billhook's own included.
    fn timeline_entries(&self, kind: &str) -> Vec<TimelineFields>;
}

/// The members of a timeline entry that billhook reads, if they are texts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TimelineFields {
    pub at: Option<String>,
    pub actor: Option<String>,
    pub actor_id: Option<String>,
    /// `meta.reason`.
    pub reason: Option<String>,
}

/// Parses the text of a column; a value that is no valid id counts as missing.
pub(super) fn read_id<T, E>(
    row: &impl RowColumns,
    column: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    parse(row.text(column)?).ok()
}
