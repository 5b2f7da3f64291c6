//! Fuzz target `queue_batch`: an SQS batch, processed by both workers over in-memory tables with the samples.

use billhook_core::provider::interpret::InterpretRules;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use aws_lambda_events::event::sqs::{SqsEvent, SqsMessage};
use billhook_adapters::batch::handle_batch;
use billhook_core::entity::EntityKey;
use billhook_core::ids::{CorrelationId, EventId, OrderId, ProviderId, StatementId};
use billhook_core::intake::ports::RecordEvent as _;
use billhook_core::time::Timestamp;
use billhook_core::worker::batch::{RECEIVES_MAX, Worker};
use billhook_testkit::events::{envelope, new_event};
use billhook_testkit::memory::{FixedClock, MemoryTables};
use lambda_runtime::{Context, LambdaEvent};
use serde_json::Value;
use uuid::Uuid;

use super::mapping::row_of;
use super::{NOW_S, payloads_of, watched};

static STORED: LazyLock<BTreeMap<(ProviderId, String), Vec<u8>>> = LazyLock::new(|| {
    let of = |provider| {
        payloads_of(provider).into_iter().map(move |payload| {
            let id = envelope(provider, &payload).id.to_string();
            ((provider, id), payload)
        })
    };
    ProviderId::ALL.iter().copied().flat_map(of).collect()
});

fn tables(provider: ProviderId, named: &BTreeSet<String>) -> MemoryTables {
    let tables = MemoryTables::default();
    let rows = [
        EntityKey::Order(OrderId::parse("ord_2041").unwrap()),
        EntityKey::Statement(StatementId::parse("st_2041").unwrap()),
    ];
    let entities = rows.map(|key| (key.clone(), row_of(&key)));
    tables.entities.lock().unwrap().extend(entities);
    for ((of, id), payload) in STORED.iter() {
        if *of != provider || !named.contains(id) {
            continue;
        }
        let new = new_event(
            provider,
            payload,
            CorrelationId(Uuid::nil()),
            Timestamp::from_unix_s(NOW_S).unwrap(),
        );
        watched((&tables).record(&new)).unwrap();
    }
    tables
}

/// The input is the SQS event.
pub(super) fn batch(input: &[u8]) -> bool {
    // SQS creates the shape of the batch; anybody who may send messages controls the rest.
    let Ok(event) = serde_json::from_slice::<SqsEvent>(input) else {
        return false;
    };
    let ids: Option<BTreeSet<&str>> = event
        .records
        .iter()
        .map(|record| record.message_id.as_deref().filter(|id| !id.is_empty()))
        .collect();
    let named = event.records.iter().filter_map(|record| {
        let text = record.body.as_deref()?;
        // A member that occurs twice is refused.
        (text.matches("event_id").count() == 1).then_some(())?;
        let body: Value = serde_json::from_str(text).ok()?;
        let id = body.get("event_id")?.as_str()?.to_owned();
        Some((record.message_id.clone().unwrap_or_default(), id))
    });
    let named: Vec<(String, String)> = named.collect();
    let events: BTreeSet<String> = named.iter().map(|(_, id)| id.clone()).collect();
    let mut came_through = false;
    for provider in ProviderId::ALL.iter().copied() {
        let tables = tables(provider, &events);
        let worker = Worker {
            provider,
            rules: InterpretRules::default(),
            ledger: &tables,
            clock: FixedClock::at(Timestamp::from_unix_s(NOW_S).unwrap()),
        };
        let mut context = Context::default();
        context.deadline = u64::MAX;
        let settled = watched(handle_batch(
            &worker,
            RECEIVES_MAX,
            LambdaEvent::new(event.clone(), context),
        ));
        let Some(ids) = &ids else {
            assert!(settled.is_err(), "a message that cannot be reported");
            continue;
        };
        let failed: BTreeSet<String> = settled
            .unwrap()
            .batch_item_failures
            .into_iter()
            .map(|failure| failure.item_identifier)
            .collect();
        assert!(
            failed.iter().all(|id| ids.contains(id.as_str())),
            "{failed:?}"
        );
        let kept = tables.events.lock().unwrap();
        let is_stored = |id: &str| EventId::parse(id).is_ok_and(|id| kept.contains_key(&id));
        for (message, id) in &named {
            let its = |record: &&SqsMessage| record.message_id.as_ref() == Some(message);
            let is_only = event.records.iter().filter(its).count() == 1;
            if is_only && is_stored(id) {
                assert!(!failed.contains(message), "{id} was there to be decided");
            }
        }
        for row in kept.values() {
            came_through |= row.attempts > 0;
            assert!(row.attempts <= 1, "written twice: {row:?}");
        }
        for entity in tables.entities.lock().unwrap().values() {
            let events = i64::try_from(events.len()).unwrap();
            assert!(entity.version() <= events, "{entity:?}");
        }
    }
    came_through
}
