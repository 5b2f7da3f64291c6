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
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::{Item, read_text, string_value};
use billhook_adapters::dynamodb::events::{load_event_items, read_event_record};
use billhook_core::entity::key::StateKey;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::intake::index_keys::open_key_of;
use billhook_core::outcome::{EventOutcome, IgnoreReason, ParkReason};
use billhook_core::ports::Clock as _;
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

/// Events by account (`platform` for those without one) and outcome, and what was read to count them.
#[derive(Debug, Default)]
pub(crate) struct AccountCounts {
    pub(crate) by_account: BTreeMap<String, BTreeMap<String, u64>>,
    pub(crate) queries: usize,
    pub(crate) entries: usize,
    /// There are more than were read.
    pub(crate) is_cut: bool,
}

impl AccountCounts {
    fn add(&mut self, entry: &Item) {
        let account = read_text(entry, "connected_account_id").unwrap_or("platform");
        let outcome = read_text(entry, "processing_outcome").unwrap_or("pending");
        let of_account = self.by_account.entry(account.to_owned()).or_default();
        *of_account.entry(outcome.to_owned()).or_default() += 1;
    }

    fn merge(&mut self, other: Self) {
        for (account, outcomes) in other.by_account {
            let known = self.by_account.entry(account).or_default();
            for (outcome, events) in outcomes {
                *known.entry(outcome).or_default() += events;
            }
        }
        self.queries += other.queries;
        self.entries += other.entries;
        self.is_cut |= other.is_cut;
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
    /// A parked or failed event is given up: it is ignored from now on, and not open any more.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventChangeResult {
    Applied,
    /// The condition failed and nothing was written: the event is done, or for `Reopen` no longer done; for `Close` it is
    /// neither parked nor failed.
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
            let (entries, next) = self
                .query_page(partition, key, selection, start, None)
                .await?;
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

    /// Counts the events of a span by account and outcome, from `SlotIndex` alone: no row is read. Of each key of the index at
    /// most its part of `most` entries is read, the newest first. An event's id chooses its key, so what is left out is of
    /// every account in proportion.
    pub(crate) async fn count_accounts(
        &self,
        selection: &EventSelection,
        most: usize,
    ) -> Result<AccountCounts> {
        let partitions = selection.partitions();
        let keys = partitions
            .iter()
            .map(|partition| (partition, partition.keys()));
        let keys: Vec<(&IndexPartition, String)> = keys
            .flat_map(|(partition, keys)| keys.into_iter().map(move |key| (partition, key)))
            .collect();
        let of_key = most.div_ceil(keys.len().max(1));
        let counting = keys.iter().map(|(partition, key)| async move {
            let mut counts = AccountCounts::default();
            let mut start = None;
            loop {
                let (entries, next) = self
                    .query_page(
                        partition,
                        key,
                        selection,
                        start,
                        Some(of_key - counts.entries),
                    )
                    .await?;
                counts.queries += 1;
                counts.entries += entries.len();
                entries.iter().for_each(|entry| counts.add(entry));
                start = next;
                counts.is_cut = start.is_some() && counts.entries >= of_key;
                if start.is_none() || counts.is_cut {
                    return anyhow::Ok(counts);
                }
            }
        });
        let mut counting = stream::iter(counting).buffer_unordered(QUERIES_AT_ONCE);
        let mut all = AccountCounts::default();
        while let Some(counts) = counting.next().await {
            all.merge(counts?);
        }
        Ok(all)
    }

    /// One page of an index query, and where the next page starts (pagination).
    async fn query_page(
        &self,
        partition: &IndexPartition,
        key: &str,
        selection: &EventSelection,
        start: Option<Item>,
        limit: Option<usize>,
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
            .set_limit(limit.and_then(|limit| i32::try_from(limit.max(1)).ok()))
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
            EventChange::Close => {
                Some((EventOutcome::Ignored, Some(IgnoreReason::Closed.as_str())))
            }
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
            sets.push_str(", processing_outcome = :outcome, #processed = :processed");
            update = update
                .expression_attribute_names("#open", "open")
                .expression_attribute_values(":outcome", string_value(outcome.as_str()))
                .expression_attribute_values(":processed", AttributeValue::Bool(outcome.is_done()));
            if let Some(open) = open_key_of(outcome, id) {
                sets.push_str(", #open = :open");
                update = update.expression_attribute_values(":open", string_value(open));
            } else {
                sets.push_str(", processed_at = :now");
                let now = SystemClock.now().to_string();
                update = update.expression_attribute_values(":now", string_value(now));
            }
            if let Some(reason) = reason {
                sets.push_str(", processing_error = :reason");
                update = update.expression_attribute_values(":reason", string_value(reason));
            }
            match change {
                EventChange::Close => sets.push_str(" REMOVE #open"),
                EventChange::Reopen => sets.push_str(" REMOVE processing_error, processed_at"),
                _ => {}
            }
        }
        let condition = match change {
            EventChange::Annotate => "attribute_exists(event_id)",
            EventChange::Resend | EventChange::Reopen | EventChange::Park | EventChange::Fail => {
                "#processed = :was"
            }
            EventChange::Close => {
                update = update
                    .expression_attribute_values(":parked", string_value("parked"))
                    .expression_attribute_values(":failed", string_value("failed"));
                "#processed = :was AND processing_outcome IN (:parked, :failed)"
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
