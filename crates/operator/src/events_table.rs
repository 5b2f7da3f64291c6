//! The events table of one provider (the event store): queries over its two indexes, and the changes that an operator
//! makes.
//!
//! An index is only a hint: it is eventually consistent, so each row is read again, consistently, before it is matched
//! or shown. Every change is a conditional write together with a note, so that the audit trail can never miss a change.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata as _;
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_adapters::dynamodb::events::{load_event_items, read_event_record};
use billhook_core::entity::key::StateKey;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::intake::index_keys::open_key_of;
use billhook_core::outcome::{EventOutcome, ParkReason};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};

use crate::event_filter::{EventSelection, IndexPartition};

/// All columns but the payload: a listing of 1,000 events would otherwise return 1,000 payloads.
const WITHOUT_PAYLOAD: &str = "#event_id, #source, #event_type, #processing_outcome, #processing_error, #received_at, \
    #processed, #processed_at, #attempts, #connected_account_id, #tenant_id, #tenant_hint, #object_id, #livemode, \
    #api_version, #correlation_id, #group, #payload_truncated, #template_version, #notes, #entities";

/// Keys of an index that are queried at the same time.
const QUERIES_AT_ONCE: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct EventsTable {
    pub(crate) client: Client,
    pub(crate) table: String,
    pub(crate) provider: ProviderId,
}

/// An event as lists and replays need it: without its payload.
#[derive(Clone, Debug)]
pub(crate) struct EventSummary {
    pub(crate) provider: ProviderId,
    pub(crate) record: EventRecord,
    pub(crate) row: Value,
}

impl EventSummary {
    pub(crate) fn from_item(provider: ProviderId, item: &Item) -> Option<Self> {
        Some(Self {
            provider,
            record: read_event_record(item)?,
            row: row_to_json(item),
        })
    }

    /// What took its facts.
    pub(crate) fn states(&self) -> BTreeSet<StateKey> {
        let states = self.row.get("entities").and_then(Value::as_array);
        let states = states.into_iter().flatten().filter_map(Value::as_str);
        states.filter_map(StateKey::parse).collect()
    }

    /// Orders events by arrival. The id makes it unique, so that it can be the cursor of a replay: with the time alone,
    /// a resumed replay would skip or repeat events of the same millisecond.
    pub(crate) fn sort_key(&self) -> String {
        let at = self.record.received_at.map(|at| at.to_string());
        format!(
            "{}#{}#{}",
            at.unwrap_or_default(),
            self.provider,
            self.record.id
        )
    }
}

/// A row as JSON. JSON has no binary type, so a compressed payload is left out.
pub(crate) fn row_to_json(item: &Item) -> Value {
    let mut item = item.clone();
    item.retain(|_, value| !value.is_b());
    serde_dynamo::from_item(item).unwrap_or_else(|_| json!({}))
}

/// A manual change of an event. All but a note are conditional on `processed`, because a worker may process the event
/// while the operator types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventChange {
    /// Writes only a note.
    Annotate,
    /// A pointer will be sent; the event must not be done.
    Resend,
    /// The event is done and will be reprocessed: `--force`.
    Reopen,
    /// The sweep leaves the event alone until it is released.
    Park,
    /// The event is given up together with its dead-letter message.
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventChangeResult {
    Applied,
    /// The condition failed and nothing was written: the event is done, or for `Reopen` no longer done.
    NotAllowed,
}

impl EventsTable {
    pub(crate) async fn get_item(&self, id: &EventId) -> Result<Option<Item>> {
        let get = self.client.get_item().table_name(&self.table);
        let got = get
            .key("event_id", string_value(id.as_str()))
            .consistent_read(true)
            .send()
            .await;
        Ok(got
            .with_context(|| format!("cannot read {id} from {}", self.table))?
            .item)
    }

    /// At most `most` matching events, the newest first.
    pub(crate) async fn list(
        &self,
        selection: &EventSelection,
        most: usize,
    ) -> Result<Vec<EventSummary>> {
        let mut found: BTreeMap<String, EventSummary> = BTreeMap::new();
        for partition in selection.partitions() {
            let is_by_day = matches!(partition, IndexPartition::Day(_));
            if is_by_day && found.len() >= most {
                break;
            }
            let keys = partition.keys();
            let of_keys = keys
                .iter()
                .map(|key| self.list_key(&partition, key, selection, most));
            let mut of_keys = stream::iter(of_keys).buffer_unordered(QUERIES_AT_ONCE);
            while let Some(events) = of_keys.next().await {
                let events = events?.into_iter();
                found.extend(events.map(|event| (event.sort_key(), event)));
            }
        }
        Ok(found.into_values().rev().take(most).collect())
    }

    /// At most about `most` matching events of one key of an index, the newest first.
    async fn list_key(
        &self,
        partition: &IndexPartition,
        key: &str,
        selection: &EventSelection,
        most: usize,
    ) -> Result<Vec<EventSummary>> {
        let mut found = Vec::new();
        let mut start = None;
        loop {
            let (entries, next) = self.query_page(partition, key, selection, start).await?;
            let wanted: BTreeSet<EventId> = entries
                .iter()
                .filter(|entry| selection.may_match(&row_to_json(entry)))
                .filter_map(|entry| EventId::parse(read_text(entry, "event_id")?).ok())
                .collect();
            let rows = self.get_summaries(&wanted).await?.into_iter();
            found.extend(rows.filter(|event| selection.matches(&event.row)));
            start = next;
            if start.is_none() || found.len() >= most {
                return Ok(found);
            }
        }
    }

    /// One page of an index query, and where the next page starts (pagination).
    async fn query_page(
        &self,
        partition: &IndexPartition,
        key: &str,
        selection: &EventSelection,
        start: Option<Item>,
    ) -> Result<(Vec<Item>, Option<Item>)> {
        let (index, column) = match partition {
            IndexPartition::Open(_) => ("OpenIndex", "open"),
            IndexPartition::Day(_) => ("SlotIndex", "slot"),
        };
        // The index of unfinished events is sparse and small: without `--since` all of it is read, because the oldest
        // unfinished event is the one that somebody has to look at.
        let since = match (partition, selection.since) {
            (IndexPartition::Open(_), None) => "0".to_owned(),
            _ => selection.earliest_arrival().to_string(),
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
            .expression_attribute_values(":partition", string_value(key))
            .expression_attribute_values(":since", string_value(since))
            .expression_attribute_values(":until", string_value(selection.until.to_string()))
            .scan_index_forward(false)
            .set_exclusive_start_key(start)
            .send()
            .await
            .with_context(|| format!("cannot query {index} of {}", self.table))?;
        Ok((page.items.unwrap_or_default(), page.last_evaluated_key))
    }

    /// Reads rows consistently. Missing ids are left out, and the order is not that of `ids`.
    pub(crate) async fn get_summaries(&self, ids: &BTreeSet<EventId>) -> Result<Vec<EventSummary>> {
        let rows = load_event_items(&self.client, &self.table, ids, Some(WITHOUT_PAYLOAD)).await;
        let rows = rows.with_context(|| {
            let table = &self.table;
            format!("cannot read events from {table}; if it is throttled, try again later")
        })?;
        let summaries = rows.iter();
        Ok(summaries
            .filter_map(|item| EventSummary::from_item(self.provider, item))
            .collect())
    }

    /// Writes the note and the change in one conditional update (optimistic lock on `processed`).
    pub(crate) async fn apply_change(
        &self,
        id: &EventId,
        change: EventChange,
        note: AttributeValue,
    ) -> Result<EventChangeResult> {
        let outcome = match change {
            EventChange::Annotate | EventChange::Resend => None,
            EventChange::Reopen => Some((EventOutcome::Pending, None)),
            EventChange::Park => Some((EventOutcome::Parked, Some(ParkReason::ByHand.as_str()))),
            EventChange::Fail => Some((
                EventOutcome::Failed,
                Some("its dead-letter message was purged by hand"),
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
            sets.push_str(", #open = :open, processing_outcome = :outcome, #processed = :false");
            let open = open_key_of(outcome, id).unwrap_or_default();
            update = update
                .expression_attribute_names("#open", "open")
                .expression_attribute_values(":open", string_value(open))
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
            EventChange::Annotate => "attribute_exists(event_id)",
            EventChange::Resend | EventChange::Reopen | EventChange::Park | EventChange::Fail => {
                "#processed = :was"
            }
        };
        if change != EventChange::Annotate {
            update = update
                .expression_attribute_names("#processed", "processed")
                .expression_attribute_values(
                    ":was",
                    AttributeValue::Bool(change == EventChange::Reopen),
                );
        }
        match update
            .update_expression(sets)
            .condition_expression(condition)
            .send()
            .await
        {
            Ok(_) => Ok(EventChangeResult::Applied),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => {
                Ok(EventChangeResult::NotAllowed)
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot write {id} to {}", self.table))
            }
        }
    }
}
