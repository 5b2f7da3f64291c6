//! Events that are not done, for the sweep, and which events are there at all, for reconcile.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::Select;
use billhook_core::ids::EventId;
use billhook_core::inbox::{Outcome, Stored};
use billhook_core::ports::{
    Clock, FindKnownEvents, FindOpenEvents, OpenEvent, OpenPage, Unavailable,
};
use billhook_core::time::Timestamp;

use super::inbox::{Inbox, stored};
use super::items::{Item, s, text};
use super::ledger::{DynamoLedger, event_rows};
use super::unavailable;

const INDEX: &str = "OpenIndex";
/// What is read of a row where its payload is not needed.
const WITHOUT_PAYLOAD: &str = "event_id, event_type, connected_account_id, #group, correlation_id, received_at, \
    #processed, processing_outcome, processing_error";

impl<C: Clock> DynamoLedger<C> {
    fn query_open(
        &self,
        outcome: Outcome,
        until: Timestamp,
    ) -> aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.events)
            .index_name(INDEX)
            .key_condition_expression("#open = :outcome AND received_at <= :until")
            .expression_attribute_names("#open", "open")
            .expression_attribute_values(":outcome", s(outcome.as_str()))
            .expression_attribute_values(":until", s(until.to_string()))
    }
}

impl<C: Clock> FindOpenEvents for DynamoLedger<C> {
    async fn open_events(
        &self,
        outcome: Outcome,
        until: Timestamp,
        after: Option<&OpenEvent>,
        limit: usize,
    ) -> Result<OpenPage, Unavailable> {
        let start = after.map(|after| {
            Item::from([
                ("event_id".to_owned(), s(after.id.as_str())),
                ("open".to_owned(), s(outcome.as_str())),
                ("received_at".to_owned(), s(after.received_at.to_string())),
            ])
        });
        let page = self
            .query_open(outcome, until)
            .projection_expression("event_id, received_at")
            .set_exclusive_start_key(start)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| self.open_failed(error))?;
        Ok(OpenPage {
            events: page.items().iter().filter_map(open_event).collect(),
            next: page.last_evaluated_key().and_then(open_event),
        })
    }

    async fn count_open(&self, outcome: Outcome, until: Timestamp) -> Result<usize, Unavailable> {
        let mut count = 0_usize;
        let mut start = None;
        loop {
            let page = self
                .query_open(outcome, until)
                .select(Select::Count)
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| self.open_failed(error))?;
            count = count.saturating_add(usize::try_from(page.count).unwrap_or(0));
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(count);
            }
        }
    }

    async fn reasons(
        &self,
        ids: &BTreeSet<EventId>,
    ) -> Result<Vec<(Stored, Option<String>)>, Unavailable> {
        let rows = event_rows(
            &self.client,
            &self.tables.events,
            ids,
            Some(WITHOUT_PAYLOAD),
        )
        .await?;
        let with_reason = |row: &Item| {
            let reason = text(row, "processing_error").map(str::to_owned);
            Some((stored(row)?, reason))
        };
        Ok(rows.iter().filter_map(with_reason).collect())
    }
}

impl<C: Clock> DynamoLedger<C> {
    fn open_failed(
        &self,
        error: aws_sdk_dynamodb::error::SdkError<aws_sdk_dynamodb::operation::query::QueryError>,
    ) -> Unavailable {
        unavailable(format!("query {INDEX} of {}", self.tables.events), error)
    }
}

fn open_event(row: &Item) -> Option<OpenEvent> {
    Some(OpenEvent {
        id: EventId::parse(text(row, "event_id")?).ok()?,
        received_at: Timestamp::parse(text(row, "received_at")?).ok()?,
    })
}

impl FindKnownEvents for Inbox {
    async fn known(&self, ids: &BTreeSet<EventId>) -> Result<BTreeSet<EventId>, Unavailable> {
        let rows = event_rows(&self.client, &self.stripe_table, ids, Some("event_id")).await?;
        let id = |row: &Item| EventId::parse(text(row, "event_id")?).ok();
        Ok(rows.iter().filter_map(id).collect())
    }
}
