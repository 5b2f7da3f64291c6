//! `--what-if`: the worker itself over the rows as they are, with a ledger that shows its commits instead of writing.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;
use billhook_adapters::clock::SystemClock;
use billhook_core::entity::schema::LastDerived;
use billhook_core::entity::{Entity, EntityFacts, EntityKey, EntityUpdate};
use billhook_core::error::DependencyError;
use billhook_core::ids::{AccountId, EventId, PaymentIntentId, PieceId, ProviderId, TenantId};
use billhook_core::intake::inbox::EventSource;
use billhook_core::intake::message::EventPointer;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{ReceivedMessage, Worker};
use billhook_core::worker::ports::{
    CommitError, CommitPart, Ledger, LoadedRows, PaymentKey, StoredEvent,
};
use serde_json::{Value, json};

use crate::session::Session;
use crate::store::Listed;

/// No function's limit holds here; DynamoDB that stays away for so long is out of reach.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const COLUMNS: [&str; 6] =
    ["event_id", "outcome", "entity", "column", "before", "after"];

/// What each event would become, and what it would make of its entity; one row for each column that changes.
pub(crate) async fn differences(
    session: &Session,
    events: impl Iterator<Item = &Listed>,
    force: bool,
) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for listed in events {
        let worker = Worker {
            provider: listed.provider,
            live_mode: session.stack.is_live(),
            ledger: Shown {
                ledger: session.ledger(listed.provider)?,
                force,
                rows: Mutex::default(),
            },
            clock: SystemClock,
        };
        let message = ReceivedMessage {
            message_id: listed.stored.id.to_string(),
            body: EventPointer::message_for(&listed.stored, EventSource::ManualReplay),
            receive_count: 1,
        };
        let deadline = SystemClock.now().after(DEADLINE);
        let reports = worker
            .process_batch(&[message], deadline, std::future::pending())
            .await;
        for report in reports {
            if let Err(failure) = report.result {
                anyhow::bail!("{}: {failure}", listed.stored.id);
            }
        }
        rows.extend(worker.ledger.rows.into_inner().unwrap_or_default());
    }
    Ok(rows)
}

#[derive(Debug)]
struct Shown<L> {
    ledger: L,
    /// Events that are done are taken for open.
    force: bool,
    rows: Mutex<Vec<Value>>,
}

impl<L: Ledger> Ledger for Shown<L> {
    type Row = L::Row;

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
        entities: &BTreeSet<EntityKey>,
        payments: &BTreeSet<PaymentKey>,
    ) -> Result<LoadedRows<L::Row>, DependencyError> {
        self.ledger.load_rows(entities, payments).await
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
    ) -> Result<Vec<TenantId>, DependencyError> {
        self.ledger.tenants_by_account(account).await
    }

    async fn commit(
        &self,
        _: ProviderId,
        commits: &[CommitPart<'_, L::Row>],
    ) -> Result<(), CommitError> {
        if let Ok(mut shown) = self.rows.lock() {
            shown.extend(commits.iter().flat_map(load_rows));
        }
        Ok(())
    }
}

/// What a commit would change: a row for each column, and for each of its events.
fn load_rows<R>(commit: &CommitPart<'_, R>) -> Vec<Value> {
    let changes = commit
        .entity
        .map(|(entity, _, next)| (entity.key.to_string(), changed(entity, next, commit.now)));
    let (entity, changes) = changes.unwrap_or_default();
    let mut rows = Vec::new();
    for concluded in &commit.events {
        let outcome = concluded.verdict.outcome().as_str();
        let row = |column: &str, before: &Value, after: &Value| {
            json!({ "event_id": concluded.event.as_str(), "outcome": outcome, "reason": concluded.verdict.reason(),
                    "entity": (!entity.is_empty()).then_some(&entity), "column": column, "before": before, "after": after })
        };
        if changes.is_empty() {
            rows.push(row("-", &Value::Null, &Value::Null));
        }
        rows.extend(
            changes
                .iter()
                .map(|(column, before, after)| row(column, before, after)),
        );
    }
    rows
}

/// The columns of an entity that differ, before and after.
pub(crate) fn changed(
    entity: &Entity,
    next: &EntityUpdate,
    now: Timestamp,
) -> Vec<(String, Value, Value)> {
    let was = entity.apply_facts(EntityFacts::default(), now);
    let mut changes = Vec::new();
    let mut change = |column: &str, before: Value, after: Value| {
        if before != after {
            changes.push((column.to_owned(), before, after));
        }
    };
    let before = json!(entity.columns);
    for (column, after) in json!(next.derived.columns)
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
        reasons(&entity.derived),
        reasons(&next.derived),
    );
    let refunded = |next: &EntityUpdate| json!(next.payment.amount_refunded);
    change("amountRefunded", refunded(&was), refunded(next));
    let tenants = |next: &EntityUpdate| json!(next.account.status.as_str());
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
    use billhook_core::entity::schema::GuardedColumns;
    use billhook_core::ids::OrderId;
    use billhook_core::money::{Currency, Money};
    use billhook_core::provider::stripe::event::StripeEvent;
    use billhook_core::provider::stripe::payments::read_payment_facts;

    use super::*;

    #[test]
    fn a_payment_shows_what_it_changes_and_the_same_again_changes_nothing() {
        let event = br#"{"id":"evt_1","type":"payment_intent.succeeded","created":1781000000,"data":{"object":{"id":"pi_1",
            "object":"payment_intent","amount_received":4200,"currency":"usd"}}}"#;
        let event = StripeEvent::parse(event).unwrap();
        let payment = read_payment_facts(&event).unwrap().unwrap();
        let paid = EntityFacts {
            payment,
            ..EntityFacts::default()
        };
        let now = Timestamp::from_unix_s(1_781_000_000).unwrap();
        let due = Money {
            amount: 4200,
            currency: Currency::parse("usd").unwrap(),
        };
        let mut order = Entity {
            key: EntityKey::Order(OrderId::parse("ord_1").unwrap()),
            version: 0,
            tenant: None,
            account: None,
            due: Some(due),
            intent: None,
            session: None,
            user: None,
            mailed: None,
            columns: GuardedColumns {
                status: Some("pending".to_owned()),
                ..GuardedColumns::default()
            },
            derived: LastDerived::default(),
            facts: EntityFacts::default(),
        };
        let next = order.apply_facts(paid.clone(), now);
        let changes = changed(&order, &next, now);
        assert!(
            changes.contains(&("status".to_owned(), json!("pending"), json!("completed"))),
            "{changes:?}"
        );
        assert!(
            changes.contains(&(
                "timeline".to_owned(),
                json!([]),
                json!(["payment_succeeded"])
            )),
            "{changes:?}"
        );
        order.columns = next.derived.columns.clone();
        order.derived = next.derived.clone();
        order.facts = next.facts.clone();
        assert_eq!(changed(&order, &order.apply_facts(paid, now), now), []);
    }
}
