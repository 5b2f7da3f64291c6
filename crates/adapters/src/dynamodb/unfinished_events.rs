//! The indexes of the events for the sweep: `SlotIndex` has every event by its arrival, `OpenIndex` those that are parked,
//! failed or overdue; and which events are stored at all, for `reconcile`.
//!
//! A row is in `OpenIndex` only while it has the attribute `open` (a sparse index), so an event that is processed at once
//! costs nothing there. An index is only a hint: the sweep reads the rows consistently before it sends a message.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use aws_sdk_dynamodb::types::Select;
use billhook_core::entity::key::StateKey;
use billhook_core::error::DependencyError;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::intake::index_keys::{open_key_of, open_keys, slots_of_day};
use billhook_core::outcome::EventOutcome;
use billhook_core::ports::Clock;
use billhook_core::provider::envelope::DOCTOR_EVENT_TYPE;
use billhook_core::retry::Disposition;
use billhook_core::tasks::ports::{
    ArrivalSpan, ArrivedEvent, FindKnownEvents, FindUnfinishedEvents, UnfinishedEvent,
    UnfinishedPage,
};
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::CommitError;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;
use super::events::{DynamoInbox, load_event_items, read_event_record};
use super::ledger::DynamoLedger;
use super::update::UpdateBuilder;

const INDEX: &str = "OpenIndex";
const SLOT_INDEX: &str = "SlotIndex";
/// The attributes that the sweep needs; the payload, which makes up most of a row, is not transferred. DynamoDB charges
/// the read for the whole row all the same.
const WITHOUT_PAYLOAD: &str = "event_id, event_type, connected_account_id, #group, correlation_id, received_at, \
    #processed, processing_outcome, processing_error";

/// Keys of an index that are queried at the same time.
const QUERIES_AT_ONCE: usize = 8;

impl<C: Clock> DynamoLedger<C> {
    /// The events of one key of `OpenIndex`, received in this span of time.
    fn query_open(&self, open_key: &str, since: &str, until: Timestamp) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.events)
            .index_name(INDEX)
            .key_condition_expression("#open = :open AND received_at BETWEEN :since AND :until")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":open", string_value(open_key))
            .expression_attribute_values(":since", string_value(since))
            .expression_attribute_values(":until", string_value(until.to_string()))
    }

    async fn query_slot(
        &self,
        slot: &str,
        span: ArrivalSpan,
    ) -> Result<Vec<ArrivedEvent>, DependencyError> {
        // Both ends belong to BETWEEN, and times have milliseconds.
        let first = span.after.after(Duration::from_millis(1));
        let mut arrived = Vec::new();
        let mut start = None;
        loop {
            let page = self
                .client
                .query()
                .table_name(&self.tables.events)
                .index_name(SLOT_INDEX)
                .key_condition_expression("slot = :slot AND received_at BETWEEN :first AND :until")
                .expression_attribute_values(":slot", string_value(slot))
                .expression_attribute_values(":first", string_value(first.to_string()))
                .expression_attribute_values(":until", string_value(span.until.to_string()))
                .projection_expression(
                    "event_id, event_type, received_at, processing_outcome, entities",
                )
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| self.query_error(SLOT_INDEX, error))?;
            arrived.extend(page.items().iter().filter_map(read_arrived_event));
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(arrived);
            }
        }
    }

    /// The first `limit` events of one key of `OpenIndex` behind `after`, and whether there are more.
    async fn query_open_page(
        &self,
        open_key: &str,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> Result<(Vec<UnfinishedEvent>, bool), DependencyError> {
        let since = after.map_or_else(|| "0".to_owned(), |after| after.received_at.to_string());
        let is_behind = |event: &UnfinishedEvent| {
            after
                .is_none_or(|after| (event.received_at, &event.id) > (after.received_at, &after.id))
        };
        let mut events = Vec::new();
        let mut start = None;
        loop {
            let page = self
                .query_open(open_key, &since, until)
                .projection_expression("event_id, received_at")
                .set_exclusive_start_key(start)
                .limit(i32::try_from(limit).unwrap_or(i32::MAX))
                .send()
                .await
                .map_err(|error| self.query_error(INDEX, error))?;
            let found = page.items().iter().filter_map(read_unfinished_event);
            events.extend(found.filter(is_behind));
            start = page.last_evaluated_key;
            if start.is_none() || events.len() >= limit {
                return Ok((events, start.is_some()));
            }
        }
    }

    async fn count_open(&self, open_key: &str, until: Timestamp) -> Result<usize, DependencyError> {
        let mut count = 0_usize;
        let mut start = None;
        loop {
            let page = self
                .query_open(open_key, "0", until)
                .select(Select::Count)
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| self.query_error(INDEX, error))?;
            count = count.saturating_add(usize::try_from(page.count).unwrap_or(0));
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(count);
            }
        }
    }
}

impl<C: Clock> FindUnfinishedEvents for DynamoLedger<C> {
    async fn arrived_events(
        &self,
        day: &str,
        span: ArrivalSpan,
    ) -> Result<Vec<ArrivedEvent>, DependencyError> {
        let of_slots: Vec<Vec<ArrivedEvent>> = stream::iter(slots_of_day(day))
            .map(async |slot| self.query_slot(&slot, span).await)
            .buffer_unordered(QUERIES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(of_slots.concat())
    }

    async fn mark_open(&self, id: &EventId) -> Result<bool, DependencyError> {
        let table = &self.tables.events;
        let mut update = UpdateBuilder::new();
        update.set(
            "open",
            open_key_of(EventOutcome::Pending, id).map(string_value),
        );
        // A worker may have ended or parked it meanwhile.
        update.require_as_loaded("open", None);
        let pending = string_value(EventOutcome::Pending.as_str());
        update.require_as_loaded("processing_outcome", Some(&pending));
        let marked = match update.build(table, "event_id", id.as_str()) {
            Ok(update) => self.update_one(update).await,
            Err(refused) => Err(refused),
        };
        match marked {
            Ok(()) => Ok(true),
            Err(CommitError::LostRace) => Ok(false),
            Err(CommitError::Unavailable(error)) => Err(error),
            Err(error @ (CommitError::Busy(_) | CommitError::Refused(_))) => Err(DependencyError {
                doing: format!("mark {id} as open in {table}"),
                disposition: Disposition::RetryLater,
                cause: error.to_string().into(),
            }),
        }
    }

    async fn unfinished_events(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> Result<UnfinishedPage, DependencyError> {
        // The first of all keys together are among the first of each.
        let of_keys: Vec<(Vec<UnfinishedEvent>, bool)> = stream::iter(open_keys(outcome))
            .map(async |key| self.query_open_page(&key, until, after, limit).await)
            .buffer_unordered(QUERIES_AT_ONCE)
            .try_collect()
            .await?;
        let has_more = of_keys.iter().any(|(_, has_more)| *has_more);
        let events = of_keys.into_iter().flat_map(|(events, _)| events);
        let mut events: Vec<UnfinishedEvent> = events.collect();
        events
            .sort_by(|one, other| (one.received_at, &one.id).cmp(&(other.received_at, &other.id)));
        let is_cut = events.len() > limit;
        events.truncate(limit);
        let next = events.last().filter(|_| has_more || is_cut).cloned();
        Ok(UnfinishedPage { events, next })
    }

    async fn count_unfinished(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> Result<usize, DependencyError> {
        let counts: Vec<usize> = stream::iter(open_keys(outcome))
            .map(async |key| self.count_open(&key, until).await)
            .buffer_unordered(QUERIES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(counts.into_iter().sum())
    }

    async fn load_with_reasons(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<(EventRecord, Option<String>)>, DependencyError> {
        let rows = load_event_items(
            &self.client,
            &self.tables.events,
            ids,
            Some(WITHOUT_PAYLOAD),
        )
        .await?;
        let with_reason = |row: &Item| {
            let reason = read_text(row, "processing_error").map(str::to_owned);
            Some((read_event_record(row)?, reason))
        };
        Ok(rows.iter().filter_map(with_reason).collect())
    }
}

impl<C: Clock> DynamoLedger<C> {
    fn query_error(
        &self,
        index: &str,
        error: aws_sdk_dynamodb::error::SdkError<aws_sdk_dynamodb::operation::query::QueryError>,
    ) -> DependencyError {
        dependency_error(format!("query {index} of {}", self.tables.events), error)
    }
}

fn read_unfinished_event(row: &Item) -> Option<UnfinishedEvent> {
    Some(UnfinishedEvent {
        id: EventId::parse(read_text(row, "event_id")?).ok()?,
        received_at: Timestamp::parse(read_text(row, "received_at")?).ok()?,
    })
}

fn read_arrived_event(entry: &Item) -> Option<ArrivedEvent> {
    Some(ArrivedEvent {
        id: EventId::parse(read_text(entry, "event_id")?).ok()?,
        outcome: EventOutcome::parse(read_text(entry, "processing_outcome")?)?,
        entities: entry
            .get("entities")
            .and_then(|entities| entities.as_ss().ok())
            .into_iter()
            .flatten()
            .filter_map(|key| StateKey::parse(key))
            .collect(),
        delivered_at: read_text(entry, "received_at")
            .filter(|_| read_text(entry, "event_type") != Some(DOCTOR_EVENT_TYPE))
            .and_then(|at| Timestamp::parse(at).ok()),
    })
}

impl FindKnownEvents for DynamoInbox {
    async fn known_events(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<BTreeSet<EventId>, DependencyError> {
        let table = self.tables.of(ProviderId::Stripe);
        let rows = load_event_items(&self.client, table, ids, Some("event_id")).await?;
        let id = |row: &Item| EventId::parse(read_text(row, "event_id")?).ok();
        Ok(rows.iter().filter_map(id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_doctor_sent_is_no_delivery_and_what_cannot_be_read_is_still_an_event() {
        let at = "2026-06-09T10:13:20.000Z";
        let arrived = |event_type: &str, received_at: &str| {
            let texts = [
                ("event_id", "evt_1"),
                ("processing_outcome", "ignored"),
                ("event_type", event_type),
                ("received_at", received_at),
            ];
            let row = texts.map(|(name, text)| (name.to_owned(), string_value(text)));
            read_arrived_event(&row.into()).unwrap().delivered_at
        };
        let delivered_at = Timestamp::parse(at).ok();
        assert_eq!(arrived("charge.refunded", at), delivered_at);
        assert_eq!(arrived(DOCTOR_EVENT_TYPE, at), None);
        assert_eq!(arrived("charge.refunded", "yesterday"), None);
    }
}
