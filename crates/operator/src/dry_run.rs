//! Dry run (`replay --what-if`): runs the real worker over the current rows, with a ledger that records commits instead
//! of writing them.
//!
//! Because the worker is the same, the preview cannot differ from the replay in its rules. It differs in one thing:
//! each event is decided on the stored rows alone, so the effect of an earlier event of the same preview is not seen.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::schema::LastDerived;
use billhook_core::entity::tenant::AccountHits;
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, EventId, PaymentIntentId, PieceId, ProviderId};
use billhook_core::intake::inbox::EventSource;
use billhook_core::intake::message::EventPointer;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{ReceivedMessage, Worker};
use billhook_core::worker::ports::{
    ChangedColumn, CommitError, CommitPart, Ledger, LoadedRows, StoredEvent, TenantLookup,
};
use serde_json::{Value, json};

use crate::events_table::EventSummary;
use crate::session::StackSession;

/// A worker stops when its function runs out of time. Here there is no such limit, only an end for an unreachable
/// DynamoDB.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const COLUMNS: [&str; 6] =
    ["event_id", "outcome", "entity", "column", "before", "after"];

/// The outcome of each event and the columns of its order, statement or tenant that it would change, one row per
/// column.
pub(crate) async fn preview_events(
    session: &StackSession,
    events: impl Iterator<Item = &EventSummary>,
    force: bool,
) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for event in events {
        let worker = Worker {
            provider: event.provider,
            rules: session.stack.interpret_rules()?,
            ledger: DryRunLedger {
                ledger: session.ledger(event.provider)?,
                force,
                rows: Mutex::default(),
            },
            clock: SystemClock,
        };
        let message = ReceivedMessage {
            message_id: event.record.id.to_string(),
            body: EventPointer::message_for(&event.record, EventSource::ManualReplay),
            receive_count: 1,
            is_last_receive: false,
        };
        let deadline = SystemClock.now().after(DEADLINE);
        let done = worker
            .process_batch(&[message], deadline, std::future::pending())
            .await;
        for report in done.messages {
            if let Err(failure) = report.result {
                anyhow::bail!("{}: {failure}", event.record.id);
            }
        }
        rows.extend(worker.ledger.rows.into_inner().unwrap_or_default());
    }
    Ok(rows)
}

#[derive(Debug)]
struct DryRunLedger<L> {
    ledger: L,
    /// Presents processed and ignored events as unfinished: otherwise the worker would skip them and the preview of a
    /// forced replay would be empty.
    force: bool,
    rows: Mutex<Vec<Value>>,
}

impl<L: Ledger> Ledger for DryRunLedger<L> {
    type Row = L::Row;

    fn row_bytes(row: &L::Row) -> usize {
        L::row_bytes(row)
    }

    fn changed_columns(
        entity: &Entity,
        row: &L::Row,
        next: &EntityUpdate,
        now: Timestamp,
    ) -> Vec<ChangedColumn> {
        L::changed_columns(entity, row, next, now)
    }

    fn timeline_events(row: &L::Row) -> BTreeSet<EventId> {
        L::timeline_events(row)
    }

    async fn load_events(
        &self,
        provider: ProviderId,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<StoredEvent>, DependencyError> {
        let mut events = self.ledger.load_events(provider, ids).await?;
        if self.force {
            for kept in &mut events {
                kept.stored.processed = false;
            }
        }
        Ok(events)
    }

    async fn load_rows(
        &self,
        keys: &BTreeSet<StateKey>,
    ) -> Result<LoadedRows<L::Row>, DependencyError> {
        self.ledger.load_rows(keys).await
    }

    async fn entities_by_payment_intent(
        &self,
        intent: &PaymentIntentId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        self.ledger.entities_by_payment_intent(intent).await
    }

    async fn statements_by_piece(
        &self,
        piece: &PieceId,
    ) -> Result<Vec<EntityKey>, DependencyError> {
        self.ledger.statements_by_piece(piece).await
    }

    async fn tenants_by_account(
        &self,
        account: &AccountId,
        lookup: TenantLookup,
    ) -> Result<AccountHits, DependencyError> {
        self.ledger.tenants_by_account(account, lookup).await
    }

    async fn commit(
        &self,
        _: ProviderId,
        parts: &[&CommitPart<'_, L::Row>],
    ) -> Result<(), CommitError> {
        if let Ok(mut rows) = self.rows.lock() {
            rows.extend(parts.iter().flat_map(|part| describe_commit(part)));
        }
        Ok(())
    }
}

/// One row per event of the commit, and one more for each further column that changes.
fn describe_commit<R>(part: &CommitPart<'_, R>) -> Vec<Value> {
    let changes: Vec<(String, ColumnChange)> = part
        .entities
        .iter()
        .flat_map(|write| {
            let key = write.entity.key().to_string();
            let changes = diff_entity(write.entity, &write.next, part.now).into_iter();
            changes.map(move |change| (key.clone(), change))
        })
        .collect();
    let mut rows = Vec::new();
    for update in &part.events {
        let outcome = update.verdict.outcome().as_str();
        let row = |entity: Option<String>, column: &str, before: &Value, after: &Value| {
            json!({ "event_id": update.event.as_str(), "outcome": outcome, "reason": update.verdict.reason(),
                    "entity": entity, "column": column, "before": before, "after": after })
        };
        if changes.is_empty() {
            let entity = update.entities.first().map(ToString::to_string);
            rows.push(row(entity, "-", &Value::Null, &Value::Null));
        }
        rows.extend(changes.iter().map(|(entity, change)| {
            let entity = Some(entity.clone());
            row(entity, &change.column, &change.before, &change.after)
        }));
    }
    rows
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ColumnChange {
    pub(crate) column: String,
    pub(crate) before: Value,
    pub(crate) after: Value,
}

/// The columns of an entity that differ before and after.
pub(crate) fn diff_entity(
    entity: &Entity,
    next: &EntityUpdate,
    now: Timestamp,
) -> Vec<ColumnChange> {
    let was = entity.apply_facts([], now);
    let mut changes = Vec::new();
    let mut change = |column: &str, before: Value, after: Value| {
        if before != after {
            changes.push(ColumnChange {
                column: column.to_owned(),
                before,
                after,
            });
        }
    };
    let before = json!(entity.columns());
    for (column, after) in json!(next.last_derived().columns)
        .as_object()
        .into_iter()
        .flatten()
    {
        let before = before.get(column).cloned().unwrap_or(Value::Null);
        change(column, before, after.clone());
    }
    let reasons = |derived: &LastDerived| json!(derived.review_reasons);
    change(
        "reviewReasons",
        reasons(entity.last_derived()),
        reasons(next.last_derived()),
    );
    let refunded =
        |next: &EntityUpdate| json!(next.payment().map(|payment| payment.amount_refunded));
    change("amountRefunded", refunded(&was), refunded(next));
    let tenants =
        |next: &EntityUpdate| json!(next.account().map(|account| account.status.as_str()));
    change("stripeStatus", tenants(&was), tenants(next));
    let kinds = |next: &EntityUpdate| -> Value {
        next.timeline()
            .into_iter()
            .map(|entry| entry.kind)
            .collect()
    };
    change("timeline", kinds(&was), kinds(next));
    changes
}

#[cfg(test)]
mod tests {
    use billhook_testkit::memory;

    use super::*;
    use billhook_testkit::events::{intent_succeeded, linked_facts};

    fn change(column: &str, before: Value, after: Value) -> ColumnChange {
        ColumnChange {
            column: column.to_owned(),
            before,
            after,
        }
    }

    #[test]
    fn a_payment_changes_columns_and_its_repetition_changes_none() {
        let event = intent_succeeded("evt_1", 1_781_000_000, "pi_1", serde_json::json!({}), 4200);
        let paid = linked_facts([&event]);
        let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
        let key = EntityKey::parse("order#ord_1").unwrap();
        let row = json!({ "amountTotal": 4200, "currency": "usd", "status": "pending" });
        let order = memory::entity_of(&key, row);
        let next = order.apply_facts(paid.clone(), now);
        let changes = diff_entity(&order, &next, now);
        assert!(
            changes.contains(&change("status", json!("pending"), json!("completed"))),
            "{changes:?}"
        );
        assert!(
            changes.contains(&change("timeline", json!([]), json!(["payment_succeeded"]))),
            "{changes:?}"
        );
        let order = next.next();
        assert_eq!(diff_entity(&order, &order.apply_facts(paid, now), now), []);
    }
}
