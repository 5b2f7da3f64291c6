//! What billhook could not use of a row that the application made, for `billhook doctor`: nothing is derived or written
//! here. `projection` says what billhook does with such a row.

use crate::entity::columns::{
    ColumnOwner, ColumnType, EntityColumn, EntitySchema, RowColumns, VERSION,
};
use crate::entity::kind::EntityKind;
use crate::entity::projection::{parse_created_at, read_created_at};
use crate::entity::rules::RowRules;
use crate::money::Currency;

/// The column that `kind::read_due` reads beside the amount.
const CURRENCY: &str = "currency";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFault {
    pub column: &'static str,
    pub kind: FaultKind,
    /// The word or number that the row has, where it says what is wrong.
    pub found: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// An id that billhook does not take: nothing else of the row is read.
    Id,
    /// The application's value has another type: billhook does not read it, or, in a column of its own, leaves it alone.
    Type {
        found: ColumnType,
        expected: ColumnType,
        owner: ColumnOwner,
    },
    /// A status word that billhook does not know, in a column of its own: it leaves that column alone.
    Word,
    /// No amount due or no currency: every payment would be an `amount_mismatch`.
    Due { expected: ColumnType },
    /// Not a whole number of the currency's minor unit, so that the amount is not read.
    Fraction,
    /// Not three letters: every payment would be an `amount_mismatch`.
    Currency,
    /// The row is not adopted, whenever it was made.
    CreatedAt,
    /// The column of billhook's version has a value. If the entity has no state, it is the application's own version,
    /// which billhook would overwrite.
    Version,
    /// The same in a row whose timeline has entries of billhook's. If the entity has no state, another stack wrote the row,
    /// and each of its events is parked as `state_behind`.
    OtherStack,
}

impl FaultKind {
    /// Whether the row is as it should be if the entity has a state, which no row can say.
    pub fn is_refuted_by_state(self) -> bool {
        matches!(self, Self::Version | Self::OtherStack)
    }
}

pub(super) fn find_column_faults<K: EntityKind>(
    rules: &RowRules,
    row: &impl RowColumns,
) -> Vec<ColumnFault> {
    let faults = K::SCHEMA.columns.iter().filter_map(|column| {
        let name = rules.version_column.name_of(column.name);
        let (kind, found) = find_column_fault::<K>(column, name, row)?;
        Some(ColumnFault {
            column: name,
            kind,
            found,
        })
    });
    faults.collect()
}

/// The fault of a column, and the value if it says what is wrong. `name` is the column's name in the table.
fn find_column_fault<K: EntityKind>(
    column: &EntityColumn,
    name: &'static str,
    row: &impl RowColumns,
) -> Option<(FaultKind, Option<String>)> {
    let schema = K::SCHEMA;
    if schema.created_at == Some(name) {
        return find_created_at_fault(&schema, name, row);
    }
    let due = schema.amount_due.map(|amount| [amount, CURRENCY]);
    let is_due = due.is_some_and(|due| due.contains(&name));
    let Some(found) = row.column_type(name) else {
        let expected = column.kind;
        return is_due.then_some((FaultKind::Due { expected }, None));
    };
    if column.name == VERSION {
        return match row.integer(name) {
            // An application may create its rows with a version of 0.
            Some(..=0) => None,
            Some(_) if row.has_own_entries() => Some((FaultKind::OtherStack, None)),
            // A text or a fraction is none of billhook's either.
            _ => Some((FaultKind::Version, None)),
        };
    }
    // ORMs write a set back as a list.
    let is_set_as_list = column.kind == ColumnType::TextSet && found == ColumnType::List;
    if found != column.kind && !is_set_as_list {
        let kind = FaultKind::Type {
            found,
            expected: column.kind,
            owner: column.owner,
        };
        return Some((kind, None));
    }
    if column.kind == ColumnType::Integer {
        let is_whole = row.integer(name).is_some();
        return (!is_whole).then(|| (FaultKind::Fraction, row.number(name)));
    }
    let word = row.text(name)?;
    let is_ours = column.owner != ColumnOwner::Application;
    let kind = if is_due && Currency::parse(word).is_err() {
        FaultKind::Currency
    } else if is_ours && !word.is_empty() && !K::is_own_word(name, word) {
        FaultKind::Word
    } else {
        return None;
    };
    Some((kind, Some(word.to_owned())))
}

/// A number is a time too. Of a tenant nothing is believed, so it need not say when it was made.
fn find_created_at_fault(
    schema: &EntitySchema,
    name: &str,
    row: &impl RowColumns,
) -> Option<(FaultKind, Option<String>)> {
    let created_at = read_created_at(row, name);
    let is_adopted = schema.payment_intent.is_some();
    if !is_adopted || created_at.as_deref().and_then(parse_created_at).is_some() {
        return None;
    }
    let other = row.column_type(name).map(|_| "no text and no number");
    let found = created_at.or_else(|| other.map(str::to_owned));
    Some((FaultKind::CreatedAt, found))
}
