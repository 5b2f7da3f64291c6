//! `OpenIndex`, the index of unfinished events, for the sweep; and which events are stored at all, for `reconcile`.
//!
//! A row is in the index only while it has the attribute `open` (a sparse index), so finished events cost nothing
//! there. The index is only a hint: the sweep reads the rows consistently before it sends a message.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::Select;
use billhook_core::error::DependencyError;
use billhook_core::ids::{EventId, ProviderId};
use billhook_core::intake::inbox::EventRecord;
use billhook_core::outcome::EventOutcome;
use billhook_core::ports::Clock;
use billhook_core::tasks::ports::{
    FindKnownEvents, FindUnfinishedEvents, UnfinishedEvent, UnfinishedPage,
};
use billhook_core::time::Timestamp;

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;
use super::events::{DynamoInbox, load_event_items, read_event_record};
use super::ledger::DynamoLedger;

const INDEX: &str = "OpenIndex";
/// The attributes that the sweep needs; the payload, which makes up most of a row, is not transferred. DynamoDB charges
/// the read for the whole row all the same.
const WITHOUT_PAYLOAD: &str = "event_id, event_type, connected_account_id, #group, correlation_id, received_at, \
    #processed, processing_outcome, processing_error";

impl<C: Clock> DynamoLedger<C> {
    fn query_open(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.events)
            .index_name(INDEX)
            .key_condition_expression("#open = :outcome AND received_at <= :until")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":outcome", string_value(outcome.as_str()))
            .expression_attribute_values(":until", string_value(until.to_string()))
    }
}

impl<C: Clock> FindUnfinishedEvents for DynamoLedger<C> {
    async fn unfinished_events(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
        after: Option<&UnfinishedEvent>,
        limit: usize,
    ) -> Result<UnfinishedPage, DependencyError> {
        let start = after.map(|after| {
            Item::from([
                ("event_id".to_owned(), string_value(after.id.as_str())),
                ("open".to_owned(), string_value(outcome.as_str())),
                (
                    "received_at".to_owned(),
                    string_value(after.received_at.to_string()),
                ),
            ])
        });
        let page = self
            .query_open(outcome, until)
            .projection_expression("event_id, received_at")
            .set_exclusive_start_key(start)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| self.query_error(error))?;
        Ok(UnfinishedPage {
            events: page
                .items()
                .iter()
                .filter_map(read_unfinished_event)
                .collect(),
            next: page.last_evaluated_key().and_then(read_unfinished_event),
        })
    }

    async fn count_unfinished(
        &self,
        outcome: EventOutcome,
        until: Timestamp,
    ) -> Result<usize, DependencyError> {
        let mut count = 0_usize;
        let mut start = None;
        loop {
            let page = self
                .query_open(outcome, until)
                .select(Select::Count)
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| self.query_error(error))?;
            count = count.saturating_add(usize::try_from(page.count).unwrap_or(0));
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(count);
            }
        }
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
        error: aws_sdk_dynamodb::error::SdkError<aws_sdk_dynamodb::operation::query::QueryError>,
    ) -> DependencyError {
        dependency_error(format!("query {INDEX} of {}", self.tables.events), error)
    }
}

fn read_unfinished_event(row: &Item) -> Option<UnfinishedEvent> {
    Some(UnfinishedEvent {
        id: EventId::parse(read_text(row, "event_id")?).ok()?,
        received_at: Timestamp::parse(read_text(row, "received_at")?).ok()?,
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
