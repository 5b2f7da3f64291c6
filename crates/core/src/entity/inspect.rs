//! What billhook could not use of a row that the application made, for `billhook doctor`: nothing is derived or written
//! here. `projection` says what billhook does with such a row.

use crate::entity::columns::{ColumnOwner, ColumnType, RowColumns, VERSION};
use crate::entity::kind::EntityKind;
use crate::entity::projection::{parse_created_at, read_created_at};
use crate::entity::rules::RowRules;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnFault {
    /// The application's value has another type: billhook does not read it, or, in a column of its own, leaves it alone.
    Type {
        column: &'static str,
        found: ColumnType,
        expected: ColumnType,
        owner: ColumnOwner,
    },
    /// A status word that billhook does not know, in a column of its own: it leaves that column alone.
    Word { column: &'static str, word: String },
    /// The row is not adopted, whenever it was made.
    CreatedAt {
        column: &'static str,
        /// `None` if the column is missing.
        found: Option<String>,
    },
    /// The column of billhook's version has a number that billhook does not seem to have written.
    Version { column: &'static str },
}

pub(super) fn find_column_faults<K: EntityKind>(
    rules: &RowRules,
    row: &impl RowColumns,
) -> Vec<ColumnFault> {
    let schema = K::SCHEMA;
    let version = rules.version_column.as_str();
    let mut faults = Vec::new();
    for column in schema.columns {
        let is_created_at = schema.created_at == Some(column.name);
        let is_set = ColumnType::TextSet == column.kind;
        let name = rules.version_column.name_of(column.name);
        match row.column_type(name) {
            None => {}
            // A number is a time too.
            Some(_) if is_created_at => {}
            Some(ColumnType::List) if is_set => {}
            Some(found) if found != column.kind => faults.push(ColumnFault::Type {
                column: name,
                found,
                expected: column.kind,
                owner: column.owner,
            }),
            Some(_) if column.name == VERSION => {
                let is_written = row.integer(version).is_some_and(|version| version > 0);
                if is_written && schema.has_timeline() && !row.has_own_entries() {
                    faults.push(ColumnFault::Version { column: version });
                }
            }
            Some(_) if column.owner == ColumnOwner::Application => {}
            Some(_) => {
                let word = row.text(name).filter(|word| !word.is_empty());
                if let Some(word) = word.filter(|word| !K::is_own_word(name, word)) {
                    faults.push(ColumnFault::Word {
                        column: name,
                        word: word.to_owned(),
                    });
                }
            }
        }
    }
    if let Some(column) = schema.created_at {
        let found = read_created_at(row, column);
        if found.as_deref().and_then(parse_created_at).is_none() {
            let is_there = row.column_type(column).is_some();
            let found =
                found.or_else(|| is_there.then(|| "no text and no whole number".to_owned()));
            faults.push(ColumnFault::CreatedAt { column, found });
        }
    }
    faults
}
