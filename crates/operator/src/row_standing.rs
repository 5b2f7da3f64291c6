//! Whether an application's row shows what billhook's state says. A command that shows a row, or decides by it, says so if
//! it does not: an operator would take an older copy for the truth.

use std::collections::BTreeSet;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::columns::ColumnValue;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::{Entity, EntityKey};
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::worker::ports::Ledger as _;
use serde_json::{Value, json};

use crate::exit::CommandExit;
use crate::output::{OutputWriter, print_notice};
use crate::session::StackSession;

/// The entity, if it has a row or a state that can be read.
pub(crate) async fn load_entity(session: &StackSession, key: &EntityKey) -> Result<Option<Entity>> {
    let keys = BTreeSet::from([StateKey::Entity(key.clone())]);
    let mut rows = session.ledger(ProviderId::Stripe)?.load_rows(&keys).await?;
    Ok(rows.entities.remove(key).map(|(entity, _)| entity))
}

/// What billhook would write into the row now.
fn describe_state(entity: &Entity) -> String {
    let next = entity.apply_facts([], SystemClock.now());
    let columns = &next.last_derived().columns;
    let words = [
        &columns.status,
        &columns.payment_status,
        &columns.mail_status,
    ];
    let words: Vec<&str> = words
        .into_iter()
        .filter_map(|word| word.as_deref())
        .collect();
    format!("billhook's state says {}", words.join("/"))
}

/// What is wrong with the row; `None` if it shows what the state says.
pub(crate) fn describe_row_standing(entity: &Entity) -> Option<String> {
    let (key, row) = (entity.key(), entity.row());
    let column = row.rules.version_column.as_str();
    Some(match entity.standing() {
        RowStanding::New | RowStanding::Current => return describe_foreign(entity),
        RowStanding::Stale { .. } => {
            let found = match row.version {
                Some(version) => format!("{column} {version}"),
                None => format!("no {column}"),
            };
            let last = entity.last_version().unwrap_or_default();
            format!(
                "the row of {key} is an older copy ({found}, billhook wrote {last} last): {}; the next event or the sweep restores the row",
                describe_state(entity)
            )
        }
        RowStanding::Ahead => {
            let (found, last) = (row.version.unwrap_or_default(), entity.last_version());
            let last = last.unwrap_or_default();
            format!(
                "the row of {key} has {column} {found}, and billhook wrote at most {last}: its events are parked as state_behind. \
                 Either the application writes that column (set the parameter VersionColumn, docs/adopt.md), or the table of the \
                 states was restored from a backup, or the state was lost: billhook rebuild {}",
                key.id()
            )
        }
        RowStanding::Replaced => format!(
            "the row of {key} was made later than the one that billhook knows (row_replaced)"
        ),
        RowStanding::Missing => format!(
            "the application deleted the row of {key}: {}; docs/runbook/row-trouble.md",
            describe_state(entity)
        ),
    })
}

fn describe_foreign(entity: &Entity) -> Option<String> {
    let foreign: Vec<&str> = entity.row().foreign.iter().copied().collect();
    (!foreign.is_empty()).then(|| {
        format!(
            "{} of {} has a value that is none of billhook's and is not written; docs/runbook/row-trouble.md",
            foreign.join(", "),
            entity.key()
        )
    })
}

/// Shows a row, and says what is wrong with it. Of one that the application deleted only the latter is left.
pub(crate) async fn show_row(
    session: &StackSession,
    output: OutputWriter,
    key: &EntityKey,
    row: Option<Value>,
) -> Result<()> {
    let entity = load_entity(session, key).await?;
    let standing = entity.as_ref().and_then(describe_row_standing);
    let Some(row) = row else {
        let stack = &session.stack.name;
        let missing = standing.unwrap_or_else(|| format!("there is no {key} in {stack}"));
        return Err(CommandExit::NotFound(missing).into());
    };
    output.print_object(&row);
    if let Some(standing) = standing {
        print_notice(&standing);
    }
    Ok(())
}

/// The row with the columns that billhook would write into it now.
pub(crate) fn row_of_state(entity: &Entity, mut row: Value) -> Value {
    let next = entity.apply_facts([], SystemClock.now());
    let Some(members) = row.as_object_mut() else {
        return row;
    };
    for (column, value) in next.write_columns() {
        let value = match value {
            None => Value::Null,
            Some(ColumnValue::Text(text)) => json!(text),
            Some(ColumnValue::Integer(integer)) => json!(integer),
            Some(ColumnValue::Bool(truth)) => json!(truth),
            Some(ColumnValue::TextSet(texts)) => json!(texts),
            Some(ColumnValue::Time(at)) => json!(at),
        };
        members.insert(column.to_owned(), value);
    }
    row
}
