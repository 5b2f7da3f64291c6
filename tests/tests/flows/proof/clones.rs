//! Orders in any number: a few are made by signed deliveries and the real worker, and the others are the rows of one of
//! these, under ids of their own.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};

use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use billhook_adapters::dynamodb::state_seal::seal_state;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::index_keys::slot_of;
use billhook_core::seal::{EventSealer, StateSealKeys};
use billhook_testkit::events::envelope;
use billhook_tests::world::seal_row;
use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::super::*;

pub(super) type Item = HashMap<String, AttributeValue>;

/// `BatchWriteItem`'s limit.
const WRITES_MAX: usize = 25;
const WRITES_AT_ONCE: usize = 4;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// All rows of an order.
#[derive(Clone)]
pub(super) struct OrderRows {
    /// Part of each of its ids. All tokens have one length, so that no order among ids changes.
    pub(super) token: String,
    /// The application's row.
    pub(super) order: Item,
    /// Of the order, its payment and the payment's other names, by their keys.
    pub(super) states: BTreeMap<String, Item>,
    /// By the event's id.
    pub(super) events: BTreeMap<String, Item>,
    sealer: Arc<EventSealer>,
    state_keys: Arc<StateSealKeys>,
}

impl OrderRows {
    /// The rows whose ids have this token.
    pub(super) async fn read(world: &World, token: &str) -> Result<Self> {
        let mut order = rows_of(world, "OrdersTable", "id", token).await?;
        assert_eq!(order.len(), 1, "{token}");
        Ok(Self {
            token: token.to_owned(),
            order: order.pop_first().unwrap().1,
            states: rows_of(world, "EntitiesTable", "entity", token).await?,
            events: rows_of(world, STRIPE, "event_id", token).await?,
            sealer: world.event_sealer()?.sealer().await?,
            state_keys: world.ledger_seals()?.states.keys_for([]).await?,
        })
    }

    /// The same rows with another token. The events arrive so many days earlier.
    pub(super) fn clone_as(&self, token: &str, days: u64) -> Self {
        assert_eq!(token.len(), self.token.len());
        let rename = |rows: &BTreeMap<String, Item>| -> BTreeMap<String, Item> {
            let renamed = rows.iter().map(|(key, row)| {
                let mut row = row.clone();
                rename_item(&mut row, &self.token, token);
                (key.replace(&self.token, token), row)
            });
            renamed.collect()
        };
        let mut order = self.order.clone();
        rename_item(&mut order, &self.token, token);
        let mut events = rename(&self.events);
        for event in events.values_mut() {
            complete_event(event, days, &self.sealer);
        }
        let mut states = rename(&self.states);
        for state in states.values_mut() {
            seal_state(state, &self.state_keys);
        }
        Self {
            token: token.to_owned(),
            order,
            states,
            events,
            sealer: Arc::clone(&self.sealer),
            state_keys: Arc::clone(&self.state_keys),
        }
    }

    pub(super) fn order_id(&self) -> String {
        text(&self.order, "id").to_owned()
    }

    pub(super) fn order_key(&self) -> String {
        format!("order#{}", self.order_id())
    }

    /// The key of the payment, or of its other name with this prefix.
    pub(super) fn payment_key(&self, prefix: &str) -> String {
        let has_name = |key: &&String| key.starts_with("payment#") && key.contains(prefix);
        let mut keys = self.states.keys().filter(has_name);
        let key = keys
            .next()
            .unwrap_or_else(|| panic!("{prefix} of {}", self.token));
        key.clone()
    }

    pub(super) fn payment(&mut self) -> &mut Item {
        let key = self.payment_key("#pi_");
        self.states.get_mut(&key).unwrap()
    }
}

pub(super) fn text<'i>(item: &'i Item, name: &str) -> &'i str {
    item[name].as_s().unwrap()
}

pub(super) fn set_text(item: &mut Item, name: &str, value: impl Into<String>) {
    item.insert(name.to_owned(), AttributeValue::S(value.into()));
}

/// A member of nested maps, by its path.
pub(super) fn members<'i>(item: &'i mut Item, path: &[&str]) -> &'i mut Item {
    path.iter().fold(item, |item, name| {
        let AttributeValue::M(inner) = item
            .get_mut(*name)
            .unwrap_or_else(|| panic!("{name} of {path:?}"))
        else {
            panic!("{name} of {path:?} is no map");
        };
        inner
    })
}

async fn rows_of(
    world: &World,
    table: &str,
    key: &str,
    token: &str,
) -> Result<BTreeMap<String, Item>> {
    let mut rows = all_rows(world, table, key).await?;
    rows.retain(|key, _| key.contains(token));
    Ok(rows)
}

/// All rows of a table by their keys.
pub(super) async fn all_rows(
    world: &World,
    table: &str,
    key: &str,
) -> Result<BTreeMap<String, Item>> {
    let scan = world.aws.dynamodb().scan();
    let scan = scan.table_name(world.stack.output(table)?);
    let items: Vec<Item> = scan.into_paginator().items().send().try_collect().await?;
    let rows = items.into_iter();
    Ok(rows.map(|row| (text(&row, key).to_owned(), row)).collect())
}

pub(super) fn rename_item(item: &mut Item, from: &str, to: &str) {
    let renamed = item.drain().map(|(name, mut value)| {
        rename_value(&mut value, from, to);
        (name.replace(from, to), value)
    });
    *item = renamed.collect();
}

fn rename_value(value: &mut AttributeValue, from: &str, to: &str) {
    match value {
        AttributeValue::S(text) => *text = text.replace(from, to),
        AttributeValue::Ss(texts) => {
            for text in texts {
                *text = text.replace(from, to);
            }
        }
        AttributeValue::L(values) => {
            for value in values {
                rename_value(value, from, to);
            }
        }
        AttributeValue::M(members) => rename_item(members, from, to),
        // A seal, which is made anew.
        AttributeValue::B(seal) if [20, 68].contains(&seal.as_ref().len()) => {}
        AttributeValue::B(compressed) => {
            let mut payload = String::new();
            let mut reader = GzDecoder::new(compressed.as_ref());
            reader.read_to_string(&mut payload).unwrap();
            *value = compress(&payload.replace(from, to));
        }
        AttributeValue::N(_) | AttributeValue::Bool(_) | AttributeValue::Null(_) => {}
        other => panic!("no row of ours has {other:?}"),
    }
}

fn compress(payload: &str) -> AttributeValue {
    let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
    writer.write_all(payload.as_bytes()).unwrap();
    AttributeValue::B(Blob::new(writer.finish().unwrap()))
}

fn payload_of(event: &Item) -> Vec<u8> {
    if let Some(AttributeValue::B(compressed)) = event.get("payload_gz") {
        let mut payload = Vec::new();
        let mut reader = GzDecoder::new(compressed.as_ref());
        reader.read_to_end(&mut payload).unwrap();
        return payload;
    }
    text(event, "payload").as_bytes().to_vec()
}

/// Sets what follows from the payload, the id and the time of the arrival.
fn complete_event(event: &mut Item, days: u64, sealer: &EventSealer) {
    let payload = payload_of(event);
    let digest = ring::digest::digest(&ring::digest::SHA256, &payload);
    set_text(event, "payload_sha256", HEXLOWER.encode(digest.as_ref()));
    set_text(event, "group", envelope(ProviderId::Stripe, &payload).group);
    let day = std::time::Duration::from_hours(24);
    let received_at = Timestamp::parse(text(event, "received_at")).unwrap();
    let received_at = (0..days).fold(received_at, |at, _| at.before(day));
    set_text(event, "received_at", received_at.to_string());
    let id = EventId::parse(text(event, "event_id")).unwrap();
    set_text(event, "slot", slot_of(received_at, &id));
    seal_row(ProviderId::Stripe, event, &payload, sealer).unwrap();
}

/// Puts these rows into a table.
pub(super) async fn put_rows(
    world: &World,
    table: &str,
    rows: impl IntoIterator<Item = Item>,
) -> Result<()> {
    let table = world.stack.output(table)?;
    let writes = rows.into_iter().map(|row| {
        let put = PutRequest::builder().set_item(Some(row)).build().unwrap();
        WriteRequest::builder().put_request(put).build()
    });
    let writes: Vec<WriteRequest> = writes.collect();
    stream::iter(writes.chunks(WRITES_MAX))
        .map(async |writes| {
            let write = world.aws.dynamodb().batch_write_item();
            let write = write.request_items(table, writes.to_vec());
            // With very many rows the local AWS now and then stops for seconds, to collect its garbage.
            let patience = TimeoutConfig::builder()
                .operation_attempt_timeout(PATIENCE)
                .operation_timeout(PATIENCE);
            let patience = aws_sdk_dynamodb::Config::builder()
                .timeout_config(patience.build())
                .retry_config(RetryConfig::standard().with_max_attempts(10));
            let done = write.customize().config_override(patience).send().await?;
            assert!(done.unprocessed_items().is_none_or(HashMap::is_empty));
            anyhow::Ok(())
        })
        .buffer_unordered(WRITES_AT_ONCE)
        .try_collect()
        .await
}

/// Puts all rows of these orders.
pub(super) async fn put_orders(world: &World, orders: &[OrderRows]) -> Result<()> {
    let all = || orders.iter();
    put_rows(world, "OrdersTable", all().map(|of| of.order.clone())).await?;
    // Damaged ones are genuine as well: what a fault of billhook writes, it also seals.
    let states = all().flat_map(|of| {
        let sealed = |state: &Item| {
            let mut state = state.clone();
            seal_state(&mut state, &of.state_keys);
            state
        };
        of.states.values().map(sealed).collect::<Vec<_>>()
    });
    put_rows(world, "EntitiesTable", states).await?;
    let events = all().flat_map(|of| of.events.values().cloned());
    put_rows(world, STRIPE, events).await
}
