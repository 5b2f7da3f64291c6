//! The events of one provider: found by the two indexes, read without their payload, and changed by hand.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_adapters::dynamodb::events::read_event_record;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::outcome::{EventOutcome, ParkReason};
use serde_json::{Value, json};

use crate::filter::{Partition, Selection};

/// DynamoDB takes 100 keys in one read.
const KEYS_MAX: usize = 100;
/// How often keys are asked for again that DynamoDB left unprocessed.
const UNPROCESSED_TRIES_MAX: usize = 20;
/// All of a row but its payload, which may be large.
const WITHOUT_PAYLOAD: [&str; 20] = [
    "event_id",
    "source",
    "event_type",
    "processing_outcome",
    "processing_error",
    "received_at",
    "processed",
    "processed_at",
    "attempts",
    "connected_account_id",
    "tenant_id",
    "tenant_hint",
    "object_id",
    "livemode",
    "api_version",
    "correlation_id",
    "group",
    "payload_truncated",
    "template_version",
    "notes",
];

/// One provider's table.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    pub(crate) client: Client,
    pub(crate) table: String,
    pub(crate) provider: ProviderId,
}

/// An event without its payload.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) provider: ProviderId,
    pub(crate) stored: EventRecord,
    pub(crate) row: Value,
}

impl Listed {
    pub(crate) fn read(provider: ProviderId, item: &Item) -> Option<Self> {
        Some(Self {
            provider,
            stored: read_event_record(item)?,
            row: json(item),
        })
    }

    /// Where it stands among others: by arrival, and no two alike.
    pub(crate) fn place(&self) -> String {
        let at = self.stored.received_at.map(|at| at.to_string());
        format!(
            "{}#{}#{}",
            at.unwrap_or_default(),
            self.provider,
            self.stored.id
        )
    }
}

/// A row as JSON. It has no bytes, so a compressed payload is left out.
pub(crate) fn json(item: &Item) -> Value {
    let mut item = item.clone();
    item.retain(|_, value| !value.is_b());
    serde_dynamo::from_item(item).unwrap_or_else(|_| json!({}))
}

/// What a person may change of an event, each with the condition that makes it safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing but the note.
    Annotate,
    /// To be sent again, while it is not done.
    Send,
    /// Done before, and to be decided again.
    Reopen,
    /// Set aside.
    Park,
    /// Given up with its dead letter.
    Fail,
}

impl Events {
    pub(crate) async fn item(&self, id: &EventId) -> Result<Option<Item>> {
        let get = self.client.get_item().table_name(&self.table);
        let got = get
            .key("event_id", string_value(id.as_str()))
            .consistent_read(true)
            .send()
            .await;
        Ok(got
            .with_context(|| format!("cannot read {id} of {}", self.table))?
            .item)
    }

    /// At most `most` of the wanted events, the newest first.
    pub(crate) async fn list(&self, selection: &Selection, most: usize) -> Result<Vec<Listed>> {
        let mut found = Vec::new();
        let partitions = selection.partitions();
        for partition in &partitions {
            let is_by_day = matches!(partition, Partition::Day(_));
            if is_by_day && found.len() >= most {
                break;
            }
            let mut of_partition = 0;
            let mut start = None;
            loop {
                let (entries, next) = self.page(partition, selection, start).await?;
                let wanted: Vec<EventId> = entries
                    .iter()
                    .filter(|entry| selection.may_match(&json(entry)))
                    .filter_map(|entry| EventId::parse(read_text(entry, "event_id")?).ok())
                    .collect();
                let rows = self.rows(&wanted).await?;
                let rows = rows
                    .into_iter()
                    .filter(|listed| selection.matches(&listed.row));
                let before = found.len();
                found.extend(rows);
                of_partition += found.len() - before;
                start = next;
                if start.is_none() || of_partition >= most {
                    break;
                }
            }
        }
        found.sort_by_key(|listed| std::cmp::Reverse(listed.place()));
        found.truncate(most);
        Ok(found)
    }

    async fn page(
        &self,
        partition: &Partition,
        selection: &Selection,
        start: Option<Item>,
    ) -> Result<(Vec<Item>, Option<Item>)> {
        let (index, column, value) = match partition {
            Partition::Open(outcome) => ("OpenIndex", "open", outcome),
            Partition::Day(day) => ("DayIndex", "received_day", day),
        };
        // Of what is open everything is meant unless a span is given.
        let since = match (partition, selection.since) {
            (Partition::Open(_), None) => "0".to_owned(),
            _ => selection.from().to_string(),
        };
        let page = self
            .client
            .query()
            .table_name(&self.table)
            .index_name(index)
            .key_condition_expression(
                "#partition = :partition AND received_at BETWEEN :since AND :until",
            )
            .expression_attribute_names("#partition", column)
            .expression_attribute_values(":partition", string_value(value))
            .expression_attribute_values(":since", string_value(since))
            .expression_attribute_values(":until", string_value(selection.until.to_string()))
            .scan_index_forward(false)
            .set_exclusive_start_key(start)
            .send()
            .await
            .with_context(|| format!("cannot query {index} of {}", self.table))?;
        Ok((page.items.unwrap_or_default(), page.last_evaluated_key))
    }

    /// The rows that are there, in no order.
    pub(crate) async fn rows(&self, ids: &[EventId]) -> Result<Vec<Listed>> {
        let mut found = Vec::new();
        let names: HashMap<String, String> = WITHOUT_PAYLOAD
            .iter()
            .map(|name| (format!("#{name}"), (*name).to_owned()))
            .collect();
        let projection = WITHOUT_PAYLOAD.map(|name| format!("#{name}")).join(", ");
        for ids in ids.chunks(KEYS_MAX) {
            let key =
                |id: &EventId| Item::from([("event_id".to_owned(), string_value(id.as_str()))]);
            let mut keys: Vec<Item> = ids.iter().map(key).collect();
            let mut tries = 0;
            while !keys.is_empty() {
                if tries == UNPROCESSED_TRIES_MAX {
                    bail!(
                        "DynamoDB left rows of {} unread {tries} times: it is throttled, try again later",
                        self.table
                    );
                }
                tries += 1;
                let wanted = KeysAndAttributes::builder()
                    .set_keys(Some(keys))
                    .consistent_read(true)
                    .projection_expression(&projection)
                    .set_expression_attribute_names(Some(names.clone()))
                    .build()?;
                let got = self
                    .client
                    .batch_get_item()
                    .request_items(&self.table, wanted)
                    .send()
                    .await;
                let got = got.with_context(|| format!("cannot read events of {}", self.table))?;
                let items = got.responses.unwrap_or_default().into_values().flatten();
                found.extend(items.filter_map(|item| Listed::read(self.provider, &item)));
                let left = got.unprocessed_keys.unwrap_or_default().into_values();
                keys = left.flat_map(|left| left.keys).collect();
            }
        }
        Ok(found)
    }

    /// Writes a note, and with it what the change asks for; answers whether the event was in a state that allows it.
    pub(crate) async fn change(
        &self,
        id: &EventId,
        change: Change,
        note: AttributeValue,
    ) -> Result<bool> {
        let outcome = match change {
            Change::Annotate | Change::Send => None,
            Change::Reopen => Some((EventOutcome::Pending, None)),
            Change::Park => Some((EventOutcome::Parked, Some(ParkReason::ByHand.as_str()))),
            Change::Fail => Some((
                EventOutcome::Failed,
                Some("its dead letter was purged by hand"),
            )),
        };
        let mut update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("event_id", string_value(id.as_str()))
            .expression_attribute_values(":note", AttributeValue::L(vec![note]))
            .expression_attribute_values(":none", AttributeValue::L(Vec::new()));
        let mut sets = "SET notes = list_append(if_not_exists(notes, :none), :note)".to_owned();
        if let Some((outcome, reason)) = outcome {
            sets.push_str(", #open = :outcome, processing_outcome = :outcome, #processed = :false");
            update = update
                .expression_attribute_names("#open", "open")
                .expression_attribute_values(":outcome", string_value(outcome.as_str()))
                .expression_attribute_values(":false", AttributeValue::Bool(false));
            match reason {
                Some(reason) => {
                    sets.push_str(", processing_error = :reason");
                    update = update.expression_attribute_values(":reason", string_value(reason));
                }
                None => sets.push_str(" REMOVE processing_error, processed_at"),
            }
        }
        let condition = match change {
            Change::Annotate => "attribute_exists(event_id)",
            Change::Send | Change::Reopen | Change::Park | Change::Fail => "#processed = :was",
        };
        if change != Change::Annotate {
            update = update
                .expression_attribute_names("#processed", "processed")
                .expression_attribute_values(
                    ":was",
                    AttributeValue::Bool(change == Change::Reopen),
                );
        }
        match update
            .update_expression(sets)
            .condition_expression(condition)
            .send()
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("cannot write {id} of {}", self.table))
            }
        }
    }
}
