//! Finds what is in the sparse `OpenIndex` of the table `entities` for the sweep: open payments, which have no link or an
//! outdated copy; entities whose row is missing or has a foreign column; and entities that were written without an event
//! that leads the sweep to them.
//!
//! The index is only a hint: the states themselves are read before anything is decided.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use billhook_core::entity::EntityKey;
use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::schema::{RECENT, RowTrouble, STATE_KEY, index_keys_of};
use billhook_core::error::DependencyError;
use billhook_core::ports::Clock;
use billhook_core::tasks::ports::{ArrivalSpan, FindOpenStates};
use billhook_core::time::Timestamp;

use super::attributes::{Item, read_text, string_value};
use super::dependency_error;
use super::ledger::DynamoLedger;

impl<C: Clock> DynamoLedger<C> {
    /// The states of one key of the index, whose `open_at` is in this span of time.
    fn query_open_states(
        &self,
        index_key: &str,
        since: &str,
        until: Timestamp,
    ) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.entities)
            .index_name("OpenIndex")
            .key_condition_expression("#open = :open AND #open_at BETWEEN :since AND :until")
            .expression_attribute_names("#open", "open")
            .expression_attribute_names("#open_at", "open_at")
            .expression_attribute_values(":open", string_value(index_key))
            .expression_attribute_values(":since", string_value(since))
            .expression_attribute_values(":until", string_value(until.to_string()))
    }

    /// The entities that are open for this reason, with their `open_at` in this span of time.
    async fn find_entities(
        &self,
        reason: &str,
        since: &str,
        until: Timestamp,
    ) -> Result<Vec<(EntityKey, Timestamp)>, DependencyError> {
        let mut found = Vec::new();
        for index_key in index_keys_of(reason) {
            let mut start = None;
            loop {
                let page = self
                    .query_open_states(&index_key, since, until)
                    .set_exclusive_start_key(start)
                    .send()
                    .await
                    .map_err(|error| self.open_states_error(error))?;
                found.extend(page.items().iter().filter_map(read_open_entity));
                start = page.last_evaluated_key;
                if start.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }

    fn open_states_error(
        &self,
        error: aws_sdk_dynamodb::error::SdkError<aws_sdk_dynamodb::operation::query::QueryError>,
    ) -> DependencyError {
        let table = &self.tables.entities;
        dependency_error(format!("query OpenIndex of {table}"), error)
    }
}

impl<C: Clock> FindOpenStates for DynamoLedger<C> {
    async fn open_payments(
        &self,
        index_key: &str,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<PaymentKey>, DependencyError> {
        let answer = self
            .query_open_states(index_key, "0", until)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await
            .map_err(|error| self.open_states_error(error))?;
        let keys = answer.items().iter();
        let keys = keys.filter_map(|item| PaymentKey::parse(read_text(item, STATE_KEY)?));
        Ok(keys.collect())
    }

    async fn troubled_entities(&self) -> Result<Vec<(EntityKey, Timestamp)>, DependencyError> {
        let mut found = Vec::new();
        for trouble in RowTrouble::ALL {
            let entries = self.find_entities(trouble.as_str(), "0", self.clock.now());
            found.extend(entries.await?);
        }
        Ok(found)
    }

    async fn recent_entities(
        &self,
        span: ArrivalSpan,
    ) -> Result<BTreeSet<EntityKey>, DependencyError> {
        // Both ends belong to BETWEEN, and times have milliseconds.
        let first = span.after.after(Duration::from_millis(1)).to_string();
        let entries = self.find_entities(RECENT, &first, span.until).await?;
        Ok(entries.into_iter().map(|(key, _)| key).collect())
    }
}

fn read_open_entity(entry: &Item) -> Option<(EntityKey, Timestamp)> {
    let key = EntityKey::parse(read_text(entry, STATE_KEY)?)?;
    Some((key, Timestamp::parse(read_text(entry, "open_at")?).ok()?))
}
